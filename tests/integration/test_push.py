"""What one process writes, others hear of at once; and where they cannot, they look as before."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
import redis
from fix_cache import DAY, minutes, no_database
from fix_cache_servers import CacheServer
from fix_servers import Database
from fix_shelf import DEADLINE_S
from fix_stores import COLOURS, cached, open_store

import toolkit
from toolkit.config import Settings
from toolkit.follower import Place

THREAD = "toolkit-redis-push"
AGE = 600.0  # far longer than a test: what is seen sooner was heard of


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def url(request: pytest.FixtureRequest, cache_server: CacheServer) -> str:
    """A server of either kind, spoken to in either protocol."""
    return f"{cache_server.url}?protocol={request.param}"


def listeners(server: CacheServer) -> list[dict[str, Any]]:
    return [c for c in server.admin.client_list(_type="pubsub") if c["name"] == "toolkit"]


def settings(database: Database, url: str) -> Settings:
    return cached(database.dsn, redis=url, redis_timeout=2.0, max_age=AGE)


@contextmanager
def reading(colour: str, database: Database, url: str) -> Iterator[Any]:
    """A store that would not look again for long, listening, and holding a day of minutes."""
    with open_store(colour, settings(database, url)) as store:
        store.write("metrics", minutes(1), series="a")
        until(store, lambda: store.stats()["redis_is_listening"])
        settle(store)
        yield store


@pytest.fixture
def reader(colour: str, database: Database, redis_url: str) -> Iterator[Any]:
    with reading(colour, database, redis_url) as store:
        yield store


@pytest.fixture
def writer(database: Database, redis_url: str) -> Iterator[toolkit.Store]:
    """A store that has never read anything."""
    with toolkit.connect(settings(database, redis_url)) as store:
        yield store


def until(store: Any, is_so: Callable[[], Any]) -> None:
    """Wait for something that happens beside the callers; an event loop runs meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        breathe(store)


