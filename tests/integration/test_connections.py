"""Connections that die, run out or never come, for both stores: what is raised, what goes on."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_proxy import Proxy
from fix_servers import Database
from fix_stores import COLOURS, Awaited, end_sessions, open_store
from psycopg import sql as sql_text
from psycopg.conninfo import make_conninfo

import toolkit
from toolkit.config import Settings
from toolkit.drivers import drive
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver
from toolkit.drivers.waiting import Lookout
from toolkit.errors import (
    InputError,
    OutcomeUnknown,
    PartialWrite,
    QueryTimeout,
    Unavailable,
)
from toolkit.options import PoolOptions
from toolkit.writer import SMALL

T0 = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
BOTH = pytest.mark.parametrize("colour", COLOURS)


def settings(dsn: str, **pool: Any) -> Settings:
    return Settings(dsn=dsn, pool=PoolOptions(**pool)).without_cache()


def points(count: int, start: datetime = T0) -> dict[str, Any]:
    return {"ts": [start + i * MINUTE for i in range(count)], "value": np.arange(float(count))}


def read(store: Any, **options: Any) -> Any:
    return store.read("metrics", "a", T0, T0 + DAY, **options)


def at_once(store: Any, count: int) -> list[Any]:
    """Read so many times at the same time, and return the answers or errors."""
    if isinstance(store, Awaited):

        async def everything() -> list[Any]:
            reads = [read(store.store) for _ in range(count)]
            return await asyncio.gather(*reads, return_exceptions=True)

        return list(store.run(everything()))
    with ThreadPoolExecutor(count) as threads:
        reads = [threads.submit(read, store) for _ in range(count)]
        return [r.exception() or r.result() for r in reads]


@contextmanager
def all_in_use(store: Any, count: int) -> Iterator[None]:
    """Hold so many connections, by streams that wait for their reader."""
    streams = [store.stream("metrics", "a", T0, T0 + DAY, rows=1) for _ in range(count)]
    try:
        for stream in streams:
            next(stream)
        yield
    finally:
        for stream in streams:
            stream.close()


# -- the session ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("said_in", ["environment", "conninfo"])
@pytest.mark.parametrize("size", [4, SMALL + 2])
def test_text_is_utf8_whatever_encoding_the_client_is_told(
    database: Database, monkeypatch: pytest.MonkeyPatch, colour: str, said_in: str, size: int
) -> None:
    dsn = database.dsn
    if said_in == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    else:
        dsn = make_conninfo(dsn, client_encoding="LATIN1")
    sides = ["é", "ÿ"] * (size // 2)
    frame = {
        "ts": [T0 + i * timedelta(seconds=1) for i in range(size)],
        "price": np.ones(size),
        "size": np.ones(size),
        "side": np.array(sides),
    }
    with open_store(colour, dsn) as store:
        store.write("trades", frame, series="t")
        cols = store.read("trades", "t", T0, T0 + DAY)
    assert [cols.categories["side"][code] for code in cols["side"]] == sides
    with psycopg.connect(database.dsn, client_encoding="UTF8") as sql:
        stored = sql.execute("SELECT side FROM toolkit.trades ORDER BY ts").fetchall()
    assert [side for (side,) in stored] == sides


# -- connections that died in the pool ------------------------------------------------------------


CALLS: dict[str, Callable[[Any], Any]] = {
    "read": read,
    "read with a timeout": lambda store: read(store, timeout=5),
    "write": lambda store: store.write("metrics", points(10), series="a"),
    "large write": lambda store: store.write("metrics", points(SMALL + 1), series="a"),
    "delete": lambda store: store.delete("metrics", "a", T0, T0 + MINUTE),
    "stream": lambda store: list(store.stream("metrics", "a", T0, T0 + DAY)),
    "refresh": lambda store: store.refresh("metrics"),
    "label": lambda store: store.label("metrics", "a", {"kind": "b"}),
}


@BOTH
@pytest.mark.parametrize("call", CALLS)
def test_no_call_fails_because_every_pooled_connection_has_died(
    database: Database, colour: str, call: str
) -> None:
    with (
        open_store(colour, settings(database.dsn, min_size=3, max_size=3)) as store,
        psycopg.connect(database.admin_dsn, autocommit=True) as admin,
    ):
        store.write("metrics", points(5), series="a")
        with all_in_use(store, 3):
            pass
        assert end_sessions(admin) == 3
        CALLS[call](store)


# -- a COMMIT whose reply is lost -----------------------------------------------------------------


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    proxy = Proxy(database.dsn)
    yield proxy
    proxy.close()


@BOTH
def test_a_write_whose_commit_is_not_answered_has_an_unknown_outcome(
    proxy: Proxy, sql: psycopg.Connection, colour: str
) -> None:
    with open_store(colour, proxy.dsn) as store:
        store.write("metrics", points(5), series="a")
        proxy.is_armed = True
        with pytest.raises(OutcomeUnknown, match=r"lost while it committed.* is unknown") as caught:
            store.write("metrics", points(7), series="a")
        assert not caught.value.retryable
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert sql.execute("SELECT count(*) FROM metrics").fetchone() == (7,)
        # idempotent: it may be repeated
        assert store.write("metrics", points(7), series="a").unchanged == 7


@BOTH
def test_a_chunk_whose_commit_is_not_answered_may_or_may_not_be_stored(
    proxy: Proxy, colour: str
) -> None:
    def chunks() -> Iterator[dict[str, Any]]:
        yield points(5)
        proxy.is_armed = True
        yield points(5, T0 + 5 * MINUTE)

    with open_store(colour, proxy.dsn) as store:
        store.write("metrics", points(1), series="a")
        with pytest.raises(PartialWrite, match="this one may or may not be") as caught:
            store.write("metrics", chunks(), series="a")
    assert isinstance(caught.value.__cause__, OutcomeUnknown)


@BOTH
def test_a_read_whose_commit_is_not_answered_is_no_mystery(proxy: Proxy, colour: str) -> None:
    with open_store(colour, proxy.dsn) as store:
        store.write("metrics", points(5), series="a")
        stream = store.stream("metrics", "a", T0, T0 + DAY)
        assert len(next(stream)) == 5
        proxy.is_armed = True
        with pytest.raises(Unavailable) as caught:
            next(stream)
        assert not isinstance(caught.value, OutcomeUnknown)


# -- waiting for a connection ---------------------------------------------------------------------


class Crowd:
    """A full pool, a crowd that waits for it, and a count of who looks for the server."""

    def __init__(self, driver: Any, looked: Any) -> None:
        self.driver = driver
        self.looked = looked
        self.looks = 0
        self._connect = driver._connect
        self._held = [driver.transaction() for _ in range(2)]

    async def hold(self) -> None:
        for held in self._held:
            await held.__aenter__()

    async def let_go(self) -> None:
        for held in self._held:
            await held.__aexit__(None, None, None)

    async def ask(self) -> Any:
        try:
            return await self.driver.fetch(b"SELECT 1")
        except toolkit.errors.ToolkitError as error:
            return error

    def look(self) -> Any:
        self.looks += 1
        try:
            return self._connect()
        finally:
            self.looked.set()

    async def look_async(self) -> Any:
        self.looks += 1
        try:
            return await self._connect()
        finally:
            self.looked.set()


def allow_connections(database: Database, count: int) -> None:
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        name = sql_text.Identifier(database.name)
        limit = sql_text.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
        admin.execute(limit.format(name, sql_text.Literal(count)))


FULL = PoolOptions(min_size=2, max_size=2)


def test_of_a_crowd_of_threads_before_a_busy_pool_one_looks_for_the_server(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the server has no connection left for it is an answer, too."""
    crowd = Crowd(BlockingDriver(database.dsn, FULL), threading.Event())
    drive(crowd.hold())
    allow_connections(database, 2)
    monkeypatch.setattr(crowd.driver, "_connect", crowd.look)
    with ThreadPoolExecutor(200) as threads:
        asked = [threads.submit(lambda: drive(crowd.ask())) for _ in range(200)]
        assert crowd.looked.wait(10)
        drive(crowd.let_go())
        assert [a.result() for a in asked] == [[(1,)]] * 200
    assert crowd.looks <= 3
    drive(crowd.driver.close())


