"""A door inside a transaction: every statement through it sees the same snapshot."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from toolkit.drivers import Driver, Params, Rows, Server, Transaction
from toolkit.errors import QueryError

T = TypeVar("T")


class InsideDriver:
    """A driver whose statements all run in one transaction, one after another."""

    def __init__(self, driver: Driver, transaction: Transaction) -> None:
        self.node = driver.node
        self._driver = driver
        self._transaction = transaction

    async def open(self) -> Server:
        return await self._driver.open()

    async def close(self) -> None:
        """Leave the transaction to who began it."""

    async def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        return await self._transaction.fetch(statement, params)

    async def command(self, statement: bytes, *, timeout: float, alone: str = "") -> bool:
        raise QueryError("what may not stand in a transaction cannot be run inside one")

    def cut(self) -> None:
        """Leave the connection to who began the transaction."""

    async def again(self, job: Callable[[], Coroutine[Any, Any, T]], *, is_idempotent: bool) -> T:
        return await job()

    def transaction(self, **options: Any) -> AbstractAsyncContextManager[Transaction]:
        raise QueryError("a transaction cannot be opened inside another")

    async def gather(
        self,
        jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]],
        *,
        on_error: Callable[[], None] = lambda: None,
    ) -> list[T]:
        return [await job() for job in jobs]

    async def once(
        self,
        key: Hashable,
        make: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
    ) -> T:
        return await make()  # what others see is not what this snapshot does

    def later(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Nothing: a transaction has no later."""

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return await self._driver.compute(function, *args)

    async def pause(self, seconds: float) -> None:
        await self._driver.pause(seconds)

    async def hear(self, future: Future[None], timeout: float) -> bool:
        return await self._driver.hear(future, timeout)

    def stats(self) -> dict[str, int]:
        return self._driver.stats()
