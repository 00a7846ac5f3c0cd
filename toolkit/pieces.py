"""A read through the cache in pieces: what to fetch, what of it to hold, and one table of all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from toolkit.cache import Held, Key, Level
from toolkit.cache.parts import Part, Rows, concatenated, cut, rows_of
from toolkit.cache.policy import Policy
from toolkit.query import Asked, Query
from toolkit.reduce import Table
from toolkit.strategy import Plan
from toolkit.timegrid import Span
from toolkit.work import Found, Work, is_backwards, point_columns, time_left


def parts_of(
    work: Work, series: int, level: Level, found: Mapping[Key, Held], closed: int
) -> Iterator[Part]:
    """Cut a series' range into parts that are held and parts that are not.

    What lies after ``closed`` is not to be held.
    """
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
            upto = min(start + level.length, level.closed(closed))
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


def work_of(work: Work, group: tuple[Part, ...]) -> Work:
    """Return the work of fetching a group: every column of its level, so that all can share."""
    entry, level, dataset = work.entry, group[0].level, work.entry.dataset
    ids = tuple(dict.fromkeys(p.series for p in group))
    asked = entry.once(("asked by the cache", level.key), lambda: Asked(entry.dataset.name, None))
    span = Span(group[0].begin, max(p.end for p in group))
    if level.rollup is None:
        plan = Plan("direct", "", span, dataset.names)
    else:
        states = dataset.states
        plan = Plan("downsampled", "", span, (), level.rollup.grid, (), states, level.rollup)
    query = Query(asked, span, time_left(work), is_cached=False)
    return Work(query, entry, work.targets.only(ids), plan, time.perf_counter())


def spans_of(
    work: Work, parts: Sequence[Part], found: Found, policy: Policy, now: float
) -> dict[Key, Held]:
    """Return what a fetch brought as spans to hold."""
    code_of = _codes(work, found)
    held = {}
    for part in parts:
        assert part.key is not None
        rows = cut(found.table, code_of[part.series], part.begin, part.end)
        if len(rows.ts) < len(found.table):  # a part of an array keeps all of it in memory
            rows = rows.copy()
        life = policy.life(work.entry, part.level, part.end)
        held[part.key] = Held(
            part.begin,
            part.end,
            rows.ts,
            np.zeros(len(rows.ts), np.int32),
            rows.values,
            rows.categories,
            now + life,
            policy.due(now + life, life),
        )
    return held


def cuts_of(work: Work, group: tuple[Part, ...], found: Found) -> dict[Part, Rows]:
    """Return the rows of each part of a group."""
    code_of = _codes(work, found)
    rows = {}
    for part in group:
        begin = part.low if part.level.rollup is None else part.level.within(part.low)
        rows[part] = cut(found.table, code_of[part.series], begin, part.high)
    return rows


def joined(
    work: Work, parts: Sequence[Part], fetched: Mapping[Part, Rows]
) -> tuple[Table, dict[str, int]]:
    """Return all parts as one table, and how many of its rows were held, and where."""
    code_of = {series: code for code, series in enumerate(work.targets.ids)}
    rows, codes, held, shared, others, names = [], [], 0, 0, work.shared, _names(work)
    for part in parts:
        if part.held is None:
            piece = fetched[part]
        else:
            piece = rows_of(part, names)
            held += len(piece.ts)
            if others and part.key in others:
                shared += len(piece.ts)
        rows.append(piece)
        codes.append(code_of[part.series])
    table = concatenated(rows, codes, names)
    if is_backwards(work.query, work.plan):
        table = table.take(np.lexsort((np.arange(len(table))[::-1], table.series)))
    counts = {"memory": held - shared} if held > shared or not (fetched or others) else {}
    return table, {**counts, "redis": shared} if others else counts


def _names(work: Work) -> tuple[str, ...]:
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


def _codes(work: Work, found: Found) -> dict[int, int]:
    """Return the code that each series id has in what was found."""
    code_of = {name: code for code, name in enumerate(found.names)}
    pairs = zip(work.targets.ids, work.targets.names, strict=True)
    return {i: code_of[n] for i, n in pairs if n in code_of}
