"""What a read takes from the time of which blocks may hold points: rows and blocks, merged here."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.catalog import Entry, Series
from toolkit.cutting import NEAR, together
from toolkit.drivers import OUT_OF_RANGE, Driver, Rows
from toolkit.errors import DatabaseError, QueryError
from toolkit.merging import (
    LAST,
    Cold,
    Merged,
    Run,
    Stored,
    block_of,
    decode_block,
    merge_cold,
)
from toolkit.query import Asked, Query
from toolkit.reduce import Table, bucket_points, merge, stack
from toolkit.statements import compose as statement
from toolkit.statements import raw
from toolkit.strategy import compose, sift
from toolkit.strategy.packing import packing_of_points
from toolkit.strategy.params import blocks_params, range_params
from toolkit.strategy.price import cut_share
from toolkit.timegrid import Span, to_datetime, to_us
from toolkit.work import (
    Found,
    Targets,
    Unit,
    Work,
    from_now,
    in_time,
    is_backwards,
    point_columns,
    time_left,
)

if TYPE_CHECKING:
    from toolkit.fetcher import Fetcher


async def fetch(fetcher: Fetcher, work: Work) -> Found:
    """Return the points, or the states of the buckets, that a plan needs."""
    if work.plan.strategy == "direct":
        return await fetcher.from_points(work)
    is_split = work.plan.strategy == "aggregated" and _boundary(work) < work.query.span.end
    try:
        if work.plan.strategy == "downsampled":
            return await _from_rollup(fetcher, work)
        if is_split:
            return await _from_both(fetcher, work)
    except QueryError:  # an integer sum that cannot be added to others: from the points then
        if not _may_go_by_points(work):
            raise
    except DatabaseError as error:
        if error.sqlstate != OUT_OF_RANGE or not _may_go_by_points(work):
            raise
    return _in_direction(work, await fetcher.from_points(from_now(work)))


def _may_go_by_points(work: Work) -> bool:
    return work.plan.strategy != "downsampled" or not work.entry.is_frozen(work.query.span)


def columns_of(work: Work) -> tuple[str, ...]:
    """Return the value columns that points are read with: those that conditions test as well."""
    columns = point_columns(work.query, work.entry.dataset, work.plan)
    return _with_tested(work.query.asked, columns)


def _with_tested(asked: Asked, columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*columns, *(c.column for c in asked.where)]))


async def points_of(
    fetcher: Fetcher, work: Work, units: Sequence[Unit], answers: Sequence[Rows]
) -> tuple[Found, list[tuple[int, Stored]]]:
    """Return the points of units, each once, that pass the conditions of the query.

    Also the blocks whose headers came alone, with the codes of their series.
    """
    asked, columns = work.query.asked, columns_of(work)
    limit = asked.limit if work.plan.grid is None and not asked.where else None
    rows = [row for answer in answers for row in answer]
    ids, names = await fetcher.names(work, rows)
    whole: list[tuple[int, Stored]] = []
    tables, from_blocks, count = [], 0, 0
    for unit, answer in zip(units, answers, strict=True):
        merged = await fetcher.merged(work, unit.span, columns, answer, ids, names, limit=limit)
        from_blocks += merged.from_blocks
        whole += merged.whole
        count += len(merged.table)
        tables.append(await passing(fetcher, work.entry, asked, merged.table))
    table = _without_tested(work, stack(tables))
    sources = {"points": count - from_blocks, "blocks": from_blocks}
    if whole:
        sources["headers"] = len(whole)
    return Found(table, names, sources), whole


async def passing(fetcher: Fetcher, entry: Entry, asked: Asked, table: Table) -> Table:
    """Return the points that pass the conditions; the database compares texts, by its own order."""
    if not asked.where:
        return table
    smaller: dict[int, frozenset[str]] = {}
    for number, condition in enumerate(asked.where):
        if sift.is_of_texts(condition, entry.dataset):
            text = statement("read/compare_texts", operator=raw(condition.operator))
            params = {
                "texts": list(table.categories[condition.column]),
                "value": condition.value,
            }
            smaller[number] = frozenset(r[0] for r in await fetcher.driver.fetch(text, params))
    return table.take(sift.passes(asked.where, entry.dataset, table, smaller))


def _boundary(work: Work) -> int:
    """Return the instant from which on there are no blocks."""
    assert work.entry.cold_to is not None
    return work.entry.cold_to


def _in_direction(work: Work, found: Found) -> Found:
    """Return buckets in the order in which the database would have given them."""
    asked, table = work.query.asked, found.table
    if work.plan.strategy != "aggregated" or not asked.descending or asked.group_by is not None:
        return found
    return replace(found, table=table.take(np.lexsort((-table.ts, table.series))))


@asynccontextmanager
async def _in_one_snapshot(fetcher: Fetcher, work: Work) -> AsyncIterator[Fetcher]:
    timeout = time_left(work)
    async with fetcher.driver.transaction(
        repeatable=True, read_only=True, timeout=timeout
    ) as transaction:
        yield fetcher.inside(transaction)


async def _from_both(fetcher: Fetcher, work: Work) -> Found:
    """Make buckets of blocks and rows here, and have the database make the later ones."""
    plan, query, boundary = work.plan, work.query, _boundary(work)
    assert plan.grid is not None
    before = replace(query, span=Span(query.span.start, boundary))
    after = replace(query, span=Span(boundary, query.span.end))
    async with _in_one_snapshot(fetcher, work) as inside:
        old = await inside.from_points(replace(work, query=before), is_added=True)
        new = await inside.from_buckets(replace(work, query=after))
    sources = {**old.sources, "points": old.sources["points"] + new.sources["points"]}
    if old.names != new.names:  # by labels: who has no point in one part
        return await fetcher.from_points(from_now(work))
    table = stack([old.table, new.table])
    table = table.take(np.lexsort((table.ts, table.series)))
    table = await fetcher.compute(len(table), merge, table, plan.states, plan.grid)
    return _in_direction(work, Found(table, old.names, sources))


async def _from_rollup(fetcher: Fetcher, work: Work) -> Found:
    """Take buckets from the rollup, and those that changed or are cut off from blocks and rows."""
    plan, query = work.plan, work.query
    assert plan.rollup is not None
    assert plan.grid is not None
    grid = plan.rollup.grid
    assert grid.width is not None
    if not cut_share(grid.width, grid.origin, query.span):
        rows = await fetcher.states(work)
        if not any(row[-2] for row in rows):
            return await _rolled_up(fetcher, work, rows, None)
    async with _in_one_snapshot(fetcher, work) as inside:
        rows = await inside.states(work)
        changed = {row[0]: [_span(r) for r in row[-2]] for row in rows if row[-2]}
        return await _rolled_up(inside, work, rows, changed)


def _span(range: Any) -> Span:
    return Span(to_us(range.lower), to_us(range.upper))


async def _rolled_up(
    fetcher: Fetcher, work: Work, rows: Rows, changed: Mapping[int, Sequence[Span]] | None
) -> Found:
    plan = work.plan
    assert plan.rollup is not None
    assert plan.grid is not None
    table, names, sources = await fetcher.unpack_rollup(work, rows)
    fetcher.learn(work, sources["points"])
    if changed:
        is_added = plan.grid != plan.rollup.grid or work.query.asked.group_by is not None
        ids, _ = await fetcher.names(work, rows)
        pieces = [table]
        for span, some in _together(changed, NEAR * (plan.rollup.grid.width or 0)):
            mine = span.clip(work.query.span)
            columns = tuple(dict.fromkeys(c for s in plan.states for c in (*s.of, s.by) if c))
            merged = await points_between(fetcher, work, mine, some, columns, ids, names)
            fresh = bucket_points(
                merged.table, plan.states, work.entry.dataset, plan.rollup.grid, is_added
            )
            pieces.append(_only(fresh, changed, ids))
            sources["points"] += len(merged.table) - merged.from_blocks
            sources["blocks"] = sources.get("blocks", 0) + merged.from_blocks
        table = stack(pieces)
        table = table.take(np.lexsort((table.ts, table.series)))
    if plan.grid != plan.rollup.grid:
        table = await fetcher.compute(len(table), merge, table, plan.states, plan.grid)
    return Found(table, names, sources)


def _together(
    changed: Mapping[int, Sequence[Span]], near: int
) -> list[tuple[Span, tuple[int, ...]]]:
    """Return ranges with the series that they are to be read of; what lies near is one.

    >>> _together({1: [Span(0, 5)], 2: [Span(0, 5), Span(9, 10)]}, 2)
    [(Span(start=0, end=5), (1, 2)), (Span(start=9, end=10), (2,))]
    """
    ids: dict[Span, list[int]] = {}
    for series, spans in changed.items():
        for span in together(spans, near):
            ids.setdefault(span, []).append(series)
    return [(span, tuple(some)) for span, some in ids.items()]


def _only(fresh: Table, changed: Mapping[int, Sequence[Span]], ids: Sequence[int]) -> Table:
    """Return the buckets that lie in their series' changed ranges."""
    wanted = np.zeros(len(fresh), bool)
    for series, spans in changed.items():
        mine = fresh.series == ids.index(series)
        for span in spans:
            wanted |= mine & (fresh.ts >= span.start) & (fresh.ts < span.end)
    return fresh if wanted.all() else fresh.take(wanted)


