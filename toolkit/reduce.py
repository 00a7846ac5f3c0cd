"""Buckets from points and coarser buckets from finer ones, in numpy: the twin of the SQL."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT, unite
from toolkit.dataset import Aggregate, Dataset, State
from toolkit.errors import QueryError
from toolkit.timegrid import Grid, Instants

Array = npt.NDArray[Any]
EMPTY_SUM = -sys.float_info.max
"""A float sum over no values while it can still be merged; NaN is what inf - inf sums to."""

NO_ADDEND = (
    "group_by: in one bucket of one series an integer sum leaves 64 bits, and cannot be added to "
    "those of the others; take a finer step, or leave out group_by"
)
_BIGGEST = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Table:
    """Rows ordered by (series, ts): series codes, instants, and values with NULL in the band."""

    series: npt.NDArray[np.int32]
    ts: Instants
    values: Mapping[str, Array]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ts)

    def silent(self, count: int) -> list[int]:
        """Return which of the first ``count`` series codes have no row."""
        if count < 2:
            return [] if len(self) else list(range(count))
        return np.flatnonzero(np.bincount(self.series, minlength=count) == 0).tolist()

    def take(self, rows: Array | slice) -> Table:
        """Return the given rows."""
        values = {n: v[rows] for n, v in self.values.items()}
        return replace(self, series=self.series[rows], ts=self.ts[rows], values=values)


@dataclass(frozen=True, slots=True)
class _Segments:
    """Runs of neighbouring rows that fall into one bucket."""

    starts: npt.NDArray[np.intp]
    ends: npt.NDArray[np.intp]

    @classmethod
    def of(cls, *keys: Array) -> _Segments:
        size = len(keys[0])
        if not size:
            none = np.empty(0, np.intp)
            return cls(none, none)
        change = np.zeros(size, bool)
        change[0] = True
        for key in keys:
            change[1:] |= key[1:] != key[:-1]
        starts = np.flatnonzero(change)
        return cls(starts, np.append(starts[1:], size))

    def first(self, valid: npt.NDArray[np.bool_]) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return each run's first valid row, and whether it has one."""
        if valid.all():
            return self.starts, np.ones(len(self.starts), bool)
        rows = np.flatnonzero(valid)
        if not len(rows):
            return self.starts, np.zeros(len(self.starts), bool)
        at = np.searchsorted(rows, self.starts)
        found = rows[np.minimum(at, len(rows) - 1)]
        return found, (at < len(rows)) & (found < self.ends)

    def last(self, valid: npt.NDArray[np.bool_]) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return each run's last valid row, and whether it has one."""
        if valid.all():
            return self.ends - 1, np.ones(len(self.starts), bool)
        rows = np.flatnonzero(valid)
        if not len(rows):
            return self.starts, np.zeros(len(self.starts), bool)
        at = np.searchsorted(rows, self.ends) - 1
        found = rows[np.maximum(at, 0)]
        return found, (at >= 0) & (found >= self.starts)


def bucket_points(
    points: Table,
    states: Sequence[State],
    dataset: Dataset,
    grid: Grid,
    is_added: bool = False,
) -> Table:
    """Return the states of each (series, bucket) of ``points``; one pass a state.

    Where they are added up across series (``is_added``), an integer sum must be one.
    """
    buckets = grid.floor(points.ts)
    runs = _Segments.of(points.series, buckets)
    values: dict[str, Array] = {}
    categories: dict[str, tuple[str, ...]] = {}
    with np.errstate(all="ignore"):
        for state in states:
            values[state.name] = _state_of_points(state, points, dataset, runs)
            if is_added and state.kind == "sum":
                _check_addends(values[state.name], is_valid(points.values[state.of[0]]), runs)
            if state.type == "category":
                categories[state.name] = points.categories.get(state.of[0], ())
    return Table(points.series[runs.starts], buckets[runs.starts], values, categories)


def totals(points: Table, states: Sequence[State], dataset: Dataset) -> dict[str, float]:
    """Return the value of each state over all points, of one series, by its name."""
    if not len(points):
        return {}
    runs = _Segments(np.zeros(1, np.intp), np.array([len(points)]))
    with np.errstate(all="ignore"):
        return {s.name: _state_of_points(s, points, dataset, runs)[0].item() for s in states}


