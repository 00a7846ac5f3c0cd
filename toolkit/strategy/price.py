"""What each plan of a query with a fixed step would cost, and the cheapest of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from toolkit.catalog import Entry, Rollup
from toolkit.errors import QueryError, counted
from toolkit.options import Prices
from toolkit.query import Query
from toolkit.strategy.plan import Kept, Plan
from toolkit.strategy.ways import Road, Ways
from toolkit.timegrid import SECOND, Span

Changed = Callable[[float, Rollup], float]

PIECE = 32_768
"""Points a statement: below it one statement, above it several at once."""

BLOCK = 10_240
"""Points a block."""

CHANGED = 0.01
"""The share of points that has changed, where nobody has seen it."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_AROUND = 4  # statements around several: how many points, begin, the snapshot, the end
_AGAIN = 2  # how often what will be remembered is read, at least: so many share its fetching
_IN_FINEST = 20  # points in a bucket of the finest rollup, of series whose step is not known


class Known(NamedTuple):
    """What is known of a read before anything is asked: its size, and what others saw.

    ``points`` of each series in the range; None where they come when they come. ``changed`` says
    which share of the points a rollup's changes will have read again, its argument by default.
    ``cold`` is the share of the range of which blocks may hold points.
    """

    points: float | None
    series: int = 1
    changed: Changed | None = None
    kept: Kept | None = None
    cold: float = 0.0


class _Size(NamedTuple):
    """What a plan is priced by, of all series together."""

    points: float
    series: int
    states: int
    buckets: float
    per_point: float  # µs to aggregate a point in the database
    cold: float
    ways: Ways
    entry: Entry
    prices: Prices


def cheapest(query: Query, entry: Entry, ways: Ways, known: Known, prices: Prices) -> Plan:
    """Return the plan with the least price, of all or of the strategy that was asked for."""
    forced = query.asked.strategy
    if forced == "downsampled" and not ways.rollups:
        raise QueryError(f"strategy 'downsampled' cannot answer: {ways.why_not}")
    size = _size(query, entry, ways, known, prices)
    common = prices.read + size.buckets * prices.bucket
    if (road := _remembered_as_asked(query, ways, known)) is not None:
        price = (common + size.buckets * prices.cached) / 1_000
        return _planned(query, ways, road, "all of it is remembered", price, _NOTHING)
    best, least, best_price = ways.roads[0], math.inf, 0.0
    others: dict[str, float | str] = {}
    remembered = _remembered(ways, known)
    # nobody fetches what will be remembered instead of what is
    again = _AGAIN if all(kept is None or kept[1] for kept in remembered) else 1
    for road, kept in zip(ways.roads, remembered, strict=True):
        name, strategy = road.name, road.strategy
        if road.rollup is not None:
            fetching, rest = _downsampled(size, query.span, road, known, kept)
        elif strategy == "direct":
            fetching, rest = _direct(size, kept)
        else:
            fetching, rest = _aggregated(size), 0.0
        price = others[name] = (fetching + rest + common) / 1_000
        worth = fetching + rest if kept is None else fetching / again + rest
        if worth < least and forced in ("auto", strategy):
            best, least, best_price = road, worth, price
    del others[best.name]
    reason = "asked for" if forced != "auto" else _reason(best_price, known, others)
    others.update(ways.cannot)
    return _planned(query, ways, best, reason, best_price, others)


def _planned(
    query: Query,
    ways: Ways,
    road: Road,
    reason: str,
    price: float,
    others: Mapping[str, float | str],
) -> Plan:
    is_open = query.asked.strategy == "auto" and not ways.rollups
    return Plan(
        road.strategy,
        reason,
        query.span,
        ways.columns,
        ways.grid,
        ways.aggregates,
        ways.states,
        road.rollup,
        (),
        ways.cannot if is_open else {},
        _NOTHING,
        "",
        0.0,
        price,
        others,
    )


def _remembered_as_asked(query: Query, ways: Ways, known: Known) -> Road | None:
    """Return the rollup that has the very buckets, if they are remembered: nothing is cheaper."""
    if known.kept is None or query.asked.strategy not in ("auto", "downsampled"):
        return None
    for road in ways.roads:
        if road.rollup is None or road.is_merged:
            continue
        kept = known.kept(road.strategy, road.rollup)
        is_whole = kept is not None and not kept[1]
        return road if is_whole and not cut_share(road.width, road.origin, query.span) else None
    return None


def _reason(price: float, known: Known, others: Mapping[str, float | str]) -> str:
    about = "points" if known.points is None else counted(known.points, "points")
    if not others:
        return f"up to {about}, about {price:,.1f} ms; nothing else can answer"
    next_best = min(others.values())
    if price > next_best:  # type: ignore[operator]
        return f"up to {about}, about {price:,.1f} ms, to be remembered"
    return f"up to {about}, about {price:,.1f} ms; the next best {next_best:,.1f} ms"


