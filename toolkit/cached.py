"""The road of a read through the cache: held spans, what is missing from the database, joined."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import inf
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from toolkit import shelved
from toolkit.cache import Fill, Held, Key, Level, Memory, level_of_points, level_of_rollup
from toolkit.cache.parts import Part, Rows, grouped
from toolkit.cache.policy import Policy
from toolkit.catalog import Entry, Rollup
from toolkit.drivers import Driver
from toolkit.fetcher import Fetcher
from toolkit.follower import Follower
from toolkit.options import CacheOptions
from toolkit.pieces import cuts_of, joined, parts_of, spans_of, work_of
from toolkit.query import Query
from toolkit.reduce import Table, bucket_points, merge
from toolkit.rules import CacheRule
from toolkit.shared import Shared, Tier
from toolkit.timegrid import SECOND, Span
from toolkit.work import Found, Targets, Work, time_left

if TYPE_CHECKING:
    from toolkit.drivers.shelf import Shelf

_GRACE = 10 * SECOND  # what has just closed is often written a moment later
_MOST_SPANS = 2_000  # of one read; what is longer goes past the cache
_TURN = 0.005  # seconds between two looks whether another process is done
_LOOKS = 4  # at series, and at spans of each, to know how much of a plan is held
_SOON = 0.8  # the share of an age after which what has changed is asked in the background
_AHEAD_S = 2.0  # that such questions may take, and a store that closes waits for them
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
        *,
        has_replicas: bool = False,
    ) -> None:
        self.memory = Memory(options.memory << 20)
        self._policy = Policy(options, wall)
        self.shared = Shared(shelf, clock, self._policy) if shelf is not None else None
        self._has_replicas = has_replicas
        self._driver, self._clock = driver, clock
        self.follower = self._follower()
        self._max_age = options.max_age
        self._soon = _SOON if options.ahead else 1.0
        self._wall = wall
        self._owner = os.getpid()

    async def fetch(self, work: Work, fetcher: Fetcher, *, is_missing: bool = False) -> Found:
        """Return what the plan needs, no older than the query allows.

        ``is_missing``: that the second tier does not have it has just been seen.
        """
        plan = work.plan
        levels = self._levels(work.query, work.entry, work.targets, plan.strategy, plan.rollup)
        if not levels or (work.query.asked.limit is not None and plan.grid is None):
            return await fetcher.fetch(work)
        if self._owner != os.getpid():
            self._begin_anew()
        entry, now = work.entry, self._clock()
        since = await self._known(work, now)
        rules = {(level.key, s): self._policy.rule(entry, level) for s, level in levels}
        fetched: dict[Part, Rows] = {}
        touched: dict[str, int] = {}
        done = False
        while not done:
            held = self._look_up(work, levels, now, since)
            if self.shared is not None and not is_missing:
                missing = self._missing(work, levels, held)
                held |= await self._find(entry, missing, rules, work.shared)
            is_missing = False
            closed = int(self._wall() * SECOND) - _GRACE
            parts = [p for s, level in levels for p in parts_of(work, s, level, held, closed)]
            done = True
            for group in grouped(parts):
                if all(part in fetched for part in group):
                    continue
                found = await self._group(work, group, fetcher)
                if found is None:
                    done = False  # others have fetched it meanwhile: look again
                    break
                fetched |= cuts_of(work, group, found)
                for source, count in found.sources.items():
                    touched[source] = touched.get(source, 0) + count
        self._ask_ahead(work, parts, now, fetcher)
        table, counts = joined(work, parts, fetched)
        sources = {**counts, **touched}
        return await self._computed(work, table, sources, fetcher, is_fetched=bool(fetched))

    def share(
        self, query: Query, entry: Entry, targets: Targets, strategy: str, rollup: Rollup | None
    ) -> tuple[float, float] | None:
        """Return about how many of a plan's rows are held here, and how many a read would fetch.

        Only peeks, into a few spans; None where the read goes past the cache.
        """
        levels = self._levels(query, entry, targets, strategy, rollup)
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

    async def wrote(self, entry: Entry) -> None:
        """Hear of what this store has written, or may have."""
        if self._owner != os.getpid():
            self._begin_anew()
        await self.follower.wrote(entry)

    async def forget(self, entry: Entry, series: Collection[int] | None, span: Span) -> int:
        """Drop what is held of series (None: of all, ever) in a range; return how many spans.

        Those that are shared go first: what is found before they have gone is dropped here, too.
        """
        if self._owner != os.getpid():
            self._begin_anew()
        try:
            if self.shared is not None:
                await self.follower.know(entry, self._clock())
                tier = self.follower.place(entry).tier
                if tier is not None:
                    await shelved.forget(self.shared, tier, entry, series, span)
        finally:
            drop, low, high = self.memory.drop, span.start, span.end
            some = (drop(entry.id, i, low, high) for i in series or ())
            dropped = self.memory.drop_all(entry.id) if series is None else sum(some)
        return dropped

    def age_of(self, query: Query, entry: Entry) -> float:
        """Return how many seconds old an answer may be."""
        age, token = query.freshness.max_age, query.freshness.token
        if token is not None and not self.follower.covers(entry, token):
            return 0.0
        return self._max_age if age is None else age

    def stats(self) -> dict[str, float]:
        """Return plain counters, in spans and bytes."""
        found: dict[str, float] = {f"cache_{k}": v for k, v in asdict(self.memory.counts).items()}
        shared = self.shared.stats() if self.shared is not None else {}
        return {**found, **shared, "cache_spans": len(self.memory), "cache_bytes": self.memory.size}

    def _follower(self) -> Follower:
        return Follower(
            self._driver, self.memory, self._clock, self.shared, has_replicas=self._has_replicas
        )

    def _begin_anew(self) -> None:
        """In a forked child: whoever held our locks is not here."""
        self.memory = Memory(self.memory.most)
        self.follower = self._follower()
        self._owner = os.getpid()

    # -- what there is -------------------------------------------------------------------------

    def _levels(
        self, query: Query, entry: Entry, targets: Targets, strategy: str, rollup: Rollup | None
    ) -> list[tuple[int, Level]] | None:
        """Return the level that each series is read at; None where the cache is no help."""
        asked = query.asked
        if not query.is_cached or asked.where or strategy == "aggregated":
            return None
        if targets.source == "labels":
            return None
        if rollup is not None:
            level = level_of_rollup(entry, rollup)
            levels = [(i, level) for i in targets.ids]
        else:
            found = zip(targets.ids, targets.steps, strict=True)
            levels = [(i, level_of_points(entry, step)) for i, step in found]
        if rollup is None and entry.frozen_before is not None:
            # who has not heard of the mark yet must not find points there that others have read
            start = query.span.start
            if any(level.floor(start) < entry.frozen_before for _, level in levels):
                return None
        width, columns = query.span.width, len(entry.dataset.columns) + 2
        for _, level in levels:
            tiers = self._policy.rule(entry, level).tiers
            if not tiers or (self.shared is None and "memory" not in tiers):
                return None
        if len(levels) == 1 and width <= levels[0][1].length:
            return levels
        spans = sum([width // level.length + 2 for _, level in levels])
        size = sum([width // level.step * 8 * columns for _, level in levels])
        if spans > _MOST_SPANS or size * _SHARE > self.memory.most:
            return None
        return levels

    async def _known(self, work: Work, now: float) -> float:
        """Know of changes what the query wants to; return since when an answer may be outdated.

        What it will have to know soon is asked in the background, so that nobody waits for it.
        """
        entry, fresh = work.entry, work.query.freshness
        age = self.age_of(work.query, entry)
        follower, own = self.follower, fresh.sees_own
        if not follower.knows(entry, now - age, own=own):
            await follower.know(entry, now - age, own=own, timeout=time_left(work))
        elif not follower.knows(entry, now - age * self._soon, own=own):
            look = partial(follower.know, entry, now, timeout=_AHEAD_S)
            self._driver.later(("look", entry.id), look)
        return inf if own else now - age

    def _keys(self, work: Work, levels: Sequence[tuple[int, Level]]) -> Iterator[Key]:
        low, high = work.query.span.start, work.query.span.end
        for series, level in levels:
            for start in range(level.floor(low), high, level.length):
                yield level.key, series, start

    def _look_up(
        self, work: Work, levels: Sequence[tuple[int, Level]], now: float, since: float
    ) -> dict[Key, Held]:
        """Return the spans of a range that are held here, and are right or were at ``since``."""
        found = ((k, self.memory.get(k, now, since)) for k in self._keys(work, levels))
        return {k: held for k, held in found if held is not None}

    def _missing(
        self, work: Work, levels: Sequence[tuple[int, Level]], held: Mapping[Key, Held]
    ) -> list[Key]:
        return [k for k in self._keys(work, levels) if k not in held]

    async def _find(
        self,
        entry: Entry,
        keys: Sequence[Key],
        rules: Mapping[Any, CacheRule],
        seen: set[Key],
        *,
        is_again: bool = False,
    ) -> dict[Key, Held]:
        """Take spans from the second tier into the first; ``seen`` gathers them for the plan."""
        place = self.follower.place(entry)
        keys = [k for k in keys if "redis" in rules[k[:2]].tiers]
        if self.shared is None or place.tier is None or not keys:
            return {}
        fill = self.memory.begin(keys, min(k[2] for k in keys), max(k[2] + k[0][2] for k in keys))
        kept: dict[Key, Held] = {}
        try:
            found = await self.shared.find(place.tier, keys, place.snapshot, is_again=is_again)
            kept = {k: h for k, h in found.items() if "memory" in rules[k[:2]].tiers}
            seen.update(found)
            return found
        finally:
            self.memory.end(fill, kept)
            self.memory.leave(fill)

    def _ask_ahead(self, work: Work, parts: Sequence[Part], now: float, fetcher: Fetcher) -> None:
        """Have spans fetched anew that are due, or were good enough though they have changed."""
        for part in parts:
            held = part.held
            if held is None or part.key is None or not self._soon < 1.0:
                continue
            if held.due <= now or held.right_until < inf:
                anew = partial(self._fetch_anew, work, part, fetcher)
                self._driver.later(("anew", part.key), anew)

    async def _fetch_anew(self, work: Work, part: Part, fetcher: Fetcher) -> None:
        level, key = part.level, part.key
        assert key is not None
        begin = key[2]
        end = min(begin + level.length, level.closed(int(self._wall() * SECOND) - _GRACE))
        if begin < end:
            whole = Part(part.series, level, begin, end, begin, end, key)
            query = replace(work.query, timeout=_AHEAD_S)
            mine = replace(work, query=query, started=time.perf_counter(), shared=set())
            await self._group(mine, (whole,), fetcher)

    # -- what there is not ---------------------------------------------------------------------

    async def _group(self, work: Work, group: tuple[Part, ...], fetcher: Fetcher) -> Found | None:
        """Fetch parts that are one range of time; None if another process has held them now."""
        wanted = work_of(work, group)
        filled = [p for p in group if p.key is not None]
        if not filled:
            return await fetcher.fetch(wanted)
        name = ("fill", wanted.query.span, *[(p.key, p.begin, p.end) for p in filled])
        while True:
            mine: list[Fill] = []
            try:
                fetch = partial(self._fill, work, wanted, filled, fetcher, mine)
                found, fill = await self._driver.once(name, fetch, time_left(work))
            finally:
                for one in mine:
                    self.memory.leave(one)
            if not mine:
                self.memory.counts.waits += 1
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
        rule = self._policy.rule(work.entry, parts[0].level)
        rules = {key[:2]: rule for key in keys}
        tier = self.follower.place(work.entry).tier if "redis" in rule.tiers else None
        token = token_hex(8)
        try:
            if self.memory.has(keys, self._clock()):  # another was done a moment ago
                return None, fill
            if tier is not None and not await self._has_lease(work, tier, keys, rules, token):
                return None, fill
            cursor = tier.cursor if tier is not None else None
            # what others have put under the cursor may be younger than our last look
            position = None if tier is not None else self.follower.place(work.entry).position
            if not await fetcher.reach(position):
                fill.is_spoiled = True  # a replica behind: good enough for who asked, not for all
            found = await fetcher.fetch(wanted)
            held = spans_of(work, parts, found, self._policy, self._clock())
            for one in held.values():  # callers that wait share them, wherever they are held
                one.lock_up()
            is_kept = self.memory.end(fill, held if "memory" in rule.tiers else {})
            if self.shared is not None and tier is not None and cursor is not None and is_kept:
                await self.shared.keep(tier, cursor, held)
            return found, fill
        finally:
            self.memory.end(fill, {})
            if self.shared is not None and tier is not None:
                await self.shared.release(tier, keys[0], token)

    async def _has_lease(
        self,
        work: Work,
        tier: Tier,
        keys: Sequence[Key],
        rules: Mapping[Any, CacheRule],
        token: str,
    ) -> bool:
        """Return whether the fetch is ours; else another process has ended it meanwhile."""
        assert self.shared is not None
        has_waited = False
        while True:
            is_ours = await self.shared.lease(tier, keys[0], token)
            # also if it is: it may have been given back a moment ago
            there = await self._find(work.entry, keys, rules, work.shared, is_again=True)
            if sum(held.due > self._clock() for held in there.values()) == len(keys):
                return False
            left = time_left(work)
            if is_ours or (left is not None and left <= _TURN):
                return True
            self.shared.waits += not has_waited
            has_waited = True
            await self._driver.pause(_TURN)

    # -- all of it -----------------------------------------------------------------------------

    def held(self, entry: Entry, level: Level, series: int, query: Query) -> Held | None:
        """Return the one span that holds a range, if it is here and fresh enough."""
        key = self._only(entry, level, series, query)
        held = self.memory.peek(key, self._clock()) if key is not None else None
        return held if held is not None and query.span.end <= held.upto else None

    async def shared_span(
        self, entry: Entry, level: Level, series: int, query: Query
    ) -> tuple[Held | None, bool]:
        """Return the same from the second tier, and whether it was looked for there."""
        key = self._only(entry, level, series, query)
        if self.shared is None or key is None or self.memory.holds(key):
            return None, False
        rules = {(level.key, series): self._policy.rule(entry, level)}
        held = (await self._find(entry, [key], rules, set())).get(key)
        if held is None or query.span.end > held.upto or held.due <= self._clock():
            return None, held is None  # the long way fetches anew what is due
        return held, False

    def _only(self, entry: Entry, level: Level, series: int, query: Query) -> Key | None:
        """Return the key of the one span that a range lies in, if nothing has to be asked first."""
        if self._owner != os.getpid():
            self._begin_anew()
        fresh, span = query.freshness, query.span
        age = self.age_of(query, entry)
        start = level.floor(span.start)
        if span.end > start + level.length:
            return None
        if not self.follower.knows(entry, self._clock() - age * self._soon, own=fresh.sees_own):
            return None
        return level.key, series, start

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