async def pieces(fetcher: Fetcher, work: Work, rows: int) -> AsyncGenerator[Found]:
    """Yield the points of one series in pieces of at most so many, oldest first.

    Each goes on after the last key of the one before; a block that this key lies in is decoded
    again.
    """
    entry, query, asked = work.entry, work.query, work.query.asked
    columns, names = columns_of(work), work.targets.names
    reached: tuple[int, int] | None = None
    start = query.span.start
    while True:
        span = Span(start, query.span.end)
        text = compose.points_statement(
            entry,
            columns,
            source="one",
            has_limit=True,
            after=reached is not None,
            is_cold=True,
        )
        params = {
            **work.targets.params,
            **range_params(span),
            **blocks_params(entry, span),
            "limit": rows,
        }
        if reached is not None:
            params |= {"after_ts": to_datetime(reached[0]), "after_seq": reached[1]}
        answer = await fetcher.driver.fetch(text, params)
        merged = await fetcher.merged(
            work, span, columns, answer, work.targets.ids, names, limit=rows, after=reached
        )
        table = await passing(fetcher, entry, asked, merged.table)
        if len(table):
            points = len(merged.table) - merged.from_blocks
            sources = {"points": points, "blocks": merged.from_blocks}
            yield Found(_without_tested(work, table), names, sources)
        if merged.reached is None:
            return
        reached = merged.reached
        is_passed = not entry.dataset.has_seq or reached[1] == LAST
        start = reached[0] + is_passed