def _remembered(ways: Ways, known: Known) -> list[tuple[float, float] | None]:
    if known.kept is None:
        return [None] * len(ways.roads)
    return [known.kept(road.strategy, road.rollup) for road in ways.roads]


def cut_share(width: int, origin: int, span: Span) -> float:
    """Return which share of a range is in buckets that its ends cut off: those points are read.

    >>> cut_share(3_600_000_000, 0, Span(0, 9_000_000_000))
    0.2
    """
    if span.is_empty:
        return 0.0
    cut = (origin - span.start) % width + (span.end - origin) % width
    return min(cut / span.width, 1.0)


def _size(query: Query, entry: Entry, ways: Ways, known: Known, prices: Prices) -> _Size:
    span, series = query.span, max(known.series, 1)
    points = known.points
    if points is None:
        finest = entry.rollups[0].grid.width if entry.rollups else None
        points = span.width / ((finest or _IN_FINEST * SECOND) / _IN_FINEST) + 1
    points *= series
    buckets = min((span.width / ways.width + 1) * series, points)
    states = len(ways.states)
    per_point = prices.scanned + states * prices.aggregated
    if ways.is_ordered:
        per_point += prices.ordered
    return _Size(points, series, states, buckets, per_point, known.cold, ways, entry, prices)


def _aggregated(size: _Size) -> float:
    ways, prices = size.ways, size.prices
    if size.cold >= 1.0:  # nothing is left for the database to do
        return sum(_direct(size, None))
    per_point = size.per_point + (prices.zoned if ways.is_zoned else 0.0)
    hot = 1.0 - size.cold
    price = (
        prices.statement
        + size.series * prices.series
        + hot * size.points * per_point
        + hot * size.buckets * size.states * prices.grouped
    )
    if not size.cold:
        return price
    points = size.cold * size.points  # the client makes their buckets, and joins them to the others
    price += size.states * (prices.array + points * prices.bucketed)
    return price + _from_blocks(size, points, ways.inputs) + (3 * prices.statement if hot else 0.0)


def _from_blocks(size: _Size, points: float, columns: int) -> float:
    """Return what points of blocks cost; those at the range's ends are decoded whole."""
    prices = size.prices
    decoded = points + size.series * BLOCK
    return decoded / BLOCK * prices.block + decoded * (prices.stored + columns * prices.decoded)


def _direct(size: _Size, kept: tuple[float, float] | None) -> tuple[float, float]:
    """Return what fetching costs, and what the client does with it."""
    ways, prices = size.ways, size.prices
    fetched, columns, rest = size.points, ways.inputs, 0.0
    if kept is not None:  # whole spans, of every column
        fetched, columns = kept[1], len(size.entry.dataset.columns)
        rest = size.points * prices.cached
    rest += size.states * (prices.array + size.points * prices.bucketed)
    if kept is not None and not fetched:
        return 0.0, rest
    hot = (1.0 - size.cold) * fetched
    statements = 1.0 if hot <= PIECE else _AROUND + hot / PIECE
    looking = statements * prices.statement + size.series * prices.series
    if size.cold:
        looking += _from_blocks(size, size.cold * fetched, columns)
    return looking + hot * (prices.point + columns * prices.value), rest


def _downsampled(
    size: _Size, span: Span, road: Road, known: Known, kept: tuple[float, float] | None
) -> tuple[float, float]:
    """Return what fetching costs, points of changed and cut buckets included, and the rest."""
    prices = size.prices
    width, rest = road.width, 0.0
    assert road.rollup is not None
    rows = fetched = min(span.width / width * size.series, size.points)
    states = size.states
    if road.is_merged:
        rest = states * (prices.array + rows * prices.merged)
    share = known.changed(CHANGED, road.rollup) if known.changed is not None else CHANGED
    points = share * size.points
    if kept is not None:
        fetched, states = kept[1], len(size.entry.dataset.states)
        rest += rows * prices.cached
        points *= min(fetched / rows, 1.0) if rows else 0.0
    cut = cut_share(width, road.origin, span)
    points = min(points + cut * size.points, size.points)
    if kept is not None and not fetched and not cut:
        return 0.0, rest
    again = points / size.points if size.points else 0.0
    fetching = prices.statement + prices.follow + size.series * prices.followed
    fetching += fetched * (1.0 - again) * (prices.row + states * prices.state)
    if points:
        hot = (1.0 - size.cold) * points
        fetching += prices.changed + hot * size.per_point
        if size.cold:
            fetching += 3 * prices.statement + _from_blocks(size, points - hot, states)
        fetching += again * rows * states * prices.grouped
    return fetching, rest
