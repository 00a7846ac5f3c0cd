"""Which ways are left to a query that reaches into the time of which points may be gone."""

from __future__ import annotations

from dataclasses import replace

from toolkit.catalog import Entry, Rollup
from toolkit.errors import QueryError
from toolkit.query import Query
from toolkit.strategy.ways import Ways
from toolkit.timegrid import EARLIEST, Grid, Span, iso


def left_of(query: Query, entry: Entry, ways: Ways) -> Ways:
    """Return the ways that give what they gave before points were dropped: rollups, and no other.

    Of these only those that know most of the range: another's answer would lack buckets. Raises
    QueryError where the range cuts a bucket there, which rounding would make another range, and
    where a rollup would know the answer but may not be used. What no rollup ever knew is made of
    the points that are left.
    """
    if not entry.is_frozen(query.span):
        return ways
    if not ways.rollups:
        if not all(r.is_trusted for r in entry.rollups):
            raise QueryError(f"points before {_mark(entry)} may be gone, and {ways.why_not}")
        return ways
    why = f"points before {_mark(entry)} may be gone, and only rollups know of them"
    if query.asked.strategy in ("direct", "aggregated"):
        raise QueryError(f"strategy {query.asked.strategy!r} cannot answer: {why}")
    cannot = {"direct": why, "aggregated": why, **ways.cannot}
    known = min(_known_from(r, query.span) for r in ways.rollups)
    problems = {}
    for rollup in ways.rollups:
        if _known_from(rollup, query.span) == known:
            problems[rollup] = _problem(entry, rollup, query.span, ways.grid)
        else:
            problems[rollup] = f"its buckets before {iso(_known_from(rollup, query.span))} are gone"
    cannot |= {f"downsampled from {r.grid.step}": p for r, p in problems.items() if p}
    rollups = tuple(r for r, problem in problems.items() if not problem)
    if not rollups:
        # the finest of those that know most: its bounds are the nearest
        finest = next(r for r in ways.rollups if _known_from(r, query.span) == known)
        raise QueryError(f"{why}: {problems[finest]}")
    roads = tuple(road for road in ways.roads if road.rollup in rollups)
    return replace(ways, rollups=rollups, roads=roads, cannot=cannot)


def _known_from(rollup: Rollup, span: Span) -> int:
    return span.start if rollup.gone_before is None else max(span.start, rollup.gone_before)


def _problem(entry: Entry, rollup: Rollup, span: Span, grid: Grid) -> str:
    """Return why a rollup cannot answer; empty: it can."""
    finer, mark = rollup.grid, entry.frozen_before
    assert mark is not None
    gone = rollup.gone_before
    if gone is not None and gone > span.start and finer != grid and grid.floor_one(gone) != gone:
        return f"{finer.step} buckets before {iso(gone)} are gone, too; ask from then on"
    bounds = []
    for word, at in (("start", span.start), ("end", span.end)):
        low, high = finer.floor_one(at), finer.ceil_one(at)
        if EARLIEST < at < mark and low != at:
            bounds.append(f"{word} at {iso(low)} or {iso(high)}")
    return f"a {finer.step} bucket is whole or not known; {', '.join(bounds)}" if bounds else ""


def _mark(entry: Entry) -> str:
    assert entry.frozen_before is not None
    return iso(entry.frozen_before)
