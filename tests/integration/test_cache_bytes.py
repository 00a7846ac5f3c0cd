"""Whatever lies in Redis under the keys of a cache is no answer, unless the cache put it there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import numpy as np
import psycopg
import pytest
import redis
from fix_cache import DAY, DAYS, lease_of, memory, minutes, same
from fix_servers import ON_ONE_VERSION, Database
from fix_stores import COLOURS, READINGS, cached, create, open_store
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

QUESTIONS: tuple[tuple[str, str, tuple[str, str], dict[str, Any]], ...] = (
    ("metrics", "a", DAYS, {}),
    ("metrics", "b", DAY, {}),
    ("metrics", "a", DAYS, {"step": "1h"}),
    ("readings", "a", DAY, {}),
)
pytestmark = ON_ONE_VERSION
KINDS = ("cursor", "span", "lease")
Damage = Callable[[bytes, list[bytes], int], bytes]


def flipped(value: bytes, others: list[bytes], at: int) -> bytes:
    place = at % len(value)
    return bytes([*value[:place], value[place] ^ 1 << at % 8, *value[place + 1 :]])


def ahead(value: bytes, others: list[bytes], at: int) -> bytes:
    """A snapshot that saw more than there is, which no checksum of a block knows of."""
    return re.sub(rb"^\d+:\d+:[^|]*", b"%d:%d:" % (10**8 + at, 10**8 + at), value)


DAMAGES: dict[str, Damage] = {
    "cut": lambda value, others, at: value[: at % len(value)],
    "longer": lambda value, others, at: value + b"x" * (1 + at % 3),
    "flipped": flipped,
    "another's": lambda value, others, at: others[at % len(others)],
    "ahead": ahead,
    "numbers": lambda value, others, at: b"%d:%d:zz|abcdef|abcdef" % (at, 1),
    "random": lambda value, others, at: np.random.default_rng(at).bytes(at % 400),
    "nothing": lambda value, others, at: b"",
}
TYPES: dict[str, Callable[[redis.Redis, bytes], Any]] = {
    "hash": lambda shelf, key: shelf.hset(key, "field", "value"),  # type: ignore[arg-type]
    "list": lambda shelf, key: shelf.rpush(key, "value"),
    "gone": lambda shelf, key: None,
}

spoils = st.tuples(
    st.sampled_from(KINDS),
    st.integers(0, 20),
    st.sampled_from([*DAMAGES, *TYPES]),
    st.integers(0, 100_000),
)


@pytest.fixture
def shelf(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def stores(database: Database, redis_url: str) -> Iterator[tuple[Any, Any]]:
    """A store of each colour, patient: no fault is meant but those of the bytes."""
    create(database, READINGS)
    with ExitStack() as stack:
        settings = cached(database.dsn, redis=redis_url, redis_timeout=5.0)
        found = tuple(stack.enter_context(open_store(c, settings)) for c in COLOURS)
        for number, series in enumerate("ab"):
            found[0].write("metrics", minutes(value=number + 1.5), series=series)
        found[0].write("readings", {"ts": minutes(1)["ts"], "level": [7.5] * 1440}, series="a")
        yield found


def spoil(shelf: redis.Redis, kind: str, which: int, how: str, at: int) -> None:
    """Put something under one of the keys of the cache that the cache did not put there."""
    there = {
        k: shelf.get(k) for k in sorted(shelf.scan_iter("tk1:*")) if shelf.type(k) == b"string"
    }
    cursors = [k for k in there if k.endswith(b":cursor")]
    spans = [k for k in there if k not in cursors and b":lease:" not in k]
    keys = cursors if kind == "cursor" else spans
    if not keys:
        return
    key = keys[which % len(keys)]
    value, others = there[key], [v for k, v in there.items() if k != key and v]
    shelf.delete(key)
    if kind == "lease":  # of a span that is missing now
        key = lease_of(key)
    if how in TYPES:
        TYPES[how](shelf, key)
    elif value and others:
        shelf.set(key, DAMAGES[how](value, others, at))


def test_no_bytes_are_an_answer_but_those_of_the_cache(
    stores: Any, shelf: redis.Redis, sql: psycopg.Connection
) -> None:
    values = count(1_000)

    def ask(store: Any) -> None:
        for dataset, series, span, options in QUESTIONS:
            plain = store.read(dataset, series, *span, cache=False, **options)
            same(store.read(dataset, series, *span, freshness="strong", **options), plain)

    @settings(suppress_health_check=list(HealthCheck))
    @example([("cursor", n, "ahead", 5) for n in (0, 1)], 0, True, False)
    @example([("cursor", n, "numbers", 5) for n in (0, 1)], 1, False, True)
    @example([("span", n, "another's", n + 3) for n in range(6)], 1, False, True)
    @example([("lease", 0, "random", 77), ("lease", 3, "hash", 0)], 0, False, False)
    @given(
        st.lists(spoils, min_size=1, max_size=3), st.integers(0, 1), st.booleans(), st.booleans()
    )
    def check(wrong: list[Any], first: int, is_changed: bool, is_changed_later: bool) -> None:
        shelf.flushall()
        for store in stores:
            memory(store).clear()
            ask(store)
        for change, is_so in ((False, is_changed), (True, is_changed_later)):
            if change:
                for one in wrong:
                    spoil(shelf, *one)
            if is_so:
                ts = "2024-03-01Z" if next(values) % 2 else "2024-03-02Z"
                sql.execute("UPDATE metrics SET value = %s WHERE ts = %s", [next(values), ts])
        for store in (stores[first], stores[1 - first], stores[first]):
            memory(store).clear()
            ask(store)

    check()
    for store in stores:
        assert store.stats()["redis_outages"] == 0
        assert store.stats()["redis_hits"] > 0
        assert store.stats()["redis_damaged"] > 0