def _without_tested(work: Work, table: Table) -> Table:
    own = point_columns(work.query, work.entry.dataset, work.plan)
    if len(columns_of(work)) == len(own):
        return table
    kept = {*own, "seq"}
    return replace(table, values={n: v for n, v in table.values.items() if n in kept})


async def probe(
    fetcher: Fetcher, query: Query, entry: Entry, targets: Targets
) -> dict[int, tuple[int, int, int]]:
    """Return how many points each series has in blocks, its first and its last instant there.

    A point that was written again since it lies in a block counts twice: as a row, too.
    """
    text = compose.probe_blocks_statement(entry, source=targets.source)
    span = query.span
    params = {**targets.params, **range_params(span), **blocks_params(entry, span)}
    rows = await fetcher.driver.fetch(text, params, timeout=query.timeout)
    names = dict(zip(targets.ids, targets.names, strict=True))
    found = {}
    for series, count, first, last, spans, headers, parts in rows:
        pieces = [(count, to_us(first), to_us(last))] if count else []
        edges = [(spans or b"")[at : at + 16] for at in range(0, len(spans or b""), 16)]
        for span_of, header, part in zip(edges, headers or (), parts or (), strict=True):
            block = block_of(entry.dataset.name, names, series, span_of, header, [part])
            ts = np.empty(block.header.rows, np.int64)
            decode_block(entry.dataset.name, names, block, ("ts",), {"ts": ts}, 0)
            low, high = np.searchsorted(ts, (span.start, span.end)).tolist()
            if low < high:
                pieces.append((high - low, int(ts[low]), int(ts[high - 1])))
        if pieces:
            counts, lows, highs = zip(*pieces, strict=True)
            found[series] = sum(counts), min(lows), max(highs)
    return found


