"""A caller that waits for what another has begun waits no longer than its own timeout."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from random import Random
from typing import Any

import psycopg
import pytest
from fix_cache import DAY, minutes
from fix_servers import Database
from fix_stores import cached

import toolkit
from toolkit.errors import QueryTimeout

PATIENCE_S = 0.2
Held = tuple[str, str, dict[str, Any]]
# what a reader waits for, the table whose lock holds it up, and how it asks
HELD: list[Any] = [
    pytest.param(("fill", "metrics", {}), id="fill"),
    pytest.param(("follow", "metrics_log", {"freshness": "strong"}), id="look"),
]


@contextmanager
def locked(sql: psycopg.Connection, table: str) -> Iterator[None]:
    with sql.transaction():
        sql.execute(f"LOCK TABLE {table}")
        yield


def is_running(store: Any, kind: str) -> bool:
    return any(key[0] == kind for key in list(store._roads.driver._running))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("held", HELD)
def test_a_thread_does_not_wait_for_another_beyond_its_timeout(
    database: Database, sql: psycopg.Connection, held: Held
) -> None:
    kind, table, options = held
    with toolkit.connect(cached(database.dsn, max_age=60.0)) as store:
        store.write("metrics", minutes(1), series="a")
        store.read("metrics", "a", "2020-01-01Z", "2020-01-01Z")
        found: list[int] = []

        def read() -> None:
            found.append(len(store.read("metrics", "a", *DAY, **options)))

        first = threading.Thread(target=read)
        with locked(sql, table):
            first.start()
            wait_until(lambda: is_running(store, kind))
            began = time.monotonic()
            with pytest.raises(QueryTimeout, match="another call asked for the same"):
                store.read("metrics", "a", *DAY, timeout=PATIENCE_S, **options)
            assert time.monotonic() - began < 0.5
            assert first.is_alive()
        first.join()
        assert found == [1440]


@pytest.mark.parametrize("held", HELD)
def test_a_task_does_not_wait_for_another_beyond_its_timeout(
    database: Database, sql: psycopg.Connection, held: Held
) -> None:
    kind, table, options = held

    async def main() -> None:
        async with toolkit.connect_async(cached(database.dsn, max_age=60.0)) as store:
            await store.write("metrics", minutes(1), series="a")
            await store.read("metrics", "a", "2020-01-01Z", "2020-01-01Z")
            with locked(sql, table):
                first = asyncio.create_task(store.read("metrics", "a", *DAY, **options))
                while not is_running(store, kind):  # noqa: ASYNC110  # the driver tells nobody
                    await asyncio.sleep(0.001)
                began = time.monotonic()
                with pytest.raises(QueryTimeout, match="another call asked for the same"):
                    await store.read("metrics", "a", *DAY, timeout=PATIENCE_S, **options)
                assert time.monotonic() - began < 0.5
                assert not first.done()
            assert len(await first) == 1440

    asyncio.run(main())


def test_who_waits_for_one_in_a_hurry_has_what_is_left_of_its_own_time(
    database: Database, sql: psycopg.Connection
) -> None:
    with toolkit.connect(cached(database.dsn, max_age=60.0)) as store:
        store.write("metrics", minutes(1), series="a")
        store.read("metrics", "a", "2020-01-01Z", "2020-01-01Z")
        took: dict[float, float] = {}

        def read(timeout: float) -> None:
            began = time.monotonic()
            with pytest.raises(QueryTimeout):
                store.read("metrics", "a", *DAY, timeout=timeout)
            took[timeout] = time.monotonic() - began

        threads = [threading.Thread(target=read, args=(timeout,)) for timeout in (0.2, 0.6)]
        with locked(sql, "metrics"):
            for thread in threads:
                thread.start()
                wait_until(lambda: is_running(store, "fill"))
            for thread in threads:
                thread.join()
        assert 0.15 < took[0.2] < 0.5
        assert 0.5 < took[0.6] < 0.9


def test_tasks_that_are_cancelled_at_any_moment_leave_the_pool_whole(database: Database) -> None:
    random = Random(5)

    async def ask(store: toolkit.AsyncStore) -> None:
        async with aclosing(store.stream("metrics", "A", *DAY, rows=300)) as pieces:
            async for _ in pieces:
                pass

    async def run() -> None:
        async with toolkit.connect_async(database.dsn) as store:
            await store.write("metrics", minutes(1), series="A")
            for _ in range(60):
                tasks = [asyncio.create_task(ask(store)) for _ in range(12)]
                await asyncio.sleep(random.random() * 0.03)
                for task in tasks[::2]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            deadline = time.monotonic() + 5.0
            while (found := store.stats())["pool_available"] != found["pool_size"]:
                assert time.monotonic() < deadline, found
                await asyncio.sleep(0.01)

    asyncio.run(run())
