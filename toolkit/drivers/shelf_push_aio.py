"""The task that hears what others publish on a Redis or Valkey, for the asyncio wire."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, TypeAlias

import redis

from toolkit.drivers.shelf_push import PATIENCE_S, QUIET_S, Subscriptions

Connection: TypeAlias = Any  # redis-py's, which is half typed


class AsyncListener:
    """One connection and the task that reads it, until it is lost or cancelled."""

    def __init__(
        self, kind: type[Any], arguments: dict[str, Any], subscriptions: Subscriptions
    ) -> None:
        # not the wire: one that is forgotten unclosed ends its task
        self._kind = kind
        self._arguments = arguments
        self._subscriptions = subscriptions
        self._subscribed: set[str] = set()
        self._connection: Connection | None = None
        self.task = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_alive(self) -> bool:
        """Whether it listens, or is about to."""
        return not self.task.done()

    async def wake(self) -> None:
        """Subscribe to what is new; if that fails, the task finds out."""
        if self._connection is not None:
            with suppress(redis.RedisError, OSError):
                await self._subscribe(self._connection)

    async def _run(self) -> None:
        connection = self._kind(**self._arguments)
        failure: Exception | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                await connection.connect()
            self._connection = connection
            await self._subscribe(connection)
            await self._listen(connection)
        except Exception as error:  # the top of a task
            failure = error
        finally:
            self._connection = None
            self._subscriptions.ended(time.monotonic(), failure)
            with suppress(Exception):  # it is given up either way
                await connection.disconnect(nowait=True)

    async def _listen(self, connection: Connection) -> None:
        is_asked = False
        while True:
            said = await connection.read_response(
                timeout=PATIENCE_S if is_asked else QUIET_S,
                disconnect_on_error=False,
                push_request=True,
            )
            if said is not None:
                self._subscriptions.take(time.monotonic(), said)
            elif is_asked:
                raise redis.TimeoutError("silent")
            else:
                await connection.send_command("PING", check_health=False)
            is_asked = said is None

    async def _subscribe(self, connection: Connection) -> None:
        if found := self._subscriptions.besides(self._subscribed):
            self._subscribed.update(found)
            await connection.send_command("SUBSCRIBE", *found, check_health=False)
