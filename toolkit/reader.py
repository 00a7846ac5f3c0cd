"""The road of a read: query, plan, statements, columns; written once for both colours."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit import cold, shape, statements
from toolkit.cached import Cache
from toolkit.catalog import Entry
from toolkit.columns import Columns
from toolkit.directory import Directory
from toolkit.drivers import Driver, Params
from toolkit.errors import QueryError
from toolkit.fetcher import Fetcher
from toolkit.merging import Run, run_here
from toolkit.options import Limits, Prices
from toolkit.query import Query
from toolkit.reduce import finish, group_series
from toolkit.shortcuts import Shortcuts
from toolkit.strategy import Density, Kept, Plan, choose, compose
from toolkit.strategy.params import range_params
from toolkit.timegrid import EARLIEST, Span, Step, to_us
from toolkit.work import (
    Found,
    Reach,
    Refrozen,
    Targets,
    Work,
    always_there,
    check_time,
    time_left,
    types_of,
    with_time_left,
)

_PRICES = Prices()
_MOST_CONFIRMED = 1_000
_LOOKS = 3  # at a mark of retention that moves meanwhile


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a query would be answered: the plan, what speaks against the others, and the SQL.

    ``database`` is PostgreSQL's own EXPLAIN of ``statement``, ``params`` the values of that.
    """

    plan: Plan
    statement: str
    database: str
    params: Params = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        others = [f"  {line}" for line in self.plan.others]
        return "\n".join([str(self.plan), *others, "", self.database])


