"""The blocking door: psycopg and its pool, behind coroutines that never suspend."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Hashable,
    Iterator,
    Sequence,
)
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from threading import Lock, Thread
from typing import Any, TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from toolkit.drivers import Params, Rows, Server, drive, session
from toolkit.drivers.background import BlockingBackground
from toolkit.drivers.blocking_connection import (
    BlockingTransaction,
    ask_on,
    identify,
    is_tracked,
)
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
from toolkit.drivers.workers import run_all
from toolkit.errors import QueryTimeout
from toolkit.options import PoolOptions
from toolkit_routing import Load

Pool = ConnectionPool[psycopg.Connection[Any]]
T = TypeVar("T")
_log = logging.getLogger("toolkit.drivers")


class BlockingDriver:
    """A pool of psycopg connections; threads may share it, and a forked child reopens it."""

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
        self._lock = Lock()
        self._pool: Pool | None = None
        self._opening: Future[Pool] | None = None
        self._running: dict[Hashable, Future[Any]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._server: Server | None = None
        self._is_watched = is_watched
        self._lookout = Lookout(is_watched)
        self._background = BlockingBackground()
        self._sockets = Sockets()
        self._owner = os.getpid()
        _drivers.add(self)

    async def open(self) -> Server:
        if self._server is None or self._owner != os.getpid():
            self._open()
        assert self._server is not None
        return self._server

    def _open(self) -> Pool:
        """Return the pool; the first caller makes it, all who come meanwhile share the outcome."""
        while True:
            with self._lock:
                self._leave_to_parent()
                if self._pool is not None:
                    return self._pool
                opening, mine = self._opening, Future[Pool]()
                if opening is None:
                    self._opening = mine
            if opening is None:
                return self._make_pool(mine)
            try:
                return opening.result()
            except CancelledError:  # who made it was interrupted: do it ourselves
                continue

    def _leave_to_parent(self) -> None:
        if self._owner != os.getpid():
            # the sockets are the parent's: leave them alone, make our own
            _log.info("forked: reopening the connections to %s", self.node)
            self._pool = self._threads = self._server = self._opening = None
            self._running = {}
            self._lookout = Lookout(self._is_watched)
            self._background = BlockingBackground()
            self._owner = os.getpid()

    def _make_pool(self, opening: Future[Pool]) -> Pool:
        try:
            server = self._greet()
            pool = ConnectionPool(
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
        except BaseException as error:
            with self._lock:
                self._opening = None
            if isinstance(error, Exception):
                opening.set_exception(error)
            else:
                opening.cancel()
            raise
        with self._lock:
            self._server, self._pool = server, pool
            self._opening = None
        opening.set_result(pool)
        return pool

    def _greet(self) -> Server:
        # first by itself: a pool only says that it timed out, not that the password is wrong
        with translated(self.node), self._connect() as connection:
            server = Server(
                connection.info.server_version, identify(connection), self._reached.lacks
            )
            self._is_tracked = self._reached.is_pooled and is_tracked(connection)
            return server

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self._to(self._conninfo)
        try:
            self._configure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _to(self, conninfo: str) -> psycopg.Connection[Any]:
        return psycopg.connect(conninfo, **session.arguments(conninfo, self._options))

    def _configure(self, connection: psycopg.Connection[Any]) -> None:
        self._sockets.add(connection)
        before, self._reached = self._reached, self._prepare(connection)
        session.log_change(self.node, before, self._reached)
        if not self._reached.is_prepared:
            connection.prepare_threshold = None

    def _prepare(self, connection: psycopg.Connection[Any]) -> Reached:
        said = session.prepare(self._options, connection.info.backend_pid)
        row = connection.execute(*said).fetchone()
        assert row is not None
        return session.reached(self._options, row, self._is_tracked)

    async def close(self) -> None:
        if self._owner == os.getpid():
            self._background.close()  # first: what runs there would open another pool
        with self._lock:
            pool, threads, owner = self._pool, self._threads, self._owner
            self._pool = self._threads = self._server = None
        if owner != os.getpid():
            return
        if pool is not None:
            pool.close()
        if threads is not None:
            threads.shutdown()

    def cut(self) -> None:
        with self._lock:
            self._leave_to_parent()
            pool, self._pool = self._pool, None
        cut = self._sockets.cut()
        _log.info("cut %d connections to %s", cut, self.node)
        if pool is not None:
            # who waits for a connection is told, too; its workers may hang in a connection's making
            Thread(target=pool.close, name=f"toolkit-{self.node}-cut", daemon=True).start()

    async def again(self, job: Callable[[], Coroutine[Any, Any, T]], *, is_idempotent: bool) -> T:
        return await job()

    @contextmanager
    def _checked_out(self, patience: float | None = None) -> Iterator[psycopg.Connection[Any]]:
        pool = self._pool
        if pool is None or self._owner != os.getpid():
            pool = self._open()
        connection = pool.getconn(patience) if patience is not None else self._getconn(pool)
        try:
            yield connection
        finally:
            pool.putconn(connection)

    def _getconn(self, pool: Pool, timeout: float | None = None) -> psycopg.Connection[Any]:
        """Take a connection, within ``timeout`` if that is less than the pool's."""
        started = since = time.monotonic()
        turns = Turns.of(started, self._options.pool_timeout, timeout)
        turn = turns.next(started)
        while True:
            try:
                return pool.getconn(turn)
            except PoolTimeout:
                if turns.is_over(time.monotonic()) and turns.timeout is not None:
                    raise no_turn(self.node, turns.timeout) from None
                self._look(since)
                since = time.monotonic()
                if turns.is_over(since):
                    raise
                turn = turns.next(since)

    def _look(self, since: float) -> None:
        # all busy, or nobody there? one connection beside the pool tells at once
        if not self._lookout.begin(since, self.node):
            return
        failure = None
        try:
            self._connect().close()
        except psycopg.Error as error:
            failure = error
        finally:
            self._lookout.end(time.monotonic(), failure)
        self._lookout.begin(since, self.node)

    async def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        pool, asked, cuts = self._pool, time.monotonic(), self._sockets.cuts

        def ask(connection: psycopg.Connection[Any]) -> Rows:
            rest = left(timeout, time.monotonic() - asked)
            return ask_on(connection, statement, params, rest, self._reached)

        with answering(self.node, self.load):
            if pool is None or self._owner != os.getpid():
                pool = self._open()
            connection = self._getconn(pool, left(timeout, time.monotonic() - asked))
            try:
                return ask(connection)
            except psycopg.OperationalError as error:
                if not is_lost(connection, error) or self._sockets.cuts != cuts:
                    raise
            finally:
                pool.putconn(connection)
            _log.info("a connection to %s was dead, trying a new one", self.node)
            with self._connect() as connection:
                return ask(connection)

    async def command(self, statement: bytes, *, timeout: float, alone: str = "") -> bool:
        with translated(self.node), self._to(self._direct or self._conninfo) as connection:
            self._sockets.add(connection)
            if self._prepare(connection).is_pooled:
                raise session.needs_own(self.node)
            connection.execute(session.patience(timeout))
            if alone and connection.execute(*session.try_alone(alone)).fetchone() == (False,):
                return False
            connection.execute(statement)
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
    ) -> AsyncIterator[BlockingTransaction]:
        if snapshot is not None and self._reached.is_pooled:
            raise session.no_follower(self.node)

        def said() -> list[bytes]:
            return session.begin(snapshot, repeatable, read_only, timeout, self._reached)

        is_committing = False
        with translated(self.node), self.load.under_way():
            connection, block = self._begin(said, patience)
            try:
                with block:
                    yield BlockingTransaction(connection, self.node)
                    is_committing = not read_only
            except psycopg.OperationalError as error:
                if is_committing and is_lost(connection, error):
                    raise unknown_outcome(self.node) from error
                raise

    def _begin(
        self, said: Callable[[], list[bytes]], patience: float | None
    ) -> tuple[psycopg.Connection[Any], ExitStack]:
        """Begin a transaction; connections that turn out dead are passed over, then a new one."""
        cuts = self._sockets.cuts
        for others in range(self._options.max_size + 1, -1, -1):
            connection = None
            try:
                with ExitStack() as block:
                    place = self._checked_out(patience) if others else self._connect()
                    connection = block.enter_context(place)
                    block.enter_context(connection.transaction())
                    for statement in said():
                        connection.execute(statement)
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
        return run_all(self._workers(), [partial(_drive, job) for job in jobs], on_error)

    def _workers(self) -> ThreadPoolExecutor:
        """Return the threads, which need no server."""
        with self._lock:
            self._leave_to_parent()
            if self._threads is None:
                most = max(2, self._options.max_size)
                self._threads = ThreadPoolExecutor(most, f"toolkit-{self.node}")
            return self._threads

    async def once(
        self,
        key: Hashable,
        make: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
    ) -> T:
        asked = time.monotonic()
        while True:
            mine: Future[Any] = Future()
            with self._lock:
                self._leave_to_parent()
                running = self._running.setdefault(key, mine)
            if running is not mine:
                try:
                    rest = left(timeout, time.monotonic() - asked)
                    return running.result(rest)  # type: ignore[no-any-return]  # of the same key
                except (CancelledError, QueryTimeout):  # who ran it was interrupted, or in a hurry
                    continue
                except TimeoutError:
                    if timeout is not None and not running.done():
                        raise too_long(self.node, timeout) from None
                    continue
            try:
                result = await make()
            except Exception as error:
                mine.set_exception(error)
                raise
            except BaseException:
                mine.cancel()
                raise
            else:
                mine.set_result(result)
                return result
            finally:
                with self._lock:
                    if self._running.get(key) is mine:
                        del self._running[key]

    def later(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        with self._lock:
            self._leave_to_parent()
        self._background.later(key, partial(_drive, make))

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def hear(self, future: Future[None], timeout: float) -> bool:
        return bool(wait([future], timeout).done)

    def stats(self) -> dict[str, int]:
        return dict(self._pool.get_stats()) if self._pool is not None else {}


_drivers: weakref.WeakSet[BlockingDriver] = weakref.WeakSet()


def _forked() -> None:
    for driver in list(_drivers):  # a thread of the parent may have held the lock
        driver._lock = Lock()


os.register_at_fork(after_in_child=_forked)


def _drive(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return drive(job())