def test_of_a_crowd_of_tasks_before_a_busy_pool_one_looks_for_the_server(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        crowd = Crowd(AsyncDriver(database.dsn, FULL), asyncio.Event())
        await crowd.hold()
        allow_connections(database, 2)
        monkeypatch.setattr(crowd.driver, "_connect", crowd.look_async)
        asked = [asyncio.create_task(crowd.ask()) for _ in range(200)]
        async with asyncio.timeout(10):
            await crowd.looked.wait()
        await crowd.let_go()
        assert await asyncio.gather(*asked) == [[(1,)]] * 200
        assert crowd.looks <= 3
        await crowd.driver.close()

    asyncio.run(run())


def test_what_one_finds_who_looks_is_told_to_all_who_wait() -> None:
    lookout = Lookout()
    assert lookout.begin(1.0, "n")
    assert not lookout.begin(1.0, "n")  # somebody is out already: wait on
    lookout.end(2.0, psycopg.OperationalError("connection refused"))
    with pytest.raises(Unavailable, match="n: cannot be reached: connection refused"):
        lookout.begin(1.0, "n")
    assert lookout.begin(3.0, "n")  # that was before: look again
    lookout.end(4.0, psycopg.OperationalError("FATAL: sorry, too many clients already"))
    assert not lookout.begin(3.0, "n")


@BOTH
def test_waiting_for_a_connection_counts_against_the_timeout_of_a_read(
    database: Database, colour: str
) -> None:
    with open_store(colour, settings(database.dsn, min_size=2, max_size=2)) as store:
        store.write("metrics", points(5), series="a")
        read(store)
        with all_in_use(store, 2):
            started = time.monotonic()
            with pytest.raises(QueryTimeout, match=r"no connection was free within 0\.3 s"):
                read(store, timeout=0.3)
            assert time.monotonic() - started < 3
        assert len(read(store, timeout=3)) == 5


@BOTH
def test_all_who_open_a_store_share_one_attempt_to_reach_its_server(colour: str) -> None:
    """A server that accepts and never answers costs them one connect_timeout, not one each."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        dsn = f"postgresql://u:p@127.0.0.1:{mute.getsockname()[1]}/x"
        source = settings(dsn, connect_timeout=1)
        started = time.monotonic()
        if colour == "blocking":
            answers = at_once(toolkit.Store(source), 5)
        else:
            with open_store(colour, source) as store:
                answers = at_once(store, 5)
        seconds = time.monotonic() - started
    assert [type(a) for a in answers] == [Unavailable] * 5
    assert seconds < 4


def test_a_caller_that_is_cancelled_while_the_store_opens_leaves_the_others_waiting(
    database: Database,
) -> None:
    async def run() -> None:
        driver = AsyncDriver(database.dsn, PoolOptions())
        first, second = (asyncio.create_task(driver.open()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).version >= 150000
        assert first.cancelled()
        await driver.close()

    asyncio.run(run())


def test_a_thread_that_is_interrupted_while_the_store_opens_leaves_the_opening_to_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = BlockingDriver(database.dsn, PoolOptions())
    greet, has_begun, go = driver._greet, threading.Event(), threading.Event()

    def interrupted() -> Any:
        monkeypatch.setattr(driver, "_greet", greet)
        has_begun.set()
        go.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "_greet", interrupted)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(lambda: drive(driver.open()))
        assert has_begun.wait(10)
        second = threads.submit(lambda: drive(driver.open()))
        go.set()
        assert second.result().version >= 150000
        assert isinstance(first.exception(), KeyboardInterrupt)
    drive(driver.close())


# -- which store takes what -----------------------------------------------------------------------


def test_a_blocking_store_says_that_it_cannot_await_an_iterator(blocking: toolkit.Store) -> None:
    async def frames() -> AsyncIterator[dict[str, Any]]:
        yield points(1)

    with pytest.raises(InputError, match="connect_async"):
        blocking.write("metrics", frames(), series="a")
