"""Choosing between direct, aggregated and downsampled; the choice never changes the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from toolkit.catalog import Entry, Rollup
from toolkit.config import Limits
from toolkit.dataset import Aggregate, Dataset, State
from toolkit.errors import QueryError, UnknownName
from toolkit.query import Query
from toolkit.timegrid import Grid, Instants, Span, Step

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


@dataclass(frozen=True, slots=True)
class Density:
    """How many points the busiest series has in the range (up to the probe's cap), and where."""

    count: int
    extent: Span


@dataclass(frozen=True, slots=True)
class Plan:
    """How a query is answered, and, once it has been, what that took.

    ``sources`` counts the rows read by kind (points, rollup); ``node`` is the server that
    answered; ``elapsed_ms`` is the whole call, on the client. ``drawn`` is what a picture of bars
    is picked by: how far they reach down, and up.
    """

    strategy: str
    reason: str
    span: Span
    columns: tuple[str, ...]
    grid: Grid | None = None
    aggregates: tuple[Aggregate, ...] = ()
    states: tuple[State, ...] = ()
    rollup: Rollup | None = None
    drawn: tuple[Aggregate, ...] = ()
    rejected: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    node: str = ""
    elapsed_ms: float = 0.0

    @property
    def step(self) -> str | None:
        """The step of the answer's bars; None for native points."""
        return str(self.grid.step) if self.grid is not None else None

    @property
    def rows(self) -> int:
        """Rows the database touched for the answer."""
        return sum(count for source, count in self.sources.items() if source != "memory")

    def done(self, span: Span, sources: Mapping[str, int], node: str, elapsed_ms: float) -> Plan:
        """Return the plan as carried out over ``span``."""
        return Plan(  # by position: on every read, and three times as fast as replace()
            self.strategy,
            self.reason,
            span,
            self.columns,
            self.grid,
            self.aggregates,
            self.states,
            self.rollup,
            self.drawn,
            self.rejected,
            sources,
            node,
            elapsed_ms,
        )

    def __str__(self) -> str:
        step = f", step {self.step}" if self.grid is not None else ""
        source = f" from the {self.rollup.grid.step} rollup" if self.rollup is not None else ""
        return f"{self.strategy}{source}{step}: {self.reason}"


def choose(
    query: Query,
    entry: Entry,
    limits: Limits,
    *,
    native_step: int | None = None,
    density: Density | None = None,
    is_cached: bool = False,
) -> Plan:
    """Return the plan for ``query``; ``density`` is needed for ``step="auto"`` and ``points``.

    ``native_step`` is the distance in µs of the points of the series asked for, where all have
    one; without it and without a density a range counts as long. Where answers are kept
    (``is_cached``) what others can share is preferred: points and rollups.
    """
    columns = _native_columns(query, entry.dataset) if query.asked.is_native else ()
    if query.asked.points is not None:
        return _choose_chart(query, entry, limits, columns, density)
    if query.asked.is_native:
        return Plan("direct", "native points were asked for", query.span, columns)
    aggregates = outputs_of(query, entry.dataset)
    if query.asked.is_auto:
        assert density is not None
        return _choose_resolution(query, entry, limits, aggregates, density)
    assert query.asked.grid is not None
    count = query.span.width // native_step + 1 if native_step else None
    if density is not None:
        count = density.count
    return _choose_road(query, entry, limits, query.asked.grid, aggregates, count, is_cached)


def outputs_of(query: Query, dataset: Dataset) -> tuple[Aggregate, ...]:
    """Return the bar columns a query asks for: its columns, then those of ``agg``."""
    extra = [dataset.extra_aggregate(column, kind) for column, kind in query.asked.agg]
    if query.asked.columns is None:
        chosen = list(dataset.aggregates)
    else:
        names = {a.name for a in extra}
        chosen = [dataset.aggregate(c) for c in query.asked.columns if c not in names]
    found = {a.name: a for a in (*chosen, *extra)}
    return tuple(found.values())


def _native_columns(query: Query, dataset: Dataset) -> tuple[str, ...]:
    if query.asked.columns is None:
        return dataset.names
    return tuple(dataset.column(c).name for c in query.asked.columns)


def _choose_road(
    query: Query,
    entry: Entry,
    limits: Limits,
    grid: Grid,
    aggregates: tuple[Aggregate, ...],
    count: int | None,
    is_cached: bool = False,
) -> Plan:
    """Decide by cost alone: with the step fixed every road gives the same values."""
    states = _states(entry.dataset, aggregates, with_times=query.asked.group_by is not None)
    rollup, why_not = _rollup_for(query, entry, grid, states)
    rejected = {} if rollup is not None else {"downsampled": why_not}
    plan = Plan("", "", query.span, tuple(a.name for a in aggregates), grid, aggregates, states)
    if query.asked.strategy != "auto":
        if query.asked.strategy == "downsampled" and rollup is None:
            raise QueryError(f"strategy 'downsampled' cannot answer: {why_not}")
        chosen = rollup if query.asked.strategy == "downsampled" else None
        return replace(plan, strategy=query.asked.strategy, reason="asked for", rollup=chosen)
    about = f"up to {count:,} points" if count is not None else "an unknown number of points"
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
    aggregates: tuple[Aggregate, ...],
    density: Density,
) -> Plan:
    count, extent = density.count, density.extent
    if query.asked.strategy == "auto" and count <= limits.direct and not _needs_bars(query):
        columns = _columns_of_points(query, entry.dataset)
        reason = f"{count:,} points, at most {limits.direct:,}: as they are"
        return Plan("direct", reason, query.span, columns)
    wants_ladder = count > limits.aggregated and query.asked.strategy in ("auto", "downsampled")
    ladder = [r.grid.step for r in entry.rollups] if wants_ladder else []
    grid = _finest(query, extent, limits, [*ladder, *_coarser_than(ladder)])
    road = (
        query
        if query.asked.strategy != "auto" or wants_ladder
        else replace(query, asked=replace(query.asked, strategy="aggregated"))
    )
    plan = _choose_road(road, entry, limits, grid, aggregates, count)
    more = "more than " if count > limits.aggregated else ""
    reason = (
        f"{more}{min(count, limits.aggregated):,} points; {grid.step} is the finest step "
        f"with at most {limits.buckets:,} buckets"
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
        return replace(plan, reason=f"{density.count:,} points, picked from by shape")
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
        states=_states(dataset, (*bars, *drawn)),
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
    return None, f"no rollup has the {4 * points:,} buckets that {points:,} picks need"


def _states(
    dataset: Dataset, aggregates: tuple[Aggregate, ...], *, with_times: bool = False
) -> tuple[State, ...]:
    """Return what the aggregates derive from; times order first and last across series only."""
    found = {s.name: s for a in aggregates for s in dataset.states_of(a)}
    return tuple(s for s in found.values() if with_times or s.type != "time")


def _rollup_for(
    query: Query, entry: Entry, grid: Grid, states: tuple[State, ...]
) -> tuple[Rollup | None, str]:
    """Return the coarsest rollup that can answer exactly, or None and why there is none."""
    if query.asked.where:
        return None, "where tests points, and a rollup has none"
    if not entry.rollups:
        return None, f"dataset {entry.dataset.name!r} has no ladder"
    stored = {s.name for s in entry.dataset.states}
    missing = [s for s in states if s.name not in stored]
    if missing:
        return None, f"the rollups do not keep {missing[0].kind} of {', '.join(missing[0].of)}"
    fitting = [r for r in entry.rollups if grid.is_on(r.grid, query.span)]
    trusted = [r for r in fitting if r.is_trusted]
    if trusted:
        return trusted[-1], ""
    if fitting:
        return None, "the database was restored; its rollups count again after: toolkit refresh"
    steps = ", ".join(str(r.grid.step) for r in entry.rollups)
    return None, f"{grid.step} buckets in {grid.tz} are not made of whole ladder steps ({steps})"


def even_edges(span: Span, native_step: int, rows: int) -> Instants:
    """Return where to cut a range of regular points into spans of about ``rows`` points.

    >>> even_edges(Span(0, 4_000_000), 1_000_000, 2).tolist()
    [2000000]
    """
    count = -(-span.width // (native_step * rows))
    return span.start + np.arange(1, count, dtype=np.int64) * (span.width // count)
