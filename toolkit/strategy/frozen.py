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

    Raises QueryError where the range cuts a bucket there, and where a rollup would know the answer
    but may not be used. What no rollup ever knew is made of the points that are left.
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
    fitting = []
    for rollup in ways.rollups:
        problem = _problem(entry, rollup, query.span, ways.grid)
        if problem:
            cannot[f"downsampled from {rollup.grid.step}"] = problem
        else:
            fitting.append(rollup)
    if not fitting:
        raise QueryError(f"{why}: {_problem(entry, ways.rollups[0], query.span, ways.grid)}")
    whole = [r for r in fitting if r.gone_before is None or r.gone_before <= query.span.start]
    rollups = tuple(whole or fitting)
    roads = tuple(road for road in ways.roads if road.rollup in rollups)
    return replace(ways, rollups=rollups, roads=roads, cannot=cannot)


def _problem(entry: Entry, rollup: Rollup, span: Span, grid: Grid) -> str:
    """Return why a rollup cannot answer; empty: it can."""
    finer, mark = rollup.grid, entry.frozen_before
    assert mark is not None
    gone = rollup.gone_before
    if gone is not None and gone > span.start and finer != grid and grid.floor_one(gone) != gone:
        return f"{finer.step} buckets before {iso(gone)} are gone, too; ask from then on"
    for word, at in (("start", span.start), ("end", span.end)):
        is_inside = EARLIEST < at < mark
        if is_inside and finer.floor_one(at) != at:
            low, high = iso(finer.floor_one(at)), iso(finer.ceil_one(at))
            return f"a {finer.step} bucket is whole or not known; {word} at {low} or {high}"
    return ""


def _mark(entry: Entry) -> str:
    assert entry.frozen_before is not None
    return iso(entry.frozen_before)
