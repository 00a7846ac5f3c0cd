"""What both wires to Redis or Valkey share: options, what a failure means, and the ledger."""

from __future__ import annotations

import logging
import select
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, InvalidResponse, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from toolkit.drivers.breaker import Breaker
from toolkit.errors import ConfigError

if TYPE_CHECKING:
    from toolkit.drivers.shelf_push import Subscriptions

_log = logging.getLogger("toolkit.drivers")
_OUT = {"busy", "masterdown", "clusterdown", "loading"}  # a reply, but no answer
LOCKED = {"password", "noperm", "noproto", "err"}  # when connecting: waiting alone won't help
_QUIET_S = 60.0  # one line in the log a minute for each kind of refused command
_READ_SIZE = 65_536


@dataclass(frozen=True, slots=True)
class ShelfOptions:
    """How Redis is used; times in seconds.

    ``timeout`` is how long it may be silent: for connecting, for each step of the handshake and
    for a reply. ``protocol`` is RESP 2 or 3, ``origin`` where the URL came from.
    """

    timeout: float = 0.05
    max_connections: int = 32
    protocol: int = 3
    client_name: str = "toolkit"
    origin: str = "settings"
    first_pause: float = 0.1
    longest_pause: float = 5.0
    locked_pause: float = 15.0

    def breaker(self) -> Breaker:
        """Return a breaker with these pauses."""
        return Breaker(self.first_pause, self.longest_pause, self.locked_pause)


class Wire(Protocol):
    """One Redis behind a few connections; safe to share as the driver of the same colour is."""

    options: ShelfOptions
    ledger: Ledger
    subscriptions: Subscriptions

    def is_out(self) -> bool:
        """Tell, and count, that a call has to do without; in a microsecond."""

    async def exchange(self, request: bytes, replies: int, patience: float) -> list[Any] | None:
        """Send packed commands at once and return their replies; None when Redis is out.

        A refused command's reply is its ResponseError. ``patience`` bounds the whole exchange
        where the colour can do that (asyncio); else ``options.timeout`` bounds each silence.
        """

    async def listen(self, channel: str, hear: Callable[[], None]) -> None:
        """Call ``hear`` for messages of others, in the background; never waits for the server."""

    async def close(self) -> None:
        """Close every connection and stop looking for the server; a later call begins anew."""


def settings_of(
    pool: type[Any], url: str, options: ShelfOptions, timeout: float | None
) -> tuple[type[Any], dict[str, Any], str]:
    """Return the connection class of a URL, its arguments, and the address to name in logs.

    ``pool`` is redis-py's for the colour: it knows the classes. What stands in the URL's query
    wins, as it does in redis-py.
    """
    try:
        made = pool.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            socket_read_size=_READ_SIZE,
            health_check_interval=0,
            client_name=options.client_name,
            protocol=options.protocol,
            driver_info=None,  # CLIENT SETINFO: two round trips for nothing
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        arguments: dict[str, Any] = made.connection_kwargs | {"decode_responses": False}
        made.connection_class(**arguments)  # an option it does not know is told now
    except (ValueError, TypeError, redis.RedisError):
        # from None: what redis-py says may quote the URL, and that has the password
        problem = "not a Redis URL or not its options; give redis://, rediss:// or unix://"
        raise ConfigError(options.origin, "cache.redis", problem) from None
    where = arguments.get("path") or f"{arguments.get('host', 'localhost')}:{_port(arguments)}"
    return made.connection_class, arguments, str(where)


def _port(arguments: Mapping[str, Any]) -> Any:
    return arguments.get("port", 6379)


def kind_of(error: BaseException) -> str:
    """Name what went wrong in a word that can be counted and logged: never the text itself.

    >>> kind_of(redis.TimeoutError("…")), kind_of(ResponseError("BUSY Redis is busy")),
    ('timeout', 'busy')
    >>> kind_of(ResponseError("WRONGTYPE Operation …")), kind_of(ValueError("invalid literal"))
    ('wrongtype', 'protocol')
    """
    if isinstance(error, AuthenticationError):
        return "password"
    if isinstance(error, BusyLoadingError):
        return "loading"
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, redis.ConnectionError | OSError | EOFError):
        return "connection"
    if isinstance(error, ResponseError) and not isinstance(error, InvalidResponse):
        code = error.status_code or str(error).partition(" ")[0]
        return code.lower() if code.isalpha() and code.isupper() else "err"
    return "protocol"


