"""Choosing between direct, aggregated and downsampled; the choice never changes the values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolkit.catalog import Entry, Rollup
from toolkit.dataset import Aggregate, Dataset
from toolkit.errors import QueryError, UnknownName, counted
from toolkit.options import Limits, Prices
from toolkit.query import Query
from toolkit.strategy.frozen import left_of
from toolkit.strategy.plan import Density, Kept, Plan
from toolkit.strategy.price import Changed, Known, cheapest
from toolkit.strategy.ways import Ways, states_of, ways_of
from toolkit.timegrid import Grid, Instants, Span, Step

_PRICES = Prices()

# steps a person would pick for a chart, finest first
_ROUND_STEPS = tuple(
    Step(n, unit)
    for unit, ns in (
        ("s", (1, 5, 10, 15, 30)),
        ("m", (1, 2, 5, 10, 15, 30)),
        ("h", (1, 2, 4, 6, 12)),
        ("d", (1,)),
        ("w", (1,)),
        ("M", (1, 3)),
        ("y", (1, 5, 10)),
    )
    for n in ns
)


def choose(
    query: Query,
    entry: Entry,
    limits: Limits,
    prices: Prices = _PRICES,
    *,
    native_step: int | None = None,
    series: int = 1,
    density: Density | None = None,
    changed: Changed | None = None,
    kept: Kept | None = None,
    cold: float = 0.0,
) -> Plan:
    """Return the plan for ``query``; ``density`` is needed for ``step="auto"`` and ``points``.

    ``native_step`` is the distance in µs of the points of the ``series`` asked for, where all have
    one; without it and without a density a range counts as long. ``changed`` says which share of
    the points the changes of a rollup will have read again, as far as that was seen; ``kept`` is
    given where answers are remembered, ``cold`` the share of the range that blocks may hold.
    """
    columns = _native_columns(query, entry.dataset) if query.asked.is_native else ()
    if query.asked.points is not None:
        return _choose_chart(query, entry, limits, columns, density)
    if query.asked.is_native:
        return Plan("direct", "native points were asked for", query.span, columns)
    count = query.span.width // native_step + 1 if native_step else None
    if query.asked.is_auto:
        assert density is not None
        # the probe counts up to a cap only
        points = max(density.count, density.extent.width // native_step if native_step else 0)
        known = Known(points, series, changed, kept, cold)
        return _choose_resolution(query, entry, limits, prices, density, known)
    if density is not None:
        count = density.count
    assert query.asked.grid is not None
    ways = left_of(query, entry, ways_of(query, entry, query.asked.grid))
    known = Known(count, series, changed, kept, cold)
    return _choose_road(query, entry, limits, prices, ways, known)


def _native_columns(query: Query, dataset: Dataset) -> tuple[str, ...]:
    if query.asked.columns is None:
        return dataset.names
    return tuple(dataset.column(c).name for c in query.asked.columns)


def _choose_road(
    query: Query, entry: Entry, limits: Limits, prices: Prices, ways: Ways, known: Known
) -> Plan:
    """Decide by cost alone: with the step fixed every road gives the same values."""
    if limits.by == "price":
        return cheapest(query, entry, ways, known, prices)
    return _by_thresholds(query, limits, ways, known.points, known.kept is not None)


def _by_thresholds(
    query: Query, limits: Limits, ways: Ways, count: float | None, is_cached: bool
) -> Plan:
    """Decide by the number of points of a series; a rollup is the coarsest that can answer.

    Where answers are kept, what others can share is preferred: points and rollups.
    """
    grid, why_not = ways.grid, ways.why_not
    rollup = ways.rollups[-1] if ways.rollups else None
    rejected = {} if rollup is not None else {"downsampled": why_not}
    plan = Plan("", "", query.span, ways.columns, grid, ways.aggregates, ways.states)
    if query.asked.strategy != "auto":
        if query.asked.strategy == "downsampled" and rollup is None:
            raise QueryError(f"strategy 'downsampled' cannot answer: {why_not}")
        chosen = rollup if query.asked.strategy == "downsampled" else None
        return replace(plan, strategy=query.asked.strategy, reason="asked for", rollup=chosen)
    about = (
        f"up to {counted(count, 'points')}" if count is not None else "an unknown number of points"
    )
    if rollup is not None and "direct" in ways.cannot:
        reason = ways.cannot["direct"]
        return replace(
            plan, strategy="downsampled", reason=reason, rollup=rollup, rejected=ways.cannot
        )
    if count is not None and count <= limits.direct:
        reason = f"{about}, at most {limits.direct:,}: fetched and bucketed here"
        return replace(plan, strategy="direct", reason=reason, rejected=rejected)
    small = count is not None and count <= limits.aggregated
    if is_cached and small and rollup is None and not query.asked.where:
        return replace(plan, strategy="direct", reason=f"{about}, to be kept", rejected=rejected)
    if rollup is not None and (is_cached or not small):
        reason = f"{about}; every {grid.step} bucket is whole {rollup.grid.step} buckets"
        return replace(plan, strategy="downsampled", reason=reason, rollup=rollup)
    reason = f"{about}, at most {limits.aggregated:,}" if small else f"{about}; {why_not}"
    return replace(plan, strategy="aggregated", reason=reason, rejected=rejected)


def _choose_resolution(
    query: Query,
    entry: Entry,
    limits: Limits,
    prices: Prices,
    density: Density,
    known: Known,
) -> Plan:
    count, extent = density.count, density.extent
    is_frozen = bool(entry.rollups) and entry.is_frozen(query.span)
    is_small = count <= limits.direct and not is_frozen
    if query.asked.strategy == "auto" and is_small and not _needs_bars(query):
        columns = _columns_of_points(query, entry.dataset)
        reason = f"{counted(count, 'points')}, at most {limits.direct:,}: as they are"
        return Plan("direct", reason, query.span, columns)
    wants_ladder = count > limits.aggregated and query.asked.strategy in ("auto", "downsampled")
    ladder = [r.grid.step for r in entry.rollups] if wants_ladder else []
    grid = _finest(query, extent, limits, [*ladder, *_coarser_than(ladder)])
    ways = left_of(query, entry, ways_of(query, entry, grid))
    if limits.by == "price":
        plan = cheapest(query, entry, ways, known, prices)
    else:
        road = (
            query
            if query.asked.strategy != "auto" or wants_ladder
            else replace(query, asked=replace(query.asked, strategy="aggregated"))
        )
        plan = _by_thresholds(road, limits, ways, count, known.kept is not None)
    more = "more than " if count > limits.aggregated else ""
    reason = (
        f"{more}{counted(min(count, limits.aggregated), 'points')}; {grid.step} is the finest "
        f"step with at most {limits.buckets:,} buckets"
    )
    return replace(plan, reason=reason)


def _needs_bars(query: Query) -> bool:
    return bool(query.asked.agg or query.asked.group_by)


def _columns_of_points(query: Query, dataset: Dataset) -> tuple[str, ...]:
    if query.asked.columns is None:
        return dataset.names
    known = set(dataset.names)
    for name in query.asked.columns:
        if name not in known:
            raise UnknownName("column", name, known, f"the points of {dataset.name!r}")
    return query.asked.columns


def _coarser_than(ladder: list[Step]) -> list[Step]:
    least = ladder[-1].approximate_us if ladder else 0
    return [s for s in _ROUND_STEPS if s.approximate_us > least]


def _finest(query: Query, extent: Span, limits: Limits, steps: list[Step]) -> Grid:
    grids = [Grid(s, query.asked.tz) for s in steps]
    for grid in grids:
        if grid.count(extent) <= limits.buckets:
            return grid
    return grids[-1]


def _choose_chart(
    query: Query, entry: Entry, limits: Limits, columns: tuple[str, ...], density: Density | None
) -> Plan:
    dataset, points = entry.dataset, query.asked.points
    assert density is not None
    assert points is not None
    if not dataset.chart:
        raise QueryError(f"points=: dataset {dataset.name!r} has no column of numbers to draw")
    plan = Plan("direct", "", query.span, columns)
    if query.asked.strategy == "direct":
        return replace(plan, reason="asked for")
    if query.asked.strategy != "downsampled" and density.count <= limits.chart_points:
        return replace(plan, reason=f"{counted(density.count, 'points')}, picked from by shape")
    rollup, why_not = _rollup_for_chart(query, entry, density.extent, points)
    drawn = _drawn(dataset)
    aggregates = {c: _bar_of(dataset, c, drawn) for c in columns}
    without = [c for c, aggregate in aggregates.items() if aggregate is None]
    if rollup is not None and (without or not drawn):
        rollup, why_not = None, f"the rollups keep no value of {(*without, dataset.chart)[0]!r}"
    about = f"more than {min(density.count, limits.chart_points):,} points"
    if rollup is None:
        if query.asked.strategy == "downsampled":
            raise QueryError(f"strategy 'downsampled' cannot draw: {why_not}")
        return replace(plan, reason=f"{about}; {why_not}", rejected={"downsampled": why_not})
    reason = f"{about}; picked from {rollup.grid.step} bars by shape"
    bars = tuple(a for a in aggregates.values() if a is not None)
    return replace(
        plan,
        strategy="downsampled",
        reason="asked for" if query.asked.strategy == "downsampled" else reason,
        grid=rollup.grid,
        aggregates=bars,
        states=states_of(dataset, (*bars, *drawn)),
        rollup=rollup,
        drawn=drawn,
    )


def _drawn(dataset: Dataset) -> tuple[Aggregate, ...]:
    """Return what says how far a bar of the chart reaches down and up, or nothing."""
    least, most = (_stored(dataset, dataset.chart, kind) for kind in ("min", "max"))
    if least is not None and most is not None:
        return (least, most)
    lows, highs = ([a for a in dataset.aggregates if a.kind == kind] for kind in ("min", "max"))
    # a candle's: of two columns; both of one column would be that column's picture
    if len(lows) == len(highs) == 1 and lows[0].of != highs[0].of:
        return (lows[0], highs[0])
    own = _bar_of(dataset, dataset.chart, ())
    return (own, own) if own is not None else ()


def _bar_of(dataset: Dataset, column: str, drawn: tuple[Aggregate, ...]) -> Aggregate | None:
    """Return what stands for a column's value in a picture made of bars, under its name.

    Of the chart that is an extreme, where they are kept; else the bar column of the same name,
    else the last value, of the column's own type; None where no rollup has any of them.
    """
    if drawn and all(a.of == (column,) and a.kind in ("min", "max") for a in drawn):
        return replace(drawn[1], name=column)
    type = dataset.column(column).type
    for own in dataset.aggregates:
        is_value = column in own.of and own.kind != "count"
        if own.name == column and is_value and dataset.answer_type(own) == type:
            return own
    last = _stored(dataset, column, "last")
    return replace(last, name=column) if last is not None else None


def _stored(dataset: Dataset, column: str, kind: str) -> Aggregate | None:
    """Return the aggregate whose values the rollups keep, or None."""
    if (kind, (column,)) not in {(s.kind, s.of) for s in dataset.states}:
        return None
    return dataset.extra_aggregate(column, kind)


def _rollup_for_chart(
    query: Query, entry: Entry, extent: Span, points: int
) -> tuple[Rollup | None, str]:
    if query.asked.where:
        return None, "where tests points, and a rollup has none"
    enough = [r for r in entry.rollups if r.is_trusted and r.grid.count(extent) >= 4 * points]
    if enough:
        return enough[-1], ""
    if entry.is_frozen(query.span) and all(r.is_trusted for r in entry.rollups[:1]):
        return entry.rollups[0] if entry.rollups else None, "the dataset has no ladder"
    return None, f"no rollup has the {4 * points:,} buckets that {points:,} picks need"


def even_edges(span: Span, native_step: int, rows: int) -> Instants:
    """Return where to cut a range of regular points into spans of about ``rows`` points.

    >>> even_edges(Span(0, 4_000_000), 1_000_000, 2).tolist()
    [2000000]
    """
    count = -(-span.width // (native_step * rows))
    return span.start + np.arange(1, count, dtype=np.int64) * (span.width // count)
