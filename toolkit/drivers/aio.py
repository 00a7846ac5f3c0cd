"""The asyncio door: psycopg's async connections and pool."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Hashable,
    Sequence,
)
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from toolkit.drivers import Params, Rows, Server, session
from toolkit.drivers.aio_connection import (
    AsyncTransaction,
    ask_on,
    identify,
    is_tracked,
)
from toolkit.drivers.background import AsyncBackground
from toolkit.drivers.failures import (
    answering,
    is_lost,
    no_turn,
    too_long,
    translated,
    unknown_outcome,
)
from toolkit.drivers.session import DIRECT, Reached
from toolkit.drivers.sockets import Sockets
from toolkit.drivers.waiting import Lookout, Turns, left
from toolkit.errors import QueryTimeout
from toolkit.options import PoolOptions
from toolkit_routing import Load

Pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]
T = TypeVar("T")
_log = logging.getLogger("toolkit.drivers")


class AsyncDriver:
    """A pool of async psycopg connections, for one event loop; a forked child reopens it."""

    def __init__(
        self,
        conninfo: str,
        options: PoolOptions,
        node: str = "primary",
        direct: str = "",
        is_watched: bool = False,
    ) -> None:
        self.node = node
        self.load = Load(node)
        self._conninfo = conninfo
        self._direct = direct
        self._options = options
        self._reached = DIRECT
        self._is_tracked = False
        self._pool: Pool | None = None
        self._server: Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._running: dict[Hashable, asyncio.Future[Any]] = {}
        self._is_watched = is_watched
        self._lookout = Lookout(is_watched)
        self._background = AsyncBackground()
        self._sockets = Sockets()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: set[asyncio.Task[None]] = set()  # pools that were cut, as they close
        self._owner = os.getpid()

    async def open(self) -> Server:
        if self._server is None or self._owner != os.getpid():
            await self._open()
        assert self._server is not None
        return self._server

    async def _open(self) -> Pool:
        """Return the pool; one task makes it, all who come meanwhile share the outcome."""
        if self._owner != os.getpid():
            # the sockets are the parent's: leave them alone, make our own
            _log.info("forked: reopening the connections to %s", self.node)
            self._pool = self._server = self._opening = None
            self._running = {}
            self._lookout = Lookout(self._is_watched)
            self._leaving = set()
            self._owner = os.getpid()
        while self._pool is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._make_pool())
                self._opening.add_done_callback(self._opened)
            # a caller that is cancelled leaves the task to the others
            await asyncio.shield(self._opening)
        return self._pool

    def _opened(self, opening: asyncio.Task[None]) -> None:
        if self._opening is opening:
            self._opening = None
        if not opening.cancelled():
            opening.exception()  # told, even if nobody waits for it any more

    async def _make_pool(self) -> None:
        server = await self._greet()
        pool: Pool = AsyncConnectionPool(
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
        try:
            await pool.open()
        except BaseException:
            await pool.close()
            raise
        self._server, self._pool = server, pool
        self._loop = asyncio.get_running_loop()

    async def _greet(self) -> Server:
        # first by itself: a pool only says that it timed out, not that the password is wrong
        with translated(self.node):
            async with await self._connect() as connection:
                server = Server(
                    connection.info.server_version, await identify(connection), self._reached.lacks
                )
                self._is_tracked = self._reached.is_pooled and await is_tracked(connection)
                return server

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await self._to(self._conninfo)
        try:
            await self._configure(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _to(self, conninfo: str) -> psycopg.AsyncConnection[Any]:
        arguments = session.arguments(conninfo, self._options)
        return await psycopg.AsyncConnection.connect(conninfo, **arguments)

    async def _configure(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._sockets.add(connection)
        before, self._reached = self._reached, await self._prepare(connection)
        session.log_change(self.node, before, self._reached)
        if not self._reached.is_prepared:
            connection.prepare_threshold = None

    async def _prepare(self, connection: psycopg.AsyncConnection[Any]) -> Reached:
        said = session.prepare(self._options, connection.info.backend_pid)
        row = await (await connection.execute(*said)).fetchone()
        assert row is not None
        return session.reached(self._options, row, self._is_tracked)

    async def close(self) -> None:
        is_ours, opening = self._owner == os.getpid(), self._opening
        if is_ours:
            await self._background.close()  # first: what runs there would open another pool
            if opening is not None and opening.get_loop() is asyncio.get_running_loop():
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
        pool, self._pool, self._server = self._pool, None, None
        if is_ours and pool is not None:
            await pool.close()
        here = asyncio.get_running_loop()
        if leaving := [task for task in self._leaving if task.get_loop() is here]:
            await asyncio.wait(leaving)

    def cut(self) -> None:
        if self._owner != os.getpid():
            return  # they are the parent's
        pool, self._pool = self._pool, None
        cut = self._sockets.cut()
        _log.info("cut %d connections to %s", cut, self.node)
        if pool is not None and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and with it all who wait
                self._loop.call_soon_threadsafe(self._let_go, pool)

    def _let_go(self, pool: Pool) -> None:
        task = asyncio.get_running_loop().create_task(pool.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def again(self, job: Callable[[], Coroutine[Any, Any, T]], *, is_idempotent: bool) -> T:
        return await job()

    @asynccontextmanager
    async def _checked_out(
        self, patience: float | None = None
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        pool = self._pool
        if pool is None or self._owner != os.getpid():
            pool = await self._open()
        if patience is not None:
            connection = await pool.getconn(patience)
        else:
            connection = await self._getconn(pool)
        try:
            yield connection
        finally:
            await _give_back(pool, connection)

    async def _getconn(
        self, pool: Pool, timeout: float | None = None
    ) -> psycopg.AsyncConnection[Any]:
        """Take a connection, within ``timeout`` if that is less than the pool's."""
        started = since = time.monotonic()
        turns = Turns.of(started, self._options.pool_timeout, timeout)
        turn = turns.next(started)
        while True:
            try:
                return await pool.getconn(turn)
            except PoolTimeout:
                if turns.is_over(time.monotonic()) and turns.timeout is not None:
                    raise no_turn(self.node, turns.timeout) from None
                await self._look(since)
                since = time.monotonic()
                if turns.is_over(since):
                    raise
                turn = turns.next(since)

    async def _look(self, since: float) -> None:
        # all busy, or nobody there? one connection beside the pool tells at once
        if not self._lookout.begin(since, self.node):
            return
        failure = None
        try:
            await (await self._connect()).close()
        except psycopg.Error as error:
            failure = error
        finally:
            self._lookout.end(time.monotonic(), failure)
        self._lookout.begin(since, self.node)

    async def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        pool, asked, cuts = self._pool, time.monotonic(), self._sockets.cuts

        async def ask(connection: psycopg.AsyncConnection[Any]) -> Rows:
            rest = left(timeout, time.monotonic() - asked)
            return await ask_on(connection, statement, params, rest, self._reached)

        with answering(self.node, self.load):
            if pool is None or self._owner != os.getpid():
                pool = await self._open()
            connection = await self._getconn(pool, left(timeout, time.monotonic() - asked))
            try:
                return await ask(connection)
            except psycopg.OperationalError as error:
                if not is_lost(connection, error) or self._sockets.cuts != cuts:
                    raise
            finally:
                await _give_back(pool, connection)
            _log.info("a connection to %s was dead, trying a new one", self.node)
            async with await self._connect() as connection:
                return await ask(connection)

    async def command(self, statement: bytes, *, timeout: float, alone: str = "") -> bool:
        with translated(self.node):
            async with await self._to(self._direct or self._conninfo) as connection:
                self._sockets.add(connection)
                if (await self._prepare(connection)).is_pooled:
                    raise session.needs_own(self.node)
                await connection.execute(session.patience(timeout))
                if alone:
                    cursor = await connection.execute(*session.try_alone(alone))
                    if await cursor.fetchone() == (False,):
                        return False
                await connection.execute(statement)
                return True

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
        if snapshot is not None and self._reached.is_pooled:
            raise session.no_follower(self.node)

        def said() -> list[bytes]:
            return session.begin(snapshot, repeatable, read_only, timeout, self._reached)

        is_committing = False
        with translated(self.node), self.load.under_way():
            connection, block = await self._begin(said, patience)
            try:
                async with block:
                    yield AsyncTransaction(connection, self.node)
                    is_committing = not read_only
            except psycopg.OperationalError as error:
                if is_committing and is_lost(connection, error):
                    raise unknown_outcome(self.node) from error
                raise

    async def _begin(
        self, said: Callable[[], list[bytes]], patience: float | None
    ) -> tuple[psycopg.AsyncConnection[Any], AsyncExitStack]:
        """Begin a transaction; connections that turn out dead are passed over, then a new one."""
        cuts = self._sockets.cuts
        for others in range(self._options.max_size + 1, -1, -1):
            connection = None
            try:
                async with AsyncExitStack() as block:
                    place = self._checked_out(patience) if others else await self._connect()
                    connection = await block.enter_async_context(place)
                    await block.enter_async_context(connection.transaction())
                    for statement in said():
                        await connection.execute(statement)
                    return connection, block.pop_all()
            except psycopg.OperationalError as error:
                is_over = not others or self._sockets.cuts != cuts
                if connection is None or is_over or not is_lost(connection, error):
                    raise
            _log.info("a connection to %s was dead, trying another", self.node)
        raise AssertionError("unreachable")

    async def gather(
        self,
        jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]],
        *,
        on_error: Callable[[], None] = lambda: None,
    ) -> list[T]:
        if len(jobs) < 2:
            return [await job() for job in jobs]
        has_failed = False

        async def run(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
            nonlocal has_failed
            try:
                return await job()
            except BaseException:
                if not has_failed:
                    has_failed = True
                    on_error()
                raise

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(job)) for job in jobs]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def once(
        self,
        key: Hashable,
        make: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
    ) -> T:
        asked = time.monotonic()
        loop = asyncio.get_running_loop()
        while True:
            running = self._running.get(key)
            # what another loop began and did not end is nobody's any more
            if running is not None and running.get_loop() is loop:
                await asyncio.wait([running], timeout=left(timeout, time.monotonic() - asked))
                if timeout is not None and not running.done():
                    raise too_long(self.node, timeout)
                # who ran it was interrupted, or in a hurry
                if running.cancelled() or isinstance(running.exception(), QueryTimeout):
                    continue
                return running.result()  # type: ignore[no-any-return]  # of the same key
            mine: asyncio.Future[Any] = loop.create_future()
            self._running[key] = mine
            try:
                result = await make()
            except Exception as error:
                mine.set_exception(error)
                mine.exception()  # told, even if nobody waits
                raise
            except BaseException:
                mine.cancel()
                raise
            else:
                mine.set_result(result)
                return result
            finally:
                if self._running.get(key) is mine:
                    del self._running[key]

    def later(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._background.later(key, make)

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.to_thread(function, *args)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def hear(self, future: Future[None], timeout: float) -> bool:
        done, _ = await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout)
        return bool(done)

    def stats(self) -> dict[str, int]:
        return dict(self._pool.get_stats()) if self._pool is not None else {}


async def _give_back(pool: Pool, connection: psycopg.AsyncConnection[Any]) -> None:
    """Return a connection to its pool; also who is cancelled meanwhile, or its place is lost."""
    await asyncio.shield(pool.putconn(connection))