async def finest_distance(fetcher: Fetcher, query: Query, entry: Entry, series: int) -> int | None:
    """Return how far apart the two nearest points of a series are; None if no two are."""
    text = compose.points_statement(entry, (), source="one", is_cold=True)
    params = {"id": series, **range_params(query.span), **blocks_params(entry, query.span)}
    run = in_time(query, time.perf_counter(), fetcher.run)
    rows = await fetcher.driver.fetch(text, params, timeout=query.timeout)
    how = _cold(entry, query.span, (), {series: str(series)})
    merged = await fetcher.driver.compute(merge_cold, how, rows, {series: 0}, run)
    apart = np.diff(merged.table.ts)
    apart = apart[apart > 0]
    return int(apart.min()) if len(apart) else None


def _cold(
    entry: Entry, span: Span, columns: tuple[str, ...], names: Mapping[int, str], **options: Any
) -> Cold:
    packing = packing_of_points(entry, columns)
    stored = compose.stored_columns(entry.dataset, columns)
    return Cold(entry.dataset.name, packing, stored, names, span, **options)


async def points_of_one(
    driver: Driver, entry: Entry, series: Series, span: Span, run: Run
) -> Table:
    """Return all columns of the points of one series in a range."""
    columns = entry.dataset.names
    text = compose.points_statement(entry, columns, source="one", is_cold=True)
    params = {"id": series.id, **range_params(span), **blocks_params(entry, span)}
    rows = await driver.fetch(text, params)
    how = _cold(entry, span, columns, {series.id: series.name})
    merged = await driver.compute(merge_cold, how, rows, {series.id: 0}, run)
    table: Table = merged.table
    return table


async def points_between(
    fetcher: Fetcher,
    work: Work,
    span: Span,
    ids: tuple[int, ...],
    columns: tuple[str, ...],
    order: Sequence[int],
    names: Sequence[str],
) -> Merged:
    """Fetch the points of some series in a range; ``order`` and ``names`` are those of all."""
    text = compose.points_statement(
        work.entry, columns, source=compose.source_of(ids), is_cold=True
    )
    params = {
        **compose.ids_params(ids),
        **range_params(span),
        **blocks_params(work.entry, span),
    }
    rows = await fetcher.driver.fetch(text, params, timeout=time_left(work))
    return await fetcher.merged(work, span, columns, rows, order, names, is_oldest_first=True)


async def newest(
    fetcher: Fetcher,
    entry: Entry,
    names: Mapping[int, str],
    span: Span,
    n: int,
    columns: tuple[str, ...],
) -> Table:
    """Return the newest ``n`` points of each series, oldest first; codes are places in names."""
    text = compose.points_statement(
        entry, columns, source="many", has_limit=True, descending=True, is_cold=True
    )
    ids = list(names)
    params = {"ids": ids, "limit": n, **range_params(span), **blocks_params(entry, span)}
    rows = await fetcher.driver.fetch(text, params)
    how = _cold(entry, span, columns, names, limit=n, descending=True)
    code_of = {series: code for code, series in enumerate(ids)}
    merged = await fetcher.driver.compute(merge_cold, how, rows, code_of, fetcher.run)
    table: Table = merged.table
    return table.take(np.lexsort((np.arange(len(table))[::-1], table.series)))


def cold_of(
    work: Work,
    span: Span,
    columns: tuple[str, ...],
    ids: Sequence[int],
    names: Sequence[str],
    *,
    limit: int | None = None,
    after: tuple[int, int] | None = None,
    is_oldest_first: bool = False,
) -> Cold:
    """Return how rows and blocks with some value columns are merged."""
    return _cold(
        work.entry,
        span,
        columns,
        dict(zip(ids, names, strict=True)),
        limit=limit,
        after=after,
        descending=is_backwards(work.query, work.plan) and not is_oldest_first,
    )
