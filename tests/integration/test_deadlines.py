"""A read's timeout bounds what is done here, too: blocks are decoded as long as time is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from fix_compressing import CLOSED, END, START, fill, snapshot
from fix_servers import Database
from fix_stores import cached, open_store

from toolkit import cutting, fetcher, merging
from toolkit.dataset import CANDLES
from toolkit.errors import QueryTimeout

BLOCKS = 40  # of series A, and more


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, float], list[str]]:
    """Has a function take so many seconds more, by the clock; returns its calls."""
    real, late = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: real() + late[0])

    def slow(module: Any, name: str, seconds: float) -> list[str]:
        function, calls = getattr(module, name), list[str]()

        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            late[0] += seconds
            return function(*args, **options)

        monkeypatch.setattr(module, name, call)
        return calls

    return slow


@pytest.fixture
def cold_store(store: Any, database: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cutting, "TARGET", 500)
    fill(store, database, CANDLES)
    assert store.compress("candles", end=CLOSED).blocks > BLOCKS
    return store


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"columns": ["close"], "descending": True},
        {"step": "1h", "strategy": "aggregated"},
        {"step": "1h", "where": {"close": (">", 1)}},
        {"points": 50},
        {"step": "1s"},
    ],
    ids=str,
)
def test_no_block_is_decoded_when_the_time_is_over(
    cold_store: Any, slow: Callable[..., list[str]], options: dict[str, Any]
) -> None:
    decoded = slow(merging, "decode_block", 1.0)
    with pytest.raises(QueryTimeout, match="give it a longer timeout"):
        cold_store.read("candles", "A", START, END, timeout=4.5, **options)
    assert 4 <= len(decoded) <= 4 + 3  # those that others had begun
    if options != {"step": "1s"}:  # finer than the points
        assert len(cold_store.read("candles", "A", START, END, timeout=800_000, **options))


def test_an_answer_that_comes_too_late_is_none(
    cold_store: Any, slow: Callable[..., list[str]]
) -> None:
    slow(fetcher, "bucket_points", 10.0)
    bars = {"step": "1h", "columns": ["volume"], "where": {"close": (">", 1)}}
    with pytest.raises(QueryTimeout):
        cold_store.read("candles", "A", START, END, timeout=9.0, **bars)
    assert len(cold_store.read("candles", "A", START, END, timeout=19.0, **bars))


def test_a_stream_may_take_longer_than_each_of_its_statements(
    cold_store: Any, slow: Callable[..., list[str]]
) -> None:
    expected = len(cold_store.read("candles", "A", START, END))
    slow(merging, "decode_block", 1.0)
    for options, rows in (({}, expected), ({"step": "1h"}, None)):
        pieces = cold_store.stream("candles", "A", START, END, rows=700, timeout=3.0, **options)
        assert sum(map(len, pieces)) == (rows or len(range(0, expected, 60)))


@pytest.mark.parametrize("colour", ["blocking", "asyncio"])
def test_what_came_in_time_is_remembered_and_answers_the_next(
    colour: str,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    slow: Callable[..., list[str]],
) -> None:
    monkeypatch.setattr(cutting, "TARGET", 500)
    with open_store(colour, cached(database.dsn, memory=2**26)) as store:
        fill(store, database, CANDLES)
        store.compress("candles", end=CLOSED)
        expected = snapshot(store.read("candles", "A", START, END, cache=False))
        decoded = slow(merging, "decode_block", 1.0)
        with pytest.raises(QueryTimeout):
            store.read("candles", "A", START, END, timeout=4.5)
        assert len(decoded) < BLOCKS
        for _ in range(2):
            cols = store.read("candles", "A", START, END, timeout=800_000)
            assert snapshot(cols) == expected
