"""From packed rows to a table, and from a table to the rows of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.columns import NULL_INT
from toolkit.dataset import Dataset
from toolkit.decode import Packing, unpack
from toolkit.drivers import Rows
from toolkit.query import Query
from toolkit.reduce import Table
from toolkit.strategy import Plan, pick


def to_table(packing: Packing, rows: Rows, code_of: Mapping[int, int]) -> Table:
    """Return packed rows (series id, count, wide, narrow …) as one table, in their order."""
    unpacked = unpack(packing, [r[1:] for r in rows])
    if len(code_of) == 1:
        series = np.zeros(len(unpacked.ts), np.int32)
    else:
        codes = np.fromiter((code_of[r[0]] for r in rows), np.int32, len(rows))
        series = np.repeat(codes, [r[1] for r in rows])
    return Table(series, unpacked.ts, unpacked.values, unpacked.categories)


def picked(table: Table, plan: Plan, dataset: Dataset, points: int) -> Table:
    """Return at most ``points`` rows of each series, those that keep the picture."""
    kept = []
    names = (f"{dataset.chart}_min", f"{dataset.chart}_max")
    for code in np.unique(table.series):
        rows = np.flatnonzero(table.series == code)
        mine = table.take(rows)
        if plan.grid is None:
            values = mine.values[dataset.chart]
            chosen = pick.pick_points(mine.ts, _drawable(values), points)
        else:
            low, high = _extremes(mine, names, plan)
            chosen = pick.pick_bars(mine.ts, _drawable(low), _drawable(high), points)
        kept.append(rows[chosen])
    return table.take(np.concatenate(kept)) if kept else table


def _extremes(table: Table, names: tuple[str, str], plan: Plan) -> tuple[Any, Any]:
    """Return what a bar's picture reaches down and up to."""
    by_kind = {s.kind: table.values[s.name] for s in plan.states if s.type != "time"}
    low = table.values.get(names[0], by_kind.get("min"))
    high = table.values.get(names[1], by_kind.get("max"))
    any_value = next(v for k, v in by_kind.items() if k not in ("pv", "v", "count"))
    return (low if low is not None else any_value), (high if high is not None else any_value)


def _drawable(values: Any) -> Any:
    """Return values as floats, NULL as NaN."""
    if values.dtype == np.float64:
        return values
    number = values.astype(np.float64)
    number[values == NULL_INT] = np.nan
    return number


def ordered(query: Query, plan: Plan, series: Any, count: int) -> Any:
    """Return the rows to answer with, in order; None for all as they are."""
    computed_here = plan.grid is not None and (
        plan.strategy != "aggregated" or query.group_by is not None
    )
    rows: Any = None
    if query.descending and computed_here:
        rows = np.lexsort((np.arange(count)[::-1], series))
    if query.limit is not None and count > query.limit:
        rows = slice(query.limit) if rows is None else rows[: query.limit]
    return rows
