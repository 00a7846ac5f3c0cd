"""What this process has on its way to each node, how fast that comes back, and how often not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

_DECAY = 10.0  # seconds after which an old latency counts for a third
_LEAST = 0.0001
_FIRST = 0.001  # seconds a node is taken to need that was never asked


@dataclass(slots=True, eq=False)
class Load:
    """One node's traffic; latency is a peak-sensitive moving average, in seconds.

    A slow answer counts at once, and is forgotten in the course of seconds: a node that became
    slow is left alone before many calls wait there. (The estimator is that of Finagle's
    power-of-two-choices balancer.) ``answered`` counts reads, ``left`` those that it failed and
    that went on elsewhere.

    >>> load = Load()
    >>> load.done(10.0, 0.001), load.done(10.1, 0.2), load.done(20.1, 0.001)
    (None, None, None)
    >>> round(load.latency, 3)
    0.074
    """

    name: str = ""
    weight: float = 1.0
    region: str = ""
    inflight: int = 0
    latency: float = _FIRST
    turn: float = 0.0
    failures: int = 0
    ejections: int = 0
    answered: int = 0
    left: int = 0
    ejected_until: float = -math.inf
    _at: float = -math.inf

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count what the block does as on its way."""
        self.inflight += 1
        try:
            yield
        finally:
            self.inflight -= 1

    def is_stuck(self, now: float, seconds: float) -> bool:
        """Tell whether something is on its way, and nothing has come back for so long."""
        return self.inflight > 0 and now - self._at > seconds

    def done(self, now: float, seconds: float) -> None:
        """Note an answer and what it took."""
        self.failures = 0
        keep = math.exp(-(now - self._at) / _DECAY)
        self._at = now
        if seconds > self.latency:
            self.latency = seconds
        else:
            self.latency = self.latency * keep + seconds * (1 - keep)

    def cost(self, now: float) -> float:
        """Return what the next call there is expected to cost, in seconds, by its weight.

        What was slow is forgiven in time, or nobody would ever find out that it no longer is.
        """
        latency = max(self.latency * math.exp(-(now - self._at) / _DECAY), _LEAST)
        return latency * (self.inflight + 1) / (self.weight or 1e-6)


@dataclass(frozen=True, slots=True)
class Ejection:
    """When a node that answers, but with failures, is left alone: the breaker of each node.

    After ``failures`` in a row for ``first`` seconds, twice as long each time, at most
    ``longest``; and never more than ``most`` of the nodes at once: when nearly all fail, it is
    not the nodes.
    """

    failures: int = 5
    first: float = 1.0
    longest: float = 30.0
    most: float = 0.5

    def failed(self, load: Load, loads: Mapping[str, Load], now: float) -> bool:
        """Note a failure; True if the node is left alone from now on."""
        load.failures += 1
        if load.failures < self.failures or load.ejected_until > now:
            return False
        out = sum(other.ejected_until > now for other in loads.values())
        if (out + 1) > self.most * len(loads):
            return False
        if now - load.ejected_until > self.longest:
            load.ejections = 0
        pause = min(self.first * 2**load.ejections, self.longest)
        load.ejections += 1
        load.ejected_until = now + pause
        load.failures = self.failures - 1  # the first call after the pause decides
        return True
