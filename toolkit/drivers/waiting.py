"""How callers wait for a connection: in turns, between which one of them looks for the server."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import psycopg

from toolkit.drivers.failures import is_full, translate

_FIRST_TURN = 1.0  # seconds; later turns are longer, for who queues anew queues last


@dataclass(slots=True)
class Turns:
    """The turns of one caller's wait, which ends at ``until``.

    ``timeout`` is the caller's own, where that is what ends it.

    >>> turns = Turns.of(0.0, limit=5.0)
    >>> turns.next(0.0), turns.next(1.0), turns.next(3.0), turns.is_over(5.0)
    (1.0, 2.0, 2.0, True)
    """

    until: float
    timeout: float | None = None
    _length: float = _FIRST_TURN

    @classmethod
    def of(cls, now: float, limit: float, timeout: float | None = None) -> Turns:
        """Return the turns of a wait that the pool limits, and perhaps the caller's timeout."""
        if timeout is None or timeout >= limit:
            return cls(now + limit)
        return cls(now + timeout, timeout)

    def next(self, now: float) -> float:
        """Return how many seconds the next turn takes."""
        length, self._length = self._length, 2 * self._length
        return max(0.0, min(length, self.until - now))

    def is_over(self, now: float) -> bool:
        """Tell whether the caller has waited long enough."""
        return now >= self.until


class Lookout:
    """Who looks whether the server is still there: one at a time; all who wait hear of it.

    Safe to share between threads, and between the tasks of a loop. Where the server
    ``is_watched`` nobody here looks: who waits is told when it is gone.
    """

    def __init__(self, is_watched: bool = False) -> None:
        self._is_watched = is_watched
        self._lock = Lock()
        self._is_out = False
        self._seen_at = float("-inf")
        self._failure: psycopg.Error | None = None

    def begin(self, since: float, node: str) -> bool:
        """Say whether to look now; raise what somebody has found to be wrong ``since`` then."""
        if self._is_watched:
            return False
        with self._lock:
            if self._seen_at < since:
                should, self._is_out = not self._is_out, True
                return should
            failure = self._failure
        if failure is not None:
            raise translate(failure, node) from failure
        return False

    def end(self, now: float, failure: psycopg.Error | None) -> None:
        """Tell what was found; a server that only has no connection left is there."""
        with self._lock:
            self._is_out = False
            self._seen_at = now
            self._failure = None if failure is None or is_full(failure) else failure


def left(timeout: float | None, seconds: float) -> float | None:
    """Return what is left of a timeout after some seconds.

    >>> left(None, 3.0), left(2.0, 0.5), left(2.0, 3.0)
    (None, 1.5, 0.0)
    """
    return None if timeout is None else max(0.0, timeout - seconds)
