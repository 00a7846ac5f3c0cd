"""What a store counts of its calls: how many, what they touched, and how long reads took."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from math import log
from threading import Lock

from toolkit.strategy import HELD, Plan

_RATIO = 1.1  # between the bounds of a bucket: its middle is less than 5 % from all of it
_LEAST_MS = 0.001
_SCALE = 1 / log(_RATIO)
_FIRST = -log(_LEAST_MS) * _SCALE
_BUCKETS = 400  # up to what nobody waits for


class Times:
    """How long reads took, in ms, counted in buckets; quantiles are right to 5 %.

    Also the rows they returned and touched, and the bytes of answers that were not at hand.

    >>> times = Times()
    >>> for ms in range(1, 101): times.add(float(ms), 10)
    >>> times.count, round(times.mean, 1), 48 < times.quantile(0.5) < 53, times.returned
    (100, 50.5, True, 1000)
    """

    __slots__ = ("buckets", "moved", "returned", "total", "touched")

    def __init__(self) -> None:
        self.buckets = [0] * _BUCKETS
        self.total = 0.0
        self.returned = self.touched = self.moved = 0

    def add(self, ms: float, returned: int) -> None:
        """Count a read.

        Without a lock, which would cost as much as all of it: between the load and the store of
        a sum CPython lets no other thread run.
        """
        self.buckets[int(log(ms) * _SCALE + _FIRST) if ms > _LEAST_MS else 0] += 1
        self.total += ms
        self.returned += returned

    @classmethod
    def all_of(cls, several: Iterable[Times]) -> Times:
        """Return several as one."""
        found = cls()
        for one in several:
            found.buckets = [a + b for a, b in zip(found.buckets, one.buckets, strict=True)]
            found.total += one.total
            found.returned += one.returned
            found.touched += one.touched
            found.moved += one.moved
        return found

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    def below(self, bounds: Iterable[float]) -> list[int]:
        """Return how many took no longer than each bound, in ms; a bound is right to 5 %.

        >>> times = Times()
        >>> for ms in (0.5, 0.5, 20.0, 300.0): times.add(ms, 1)
        >>> times.below([0.1, 1.0, 100.0, 1000.0])
        [0, 2, 3, 4]
        """
        sums = list(accumulate(self.buckets, initial=0))
        places = (round(log(b) * _SCALE + _FIRST) for b in bounds)
        return [sums[min(max(place, 0), _BUCKETS)] for place in places]

    @property
    def mean(self) -> float:
        """Their mean, in ms."""
        return self.total / max(1, self.count)

    def quantile(self, share: float) -> float:
        """Return the time, in ms, that ``share`` of them did not exceed."""
        at = bisect_right(list(accumulate(self.buckets)), share * self.count)
        return float(_LEAST_MS * _RATIO ** (at + 0.5))

    def shown(self, name: str) -> dict[str, float]:
        """Return mean, p50, p95 and p99, under names that begin with ``name``."""
        if not self.count:
            return {}
        quantiles = {f"{name}_p{p}": self.quantile(p / 100) for p in (50, 95, 99)}
        return {f"{name}_mean": self.mean, **quantiles}


By = tuple[str, str]  # strategy and dataset
_Several = defaultdict[By, Times]


class Counters:
    """Plain counters of a store; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, int] = {}
        self._cache: _Several = defaultdict(Times)
        self._redis: _Several = defaultdict(Times)
        self._database: _Several = defaultdict(Times)

    def add(self, **counts: int) -> None:
        """Count what happened."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] = self._counts.get(name, 0) + count

    def add_read(self, plan: Plan, rows: int, dataset: str, size: int = 0) -> None:
        """Count a read, as one of the slowest place that it needed something from."""
        sources, by = plan.sources, (plan.strategy, dataset)
        if len(sources) == 1 and "memory" in sources:
            times = self._cache[by]
        elif sources and sources.keys() <= HELD:
            times = self._redis[by]
            times.moved += size
        else:
            times = self._database[by]
            touched = plan.rows
            times.touched += touched  # worked out before, so that nobody is let in between
            times.moved += size
        times.add(plan.elapsed_ms, rows)

    def reads(self) -> dict[str, dict[By, Times]]:
        """Return reads by where their answers came from, and there by strategy and dataset."""
        places = {"cache": self._cache, "redis": self._redis, "database": self._database}
        # list: another thread may add one meanwhile
        return {place: dict(list(found.items())) for place, found in places.items()}

    def shown(self) -> dict[str, float]:
        """Return the counts, and the times of reads by where their answers came from."""
        times = self.reads()
        every = Times.all_of(t for found in times.values() for t in found.values())
        with self._lock:
            counts: dict[str, float] = dict(self._counts)
        for found in times.values():
            for (strategy, _), one in found.items():
                name = f"reads_{strategy}"
                counts[name] = counts.get(name, 0) + one.count
        if every.count:
            counts["reads"] = every.count
        returned = counts.get("rows_returned", 0) + every.returned
        if every.count or returned:
            counts |= {"rows_touched": every.touched, "rows_returned": returned}
        counts = dict(sorted(counts.items())) | every.shown("read_ms")
        for place, found in times.items():
            if found:
                one = Times.all_of(found.values())
                counts |= {f"{place}_reads": one.count, **one.shown(f"{place}_read_ms")}
        return counts
