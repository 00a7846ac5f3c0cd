"""Reads that are timed, and the prices that explain their times best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.catalog import Entry
from toolkit.cli.failing import Failure
from toolkit.columns import Columns
from toolkit.dataset import Dataset
from toolkit.errors import QueryError, counted
from toolkit.options import Prices
from toolkit.query import Query, build_query
from toolkit.store import Store
from toolkit.strategy import Plan
from toolkit.strategy.price import Known, cheapest, cut_share
from toolkit.strategy.ways import ways_of
from toolkit.timegrid import DAY, EARLIEST, LATEST, Grid, Span, Step, to_datetime

NAMES = tuple(f.name for f in fields(Prices))
CLIENTS = ("read", "array", "bucketed", "merged", "cached", "bucket")
"""Prices of what the client does: too small beside a statement to be told from its noise."""

_COUNTS = (100, 1_000, 8_000, 30_000, 100_000)
_SERIES = 20  # in a read of several
_ZONE = "America/New_York"
_TRUST = 0.03  # in the defaults, against one read: what the reads cannot tell stays as it is


@dataclass(slots=True)
class Case:
    """One read: how much of everything it takes, in the order of NAMES, and its times in µs."""

    ask: Callable[[], Columns]
    amounts: npt.NDArray[np.float64]
    times: list[float] = field(default_factory=list)

    @property
    def us(self) -> float:
        return float(np.median(self.times))


def measured(
    store: Store, dataset: Dataset, seconds: float, say: Callable[[str], None]
) -> list[Case]:
    """Read by turns until the time is up; each read once at least, and once before it counts."""
    started = time.perf_counter()
    cases: list[Case] = []
    counts: dict[Any, int] = {}
    for query in _queries(store, dataset):
        if time.perf_counter() - started > seconds / 2:
            break
        say(f"measuring: {len(cases)} kinds of reads")
        case = _case(store, query, counts, dataset)
        if case is not None:
            cases.append(case)
    if cases and len(cases) < len(NAMES):
        raise Failure(
            f"{counted(len(cases), 'kinds')} of reads, too few to tell {len(NAMES)} prices: give "
            "more --seconds, or a dataset with more points"
        )
    if not cases:
        raise Failure(f"dataset {dataset.name!r} has nothing to measure by: load some points")
    turn = 0
    while turn < 1 or time.perf_counter() - started < seconds:
        for number, case in enumerate(cases):
            if turn and time.perf_counter() - started > seconds:
                break
            say(f"measuring: turn {turn + 1}, {number} of {len(cases)}")
            began = time.perf_counter()
            case.ask()
            case.times.append((time.perf_counter() - began) * 1e6)
        turn += 1
    return cases


def fitted(cases: Sequence[Case]) -> tuple[Prices, float]:
    """Return the prices with the least relative errors, and the median of these errors."""
    default = np.array([getattr(Prices(), n) for n in NAMES])
    times = np.array([c.us for c in cases])
    amounts = np.array([c.amounts for c in cases]) / times[:, None]
    is_free = np.array([n not in CLIENTS for n in NAMES])
    left = 1.0 - amounts[:, ~is_free] @ default[~is_free]
    trusted = np.diag(_TRUST / default[is_free])
    rows = np.vstack([amounts[:, is_free], trusted])
    wanted = np.concatenate([left, np.full(len(trusted), _TRUST)])
    found = default.copy()
    found[is_free] = _least_squares(rows, wanted)
    error = float(np.median(np.abs(amounts @ found - 1.0)))
    return Prices(**{n: float(v) for n, v in zip(NAMES, found, strict=True)}), error


def _least_squares(
    rows: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return what solves the rows best without being negative: what would be, is left out."""
    kept = list(range(rows.shape[1]))
    found = np.zeros(rows.shape[1])
    while kept:
        values = np.linalg.lstsq(rows[:, kept], wanted, rcond=None)[0]
        if values.min() >= 0:
            found[kept] = values
            break
        del kept[int(values.argmin())]
    return found


