"""Who is let in when there is more to do than can be done: by priority, each caller its share."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

PRIORITIES = ("urgent", "normal", "batch")
_MOST_CALLERS = 10_000


@dataclass(frozen=True, slots=True)
class AdmissionOptions:
    """How much may be under way, and how long each priority waits for its turn, in seconds.

    ``max_inflight`` calls at once (0: any number); ``rate`` of them a second for each caller (0:
    any), ``burst`` at once after a pause.
    """

    max_inflight: int = 0
    rate: float = 0.0
    burst: int = 10
    urgent: float = 0.05
    normal: float = 0.2
    batch: float = 1.0

    def __post_init__(self) -> None:
        for key in ("max_inflight", "rate", *PRIORITIES):
            if not 0 <= (value := getattr(self, key)) < math.inf:
                raise ValueError(f"{key}: {value!r} is not a number from 0 on")
        if not 1 <= self.burst < math.inf:
            raise ValueError(f"burst: {self.burst!r} is not a number from 1 on")

    @property
    def is_on(self) -> bool:
        """Whether anybody is ever made to wait."""
        return bool(self.max_inflight or self.rate)


class Refused(Exception):
    """No turn in time; after ``retry_after`` seconds there may be one."""

    def __init__(self, why: str, retry_after: float) -> None:
        super().__init__(why)
        self.retry_after = retry_after


@dataclass(slots=True)
class Bucket:
    """A caller's tokens: ``rate`` new ones a second, at most ``burst``.

    >>> bucket = Bucket(rate=2.0, burst=1)
    >>> bucket.wait(10.0), bucket.wait(10.0), bucket.wait(10.5)
    (0.0, 0.5, 0.0)
    """

    rate: float
    burst: int
    tokens: float = field(default=math.nan)
    at: float = 0.0

    def wait(self, now: float) -> float:
        """Take a token and return 0, or return in how many seconds there will be one."""
        if math.isnan(self.tokens):
            self.tokens, self.at = float(self.burst), now
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate


class Admission:
    """Turns for calls; threads and loops may share it.

    Who finds no room waits in line with those of the same priority; a more urgent line goes
    first. A call whose turn cannot come within its deadline is refused at once, and costs nothing.
    """

    def __init__(self, options: AdmissionOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._lock = Lock()
        self._buckets: dict[str, Bucket] = {}
        self._lines: dict[str, deque[tuple[Future[None], float]]] = {p: deque() for p in PRIORITIES}
        self.inflight = 0
        self.refused = 0
        self.waited = 0
        self._took = 0.0  # seconds a call takes, a moving average

    def deadline(self, priority: str) -> float:
        """Return how many seconds a call of a priority waits at most."""
        seconds: float = getattr(self._options, priority)
        return seconds

    def enter(self, caller: str, priority: str) -> Future[None] | None:
        """Return None for a call that may go on, or what will be done when it is its turn.

        Raises Refused. Who was let in has to :meth:`leave`; who gives up waiting, to
        :meth:`give_up`.
        """
        now, most = self._clock(), self._options.max_inflight
        with self._lock:
            if self._options.rate:
                wait = self._bucket(caller).wait(now)
                if wait:
                    self.refused += 1
                    raise Refused(f"caller {caller!r} asks more often than it may", wait)
            ahead = self._ahead(priority, now)
            if not most or (self.inflight < most and not ahead):
                self.inflight += 1
                return None
            expected = self._took * (ahead + 1) / most
            if expected > self.deadline(priority):
                self.refused += 1
                raise Refused(f"{self.inflight} calls are under way and {ahead} wait", expected)
            turn: Future[None] = Future()
            self._lines[priority].append((turn, now + self.deadline(priority)))
            self.waited += 1
            return turn

    def give_up(self, turn: Future[None]) -> Refused | None:
        """Leave the line; None if the turn has come at the last moment."""
        with self._lock:
            if not turn.cancel():
                return None
            self.refused += 1
            ahead = sum(len(line) for line in self._lines.values())
            after = max(self._took * ahead / max(self._options.max_inflight, 1), 0.001)
            return Refused(f"{self.inflight} calls are under way and {ahead} wait", after)

    def leave(self, seconds: float) -> None:
        """Hear that a call is done, and what it took; the next in line is let in."""
        with self._lock:
            self._took += 0.1 * (seconds - self._took)
            self.inflight -= 1
            while self.inflight < self._options.max_inflight:
                turn = self._next()
                if turn is None:
                    return
                self.inflight += 1
                turn.set_result(None)

    def _next(self) -> Future[None] | None:
        now = self._clock()
        for line in self._lines.values():
            while line:
                turn, until = line.popleft()
                if until > now and turn.set_running_or_notify_cancel():
                    return turn
        return None

    def _ahead(self, priority: str, now: float) -> int:
        ahead = 0
        for name, line in self._lines.items():
            while line and (line[0][1] <= now or line[0][0].cancelled()):
                line.popleft()
            ahead += len(line)
            if name == priority:
                break
        return ahead

    def _bucket(self, caller: str) -> Bucket:
        found = self._buckets.get(caller)
        if found is None:
            if len(self._buckets) >= _MOST_CALLERS:  # the one that was silent longest is full again
                del self._buckets[min(self._buckets, key=lambda c: self._buckets[c].at)]
            found = self._buckets[caller] = Bucket(self._options.rate, self._options.burst)
        return found

    def stats(self) -> dict[str, float]:
        """Return plain counters."""
        waiting = sum(len(line) for line in self._lines.values())
        return {
            "admission_inflight": self.inflight,
            "admission_waiting": waiting,
            "admission_waited": self.waited,
            "admission_refused": self.refused,
        }
