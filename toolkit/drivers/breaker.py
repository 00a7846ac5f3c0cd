"""When to stop asking a server that is out, and when to look for it again; the clock comes in."""

from __future__ import annotations

from dataclasses import dataclass, field

_STEADY = 2.0  # an outage sooner than this many longest pauses after the last one is the same one


@dataclass(slots=True)
class Breaker:
    """Open from the first failure until somebody, beside the callers, finds the server back.

    ``epoch`` counts outages: a call remembers in which it began, so that one which began before
    an outage cannot begin the next when it fails late. Pauses between probes double from
    ``first`` to ``longest``, and go on from where they were when the server only flaps;
    ``locked`` is the pause where a probe alone will not help, as with a wrong password. Times
    are seconds. Not locked: whoever shares it has to.

    >>> breaker = Breaker(first=0.1, longest=5.0)
    >>> breaker.fail(10.0, epoch=0, reason="timeout"), breaker.fail(10.0, 0, "timeout")
    (True, False)
    >>> [breaker.pause(1.0) for _ in range(4)]
    [0.1, 0.2, 0.4, 0.8]
    >>> breaker.close(11.5), breaker.is_open
    (1.5, False)
    """

    first: float = 0.1
    longest: float = 5.0
    locked: float = 15.0
    is_open: bool = field(default=False, init=False)
    epoch: int = field(default=0, init=False)
    reason: str = field(default="", init=False)
    is_locked: bool = field(default=False, init=False)
    _pause: float = field(default=0.0, init=False)
    _opened_at: float = field(default=0.0, init=False)
    _closed_at: float = field(default=float("-inf"), init=False)

    def fail(self, now: float, epoch: int, reason: str, is_locked: bool = False) -> bool:
        """Note that a call which began in ``epoch`` failed; True if this begins an outage."""
        if self.is_open or epoch != self.epoch:
            return False
        self.is_open = True
        self.epoch += 1
        self.reason, self.is_locked = reason, is_locked
        self._opened_at = now
        if now - self._closed_at > _STEADY * self.longest:
            self._pause = self.first
        return True

    def learn(self, reason: str, is_locked: bool = False) -> bool:
        """Note what a probe met with; True if it is another reason than was known."""
        is_new = reason != self.reason
        self.reason, self.is_locked = reason, is_locked
        return is_new

    def pause(self, roll: float) -> float:
        """Return how long to wait before the next probe; ``roll`` in [0, 1] spreads processes."""
        pause, self._pause = self._pause, min(2 * self._pause, self.longest)
        return (self.locked if self.is_locked else pause) * (0.5 + roll / 2)

    def close(self, now: float) -> float:
        """Note that the server is back; return how long it was out."""
        self.is_open = False
        self._closed_at = now
        return now - self._opened_at