class Reader:
    """Reads of one store; holds no state of its own."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        limits: Limits,
        parallel: int = 2,
        cache: Cache | None = None,
        prices: Prices = _PRICES,
        run: Run = run_here,
        reach: Reach = always_there,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._limits = limits
        self._prices = prices
        self._cache = cache
        self._confirmed: dict[tuple[int, tuple[int, ...]], float] = {}
        self.shortcuts = Shortcuts(cache, directory) if cache is not None else None
        self.fetcher = Fetcher(driver, directory, parallel, run, reach)

    def held(self, query: Query) -> Columns | None:
        """Return the answer where it was asked for before and is held here; it takes some µs."""
        return self.shortcuts.take(query) if self.shortcuts is not None else None

    async def read(self, query: Query) -> Columns:
        """Answer a query; the plan that did it comes along as ``cols.plan``."""
        is_missing = False
        if self.shortcuts is not None:
            found, is_missing = await self.shortcuts.find(query)
            if found is not None:
                return found
        return await self.ask(query, is_missing=is_missing)

    async def ask(
        self, query: Query, *, may_be_finer: bool = False, is_missing: bool = False
    ) -> Columns:
        """Choose how to answer, and do it; once more where points have gone meanwhile."""
        for _ in range(_LOOKS):
            try:
                work = await self.prepare(query, may_be_finer=may_be_finer)
                return await self.answer(work, is_missing=is_missing)
            except Refrozen:  # it has been looked up anew
                continue
        return await self.answer(await self.prepare(query, may_be_finer=may_be_finer))

    async def prepare(self, query: Query, *, may_be_finer: bool = False) -> Work:
        """Look up what a query names, and choose how to answer it.

        A step finer than all the series is refused, unless it ``may_be_finer``.
        """
        started = time.perf_counter()
        entry = await self._directory.entry(query.asked.dataset, timeout=query.timeout)
        targets = await self._targets(with_time_left(query, started), entry)
        asked, density = query, None
        query = with_time_left(query, started)
        if query.asked.is_auto:
            density = await self.density(query, entry, targets, self._limits.aggregated + 1)
        elif query.asked.points is not None:
            density = await self._density_of_chart(query, entry, targets)
        if query.asked.is_native and query.asked.points is None:
            # nothing to choose: the plan is the same for every range
            plan = entry.once(("plan", query.asked), lambda: choose(query, entry, self._limits))
        else:
            plan = choose(
                query,
                entry,
                self._limits,
                self._prices,
                native_step=targets.step,
                series=len(targets.ids),
                density=density,
                changed=partial(self.fetcher.seen.share, targets.ids, query.span),
                kept=self._kept(query, entry, targets),
                cold=entry.cold_share(query.span),
            )
        least = 0 if may_be_finer else targets.step or 0
        if query.asked.grid is not None and query.asked.grid.step.approximate_us < least:
            await self._refuse_finer(with_time_left(asked, started), entry, targets)
        return Work(asked, entry, targets, plan, started)

    def _kept(self, query: Query, entry: Entry, targets: Targets) -> Kept | None:
        """Return what says how much of a plan is remembered, where answers are."""
        if self._cache is None or not query.is_cached:
            return None
        return partial(self._cache.share, query, entry, targets)

    async def answer(self, work: Work, *, is_missing: bool = False) -> Columns:
        """Carry out a plan; ``is_missing``: it was looked for where spans are shared."""
        if self._cache is None or not work.query.is_cached:
            found = await self.fetcher.fetch(work)
        else:
            found = await self._cache.fetch(work, self.fetcher, is_missing=is_missing)
        check_time(work.query, work.started)
        await self._confirm(work, found)
        if not found.is_fetched and self.shortcuts is not None:
            self.shortcuts.learn(work)
        return await self.finish(work, found)

    async def _confirm(self, work: Work, found: Found) -> None:
        """Ask whether series without points are still those we remember: a round trip then.

        Where nothing was fetched, too, but no more often than the answer may be old.
        """
        ids, names, table = work.targets.ids, work.targets.names, found.table
        silent = {ids[code]: names[code] for code in table.silent(len(ids))}
        if len(table) and not silent:
            return
        key, now = (work.entry.id, tuple(silent)), time.monotonic()
        is_held = self._cache is not None and not found.is_fetched
        age = self._cache.age_of(work.query, work.entry) if self._cache is not None else 0.0
        if is_held and now - self._confirmed.get(key, -math.inf) < age:
            return
        await self._directory.confirm(work.entry, silent, timeout=time_left(work))
        if len(self._confirmed) >= _MOST_CONFIRMED:
            self._confirmed.clear()
        self._confirmed[key] = now

    async def explain(self, query: Query, *, analyze: bool = False) -> Explanation:
        """Return the plan, its statement and what the database's EXPLAIN says of it."""
        work = await self.prepare(query)
        statement, params = self.fetcher.statement(work)
        options = b"(ANALYZE, BUFFERS) " if analyze else b""
        rows = await self._driver.fetch(b"EXPLAIN " + options + statement, params)
        said = "\n".join(row[0] for row in rows)
        return Explanation(work.plan, statement.decode(), said, params)

    async def _targets(self, query: Query, entry: Entry) -> Targets:
        if query.asked.series is not None:
            names = query.asked.series
            found = await self._directory.series(entry, names, timeout=query.timeout)
        elif self._asks_at_once(query, entry):
            # in the same statement: one round trip, however many series carry the labels
            labels = json.dumps(dict(query.asked.labels or {}))
            params: Params = {"dataset_id": entry.id, "labels": labels}
            return Targets((), (), "labels", params, None)
        else:  # a long read is cut into pieces by series and time
            labelled = query.asked.labels
            found = await self._directory.list_series(entry, labelled, timeout=query.timeout)
        if len(found) == 1:
            one = found[0]
            return Targets((one.name,), (one.id,), "one", {"id": one.id}, one.step, (one.step,))
        steps = tuple([s.step for s in found])
        step = None if None in steps else min((s for s in steps if s is not None), default=None)
        ids = tuple([s.id for s in found])
        names = tuple([s.name for s in found])
        return Targets(names, ids, compose.source_of(ids), compose.ids_params(ids), step, steps)

    def _asks_at_once(self, query: Query, entry: Entry) -> bool:
        """Whether labels go into the statement itself; the cache needs to know the series."""
        if self._cache is not None and query.is_cached:
            return False
        return query.span.width <= Step.parse(entry.dataset.partition).approximate_us

    async def _refuse_finer(self, query: Query, entry: Entry, targets: Targets) -> None:
        # the recorded steps may be out of date: look before refusing
        assert query.asked.grid is not None
        wanted = query.asked.grid.step.approximate_us
        coarse: tuple[str, int] | None = None
        started = time.perf_counter()
        for series in await self._directory.series(entry, targets.names, timeout=query.timeout):
            now = with_time_left(query, started)
            finest = await self._finest_distance(now, entry, series.id)
            if finest is None:
                continue
            if series.step is not None and finest < series.step and self._directory.may_write:
                finer = {series.name: finest}
                await self._directory.make_series(entry, finer, timeout=now.timeout)
            if finest <= wanted:
                return
            coarse = coarse or (series.name, finest)
        if coarse is not None:
            raise QueryError(
                f"step {query.asked.grid.step} is finer than series {coarse[0]!r}, "
                f"which has a point every {timedelta(microseconds=coarse[1])}"
            )

    async def _finest_distance(self, query: Query, entry: Entry, series_id: int) -> int | None:
        if entry.is_cold(query.span):
            return await cold.finest_distance(self.fetcher, query, entry, series_id)
        points = statements.name(entry.schema, entry.dataset.name)
        statement = statements.compose("read/find_finest", points=points)
        params = {"id": series_id, **range_params(query.span)}
        rows = await self._driver.fetch(statement, params, timeout=query.timeout)
        apart: timedelta | None = rows[0][0]
        return apart // timedelta(microseconds=1) if apart is not None else None

    async def _density_of_chart(self, query: Query, entry: Entry, targets: Targets) -> Density:
        most = self._limits.chart_points
        if targets.step is not None and not entry.is_frozen(query.span):
            density = await self.density(query, entry, targets, 1)
            count = density.extent.width // targets.step + 1
            if count <= most:  # that many if there is no gap: no need to count them
                return replace(density, count=count if density.count else 0)
        return await self.density(query, entry, targets, most + 1)

    async def density(self, query: Query, entry: Entry, targets: Targets, cap: int) -> Density:
        """Measure how dense the range is; where points of it may be gone, it counts as dense."""
        density = await self.fetcher.density(query, entry, targets, cap)
        if not entry.rollups or not entry.is_frozen(query.span):
            return density
        coarsest, span = entry.rollups[-1], query.span
        around = Span(max(coarsest.grid.floor_one(span.start), EARLIEST), span.end)
        text = compose.extent_statement(entry, coarsest, source=targets.source)
        params = {**targets.params, **range_params(around)}
        first, last = (await self._driver.fetch(text, params, timeout=query.timeout))[0]
        if first is None:
            return density
        extent = Span(to_us(first), coarsest.grid.ceil_one(to_us(last) + 1)).clip(span)
        if density.count:
            low, high = density.extent.start, density.extent.end
            extent = Span(min(extent.start, low), max(extent.end, high))
        many = max(self._limits.chart_points, self._limits.aggregated, density.count) + 1
        return Density(many, extent)

    async def finish(self, work: Work, found: Found) -> Columns:
        """Turn what was found into the answer: groups, picture, averages, order."""
        query, plan, dataset = work.query, work.plan, work.entry.dataset
        table, names = found.table, found.names
        if query.asked.group_by is not None:
            names, groups = await self._groups(work, query.asked.group_by, names)
            table = group_series(table, plan.states, groups)
        if query.asked.points is not None:
            points = query.asked.points
            table = await self.fetcher.compute(
                len(table), shape.picked, table, plan, dataset, points
            )
        seq = None
        if plan.grid is None:
            values: Mapping[str, Any] = {c: table.values[c] for c in plan.columns}
            categories: Mapping[str, tuple[str, ...]] = table.categories
            seq = table.values.get("seq") if query.asked.points is None else None  # bars have none
        else:
            values, categories = finish(table, plan.aggregates, dataset)
        types = work.entry.once(("types", query.asked, plan.grid), lambda: types_of(plan, dataset))
        series, ts = table.series, table.ts
        rows = shape.ordered(query, plan, series, len(ts))
        if rows is not None:
            series, ts = series[rows], ts[rows]
            values = {n: v[rows] for n, v in values.items()}
            seq = seq[rows] if seq is not None else None
        elapsed = (time.perf_counter() - work.started) * 1000
        node = self._driver.node
        done = plan.done(query.span, found.sources, node, elapsed)
        return Columns(names, series, ts, values, {**types}, categories, seq, done)

    async def _groups(
        self, work: Work, label: str, names: tuple[str, ...]
    ) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
        directory, entry, left = self._directory, work.entry, time_left(work)
        series = await directory.series(entry, names, timeout=left) if names else []
        ids = [s.id for s in series]
        fresh = await directory.series_by_id(entry, ids, timeout=time_left(work))
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
