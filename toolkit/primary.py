"""The door to whichever node is the primary: found anew after a failover."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from toolkit.cluster import Cluster
from toolkit.drivers import Driver, Params, Rows, Server, Transaction
from toolkit.errors import (
    AccessDenied,
    NoConnection,
    NoPrimary,
    OutcomeUnknown,
    ReadOnlyDatabase,
    Unavailable,
)

T = TypeVar("T")
_log = logging.getLogger("toolkit.cluster")
_TRIES = 5
_NOT_LOST = (NoPrimary, NoConnection, AccessDenied)  # what asking once more does not mend


class PrimaryDriver:
    """A driver whose server is the primary of a cluster, wherever that is at the moment.

    ``wait`` is how many seconds it waits for there to be one, else what the cluster's options say.
    """

    def __init__(self, cluster: Cluster, wait: float | None = None) -> None:
        self._cluster = cluster
        self._wait = wait
        self._home = cluster.home
        self.node = "primary"

    async def open(self) -> Server:
        return await self._moving(lambda driver: driver.open())

    async def close(self) -> None:
        await self._cluster.close()

    def cut(self) -> None:
        """Nothing: each node's own driver is cut."""

    async def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        return await self._moving(lambda driver: driver.fetch(statement, params, timeout=timeout))

    async def command(self, statement: bytes, *, timeout: float, alone: str = "") -> bool:
        return await self._moving(
            lambda driver: driver.command(statement, timeout=timeout, alone=alone)
        )

    async def _moving(self, ask: Callable[[Driver], Coroutine[Any, Any, T]]) -> T:
        """Ask the primary, and where it turns out not to be one any more, the next."""
        writes = False
        for left in range(_TRIES, -1, -1):
            name = await self._cluster.primary(self._wait, writes=writes)
            began = time.monotonic()
            try:
                return await ask(self._cluster.drivers[name])
            except (Unavailable, ReadOnlyDatabase) as error:
                self._cluster.failed(name, error, began)
                if not left or isinstance(error, _NOT_LOST):
                    raise
                writes = isinstance(error, ReadOnlyDatabase)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[Transaction]:
        writes = not options.get("read_only", False)
        name = await self._cluster.primary(self._wait, writes=writes)
        began = time.monotonic()
        try:
            async with self._cluster.drivers[name].transaction(**options) as transaction:
                yield transaction
        except (Unavailable, ReadOnlyDatabase) as error:
            self._cluster.failed(name, error, began)
            raise

    async def again(self, job: Callable[[], Coroutine[Any, Any, T]], *, is_idempotent: bool) -> T:
        for left in range(_TRIES, -1, -1):
            try:
                return await job()
            except OutcomeUnknown:
                if not left or not is_idempotent:
                    raise
            except (Unavailable, ReadOnlyDatabase) as error:
                if not left or isinstance(error, _NOT_LOST):
                    raise
            _log.info("the primary was lost in a write, which is begun again")
        raise AssertionError("unreachable")

    async def gather(
        self,
        jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]],
        *,
        on_error: Callable[[], None] = lambda: None,
    ) -> list[T]:
        return await self._home.gather(jobs, on_error=on_error)

    async def once(
        self,
        key: Hashable,
        make: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
    ) -> T:
        return await self._home.once(key, make, timeout)

    def later(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._home.later(key, make)

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return await self._home.compute(function, *args)

    async def pause(self, seconds: float) -> None:
        await self._home.pause(seconds)

    async def hear(self, future: Future[None], timeout: float) -> bool:
        return await self._home.hear(future, timeout)

    def stats(self) -> dict[str, int]:
        return self._home.stats()
