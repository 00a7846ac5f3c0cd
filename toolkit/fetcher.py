"""What a read takes from the database: points, or the states of buckets, as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit import cold, shape, whole
from toolkit.catalog import Entry
from toolkit.decode import Packing
from toolkit.directory import Directory
from toolkit.drivers import OUT_OF_RANGE, Driver, Params, Rows, Transaction
from toolkit.drivers.inside import InsideDriver
from toolkit.errors import DatabaseError, QueryError, Unavailable
from toolkit.merging import Merged, Run, Stored, merge_cold, run_here
from toolkit.query import Query
from toolkit.reduce import NO_ADDEND, Table, bucket_points, merge
from toolkit.strategy import Density, compose
from toolkit.strategy.choose import even_edges
from toolkit.strategy.packing import packing_of_points, packing_of_states
from toolkit.strategy.params import (
    blocks_params,
    cold_params,
    grid_params,
    range_params,
    rollup_params,
    where_params,
)
from toolkit.strategy.price import PIECE, cut_share
from toolkit.strategy.seen import Seen
from toolkit.timegrid import Grid, Span, Step, to_us
from toolkit.work import (
    Colder,
    Found,
    Reach,
    Refrozen,
    Targets,
    Unit,
    Work,
    always_there,
    check_time,
    from_now,
    in_time,
    is_backwards,
    point_columns,
    sure,
    time_left,
)

_PATIENCE = 0.05  # seconds to wait for a second connection
_OFF_LOOP = 10_000  # rows whose decoding is worth a thread
_COLD_PIECE = 32 * PIECE  # points a statement where they come in blocks
_LOOKS = 3  # at until when there are blocks, which only a moment ago were more


class Fetcher:
    """Fetches of one store; holds no state of its own."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        parallel: int = 2,
        run: Run = run_here,
        reach: Reach = always_there,
    ) -> None:
        self.driver = driver
        self.reach = reach
        self._directory = directory
        self._parallel = parallel
        self.run = run
        self.seen = Seen()

    def inside(self, transaction: Transaction) -> Fetcher:
        """Return one whose statements all see the snapshot of a transaction."""
        driver = InsideDriver(self.driver, transaction)
        fetcher = Fetcher(driver, self._directory.inside(driver), 0, self.run)
        fetcher.seen = self.seen
        return fetcher

    async def fetch(self, work: Work) -> Found:
        """Return the points, or the states of the buckets, that a plan needs."""
        for _ in range(_LOOKS):
            try:
                return await self._fetched(from_now(work))
            except Colder:
                await self._directory.load(timeout=time_left(work))
                entry = await self._directory.entry(work.entry.dataset.name)
                if not entry.has_marks_of(work.entry):
                    raise Refrozen(entry.dataset.name) from None
                work = replace(work, entry=entry)
        return await self._fetched(from_now(work))

    async def _fetched(self, now: Work) -> Found:
        if now.entry.is_cold(now.query.span):
            return await cold.fetch(self, now)
        if now.plan.strategy == "downsampled":
            return await self.from_rollup(now)
        if now.plan.strategy == "aggregated":
            return await self.from_buckets(now)
        return await self.from_points(now)

    async def density(self, query: Query, entry: Entry, targets: Targets, cap: int) -> Density:
        """Measure how many points the busiest series has in the range, up to ``cap``."""
        statement = compose.probe_statement(entry, source=targets.source)
        params = {
            **targets.params,
            **range_params(query.span),
            **blocks_params(entry, query.span),
            "cap": cap,
        }
        rows = await self.driver.fetch(statement, params, timeout=query.timeout)
        found = {r[0]: (r[1], to_us(r[2]), to_us(r[3])) for r in rows if r[2] is not None}
        if any(r[4] for r in rows):
            blocks = await cold.probe(self, query, entry, targets)
            for one, (count, first, last) in blocks.items():
                rest = found.get(one, (0, first, last))
                found[one] = count + rest[0], min(first, rest[1]), max(last, rest[2])
        if not found:
            return Density(0, Span(query.span.start, query.span.start))
        first, last = min(f[1] for f in found.values()), max(f[2] for f in found.values())
        return Density(max(f[0] for f in found.values()), Span(first, last + 1))

    async def from_points(self, work: Work, *, is_added: bool = False) -> Found:
        """Fetch points, and make buckets of them where the plan has a step.

        Where those are added to others (``is_added``), an integer sum must be one.
        """
        units = await self._units(work)
        answers = await self._fetch(from_now(work), units)
        blocks: list[tuple[int, Stored]] = []
        if work.entry.is_cold(work.query.span):
            found, blocks = await cold.points_of(self, work, units, answers)
        else:
            rows = sure([row for answer in answers for row in answer])
            table, names = await self.table(work, rows, self._packing(work))
            found = Found(table, names, {"points": len(table)})
        plan, dataset = work.plan, work.entry.dataset
        if plan.grid is None:
            return found
        is_added = is_added or work.query.asked.group_by is not None
        how = (plan.states, dataset, plan.grid, is_added)
        if blocks:
            try:
                table = whole.bucket_both(found.table, blocks, *how, work.query.span)
            except whole.PointsKnow:
                pointwise = replace(work, is_pointwise=True)
                return await self.from_points(from_now(pointwise), is_added=is_added)
        else:
            table = await self.compute(len(found.table), bucket_points, found.table, *how)
        return replace(found, table=table)

    def _packing(self, work: Work) -> Packing:
        def make() -> Packing:
            return packing_of_points(work.entry, self._columns(work))

        packing: Packing = work.entry.once(("packing", work.query.asked, work.plan.grid), make)
        return packing

    async def from_buckets(self, work: Work) -> Found:
        """Fetch the states of buckets that the database computes from points."""
        rows = await self.states(work)
        packing = packing_of_states(work.plan.states)
        touched = sum(r[2] or 0 for r in rows)
        packed = [(r[0], r[1], *r[3:-1]) for r in rows]
        return Found(*await self.table(work, packed, packing), {"points": touched})

    async def from_rollup(self, work: Work) -> Found:
        """Fetch the states of a rollup's buckets, those that changed computed from points."""
        plan = work.plan
        assert plan.rollup is not None
        assert plan.grid is not None
        try:
            rows = await self.states(work)
        except DatabaseError as error:
            if error.sqlstate != OUT_OF_RANGE or work.entry.is_frozen(work.query.span):
                raise
            # an integer sum that has left bigint cannot be added to others: from the points then
            by_points = replace(plan, strategy="aggregated")
            found = await self.from_buckets(replace(from_now(work), plan=by_points))
            order = np.lexsort((found.table.ts, found.table.series))  # oldest first, as a rollup
            return replace(found, table=found.table.take(order))
        table, names, sources = await self.unpack_rollup(work, rows)
        if plan.grid != plan.rollup.grid:
            table = await self.compute(len(table), merge, table, plan.states, plan.grid)
        self.learn(work, sources["points"])
        return Found(table, names, sources)

    async def unpack_rollup(
        self, work: Work, rows: Rows
    ) -> tuple[Table, tuple[str, ...], dict[str, int]]:
        """Return the rollup's buckets in order, the names of its series, and the rows touched."""
        packing = packing_of_states(work.plan.states)
        # a row is: id; count and columns from the rollup; count, touched and columns from points
        at = 2 + packing.width
        clean = [r[:at] for r in rows]
        fresh = [(r[0], r[at], *r[at + 2 : -2]) for r in rows if r[at]]
        table, names = await self.table(work, [*clean, *fresh], packing)
        if fresh:
            table = table.take(np.lexsort((table.ts, table.series)))
        sources = {
            "rollup": sum(r[1] for r in rows),
            "points": sum(r[at + 1] or 0 for r in rows),
        }
        return table, names, sources

    def learn(self, work: Work, touched: int) -> None:
        """Remember how much of a rollup's range had changed, by the points it read."""
        rollup, span, targets = work.plan.rollup, work.query.span, work.targets
        width = rollup.grid.width if rollup is not None else None
        if rollup is None or width is None or targets.step is None or span.is_empty:
            return
        points = (span.width // targets.step + 1) * len(targets.ids)
        share = touched / points - cut_share(width, rollup.grid.origin, span)
        self.seen.learn(targets.ids, rollup, span, max(share, 0.0))

    async def states(self, work: Work) -> Rows:
        """Fetch the states of buckets; where a sum leaves its type, in the form that cannot."""
        is_cold = work.entry.is_cold(work.query.span)
        try:
            statement, params = self.statement(work)
            return sure(await self.driver.fetch(statement, params, timeout=time_left(work)))
        except DatabaseError as error:
            if error.sqlstate != OUT_OF_RANGE or is_cold:
                raise
        total = self.statement(work, is_total=True)
        try:
            return sure(await self.driver.fetch(*total, timeout=time_left(work)))
        except DatabaseError as error:
            if error.sqlstate != OUT_OF_RANGE or work.plan.strategy == "downsampled":
                raise
            raise QueryError(NO_ADDEND) from error

    def statement(self, work: Work, *, is_total: bool = False) -> tuple[bytes, Params]:
        """Return the one statement that answers, or of several the first, and its values."""
        query, entry, targets, plan = work.query, work.entry, work.targets, work.plan
        is_cold = entry.is_cold(query.span)
        if plan.strategy == "direct" or (is_cold and plan.strategy == "aggregated"):
            return self.points_statement(work, Unit(query.span, targets.ids))
        assert plan.grid is not None
        params = {
            **targets.params,
            **range_params(query.span),
            **blocks_params(entry, query.span),
        }
        if plan.strategy == "downsampled":
            assert plan.rollup is not None
            statement = compose.rollup_statement(
                entry,
                plan.states,
                plan.rollup,
                source=targets.source,
                is_total=is_total,
                is_added=plan.grid != plan.rollup.grid or query.asked.group_by is not None,
                is_cold=is_cold,
            )
            params |= rollup_params(plan.rollup, query.span)
            return statement, params | (cold_params(entry, plan.rollup.grid) if is_cold else {})
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

    def points_statement(self, work: Work, unit: Unit) -> tuple[bytes, Params]:
        """Return the statement of a unit of points, and its values."""
        asked, entry, targets = work.query.asked, work.entry, work.targets
        source = targets.source if targets.source == "labels" else compose.source_of(unit.ids)
        is_cold = entry.is_cold(work.query.span)
        has_limit = asked.limit is not None and work.plan.grid is None
        has_limit &= not (is_cold and asked.where)  # how many pass is known only here
        grid = work.plan.grid if is_cold and not work.is_pointwise else None
        if not whole.may_be_whole(work.query, work.plan, targets.step):
            grid = None

        def make() -> bytes:
            return compose.points_statement(
                entry,
                cold.columns_of(work) if is_cold else self._columns(work),
                source=source,
                where=asked.where,
                has_limit=has_limit,
                descending=is_backwards(work.query, work.plan),
                is_cold=is_cold,
                grid=grid,
            )

        key = ("points", asked, work.plan.grid, source, is_cold, grid is None)
        statement = entry.once(key, make)
        params = {
            **(targets.params if source == "labels" else compose.ids_params(unit.ids)),
            **range_params(unit.span),
            **blocks_params(entry, unit.span),
        }
        if grid is not None:
            params |= grid_params(grid, work.query.span)
        if asked.where and not is_cold:
            params |= where_params(asked.where, entry)
        if has_limit:
            params["limit"] = asked.limit
        return statement, params

    async def _units(self, work: Work) -> list[Unit]:
        """Cut a read of points into statements of some ten thousand points each."""
        query, targets = work.query, work.targets
        span, each, ids = query.span, targets.step, targets.ids
        whole = [Unit(span, ids)]
        is_cold = work.entry.is_cold(span)
        size = _COLD_PIECE if is_cold else PIECE
        if targets.source == "labels" or query.asked.limit is not None:
            return whole
        if each is not None and span.width // each * len(ids) <= size:
            return whole
        partition = Grid(Step.parse(work.entry.dataset.partition))
        if each is None and span.width <= partition.step.approximate_us:
            return whole
        cap = size + 1 if each is None else 1
        density = await self.density(query, work.entry, targets, cap)
        extent = density.extent
        count = density.count if each is None else extent.width // each
        if count <= size:
            many = max(1, size // max(count, 1))
            return [Unit(span, ids[i : i + many]) for i in range(0, len(ids), many)] or whole
        # what lies outside the extent now may be written before the snapshot is taken
        edges = partition.edges(extent) if each is None else even_edges(extent, each, size)
        spans = span.cut(edges)
        if is_backwards(query, work.plan):
            spans.reverse()
        return [Unit(piece, (one,)) for one in ids for piece in spans]

    async def _fetch(self, work: Work, units: Sequence[Unit]) -> list[Rows]:
        """Run the statement of every unit, several at once, all in one snapshot."""
        timeout = work.query.timeout
        if len(units) == 1 or not self._parallel:  # inside a transaction it is one snapshot
            each = [self.points_statement(work, unit) for unit in units]
            return [await self.driver.fetch(*s, timeout=time_left(work)) for s in each]
        answers: list[Rows] = [[] for _ in units]
        queue = iter(range(len(units)))

        async def run(transaction: Transaction) -> None:
            for number in queue:
                check_time(work.query, work.started)
                statement, params = self.points_statement(work, units[number])
                answers[number] = await transaction.fetch(statement, params)

        async with self.driver.transaction(
            repeatable=True, read_only=True, timeout=timeout
        ) as leader:
            snapshot = (await leader.fetch(b"SELECT pg_export_snapshot()"))[0][0]

            async def follow() -> None:
                is_running = False
                try:
                    async with self.driver.transaction(
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

            await self.driver.gather(jobs, on_error=stop)
        return answers

    async def table(
        self, work: Work, rows: Rows, packing: Packing
    ) -> tuple[Table, tuple[str, ...]]:
        """Return packed rows as a table, and the names that its series codes stand for."""
        ids, names = await self.names(work, rows)
        code_of = {series_id: code for code, series_id in enumerate(ids)}
        total = sum([r[1] for r in rows])
        return await self.compute(total, shape.to_table, packing, rows, code_of), names

    async def names(self, work: Work, rows: Rows) -> tuple[Sequence[int], tuple[str, ...]]:
        """Return the ids and names that the series codes of an answer stand for."""
        if work.targets.source != "labels":
            return work.targets.ids, work.targets.names
        ids = list(dict.fromkeys(r[0] for r in rows))
        by_id = await self._directory.names(work.entry, ids, timeout=time_left(work))
        return ids, tuple(by_id[i] for i in ids)

    async def merged(
        self,
        work: Work,
        span: Span,
        columns: tuple[str, ...],
        rows: Rows,
        ids: Sequence[int],
        names: Sequence[str],
        **options: Any,
    ) -> Merged:
        """Return the points of rows and blocks; ``options`` are those of cold_of."""
        how = cold.cold_of(work, span, columns, ids, names, **options)
        code_of = {series_id: code for code, series_id in enumerate(ids)}
        sure([row for row in rows if row[1] is not None])
        count = _OFF_LOOP if any(row[1] is None for row in rows) else 0  # it has blocks
        run = in_time(work.query, work.started, self.run)
        merged: Merged = await self.compute(count, merge_cold, how, rows, code_of, run)
        return merged

    async def compute(self, rows: int, function: Callable[..., Any], *args: Any) -> Any:
        """Run CPU work over so many rows where it does not hold up others."""
        if rows < _OFF_LOOP:
            return function(*args)
        return await self.driver.compute(function, *args)

    def _columns(self, work: Work) -> tuple[str, ...]:
        return point_columns(work.query, work.entry.dataset, work.plan)
