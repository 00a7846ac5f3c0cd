"""Redis lost under a store in every way: answers stay right, and cost one timeout at the most."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import psycopg
import pytest
from fix_cache import DAY, memory, minutes, no_database, same
from fix_cache_servers import CacheServer
from fix_outages import OUTAGES, Line
from fix_servers import ON_ONE_VERSION, Database
from fix_stores import COLOURS, cached, open_store

from toolkit.options import CacheOptions

pytestmark = ON_ONE_VERSION
TIMEOUT = CacheOptions().redis_timeout
BUSY = 0.05  # seconds that a busy machine takes from anybody
NOISE = 0.005
READS = 20
SHOWS: dict[str, set[str]] = {  # what has to be counted, or else nothing was lost
    "refused": {"redis_errors_connection"},
    "restarted": set(),
    "full": {"redis_errors_oom"},
    "disconnected": {"redis_errors_connection"},
    "frozen": {"redis_errors_timeout"},
    "reset": {"redis_errors_connection"},
}
DEADLINE = 20.0


@pytest.fixture
def line(cache_server: CacheServer) -> Iterator[Line]:
    line = Line(cache_server.port)
    yield line
    line.close()


def timed(store: Any, value: float) -> float:
    """Return how long a read takes that finds nothing in this process."""
    memory(store).clear()
    began = time.monotonic()
    cols = store.read("metrics", "a", *DAY, freshness="strong")
    seconds = time.monotonic() - began
    assert (len(cols), cols["value"][0]) == (1440, value)
    return seconds


def until_back(store: Any) -> None:
    """Read until Redis is found again, and what it holds is."""
    deadline = time.monotonic() + DEADLINE
    while True:
        memory(store).clear()
        with no_database(store) as said:
            store.read("metrics", "a", *DAY)
        if not any(b'"metrics" AS t' in statement for statement in said):
            return
        assert time.monotonic() < deadline, store.stats()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("how", OUTAGES)
def test_a_lost_redis_costs_a_timeout_once_and_no_answer(
    database: Database,
    cache_server: CacheServer,
    line: Line,
    sql: psycopg.Connection,
    how: str,
    colour: str,
) -> None:
    is_lost = how not in ("restarted", "full")
    url = line.url if how == "reset" else cache_server.url
    with (
        open_store(colour, cached(database.dsn, redis=url)) as store,
        open_store(colour, cached(database.dsn)) as alone,
    ):
        alone.write("metrics", minutes(1), series="a")
        until_back(store)
        timed(alone, 0.0)
        with OUTAGES[how](cache_server, line):
            sql.execute("UPDATE metrics SET value = 77 WHERE ts = '2024-03-01Z'")
            first = timed(store, 77.0)
            without, later = [], []
            for value in range(READS):
                sql.execute("UPDATE metrics SET value = %s WHERE ts = '2024-03-01Z'", [value])
                without.append(timed(alone, value))
                later.append(timed(store, value))
            same(store.read("metrics", "a", *DAY), alone.read("metrics", "a", *DAY, cache=False))
            stats = store.stats()
        assert first < TIMEOUT + median(without) + BUSY
        # a Redis that is there is asked, some times for a read
        assert median(later) < 2 * median(without) + (NOISE if is_lost else TIMEOUT)
        assert {k for k in stats if k.startswith("redis_errors_")} >= SHOWS[how]
        assert ("redis_errors_connection" in stats or how == "frozen") is is_lost
        until_back(store)
        sql.execute("UPDATE metrics SET value = 5 WHERE ts = '2024-03-01Z'")
        timed(store, 5.0)
