"""Buckets of a rollup of which blocks hold points: counted here, and stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from psycopg.sql import SQL, Identifier

from toolkit import changes
from toolkit.batches import listed
from toolkit.catalog import Entry, Rollup, Series
from toolkit.cold import points_of_one
from toolkit.columns import NULL_INT
from toolkit.cutting import NEAR, together
from toolkit.dataset import State
from toolkit.ddl import STORED
from toolkit.directory import Directory
from toolkit.drivers import Driver, Transaction
from toolkit.drivers.inside import InsideDriver
from toolkit.errors import CorruptBlock
from toolkit.merging import Run
from toolkit.reduce import EMPTY_SUM, Table, bucket_points
from toolkit.statements import compose
from toolkit.timegrid import Grid, Span, Step, to_datetime, to_us

_POINTS = 1 << 20  # at once, of a series whose step is known; else a partition
_BUCKETS = 20_000  # a statement


async def recount(
    driver: Driver,
    directory: Directory,
    transaction: Transaction,
    entry: Entry,
    rollup: Rollup,
    changed: Sequence[tuple[int, Any]],
    run: Run,
    damaged: dict[str, CorruptBlock],
) -> tuple[int, int, int]:
    """Count the changed buckets of series anew; return how many: computed, written, removed.

    ``changed`` are series ids with multiranges of whole buckets. Memory is bounded by a part of
    a range, however long that is. Buckets that reach into a damaged block stay what they are:
    it is noted in ``damaged``, and the change log told of them again, for the next refresh.
    """
    inside = InsideDriver(driver, transaction)
    by_id = await directory.inside(inside).series_by_id(entry, [series for series, _ in changed])
    total = np.zeros(3, np.int64)
    for series_id, ranges in changed:
        series = by_id.get(series_id)
        if series is None:  # gone with its dataset
            continue
        spans = deque(_parts(entry, rollup, series.step, ranges))
        while spans:
            span = spans.popleft()
            try:
                points = await points_of_one(inside, entry, series, span, run)
            except CorruptBlock as error:
                damaged[str(error)] = error
                hole = _buckets(rollup, error.span, span)
                around = Span(span.start, hole.start), Span(hole.end, span.end)
                spans.extendleft(s for s in around if not s.is_empty)
                await _log_again(transaction, entry, series, hole, ranges)
                continue
            fresh = await driver.compute(counted, entry, rollup, points)
            for low, high in cuts(span, fresh):
                mine = fresh.take(slice(*np.searchsorted(fresh.ts, (low, high)).tolist()))
                params = {
                    "id": series_id,
                    "low": to_datetime(low),
                    "high": to_datetime(high),
                    "ts": [to_datetime(t) for t in mine.ts.tolist()],
                    **stored_params(entry, mine),
                }
                rows = await transaction.fetch(storing(entry, rollup), params)
                total += (len(mine), *rows[0])
    computed, written, removed = total.tolist()
    return computed, written, removed


def _parts(entry: Entry, rollup: Rollup, step: int | None, ranges: Any) -> Iterator[Span]:
    """Yield ranges cut at buckets into parts of a bounded number of points."""
    partition = Grid(Step.parse(entry.dataset.partition))
    width = min(partition.step.approximate_us, step * _POINTS if step else 2**62)
    width = max(width, rollup.grid.width or 0)
    changed = [Span(to_us(r.lower), to_us(r.upper)) for r in ranges]
    for span in together(changed, NEAR * (rollup.grid.width or 0)):
        start, end = span.start, span.end
        while start < end:
            edge = max(rollup.grid.floor_one(start + width), start + (rollup.grid.width or width))
            yield Span(start, min(edge, end))
            start = edge


def _buckets(rollup: Rollup, block: Span, span: Span) -> Span:
    """Return the buckets that a block reaches into, inside a span."""
    width = rollup.grid.width or 0
    last = rollup.grid.floor_one(block.end - 1)
    return Span(rollup.grid.floor_one(block.start), last + width).clip(span)


async def _log_again(
    transaction: Transaction, entry: Entry, series: Series, hole: Span, ranges: Any
) -> None:
    """Tell the change log of changes once more: they are younger than where the pass goes."""
    for changed in ranges:
        span = Span(to_us(changed.lower), to_us(changed.upper)).clip(hole)
        if not span.is_empty:
            batch = changes.at(entry, series, changes.within(entry, span))
            await changes.log(transaction, entry, batch, np.array([series.id], np.int32))


def counted(entry: Entry, rollup: Rollup, points: Table) -> Table:
    """Return the states of a rollup's buckets, counted of points."""
    dataset = entry.dataset
    sums = [s for s in dataset.states if _is_whole_sum(s)]
    counts = [State(_count_of(s), "count", s.of, "int") for s in sums]
    return bucket_points(points, [*dataset.states, *counts], dataset, rollup.grid)


def _is_whole_sum(state: State) -> bool:
    return state.kind == "sum" and state.type != "float"


def _count_of(state: State) -> str:
    return f"{state.name}, of how many"  # no column is called that


def cuts(span: Span, fresh: Table) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most so many buckets that tile a span."""
    edges = [span.start, *fresh.ts[_BUCKETS::_BUCKETS].tolist(), span.end]
    yield from pairwise(edges)


def stored_params(entry: Entry, table: Table) -> dict[str, Any]:
    """Return states as lists, as a rollup stores them."""
    params: dict[str, Any] = {}
    for number, state in enumerate(entry.dataset.states):
        values = table.values[state.name]
        if state.type == "time":
            stored: list[Any] = [None if v == NULL_INT else to_datetime(v) for v in values.tolist()]
        elif state.kind in ("sum", "pv", "v") and values.dtype == np.float64:
            stored = [None if v == EMPTY_SUM else v for v in values.tolist()]
        elif _is_whole_sum(state):  # what is no bigint stays NULL_INT, which says so
            counts = table.values[_count_of(state)].tolist()
            stored = [v if n else None for v, n in zip(values.tolist(), counts, strict=True)]
        else:
            stored = listed(values, table.categories.get(state.name))
        params[f"s{number}"] = stored
    return params


def arrays_of(entry: Entry) -> list[SQL]:
    """Return the arrays that :func:`stored_params` gives: of times, and of each state."""
    kinds = [STORED[s.type.partition("(")[0]] for s in entry.dataset.states]
    states = [SQL(f"%(s{number})s::{kind}[]") for number, kind in enumerate(kinds)]
    return [SQL("%(ts)s::timestamptz[]"), *states]


def storing(entry: Entry, rollup: Rollup) -> bytes:
    """Return what stores buckets of one series that were counted here."""

    def make() -> bytes:
        states = entry.dataset.states
        names = [Identifier(s.name) for s in states]
        return compose(
            "refresh/put_buckets",
            relation=Identifier(entry.schema, rollup.relation),
            arrays=SQL(", ").join(arrays_of(entry)),
            columns=SQL("").join(SQL(", {}").format(n) for n in names),
            fresh_columns=SQL("").join(SQL(", f.{}").format(n) for n in names),
            assignments=SQL(", ").join(SQL("{0} = excluded.{0}").format(n) for n in names),
            old_columns=SQL(", ").join(SQL("g.{}").format(n) for n in names),
            new_columns=SQL(", ").join(SQL("excluded.{}").format(n) for n in names),
        )

    text: bytes = entry.once(("put buckets", rollup.relation), make)
    return text
