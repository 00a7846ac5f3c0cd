"""What a store remembers and somebody else has made anew: reads, lists and streams notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_servers import Database
from fix_stores import COLOURS, open_store

import toolkit
from toolkit import ddl
from toolkit.dataset import METRICS
from toolkit.errors import QueryTimeout, UnknownName

T0 = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SPAN = (T0, T0 + DAY)
BOTH = pytest.mark.parametrize("colour", COLOURS)
READS: dict[str, dict[str, Any]] = {
    "points": {},
    "bars from points": {"step": "5m", "strategy": "direct"},
    "bars": {"step": "5m", "strategy": "aggregated"},
    "bars from a rollup": {"step": "1h", "strategy": "downsampled"},
    "groups": {"step": "5m", "group_by": "venue"},
    "a picture": {"points": 10},
    "any step": {"step": "auto"},
}


def minutes(count: int = 30) -> dict[str, Any]:
    return {"ts": [T0 + i * MINUTE for i in range(count)], "value": np.arange(float(count))}


def write(database: Database, *names: str) -> None:
    """Write through a store that knows nothing yet, and give each series its labels."""
    with toolkit.connect(database.dsn) as another:
        for name in names:
            another.write("metrics", minutes(), series=name)
            another.label("metrics", name, {"venue": "kraken"})


def make_anew(database: Database) -> None:
    """Drop a dataset and create it again, as another client does."""
    with psycopg.connect(database.dsn) as other:
        for statement in ddl.drop_dataset(METRICS, "toolkit"):
            other.execute(statement)
        for statement in ddl.create_dataset(METRICS, "toolkit"):
            other.execute(statement)


def delete_series(database: Database, name: str) -> None:
    with psycopg.connect(database.dsn) as other:
        gone = "(SELECT id FROM toolkit.series WHERE name = %s)"
        other.execute(f"DELETE FROM toolkit.metrics WHERE series_id = {gone}", [name])
        other.execute("DELETE FROM toolkit.series WHERE name = %s", [name])


@contextmanager
def counting(store: Any) -> Iterator[list[bytes]]:
    """Yield a list of the statements that a store fetches meanwhile."""
    driver = getattr(store, "store", store)._roads.driver
    fetched, fetch = [], driver.fetch

    async def counted(statement: bytes, *args: Any, **options: Any) -> Any:
        fetched.append(statement)
        return await fetch(statement, *args, **options)

    driver.fetch = counted
    try:
        yield fetched
    finally:
        del driver.fetch


@pytest.mark.parametrize("options", READS.values(), ids=READS.keys())
def test_a_read_finds_the_points_of_a_dataset_made_anew(
    store: Any, database: Database, options: dict[str, Any]
) -> None:
    write(database, "a", "b")
    before = store.read("metrics", ["a", "b"], *SPAN, **options)
    make_anew(database)
    write(database, "b", "a")
    after = store.read("metrics", ["a", "b"], *SPAN, **options)
    assert len(after) == len(before) > 0
    assert after.names == before.names
    assert after.ts.tolist() == before.ts.tolist()


@pytest.mark.parametrize("days", [1, 90])
def test_a_read_by_labels_finds_the_series_of_a_dataset_made_anew(
    store: Any, database: Database, days: int
) -> None:
    write(database, "a")
    span = (T0, T0 + days * DAY)
    assert len(store.read("metrics", None, *span, labels={"venue": "kraken"})) == 30
    make_anew(database)
    write(database, "c")
    found = store.read("metrics", None, *span, labels={"venue": "kraken"})
    assert (found.names, len(found)) == (("c",), 30)


@pytest.mark.parametrize("options", READS.values(), ids=READS.keys())
def test_a_read_finds_one_of_its_series_made_anew(
    store: Any, database: Database, options: dict[str, Any]
) -> None:
    write(database, "a", "b")
    before = store.read("metrics", ["a", "b"], *SPAN, **options)
    delete_series(database, "b")
    write(database, "b")
    after = store.read("metrics", ["a", "b"], *SPAN, **options)
    assert after.series.tolist() == before.series.tolist()
    assert after.ts.tolist() == before.ts.tolist()


def test_a_read_says_that_a_series_is_gone(store: Any, database: Database) -> None:
    write(database, "a", "b")
    assert len(store.read("metrics", ["a", "b"], *SPAN)) == 60
    delete_series(database, "a")
    with pytest.raises(UnknownName, match="unknown series 'a'"):
        store.read("metrics", ["b", "a"], *SPAN)
    with pytest.raises(UnknownName, match="unknown series 'a'"):
        store.read("metrics", "a", *SPAN)


@pytest.mark.parametrize("options", [{}, {"step": "5m"}], ids=["points", "bars"])
def test_latest_finds_what_was_made_anew(
    store: Any, database: Database, options: dict[str, Any]
) -> None:
    write(database, "a", "b")
    before = store.latest("metrics", ["a", "b"], **options)
    assert len(before) == len(store.latest("metrics", **options)) == 2
    delete_series(database, "b")
    write(database, "b")
    assert store.latest("metrics", ["a", "b"], **options).ts.tolist() == before.ts.tolist()
    make_anew(database)
    write(database, "a", "b")
    assert store.latest("metrics", ["a", "b"], **options).ts.tolist() == before.ts.tolist()
    make_anew(database)
    write(database, "a", "b")
    assert store.latest("metrics", **options).ts.tolist() == before.ts.tolist()


@pytest.mark.parametrize("options", [{}, {"step": "5m"}], ids=["points", "bars"])
@pytest.mark.parametrize("series", [["a", "b"], None], ids=["named", "all"])
def test_a_stream_finds_what_was_made_anew(
    store: Any, database: Database, series: Any, options: dict[str, Any]
) -> None:
    def total() -> int:
        return sum(len(p) for p in store.stream("metrics", series, *SPAN, **options))

    write(database, "a", "b")
    before = total()
    make_anew(database)
    write(database, "a", "b")
    assert total() == before > 0
    delete_series(database, "b")
    write(database, "b")
    assert total() == before


def test_lists_and_labels_are_those_of_a_dataset_made_anew(store: Any, database: Database) -> None:
    write(database, "a")
    assert [s.name for s in store.series("metrics")] == ["a"]
    make_anew(database)
    write(database, "a", "c")
    assert store.label("metrics", "a", {"desk": "x"}) == {"venue": "kraken", "desk": "x"}
    make_anew(database)
    write(database, "a", "c")
    assert [s.name for s in store.series("metrics")] == ["a", "c"]
    assert store.explain("metrics", "c", *SPAN).plan.strategy == "direct"


def test_a_new_series_is_written_to_a_dataset_made_anew(store: Any, database: Database) -> None:
    write(database, "a")
    assert len(store.read("metrics", "a", *SPAN)) == 30
    make_anew(database)
    assert store.write("metrics", minutes(), series="b").inserted == 30
    assert [s.name for s in store.series("metrics")] == ["b"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_delete_finds_the_points_of_a_dataset_made_anew(
    store: Any, database: Database, name: str
) -> None:
    write(database, "a")
    assert len(store.read("metrics", "a", *SPAN)) == 30
    make_anew(database)
    write(database, "c", name)
    assert store.delete("metrics", [name, "c"], *SPAN) == 60


def test_figures_are_those_of_a_dataset_made_anew(store: Any, database: Database) -> None:
    write(database, "a")
    assert store.describe("metrics").series == 1
    make_anew(database)
    write(database, "a", "b")
    assert store.describe("metrics").series == 2


def test_a_refresh_follows_a_dataset_made_anew(store: Any, database: Database) -> None:
    write(database, "a")
    store.refresh("metrics")
    make_anew(database)
    write(database, "a")
    store.refresh("metrics")
    bars = store.read("metrics", "a", *SPAN, step="1h", strategy="downsampled")
    assert bars.plan.sources == {"rollup": 1, "points": 0}


def test_only_a_read_that_finds_nothing_asks_whether_its_names_still_hold(
    store: Any, database: Database
) -> None:
    write(database, "a", "b")
    store.read("metrics", ["a", "b"], *SPAN)
    with counting(store) as fetched:
        assert len(store.read("metrics", ["a", "b"], *SPAN)) == 60
        assert len(fetched) == 1
        assert len(store.read("metrics", ["a", "b"], T0 + DAY, T0 + 2 * DAY)) == 0
        assert len(fetched) == 3


# -- the timeout of a read bounds its look-ups --------------------------------------------------

LOOKUPS: dict[str, Callable[[Any, float], Any]] = {
    "names": lambda s, t: s.read("metrics", ["a", "b"], *SPAN, timeout=t),
    "labels": lambda s, t: s.read("metrics", None, *SPAN, labels={"venue": "kraken"}, timeout=t),
    "labels of a long range": lambda s, t: s.read("metrics", None, T0, T0 + 90 * DAY, timeout=t),
    "groups": lambda s, t: s.read(
        "metrics", ["a", "b"], *SPAN, step="5m", group_by="venue", timeout=t
    ),
    "nothing found": lambda s, t: s.read("metrics", "a", T0 - DAY, T0, timeout=t),
}


@pytest.mark.parametrize("is_known", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("lookup", LOOKUPS)
@BOTH
def test_a_look_up_of_a_read_ends_with_its_timeout(
    database: Database, colour: str, lookup: str, is_known: bool
) -> None:
    write(database, "a", "b")
    with (
        open_store(colour, database.dsn) as store,
        psycopg.connect(database.dsn) as other,
    ):
        if is_known:
            store.read("metrics", ["a", "b"], *SPAN)
        tables = "series" if is_known else "series, toolkit.dataset, toolkit.rollup"
        other.execute(f"LOCK TABLE toolkit.{tables} IN ACCESS EXCLUSIVE MODE")
        if is_known and lookup == "names":  # nothing to look up
            assert len(LOOKUPS[lookup](store, 5.0)) == 60
            return
        started = time.perf_counter()
        with pytest.raises(QueryTimeout):
            LOOKUPS[lookup](store, 0.3)
        assert time.perf_counter() - started < 2.0  # twice that on a slow machine; not 30 s
        other.rollback()
        LOOKUPS[lookup](store, 5.0)


@BOTH
def test_several_look_ups_of_a_read_share_its_timeout(database: Database, colour: str) -> None:
    """The catalog is free again after most of the time; the series are not."""
    write(database, "a")
    with (
        open_store(colour, database.dsn) as store,
        psycopg.connect(database.dsn) as one,
        psycopg.connect(database.dsn) as two,
    ):
        store.settings  # noqa: B018  # opened
        one.execute("LOCK TABLE toolkit.toolkit_version IN ACCESS EXCLUSIVE MODE")
        two.execute("LOCK TABLE toolkit.series IN ACCESS EXCLUSIVE MODE")
        getattr(store, "store", store)._roads.directory.catalog.forget()
        timer = threading.Timer(0.7, one.rollback)
        timer.start()
        started = time.perf_counter()
        with pytest.raises(QueryTimeout):
            store.read("metrics", "a", *SPAN, timeout=1.0)
        elapsed = time.perf_counter() - started
        timer.join()
        assert 0.9 < elapsed < 1.6  # 1.7 if each look-up had a whole timeout
