"""Who is let in when there is more to do than can be done: by priority, each caller its share."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from threading import Lock

PRIORITIES = ("urgent", "normal", "batch")
_MOST_CALLERS = 10_000
_HINTS = 100  # who is refused is told one of so many times to come back
_ROUNDING = 1e-6  # of a token


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
    """No turn in time; after ``retry_after`` seconds there may be one, and ``limit`` is why."""

    def __init__(self, why: str, limit: str, retry_after: float) -> None:
        super().__init__(why)
        self.limit = limit
        self.retry_after = retry_after


@dataclass(slots=True)
class _Hints:
    """When to come back: each a step later than the one before, lest all come at once."""

    last: float = 0.0

    def next(self, now: float, wait: float, step: float) -> float:
        """Return in how many seconds, ``wait`` at least."""
        at = max(now + wait, self.last + step)
        if at > now + wait + _HINTS * step:  # many did not listen: from the front again
            at = now + wait
        self.last = at
        return max(at - now, 0.001)


@dataclass(slots=True)
class Bucket:
    """A caller's tokens: ``rate`` new ones a second, at most ``burst``; and who waits for one.

    >>> bucket = Bucket(rate=2.0, burst=1)
    >>> bucket.wait(10.0), bucket.take(), bucket.wait(10.0), bucket.wait(10.25, ahead=1)
    (0.0, None, 0.5, 0.75)
    """

    rate: float
    burst: int
    tokens: float = field(default=math.nan)
    at: float = 0.0
    line: list[tuple[int, int]] = field(default_factory=list)
    hints: _Hints = field(default_factory=_Hints)

    def wait(self, now: float, ahead: int = 0) -> float:
        """Return in how many seconds there is a token for who has so many others ahead."""
        if math.isnan(self.tokens):
            self.tokens, self.at = float(self.burst), now
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        missing = ahead + 1 - self.tokens
        return missing / self.rate if missing > _ROUNDING else 0.0

    def take(self) -> None:
        """Take a token."""
        self.tokens -= 1


@dataclass(slots=True)
class Place:
    """One call's place in its caller's line for a token, and until when it waits."""

    caller: str
    bucket: Bucket = field(repr=False)
    rank: tuple[int, int]
    until: float
    has_waited: bool = False


class Admission:
    """Turns for calls; threads and loops may share it.

    A call needs a token of its caller (:meth:`join`, :meth:`token`), then room (:meth:`enter`).
    Who finds none waits in line with those of the same priority; a more urgent one goes first. A
    call whose turn cannot come within its deadline is refused at once, and costs nothing.
    """

    def __init__(self, options: AdmissionOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._lock = Lock()
        self._numbers = count()
        self._buckets: dict[str, Bucket] = {}
        self._lines: dict[str, deque[tuple[Future[None], float]]] = {p: deque() for p in PRIORITIES}
        self._hints = _Hints()
        self._queueing = 0  # in callers' lines
        self.inflight = 0
        self.refused = 0
        self.waited = 0
        self._took = 0.0  # seconds a call takes, a moving average

    def deadline(self, priority: str) -> float:
        """Return how many seconds a call of a priority waits at most."""
        seconds: float = getattr(self._options, priority)
        return seconds

    # -- each caller its share -----------------------------------------------------------------

    def join(self, caller: str, priority: str, until: float) -> Place | None:
        """Stand in the caller's line; None where ``rate`` bounds nobody."""
        if not self._options.rate:
            return None
        with self._lock:
            bucket = self._bucket(caller)
            rank = PRIORITIES.index(priority), next(self._numbers)
            insort(bucket.line, rank)
            self._queueing += 1
            return Place(caller, bucket, rank, until)

    def token(self, mine: Place) -> float:
        """Take a token and return 0, or return in how many seconds to ask again.

        Raises Refused. Who does not go on, refused or not, has to :meth:`withdraw`.
        """
        now, bucket = self._clock(), mine.bucket
        with self._lock:
            ahead = bisect_left(bucket.line, mine.rank)
            wait = bucket.wait(now, ahead)
            if wait and now + wait > mine.until:
                self.refused += 1
                who = f"caller {mine.caller!r} asks" if mine.caller else "reads without caller ask"
                raise Refused(
                    f"{who} for more than {bucket.rate:g} a second",
                    "rate",
                    # behind all those who wait, also after us
                    bucket.hints.next(now, bucket.wait(now, len(bucket.line) - 1), 1 / bucket.rate),
                )
            if wait:
                self.waited += not mine.has_waited
                mine.has_waited = True
            else:
                bucket.take()
                del bucket.line[ahead]
                self._queueing -= 1
            return wait

    def withdraw(self, mine: Place) -> None:
        """Leave the caller's line, or give back a token that was of no use."""
        with self._lock:
            if mine.rank in mine.bucket.line:
                mine.bucket.line.remove(mine.rank)
                self._queueing -= 1
            else:
                mine.bucket.tokens += 1

    # -- so many at once -----------------------------------------------------------------------

    def enter(self, priority: str, until: float) -> Future[None] | None:
        """Return None for a call that may go on, or what will be done when it is its turn.

        Raises Refused. Who was let in has to :meth:`leave`; who gives up waiting, to
        :meth:`give_up`.
        """
        now, most = self._clock(), self._options.max_inflight
        with self._lock:
            ahead = self._ahead(priority, now)
            if not most or (self.inflight < most and not ahead):
                self.inflight += 1
                return None
            expected = self._took * (ahead + 1) / most
            if now + expected > until:
                self.refused += 1
                raise self._crowded(now, ahead, expected)
            turn: Future[None] = Future()
            self._lines[priority].append((turn, until))
            self.waited += 1
            return turn

    def give_up(self, turn: Future[None]) -> Refused | None:
        """Leave the line; None if the turn has come at the last moment."""
        with self._lock:
            if not turn.cancel():
                return None
            self.refused += 1
            ahead = sum(len(line) for line in self._lines.values())
            expected = self._took * ahead / max(self._options.max_inflight, 1)
            return self._crowded(self._clock(), ahead, expected)

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

    def _crowded(self, now: float, ahead: int, expected: float) -> Refused:
        step = self._took / max(self._options.max_inflight, 1)
        why = f"{self.inflight} reads are under way and {ahead} wait"
        return Refused(why, "max_inflight", self._hints.next(now, expected, step))

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
        found = self._buckets.pop(caller, None)
        if found is None:
            if len(self._buckets) >= _MOST_CALLERS:  # the one that was silent longest is full again
                del self._buckets[next(iter(self._buckets))]
            found = Bucket(self._options.rate, self._options.burst)
        self._buckets[caller] = found  # the last of them, who asks now
        return found

    def stats(self) -> dict[str, float]:
        """Return plain counters."""
        waiting = sum(len(line) for line in self._lines.values())
        return {
            "admission_inflight": self.inflight,
            "admission_waiting": self._queueing + waiting,
            "admission_waited": self.waited,
            "admission_refused": self.refused,
        }
