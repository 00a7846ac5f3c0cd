"""The road of a read through the cache: held spans, what is missing from the database, joined."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING

import numpy as np

from toolkit.cache import Fill, Held, Key, Level, Memory, level_of_points, level_of_rollup
from toolkit.cache.parts import Part, Rows, concatenated, cut, grouped, rows_of
from toolkit.cache.policy import Policy
from toolkit.catalog import Entry
from toolkit.config import CacheOptions
from toolkit.drivers import Driver
from toolkit.fetcher import Fetcher
from toolkit.follower import Follower
from toolkit.query import Asked, Query
from toolkit.reduce import Table, bucket_points, merge
from toolkit.shared import Shared, Tier
from toolkit.strategy import Plan, compose
from toolkit.timegrid import SECOND, Span
from toolkit.work import Found, Targets, Work, is_backwards, point_columns, time_left

if TYPE_CHECKING:
    from toolkit.drivers.shelf import Shelf

_GRACE = 10 * SECOND  # what has just closed is often written a moment later
_MOST_SPANS = 2_000  # of one read; what is longer goes past the cache
_TURN = 0.005  # seconds between two looks whether another process is done
_LOOKS = 4  # at series, and at spans of each, to know how much of a plan is held
_SHARE = 4  # what would take more than one part in so many of the memory goes past it, too


class Cache:
    """What a store remembers, and the road of a read through it."""

    def __init__(
        self,
        driver: Driver,
        options: CacheOptions,
        shelf: Shelf | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.memory = Memory(options.memory << 20)
        self.shared = Shared(shelf, clock) if shelf is not None else None
        self.follower = Follower(driver, self.memory, clock, self.shared)
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
        fetched: dict[Part, Rows] = {}
        touched: dict[str, int] = {}
        done = False
        while not done:
            held = await self._look_up(work, levels, now)
            parts = [p for series, level in levels for p in self._parts(work, series, level, held)]
            done = True
            for group in grouped(parts):
                if group[0] in fetched:
                    continue
                found = await self._group(work, group, fetcher)
                if found is None:
                    done = False  # others have fetched it meanwhile: look again
                    break
                fetched |= _cuts(work, group, found)
                for source, count in found.sources.items():
                    touched[source] = touched.get(source, 0) + count
        table, count = self._joined(work, parts, fetched)
        sources = {"memory": count, **touched} if count or not fetched else touched
        return await self._computed(work, table, sources, fetcher, is_fetched=bool(fetched))

    def share(
        self, query: Query, entry: Entry, targets: Targets, plan: Plan
    ) -> tuple[float, float] | None:
        """Return about how many rows of a plan are held here, and how many a read would fetch.

        Only peeks, into a few spans; None where the read goes past the cache.
        """
        levels = self._levels(Work(query, entry, targets, plan, 0.0))
        if not levels:
            return None
        span, looked, held, rows, whole = query.span, 0, 0, 0.0, 0.0
        for series, level in levels[:: -(-len(levels) // _LOOKS)]:
            starts = range(level.floor(span.start), max(span.end, span.start + 1), level.length)
            for start in starts[:: -(-len(starts) // _LOOKS)]:
                looked += 1
                held += self.memory.holds((level.key, series, start))
            rows += span.width / level.step
            whole += len(starts) * level.length / level.step
        many = len(levels) / len(levels[:: -(-len(levels) // _LOOKS)])
        return held / looked * rows * many, (1.0 - held / looked) * whole * many

    def forget(self, entry: Entry, series: Iterable[int], span: Span) -> int:
        """Drop what is held of series in a range; return how many spans that were."""
        return sum(self.memory.drop(entry.id, i, span.start, span.end) for i in series)

    def stats(self) -> dict[str, float]:
        """Return plain counters, in spans and bytes."""
        found: dict[str, float] = {f"cache_{k}": v for k, v in asdict(self.memory.counts).items()}
        shared = self.shared.stats() if self.shared is not None else {}
        return {**found, **shared, "cache_spans": len(self.memory), "cache_bytes": self.memory.size}

    def _begin_anew(self) -> None:
        """In a forked child: whoever held our locks is not here."""
        self.memory = Memory(self.memory.most)
        self.follower = Follower(self._driver, self.memory, self._clock, self.shared)
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

    async def _look_up(
        self, work: Work, levels: Sequence[tuple[int, Level]], now: float
    ) -> dict[Key, Held]:
        """Return the spans of a range that are held here, or by others."""
        low, high = work.query.span.start, work.query.span.end
        keys = [
            (level.key, series, start)
            for series, level in levels
            for start in range(level.floor(low), high, level.length)
        ]
        held = {k: h for k in keys if (h := self.memory.get(k, now)) is not None}
        missing = [k for k in keys if k not in held]
        return held | await self._find(work, missing) if missing else held

    async def _find(self, work: Work, keys: Sequence[Key]) -> dict[Key, Held]:
        """Take spans from the second tier into the first."""
        place = self.follower.place(work.entry)
        if self.shared is None or place.tier is None:
            return {}
        fill = self.memory.begin(keys, min(k[2] for k in keys), max(k[2] + k[0][2] for k in keys))
        found: dict[Key, Held] = {}
        try:
            found = await self.shared.find(place.tier, keys, place.snapshot)
            return found
        finally:
            self.memory.end(fill, found)
            self.memory.leave(fill)

    def _parts(
        self, work: Work, series: int, level: Level, found: Mapping[Key, Held]
    ) -> Iterator[Part]:
        """Cut a series' range into parts that are held and parts that are not."""
        low, high = work.query.span.start, work.query.span.end
        first, last = (low, high) if level.rollup is None else level.whole(low, high)
        if first >= last:
            yield Part(series, level, low, high, low, high)
            return
        if low < first:
            yield Part(series, level, low, first, low, first)
        for start in range(level.floor(first), last, level.length):
            key = (level.key, series, start)
            held = found.get(key)
            begin, end = max(start, first), min(start + level.length, last)
            if held is None:
                closed = level.closed(int(self._wall() * SECOND) - _GRACE)
                upto = min(start + level.length, closed)
                if begin < upto:
                    middle = min(end, upto)
                    yield Part(series, level, begin, middle, start, upto, key)
                    begin = middle
            elif begin < held.upto:
                middle = min(end, held.upto)
                yield Part(series, level, begin, middle, begin, middle, key, held)
                begin = middle
            if begin < end:
                yield Part(series, level, begin, end, begin, end)
        if last < high:
            yield Part(series, level, last, high, last, high)

    # -- what there is not ---------------------------------------------------------------------

    async def _group(self, work: Work, group: tuple[Part, ...], fetcher: Fetcher) -> Found | None:
        """Fetch parts that are one range of time; None if another process has held them now."""
        wanted = self._work(work, group)
        filled = [p for p in group if p.key is not None]
        if not filled:
            return await fetcher.fetch(wanted)
        name = ("fill", wanted.query.span, *[(p.key, p.begin, p.end) for p in filled])
        while True:
            mine: list[Fill] = []
            try:
                found, fill = await self._driver.once(
                    name, partial(self._fill, work, wanted, filled, fetcher, mine)
                )
            finally:
                for one in mine:
                    self.memory.leave(one)
            # another's is good enough, unless we have heard of a change since it began
            if mine or not fill.is_spoiled:
                return found

    async def _fill(
        self,
        work: Work,
        wanted: Work,
        parts: Sequence[Part],
        fetcher: Fetcher,
        mine: list[Fill],
    ) -> tuple[Found | None, Fill]:
        """Fetch, and hold from then on the spans of ``parts``; tell ``mine`` that it was us."""
        keys = [p.key for p in parts if p.key is not None]
        fill = self.memory.begin(keys, parts[0].begin, max(p.end for p in parts))
        mine.append(fill)
        held: dict[Key, Held] = {}
        tier, token = self.follower.place(work.entry).tier, token_hex(8)
        try:
            if self.memory.has(keys, self._clock()):  # another was done a moment ago
                return None, fill
            if tier is not None and not await self._has_lease(work, tier, keys, token):
                return None, fill
            cursor = tier.cursor if tier is not None else None
            found = await fetcher.fetch(wanted)
            held = self._held(work, parts, found)
            is_kept = self.memory.end(fill, held)
            if self.shared is not None and tier is not None and cursor is not None and is_kept:
                await self.shared.keep(tier, cursor, held)
            return found, fill
        finally:
            self.memory.end(fill, {})
            if self.shared is not None and tier is not None:
                await self.shared.release(tier, keys[0], token)

    async def _has_lease(self, work: Work, tier: Tier, keys: Sequence[Key], token: str) -> bool:
        """Return whether the fetch is ours; else another process has ended it meanwhile."""
        assert self.shared is not None
        while True:
            is_ours = await self.shared.lease(tier, keys[0], token)
            # also if it is: it may have been given back a moment ago
            if len(await self._find(work, keys)) == len(keys):
                return False
            left = time_left(work)
            if is_ours or (left is not None and left <= _TURN):
                return True
            await self._driver.pause(_TURN)

    def _held(self, work: Work, parts: Sequence[Part], found: Found) -> dict[Key, Held]:
        now, code_of = self._clock(), _codes(work, found)
        held = {}
        for part in parts:
            assert part.key is not None
            rows = cut(found.table, code_of[part.series], part.begin, part.end)
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

    def _work(self, work: Work, group: tuple[Part, ...]) -> Work:
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

    def held(self, entry: Entry, level: Level, series: int, query: Query) -> Held | None:
        """Return the one span that holds a range, if it is fresh enough."""
        if self._owner != os.getpid():
            self._begin_anew()
        fresh, span, now = query.freshness, query.span, self._clock()
        since = now - (self._policy.max_age if fresh.max_age is None else fresh.max_age)
        start = level.floor(span.start)
        if span.end > start + level.length:
            return None
        if not self.follower.knows(entry, since, own=fresh.sees_own):
            return None
        held = self.memory.peek((level.key, series, start), now)
        return held if held is not None and span.end <= held.upto else None

    def _names(self, work: Work) -> tuple[str, ...]:
        """Return the columns of a level that the plan is answered from."""
        plan, dataset = work.plan, work.entry.dataset

        def make() -> tuple[str, ...]:
            if plan.rollup is not None:
                return tuple(s.name for s in plan.states)
            names = point_columns(work.query, dataset, plan)
            return ("seq", *names) if dataset.has_seq else names

        key = ("names", work.query.asked, plan.grid, plan.strategy)
        names: tuple[str, ...] = work.entry.once(key, make)
        return names

    def _joined(
        self, work: Work, parts: Sequence[Part], fetched: Mapping[Part, Rows]
    ) -> tuple[Table, int]:
        """Return all parts as one table, and how many of its rows were held."""
        code_of = {series: code for code, series in enumerate(work.targets.ids)}
        rows, codes, held = [], [], 0
        for part in parts:
            if part.held is None:
                piece = fetched[part]
            else:
                piece = rows_of(part)
                held += len(piece.ts)
            rows.append(piece)
            codes.append(code_of[part.series])
        table = concatenated(rows, codes, self._names(work))
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


def _cuts(work: Work, group: tuple[Part, ...], found: Found) -> dict[Part, Rows]:
    """Return the rows of each part of a group."""
    code_of = _codes(work, found)
    rows = {}
    for part in group:
        begin = part.low if part.level.rollup is None else part.level.within(part.low)
        rows[part] = cut(found.table, code_of[part.series], begin, part.high)
    return rows


def _codes(work: Work, found: Found) -> dict[int, int]:
    """Return the code that each series id has in what was found."""
    code_of = {name: code for code, name in enumerate(found.names)}
    pairs = zip(work.targets.ids, work.targets.names, strict=True)
    return {i: code_of[n] for i, n in pairs if n in code_of}
