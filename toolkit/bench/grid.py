"""The chooser's case: over a grid of reads, how much slower the chosen plan is than the best."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.bench.ground import PRICED, Ground, at, bars
from toolkit.bench.measure import Result, Timing
from toolkit.config import Limits
from toolkit.errors import QueryError
from toolkit.store import Store
from toolkit.strategy import Plan

NEAR = 1.5  # times the best: what counts as well chosen
_DAY = 1_440
_RANGES = {"1h": 60, "6h": 360, "1d": _DAY, "7d": 7 * _DAY, "30d": 30 * _DAY}
_RANGES |= {"90d": 90 * _DAY, "1y": 365 * _DAY, "2y": 730 * _DAY}
_ZONE = "America/New_York"
_STEPS = (*((s, "UTC") for s in ("1m", "5m", "15m", "1h", "4h", "1d")), ("1d", _ZONE))
_COLUMNS = {"close": ("close",), "all": None}
_SERIES = ("clean", "few", "all")  # what has changed and was not refreshed
_FEW = 0.03
_ROADS = ("direct", "aggregated", "downsampled")
_LONG_MS = 50.0  # reads above it are timed twice only


@dataclass(frozen=True, slots=True)
class Cell:
    """One read, what it took on each road in ms, and what each chooser took."""

    series: str
    columns: str
    range: str
    step: str
    tz: str
    took: dict[str, float]
    chosen: dict[str, str]

    def ratio(self, chooser: str) -> float:
        """Return how many times the best road's time the chosen one's is."""
        return self.took[self.chosen[chooser]] / min(self.took.values())


def grid(ground: Ground) -> Result:
    """Try every road of every read, and hold what is chosen against the fastest."""
    _prepare(ground)
    settings = replace(ground.settings, limits=Limits(by="thresholds"))
    with Store(ground.settings) as new, Store(settings) as other:
        cells = list(_cells(ground, new, other))
    shares = {c: _share(cells, c) for c in ("price", "first", "thresholds")}
    ratios = [c.ratio("price") for c in cells]
    what = (
        f"chosen / best road over {len(cells)} reads, 90th percentile; within {NEAR} ×: "
        f"{shares['price']:.0%}, before changes were seen {shares['first']:.0%}, "
        f"by thresholds {shares['thresholds']:.0%}"
    )
    most, worst = (float(np.percentile(ratios, p)) for p in (90, 99))
    ours = Timing("chosen / best", len(cells), most, worst)
    return Result("grid", what, len(cells), ours, unit="×", ceiling=NEAR, lines=_shown(cells))


def _prepare(ground: Ground) -> None:
    """Write the same bars as three series: as refreshed, changed a little since, changed all."""
    minutes = ground.sizes.priced_minutes
    written = bars(minutes, 0)
    for name in _SERIES[:2]:
        ground.store.write(PRICED.name, written, series=name)
    ground.store.refresh(PRICED.name)
    ground.store.write(PRICED.name, written, series=_SERIES[2])
    for name, width in _ranges(minutes):
        first, few = _place(name, width, minutes), max(int(width * _FEW), 5)
        part = {c: v[first + width - few : first + width] for c, v in written.items()}
        part["close"] = part["close"] + 0.5
        ground.store.write(PRICED.name, part, series=_SERIES[1])
    for table in (PRICED.name, *[f"{PRICED.name}_{s}" for s in ("log", *PRICED.ladder)]):
        ground.execute("VACUUM (ANALYZE) {table}", table)


def _ranges(minutes: int) -> list[tuple[str, int]]:
    return [(name, width) for name, width in _RANGES.items() if width <= minutes]


def _place(name: str, width: int, minutes: int) -> int:
    """Return the minute a range begins at: short ones apart from where longer ones changed."""
    places = len(_RANGES)
    at = list(_RANGES).index(name)
    return (minutes - width) * (places - at) // (2 * places) // _DAY * _DAY


def _cells(ground: Ground, new: Store, other: Store) -> Iterator[Cell]:
    minutes = ground.sizes.priced_minutes
    for series in _SERIES:
        for columns in _COLUMNS:
            for name, width in _ranges(minutes):
                first = _place(name, width, minutes)
                for step, tz in _STEPS:
                    read = _Read(series, columns, at(first), at(first + width), step, tz)
                    chosen = {"first": read.chosen(new), "thresholds": read.chosen(other)}
                    yield _cell(ground, other, read, name, chosen)


@dataclass(frozen=True, slots=True)
class _Read:
    series: str
    columns: str
    start: str
    end: str
    step: str
    tz: str

    def plan(self, store: Store, strategy: str = "auto") -> Plan:
        plan = store.read(
            PRICED.name,
            self.series,
            self.start,
            self.end,
            columns=_COLUMNS[self.columns],
            step=self.step,
            tz=self.tz,
            strategy=strategy,
        ).plan
        assert isinstance(plan, Plan)
        return plan

    def chosen(self, store: Store) -> str:
        plan = store.explain(
            PRICED.name,
            self.series,
            self.start,
            self.end,
            columns=_COLUMNS[self.columns],
            step=self.step,
            tz=self.tz,
        ).plan
        return _name(plan)


def _name(plan: Plan) -> str:
    rollup = plan.rollup
    return plan.strategy if rollup is None else f"{plan.strategy} from {rollup.grid.step}"


def _cell(ground: Ground, other: Store, read: _Read, name: str, chosen: dict[str, str]) -> Cell:
    """Let the chooser choose once it saw something, then time the roads by turns."""
    ours, turns = ground.store, ground.sizes.large_turns
    for _ in range(2):  # what the first read sees of changes, the second one goes by
        read.plan(ours)
    chosen["price"] = read.chosen(ours)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(-1, turns):
        for strategy in _ROADS if turn % 2 else _ROADS[::-1]:
            started = time.perf_counter()
            try:
                road = _name(read.plan(other, strategy))
            except QueryError:  # no rollup can answer
                continue
            if turn >= 0:
                times[road].append((time.perf_counter() - started) * 1e3)
        if turn >= 1 and max(map(min, times.values())) > _LONG_MS:
            break
    took = {road: float(np.median(ms)) for road, ms in times.items()}
    for missing in set(chosen.values()) - set(took):  # another rollup than the coarsest
        took[missing] = _timed(ours, read, turns)
    return Cell(read.series, read.columns, name, read.step, read.tz, took, chosen)


def _timed(store: Store, read: _Read, turns: int) -> float:
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        read.plan(store)
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times))


def _share(cells: Sequence[Cell], chooser: str) -> float:
    return sum(c.ratio(chooser) <= NEAR for c in cells) / len(cells)


def _shown(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the grid: a line a range, in it the road and the ratio for each step."""
    letters = (
        "d direct, a aggregated, r from a rollup; chosen / best road; * by thresholds over 1.5"
    )
    steps = [f"{s}{'' if tz == 'UTC' else ' zone'}" for s, tz in _STEPS]
    lines = [
        "",
        letters,
        f"{'changed':8}{'columns':8}{'range':6}" + "".join(f"{s:>10}" for s in steps),
    ]
    rows: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for cell in cells:
        letter = {"direct": "d", "aggregated": "a"}.get(cell.chosen["price"], "r")
        mark = "*" if cell.ratio("thresholds") > NEAR else " "
        rows[cell.series, cell.columns, cell.range].append(
            f"{letter} {cell.ratio('price'):5.2f}{mark}".rjust(10)
        )
    for (series, columns, name), shown in rows.items():
        lines.append(f"{series:8}{columns:8}{name:6}" + "".join(shown))
    return tuple(lines)