def outage_in(replies: list[Any]) -> ResponseError | None:
    """Return the reply by which a server says that it cannot serve anybody now, if there is one."""
    for reply in replies:
        if isinstance(reply, ResponseError) and kind_of(reply) in _OUT:
            return reply
    return None


def is_readable(descriptor: int) -> bool:
    """Tell whether an idle connection has something to say: mostly, that its server left.

    A microsecond; redis-py's own ``can_read`` takes 11, and with hiredis 45.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


class Ledger:
    """The breaker of a server and the counters; threads may share it."""

    def __init__(self, where: str, breaker: Breaker) -> None:
        self.where = where
        self._breaker = breaker
        self._lock = Lock()
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._errors: Counter[str] = Counter()
        self._said_at: dict[str, float] = {}

    def __repr__(self) -> str:
        state = f"out: {self._breaker.reason}" if self._breaker.is_open else "in use"
        return f"<{self.where}, {state}>"

    @property
    def is_open(self) -> bool:
        """Whether the server is out, so that nobody asks it."""
        return self._breaker.is_open

    @property
    def reason(self) -> str:
        """Why the server is out, in a word; empty if it is not."""
        return self._breaker.reason if self._breaker.is_open else ""

    @property
    def epoch(self) -> int:
        """The number of outages so far."""
        return self._breaker.epoch

    def skip(self) -> None:
        """Count a call that was not made, because the server is out."""
        with self._lock:
            self._counts["skipped"] += 1

    def called(self, bytes_out: int) -> None:
        """Count a round trip that was answered."""
        with self._lock:
            self._counts["calls"] += 1
            self._counts["bytes_out"] += bytes_out

    def looked(self, values: list[Any]) -> None:
        """Count what a look brought; TypeError if that is no value at all."""
        missing = values.count(None)
        size = sum(map(len, values)) if not missing else sum(len(v) for v in values if v)
        with self._lock:
            self._counts["hits"] += len(values) - missing
            self._counts["misses"] += missing
            self._counts["bytes_in"] += size

    def fail(self, now: float, epoch: int, error: BaseException, connecting: bool) -> bool:
        """Note a failed call; True if it begins an outage, and so somebody has to watch."""
        kind = kind_of(error)
        with self._lock:
            self._errors[kind] += 1
            is_locked = kind == "password" or (connecting and kind in LOCKED)
            begins = self._breaker.fail(now, epoch, kind, is_locked)
        if begins:
            _log.warning("redis at %s is out (%s): doing without it", self.where, kind)
        return begins

    def refused(self, now: float, error: ResponseError) -> None:
        """Note a command that the server would not do, though it is there."""
        kind = kind_of(error)
        with self._lock:
            self._errors[kind] += 1
            is_said = now - self._said_at.get(kind, float("-inf")) < _QUIET_S
            if not is_said:
                self._said_at[kind] = now
        if not is_said:
            _log.warning("redis at %s refused a command (%s)", self.where, kind)

    def pause(self, roll: float) -> float:
        """Return how long to wait before looking for the server."""
        with self._lock:
            return self._breaker.pause(roll)

    def probed(self, error: BaseException) -> None:
        """Note that the server was looked for and is not back."""
        kind = kind_of(error)
        with self._lock:
            self._counts["probes"] += 1
            is_new = self._breaker.learn(kind, kind in LOCKED)
        if is_new:
            _log.info("redis at %s is still out (%s)", self.where, kind)

    def back(self, now: float) -> None:
        """Note that the server is there again."""
        with self._lock:
            if not self._breaker.is_open:
                return
            seconds = self._breaker.close(now)
        _log.info("redis at %s is back after %.1f s", self.where, seconds)

    def stats(self) -> dict[str, float]:
        """Return the counters; errors are counted by kind as ``errors_timeout`` and so on."""
        with self._lock:
            counts: dict[str, float] = dict(self._counts)
            counts |= {f"errors_{kind}": n for kind, n in sorted(self._errors.items())}
            counts["outages"] = self._breaker.epoch
            counts["is_out"] = int(self._breaker.is_open)
            return counts


_COUNTED = ("calls", "skipped", "probes", "hits", "misses", "bytes_in", "bytes_out")