def stack(tables: Sequence[Table]) -> Table:
    """Return the rows of tables with the same columns and series codes, one after the other."""
    first = tables[0]
    if len(tables) == 1:
        return first
    values: dict[str, Array] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for name in first.values:
        parts = [t.values[name] for t in tables]
        if name in first.categories:
            pairs = [(t.categories[name], p) for t, p in zip(tables, parts, strict=True)]
            categories[name], values[name] = unite(pairs)
        else:
            values[name] = np.concatenate(parts)
    series = np.concatenate([t.series for t in tables])
    return Table(series, np.concatenate([t.ts for t in tables]), values, categories)


def merge(finer: Table, states: Sequence[State], grid: Grid) -> Table:
    """Return the states of ``grid``'s buckets from those of a finer step."""
    buckets = grid.floor(finer.ts)
    runs = _Segments.of(finer.series, buckets)
    with np.errstate(all="ignore"):
        values = {s.name: _merged(s, finer.values[s.name], runs) for s in states}
    return Table(finer.series[runs.starts], buckets[runs.starts], values, finer.categories)


def group_series(table: Table, states: Sequence[State], groups: npt.NDArray[np.int32]) -> Table:
    """Merge buckets across series: ``groups`` maps a series code to its group's code.

    first and last go by their times; among equal times the series that comes first (last) wins.
    """
    group = groups[table.series]
    order = np.lexsort((table.series, table.ts, group))
    runs = _Segments.of(group[order], table.ts[order])
    values: dict[str, Array] = {}
    with np.errstate(all="ignore"):
        for state in states:
            rows = order
            stem = state.kind.removesuffix("_ts")
            if stem in ("first", "last"):
                times = table.values[f"{state.of[0]}_{stem}_ts"]
                rows = np.lexsort((table.series, times, table.ts, group))
            values[state.name] = _merged(state, table.values[state.name][rows], runs)
    rows = order[runs.starts]
    return Table(group[rows].astype(np.int32), table.ts[rows], values, table.categories)


def finish(
    table: Table, aggregates: Sequence[Aggregate], dataset: Dataset
) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
    """Return the answer's columns: averages and weighted means derived, sums of nothing NULL."""
    values: dict[str, Array] = {}
    categories: dict[str, tuple[str, ...]] = {}
    with np.errstate(all="ignore"):
        for aggregate in aggregates:
            states = dataset.states_of(aggregate)
            parts = [table.values[s.name] for s in states if s.type != "time"]
            values[aggregate.name] = _finished(aggregate, parts, dataset)
            if dataset.answer_type(aggregate) == "category":
                categories[aggregate.name] = table.categories.get(states[0].name, ())
    return values, categories


def _finished(aggregate: Aggregate, parts: list[Array], dataset: Dataset) -> Array:
    if aggregate.kind == "vwap":
        return _ratio(_closed(parts[0]), _closed(parts[1]))
    if aggregate.kind == "avg":
        column = dataset.column(aggregate.of[0])
        total = _closed(parts[0])
        if total.dtype != np.float64:
            total = np.where(total == NULL_INT, np.nan, total / float(10**column.scale))
        return _ratio(total, parts[1].astype(np.float64))
    return _closed(parts[0]) if aggregate.kind == "sum" else parts[0]


def _ratio(total: Array, weight: Array) -> Array:
    result: Array = np.divide(
        total, weight, out=np.full(len(total), np.nan), where=(weight != 0) & ~np.isnan(weight)
    )
    return result


def _closed(total: Array) -> Array:
    if total.dtype != np.float64:
        return total
    return np.where(total == EMPTY_SUM, np.nan, total)


def is_valid(values: Array) -> npt.NDArray[np.bool_]:
    """Return where values are not NULL."""
    result: npt.NDArray[np.bool_]
    if values.dtype == np.float64:
        result = ~np.isnan(values)
    elif values.dtype == np.int8:
        result = values != NULL_BOOL
    elif values.dtype == np.int32:
        result = values != NULL_CODE
    else:
        result = values != NULL_INT
    return result


def _null_of(dtype: np.dtype[Any]) -> Any:
    if dtype == np.float64:
        return np.nan
    return {"int8": NULL_BOOL, "int32": NULL_CODE}.get(dtype.name, NULL_INT)


def _state_of_points(state: State, points: Table, dataset: Dataset, runs: _Segments) -> Array:
    if state.kind in ("pv", "v"):
        return _weighted(state, points, dataset, runs)
    values = points.values[state.of[0]]
    valid = is_valid(values)
    match state.kind:
        case "first_ts":
            return _picked(points.ts, runs.first(valid))
        case "last_ts":
            return _picked(points.ts, runs.last(valid))
        case "count":
            return _counted(valid, runs)
        case "sum" if values.dtype == np.float64:
            return _float_sum(values, valid, runs)
        case _:
            return _merged(state, values, runs)


