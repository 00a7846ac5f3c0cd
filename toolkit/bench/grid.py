"""The chooser's case: over a grid of reads and caches, the chosen plan against the best."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from toolkit.bench.grid_table import NEAR, Cell, near_share, shown
from toolkit.bench.ground import PRICED, Ground, at, bars
from toolkit.bench.measure import Result, Timing
from toolkit.config import Settings
from toolkit.errors import QueryError
from toolkit.options import Limits, Prices
from toolkit.store import Store
from toolkit.strategy import Plan

_DAY = 1_440
_RANGES = {"1h": 60, "6h": 360, "1d": _DAY, "7d": 7 * _DAY, "30d": 30 * _DAY}
_RANGES |= {"90d": 90 * _DAY, "1y": 365 * _DAY, "2y": 730 * _DAY}
_UTC, _ZONE = "UTC", "America/New_York"
_STEPS = (*((s, _UTC) for s in ("1m", "5m", "15m", "1h", "4h", "1d")), ("1d", _ZONE))
_COLUMNS = {"close": ("close",), "all": None}
_SERIES = ("clean", "few", "all")  # what has changed and was not refreshed
_FEW = 0.03
_LONG_STEPS = (("1h", _UTC), ("1d", _UTC))  # all that are tried above _SHORT
_SHORT = 90 * _DAY
_HOPELESS = 2.0  # times the best, at the first try: not tried again
_LONG_MS = 20.0  # what is shorter is always tried again
_CELL_S = 0.15  # for a cell, once each road that is not hopeless was tried again
_FINEST = str(PRICED.ladder[0])
_COARSE = Limits(by="thresholds")  # of rollups it takes the coarsest
FINE = Prices(row=-100.0, cached=-1e6)  # where more rows cost less, it is the finest


@dataclass(frozen=True, slots=True)
class State:
    """What a cache holds before each read, and the part of the grid that is tried so."""

    what: str
    memory: int = 64
    held: tuple[str | None, str] | None = None  # the step and the strategy of what was read before
    ranges: tuple[str, ...] = ("6h", "1d", "7d", "30d", "90d")
    steps: tuple[tuple[str, str], ...] = (("5m", _UTC), ("1h", _UTC), ("1d", _UTC), ("1d", _ZONE))
    series: tuple[str, ...] = _SERIES[:2]


STATES = {
    "none": State("no cache", 0, None, tuple(_RANGES), _STEPS, _SERIES),
    "cold": State("a cache that holds nothing of it"),
    "points": State("the points are remembered", held=(None, "direct")),
    "rollup": State(f"the {_FINEST} buckets are remembered", held=(_FINEST, "downsampled")),
}


@dataclass(frozen=True, slots=True)
class Read:
    """A read of the grid, on whatever road."""

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


@dataclass(slots=True, eq=False)
class Side:
    """A store whose cache is brought back into one state before each read."""

    store: Store
    state: State
    _read: Read | None = field(default=None, init=False)
    _puts: float = field(default=0.0, init=False)

    def ready(self, read: Read) -> Store:
        """Return the store, its cache as the state says for a range.

        Nothing is done where the last read has left it so.
        """
        if not self.state.memory:
            return self.store
        if read != self._read or self.store.stats()["cache_puts"] != self._puts:
            self.store.forget(PRICED.name)
            if self.state.held is not None:
                step, strategy = self.state.held
                place = (read.series, read.start, read.end)
                self.store.read(PRICED.name, *place, step=step, strategy=strategy)
            self._read, self._puts = read, self.store.stats()["cache_puts"]
        return self.store

    def timed(self, read: Read, strategy: str = "auto") -> tuple[str, float]:
        """Return which road a read took, and its ms."""
        store = self.ready(read)
        started = time.perf_counter()
        plan = read.plan(store, strategy)
        return _name(plan), (time.perf_counter() - started) * 1e3


@dataclass(frozen=True, slots=True)
class _Sides:
    """The stores of one state: the one that is measured, others that force its alternatives.

    ``fresh`` has read nothing and seen no changes.
    """

    price: Side
    coarse: Side
    fine: Side
    fresh: Store

    @property
    def roads(self) -> tuple[tuple[Side, str], ...]:
        coarse, fine = self.coarse, self.fine
        forced = [(coarse, s) for s in ("direct", "aggregated", "downsampled")]
        return (*forced, (fine, "downsampled"))


def grid(ground: Ground) -> Result:
    """Try every road of every read, and hold what is chosen against the fastest."""
    _prepare(ground)
    cells = [c for name, state in STATES.items() for c in _cells(ground, name, state)]
    ratios = [c.ratio("price") for c in cells]
    per_state = ", ".join(f"{name} {near_share(cells, 'price', name):.0%}" for name in STATES)
    what = (
        f"chosen / best road over {len(cells)} reads, 90th percentile; within {NEAR} ×: "
        f"{near_share(cells, 'price'):.0%} ({per_state})"
    )
    most, worst = (float(np.percentile(ratios, p)) for p in (90, 99))
    ours = Timing("chosen / best", len(cells), most, worst)
    lines = shown(cells, {name: state.what for name, state in STATES.items()})
    return Result("grid", what, len(cells), ours, unit="×", ceiling=NEAR, lines=lines)


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


def _cells(ground: Ground, name: str, state: State) -> Iterator[Cell]:
    with ExitStack() as stack:
        settings = ground.remembering(state.memory)

        def side(settings: Settings) -> Side:
            return Side(stack.enter_context(Store(settings)), state)

        sides = _Sides(
            side(settings),
            side(replace(settings, limits=_COARSE)),
            side(replace(settings, prices=FINE)),
            stack.enter_context(Store(settings)),
        )
        for series, columns, (range_name, read) in _reads(ground, state):
            yield _cell(sides, read, (name, series, columns, range_name), ground.sizes.large_turns)


def _reads(ground: Ground, state: State) -> Iterator[tuple[str, str, tuple[str, Read]]]:
    minutes = ground.sizes.priced_minutes
    for series in state.series:
        for columns in _COLUMNS:
            for name, width in _ranges(minutes):
                if name not in state.ranges:
                    continue
                first = _place(name, width, minutes)
                for step, tz in state.steps if width <= _SHORT else _LONG_STEPS:
                    read = Read(series, columns, at(first), at(first + width), step, tz)
                    yield series, columns, (name, read)


def _name(plan: Plan) -> str:
    rollup = plan.rollup
    return plan.strategy if rollup is None else f"{plan.strategy} from {rollup.grid.step}"


def _cell(sides: _Sides, read: Read, where: tuple[str, str, str, str], turns: int) -> Cell:
    """Let the chooser choose once it saw something, then time the roads by turns."""
    chosen = {"thresholds": read.chosen(sides.coarse.ready(read))}
    if not sides.price.state.memory:
        chosen["first"] = read.chosen(sides.fresh)
    for _ in range(2):  # what the first read sees of changes, the second one goes by
        read.plan(sides.price.ready(read))
    chosen["price"] = read.chosen(sides.price.ready(read))
    took = _timed(sides, read, turns)
    for missing in set(chosen.values()) - set(took):  # neither the finest nor the coarsest rollup
        took[missing] = float(np.median([sides.price.timed(read)[1] for _ in range(turns)]))
    step = f"{read.step}{'' if read.tz == _UTC else ' zone'}"
    return Cell(*where, step, took, chosen)


def _timed(sides: _Sides, read: Read, turns: int) -> dict[str, float]:
    """Return the ms of each road, by turns; of those that are hopeless what the first try took."""
    first = {}
    for side, strategy in sides.roads:
        try:
            first[side, strategy] = side.timed(read, strategy)
        except QueryError:  # no rollup can answer
            continue
    least = min(ms for _, ms in first.values())
    most = max(_HOPELESS * least, _LONG_MS)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for name, ms in first.values():
        if ms > most:
            times[name].append(ms)
    roads = [road for road, (_, ms) in first.items() if ms <= most]
    started = time.perf_counter()
    for turn in range(turns):
        for side, strategy in roads if turn % 2 else roads[::-1]:
            name, ms = side.timed(read, strategy)
            times[name].append(ms)
        if time.perf_counter() - started > _CELL_S:
            break
    return {name: float(np.median(ms)) for name, ms in times.items()}