def breathe(store: Any, seconds: float = 0.005) -> None:
    if hasattr(store, "store"):
        store.run(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def place(store: Any) -> Place:
    (found,) = getattr(store, "store", store)._roads.cache.follower._places.values()
    return found


def settle(store: Any) -> None:
    """Read until a read finds everything here, with no message left to follow."""
    with no_database(store) as said:
        while True:
            store.read("metrics", "a", *DAY)
            if not said:
                return
            said.clear()
            breathe(store)


def first(store: Any, **options: Any) -> float:
    return float(store.read("metrics", "a", *DAY, **options)["value"][0])


def put(store: Any, value: float) -> None:
    store.write("metrics", {"ts": ["2024-03-01T00:00Z"], "value": [value]}, series="a")


def test_a_write_is_seen_long_before_others_would_look(
    colour: str, database: Database, url: str
) -> None:
    with (
        reading(colour, database, url) as reader,
        toolkit.connect(settings(database, url)) as writer,
    ):
        for value in range(1, 6):
            put(writer, value)
            until(reader, lambda value=value: first(reader) == value)


def test_a_delete_is_seen_long_before_others_would_look(reader: Any, writer: toolkit.Store) -> None:
    assert writer.delete("metrics", "a", *DAY) == 1440
    until(reader, lambda: not len(reader.read("metrics", "a", *DAY)))


def test_what_another_client_wrote_is_told_by_who_finds_it(
    reader: Any, writer: toolkit.Store, sql: psycopg.Connection
) -> None:
    first(writer)
    sql.execute("UPDATE metrics SET value = 5 WHERE ts = '2024-03-01Z'")
    assert first(writer, freshness="strong") == 5
    until(reader, lambda: first(reader) == 5)


def test_who_allows_for_age_does_not_look_because_of_a_message(
    reader: Any, writer: toolkit.Store
) -> None:
    put(writer, 5)
    until(reader, lambda: place(reader).heard_at > place(reader).checked_at)
    breathe(reader, 11 * place(reader).took)
    with no_database(reader) as said:
        assert first(reader, freshness=toolkit.bounded(AGE)) == 0
        assert said == []
        assert first(reader) == 5


def test_nobody_asks_the_database_until_somebody_reads(reader: Any, writer: toolkit.Store) -> None:
    heard = reader.stats()["redis_heard"]
    with no_database(reader) as said:
        for value in range(1, 21):
            put(writer, value)
        until(reader, lambda: reader.stats()["redis_heard"] == heard + 20)
        breathe(reader, 11 * place(reader).took)
        assert said == []
        assert first(reader) == 20
        assert len([s for s in said if b"pg_postmaster_start_time" in s]) == 1


@contextmanager
def storm(redis_url: str) -> Iterator[None]:
    """Some thousand messages a second for every dataset."""
    has_ended = threading.Event()

    def publish() -> None:
        with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipe:
            cursors = list(client.scan_iter("tk1:*:cursor"))
            while not has_ended.wait(0.0005):
                for cursor in cursors * 5:
                    pipe.publish(cursor + b":moved", b"somebody")
                pipe.execute()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def test_a_storm_of_messages_costs_a_tenth_of_the_time_and_holds_nobody_up(
    reader: Any, redis_url: str
) -> None:
    follower = getattr(reader, "store", reader)._roads.cache.follower
    look, looks, slowest = follower._look, [], 0.0

    async def timed(*args: Any) -> None:
        began = time.monotonic()
        await look(*args)
        looks.append(time.monotonic() - began)

    follower._look = timed
    with storm(redis_url):
        until(reader, lambda: reader.stats()["redis_heard"] > 100)
        began = time.monotonic()
        while time.monotonic() < began + 1:
            asked = time.monotonic()
            first(reader)
            slowest = max(slowest, time.monotonic() - asked)
    assert looks
    assert sum(looks) < 0.25
    assert slowest < 0.5


def test_one_write_is_told_once_however_many_follow(
    database: Database, redis_url: str, writer: toolkit.Store, sql: psycopg.Connection
) -> None:
    with ExitStack() as stack:
        several = [reading(c, database, redis_url) for c in (*COLOURS, *COLOURS)]
        readers = [stack.enter_context(one) for one in several]
        client = stack.enter_context(redis.Redis.from_url(redis_url, protocol=2))
        told = stack.enter_context(client.pubsub(ignore_subscribe_messages=True))
        told.psubscribe("tk1:*:moved")
        while told.get_message(timeout=0.1) is not None:
            pass
        for value in (5, 6, 7):
            put(writer, value)
            for reader in readers:
                sql.execute("SELECT pg_current_xact_id()")  # each looks from another snapshot
                until(reader, lambda reader=reader, value=value: first(reader) == value)
            messages = 0
            while (said := told.get_message(timeout=0.2)) is not None:
                messages += said["type"] == "pmessage"
            assert messages == 1


def test_without_anybody_to_hear_others_are_looked_at_as_often_as_ever(
    colour: str, database: Database, cache_server: CacheServer, sql: psycopg.Connection
) -> None:
    with open_store(colour, cached(database.dsn, redis=cache_server.url, max_age=0.2)) as store:
        store.write("metrics", minutes(1), series="a")
        until(store, lambda: store.stats()["redis_is_listening"])
        for value, outage in enumerate((cache_server.frozen, lambda: stopped(cache_server)), 1):
            with outage():
                sql.execute("UPDATE metrics SET value = %s WHERE ts = '2024-03-01Z'", [value])
                until(store, lambda value=value: first(store) == value)
        until(store, lambda: first(store) == 2 and store.stats()["redis_is_listening"])


@contextmanager
def stopped(server: CacheServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_a_forked_child_hears_as_its_parent_does(
    database: Database, redis_url: str, writer: toolkit.Store
) -> None:
    with reading("blocking", database, redis_url) as reader:
        begun, ended = os.pipe()
        if (child := os.fork()) == 0:
            try:
                first(reader)
                until(reader, lambda: reader.stats()["redis_is_listening"])
                settle(reader)
                os.write(ended, b"!")
                until(reader, lambda: first(reader) == 5)
                reader.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.read(begun, 1) == b"!"
        put(writer, 5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        until(reader, lambda: first(reader) == 5)
        for end in (begun, ended):
            os.close(end)


def test_a_closed_store_leaves_nobody_listening(
    colour: str, database: Database, cache_server: CacheServer
) -> None:
    with open_store(colour, settings(database, cache_server.url)) as store:
        for _ in range(2):
            put(store, 1)
            first(store)
            until(store, lambda: store.stats()["redis_is_listening"])
            assert len(listeners(cache_server)) == 1
            store.close()
            until(store, lambda: not listeners(cache_server))
            assert THREAD not in {thread.name for thread in threading.enumerate()}
