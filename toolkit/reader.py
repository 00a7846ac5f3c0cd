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

from toolkit import decode, shape
from toolkit.catalog import Entry
from toolkit.columns import Columns
from toolkit.config import Limits
from toolkit.dataset import Dataset
from toolkit.directory import Directory
from toolkit.drivers import Driver, Params, Rows
from toolkit.errors import QueryError
from toolkit.query import Query
from toolkit.reduce import Table, bucket_points, finish, group_series, merge
from toolkit.strategy import Density, Plan, choose, compose
from toolkit.strategy.choose import pieces
from toolkit.strategy.params import grid_params, range_params, rollup_params, where_params
from toolkit.timegrid import Grid, Span, Step

PIECE = 65_536  # points a statement: below it one statement, above it several at once
_OFF_LOOP = 10_000  # rows whose decoding is worth a thread


@dataclass(frozen=True, slots=True)
class Targets:
    """The series a query goes to: by id where they were named, else by their labels.

    ``step`` is the smallest distance of their points in µs, None where one is irregular.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    by_labels: bool
    params: Params
    step: int | None


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
        started = time.perf_counter()
        entry, targets, plan = await self.prepare(query)
        columns = await self.answer(query, entry, targets, plan)
        assert isinstance(columns.plan, Plan)
        elapsed = (time.perf_counter() - started) * 1000
        columns.plan = replace(columns.plan, elapsed_ms=elapsed)
        return columns

    async def answer(self, query: Query, entry: Entry, targets: Targets, plan: Plan) -> Columns:
        """Carry out a plan."""
        if plan.strategy == "downsampled":
            table, names, sources = await self._from_rollup(query, entry, targets, plan)
        elif plan.strategy == "aggregated":
            table, names, sources = await self._from_buckets(query, entry, targets, plan)
        else:
            table, names, sources = await self._from_points(query, entry, targets, plan)
        done = replace(plan, sources=sources, node=self._driver.node)
        return await self.finish(query, entry, done, table, names)

    async def plan(self, query: Query) -> Plan:
        """Return the plan a query would be answered by."""
        return (await self.prepare(query))[2]

    async def explain(self, query: Query, *, analyze: bool = False) -> tuple[Plan, str, str]:
        """Return the plan, its statement and what the database's EXPLAIN says of it."""
        entry, targets, plan = await self.prepare(query)
        statement, params = self._statement(query, entry, targets, plan)
        options = b"(ANALYZE, BUFFERS) " if analyze else b""
        rows = await self._driver.fetch(b"EXPLAIN " + options + statement, params)
        return plan, statement.decode(), "\n".join(row[0] for row in rows)

    async def prepare(self, query: Query) -> tuple[Entry, Targets, Plan]:
        """Look up what a query names, and choose how to answer it."""
        entry = await self._directory.entry(query.dataset)
        targets = await self._targets(query, entry)
        density = None
        if query.is_auto or query.points is not None:
            cap = self._limits.aggregated if query.is_auto else self._limits.chart_points
            density = await self.density(query, entry, targets, cap + 1)
        plan = choose(query, entry, self._limits, native_step=targets.step, density=density)
        if query.grid is not None and query.grid.step.approximate_us < (targets.step or 0):
            await self._refuse_finer(query, entry, targets)
        return entry, targets, plan

    async def _targets(self, query: Query, entry: Entry) -> Targets:
        if query.series is None:
            labels = json.dumps(dict(query.labels or {}))
            params: Params = {"dataset_id": entry.id, "labels": labels}
            return Targets((), (), True, params, None)
        found = await self._directory.series(entry, query.series)
        steps = [s.step for s in found]
        step = None if None in steps else min(s for s in steps if s is not None)
        ids = tuple(s.id for s in found)
        return Targets(query.series, ids, False, {"ids": list(ids)}, step)

    async def _refuse_finer(self, query: Query, entry: Entry, targets: Targets) -> None:
        # the recorded step may be out of date: look before refusing
        assert query.grid is not None
        for index, series in enumerate(await self._directory.series(entry, targets.names)):
            wanted = query.grid.step.approximate_us
            if series.step is None or series.step <= wanted:
                continue
            finest = await self._finest_distance(query, entry, targets.ids[index])
            if finest is not None and finest < series.step:
                await self._directory.make_series(entry, {series.name: finest})
            if finest is None or finest > wanted:
                every = timedelta(microseconds=finest or series.step)
                raise QueryError(
                    f"step {query.grid.step} is finer than series {series.name!r}, "
                    f"which has a point every {every}"
                )

    async def _finest_distance(self, query: Query, entry: Entry, series_id: int) -> int | None:
        statement = compose.points_statement(entry, (), by_labels=False, has_limit=True)
        params = {"ids": [series_id], "limit": PIECE, **range_params(query.span)}
        rows = await self._driver.fetch(statement, params, timeout=query.timeout)
        ts = decode.times([rows[0][2]])
        return int(np.diff(ts).min()) if len(ts) > 1 else None

    async def density(self, query: Query, entry: Entry, targets: Targets, cap: int) -> Density:
        """Measure how many points the busiest series has in the range, up to ``cap``."""
        statement = compose.probe_statement(entry, by_labels=targets.by_labels)
        params = {**targets.params, **range_params(query.span), "cap": cap}
        rows = await self._driver.fetch(statement, params, timeout=query.timeout)
        lows = [r[2] for r in rows if r[2] is not None]
        highs = [r[3] for r in rows if r[3] is not None]
        if not lows:
            return Density(0, Span(query.span.start, query.span.start))
        extent = Span.between(min(lows), max(highs))
        return Density(max(r[1] for r in rows), Span(extent.start, extent.end + 1))

    async def _from_points(
        self, query: Query, entry: Entry, targets: Targets, plan: Plan
    ) -> tuple[Table, tuple[str, ...], Mapping[str, int]]:
        columns = point_columns(query, entry.dataset, plan)
        statement, params = self._points_statement(query, entry, targets, plan)
        units = await self._units(query, entry, targets)
        rows = await self._fetch(query, statement, params, units)
        table, names = await self.table(
            entry, targets, rows, [(c, entry.dataset.column(c).base) for c in columns]
        )
        count = len(table)
        if plan.grid is not None:
            table = await self._compute(
                count, bucket_points, table, plan.states, entry.dataset, plan.grid
            )
        return table, names, {"points": count}

    async def _from_buckets(
        self, query: Query, entry: Entry, targets: Targets, plan: Plan
    ) -> tuple[Table, tuple[str, ...], Mapping[str, int]]:
        statement, params = self._statement(query, entry, targets, plan)
        rows = await self._driver.fetch(statement, params, timeout=query.timeout)
        touched = sum(r[2] or 0 for r in rows)
        packed = [(s.name, compose.packing_of(s)) for s in plan.states]
        table, names = await self.table(
            entry, targets, [(r[0], r[1], *r[3:]) for r in rows], packed
        )
        return table, names, {"points": touched}

    async def _from_rollup(
        self, query: Query, entry: Entry, targets: Targets, plan: Plan
    ) -> tuple[Table, tuple[str, ...], Mapping[str, int]]:
        statement, params = self._statement(query, entry, targets, plan)
        rows = await self._driver.fetch(statement, params, timeout=query.timeout)
        width = 2 + len(plan.states)  # id and count, then ts and the states
        clean = [(r[0], r[1], *r[2 : width + 1]) for r in rows]
        fresh = [(r[0], r[width + 1], *r[width + 3 :]) for r in rows]
        sources = {
            "rollup": sum(r[1] for r in clean),
            "points": sum(r[width + 2] or 0 for r in rows),
        }
        packed = [(s.name, compose.packing_of(s)) for s in plan.states]
        both = clean if not any(r[1] for r in fresh) else [*clean, *fresh]
        table, names = await self.table(entry, targets, both, packed)
        if both is not clean:
            table = table.take(np.lexsort((table.ts, table.series)))
        assert plan.rollup is not None
        assert plan.grid is not None
        if plan.grid != plan.rollup.grid:
            table = await self._compute(len(table), merge, table, plan.states, plan.grid)
        return table, names, sources

    def _statement(
        self, query: Query, entry: Entry, targets: Targets, plan: Plan
    ) -> tuple[bytes, Params]:
        if plan.strategy == "direct":
            statement, params = self._points_statement(query, entry, targets, plan)
            return statement, {**params, **range_params(query.span)}
        assert plan.grid is not None
        params = {**targets.params, **range_params(query.span)}
        if plan.strategy == "downsampled":
            assert plan.rollup is not None
            statement = compose.rollup_statement(
                entry, plan.states, plan.rollup, by_labels=targets.by_labels
            )
            return statement, params | rollup_params(plan.rollup.id, plan.rollup.grid, query.span)
        has_limit = query.limit is not None and query.group_by is None
        statement = compose.buckets_statement(
            entry,
            plan.states,
            plan.grid,
            by_labels=targets.by_labels,
            where=query.where,
            has_limit=has_limit,
            descending=query.descending,
        )
        params |= where_params(query.where, entry) | grid_params(plan.grid, query.span)
        return statement, params | ({"limit": query.limit} if has_limit else {})

    def _points_statement(
        self, query: Query, entry: Entry, targets: Targets, plan: Plan
    ) -> tuple[bytes, Params]:
        has_limit = query.limit is not None and plan.grid is None
        statement = compose.points_statement(
            entry,
            point_columns(query, entry.dataset, plan),
            by_labels=targets.by_labels,
            where=query.where,
            has_limit=has_limit,
            descending=query.descending and plan.grid is None,
        )
        params = {**targets.params, **where_params(query.where, entry)}
        return statement, params | ({"limit": query.limit} if has_limit else {})

    async def _units(self, query: Query, entry: Entry, targets: Targets) -> list[Unit]:
        """Cut a read of points into statements of some ten thousand points each."""
        whole = [Unit(query.span, targets.ids)]
        if targets.by_labels or query.limit is not None:
            return whole
        span, each = query.span, targets.step
        if each is None:
            interval = Grid(Step.parse(entry.dataset.partition))
            if span.width <= interval.step.approximate_us:
                return whole
        elif span.width // each * len(targets.ids) <= PIECE:
            return whole
        density = await self.density(query, entry, targets, PIECE + 1 if each is None else 1)
        span = density.extent
        if each is None:
            if density.count <= PIECE:
                return _grouped(query.span, targets.ids, density.count)
            spans = query.span.cut(Grid(Step.parse(entry.dataset.partition)).edges(span))
        else:
            count = span.width // each
            if count <= PIECE // 2:
                return _grouped(query.span, targets.ids, count)
            spans = pieces(span, each, PIECE)
            # what lies outside the extent now may be written before the snapshot is taken
            spans[0], spans[-1] = replace(spans[0], start=query.span.start), spans[-1]
            spans[-1] = replace(spans[-1], end=query.span.end)
        if query.descending and query.is_native:
            spans.reverse()
        return [Unit(piece, (one,)) for one in targets.ids for piece in spans]

    async def _fetch(
        self, query: Query, statement: bytes, params: Params, units: Sequence[Unit]
    ) -> Rows:
        """Run a statement for every unit, several at once, all in one snapshot."""
        if len(units) == 1:
            mine = {**params, **range_params(units[0].span)}
            return await self._driver.fetch(statement, mine, timeout=query.timeout)
        answers: list[Rows] = [[] for _ in units]
        queue = iter(range(len(units)))

        async def work(transaction: Any) -> None:
            for number in queue:
                unit = units[number]
                mine = {**params, **range_params(unit.span), "ids": list(unit.ids)}
                answers[number] = await transaction.fetch(statement, mine)

        async with self._driver.transaction(
            repeatable=True, read_only=True, timeout=query.timeout
        ) as leader:
            rows = await leader.fetch(b"SELECT pg_export_snapshot()")

            async def follow() -> None:
                async with self._driver.transaction(
                    snapshot=rows[0][0], read_only=True, timeout=query.timeout
                ) as follower:
                    await work(follower)

            jobs: list[Callable[[], Any]] = [lambda: work(leader)]
            jobs += [follow] * (min(self._parallel, len(units)) - 1)
            await self._driver.gather(jobs)
        return [row for answer in answers for row in answer]

    async def table(
        self, entry: Entry, targets: Targets, rows: Rows, packed: Sequence[tuple[str, str]]
    ) -> tuple[Table, tuple[str, ...]]:
        """Return packed rows as a table, and the names that its series codes stand for."""
        if targets.by_labels:
            ids = list(dict.fromkeys(r[0] for r in rows))
            by_id = await self._directory.names(entry, ids)
            names, code_of = tuple(by_id[i] for i in ids), {i: k for k, i in enumerate(ids)}
        else:
            names, code_of = targets.names, {i: k for k, i in enumerate(targets.ids)}
        has_seq = entry.dataset.has_seq
        total = sum(r[1] for r in rows)
        table = await self._compute(total, shape.unpack, rows, code_of, packed, has_seq)
        return table, names

    async def finish(
        self, query: Query, entry: Entry, plan: Plan, table: Table, names: tuple[str, ...]
    ) -> Columns:
        """Turn a table into the answer: groups, picture, averages, order."""
        dataset = entry.dataset
        if query.group_by is not None:
            names, groups = await self._groups(entry, query.group_by, names)
            table = group_series(table, plan.states, groups)
        if query.points is not None:
            points = query.points
            table = await self._compute(len(table), shape.picked, table, plan, dataset, points)
        if plan.grid is None:
            values = {c: table.values[c] for c in plan.columns}
            types = {c: dataset.column(c).type for c in plan.columns}
            categories = {c: table.categories[c] for c in plan.columns if c in table.categories}
            seq = table.values.get("seq")
        else:
            values, categories = finish(table, plan.aggregates, dataset)
            types = {a.name: dataset.answer_type(a) for a in plan.aggregates}
            seq = None
        series, ts = table.series, table.ts
        rows = shape.ordered(query, plan, series, len(ts))
        if rows is not None:
            series, ts = series[rows], ts[rows]
            values = {n: v[rows] for n, v in values.items()}
            seq = seq[rows] if seq is not None else None
        return Columns(names, series, ts, values, types, categories, seq, plan)

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
        codes = np.array([groups.index(v) for v in values], dtype=np.int32)
        return tuple(groups), codes

    async def _compute(self, rows: int, function: Callable[..., Any], *args: Any) -> Any:
        if rows < _OFF_LOOP:
            return function(*args)
        return await self._driver.compute(function, *args)


def _grouped(span: Span, ids: tuple[int, ...], each: int) -> list[Unit]:
    size = max(1, PIECE // max(each, 1))
    return [Unit(span, ids[i : i + size]) for i in range(0, len(ids), size)]


def point_columns(query: Query, dataset: Dataset, plan: Plan) -> tuple[str, ...]:
    """Return the value columns that a plan reads points of."""
    if plan.grid is not None:
        return tuple(dict.fromkeys(c for a in plan.aggregates for c in a.inputs))
    if query.points is not None and dataset.chart not in plan.columns:
        return (*plan.columns, dataset.chart)
    return plan.columns
