"""Blocks that lie in one bucket of an answer: their states stand in their headers, undecoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.blocks import Column, States
from toolkit.columns import NULL_BOOL, NULL_INT, dtype_of
from toolkit.cutting import TARGET
from toolkit.dataset import Dataset, State
from toolkit.merging import Stored
from toolkit.query import Query
from toolkit.reduce import EMPTY_SUM, Table, bucket_points, merge, stack
from toolkit.strategy import Plan
from toolkit.timegrid import DAY, Grid, Span


class PointsKnow(Exception):
    """A header does not say what is asked, or not what its row says: its points do."""


def may_be_whole(query: Query, plan: Plan, step: int | None) -> bool:
    """Return whether blocks may lie in one bucket, and their headers say all that is asked.

    They do not say at which of several times something was, nor which text a code means.
    """
    if plan.grid is None or plan.rollup is not None or query.asked.where:
        return False
    if any(s.type in ("time", "category") for s in plan.states):
        return False
    return plan.grid.step.approximate_us >= (step * TARGET // 4 if step else DAY)


def _check(whole: Sequence[tuple[int, Stored]], grid: Grid, span: Span) -> None:
    """Raise PointsKnow where a header does not bear out that it lies in the range and a bucket."""
    for _, block in whole:
        said = _time(block.header.columns[0].states)
        is_inside = span.start <= said.first and said.last < span.end
        if not is_inside or grid.floor_one(said.first) != grid.floor_one(said.last):
            raise PointsKnow


def bucket_both(
    points: Table,
    whole: Sequence[tuple[int, Stored]],
    states: Sequence[State],
    dataset: Dataset,
    grid: Grid,
    is_added: bool,
    span: Span,
) -> Table:
    """Return the states of each (series, bucket) of points and of whole blocks (with their codes).

    Between the points of a bucket blocks may lie: what comes before one and after it is counted
    apart, and merged in the order of time. Raises PointsKnow where headers are not enough.
    """
    if not whole:
        return bucket_points(points, states, dataset, grid, is_added)
    _check(whole, grid, span)
    room = 2 * len(whole) + 2
    firsts: dict[int, list[int]] = {}
    for code, block in whole:
        firsts.setdefault(code, []).append(_time(block.header.columns[0].states).first)
    turns = np.zeros(len(points), np.int64)
    for code, starts in firsts.items():
        low, high = np.searchsorted(points.series, (code, code + 1))
        turns[low:high] = 2 * np.searchsorted(np.sort(starts), points.ts[low:high])
    # until they are merged, the place of a run of points is part of its series' code
    apart = Table(points.series.astype(np.int64) * room + turns, points.ts, points.values)
    counted = bucket_points(apart, states, dataset, grid, is_added)
    said = _said(whole, firsts, states, grid, room)
    both = stack([counted, said])
    order = np.lexsort((both.series, both.ts, both.series // room))
    both = both.take(order)
    codes = (both.series // room).astype(np.int32)
    return merge(Table(codes, both.ts, both.values, both.categories), states, grid)


def _said(
    whole: Sequence[tuple[int, Stored]],
    firsts: dict[int, list[int]],
    states: Sequence[State],
    grid: Grid,
    room: int,
) -> Table:
    """Return what headers say, a row a block."""
    ts, codes = [], []
    for code, block in whole:
        first = _time(block.header.columns[0].states).first
        ts.append(first)
        codes.append(code * room + 2 * sorted(firsts[code]).index(first) + 1)
    columns = [{c.name: c for c in block.header.columns} for _, block in whole]
    values = {
        s.name: np.array(
            [_value(s, c, b.header.sums) for c, (_, b) in zip(columns, whole, strict=True)],
            dtype_of(s.type),
        )
        for s in states
    }
    return Table(np.array(codes, np.int64), grid.floor(np.array(ts, np.int64)), values)


def _value(state: State, columns: dict[str, Column], sums: Any) -> Any:
    """Return a state's value in-band, as its header has it."""
    if state.kind in ("pv", "v"):
        return sums[state.name]
    said = _time(columns[state.of[0]].states)
    if state.kind == "count":
        return said.count
    value = getattr(said, state.kind)
    if state.kind == "sum" and state.type == "float":
        return EMPTY_SUM if value is None else value
    if value is None:
        return {"float": np.nan, "bool": NULL_BOOL}.get(state.type, NULL_INT)
    if state.kind == "sum" and abs(value) >= 2**63:
        raise PointsKnow
    return value


def _time(states: States | None) -> Any:
    assert states is not None  # stored blocks have them
    return states
