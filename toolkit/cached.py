"""The road of a read through the cache: held spans, what is missing from the database, joined."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from toolkit.cache import Fill, Held, Key, Level, Memory, level_of_points, level_of_rollup
from toolkit.cache.policy import Policy
from toolkit.catalog import Entry
from toolkit.columns import unite
from toolkit.config import CacheOptions
from toolkit.drivers import Driver
from toolkit.fetcher import Fetcher
from toolkit.follower import Follower
from toolkit.query import Asked, Query
from toolkit.reduce import Table, bucket_points, merge
from toolkit.strategy import Plan, compose
from toolkit.timegrid import SECOND, Span
from toolkit.work import Found, Targets, Work, is_backwards, point_columns, time_left

_GRACE = 10 * SECOND  # what has just closed is often written a moment later
_MOST_SPANS = 2_000  # of one read; what is longer goes past the cache
_SHARE = 4  # what would take more than one part in so many of the memory goes past it, too


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one series in ``[low, high)``, and where they come from.

    Held, or fetched as ``[begin, end)``: with a key to be held from then on, else the part only.
    """

    series: int
    level: Level
    low: int
    high: int
    begin: int
    end: int
    key: Key | None = None
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one series in order of time."""

    ts: Any
    values: Mapping[str, Any]
    categories: Mapping[str, tuple[str, ...]]

    def copy(self) -> _Rows:
        """Return the same rows in arrays of their own."""
        return replace(
            self, ts=self.ts.copy(), values={n: v.copy() for n, v in self.values.items()}
        )


class Cache:
    """What a store remembers, and the road of a read through it."""

    def __init__(
        self,
        driver: Driver,
        options: CacheOptions,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.memory = Memory(options.memory << 20)
        self.follower = Follower(driver, self.memory, clock)
        self._driver = driver
        self._policy = Policy(options.max_age, wall)
        self._clock = clock
        self._wall = wall
        self._owner = os.getpid()

    async def fetch(self, work: Work, fetcher: Fetcher) -> Found:
        """Return what the plan needs, no older than the query allows."""
        levels = self._levels(work)
        if levels is None:
            return await fetcher.fetch(work)
        if self._owner != os.getpid():
            self._begin_anew()
        fresh, now = work.query.freshness, self._clock()
        since = now - (self._policy.max_age if fresh.max_age is None else fresh.max_age)
        if not self.follower.knows(work.entry, since, own=fresh.sees_own):
            await self.follower.know(work.entry, since, own=fresh.sees_own, timeout=time_left(work))
        if len(levels) == 1:
            table = self._held_whole(work, *levels[0], now)
            if table is not None:
                return await self._computed(work, table, {"memory": len(table)}, fetcher)
        parts = [p for series, level in levels for p in self._parts(work, series, level, now)]
        fetched: dict[_Part, _Rows] = {}
        touched: dict[str, int] = {}
        for group in _grouped(parts):
            found = await self._group(work, group, fetcher)
            fetched |= _cuts(work, group, found)
            for source, count in found.sources.items():
                touched[source] = touched.get(source, 0) + count
        table, held = self._joined(work, parts, fetched)
        sources = {"memory": held, **touched} if held or not fetched else touched
        return await self._computed(work, table, sources, fetcher, is_fetched=bool(fetched))

    def forget(self, entry: Entry, series: Iterable[int], span: Span) -> int:
        """Drop what is held of series in a range; return how many spans that were."""
        return sum(self.memory.drop(entry.id, i, span.start, span.end) for i in series)

    def stats(self) -> dict[str, float]:
        """Return plain counters, in spans and bytes."""
        found: dict[str, float] = {f"cache_{k}": v for k, v in asdict(self.memory.counts).items()}
        return {**found, "cache_spans": len(self.memory), "cache_bytes": self.memory.size}

    def _begin_anew(self) -> None:
        """In a forked child: whoever held our locks is not here."""
        self.memory = Memory(self.memory.most)
        self.follower = Follower(self._driver, self.memory, self._clock)
        self._owner = os.getpid()

    # -- what there is -------------------------------------------------------------------------

    def _levels(self, work: Work) -> list[tuple[int, Level]] | None:
        """Return the level that each series is read at; None where the cache is no help."""
        asked, entry, plan = work.query.asked, work.entry, work.plan
        if not work.query.is_cached or asked.where or plan.strategy == "aggregated":
            return None
        if work.targets.source == "labels" or (asked.limit is not None and plan.grid is None):
            return None
        if plan.rollup is not None:
            level = level_of_rollup(entry, plan.rollup)
            levels = [(i, level) for i in work.targets.ids]
        else:
            found = zip(work.targets.ids, work.targets.steps, strict=True)
            levels = [(i, level_of_points(entry, step)) for i, step in found]
        width, columns = work.query.span.width, len(entry.dataset.columns) + 2
        if len(levels) == 1 and width <= levels[0][1].length:
            return levels
        spans = sum([width // level.length + 2 for _, level in levels])
        size = sum([width // level.step * 8 * columns for _, level in levels])
        if spans > _MOST_SPANS or size * _SHARE > self.memory.most:
            return None
        return levels

    def _parts(self, work: Work, series: int, level: Level, now: float) -> Iterator[_Part]:
        """Cut a series' range into parts that are held and parts that are not."""
        low, high = work.query.span.start, work.query.span.end
        first, last = (low, high) if level.rollup is None else level.whole(low, high)
        if first >= last:
            yield _Part(series, level, low, high, low, high)
            return
        if low < first:
            yield _Part(series, level, low, first, low, first)
        for start in range(level.floor(first), last, level.length):
            key = (level.key, series, start)
            held = self.memory.get(key, now)
            begin, end = max(start, first), min(start + level.length, last)
            if held is None:
                closed = level.closed(int(self._wall() * SECOND) - _GRACE)
                upto = min(start + level.length, closed)
                if begin < upto:
                    middle = min(end, upto)
                    yield _Part(series, level, begin, middle, start, upto, key)
                    begin = middle
            elif begin < held.upto:
                middle = min(end, held.upto)
                yield _Part(series, level, begin, middle, begin, middle, key, held)
                begin = middle
            if begin < end:
                yield _Part(series, level, begin, end, begin, end)
        if last < high:
            yield _Part(series, level, last, high, last, high)

    # -- what there is not ---------------------------------------------------------------------

    async def _group(self, work: Work, group: tuple[_Part, ...], fetcher: Fetcher) -> Found:
        """Fetch parts that are one range of time, of one series or of several."""
        wanted = self._work(work, group)
        filled = [p for p in group if p.key is not None]
        if not filled:
            return await fetcher.fetch(wanted)
        name = ("fill", wanted.query.span, *[(p.key, p.begin, p.end) for p in filled])
        while True:
            mine: list[Fill] = []
            found, fill = await self._driver.once(
                name, partial(self._fill, work, wanted, filled, fetcher, mine)
            )
            # another's is good enough, unless we have heard of a change since it began
            if mine or not fill.is_spoiled:
                return found

    async def _fill(
        self,
        work: Work,
        wanted: Work,
        parts: Sequence[_Part],
        fetcher: Fetcher,
        mine: list[Fill],
    ) -> tuple[Found, Fill]:
        """Fetch, and hold from then on the spans of ``parts``; tell ``mine`` that it was us."""
        keys = [p.key for p in parts if p.key is not None]
        fill = self.memory.begin(keys, parts[0].begin, max(p.end for p in parts))
        mine.append(fill)
        held: dict[Key, Held] = {}
        try:
            found = await fetcher.fetch(wanted)
            held = self._held(work, parts, found)
            return found, fill
        finally:
            self.memory.end(fill, held)

    def _held(self, work: Work, parts: Sequence[_Part], found: Found) -> dict[Key, Held]:
        now, code_of = self._clock(), _codes(work, found)
        held = {}
        for part in parts:
            assert part.key is not None
            rows = _cut(found.table, code_of[part.series], part.begin, part.end)
            if len(parts) > 1:  # a part of an array keeps all of it in memory
                rows = rows.copy()
            life = self._policy.life(work.entry.dataset, part.level, part.end)
            held[part.key] = Held(
                part.begin,
                part.end,
                rows.ts,
                np.zeros(len(rows.ts), np.int32),
                rows.values,
                rows.categories,
                now + life,
            )
        return held

    def _work(self, work: Work, group: tuple[_Part, ...]) -> Work:
        """Return the work of fetching a group: every column of its level, so that all can share."""
        entry, level, dataset = work.entry, group[0].level, work.entry.dataset
        ids = tuple(dict.fromkeys(p.series for p in group))
        index = {i: at for at, i in enumerate(work.targets.ids)}
        at = [index[i] for i in ids]
        targets = Targets(
            tuple(work.targets.names[i] for i in at),
            ids,
            compose.source_of(ids),
            compose.ids_params(ids),
            work.targets.step,
            tuple(work.targets.steps[i] for i in at),
        )
        asked = entry.once(
            ("asked by the cache", level.key), lambda: Asked(entry.dataset.name, None)
        )
        span = Span(group[0].begin, max(p.end for p in group))
        if level.rollup is None:
            plan = Plan("direct", "", span, dataset.names)
        else:
            states = dataset.states
            plan = Plan("downsampled", "", span, (), level.rollup.grid, (), states, level.rollup)
        query = Query(asked, span, time_left(work), is_cached=False)
        return Work(query, entry, targets, plan, time.perf_counter())

    # -- all of it -----------------------------------------------------------------------------

    def _held_whole(self, work: Work, series: int, level: Level, now: float) -> Table | None:
        """Return a range of one series that is held in one piece: what most reads ask for."""
        span = work.query.span
        start = level.floor(span.start)
        if span.end > start + level.length or is_backwards(work.query, work.plan):
            return None
        if level.rollup is not None and level.whole(span.start, span.end) != (span.start, span.end):
            return None
        held = self.memory.peek((level.key, series, start), now)
        if held is None or held.upto < span.end:
            return None
        names = self._names(work)
        if span.start == start and span.end == held.upto:
            values = {n: held.values[n] for n in names}
            return Table(held.codes, held.ts, values, held.categories)
        a, b = held.ts.searchsorted((span.start, span.end)).tolist()
        values = {n: held.values[n][a:b] for n in names}
        return Table(held.codes[a:b], held.ts[a:b], values, held.categories)

    def _names(self, work: Work) -> tuple[str, ...]:
        """Return the columns of a level that the plan is answered from."""
        plan, dataset = work.plan, work.entry.dataset

        def make() -> tuple[str, ...]:
            if plan.rollup is not None:
                return tuple(s.name for s in plan.states)
            names = point_columns(work.query, dataset, plan)
            return ("seq", *names) if dataset.has_seq else names

        names: tuple[str, ...] = work.entry.once(("names", work.query.asked, plan.grid), make)
        return names

    def _joined(
        self, work: Work, parts: Sequence[_Part], fetched: Mapping[_Part, _Rows]
    ) -> tuple[Table, int]:
        """Return all parts as one table, and how many of its rows were held."""
        code_of = {series: code for code, series in enumerate(work.targets.ids)}
        rows, codes, held = [], [], 0
        for part in parts:
            if part.held is None:
                piece = fetched[part]
            else:
                piece = _part_of(part)
                held += len(piece.ts)
            rows.append(piece)
            codes.append(code_of[part.series])
        table = _concatenated(rows, codes, self._names(work))
        if is_backwards(work.query, work.plan):
            table = table.take(np.lexsort((np.arange(len(table))[::-1], table.series)))
        return table, held

    async def _computed(
        self,
        work: Work,
        table: Table,
        sources: Mapping[str, int],
        fetcher: Fetcher,
        *,
        is_fetched: bool = False,
    ) -> Found:
        """Return what was found at a level as what the plan needs: its own buckets."""
        plan, count = work.plan, len(table)
        if plan.grid is not None and plan.rollup is None:
            is_added = work.query.asked.group_by is not None
            how = (plan.states, work.entry.dataset, plan.grid, is_added)
            table = await fetcher.compute(count, bucket_points, table, *how)
        elif plan.rollup is not None and plan.grid != plan.rollup.grid:
            table = await fetcher.compute(count, merge, table, plan.states, plan.grid)
        return Found(table, work.targets.names, sources, is_fetched)


