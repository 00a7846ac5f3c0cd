"""From packed rows to a table, and from a table to the rows of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.columns import NULL_INT
from toolkit.dataset import Dataset
from toolkit.decode import Packing, unpack
from toolkit.drivers import Rows
from toolkit.query import Query
from toolkit.reduce import Table, finish
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
    """Return at most ``points`` rows of each series, those that keep the picture.

    Bars keep the lows and highs of the plan's ``drawn``. Where those are the chart column's own
    least and greatest value, the greatest becomes the one of the two that was picked.
    """
    if not len(table):
        return table
    kept, is_high = [], []
    low, high = _drawn(table, plan, dataset)
    for code in np.unique(table.series):
        rows = np.flatnonzero(table.series == code)
        if plan.grid is None:
            kept.append(rows[pick.pick_points(table.ts[rows], high[rows], points)])
        else:
            chosen, highs = pick.pick_bars(table.ts[rows], low[rows], high[rows], points)
            kept.append(rows[chosen])
            is_high.append(highs)
    result = table.take(np.concatenate(kept))
    return _with_extremes(result, plan, dataset, np.concatenate(is_high)) if is_high else result


def _drawn(table: Table, plan: Plan, dataset: Dataset) -> tuple[Any, Any]:
    """Return what a row's picture reaches down and up to, as floats."""
    if plan.grid is None:
        values = _drawable(table.values[dataset.chart])
        return values, values
    low, high = plan.drawn
    # one by one: one may have the other's name
    return tuple(_drawable(finish(table, (a,), dataset)[0][a.name]) for a in (low, high))


def _with_extremes(table: Table, plan: Plan, dataset: Dataset, is_high: Any) -> Table:
    low, high = plan.drawn
    if (low.kind, high.kind) != ("min", "max") or low.of != high.of:
        return table
    least, most = (dataset.states_of(a)[0].name for a in (low, high))
    either = np.where(is_high, table.values[most], table.values[least])
    return replace(table, values={**table.values, most: either})


def _drawable(values: Any) -> Any:
    """Return values as floats, NULL as NaN."""
    if values.dtype == np.float64:
        return values
    number = values.astype(np.float64)
    number[values == NULL_INT] = np.nan
    return number


def ordered(query: Query, plan: Plan, series: Any, count: int) -> Any:
    """Return the rows to answer with, in order; None for all as they are."""
    is_native = plan.grid is None and query.asked.points is None
    computed_here = not is_native and (
        plan.strategy != "aggregated" or query.asked.group_by is not None
    )
    rows: Any = None
    if query.asked.descending and computed_here:
        rows = np.lexsort((np.arange(count)[::-1], series))
    if query.asked.limit is not None and count > query.asked.limit:
        rows = slice(query.asked.limit) if rows is None else rows[: query.asked.limit]
    return rows
