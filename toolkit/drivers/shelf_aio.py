"""The asyncio wire to Redis or Valkey: redis-py's async connections.

Connections are kept here and not in redis-py's pool, and one deadline bounds an exchange in place
of redis-py's for each step: that is half of the time of a read of 20 KB.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import redis
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from toolkit.drivers.shelf_push import Subscriptions
from toolkit.drivers.shelf_push_aio import AsyncListener
from toolkit.drivers.shelf_wire import (
    Ledger,
    ShelfOptions,
    is_readable,
    outage_in,
    settings_of,
)

_log = logging.getLogger("toolkit.drivers")
_GRACE_S = 0.01
_PING = b"*1\r\n$4\r\nPING\r\n"


class _Room:
    """The connections of one event loop, who listens, and who looks for a server that is out."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: ShelfOptions) -> None:
        self.loop = loop
        self.owner = os.getpid()
        self.turns = asyncio.Semaphore(options.max_connections)
        self.idle: list[aioredis.Connection] = []
        self.is_closed = False
        self.watcher: asyncio.Task[None] | None = None
        self.listener: AsyncListener | None = None
        self.keeper = self._keep()

    async def _keep(self) -> AsyncGenerator[None]:
        # asyncio.run ends a loop's generators before it closes the loop: a last chance to
        # close the connections, if nobody closed the store
        try:
            yield
        finally:
            await self.close()

    async def empty(self) -> None:
        """Close what is idle."""
        while self.idle:
            await _drop(self.idle.pop())

    async def close(self) -> None:
        """Close what is idle; stop listening, and looking for the server."""
        self.is_closed = True
        tasks = (self.watcher, self.listener.task if self.listener is not None else None)
        self.watcher = self.listener = None
        for task in tasks:
            if task is not None and not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self.empty()


