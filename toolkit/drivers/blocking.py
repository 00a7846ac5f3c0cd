"""The blocking door: psycopg and its pool, behind coroutines that never suspend."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from threading import Lock
from typing import Any, TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from toolkit.config import PoolOptions
from toolkit.drivers import Params, Rows, Server, drive, session
from toolkit.drivers.failures import translate
from toolkit.errors import Unavailable

T = TypeVar("T")
_log = logging.getLogger("toolkit.drivers")


class BlockingTransaction:
    """A psycopg connection inside a transaction."""

    def __init__(self, connection: psycopg.Connection[Any], node: str) -> None:
        self._connection = connection
        self._node = node

    async def fetch(self, statement: bytes, params: Params | None = None) -> Rows:
        with _translated(self._node), self._connection.cursor(binary=True) as cursor:
            return cursor.execute(statement, params).fetchall()

    async def execute(self, statement: bytes, params: Params | None = None) -> int:
        with _translated(self._node), self._connection.cursor(binary=True) as cursor:
            return cursor.execute(statement, params).rowcount

    async def copy(self, statement: bytes, pieces: Iterable[bytes]) -> None:
        with (
            _translated(self._node),
            self._connection.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            for piece in pieces:
                copy.write(piece)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with _translated(self._node), self._connection.transaction():
            yield


class BlockingDriver:
    """A pool of psycopg connections; threads may share it, and a forked child reopens it."""

    def __init__(self, conninfo: str, options: PoolOptions, node: str = "primary") -> None:
        self.node = node
        self._conninfo = conninfo
        self._options = options
        self._lock = Lock()
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._server: Server | None = None
        self._owner = os.getpid()

    async def open(self) -> Server:
        if self._server is None or self._owner != os.getpid():
            self._open()
        assert self._server is not None
        return self._server

    def _open(self) -> ConnectionPool[psycopg.Connection[Any]]:
        with self._lock:
            if self._owner != os.getpid():
                # the sockets are the parent's: leave them alone, make our own
                _log.info("forked: reopening the connections to %s", self.node)
                self._pool = self._threads = self._server = None
                self._owner = os.getpid()
            if self._pool is None:
                self._server = self._greet()
                self._pool = ConnectionPool(
                    self._conninfo,
                    kwargs=session.arguments(self._conninfo, self._options),
                    min_size=self._options.min_size,
                    max_size=self._options.max_size,
                    max_idle=self._options.max_idle,
                    timeout=self._options.pool_timeout,
                    configure=self._configure,
                    name=f"toolkit-{self.node}",
                    open=True,
                )
                self._threads = ThreadPoolExecutor(
                    max(2, self._options.max_size), f"toolkit-{self.node}"
                )
            return self._pool

    def _greet(self) -> Server:
        # first by itself: a pool only says that it timed out, not that the password is wrong
        with _translated(self.node), self._connect() as connection:
            return Server(connection.info.server_version, _identify(connection))

    def _connect(self) -> psycopg.Connection[Any]:
        arguments = session.arguments(self._conninfo, self._options)
        connection = psycopg.connect(self._conninfo, **arguments)
        self._configure(connection)
        return connection

    def _configure(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(*session.prepare(self._options))

    async def close(self) -> None:
        with self._lock:
            pool, threads, owner = self._pool, self._threads, self._owner
            self._pool = self._threads = self._server = None
        if owner != os.getpid():
            return
        if pool is not None:
            pool.close()
        if threads is not None:
            threads.shutdown()

    @contextmanager
    def _checked_out(self, patience: float | None = None) -> Iterator[psycopg.Connection[Any]]:
        pool = self._pool
        if pool is None or self._owner != os.getpid():
            pool = self._open()
        connection = self._getconn(pool, patience)
        try:
            yield connection
        finally:
            pool.putconn(connection)

    def _getconn(
        self, pool: ConnectionPool[psycopg.Connection[Any]], patience: float | None
    ) -> psycopg.Connection[Any]:
        if patience is not None:
            return pool.getconn(patience)
        until = time.monotonic() + self._options.pool_timeout
        slot = min(1.0, self._options.pool_timeout)
        while True:
            try:
                return pool.getconn(slot)
            except PoolTimeout:
                # all busy, or nobody there? one connection beside the pool tells at once
                self._connect().close()
                slot = until - time.monotonic()
                if slot <= 0:
                    raise

    async def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        pool = self._pool
        try:
            if pool is None or self._owner != os.getpid():
                pool = self._open()
            connection = self._getconn(pool, None)
            try:
                return _ask(connection, statement, params, timeout)
            except psycopg.OperationalError as error:
                if not connection.broken and not isinstance(translate(error), Unavailable):
                    raise
            finally:
                pool.putconn(connection)
            _log.info("a connection to %s was dead, trying a new one", self.node)
            with self._connect() as connection:
                return _ask(connection, statement, params, timeout)
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
    ) -> AsyncIterator[BlockingTransaction]:
        with _translated(self.node), self._checked_out(patience) as connection:
            begin = session.begin(snapshot, repeatable, read_only, timeout)
            with connection.transaction():
                for statement in begin:
                    connection.execute(statement)
                yield BlockingTransaction(connection, self.node)

    async def gather(self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        if len(jobs) < 2:
            return [await job() for job in jobs]
        if self._threads is None or self._owner != os.getpid():
            self._open()
        assert self._threads is not None
        futures = [self._threads.submit(_drive, job) for job in jobs]
        return [future.result() for future in futures]

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def stats(self) -> dict[str, int]:
        return dict(self._pool.get_stats()) if self._pool is not None else {}


def _ask(
    connection: psycopg.Connection[Any],
    statement: bytes,
    params: Params | None,
    timeout: float | None,
) -> Rows:
    cursor = connection.cursor(binary=True)
    if timeout is None:
        return cursor.execute(statement, params).fetchall()
    with connection.transaction():
        for said in session.begin(None, False, True, timeout):
            connection.execute(said)
        return cursor.execute(statement, params).fetchall()


def _identify(connection: psycopg.Connection[Any]) -> int | None:
    try:
        row = connection.execute(session.identify()).fetchone()
    except session.NOT_TOLD as error:
        _log.info("the server does not tell its system identifier: %s", error)
        return None
    return row[0] if row else None


def _drive(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return drive(job())


@contextmanager
def _translated(node: str) -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        raise translate(error, node) from error
