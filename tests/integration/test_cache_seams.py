"""Where parts of the cache meet: the short road, rules, the background, other threads, an end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cache import DAY, SECOND_DAY, memory, minutes
from fix_servers import Database
from fix_stores import COLOURS, cached, open_store

import toolkit
from toolkit.rules import CacheRule

TESTS = Path(__file__).parents[1]
PATIENT: dict[str, Any] = {"redis_timeout": 2.0}


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def roads(store: Any) -> Any:
    return getattr(store, "store", store)._roads


# -- the short road -----------------------------------------------------------------------------


def test_all_series_are_more_when_there_is_another(database: Database, colour: str) -> None:
    with open_store(colour, cached(database.dsn)) as store:
        for name, count in (("a", 1_440), ("b", 2_880)):
            store.write("metrics", minutes(1), series=name)
            for _ in range(3):
                assert len(store.read("metrics", None, *DAY)) == count


def test_a_series_made_anew_is_found_where_nothing_was(
    database: Database, colour: str, sql: psycopg.Connection
) -> None:
    with (
        open_store(colour, cached(database.dsn)) as store,
        open_store(colour, cached(database.dsn)) as other,
    ):
        store.write("metrics", minutes(1), series="a")
        for _ in range(3):
            assert len(store.read("metrics", "a", *SECOND_DAY)) == 0
        store.delete("metrics", "a", *DAY)
        sql.execute("DELETE FROM series WHERE name = 'a'")
        two = minutes(2)
        other.write("metrics", {name: column[1_440:] for name, column in two.items()}, series="a")
        assert len(store.read("metrics", "a", *SECOND_DAY, freshness="strong")) == 1_440


def test_two_threads_find_out_that_a_way_is_gone(database: Database) -> None:
    with toolkit.connect(cached(database.dsn)) as store:
        store.write("metrics", minutes(1), series="a")
        for _ in range(3):
            store.read("metrics", "a", *DAY)
        directory = roads(store).reader.shortcuts._directory
        real, both, seen = directory.remembered, threading.Barrier(2), threading.local()

        def remembered(name: str) -> Any:
            if hasattr(seen, "once"):
                return real(name)
            seen.once = both.wait(5)
            return None

        directory.remembered = remembered
        sizes: list[int] = []
        threads = [
            threading.Thread(target=lambda: sizes.append(len(store.read("metrics", "a", *DAY))))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sizes == [1_440, 1_440]


# -- rules --------------------------------------------------------------------------------------


def test_steps_that_share_a_length_of_span_have_rules_of_their_own(
    database: Database, colour: str
) -> None:
    rules = (CacheRule("metrics", "1m", ("memory",)), CacheRule("metrics", "2m", ()))
    with open_store(colour, cached(database.dsn, rules=rules)) as store:
        store.write("metrics", minutes(1), series="a")
        every_other = {name: column[::2] for name, column in minutes(1).items()}
        store.write("metrics", every_other, series="b")
        for name in ("a", "b") * 2:
            store.read("metrics", name, *DAY)
        assert len(memory(store)) == 1


def test_redis_alone_and_no_redis_is_no_cache(database: Database, colour: str) -> None:
    rules = (CacheRule(tiers=("redis",)),)
    with open_store(colour, cached(database.dsn, rules=rules)) as store:
        store.write("metrics", minutes(1), series="a")
        found = store.read("metrics", "a", "2024-03-01T12:00Z", "2024-03-01T12:10Z")
        assert found.plan.sources == {"points": 10}


def test_who_waited_shares_nothing_that_can_be_written(database: Database, redis_url: str) -> None:
    rules = (CacheRule(tiers=("redis",)),)
    with toolkit.connect(cached(database.dsn, redis=redis_url, rules=rules, **PATIENT)) as store:
        store.write("metrics", minutes(1), series="a")
        fetcher, found = roads(store).reader.fetcher, []
        real = fetcher.fetch

        async def fetch(work: Any) -> Any:
            await roads(store).driver.pause(0.4)  # so that the other one comes meanwhile
            return await real(work)

        fetcher.fetch = fetch
        threads = [
            threading.Thread(target=lambda: found.append(store.read("metrics", "a", *DAY)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.stats()["cache_waits"] == 1
        for columns in found:
            with pytest.raises(ValueError, match="WRITEABLE"):
                columns["value"].flags.writeable = True


# -- the road of a read -------------------------------------------------------------------------


def test_what_is_lost_meanwhile_is_fetched_with_its_neighbours(
    database: Database, colour: str
) -> None:
    with open_store(colour, cached(database.dsn)) as store:
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", "2024-03-02T00:00Z", "2024-03-04T00:00Z")
        cache, calls = roads(store).cache, 0
        real = cache._group

        async def group(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:  # another process is done with it, and meanwhile all changed
                cache.memory.clear()
                return None
            return await real(*args)

        cache._group = group
        assert len(store.read("metrics", "a", DAY[0], "2024-03-06T00:00Z")) == 5 * 1_440


def test_what_is_held_is_not_a_view_of_more(database: Database, colour: str) -> None:
    today = np.datetime64(int(time.time()) // 86_400 * 86_400, "s").astype("M8[us]")
    ts = today + np.arange(30 * 1_440) * np.timedelta64(1, "m")
    with open_store(colour, cached(database.dsn)) as store:
        store.write("metrics", {"ts": ts, "value": np.arange(len(ts)) * 1.0}, series="a")
        store.read("metrics", "a", f"{today}Z", f"{today + np.timedelta64(30, 'D')}Z")
        for _, held in memory(store).held():
            for array in held.arrays:
                base = array if array.base is None else array.base
                assert base.nbytes == array.nbytes


def test_a_write_is_seen_though_the_catalog_forgot_it_meanwhile(database: Database) -> None:
    with toolkit.connect(cached(database.dsn)) as store:
        store.write("metrics", minutes(1), series="a")
        for _ in range(2):
            store.read("metrics", "a", *DAY)
        writer, catalog = roads(store).writer, roads(store).directory.catalog
        real = writer.write

        async def write(*args: Any, **options: Any) -> Any:
            report = await real(*args, **options)
            catalog.forget()  # as a read does that finds something gone
            return report

        writer.write = write
        store.write("metrics", {"ts": ["2024-03-01T12:00Z"], "value": [-7.0]}, series="a")
        assert store.read("metrics", "a", *DAY)["value"][720] == -7.0


# -- the background, and the end ----------------------------------------------------------------

_AFTER_MAIN = """
import sys, threading, time
sys.path.insert(0, sys.argv[2])
import toolkit
from fix_cache import DAY, minutes
from fix_stores import cached

