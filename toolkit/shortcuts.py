"""The short way of a read that was asked before and is held: nothing is looked up or planned."""

from __future__ import annotations

import time
from dataclasses import dataclass

from toolkit.cache import Held, Level, level_of_points
from toolkit.cached import Cache
from toolkit.catalog import Entry
from toolkit.columns import Columns
from toolkit.directory import Directory
from toolkit.query import Asked, Query
from toolkit.strategy import Plan
from toolkit.timegrid import Span
from toolkit.work import Work, types_of

_MOST = 4_096


@dataclass(frozen=True, slots=True)
class _Way:
    """All that was worked out for a question; the same for every range."""

    entry: Entry
    level: Level
    series: int
    names: tuple[str, ...]
    plan: Plan
    types: dict[str, str]


class Shortcuts:
    """Answers of points of one series from one span that is held, here or in the second tier.

    A few µs where the long way takes tens; whatever is unusual is left to that.
    """

    def __init__(self, cache: Cache, directory: Directory) -> None:
        self._cache = cache
        self._directory = directory
        self._ways: dict[Asked, _Way] = {}

    def learn(self, work: Work) -> None:
        """Remember how a question was answered, if it is one of those."""
        asked, targets = work.query.asked, work.targets
        is_plain = asked.is_native and asked.points is None and asked.limit is None
        if not is_plain or asked.where or asked.descending or len(targets.ids) != 1:
            return
        if asked.series is None:  # there may be more of them by the next time
            return
        if len(self._ways) >= _MOST:
            self._ways.clear()
        level = level_of_points(work.entry, targets.step)
        types = types_of(work.plan, work.entry.dataset)
        self._ways[asked] = _Way(work.entry, level, targets.ids[0], targets.names, work.plan, types)

    def take(self, query: Query) -> Columns | None:
        """Return the answer from this process; None where the short way does not lead there."""
        way = self._way(query)
        if way is None:
            return None
        started = time.perf_counter()
        held = self._cache.held(way.entry, way.level, way.series, query)
        if held is None or not len(held.ts):  # a series without points may be another by now
            return None
        return _answer(way, query.span, held, "memory", started)

    async def find(self, query: Query) -> tuple[Columns | None, bool]:
        """Return the answer from the second tier; True if it was looked for, and is not there."""
        way = self._way(query)
        if way is None:
            return None, False
        started = time.perf_counter()
        held, is_missing = await self._cache.shared_span(way.entry, way.level, way.series, query)
        if held is None or not len(held.ts):
            return None, is_missing
        return _answer(way, query.span, held, "redis", started), False

    def _way(self, query: Query) -> _Way | None:
        way = self._ways.get(query.asked)
        if way is None or not query.is_cached:
            return None
        if self._directory.remembered(query.asked.dataset) is not way.entry:
            self._ways.pop(query.asked, None)  # another thread may have been faster
            return None
        return way


def _answer(way: _Way, span: Span, held: Held, source: str, started: float) -> Columns:
    plan = way.plan
    ts, codes, seq = held.ts, held.codes, held.values.get("seq")
    values = {c: held.values[c] for c in plan.columns}
    if span.start != held.start or span.end != held.upto:
        a, b = ts.searchsorted((span.start, span.end)).tolist()
        ts, codes, seq = ts[a:b], codes[a:b], None if seq is None else seq[a:b]
        values = {c: v[a:b] for c, v in values.items()}
    categories = {c: held.categories[c] for c in plan.columns if c in held.categories}
    elapsed = (time.perf_counter() - started) * 1000
    done = plan.done(span, {source: len(ts)}, source, elapsed)
    return Columns(way.names, codes, ts, values, {**way.types}, categories, seq, done)
