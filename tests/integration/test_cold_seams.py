"""A store that does not know yet until when there are blocks finds it out in the read itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from fix_servers import Database, Fleet

import toolkit
from toolkit import Columns, cutting

MINUTE = 60_000_000
START = 1_609_459_200_000_000  # 2021-01-01
STEP = 3  # minutes between two points
COUNT = 3 * 31 * 1_440 // STEP
ALL = ("2021-01-01Z", "2021-04-05Z")
CUT = ("2021-01-07T03:17Z", "2021-03-09T01:01Z")
FEBRUARY, MARCH = "2021-02-01Z", "2021-03-01Z"

ROADS: dict[str, Callable[[Any], Columns]] = {
    "points": lambda s: s.read("candles", "A", *CUT, cache=False),
    "columns": lambda s: s.read("candles", "A", *CUT, columns=["close"], cache=False),
    "where": lambda s: s.read("candles", "A", *ALL, where={"close": (">", 90)}, cache=False),
    "limit": lambda s: s.read("candles", "A", *CUT, limit=7, descending=True, cache=False),
    "many": lambda s: s.read("candles", ["A", "B"], *CUT, cache=False),
    "labels": lambda s: s.read("candles", None, *CUT, labels={"kind": "x"}, cache=False),
    "direct": lambda s: s.read("candles", "A", *CUT, step="1h", strategy="direct", cache=False),
    "aggregated": lambda s: s.read(
        "candles", "A", *CUT, step="1h", strategy="aggregated", cache=False
    ),
    "newest first": lambda s: s.read(
        "candles",
        "A",
        *CUT,
        step="4h",
        strategy="aggregated",
        descending=True,
        limit=5,
        cache=False,
    ),
    "rollup": lambda s: s.read(
        "candles", "A", *ALL, step="1d", strategy="downsampled", cache=False
    ),
    "cut": lambda s: s.read("candles", "A", *CUT, step="1d", strategy="downsampled", cache=False),
    "zone": lambda s: s.read("candles", "A", *CUT, step="1d", tz="America/New_York", cache=False),
    "months": lambda s: s.read(
        "candles", ["A", "B"], *ALL, step="1M", strategy="direct", cache=False
    ),
    "auto": lambda s: s.read("candles", "A", *CUT, step="auto", cache=False),
    "chart": lambda s: s.read("candles", "A", *CUT, points=50, cache=False),
    "latest": lambda s: s.latest("candles", n=3),
    "latest bars": lambda s: s.latest("candles", step="1d", n=3),
    "stream": lambda s: Columns.concat(list(s.stream("candles", "A", *CUT, rows=5_000))),
    "stream of bars": lambda s: Columns.concat(
        list(s.stream("candles", "A", *CUT, step="1h", rows=500))
    ),
    "stream where": lambda s: Columns.concat(
        list(s.stream("candles", "A", *CUT, where={"close": ("<", 20)}, rows=700))
    ),
}


@pytest.fixture(scope="module")
def ground(fleet: Fleet, server_version: str, template: str) -> Iterator[Database]:
    """Three months of bars of two series, rollups refreshed, in rows."""
    server = fleet.server(server_version)
    database = server.database(template)
    ts = START + STEP * MINUTE * np.arange(COUNT)
    with toolkit.connect(database.dsn) as store:
        for name in ("A", "B"):
            close = (np.arange(COUNT) * (7 if name == "A" else 11)) % 101 / 1.0
            frame = {"ts": ts, "open": close, "high": close + 1, "low": close - 1, "close": close}
            store.write("candles", frame, series=name, time_unit="us")
            store.label("candles", name, {"kind": "x"})
        store.refresh("candles")
    yield database
    server.drop(database)


@pytest.fixture
def database(fleet: Fleet, ground: Database) -> Iterator[Database]:
    """The same for each test, which may compress it."""
    server = fleet.server(ground.version)
    database = server.database(ground.name)
    yield database
    server.drop(database)


@pytest.fixture
def filled(store: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store on it; a month of a series becomes several blocks."""
    monkeypatch.setattr(cutting, "TARGET", 3_000)
    return store


def _same(one: Columns, other: Columns) -> None:
    assert one.names == other.names
    assert one.instants.tolist() == other.instants.tolist()
    assert one.series.tolist() == other.series.tolist()
    for name in one:
        np.testing.assert_allclose(one.raw(name), other.raw(name), rtol=1e-12, err_msg=name)


def _late(store: Any) -> None:
    late = {"ts": ["2021-01-15T10:00Z", "2021-02-15T10:00:30Z"], "close": [1e6, -1e6]}
    store.write("candles", late, series="A")


@pytest.mark.parametrize("road", ROADS)
def test_a_store_that_knew_of_no_blocks_answers_the_same(
    filled: Any, other_store: Callable[[], AbstractContextManager[Any]], road: str
) -> None:
    before = ROADS[road](filled)
    with other_store() as other:
        assert other.compress("candles", end=MARCH).blocks > 16
    _same(ROADS[road](filled), before)


@pytest.mark.parametrize("road", ROADS)
def test_a_store_that_knew_of_fewer_blocks_answers_the_same_after_late_points(
    filled: Any, other_store: Callable[[], AbstractContextManager[Any]], road: str
) -> None:
    with other_store() as other:
        other.compress("candles", end=FEBRUARY)
        ROADS[road](filled)
        _late(other)
        truth = ROADS[road](filled)
        other.compress("candles", "B", end=MARCH)  # says until when, and moves B
        other.compress("candles", "A", end=MARCH)
    _same(ROADS[road](filled), truth)


@pytest.mark.parametrize("road", ROADS)
def test_small_blocks_with_late_points_on_top_give_the_same(
    filled: Any,
    other_store: Callable[[], AbstractContextManager[Any]],
    road: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _late(filled)
    truth = ROADS[road](filled)
    monkeypatch.setattr(cutting, "TARGET", 1_000)
    with other_store() as other:
        other.delete("candles", "A", "2021-01-15T10:00Z", "2021-01-15T10:01Z")
        other.compress("candles", end=MARCH)
        other.write("candles", {"ts": ["2021-01-15T10:00Z"], "close": [1e6]}, series="A")
    if road not in ("latest", "latest bars"):
        found = ROADS[road](filled)
        assert found.instants.tolist() == truth.instants.tolist()
        np.testing.assert_allclose(found.raw("close"), truth.raw("close"))