store = toolkit.connect(cached(sys.argv[1], max_age=0.1))
store.write("metrics", minutes(1), series="a")

def work():
    time.sleep(0.3)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        store.read("metrics", "a", *DAY)
    store.close()
    print("done")

threading.Thread(target=work).start()
"""


def test_reads_go_on_when_the_main_thread_has_ended(database: Database) -> None:
    command = [sys.executable, "-c", _AFTER_MAIN, database.dsn, str(TESTS)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_a_store_that_is_closed_opens_nothing_in_the_background(database: Database) -> None:
    store = toolkit.connect(cached(database.dsn))
    store.write("metrics", minutes(1), series="a")
    driver, begun = roads(store).driver, threading.Event()

    async def job() -> None:
        begun.set()
        await driver.pause(0.3)
        await driver.fetch(b"SELECT 1")

    driver.later("job", job)
    assert begun.wait(5)
    store.close()
    assert driver.stats() == {}


def test_an_asyncio_store_that_is_closed_opens_nothing_in_the_background(
    database: Database,
) -> None:
    async def main() -> None:
        store = toolkit.connect_async(cached(database.dsn))
        await store.write("metrics", minutes(1), series="a")
        for _ in range(2):
            await store.read("metrics", "a", *DAY)
        await store.close()
        await asyncio.sleep(0.85)
        await store.read("metrics", "a", *DAY)  # from memory; the look is in the background
        await asyncio.sleep(0.002)
        await store.close()
        await asyncio.sleep(0.3)
        assert roads(store).driver.stats() == {}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_closing_does_not_wait_long_for_the_background(
    database: Database, colour: str, sql: psycopg.Connection
) -> None:
    with open_store(colour, cached(database.dsn)) as store, sql.transaction():
        store.write("metrics", minutes(1), series="a")
        for _ in range(2):
            store.read("metrics", "a", *DAY)
        ((_, held),) = memory(store).held()
        held.due = 0.0
        sql.execute("LOCK TABLE metrics IN ACCESS EXCLUSIVE MODE")
        assert store.read("metrics", "a", *DAY).plan.sources == {"memory": 1_440}
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < 4.0
