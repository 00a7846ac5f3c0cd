"""The blocking wire to Redis or Valkey: redis-py's connections, in coroutines that never suspend.

Connections are kept here and not in redis-py's pool, which spends as much time on one as a read
of 20 KB takes.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import redis
from redis.exceptions import ResponseError

from toolkit.drivers.shelf_push import Subscriptions
from toolkit.drivers.shelf_push_blocking import Listener
from toolkit.drivers.shelf_wire import (
    Ledger,
    ShelfOptions,
    is_readable,
    outage_in,
    settings_of,
)

Connection: TypeAlias = Any  # redis-py's, which is half typed
_log = logging.getLogger("toolkit.drivers")
_PIECE = 262_144  # bytes that have to leave within the timeout
_PING = b"*1\r\n$4\r\nPING\r\n"
_JOIN_S = 1.0


class _Room:
    """The connections of one process, who listens, and who looks for the server when it is out."""

    def __init__(self, options: ShelfOptions) -> None:
        self.owner = os.getpid()
        self.turns = threading.BoundedSemaphore(options.max_connections)
        self.idle: list[Connection] = []
        self.is_closed = threading.Event()
        self.watcher: threading.Thread | None = None
        self.listener: Listener | None = None
        self.lock = threading.Lock()

    def hush(self) -> None:
        """Let nobody listen any more."""
        if self.listener is not None:
            self.listener.stop()

    def empty(self) -> None:
        """Close what is idle."""
        while self.idle:
            try:
                self.idle.pop().disconnect()
            except IndexError:  # another thread took the last one
                return


class BlockingWire:
    """Connections to one Redis; threads may share it, and a forked child makes its own."""

    def __init__(self, url: str, options: ShelfOptions | None = None) -> None:
        self.options = options or ShelfOptions()
        self._class, self._arguments, where = settings_of(
            redis.ConnectionPool, url, self.options, self.options.timeout
        )
        self.ledger = Ledger(where, self.options.breaker())
        self.subscriptions = Subscriptions(self.ledger, self.options.breaker())
        self._room = self._build()

    def __repr__(self) -> str:
        return f"BlockingWire({self.ledger!r})"

    def _build(self) -> _Room:
        room = _Room(self.options)
        # one that is forgotten unclosed ends its thread
        weakref.finalize(self, room.hush).atexit = False
        return room

    def _enter(self) -> _Room:
        room = self._room
        if room.owner != os.getpid():
            # sockets, locks and the watching thread are the parent's: leave them alone
            _log.info("forked: new connections to redis at %s", self.ledger.where)
            self.ledger = Ledger(self.ledger.where, self.options.breaker())
            self.subscriptions = Subscriptions(self.ledger, self.options.breaker())
            if room.listener is not None:
                room.listener.leave()
            room = self._room = self._build()
        return room

    def is_out(self) -> bool:
        if not self.ledger.is_open or self._room.owner != os.getpid():
            return False
        self.ledger.skip()
        return True

    async def exchange(self, request: bytes, replies: int, patience: float) -> list[Any] | None:
        room = self._room
        if room.owner != os.getpid():
            room = self._enter()
        ledger = self.ledger
        if ledger.is_open:
            ledger.skip()
            return None
        with room.turns:
            if ledger.is_open:
                ledger.skip()
                return None
            return self._exchange(room, ledger, request, replies)

    async def listen(self, channel: str, hear: Callable[[], None]) -> None:
        room = self._enter()
        is_new = self.subscriptions.add(channel, hear)
        listener = room.listener
        if listener is not None and listener.is_alive:
            if is_new:
                listener.wake()
            return
        with room.lock:
            if room.listener is not listener or not self.subscriptions.may_begin(time.monotonic()):
                return
            try:
                room.listener = Listener(
                    partial(_dial, self._class, self._arguments), self.subscriptions
                )
            except (RuntimeError, OSError) as error:  # no thread to be had, or no socket
                self.subscriptions.ended(time.monotonic(), error)

    def _exchange(
        self, room: _Room, ledger: Ledger, request: bytes, replies: int
    ) -> list[Any] | None:
        epoch, connection = ledger.epoch, None
        try:
            connection = _take(room) or _dial(self._class, self._arguments)
            answers = _ask(connection, request, replies)
            failure: BaseException | None = outage_in(answers)
        except Exception as error:  # whatever a parser trips over, Redis has said it
            failure = error
        except BaseException:
            if connection is not None:
                connection.disconnect()
            raise
        if failure is not None or connection is None:
            if connection is not None:
                connection.disconnect()
            self._fail(room, ledger, epoch, failure, connecting=connection is None)
            return None
        ledger.called(len(request))
        if ledger.epoch == epoch and not room.is_closed.is_set():
            room.idle.append(connection)
        else:
            connection.disconnect()
        return answers

    def _fail(
        self,
        room: _Room,
        ledger: Ledger,
        epoch: int,
        failure: BaseException | None,
        connecting: bool,
    ) -> None:
        assert failure is not None
        now = time.monotonic()
        if not ledger.fail(now, epoch, failure, connecting):
            return
        room.empty()
        watcher = threading.Thread(
            target=_watch, args=(weakref.ref(self), room, ledger), name="toolkit-redis", daemon=True
        )
        try:
            watcher.start()
        except RuntimeError:  # no thread to be had: the next caller looks
            ledger.back(now)
            return
        room.watcher = watcher

    def _probe(self) -> Connection:
        """Return a connection over which the server has answered."""
        connection = _dial(self._class, self._arguments)
        try:
            for answer in _ask(connection, _PING, 1):
                if answer != b"PONG":
                    raise answer if isinstance(answer, ResponseError) else ValueError("no PONG")
        except BaseException:
            connection.disconnect()
            raise
        return connection

    async def close(self) -> None:
        if self._room.owner != os.getpid():
            self._enter()  # nothing here is ours to close
            return
        room, self._room = self._room, self._build()
        room.is_closed.set()
        room.empty()
        if room.listener is not None:
            room.listener.stop()
            room.listener.join()
        if room.watcher is not None:
            room.watcher.join(_JOIN_S)
            self.ledger.back(time.monotonic())  # nobody watches any more: the next caller looks


def _dial(kind: type[Any], arguments: dict[str, Any]) -> Connection:
    connection = kind(**arguments)
    connection.connect()
    return connection


def _take(room: _Room) -> Connection | None:
    """Take the connection used last, if its server has not left it meanwhile."""
    while room.idle:
        try:
            connection = room.idle.pop()
        except IndexError:  # another thread was faster
            return None
        socket = connection._get_socket()
        try:
            if socket is not None and not is_readable(socket.fileno()):
                return connection
            if socket is not None and not connection.can_read():
                return connection  # only TLS had something to say
        except (redis.RedisError, OSError, ValueError):
            pass
        connection.disconnect()
    return None


def _ask(connection: Connection, request: bytes, replies: int) -> list[Any]:
    if len(request) <= _PIECE:
        connection.send_packed_command([request], check_health=False)
    else:
        view = memoryview(request)
        pieces = [view[i : i + _PIECE] for i in range(0, len(request), _PIECE)]
        connection.send_packed_command(pieces, check_health=False)
    answers = []
    for _ in range(replies):
        try:
            answers.append(connection.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers


def _watch(wire: weakref.ref[BlockingWire], room: _Room, ledger: Ledger) -> None:
    """Look for the server until it is back; a thread's work."""
    # the wire is held only while looking: one that is forgotten unclosed ends its thread
    while not room.is_closed.wait(ledger.pause(random.random())):  # noqa: S311
        if (watched := wire()) is None:
            return
        try:
            connection = watched._probe()
        except Exception as error:  # the top of a thread
            ledger.probed(error)
        else:
            room.idle.append(connection)
            ledger.back(time.monotonic())
            if room.is_closed.is_set():
                room.empty()
            return
        del watched
