"""What a read takes from the database: points, or the states of buckets, as tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit import shape
from toolkit.catalog import Entry
from toolkit.decode import Packing
from toolkit.directory import Directory
from toolkit.drivers import OUT_OF_RANGE, Driver, Params, Rows, Transaction
from toolkit.errors import DatabaseError, QueryError, QueryTimeout, Unavailable
from toolkit.query import Query
from toolkit.reduce import NO_ADDEND, Table, bucket_points, merge
from toolkit.strategy import Density, compose
from toolkit.strategy.choose import even_edges
from toolkit.strategy.params import grid_params, range_params, rollup_params, where_params
from toolkit.strategy.price import PIECE, cut_share
from toolkit.strategy.seen import Seen
from toolkit.timegrid import Grid, Span, Step
from toolkit.work import Found, Targets, Work, from_now, is_backwards, point_columns, time_left

_PATIENCE = 0.05  # seconds to wait for a second connection
_OFF_LOOP = 10_000  # rows whose decoding is worth a thread


@dataclass(frozen=True, slots=True)
class Unit:
    """One statement's share of a read."""

    span: Span
    ids: tuple[int, ...]


class Fetcher:
    """Fetches of one store; holds no state of its own."""

    def __init__(self, driver: Driver, directory: Directory, parallel: int = 2) -> None:
        self._driver = driver
        self._directory = directory
        self._parallel = parallel
        self.seen = Seen()

    async def fetch(self, work: Work) -> Found:
        """Return the points, or the states of the buckets, that a plan needs."""
        now = from_now(work)
        if work.plan.strategy == "downsampled":
            return await self._from_rollup(now)
        if work.plan.strategy == "aggregated":
            return await self._from_buckets(now)
        return await self._from_points(now)

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

    async def _from_points(self, work: Work) -> Found:
        dataset, plan = work.entry.dataset, work.plan
        packing = self._packing(work)
        units = await self._units(work)
        rows = await self._fetch(from_now(work), units)
        table, names = await self.table(work, rows, packing)
        count = len(table)
        if plan.grid is not None:
            is_added = work.query.asked.group_by is not None
            table = await self.compute(
                count, bucket_points, table, plan.states, dataset, plan.grid, is_added
            )
        return Found(table, names, {"points": count})

    def _packing(self, work: Work) -> Packing:
        def make() -> Packing:
            columns = point_columns(work.query, work.entry.dataset, work.plan)
            return compose.packing_of_points(work.entry, columns)

        packing: Packing = work.entry.once(("packing", work.query.asked, work.plan.grid), make)
        return packing

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
        try:
            rows = await self._states(work)
        except DatabaseError as error:
            if error.sqlstate != OUT_OF_RANGE:
                raise
            # an integer sum that has left bigint cannot be added to others: from the points then
            now = from_now(work)
            return await self._from_buckets(replace(now, plan=replace(plan, strategy="aggregated")))
        packing = compose.packing_of_states(plan.states)
        # a row is: id; count and columns from the rollup; count, touched and columns from points
        at = 2 + packing.width
        clean = [r[:at] for r in rows]
        fresh = [(r[0], r[at], *r[at + 2 :]) for r in rows if r[at]]
        table, names = await self.table(work, [*clean, *fresh], packing)
        if fresh:
            table = table.take(np.lexsort((table.ts, table.series)))
        if plan.grid != plan.rollup.grid:
            table = await self.compute(len(table), merge, table, plan.states, plan.grid)
        sources = {
            "rollup": sum(r[1] for r in rows),
            "points": sum(r[at + 1] or 0 for r in rows),
        }
        self._learn(work, sources)
        return Found(table, names, sources)

    def _learn(self, work: Work, sources: Mapping[str, int]) -> None:
        """Remember how much of a rollup's range had changed, by the rows it gave."""
        rollup, span, targets = work.plan.rollup, work.query.span, work.targets
        width = rollup.grid.width if rollup is not None else None
        if rollup is None or width is None or targets.step is None or span.is_empty:
            return
        points = (span.width // targets.step + 1) * len(targets.ids)
        share = sources["points"] / points - cut_share(width, rollup.grid.origin, span)
        self.seen.learn(targets.ids, rollup, span, max(share, 0.0))

    async def _states(self, work: Work) -> Rows:
        """Fetch the states of buckets; where a sum leaves its type, in the form that cannot."""
        try:
            return await self._driver.fetch(*self.statement(work), timeout=time_left(work))
        except DatabaseError as error:
            if error.sqlstate != OUT_OF_RANGE:
                raise
        total = self.statement(work, is_total=True)
        try:
            return await self._driver.fetch(*total, timeout=time_left(work))
        except DatabaseError as error:
            if error.sqlstate != OUT_OF_RANGE or work.plan.strategy == "downsampled":
                raise
            raise QueryError(NO_ADDEND) from error

    def statement(self, work: Work, *, is_total: bool = False) -> tuple[bytes, Params]:
        """Return the one statement that answers, and its values."""
        query, entry, targets, plan = work.query, work.entry, work.targets, work.plan
        if plan.strategy == "direct":
            return self._points_statement(work, Unit(query.span, targets.ids))
        assert plan.grid is not None
        params = {**targets.params, **range_params(query.span)}
        if plan.strategy == "downsampled":
            assert plan.rollup is not None
            statement = compose.rollup_statement(
                entry,
                plan.states,
                plan.rollup,
                source=targets.source,
                is_total=is_total,
                is_added=plan.grid != plan.rollup.grid or query.asked.group_by is not None,
            )
            return statement, params | rollup_params(plan.rollup.id, plan.rollup.grid, query.span)
        has_limit = query.asked.limit is not None and query.asked.group_by is None
        statement = compose.buckets_statement(
            entry,
            plan.states,
            plan.grid,
            source=targets.source,
            where=query.asked.where,
            has_limit=has_limit,
            descending=query.asked.descending,
            is_total=is_total,
            is_added=query.asked.group_by is not None,
        )
        params |= where_params(query.asked.where, entry) | grid_params(plan.grid, query.span)
        return statement, params | ({"limit": query.asked.limit} if has_limit else {})

    def _points_statement(self, work: Work, unit: Unit) -> tuple[bytes, Params]:
        asked, entry, targets = work.query.asked, work.entry, work.targets
        source = targets.source if targets.source == "labels" else compose.source_of(unit.ids)
        has_limit = asked.limit is not None and work.plan.grid is None

        def make() -> bytes:
            return compose.points_statement(
                entry,
                point_columns(work.query, entry.dataset, work.plan),
                source=source,
                where=asked.where,
                has_limit=has_limit,
                descending=is_backwards(work.query, work.plan),
            )

        statement = entry.once(("points", asked, work.plan.grid, source), make)
        params = {
            **(targets.params if source == "labels" else compose.ids_params(unit.ids)),
            **range_params(unit.span),
        }
        if asked.where:
            params |= where_params(asked.where, entry)
        if has_limit:
            params["limit"] = asked.limit
        return statement, params

    async def _units(self, work: Work) -> list[Unit]:
        """Cut a read of points into statements of some ten thousand points each."""
        query, targets = work.query, work.targets
        span, each, ids = query.span, targets.step, targets.ids
        whole = [Unit(span, ids)]
        if targets.source == "labels" or query.asked.limit is not None:
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
        if is_backwards(query, work.plan):
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
            by_id = await self._directory.names(work.entry, ids, timeout=time_left(work))
            names = tuple(by_id[i] for i in ids)
        else:
            ids, names = list(work.targets.ids), work.targets.names
        code_of = {series_id: code for code, series_id in enumerate(ids)}
        total = sum([r[1] for r in rows])
        return await self.compute(total, shape.to_table, packing, rows, code_of), names

    async def compute(self, rows: int, function: Callable[..., Any], *args: Any) -> Any:
        """Run CPU work over so many rows where it does not hold up others."""
        if rows < _OFF_LOOP:
            return function(*args)
        return await self._driver.compute(function, *args)
