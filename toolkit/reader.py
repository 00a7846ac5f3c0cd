"""The road of a read: query, plan, statements, columns; written once for both colours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit import shape, statements
from toolkit.catalog import Entry
from toolkit.columns import Columns
from toolkit.config import Limits
from toolkit.dataset import Dataset
from toolkit.decode import Packing
from toolkit.directory import Directory
from toolkit.drivers import OUT_OF_RANGE, Driver, Params, Rows, Transaction
from toolkit.errors import DatabaseError, QueryError, QueryTimeout, Unavailable
from toolkit.query import Query
from toolkit.reduce import Table, bucket_points, finish, group_series, merge
from toolkit.strategy import Density, Plan, choose, compose
from toolkit.strategy.choose import even_edges
from toolkit.strategy.params import grid_params, range_params, rollup_params, where_params
from toolkit.timegrid import Grid, Span, Step

PIECE = 32_768  # points a statement: below it one statement, above it several at once
_PATIENCE = 0.05  # seconds to wait for a second connection
_LEAST_TIME = 0.001  # seconds that a statement gets, however late it is
_OFF_LOOP = 10_000  # rows whose decoding is worth a thread


@dataclass(frozen=True, slots=True)
class Targets:
    """The series a query goes to: by id where they were named, else by their labels.

    ``step`` is the smallest distance of their points in µs, None where one is irregular.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    source: compose.Source
    params: Params
    step: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """A query with all that was looked up for it, and how it will be answered."""

    query: Query
    entry: Entry
    targets: Targets
    plan: Plan
    started: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a source gave: rows, the names of their series codes, and the rows it touched."""

    table: Table
    names: tuple[str, ...]
    sources: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Unit:
    """One statement's share of a read."""

    span: Span
    ids: tuple[int, ...]


