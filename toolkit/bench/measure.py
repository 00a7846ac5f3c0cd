"""Timing things by turns, and what came of it: percentiles, ratios and targets."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

Clock = Callable[[], float]


def _nothing(turn: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to time: ``act(turn)``, with ``before(turn)`` off the clock.

    ``every`` lets a slow peer sit out all but each n-th turn; ``scale`` multiplies its times,
    for one that does a known share of the work.
    """

    name: str
    act: Callable[[int], object]
    before: Callable[[int], object] = _nothing
    every: int = 1
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Timing:
    """What a contender took, in milliseconds a turn (or in ``Result.unit``)."""

    name: str
    turns: int
    p50: float
    p99: float

    @classmethod
    def of(cls, name: str, values: Sequence[float]) -> Timing:
        p50, p99 = np.percentile(values, [50, 99])
        return cls(name, len(values), float(p50), float(p99))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against one peer.

    ``ratio`` says how many times faster ours is; with ``is_cost`` it says how many times what
    the peer takes ours takes, and the target is a ceiling.
    """

    peer: Timing
    ratio: float
    target: float | None = None
    is_cost: bool = False

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio <= self.target if self.is_cost else self.ratio >= self.target

    def to_mapping(self) -> dict[str, Any]:
        return {
            "peer": self.peer.name,
            "turns": self.peer.turns,
            "p50": self.peer.p50,
            "p99": self.peer.p99,
            "ratio": self.ratio,
            "ratio_is": "ours / peer" if self.is_cost else "peer / ours",
            "target": self.target,
            "is_met": self.is_met,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """What a peer's ratio is held against."""

    value: float
    is_cost: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that is not installed, and what ours would have been held to."""

    peer: str
    why: str
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a case measured; ``points`` is the work of one turn.

    ``ceiling`` is a target for ours alone, in ``unit``, and ``least`` one in points a second,
    where no peer is the measure; ``lines`` is what else there is to show.
    """

    case: str
    what: str
    points: int
    ours: Timing
    comparisons: tuple[Comparison, ...] = ()
    unit: str = "ms"
    ceiling: float | None = None
    lines: tuple[str, ...] = ()
    least: float | None = None
    missing: tuple[Missing, ...] = ()

    @property
    def points_per_s(self) -> float | None:
        return self.points / self.ours.p50 * 1000 if self.unit == "ms" else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is told below the table: who is missing, and the lines."""
        absent = [f"{self.case}: {m.peer} is missing: {m.why}" for m in self.missing]
        return (*absent, *self.lines)

    @property
    def is_met(self) -> bool:
        """Whether every target of the case was reached; one beside a missing peer was not."""
        is_whole = all(m.target is None for m in self.missing)
        is_own = self.is_own_met is not False
        return is_whole and is_own and all(c.is_met is not False for c in self.comparisons)

    @property
    def is_own_met(self) -> bool | None:
        """Whether the targets for ours alone were reached, if there are any."""
        if self.ceiling is None and self.least is None:
            return None
        is_below = self.ceiling is None or self.ours.p50 <= self.ceiling
        is_above = self.least is None or (self.points_per_s or 0.0) >= self.least
        return is_below and is_above

    def to_mapping(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "what": self.what,
            "points": self.points,
            "unit": self.unit,
            "turns": self.ours.turns,
            "p50": self.ours.p50,
            "p99": self.ours.p99,
            "points_per_s": self.points_per_s,
            "ceiling": self.ceiling,
            "least_points_per_s": self.least,
            "is_met": self.is_met,
            "comparisons": [c.to_mapping() for c in self.comparisons],
            "missing": {m.peer: m.why for m in self.missing},
            "lines": list(self.lines),
        }


def by_turns(
    contenders: Sequence[Contender], turns: int, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Time each contender once a turn, in alternating order, after one turn that does not count.

    What disturbs the machine for a while disturbs all of them.
    """
    times = _Times(contenders, turns)
    for contender, turn in times.order():
        contender.before(turn)
        started = clock()
        contender.act(turn)
        times.add(contender, turn, clock() - started)
    return times.timings()


async def by_turns_awaited(
    contenders: Sequence[Contender], turns: int, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """The same for contenders whose acts are awaited, all of them on this loop."""
    times = _Times(contenders, turns)
    for contender, turn in times.order():
        contender.before(turn)
        started = clock()
        await cast(Awaitable[object], contender.act(turn))
        times.add(contender, turn, clock() - started)
    return times.timings()


class _Times:
    """Whose turn it is, and what each took, in milliseconds."""

    def __init__(self, contenders: Sequence[Contender], turns: int) -> None:
        self._contenders = contenders
        self._turns = turns
        self._times: dict[str, list[float]] = {c.name: [] for c in contenders}

    def order(self) -> Iterator[tuple[Contender, int]]:
        for turn in range(-1, self._turns):
            for contender in self._contenders if turn % 2 else self._contenders[::-1]:
                if turn <= 0 or turn % contender.every == 0:
                    yield contender, turn

    def add(self, contender: Contender, turn: int, seconds: float) -> None:
        if turn >= 0:
            self._times[contender.name].append(seconds * 1000 * contender.scale)

    def timings(self) -> dict[str, Timing]:
        return {name: Timing.of(name, values) for name, values in self._times.items()}


def compare(
    ours: Timing, timings: Mapping[str, Timing], targets: Mapping[str, Target]
) -> tuple[Comparison, ...]:
    """Hold ours against every other timing."""
    found = []
    for name, peer in timings.items():
        if name == ours.name:
            continue
        target = targets.get(name)
        is_cost = target is not None and target.is_cost
        ratio = ours.p50 / peer.p50 if is_cost else peer.p50 / ours.p50
        found.append(Comparison(peer, ratio, target.value if target else None, is_cost))
    return tuple(found)