def _merged(state: State, values: Array, runs: _Segments) -> Array:
    if state.kind == "count":
        result: Array = np.add.reduceat(values, runs.starts) if len(values) else values
        return result
    if state.kind in ("sum", "pv", "v"):
        if values.dtype == np.float64:
            return _float_sum(values, values != EMPTY_SUM, runs)
        return _int_sum(values, is_valid(values), runs)
    valid, is_float = is_valid(values), values.dtype == np.float64
    match state.kind:
        case "first" | "first_ts":
            return _picked(values, runs.first(valid))
        case "last" | "last_ts":
            return _picked(values, runs.last(valid))
        case "min":
            return _extreme(np.fmin if is_float else np.minimum, values, valid, runs)
        case _:
            return _extreme(np.fmax if is_float else np.maximum, values, valid, runs)


def _picked(values: Array, at: tuple[Array, npt.NDArray[np.bool_]]) -> Array:
    rows, has_one = at
    picked: Array = values[rows]
    if not has_one.all():
        picked = np.where(has_one, picked, _null_of(values.dtype)).astype(values.dtype)
    return picked


def _counted(valid: npt.NDArray[np.bool_], runs: _Segments) -> Array:
    if not len(valid):
        return np.empty(0, np.int64)
    result: Array = np.add.reduceat(valid.astype(np.int64), runs.starts)
    return result


def _float_sum(values: Array, valid: npt.NDArray[np.bool_], runs: _Segments) -> Array:
    if not len(values):
        return values
    if valid.all():
        result: Array = np.add.reduceat(values, runs.starts)
        return result
    total = np.add.reduceat(np.where(valid, values, 0.0), runs.starts)
    return np.where(_counted(valid, runs) > 0, total, EMPTY_SUM)


def _int_sum(values: Array, valid: npt.NDArray[np.bool_], runs: _Segments) -> Array:
    """Return the sums; NULL where there is nothing to sum or the sum is no bigint."""
    if not len(values):
        return values
    kept = np.where(valid, values, 0)
    total = np.add.reduceat(kept, runs.starts)
    rough = np.add.reduceat(kept.astype(np.float64), runs.starts)
    for at in np.flatnonzero(np.abs(rough) >= _BIGGEST / 2):  # it may have wrapped around
        exact = sum(kept[runs.starts[at] : runs.ends[at]].tolist())
        total[at] = exact if abs(exact) <= _BIGGEST else NULL_INT
    return np.where(_counted(valid, runs) > 0, total, NULL_INT)


def _check_addends(total: Array, valid: npt.NDArray[np.bool_], runs: _Segments) -> None:
    if total.dtype != np.float64 and ((total == NULL_INT) & (_counted(valid, runs) > 0)).any():
        raise QueryError(NO_ADDEND)


def _extreme(
    ufunc: np.ufunc, values: Array, valid: npt.NDArray[np.bool_], runs: _Segments
) -> Array:
    if not len(values):
        return values
    if values.dtype == np.float64 or valid.all():
        result: Array = ufunc.reduceat(values, runs.starts)
        return result
    idle = _BIGGEST if ufunc is np.minimum else -_BIGGEST
    found = ufunc.reduceat(np.where(valid, values, idle), runs.starts)
    return np.where(_counted(valid, runs) > 0, found, NULL_INT)


def _weighted(state: State, points: Table, dataset: Dataset, runs: _Segments) -> Array:
    assert state.by is not None
    prices = [_as_float(c, points, dataset) for c in state.of]
    weight = _as_float(state.by, points, dataset)
    total = prices[0]
    for price in prices[1:]:
        total = total + price
    valid = is_valid(points.values[state.by])
    for column in state.of:
        valid = valid & is_valid(points.values[column])
    if state.kind == "v":
        return _float_sum(weight, valid, runs)
    mean = total / float(len(prices)) if len(prices) > 1 else total
    return _float_sum(mean * weight, valid, runs)


def _as_float(column: str, points: Table, dataset: Dataset) -> Array:
    values, scale = points.values[column], dataset.column(column).scale
    if values.dtype == np.float64:
        return values
    number = values.astype(np.float64)
    return number / float(10**scale) if scale else number
