"""What blocks would take: told from some of the spans, which are really encoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit import moves
from toolkit.catalog import Entry, Series
from toolkit.cutting import cut
from toolkit.drivers import Driver
from toolkit.merging import Run
from toolkit.strategy import compose
from toolkit.strategy.params import blocks_params, range_params
from toolkit.timegrid import Span

_SAMPLES = 8


async def sample(
    driver: Driver, entry: Entry, spans: Sequence[tuple[Series, Span]], run: Run
) -> tuple[int, int]:
    """Encode some of the spans, evenly chosen, and return their points and the blocks' bytes.

    Reads only. Where a span has a block already, that is encoded with it, as it would be.
    """
    chosen = np.unique(np.linspace(0, len(spans) - 1, _SAMPLES).round().astype(int))
    points = size = 0
    for series, span in (spans[i] for i in chosen):
        text = compose.points_statement(entry, entry.dataset.names, source="one", is_cold=True)
        params = {"id": series.id, **range_params(span), **blocks_params(entry, span)}
        rows = await driver.fetch(text, params)
        table = moves.merge_taken(entry, series, rows, run).table
        blocks = await driver.compute(moves.encoded, entry, series, table, cut(span, table.ts))
        points += sum(b.rows for b in blocks)
        size += sum(b.size for b in blocks)
    return points, size
