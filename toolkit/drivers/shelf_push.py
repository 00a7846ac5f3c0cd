"""What a store listens for, over a connection to Redis or Valkey that comes and goes."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from secrets import token_hex
from threading import Lock
from typing import Any

from redis.exceptions import ResponseError

from toolkit.drivers.breaker import Breaker
from toolkit.drivers.shelf_wire import LOCKED, Ledger, kind_of

_log = logging.getLogger("toolkit.drivers")
QUIET_S = 10.0  # after so much silence the server is asked whether it is there
PATIENCE_S = 1.0  # it may take that long to connect, and to say that it is


class Subscriptions:
    """Channels and who hears of them; threads may share it.

    A message is a hint that may be lost, and who heard of none looks every now and then anyway:
    so a connection that is lost is nobody's trouble. Another is begun by who looks next, when
    its pause is over and the server is not out.
    """

    def __init__(self, ledger: Ledger, breaker: Breaker) -> None:
        self.sender = token_hex(8)  # begins what we publish: we know it already
        self._ledger = ledger
        self._breaker = breaker
        self._lock = Lock()
        self._hearers: dict[str, Callable[[], None]] = {}
        self._again_at = float("-inf")
        self._is_listening = False
        self._heard = 0

    def add(self, channel: str, hear: Callable[[], None]) -> bool:
        """Call ``hear`` from now on for each message of others; True if the channel is new."""
        with self._lock:
            is_new = channel not in self._hearers
            self._hearers[channel] = hear
            return is_new

    def besides(self, known: set[str]) -> list[str]:
        """Return the channels that are not yet subscribed to."""
        with self._lock:
            return [channel for channel in self._hearers if channel not in known]

    def may_begin(self, now: float) -> bool:
        """Tell whether to connect again."""
        return not self._ledger.is_open and now >= self._again_at

    def take(self, now: float, said: Any) -> None:
        """Take what a server said on the connection: RESP2 and RESP3 give the same list."""
        if not isinstance(said, list) or len(said) != 3:
            return  # a PONG
        kind, channel, data = said
        if kind == b"subscribe":
            self._begun(now)
        elif kind == b"message" and data != self.sender.encode():
            with self._lock:
                hear = self._hearers.get(channel.decode("utf-8", "surrogateescape"))
                self._heard += 1
            if hear is not None:
                hear()

    def ended(self, now: float, error: Exception | None = None) -> None:
        """Note that the connection is gone: with an error it was lost, else closed."""
        begins = False
        with self._lock:
            self._is_listening = False
            if error is not None:
                kind, epoch = kind_of(error), self._breaker.epoch
                begins = self._breaker.fail(now, epoch, kind, kind in LOCKED)
                self._again_at = now + self._breaker.pause(random.random())  # noqa: S311
        if isinstance(error, ResponseError):
            self._ledger.refused(now, error)
        elif begins and error is not None and not self._ledger.is_open:
            _log.info("redis at %s tells of no changes (%s)", self._ledger.where, kind_of(error))

    def stats(self) -> dict[str, float]:
        """Return plain counters: messages of others, and whether anybody listens."""
        return {"heard": self._heard, "is_listening": int(self._is_listening)}

    def _begun(self, now: float) -> None:
        with self._lock:
            self._is_listening = True
            is_back = self._breaker.is_open
            if is_back:
                self._breaker.close(now)
        if is_back:
            _log.info("redis at %s tells of changes again", self._ledger.where)
