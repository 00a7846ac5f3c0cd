"""What a transaction that changes points does besides: it tells the change log, and looks again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toolkit.catalog import Entry, Series
from toolkit.drivers import Transaction
from toolkit.errors import InputError
from toolkit.ingest.frames import Batch, runs
from toolkit.statements import compose, name
from toolkit.timegrid import Instants, Span, iso, to_datetime, to_us

_WEEK = 7 * 86_400_000_000


class SeriesGone(Exception):
    """Series that the catalog remembers are not there any more."""


async def log(
    transaction: Transaction, entry: Entry, batch: Batch, ids: npt.NDArray[np.int32]
) -> None:
    """Tell the change log of the times in an arranged batch, where no trigger does."""
    width = entry.dataset.log_step.width
    assert width is not None
    found = runs(batch, width, _WEEK // width * width)
    params = {
        "ids": ids[found.code].tolist(),
        "lows": [to_datetime(int(t)) for t in found.lo],
        "highs": [to_datetime(int(t)) for t in found.hi],
    }
    table = name(entry.schema, f"{entry.dataset.name}_log")
    await transaction.execute(compose("write/log_runs", log=table), params)


def at(entry: Entry, series: Series, ts: Instants) -> Batch:
    """Return instants of a series as a batch that the change log can be told of."""
    return Batch(entry.dataset, (series.name,), np.zeros(len(ts), np.int32), ts, None, {})


def within(entry: Entry, span: Span) -> Instants:
    """Return instants of which one lies in every cell of the change log that a span touches."""
    instants = np.arange(span.start, span.end, entry.dataset.log_step.width, dtype=np.int64)
    return np.append(instants, span.end - 1)


async def check_alive(
    transaction: Transaction, entry: Entry, ids: npt.NDArray[np.int32], first: int
) -> None:
    """Refuse to commit points of series that are gone with a dataset made anew meanwhile.

    Also changes before the mark that retention has set; ``first`` is the first instant of them.
    Asked after the points are in and logged: their tables are locked by then, and stay what they
    are.
    """
    tables = {"series": name(entry.schema, "series"), "dataset": name(entry.schema, "dataset")}
    params = {"dataset_id": entry.id, "ids": ids.tolist()}
    rows = await transaction.fetch(compose("write/count_series", **tables), params)
    if rows[0][0] != len(ids):
        raise SeriesGone
    if rows[0][1] is not None:
        refuse_frozen(entry, first, to_us(rows[0][1]))


def refuse_frozen(entry: Entry, first: int, mark: int | None) -> None:
    """Raise InputError where a change begins before the mark that retention has set."""
    if mark is not None and first < mark:
        raise InputError(
            f"{entry.dataset.name!r}, {iso(first)}: points before {iso(mark)} are frozen; "
            "retention may have dropped some of them, and rollups stand for them; what may still "
            "change begins there"
        )
