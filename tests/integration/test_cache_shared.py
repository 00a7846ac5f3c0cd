"""The second tier: what processes share in Redis is as right as what each remembers itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import Any

import numpy as np
import psycopg
import pytest
import redis
from fix_cache import DAY, DAYS, lease_of, memory, minutes, no_database, same
from fix_servers import Database
from fix_stores import COLOURS, READINGS, cached, create, open_store

SPAN_KEYS = "tk1:*:*:*:*:*:*"


@pytest.fixture
def stores(database: Database, redis_url: str) -> Iterator[tuple[Any, Any]]:
    """Two stores of different colours that share what they remember, on a week of minutes."""
    with ExitStack() as stack:
        settings = cached(database.dsn, redis=redis_url)
        found = tuple(stack.enter_context(open_store(c, settings)) for c in COLOURS)
        found[0].write("metrics", minutes(), series="a")
        yield found


@pytest.fixture
def shelf(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def spans(shelf: redis.Redis) -> list[bytes]:
    return sorted(k for k in shelf.scan_iter(SPAN_KEYS) if b":lease:" not in k)


def fetches(said: list[bytes]) -> int:
    """How many statements were sent but those that follow the change log."""
    return sum(b"pg_postmaster_start_time" not in s for s in said)


@pytest.mark.parametrize("options", [{}, {"step": "1h"}, {"step": "1d", "tz": "Europe/Berlin"}])
def test_what_one_has_read_the_other_finds(stores: Any, options: dict[str, Any]) -> None:
    first, second = stores
    mine = first.read("metrics", "a", *DAYS, **options)
    second.series("metrics")
    second.read("metrics", "a", "2020-01-01Z", "2020-01-01Z")
    with no_database(second) as said:
        theirs = second.read("metrics", "a", *DAYS, **options)
    assert fetches(said) == 0
    same(mine, theirs)
    same(mine, first.read("metrics", "a", *DAYS, cache=False, **options))


def test_every_type_of_column_comes_back_as_it_was(
    stores: Any, database: Database, shelf: redis.Redis
) -> None:
    create(database, READINGS)
    frame = {
        "ts": np.datetime64("2024-03-01", "us") + np.arange(5) * np.timedelta64(1, "m"),
        "level": [-0.0, np.inf, np.nan, 5e-324, 1.5],
        "hits": [1, None, 3, -(2**62), 0],
        "is_open": [True, None, False, True, True],
        "mood": ["x", "ü", None, "x", ""],
        "cost": [None, *map(Decimal, ("1.2345", "-3", "0.0001", "9"))],
    }
    stores[0].write("readings", frame, series="r")
    plain = stores[0].read("readings", "r", *DAY, cache=False)
    for store in (stores[0], stores[1], stores[1]):
        found = store.read("readings", "r", *DAY)
        for name in plain:
            assert found.raw(name).tobytes() == plain.raw(name).tobytes()
        assert found.categories == plain.categories
    assert len(spans(shelf)) == 1


@pytest.mark.parametrize("writer", [0, 1])
def test_a_write_is_gone_from_the_shelf_before_it_returns(
    stores: Any, shelf: redis.Redis, writer: int
) -> None:
    for store in stores:
        store.read("metrics", "a", *DAYS)
    before = spans(shelf)
    assert len(before) == 7
    stores[writer].write("metrics", {"ts": ["2024-03-03T07:00Z"], "value": [99.0]}, series="a")
    assert len(spans(shelf)) == 6
    for store in stores:
        cols = store.read("metrics", "a", *DAYS, freshness="strong")
        assert cols["value"][2 * 1440 + 420] == 99.0
    assert spans(shelf) == before


def test_a_write_by_anybody_is_followed(
    stores: Any, shelf: redis.Redis, sql: psycopg.Connection
) -> None:
    for value in range(10):
        for store in stores:
            store.read("metrics", "a", *DAY)
        sql.execute("UPDATE metrics SET value = %s WHERE ts = '2024-03-01Z'", [value])
        reader = stores[value % 2]
        assert reader.read("metrics", "a", *DAY, freshness="strong")["value"][0] == value


def test_a_store_that_slept_does_not_trust_what_it_finds(
    stores: Any, database: Database, redis_url: str, sql: psycopg.Connection
) -> None:
    for store in stores:
        store.read("metrics", "a", *DAY)
    sql.execute("UPDATE metrics SET value = 5 WHERE ts = '2024-03-01Z'")
    # nobody has heard of it; a process that begins now must, before it looks at the shelf
    with open_store("blocking", cached(database.dsn, redis=redis_url)) as third:
        assert third.read("metrics", "a", *DAY)["value"][0] == 5


def test_a_late_fill_is_refused(stores: Any, shelf: redis.Redis) -> None:
    first, second = stores
    for store in stores:
        store.read("metrics", "a", "2024-03-05T00:00Z", "2024-03-06T00:00Z")
    fetcher = first._roads.reader.fetcher
    real = type(fetcher).fetch

    async def slow(self: Any, work: Any) -> Any:
        found = await real(self, work)
        if self is fetcher:
            second.write("metrics", {"ts": ["2024-03-01Z"], "value": [99.0]}, series="a")
        return found

    type(fetcher).fetch = slow
    try:
        assert first.read("metrics", "a", *DAY)["value"][0] == 0.0  # as it was when asked
    finally:
        type(fetcher).fetch = real
    assert first.stats()["redis_refused"] == 1
    assert second.read("metrics", "a", *DAY)["value"][0] == 99.0


def test_redis_begun_anew_is_empty_not_wrong(
    stores: Any, shelf: redis.Redis, sql: psycopg.Connection
) -> None:
    for store in stores:
        store.read("metrics", "a", *DAY)
    shelf.flushall()
    sql.execute("UPDATE metrics SET value = 5 WHERE ts = '2024-03-01Z'")
    for store in stores:
        assert store.read("metrics", "a", *DAY, freshness="strong")["value"][0] == 5
    assert len(spans(shelf)) == 1


def test_a_cursor_that_was_thrown_out_takes_its_spans_along(
    stores: Any, shelf: redis.Redis, sql: psycopg.Connection
) -> None:
    for store in stores:
        store.read("metrics", "a", *DAY)
    (cursor,) = shelf.scan_iter("tk1:*:cursor")
    sql.execute("UPDATE metrics SET value = 5 WHERE ts = '2024-03-01Z'")
    shelf.delete(cursor)
    for store in reversed(stores):
        memory(store).clear()
        assert store.read("metrics", "a", *DAY, freshness="strong")["value"][0] == 5


def test_a_lease_whose_holder_is_gone_is_waited_for_once(stores: Any, shelf: redis.Redis) -> None:
    first, second = stores
    first.read("metrics", "a", *DAY)
    (key,) = spans(shelf)
    memory(first).clear()
    shelf.delete(key)
    shelf.set(lease_of(key), b"of the dead", px=300)
    began = time.monotonic()
    assert len(first.read("metrics", "a", *DAY)) == 1440
    assert 0.2 < time.monotonic() - began < 2
    assert len(second.read("metrics", "a", *DAY)) == 1440
    assert shelf.get(lease_of(key)) is None


def test_a_lease_ends_with_its_fetch_whatever_became_of_the_cursor(
    stores: Any, shelf: redis.Redis
) -> None:
    first, second = stores
    fetcher = first._roads.reader.fetcher
    real, span = type(fetcher).fetch, ("2024-03-05T00:00Z", "2024-03-06T00:00Z")
    for store in stores:
        store.read("metrics", "a", *span)

    async def slow(self: Any, work: Any) -> Any:
        if self is fetcher:
            type(fetcher).fetch = real
            assert len(list(shelf.scan_iter("tk1:*:lease:*"))) == 1
            shelf.delete(*shelf.scan_iter("tk1:*:cursor"))
            second.write("metrics", {"ts": ["2024-03-05Z"], "value": [99.0]}, series="a")
            first.read("metrics", "a", *span, freshness="strong")
        return await real(self, work)

    type(fetcher).fetch = slow
    try:
        assert len(first.read("metrics", "a", *DAY)) == 1440
    finally:
        type(fetcher).fetch = real
    assert list(shelf.scan_iter("tk1:*:lease:*")) == []


@pytest.mark.parametrize("colour", COLOURS)
def test_without_redis_there_is_still_an_answer(
    colour: str, database: Database, cache_server: Any
) -> None:
    with open_store(colour, cached(database.dsn, redis=cache_server.url)) as store:
        store.write("metrics", minutes(), series="a")
        plain = store.read("metrics", "a", *DAYS, cache=False)
        same(store.read("metrics", "a", *DAYS), plain)
        for outage in (cache_server.frozen, lambda: stopped(cache_server)):
            with outage():
                memory(store).clear()
                began = time.monotonic()
                same(store.read("metrics", "a", *DAYS, freshness="strong"), plain)
                assert time.monotonic() - began < 1
                store.write("metrics", {"ts": ["2024-03-01Z"], "value": [7.0]}, series="a")
                assert store.read("metrics", "a", *DAY)["value"][0] == 7.0
                store.write("metrics", {"ts": ["2024-03-01Z"], "value": [0.0]}, series="a")
            deadline = time.monotonic() + 20
            while store.stats()["redis_is_out"]:
                assert time.monotonic() < deadline
                store.read("metrics", "a", *DAY)
            same(store.read("metrics", "a", *DAYS, freshness="strong"), plain)


@contextmanager
def stopped(server: Any) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()