class AsyncWire:
    """Connections to one Redis, for one event loop at a time; the next loop makes its own."""

    def __init__(self, url: str, options: ShelfOptions | None = None) -> None:
        self.options = options or ShelfOptions()
        self._class, self._arguments, where = settings_of(
            aioredis.ConnectionPool, url, self.options, None
        )
        self.ledger = Ledger(where, self.options.breaker())
        self.subscriptions = Subscriptions(self.ledger, self.options.breaker())
        self._room: _Room | None = None
        self._left: _Room | None = None

    def __repr__(self) -> str:
        return f"AsyncWire({self.ledger!r})"

    async def _enter(self, loop: asyncio.AbstractEventLoop) -> _Room:
        room = self._room
        if room is not None and room.loop is loop and room.owner == os.getpid():
            return room
        if room is not None and room.owner != os.getpid():
            _log.info("forked: new connections to redis at %s", self.ledger.where)
            self.ledger = Ledger(self.ledger.where, self.options.breaker())
            self.subscriptions = Subscriptions(self.ledger, self.options.breaker())
            # held, not closed: closing would reach into the epoll set of the parent's loop
            self._left = room
        room = self._room = _Room(loop, self.options)
        await anext(room.keeper)
        return room

    def is_out(self) -> bool:
        room = self._room
        if not self.ledger.is_open or room is None or room.owner != os.getpid():
            return False
        # a loop that inherits the outage of one that is gone goes the long way, once
        if room.loop is not asyncio.get_running_loop():
            return False
        self._watch_in(room)
        self.ledger.skip()
        return True

    async def exchange(self, request: bytes, replies: int, patience: float) -> list[Any] | None:
        loop = asyncio.get_running_loop()
        room = self._room
        if room is None or room.loop is not loop or room.owner != os.getpid():
            room = await self._enter(loop)
        ledger = self.ledger
        if ledger.is_open:
            self._watch_in(room)
            ledger.skip()
            return None
        async with room.turns:
            if ledger.is_open:
                ledger.skip()
                return None
            return await self._exchange(room, ledger, request, replies, patience)

    async def listen(self, channel: str, hear: Callable[[], None]) -> None:
        room = await self._enter(asyncio.get_running_loop())
        is_new = self.subscriptions.add(channel, hear)
        if room.listener is not None and room.listener.is_alive:
            if is_new:
                await room.listener.wake()
        elif self.subscriptions.may_begin(time.monotonic()):
            room.listener = AsyncListener(self._class, self._arguments, self.subscriptions)

    async def _exchange(
        self, room: _Room, ledger: Ledger, request: bytes, replies: int, patience: float
    ) -> list[Any] | None:
        epoch, connecting = ledger.epoch, False
        connection = await _take(room)
        if connection is None:
            connection, connecting = self._class(**self._arguments), True
        assert connection is not None
        try:
            async with asyncio.timeout(None) as limit:
                # a loop that was held up finds its timers due before it finds what has come:
                # so the first one only sets the second
                timer = room.loop.call_later(patience, _tighten, limit, room.loop)
                try:
                    if connecting:
                        await connection.connect()
                        connecting = False
                    answers = await _ask(connection, request, replies)
                finally:
                    timer.cancel()
            failure: BaseException | None = outage_in(answers)
        except Exception as error:  # whatever a parser trips over, Redis has said it
            failure = error
        except BaseException:
            await _drop(connection)
            raise
        if failure is not None:
            await _drop(connection)
            if ledger.fail(time.monotonic(), epoch, failure, connecting):
                self._watch_in(room)
                await room.empty()
            return None
        ledger.called(len(request))
        if ledger.epoch == epoch and not room.is_closed:
            room.idle.append(connection)
        else:
            await _drop(connection)
        return answers

    def _watch_in(self, room: _Room) -> None:
        # also when a loop inherits the outage of one that is gone, and its watcher with it
        if room.watcher is None or room.watcher.done():
            room.watcher = room.loop.create_task(self._watch(room, self.ledger))

    async def _watch(self, room: _Room, ledger: Ledger) -> None:
        """Look for the server until it is back; a task's work."""
        while ledger.is_open:
            await asyncio.sleep(ledger.pause(random.random()))  # noqa: S311
            connection = self._class(**self._arguments)
            try:
                async with asyncio.timeout(2 * self.options.timeout):
                    await connection.connect()
                    for answer in await _ask(connection, _PING, 1):
                        if answer != b"PONG":
                            is_error = isinstance(answer, ResponseError)
                            raise answer if is_error else ValueError("no PONG")
            except Exception as error:  # the top of a task
                await _drop(connection)
                ledger.probed(error)
            except BaseException:
                await _drop(connection)
                raise
            else:
                room.idle.append(connection)
                ledger.back(time.monotonic())

    async def close(self) -> None:
        room, self._room = self._room, None
        if room is None:
            return
        if room.owner != os.getpid():
            self._left = room
            return
        if room.loop is asyncio.get_running_loop():
            await room.keeper.aclose()
        self.ledger.back(time.monotonic())  # nobody watches any more: the next caller looks


def _tighten(limit: asyncio.Timeout, loop: asyncio.AbstractEventLoop) -> None:
    limit.reschedule(loop.time() + _GRACE_S)


async def _take(room: _Room) -> aioredis.Connection | None:
    """Take the connection used last, if its server has not left it meanwhile."""
    while room.idle:
        connection = room.idle.pop()
        try:
            if connection._writer is not None and not await connection.can_read():
                socket = connection._writer.get_extra_info("socket")
                if not is_readable(socket.fileno()):
                    return connection
        except (redis.RedisError, OSError, ValueError):
            pass
        await _drop(connection)
    return None


async def _ask(connection: aioredis.Connection, request: bytes, replies: int) -> list[Any]:
    await connection.send_packed_command(request, check_health=False)
    answers = []
    for _ in range(replies):
        try:
            answers.append(await connection.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers


async def _drop(connection: aioredis.Connection) -> None:
    with suppress(Exception):  # it is given up either way
        await connection.disconnect(nowait=True)