def _grouped(parts: Sequence[_Part]) -> list[tuple[_Part, ...]]:
    """Return what is to be fetched, as few ranges: neighbours in time, then the same of others."""
    runs: list[list[_Part]] = []
    for part in parts:
        if part.held is not None:
            continue
        last = runs[-1][-1] if runs else None
        if last is not None and last.series == part.series and last.end == part.begin:
            runs[-1].append(part)
        else:
            runs.append([part])
    together: dict[Any, list[_Part]] = {}
    for run in runs:
        shape = (run[0].level.key, run[0].begin, run[-1].end)
        together.setdefault(shape, []).extend(run)
    return [tuple(group) for group in together.values()]


def _cuts(work: Work, group: tuple[_Part, ...], found: Found) -> dict[_Part, _Rows]:
    """Return the rows of each part of a group."""
    code_of = _codes(work, found)
    rows = {}
    for part in group:
        begin = part.low if part.level.rollup is None else part.level.within(part.low)
        rows[part] = _cut(found.table, code_of[part.series], begin, part.high)
    return rows


def _codes(work: Work, found: Found) -> dict[int, int]:
    """Return the code that each series id has in what was found."""
    code_of = {name: code for code, name in enumerate(found.names)}
    pairs = zip(work.targets.ids, work.targets.names, strict=True)
    return {i: code_of[n] for i, n in pairs if n in code_of}


