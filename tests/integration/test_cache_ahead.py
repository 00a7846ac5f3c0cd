"""What is done before somebody waits for it: looks, spans that expire, spans that have changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_cache import DAY, memory, minutes, no_database, same
from fix_history import Clock, set_clock
from fix_servers import Database
from fix_stores import COLOURS, cached, open_store

import toolkit
from toolkit.rules import CacheRule

FOLLOWS = b"pg_current_snapshot"


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock() -> Clock:
    return Clock(wall_at=time.time())


@pytest.fixture
def store(colour: str, database: Database, clock: Clock) -> Iterator[Any]:
    with open_store(colour, cached(database.dsn)) as store:
        set_clock(store, clock)
        store.write("metrics", minutes(), series="a")
        yield store


def let_run(store: Any, seconds: float) -> None:
    """Let time pass for the thread in the background, or for the loop that calls run on."""
    if hasattr(store, "run"):
        store.run(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def until(is_so: Callable[[], bool], store: Any) -> None:
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < 5.0
        let_run(store, 0.01)


def test_what_has_to_be_known_soon_is_asked_in_the_background(store: Any, clock: Clock) -> None:
    store.read("metrics", "a", *DAY)
    follower = store_of(store).cache.follower
    (place,) = follower._places.values()
    clock.now += 0.7
    with no_database(store) as said:
        store.read("metrics", "a", *DAY)
        assert said == []
        clock.now += 0.2  # of a second that an answer may be old
        since = clock.now
        assert store.read("metrics", "a", *DAY).plan.sources == {"memory": 1440}
        until(lambda: place.checked_at >= since, store)
        assert len(said) == 1
        clock.now += 0.5  # 1.4 s after the first look: nobody has waited
        assert store.read("metrics", "a", *DAY).plan.sources == {"memory": 1440}
        assert len(said) == 1


def test_a_span_that_is_read_at_the_end_of_its_life_gets_another(store: Any, clock: Clock) -> None:
    hour = toolkit.bounded(90_000)
    store.read("metrics", "a", *DAY, freshness=hour)
    (key, first), *_ = memory(store).held()
    clock.now += 0.85 * 86_400
    store.read("metrics", "a", *DAY, freshness=hour)
    assert dict(memory(store).held())[key] is first
    clock.now += 0.1 * 86_400
    again = store.read("metrics", "a", *DAY, freshness=hour)
    assert again.plan.sources == {"memory": 1440}  # nobody waits for it
    until(lambda: dict(memory(store).held()).get(key) is not first, store)
    assert dict(memory(store).held())[key].expires == pytest.approx(clock.now + 86_400)


def test_a_span_that_others_share_gets_another_too(
    colour: str, database: Database, redis_url: str
) -> None:
    settings = cached(database.dsn, redis=redis_url, rules=(CacheRule(closed=2.0),))
    with open_store(colour, settings) as store:
        store.write("metrics", minutes(1), series="a")
        began, waited = time.monotonic(), 0
        while time.monotonic() - began < 5.0:
            waited += "points" in store.read("metrics", "a", *DAY).plan.sources
            let_run(store, 0.01)
        assert waited == 1
        assert 2 <= memory(store).counts.puts <= 6


def test_bounded_takes_the_old_value_while_a_new_one_is_fetched(
    store: Any, sql: psycopg.Connection, clock: Clock
) -> None:
    old = store.read("metrics", "a", *DAY)
    clock.now += 5
    sql.execute("UPDATE metrics SET value = -1 WHERE ts = '2024-03-01T12:00Z'")
    store.read("metrics", "a", "2024-03-05T00:00Z", "2024-03-06T00:00Z")  # hears of it
    clock.now += 5
    with no_database(store) as said:
        taken = store.read("metrics", "a", *DAY, freshness=toolkit.bounded(30))
        same(taken, old)
        until(lambda: len(said) >= 1, store)
        until(lambda: store.read("metrics", "a", *DAY)["value"][720] == -1, store)
    fresh = store.read("metrics", "a", *DAY, freshness=toolkit.bounded(30))
    assert fresh.plan.sources == {"memory": 1440}
    assert fresh["value"][720] == -1


def test_the_old_value_is_not_taken_where_it_may_be_our_own(store: Any) -> None:
    for value in (-1.0, -2.0):
        store.read("metrics", "a", *DAY, freshness="strong")
        store.write("metrics", {"ts": ["2024-03-01T12:00Z"], "value": [value]}, series="a")
        assert store.read("metrics", "a", *DAY)["value"][720] == value


def test_the_old_value_is_not_taken_when_it_is_too_old(
    store: Any, sql: psycopg.Connection, clock: Clock
) -> None:
    for wait, freshness in ((31.0, toolkit.bounded(30)), (0.0, "strong")):
        store.read("metrics", "a", *DAY, freshness="strong")
        value = -wait - len(str(freshness))
        sql.execute("UPDATE metrics SET value = %s WHERE ts = '2024-03-01T12:00Z'", [value])
        clock.now += 2
        store.read("metrics", "a", "2024-03-05T00:00Z", "2024-03-06T00:00Z")
        clock.now += wait
        assert store.read("metrics", "a", *DAY, freshness=freshness)["value"][720] == value


def test_ahead_can_be_turned_off(database: Database, colour: str, clock: Clock) -> None:
    with open_store(colour, cached(database.dsn, ahead=False)) as store:
        set_clock(store, clock)
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", *DAY)
        clock.now += 0.9
        with no_database(store) as said:
            store.read("metrics", "a", *DAY)
            let_run(store, 0.2)
        assert said == []


def test_a_store_is_closed_while_something_runs_ahead(
    database: Database, colour: str, sql: psycopg.Connection
) -> None:
    rules = (CacheRule(closed=0.4),)
    for _ in range(3):
        with open_store(colour, cached(database.dsn, rules=rules, max_age=0.2)) as store:
            store.write("metrics", minutes(1), series="a")
            began = time.monotonic()
            while time.monotonic() - began < 0.8:
                store.read("metrics", "a", *DAY)
        assert store_of(store).driver.stats() == {}


def test_an_error_ahead_is_nobodys(
    store: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    from toolkit.errors import Unavailable

    store.read("metrics", "a", *DAY)
    driver = store_of(store).driver
    real, failed = driver.fetch, []

    async def fetch(*args: Any, **options: Any) -> Any:
        failed.append(args)
        raise Unavailable("gone for a moment")

    clock.now += 0.9
    driver.fetch = fetch
    with caplog.at_level("INFO", "toolkit.drivers"):
        assert len(store.read("metrics", "a", *DAY)) == 1440
        until(lambda: "gone for a moment" in caplog.text, store)
    driver.fetch = real
    clock.now += 0.5
    assert len(store.read("metrics", "a", *DAY)) == 1440


# -- rules --------------------------------------------------------------------------------------


def test_rules_say_where_spans_are_held(database: Database, colour: str, redis_url: str) -> None:
    rules = (
        CacheRule("metrics", "points", ("redis",)),
        CacheRule("metrics", "1h", ("memory",)),
        CacheRule("metrics", tiers=()),
    )
    settings = cached(database.dsn, redis=redis_url, rules=rules)
    options = {"step": "1h", "strategy": "downsampled"}
    with open_store(colour, settings) as one, open_store(colour, settings) as other:
        one.write("metrics", minutes(), series="a")
        one.refresh("metrics")
        one.read("metrics", "a", *DAY)
        assert len(memory(one)) == 0
        with no_database(other) as said:
            found = other.read("metrics", "a", *DAY)
        assert not [s for s in said if FOLLOWS not in s and b"series" not in s.lower()] or found
        assert other.stats()["redis_hits"] >= 1
        one.read("metrics", "a", *DAY, **options)
        assert [k[0][1] for k, _ in memory(one).held()] == ["1h"]
        before = other.stats()["redis_hits"]
        other.read("metrics", "a", *DAY, **options)
        assert other.stats()["redis_hits"] == before
        for _ in range(2):
            found = one.read("metrics", "a", *DAY, step="5m", strategy="downsampled")
            assert "memory" not in found.plan.sources


def test_rules_say_how_long(database: Database, clock: Clock) -> None:
    rules = (CacheRule(closed=30.0),)
    with open_store("blocking", cached(database.dsn, rules=rules, ahead=False)) as store:
        set_clock(store, clock)
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", *DAY, freshness=toolkit.bounded(1000))
        (_, held), *_ = memory(store).held()
        assert held.expires == pytest.approx(clock.now + 30)
        clock.now += 29
        found = store.read("metrics", "a", *DAY, freshness=toolkit.bounded(1000))
        assert found.plan.sources == {"memory": 1440}
        clock.now += 2
        found = store.read("metrics", "a", *DAY, freshness=toolkit.bounded(1000))
        assert found.plan.sources == {"points": 1440}


def store_of(store: Any) -> Any:
    return getattr(store, "store", store)._roads


def test_the_shelf_does_not_lengthen_a_life(database: Database, redis_url: str) -> None:
    settings = cached(database.dsn, redis=redis_url, rules=(CacheRule(closed=20.0),))
    with toolkit.connect(settings) as one, toolkit.connect(replace(settings)) as other:
        one.write("metrics", minutes(1), series="a")
        one.read("metrics", "a", *DAY)
        time.sleep(0.6)
        other.read("metrics", "a", *DAY)
        (_, mine), (_, theirs) = memory(one).held()[0], memory(other).held()[0]
        assert theirs.expires == pytest.approx(mine.expires, abs=0.1)
