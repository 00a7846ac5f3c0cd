"""Tier 1: decoded spans in this process, the least used thrown out first; shared by threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from toolkit.timegrid import Instants

Array = npt.NDArray[Any]
Key = tuple[tuple[int, str, int], int, int]
"""A level's key, a series' id, and where the span begins."""

_OVERHEAD = 1_000  # bytes that a span costs beside its arrays, about


@dataclass(slots=True, eq=False)
class Held:
    """A span's rows up to ``upto``, which is its end or where it was still open.

    Arrays are read-only; ``codes`` are as many zeros. Times are of the caller's clock: from ``due``
    on it is worth fetching anew, from ``expires`` on it is not held any more. ``right_until`` is
    when it was last known to be right, once it has changed.
    """

    start: int
    upto: int
    ts: Instants
    codes: npt.NDArray[np.int32]
    values: Mapping[str, Array]
    categories: Mapping[str, tuple[str, ...]]
    expires: float
    due: float
    right_until: float = inf

    @property
    def size(self) -> int:
        """The bytes it takes."""
        return _OVERHEAD + sum(a.nbytes for a in self.arrays)

    @property
    def arrays(self) -> list[Array]:
        """Everything it holds."""
        return [self.ts, self.codes, *self.values.values()]

    def lock_up(self) -> None:
        """Make everything it holds read-only."""
        for array in self.arrays:
            _lock_up(array)


@dataclass(slots=True, eq=False)
class Fill:
    """A fetch under way of some spans; a change to any of them while it runs spoils it."""

    keys: frozenset[Key]
    low: int
    high: int
    is_spoiled: bool = False
    is_ended: bool = False


@dataclass(slots=True)
class Counts:
    """What happened, since the memory was made."""

    hits: int = 0
    misses: int = 0
    puts: int = 0
    evicted: int = 0
    dropped: int = 0
    spoiled: int = 0
    waits: int = 0


class Memory:
    """Spans by key, at most ``most`` bytes of them.

    A fill is announced before its statement is sent and handed in afterwards: what changed in
    between, as far as anybody here has heard, spoils it. What is heard of later drops the span.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts = Counts()
        self._lock = Lock()
        self._spans = _Spans(most, self.counts)
        self._fills: set[Fill] = set()

    def get(self, key: Key, now: float, since: float = inf) -> Held | None:
        """Return a span that has not expired, and was right at ``since``, by default is so now."""
        with self._lock:
            held: Held | None = self._spans.get(key)
            if held is not None and held.expires > now and held.right_until >= since:
                self.counts.hits += 1
                return held
        self.counts.misses += 1
        return None

    def peek(self, key: Key, now: float) -> Held | None:
        """Return a span that is right and not yet due; a miss is not counted."""
        with self._lock:
            held: Held | None = self._spans.get(key)
            if held is not None and held.due > now and held.right_until == inf:
                self.counts.hits += 1
                return held
        return None

    def holds(self, key: Key) -> bool:
        """Return whether a span is held, if perhaps expired; nothing is counted or moved."""
        held = self._spans.glance(key)
        return held is not None and held.right_until == inf

    def has(self, keys: Iterable[Key], now: float) -> bool:
        """Return whether spans are held and not yet due, all of them."""
        return all(self.peek(k, now) is not None for k in keys)

    def begin(self, keys: Iterable[Key], low: int, high: int) -> Fill:
        """Announce a fetch of spans that lie within ``[low, high)``."""
        fill = Fill(frozenset(keys), low, high)
        with self._lock:
            self._fills.add(fill)
        return fill

    def end(self, fill: Fill, spans: Mapping[Key, Held]) -> bool:
        """Take what a fetch brought, unless it was spoiled; with nothing, it has failed.

        Only the first end of a fill counts.
        """
        for held in spans.values():
            held.lock_up()
        with self._lock:
            if fill.is_ended:
                return False
            fill.is_ended = True
            if fill.is_spoiled:
                self.counts.spoiled += 1
                return False
            for key, held in spans.items():
                if held.size <= self.most:
                    self._spans[key] = held
                    self.counts.puts += 1
            return True

    def leave(self, fill: Fill) -> None:
        """Hear that nobody can join a fetch any more: until then changes spoil it, ended or not."""
        with self._lock:
            self._fills.discard(fill)

    def drop(
        self, dataset: int, series: int, low: int, high: int, *, right_until: float | None = None
    ) -> int:
        """Forget the spans that hold any of ``[low, high)`` of a series; say how many.

        With ``right_until`` they stay for those who may have something as old.
        """
        with self._lock:
            found = self._spans.of(dataset, series)
            gone = [k for k, held in found.items() if held.start < high and held.upto > low]
            for fill in self._fills:
                if fill.low < high and fill.high > low:
                    fill.is_spoiled |= any(k[1] == series and k[0][0] == dataset for k in fill.keys)
            if right_until is None:
                return self._drop(gone)
            changed = [held for k in gone if (held := found[k]).right_until == inf]
            for held in changed:
                held.right_until = right_until
            self.counts.dropped += len(changed)
            return len(changed)

    def drop_all(self, dataset: int) -> int:
        """Forget the spans of a dataset; say how many."""
        with self._lock:
            for fill in self._fills:
                fill.is_spoiled |= any(k[0][0] == dataset for k in fill.keys)
            return self._drop([k for k in self._spans if k[0][0] == dataset])

    def _drop(self, keys: list[Key]) -> int:
        for key in keys:
            del self._spans[key]
        self.counts.dropped += len(keys)
        return len(keys)

    def clear(self) -> None:
        """Forget everything; what is under way is spoiled."""
        with self._lock:
            self.counts.dropped += len(self._spans)
            self._spans = _Spans(self.most, self.counts)
            for fill in self._fills:
                fill.is_spoiled = True

    def held(self) -> list[tuple[Key, Held]]:
        """Return what is held and right, the least used first."""
        with self._lock:
            return [(k, held) for k, held in self._spans.items() if held.right_until == inf]

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def size(self) -> int:
        """The bytes held."""
        return int(self._spans.currsize)


class _Spans(LRUCache[Key, Held]):
    """An LRU cache that knows which spans each series has."""

    def __init__(self, most: int, counts: Counts) -> None:
        super().__init__(most, getsizeof=lambda held: held.size)
        self._counts = counts
        self._of: dict[tuple[int, int], dict[Key, Held]] = {}

    def __setitem__(self, key: Key, value: Held, *args: Any, **options: Any) -> None:
        super().__setitem__(key, value, *args, **options)
        self._of.setdefault((key[0][0], key[1]), {})[key] = value

    def __delitem__(self, key: Key, *args: Any, **options: Any) -> None:
        super().__delitem__(key, *args, **options)
        of = self._of[key[0][0], key[1]]
        del of[key]
        if not of:
            del self._of[key[0][0], key[1]]

    def popitem(self) -> tuple[Key, Held]:
        self._counts.evicted += 1
        return super().popitem()

    def glance(self, key: Key) -> Held | None:
        """Return a span, and do not count that as use."""
        return self._of.get((key[0][0], key[1]), {}).get(key)

    def of(self, dataset: int, series: int) -> dict[Key, Held]:
        """Return the spans of a series."""
        return self._of.get((dataset, series), {})


def _lock_up(array: Array) -> None:
    """Make an array read-only, and what it is a part of: a part can be made writeable else."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        owner = owner.base