def _cut(table: Table, code: int, begin: int, end: int) -> _Rows:
    """Return the rows of one series in ``[begin, end)``."""
    low, high = np.searchsorted(table.series, (code, code + 1))
    a, b = low + np.searchsorted(table.ts[low:high], (begin, end))
    values = {n: v[a:b] for n, v in table.values.items()}
    return _Rows(table.ts[a:b], values, dict(table.categories))


def _part_of(part: _Part) -> _Rows:
    """Return the rows of a part that is held."""
    held = part.held
    assert held is not None
    if part.low == held.start and part.high == held.upto:
        return _Rows(held.ts, held.values, held.categories)
    a, b = held.ts.searchsorted((part.low, part.high))
    return _Rows(held.ts[a:b], {n: v[a:b] for n, v in held.values.items()}, held.categories)


def _concatenated(rows: Sequence[_Rows], codes: Sequence[int], names: Sequence[str]) -> Table:
    """Return rows of one or more series as one table."""
    if len(rows) == 1:
        only = rows[0]
        values = {n: only.values[n] for n in names}
        return Table(np.full(len(only.ts), codes[0], np.int32), only.ts, values, only.categories)
    ts = np.concatenate([r.ts for r in rows])
    series = np.repeat(np.array(codes, np.int32), [len(r.ts) for r in rows])
    values, categories = {}, {}
    for name in names:
        if name in rows[0].categories:
            pairs = [(r.categories[name], r.values[name]) for r in rows]
            categories[name], values[name] = unite(pairs)
        else:
            values[name] = np.concatenate([r.values[name] for r in rows])
    return Table(series, ts, values, categories)