class Reader:
    """Reads of one store; holds no state of its own."""

    def __init__(
        self, driver: Driver, directory: Directory, limits: Limits, parallel: int = 2
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._limits = limits
        self._parallel = parallel

    async def read(self, query: Query) -> Columns:
        """Answer a query; the plan that did it comes along as ``cols.plan``."""
        return await self.answer(await self.prepare(query))

    async def prepare(self, query: Query, *, may_be_finer: bool = False) -> Work:
        """Look up what a query names, and choose how to answer it.

        A step finer than all the series is refused, unless it ``may_be_finer``.
        """
        started = time.perf_counter()
        entry = await self._directory.entry(query.dataset)
        targets = await self._targets(query, entry)
        asked, density = query, None
        query = _with_time_left(query, started)
        if query.is_auto:
            density = await self.density(query, entry, targets, self._limits.aggregated + 1)
        elif query.points is not None:
            density = await self._density_of_chart(query, entry, targets)
        plan = choose(query, entry, self._limits, native_step=targets.step, density=density)
        least = 0 if may_be_finer else targets.step or 0
        if query.grid is not None and query.grid.step.approximate_us < least:
            await self._refuse_finer(_with_time_left(asked, started), entry, targets)
        return Work(asked, entry, targets, plan, started)

    async def answer(self, work: Work) -> Columns:
        """Carry out a plan."""
        now = _from_now(work)
        if work.plan.strategy == "downsampled":
            found = await self._from_rollup(now)
        elif work.plan.strategy == "aggregated":
            found = await self._from_buckets(now)
        else:
            found = await self._from_points(now)
        return await self.finish(work, found)

    async def explain(self, query: Query, *, analyze: bool = False) -> tuple[Plan, str, str]:
        """Return the plan, its statement and what the database's EXPLAIN says of it."""
        work = await self.prepare(query)
        statement, params = self._statement(work)
        options = b"(ANALYZE, BUFFERS) " if analyze else b""
        rows = await self._driver.fetch(b"EXPLAIN " + options + statement, params)
        return work.plan, statement.decode(), "\n".join(row[0] for row in rows)

    async def _targets(self, query: Query, entry: Entry) -> Targets:
        if query.series is not None:
            found = await self._directory.series(entry, query.series)
        elif query.span.width <= Step.parse(entry.dataset.partition).approximate_us:
            # in the same statement: one round trip, however many series carry the labels
            labels = json.dumps(dict(query.labels or {}))
            params: Params = {"dataset_id": entry.id, "labels": labels}
            return Targets((), (), "labels", params, None)
        else:  # a long read is cut into pieces by series and time
            found = await self._directory.list_series(entry, query.labels)
        steps = [s.step for s in found]
        step = None if None in steps else min((s for s in steps if s is not None), default=None)
        ids = tuple([s.id for s in found])
        names = tuple([s.name for s in found])
        return Targets(names, ids, compose.source_of(ids), compose.ids_params(ids), step)

    async def _refuse_finer(self, query: Query, entry: Entry, targets: Targets) -> None:
        # the recorded steps may be out of date: look before refusing
        assert query.grid is not None
        wanted = query.grid.step.approximate_us
        coarse: tuple[str, int] | None = None
        for series in await self._directory.series(entry, targets.names):
            finest = await self._finest_distance(query, entry, series.id)
            if finest is None:
                continue
            if series.step is not None and finest < series.step and self._directory.may_write:
                await self._directory.make_series(entry, {series.name: finest})
            if finest <= wanted:
                return
            coarse = coarse or (series.name, finest)
        if coarse is not None:
            raise QueryError(
                f"step {query.grid.step} is finer than series {coarse[0]!r}, "
                f"which has a point every {timedelta(microseconds=coarse[1])}"
            )

    async def _finest_distance(self, query: Query, entry: Entry, series_id: int) -> int | None:
        points = statements.name(entry.schema, entry.dataset.name)
        statement = statements.compose("read/find_finest", points=points)
        params = {"id": series_id, **range_params(query.span)}
        rows = await self._driver.fetch(statement, params, timeout=query.timeout)
        apart: timedelta | None = rows[0][0]
        return apart // timedelta(microseconds=1) if apart is not None else None

    async def density(self, query: Query, entry: Entry, targets: Targets, cap: int) -> Density:
        """Measure how many points the busiest series has in the range, up to ``cap``."""
        statement = compose.probe_statement(entry, source=targets.source)
        params = {**targets.params, **range_params(query.span), "cap": cap}
        rows = await self._driver.fetch(statement, params, timeout=query.timeout)
        lows = [r[2] for r in rows if r[2] is not None]
        highs = [r[3] for r in rows if r[3] is not None]
        if not lows:
            return Density(0, Span(query.span.start, query.span.start))
        extent = Span.between(min(lows), max(highs))
        return Density(max(r[1] for r in rows), Span(extent.start, extent.end + 1))

    async def _density_of_chart(self, query: Query, entry: Entry, targets: Targets) -> Density:
        most = self._limits.chart_points
        if targets.step is not None:
            density = await self.density(query, entry, targets, 1)
            count = density.extent.width // targets.step + 1
            if count <= most:  # that many if there is no gap: no need to count them
                return replace(density, count=count if density.count else 0)
        return await self.density(query, entry, targets, most + 1)

    async def _from_points(self, work: Work) -> Found:
        dataset, plan = work.entry.dataset, work.plan
        packing = compose.packing_of_points(work.entry, point_columns(work.query, dataset, plan))
        units = await self._units(work)
        rows = await self._fetch(_from_now(work), units)
        table, names = await self.table(work, rows, packing)
        count = len(table)
        if plan.grid is not None:
            table = await self._compute(
                count, bucket_points, table, plan.states, dataset, plan.grid
            )
        return Found(table, names, {"points": count})

    async def _from_buckets(self, work: Work) -> Found:
        rows = await self._states(work)
        packing = compose.packing_of_states(work.plan.states)
        touched = sum(r[2] or 0 for r in rows)
        packed = [(r[0], r[1], *r[3:]) for r in rows]
        return Found(*await self.table(work, packed, packing), {"points": touched})

    async def _from_rollup(self, work: Work) -> Found:
        plan = work.plan
        assert plan.rollup is not None
        assert plan.grid is not None
        rows = await self._states(work)
        packing = compose.packing_of_states(plan.states)
        # a row is: id; count and columns from the rollup; count, touched and columns from points
        at = 2 + packing.width
        clean = [r[:at] for r in rows]
        fresh = [(r[0], r[at], *r[at + 2 :]) for r in rows if r[at]]
        table, names = await self.table(work, [*clean, *fresh], packing)
        if fresh:
            table = table.take(np.lexsort((table.ts, table.series)))
        if plan.grid != plan.rollup.grid:
            table = await self._compute(len(table), merge, table, plan.states, plan.grid)
        sources = {
            "rollup": sum(r[1] for r in rows),
            "points": sum(r[at + 1] or 0 for r in rows),
        }
        return Found(table, names, sources)

    async def _states(self, work: Work) -> Rows:
        """Fetch the states of buckets; where a sum leaves its type, in the form that cannot."""
        timeout = work.query.timeout
        try:
            return await self._driver.fetch(*self._statement(work), timeout=timeout)
        except DatabaseError as error:
            if error.sqlstate != OUT_OF_RANGE:
                raise
        return await self._driver.fetch(*self._statement(work, is_total=True), timeout=timeout)

    def _statement(self, work: Work, *, is_total: bool = False) -> tuple[bytes, Params]:
        query, entry, targets, plan = work.query, work.entry, work.targets, work.plan
        if plan.strategy == "direct":
            return self._points_statement(work, Unit(query.span, targets.ids))
        assert plan.grid is not None
        params = {**targets.params, **range_params(query.span)}
        if plan.strategy == "downsampled":
            assert plan.rollup is not None
            statement = compose.rollup_statement(
                entry, plan.states, plan.rollup, source=targets.source, is_total=is_total
            )
            return statement, params | rollup_params(plan.rollup.id, plan.rollup.grid, query.span)
        has_limit = query.limit is not None and query.group_by is None
        statement = compose.buckets_statement(
            entry,
            plan.states,
            plan.grid,
            source=targets.source,
            where=query.where,
            has_limit=has_limit,
            descending=query.descending,
            is_total=is_total,
        )
        params |= where_params(query.where, entry) | grid_params(plan.grid, query.span)
        return statement, params | ({"limit": query.limit} if has_limit else {})

    def _points_statement(self, work: Work, unit: Unit) -> tuple[bytes, Params]:
        query, plan, targets = work.query, work.plan, work.targets
        has_limit = query.limit is not None and plan.grid is None
        by_labels = targets.source == "labels"
        statement = compose.points_statement(
            work.entry,
            point_columns(query, work.entry.dataset, plan),
            source="labels" if by_labels else compose.source_of(unit.ids),
            where=query.where,
            has_limit=has_limit,
            descending=_is_backwards(query, plan),
        )
        params = {
            **(targets.params if by_labels else compose.ids_params(unit.ids)),
            **range_params(unit.span),
        }
        if query.where:
            params |= where_params(query.where, work.entry)
        return statement, params | ({"limit": query.limit} if has_limit else {})

    async def _units(self, work: Work) -> list[Unit]:
        """Cut a read of points into statements of some ten thousand points each."""
        query, targets = work.query, work.targets
        span, each, ids = query.span, targets.step, targets.ids
        whole = [Unit(span, ids)]
        if targets.source == "labels" or query.limit is not None:
            return whole
        if each is not None and span.width // each * len(ids) <= PIECE:
            return whole
        partition = Grid(Step.parse(work.entry.dataset.partition))
        if each is None and span.width <= partition.step.approximate_us:
            return whole
        cap = PIECE + 1 if each is None else 1
        density = await self.density(query, work.entry, targets, cap)
        extent = density.extent
        count = density.count if each is None else extent.width // each
        if count <= PIECE:
            size = max(1, PIECE // max(count, 1))
            return [Unit(span, ids[i : i + size]) for i in range(0, len(ids), size)] or whole
        # what lies outside the extent now may be written before the snapshot is taken
        edges = partition.edges(extent) if each is None else even_edges(extent, each, PIECE)
        spans = span.cut(edges)
        if _is_backwards(query, work.plan):
            spans.reverse()
        return [Unit(piece, (one,)) for one in ids for piece in spans]

    async def _fetch(self, work: Work, units: Sequence[Unit]) -> Rows:
        """Run the statement of every unit, several at once, all in one snapshot."""
        timeout = work.query.timeout
        if len(units) == 1:
            statement, params = self._points_statement(work, units[0])
            return await self._driver.fetch(statement, params, timeout=timeout)
        answers: list[Rows] = [[] for _ in units]
        queue = iter(range(len(units)))

        async def run(transaction: Transaction) -> None:
            for number in queue:
                if timeout is not None and time.perf_counter() - work.started > timeout:
                    raise QueryTimeout(f"not done after {timeout} s", "57014")
                statement, params = self._points_statement(work, units[number])
                answers[number] = await transaction.fetch(statement, params)

        async with self._driver.transaction(
            repeatable=True, read_only=True, timeout=timeout
        ) as leader:
            snapshot = (await leader.fetch(b"SELECT pg_export_snapshot()"))[0][0]

            async def follow() -> None:
                is_running = False
                try:
                    async with self._driver.transaction(
                        snapshot=snapshot, read_only=True, timeout=timeout, patience=_PATIENCE
                    ) as follower:
                        is_running = True
                        await run(follower)
                except Unavailable:
                    # no connection to spare: waiting for one while holding one could wait for
                    # others that do the same, so the leader goes on alone
                    if is_running:
                        raise

            jobs: list[Callable[[], Any]] = [lambda: run(leader)]
            jobs += [follow] * (min(self._parallel, len(units)) - 1)

            def stop() -> None:
                for _ in queue:  # the others find nothing left to do
                    pass

            await self._driver.gather(jobs, on_error=stop)
        return [row for answer in answers for row in answer]

    async def table(
        self, work: Work, rows: Rows, packing: Packing
    ) -> tuple[Table, tuple[str, ...]]:
        """Return packed rows as a table, and the names that its series codes stand for."""
        if work.targets.source == "labels":
            ids = list(dict.fromkeys(r[0] for r in rows))
            by_id = await self._directory.names(work.entry, ids)
            names = tuple(by_id[i] for i in ids)
        else:
            ids, names = list(work.targets.ids), work.targets.names
        code_of = {series_id: code for code, series_id in enumerate(ids)}
        total = sum([r[1] for r in rows])
        return await self._compute(total, shape.to_table, packing, rows, code_of), names

    async def finish(self, work: Work, found: Found) -> Columns:
        """Turn what was found into the answer: groups, picture, averages, order."""
        query, plan, dataset = work.query, work.plan, work.entry.dataset
        table, names = found.table, found.names
        if query.group_by is not None:
            names, groups = await self._groups(work.entry, query.group_by, names)
            table = group_series(table, plan.states, groups)
        if query.points is not None:
            points = query.points
            table = await self._compute(len(table), shape.picked, table, plan, dataset, points)
        seq = None
        if plan.grid is None:
            values: Mapping[str, Any] = {c: table.values[c] for c in plan.columns}
            types = {c: dataset.column(c).type for c in plan.columns}
            categories: Mapping[str, tuple[str, ...]] = table.categories
            seq = table.values.get("seq") if query.points is None else None  # bars have none
        else:
            values, categories = finish(table, plan.aggregates, dataset)
            types = {a.name: dataset.answer_type(a) for a in plan.aggregates}
        series, ts = table.series, table.ts
        rows = shape.ordered(query, plan, series, len(ts))
        if rows is not None:
            series, ts = series[rows], ts[rows]
            values = {n: v[rows] for n, v in values.items()}
            seq = seq[rows] if seq is not None else None
        elapsed = (time.perf_counter() - work.started) * 1000
        node = self._driver.node
        done = replace(plan, sources=found.sources, node=node, elapsed_ms=elapsed)
        return Columns(names, series, ts, values, types, categories, seq, done)

    async def _groups(
        self, entry: Entry, label: str, names: tuple[str, ...]
    ) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
        series = await self._directory.series(entry, names) if names else []
        fresh = await self._directory.series_by_id(entry, [s.id for s in series])
        values = [fresh[s.id].labels.get(label, "") for s in series]
        if series and not any(values):
            known = sorted({k for s in fresh.values() for k in s.labels})
            raise QueryError(
                f"group_by: none of the series has a label {label!r}; "
                f"they have {', '.join(map(repr, known)) or 'no labels'}"
            )
        groups = sorted(set(values))
        code_of = {group: code for code, group in enumerate(groups)}
        return tuple(groups), np.array([code_of[v] for v in values], dtype=np.int32)

    async def _compute(self, rows: int, function: Callable[..., Any], *args: Any) -> Any:
        if rows < _OFF_LOOP:
            return function(*args)
        return await self._driver.compute(function, *args)


def _with_time_left(query: Query, started: float) -> Query:
    """Return the query with what is left of its deadline, at least a millisecond."""
    if query.timeout is None:
        return query
    left = query.timeout - (time.perf_counter() - started)
    return replace(query, timeout=max(left, _LEAST_TIME))


def _from_now(work: Work) -> Work:
    """Return the work as if it began now, with what is left of its time."""
    if work.query.timeout is None:
        return work
    query = _with_time_left(work.query, work.started)
    return replace(work, query=query, started=time.perf_counter())


def _is_backwards(query: Query, plan: Plan) -> bool:
    """Return whether points are fetched newest first; buckets and pictures are made forwards."""
    return query.descending and plan.grid is None and query.points is None


def point_columns(query: Query, dataset: Dataset, plan: Plan) -> tuple[str, ...]:
    """Return the value columns that a plan reads points of."""
    if plan.grid is not None:
        return tuple(dict.fromkeys(c for a in plan.aggregates for c in a.inputs))
    if query.points is not None and dataset.chart not in plan.columns:
        return (*plan.columns, dataset.chart)
    return plan.columns