def _queries(store: Store, dataset: Dataset) -> Iterator[Query]:
    """Yield reads of growing size: ranges, steps, columns and roads."""
    names = [s.name for s in store.series(dataset.name)][:_SERIES]
    name, span = _longest(store, dataset.name, names)
    each = max(span.width * len(names) // max(store.describe(dataset.name).rows, 1), 1)
    each = next((s.step for s in store.series(dataset.name) if s.name == name), None) or each
    grids = [Grid(Step.parse(s)) for s in dataset.ladder or ("1h",)]
    grids = [*grids, *[Grid(replace(g.step, n=2 * g.step.n)) for g in grids[:2]]]
    grids.append(Grid(Step.parse("1d"), _ZONE))
    for count in _COUNTS:
        if count * each > span.width and count != _COUNTS[0]:
            break
        start = (span.start + max(span.width - count * each, 0) // 2) // DAY * DAY
        bounds = to_datetime(start), to_datetime(start + count * each)
        whom: list[Any] = [names, name] if len(names) > 1 and count <= _COUNTS[1] else [name]
        for series, columns, grid in product(whom, _columns(dataset), grids):
            for strategy in ("direct", "aggregated", "downsampled"):
                yield build_query(
                    dataset.name,
                    series,
                    *bounds,
                    step=grid.step,
                    tz=grid.tz,
                    columns=columns,
                    strategy=strategy,
                )


def _longest(store: Store, dataset: str, names: Sequence[str]) -> tuple[str, Span]:
    """Return the series with the longest range of points, and the range."""
    everything = to_datetime(EARLIEST), to_datetime(LATEST)
    found: list[tuple[int, str, Span]] = []
    for name in names:
        ends = [
            store.read(dataset, name, *everything, limit=1, descending=backwards)
            for backwards in (False, True)
        ]
        if all(len(e) for e in ends):
            span = Span(int(ends[0].instants[0]), int(ends[1].instants[0]) + 1)
            found.append((span.width, name, span))
    if not found:
        raise Failure(f"dataset {dataset!r} has nothing to measure by: load some points")
    _, name, span = max(found, key=lambda f: f[0])
    return name, span


def _columns(dataset: Dataset) -> list[tuple[str, ...] | None]:
    """Return all columns of a bar, one for which points are sorted, and one for which not."""
    chosen: list[tuple[str, ...] | None] = [None]
    for is_ordered in (True, False):
        for aggregate in dataset.aggregates:
            if (aggregate.kind in ("first", "last")) == is_ordered:
                chosen.append((aggregate.name,))
                break
    return chosen


def _case(store: Store, query: Query, counts: dict[Any, int], dataset: Dataset) -> Case | None:
    asked = query.asked
    assert asked.grid is not None
    bounds = to_datetime(query.span.start), to_datetime(query.span.end)
    step, tz, columns = asked.grid.step, asked.grid.tz, asked.columns

    def ask(strategy: str = asked.strategy) -> Columns:
        return store.read(
            asked.dataset,
            asked.series,
            *bounds,
            step=step,
            tz=tz,
            columns=columns,
            strategy=strategy,
        )

    try:
        plan = ask().plan
    except QueryError:  # finer than the points, or no rollup
        return None
    assert isinstance(plan, Plan)
    key = asked.series, query.span
    if key not in counts:
        direct = plan if plan.strategy == "direct" else ask("direct").plan
        counts[key] = direct.sources["points"] if isinstance(direct, Plan) else 0
    return Case(ask, amounts_of(query, plan, counts[key], dataset))


def amounts_of(query: Query, plan: Plan, points: int, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Return how much of everything a read took: its price where one is 1 and the others 0."""
    grid, rollup, series = query.asked.grid, plan.rollup, len(query.asked.series or ())
    assert grid is not None
    share = 0.0
    if rollup is not None and rollup.grid.width is not None:
        cut = cut_share(rollup.grid.width, rollup.grid.origin, query.span)
        share = max(plan.sources["points"] / max(points, 1) - cut, 0.0)
    entry = Entry(0, "", dataset, (rollup,) if rollup is not None else ())
    ways = ways_of(query, entry, grid)
    known = Known(points / max(series, 1), series, lambda default, rollup: share)
    none = Prices(**dict.fromkeys(NAMES, 0.0))
    each = [replace(none, **{name: 1.0}) for name in NAMES]
    return np.array([cheapest(query, entry, ways, known, one).price_ms * 1e3 for one in each])
