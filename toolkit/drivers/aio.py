"""The asyncio door: psycopg's async connections and pool."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from toolkit.config import PoolOptions
from toolkit.drivers import Params, Rows, Server, session
from toolkit.drivers.failures import translate
from toolkit.errors import Unavailable

T = TypeVar("T")
_log = logging.getLogger("toolkit.drivers")


class AsyncTransaction:
    """An async psycopg connection inside a transaction."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], node: str) -> None:
        self._connection = connection
        self._node = node

    async def fetch(self, statement: bytes, params: Params | None = None) -> Rows:
        with _translated(self._node):
            async with self._connection.cursor(binary=True) as cursor:
                await cursor.execute(statement, params)
                return await cursor.fetchall()

    async def execute(self, statement: bytes, params: Params | None = None) -> int:
        with _translated(self._node):
            async with self._connection.cursor(binary=True) as cursor:
                await cursor.execute(statement, params)
                return cursor.rowcount

    async def copy(self, statement: bytes, pieces: Iterable[bytes]) -> None:
        with _translated(self._node):
            async with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
                iterator = iter(pieces)
                # encoding is CPU work: off the loop, piece by piece
                while (piece := await asyncio.to_thread(next, iterator, None)) is not None:
                    await copy.write(piece)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with _translated(self._node):
            async with self._connection.transaction():
                yield


class AsyncDriver:
    """A pool of async psycopg connections, for one event loop; a forked child reopens it."""

    def __init__(self, conninfo: str, options: PoolOptions, node: str = "primary") -> None:
        self.node = node
        self._conninfo = conninfo
        self._options = options
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._server: Server | None = None
        self._opening: asyncio.Lock | None = None
        self._owner = os.getpid()

    async def open(self) -> Server:
        if self._server is None or self._owner != os.getpid():
            await self._open()
        assert self._server is not None
        return self._server

    async def _open(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        if self._owner != os.getpid():
            # the sockets are the parent's: leave them alone, make our own
            _log.info("forked: reopening the connections to %s", self.node)
            self._pool = self._server = self._opening = None
            self._owner = os.getpid()
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._pool is None:
                self._server = await self._greet()
                pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
                    self._conninfo,
                    kwargs=session.arguments(self._conninfo, self._options),
                    min_size=self._options.min_size,
                    max_size=self._options.max_size,
                    max_idle=self._options.max_idle,
                    timeout=self._options.pool_timeout,
                    configure=self._configure,
                    name=f"toolkit-{self.node}",
                    open=False,
                )
                await pool.open()
                self._pool = pool
            return self._pool

    async def _greet(self) -> Server:
        # first by itself: a pool only says that it timed out, not that the password is wrong
        with _translated(self.node):
            async with await self._connect() as connection:
                sysid = await _identify(connection)
                return Server(connection.info.server_version, sysid)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        arguments = session.arguments(self._conninfo, self._options)
        connection = await psycopg.AsyncConnection.connect(self._conninfo, **arguments)
        await self._configure(connection)
        return connection

    async def _configure(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute(*session.prepare(self._options))

    async def close(self) -> None:
        pool, self._pool, self._server = self._pool, None, None
        if pool is not None and self._owner == os.getpid():
            await pool.close()

    @asynccontextmanager
    async def _checked_out(
        self, patience: float | None = None
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        pool = self._pool
        if pool is None or self._owner != os.getpid():
            pool = await self._open()
        connection = await self._getconn(pool, patience)
        try:
            yield connection
        finally:
            await pool.putconn(connection)

    async def _getconn(
        self,
        pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]],
        patience: float | None,
    ) -> psycopg.AsyncConnection[Any]:
        if patience is not None:
            return await pool.getconn(patience)
        until = time.monotonic() + self._options.pool_timeout
        slot = min(1.0, self._options.pool_timeout)
        while True:
            try:
                return await pool.getconn(slot)
            except PoolTimeout:
                # all busy, or nobody there? one connection beside the pool tells at once
                await (await self._connect()).close()
                slot = until - time.monotonic()
                if slot <= 0:
                    raise

    async def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        pool = self._pool
        try:
            if pool is None or self._owner != os.getpid():
                pool = await self._open()
            connection = await self._getconn(pool, None)
            try:
                return await _ask(connection, statement, params, timeout)
            except psycopg.OperationalError as error:
                if not connection.broken and not isinstance(translate(error), Unavailable):
                    raise
            finally:
                await pool.putconn(connection)
            _log.info("a connection to %s was dead, trying a new one", self.node)
            async with await self._connect() as connection:
                return await _ask(connection, statement, params, timeout)
        except (psycopg.Error, PoolTimeout) as error:
            raise translate(error, self.node) from error

    @asynccontextmanager
    async def transaction(
        self,
        *,
        snapshot: str | None = None,
        repeatable: bool = False,
        read_only: bool = False,
        timeout: float | None = None,
        patience: float | None = None,
    ) -> AsyncIterator[AsyncTransaction]:
        with _translated(self.node):
            async with self._checked_out(patience) as connection, connection.transaction():
                for statement in session.begin(snapshot, repeatable, read_only, timeout):
                    await connection.execute(statement)
                yield AsyncTransaction(connection, self.node)

    async def gather(self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        if len(jobs) < 2:
            return [await job() for job in jobs]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(job()) for job in jobs]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.to_thread(function, *args)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def stats(self) -> dict[str, int]:
        return dict(self._pool.get_stats()) if self._pool is not None else {}


async def _ask(
    connection: psycopg.AsyncConnection[Any],
    statement: bytes,
    params: Params | None,
    timeout: float | None,
) -> Rows:
    cursor = connection.cursor(binary=True)
    if timeout is None:
        await cursor.execute(statement, params)
        return await cursor.fetchall()
    async with connection.transaction():
        for said in session.begin(None, False, True, timeout):
            await connection.execute(said)
        await cursor.execute(statement, params)
        return await cursor.fetchall()


async def _identify(connection: psycopg.AsyncConnection[Any]) -> int | None:
    try:
        cursor = await connection.execute(session.identify())
        row = await cursor.fetchone()
    except session.NOT_TOLD as error:
        _log.info("the server does not tell its system identifier: %s", error)
        return None
    return row[0] if row else None


@contextmanager
def _translated(node: str) -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        raise translate(error, node) from error
