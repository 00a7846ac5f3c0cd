"""What a service's process says of itself: its store's counters, and its memory."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.counters import By, Times
from toolkit.metrics.table import (
    BOUNDS_S,
    METRICS,
    PROCESS,
    Datasets,
    Histogram,
    Metric,
    Values,
)

if TYPE_CHECKING:
    from toolkit.aio import AsyncStore
    from toolkit.store import Store

_MIB = 1 << 20
_HOUR = 3600.0
_SPACING = 30.0  # seconds between two looks that a trend is made of
_LEAST = 300.0  # below that it is noise
_ERRORS = ("Unavailable", "QueryTimeout", "Overloaded", "DatabaseError")
_OPTIONAL = ("cache_", "redis_", "admission_")
_PLACES = {"cache": "memory", "redis": "redis", "database": "database"}


class Trend:
    """How fast something grows, from looks at it within the last hour, by least squares.

    >>> trend = Trend()
    >>> for minute in range(10): trend.add(60.0 * minute, 1_000.0 + 10 * minute)
    >>> trend.per_hour
    600.0
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        """Note a look; those that follow another too soon are passed over."""
        looks = self._looks
        if looks and now - looks[-1][0] < _SPACING:
            return
        looks.append((now, value))
        while now - looks[0][0] > _HOUR:
            looks.popleft()

    @property
    def per_hour(self) -> float:
        """How much it grows in an hour; NaN where that cannot be told yet."""
        looks = list(self._looks)
        if not looks or looks[-1][0] - looks[0][0] < _LEAST:
            return math.nan
        middle = sum(at for at, _ in looks) / len(looks)
        level = sum(value for _, value in looks) / len(looks)
        above = sum((at - middle) * (value - level) for at, value in looks)
        return round(above / sum((at - middle) ** 2 for at, _ in looks) * _HOUR, 3)


class Process:
    """Reads the metrics of a store in this process; they cost nothing until they are asked for."""

    def __init__(
        self, store: Store | AsyncStore, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._roads = store._roads
        self._clock = clock
        self._datasets = Datasets()
        self._trends = {"process": Trend(), "cache": Trend()}

    def values(self) -> Values:
        """Return the metrics as they are now."""
        from toolkit import __version__

        roads = self._roads
        stats = roads.stats()
        reads = roads.counters.reads()
        found: Values = {"build_info": {(__version__,): 1.0}}
        found |= self._reads(reads)
        nodes = [] if roads.cluster is None else list(roads.cluster.drivers)
        for metric in METRICS:
            if metric.of == PROCESS and metric.stats:
                values = _by_node(metric, stats, nodes) if metric.is_by_node else _of(metric, stats)
                if values:
                    found[metric.name] = values
        if not nodes:
            asked = sum(times.count for times in reads["database"].values())
            found["node_reads"] = {("primary",): asked}
        errors = dict.fromkeys(_ERRORS, 0.0) | {
            name.removeprefix("errors_"): count
            for name, count in stats.items()
            if name.startswith("errors_")
        }
        found["errors"] = {(error,): count for error, count in errors.items()}
        breakers = {n: stats[f"node_is_ejected.{n}"] for n in nodes}
        if "redis_is_out" in stats:
            breakers["redis"] = stats["redis_is_out"]
        found["breaker_open"] = {(of,): is_open for of, is_open in breakers.items()}
        return found | self._memory(stats, roads.settings.cache.memory)

    def _reads(self, reads: Mapping[str, Mapping[By, Times]]) -> Values:
        label = self._datasets.label
        found: Values = {
            "reads": {},
            "rows_returned": {(): 0.0},
            "rows_touched": {(): 0.0},
            "answer_bytes": {},
            "read_duration_seconds": {},
        }

        def add(metric: str, labels: tuple[str, ...], value: float) -> None:
            here = found[metric]
            before = here.get(labels, 0.0)
            assert not isinstance(before, Histogram)
            here[labels] = before + value

        for place, several in reads.items():
            source = (_PLACES[place],)
            for (strategy, dataset), times in several.items():
                add("reads", (label(dataset), strategy), times.count)
                add("rows_returned", (), times.returned)
                add("rows_touched", (), times.touched)
            every = Times.all_of(several.values())
            found["read_duration_seconds"][source] = Histogram(
                tuple(every.below(b * 1000 for b in BOUNDS_S)), every.count, every.total / 1000
            )
            if place != "cache":
                add("answer_bytes", source, every.moved)
        return found

    def _memory(self, stats: Mapping[str, float], cache_mib: int) -> Values:
        now, resident, cached = self._clock(), resident_bytes(), stats.get("cache_bytes", 0.0)
        found: Values = {"cache_max_bytes": {(): float(cache_mib * _MIB)}}
        limit = limit_bytes()
        if limit is not None:
            found["process_limit_bytes"] = {(): limit}
        if resident is not None:
            found["process_resident_bytes"] = {(): resident}
            self._trends["process"].add(now, resident)
        self._trends["cache"].add(now, cached)
        found["memory_trend_bytes_per_hour"] = {
            (of,): trend.per_hour for of, trend in self._trends.items()
        }
        return found


def _of(metric: Metric, stats: Mapping[str, float]) -> dict[tuple[str, ...], float | Histogram]:
    """Return a metric's counters: 0 of what never happened, nothing of a part that is not there."""
    return {
        (label,) if label else (): stats.get(stat, 0.0) * metric.scale
        for label, stat in metric.stats.items()
        if stat in stats or not stat.startswith(_OPTIONAL)
    }


def _by_node(
    metric: Metric, stats: Mapping[str, float], nodes: list[str]
) -> dict[tuple[str, ...], float | Histogram]:
    (stat,) = metric.stats.values()
    names = {n: f"{stat}.{n}" for n in nodes} if nodes else {"primary": stat}
    return {(n,): stats[key] * metric.scale for n, key in names.items() if key in stats}


def resident_bytes() -> float | None:
    """Return what this process takes of memory; None where that is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def limit_bytes(root: Path = Path("/")) -> float | None:
    """Return what this process may take: its control group's limit, else the machine's memory."""
    found = []
    for place in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(float((root / place).read_text()))
        except (OSError, ValueError):  # "max"
            continue
    try:
        said = (root / "proc/meminfo").read_text().split()
        found.append(float(said[said.index("MemTotal:") + 1]) * 1024)
    except (OSError, ValueError):
        pass
    return min(found, default=None)
