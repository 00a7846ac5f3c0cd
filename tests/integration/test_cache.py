"""What a store remembers: right at once where it must be, never older than was promised."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cache import DAY, DAYS, memory, minutes, no_database, same
from fix_servers import Database
from fix_stores import COLOURS, cached, open_store

import toolkit
from toolkit.errors import QueryError, ToolkitError


@pytest.fixture(params=[*COLOURS, *(f"{c} sharing" for c in COLOURS)])
def store(request: pytest.FixtureRequest, database: Database, redis_url: str) -> Iterator[Any]:
    """A store that remembers, on a week of minutes; alone, or with a tier that others share."""
    colour, _, shares = request.param.partition(" ")
    settings = cached(database.dsn, redis=redis_url if shares else "")
    with open_store(colour, settings) as store:
        store.write("metrics", minutes(), series="a")
        yield store


# -- spans --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"descending": True},
        {"columns": ["value"]},
        {"step": "1h"},
        {"step": "30m", "agg": {"value": ["max"]}},
        {"step": "1d", "tz": "Europe/Berlin"},
        {"step": "1w"},
        {"step": "90s"},
        {"step": "1M", "tz": "Asia/Kathmandu"},
        {"step": "7m", "strategy": "direct"},
        {"points": 50},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("start", "end"),
    [DAY, ("2024-02-27T11:13:17Z", "2024-03-04T05:41:59.000001Z"), (DAY[0], DAY[0])],
)
def test_an_answer_is_the_same_with_and_without(
    store: Any, options: dict[str, Any], start: str, end: str
) -> None:
    plain = store.read("metrics", "a", start, end, cache=False, **options)
    same(store.read("metrics", "a", start, end, **options), plain)
    same(store.read("metrics", "a", start, end, **options), plain)


def test_the_second_time_nothing_is_asked(store: Any) -> None:
    store.read("metrics", "a", *DAY)
    with no_database(store) as said:
        again = store.read("metrics", "a", *DAY)
        inner = store.read("metrics", "a", "2024-03-01T05:00Z", "2024-03-01T06:30Z")
        bars = store.read("metrics", "a", *DAY, step="7m")
    assert said == []
    assert again.plan.sources == {"memory": 1440}
    assert again.plan.rows == 0
    assert len(inner) == 90
    assert len(bars) == 207


def test_ranges_that_slide_and_zoom_share_their_spans(store: Any) -> None:
    store.read("metrics", "a", *DAYS, step="1h")
    with no_database(store) as said:
        for hour in range(24):
            start = datetime(2024, 3, 1, hour, tzinfo=UTC)
            cols = store.read("metrics", "a", start, start + timedelta(days=5), step="2h")
            assert len(cols) == 61 - (hour % 2 == 0)
    assert said == []


def test_what_is_missing_is_fetched_in_one_statement(store: Any) -> None:
    store.write("metrics", minutes(), series="b")
    store.read("metrics", "a", "2024-03-03T00:00Z", "2024-03-04T00:00Z")
    with no_database(store) as said:
        both = store.read("metrics", ["a", "b"], *DAYS)
    fetched = [s for s in said if b'"metrics"' in s and b"_log" not in s]
    assert len(fetched) == 3  # two gaps of a, and all of b
    same(both, store.read("metrics", ["a", "b"], *DAYS, cache=False))


def test_series_of_labels_share_them_too(store: Any) -> None:
    store.label("metrics", "a", {"venue": "x"})
    store.read("metrics", "a", *DAY)
    with no_database(store) as said:
        cols = store.read("metrics", None, *DAY, labels={"venue": "x"})
    assert cols.plan.sources == {"memory": 1440}
    assert len(said) == 1  # which series they are


def test_nothing_is_an_answer_to_remember(store: Any) -> None:
    empty = ("2023-05-01T00:00Z", "2023-05-02T00:00Z")
    assert len(store.read("metrics", "a", *empty)) == 0
    with no_database(store) as said:
        assert len(store.read("metrics", "a", *empty)) == 0
    assert said == []


def test_no_caller_can_alter_what_is_remembered(store: Any) -> None:
    for _ in range(2):
        store.read("metrics", "a", *DAY)
    cols = store.read("metrics", "a", *DAY)  # the short way, which hands out what is held
    for array in (cols["value"], cols.ts, cols.series, cols.raw("value"), cols.instants):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            array.flags.writeable = True
    cols.types["value"] = "int"
    assert store.read("metrics", "a", *DAY).types == {"value": "float"}


def test_a_large_export_does_not_flush_what_is_hot(database: Database) -> None:
    with open_store("blocking", cached(database.dsn, memory=1)) as store:
        store.write("metrics", minutes(90), series="a")
        store.read("metrics", "a", *DAY)
        held = memory(store).held()
        whole = store.read("metrics", "a", "2024-01-01T00:00Z", "2024-06-01T00:00Z")
        assert len(whole) == 90 * 1440
        assert memory(store).held() == held
        for day in range(60):
            start = datetime(2024, 3, 1, tzinfo=UTC) + timedelta(days=day)
            store.read("metrics", "a", start, start + timedelta(days=1))
        assert 0 < memory(store).size <= 1 << 20
        assert memory(store).counts.evicted > 0


def test_a_bucket_that_is_still_open_is_asked_for_every_time(store: Any) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    ts = np.datetime64(now.replace(tzinfo=None), "us") - np.arange(300) * np.timedelta64(1, "m")
    store.write("metrics", {"ts": ts[::-1], "value": np.ones(300)}, series="live")
    span = (now - timedelta(hours=4), now + timedelta(minutes=1))
    assert len(store.read("metrics", "live", *span)) == 241
    for value in (2.0, 3.0):
        store.write("metrics", {"ts": [now], "value": [value]}, series="live")
        with no_database(store) as said:
            cols = store.read("metrics", "live", *span)
        assert cols["value"][-1] == value
        assert cols.plan.sources["memory"] > 200  # what is closed is held all the same
        assert cols.plan.sources["points"] < 20
        assert len(said) == 1


# -- freshness ----------------------------------------------------------------------------------


def test_a_store_sees_what_it_wrote(store: Any) -> None:
    store.read("metrics", "a", *DAYS)
    store.read("metrics", "a", *DAYS, step="1h")
    store.write("metrics", {"ts": [DAY[0]], "value": [99.0]}, series="a")
    assert store.read("metrics", "a", *DAYS)["value"][0] == 99.0
    assert store.read("metrics", "a", *DAYS, step="1h")["value_max"][0] == 99.0
    assert store.delete("metrics", "a", *DAY) == 1440
    assert len(store.read("metrics", "a", *DAYS)) == 6 * 1440
    assert len(store.read("metrics", "a", *DAYS, step="1h")) == 6 * 24
    store.drop_partitions("metrics", "2024-01-01Z", "2025-01-01Z")
    assert len(store.read("metrics", "a", *DAYS)) == 0


def test_only_what_changed_is_dropped(store: Any) -> None:
    store.read("metrics", "a", *DAYS)
    held = {k for k, _ in memory(store).held()}
    store.write("metrics", {"ts": ["2024-03-03T07:00Z"], "value": [99.0]}, series="a")
    assert len(held - {k for k, _ in memory(store).held()}) == 1
    cols = store.read("metrics", "a", *DAYS)
    assert cols.plan.sources == {"memory": 6 * 1440, "points": 1440}


def test_strong_sees_every_client_at_once(store: Any, sql: psycopg.Connection) -> None:
    for value in range(20):
        sql.execute("UPDATE metrics SET value = %s WHERE ts = '2024-03-01Z'", [value])
        cols = store.read("metrics", "a", *DAY, freshness="strong")
        assert cols["value"][0] == value


def test_session_sees_others_within_max_age(database: Database, sql: psycopg.Connection) -> None:
    with open_store("blocking", cached(database.dsn, max_age=0.3)) as store:
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", *DAY)
        sql.execute("UPDATE metrics SET value = 77 WHERE ts = '2024-03-01Z'")
        changed = time.monotonic()
        while store.read("metrics", "a", *DAY)["value"][0] != 77:
            assert time.monotonic() < changed + 5
            time.sleep(0.01)
        assert time.monotonic() < changed + 1.5


def test_bounded_may_be_old_but_not_older(store: Any, sql: psycopg.Connection) -> None:
    store.read("metrics", "a", *DAY)
    sql.execute("UPDATE metrics SET value = 77 WHERE ts = '2024-03-01Z'")
    with no_database(store) as said:
        cols = store.read("metrics", "a", *DAY, freshness=toolkit.bounded(60))
    assert (said, cols["value"][0]) == ([], 0.0)
    assert store.read("metrics", "a", *DAY, freshness=toolkit.bounded(0))["value"][0] == 77


@pytest.mark.parametrize("wrong", ["fresh", 5, True, ""])
def test_a_freshness_that_is_none_is_refused(store: Any, wrong: Any) -> None:
    with pytest.raises(QueryError, match=r"freshness: .* is none of 'session', 'strong'"):
        store.read("metrics", "a", *DAY, freshness=wrong)


def test_trap_a_write_that_overlaps_a_read_is_not_hidden_by_it(
    store: Any, sql: psycopg.Connection
) -> None:
    """A reader that read old rows before a commit must not keep them after hearing of it."""
    fetcher = getattr(store, "store", store)._roads.reader.fetcher
    cache = getattr(store, "store", store)._roads.cache
    real = type(fetcher).fetch

    async def slow(self: Any, work: Any) -> Any:
        found = await real(self, work)
        sql.execute("UPDATE metrics SET value = 77 WHERE ts = '2024-03-01Z'")
        entry = getattr(store, "store", store)._roads.directory.catalog.entry("metrics")
        await cache.follower.know(entry, time.monotonic())
        return found

    type(fetcher).fetch = slow
    try:
        assert store.read("metrics", "a", *DAY)["value"][0] == 0.0
    finally:
        type(fetcher).fetch = real
    assert store.read("metrics", "a", *DAY)["value"][0] == 77
    assert cache.memory.counts.spoiled == 1


def test_a_log_that_was_cut_meanwhile_drops_everything(
    database: Database, sql: psycopg.Connection
) -> None:
    with (
        open_store("blocking", cached(database.dsn)) as store,
        open_store("blocking", cached(database.dsn, keep_log=0)) as other,
    ):
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", *DAY)
        sql.execute("UPDATE metrics SET value = 77 WHERE ts = '2024-03-01Z'")
        assert other.refresh("metrics").pruned > 0
        assert sql.execute("SELECT count(*) FROM metrics_log").fetchone() == (0,)
        assert store.read("metrics", "a", *DAY, freshness="strong")["value"][0] == 77


def test_the_log_is_kept_for_those_who_follow_it(database: Database) -> None:
    with open_store("blocking", cached(database.dsn, keep_log=0.2)) as store:
        store.write("metrics", minutes(), series="a")
        assert store.refresh("metrics").pruned == 0
        time.sleep(0.25)
        assert store.refresh("metrics").pruned > 0


def test_a_server_that_was_started_anew_is_not_trusted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", *DAY)
        (place,) = store._roads.cache.follower._places.values()
        place.identity = "another start of it"
        assert store.read("metrics", "a", *DAY, freshness="strong").plan.sources == {"points": 1440}
        assert store.read("metrics", "a", *DAY).plan.sources == {"memory": 1440}


# -- one computes, the others wait --------------------------------------------------------------


def test_many_callers_of_one_cold_span_cost_one_statement(database: Database) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", "2024-03-05T00:00Z", "2024-03-05T01:00Z")
        gate, found = threading.Barrier(16), []

        def ask() -> None:
            gate.wait()
            found.append(store.read("metrics", "a", *DAY)["value"].sum())

        with no_database(store) as said:
            threads = [threading.Thread(target=ask) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(said) == 1
        assert set(found) == {float(np.arange(1440).sum())}


def test_a_failure_is_not_remembered(store: Any, sql: psycopg.Connection) -> None:
    sql.execute("ALTER TABLE metrics RENAME COLUMN value TO gone")
    with pytest.raises(ToolkitError):
        store.read("metrics", "a", *DAY)
    sql.execute("ALTER TABLE metrics RENAME COLUMN gone TO value")
    assert len(store.read("metrics", "a", *DAY)) == 1440


def test_a_forked_child_remembers_for_itself(database: Database) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", *DAY)
        store._roads.cache.memory._lock.acquire()  # as if another thread had been inside
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            found = store.read("metrics", "a", *DAY).plan.sources.get("points", -1)
            os.write(writer, str(found).encode())
            os._exit(0)
        store._roads.cache.memory._lock.release()
        os.waitpid(child, 0)
        assert os.read(reader, 99) == b"1440"
        assert store.read("metrics", "a", *DAY).plan.sources == {"memory": 1440}


def test_a_question_answered_by_two_strategies_finds_the_columns_of_each(store: Any) -> None:
    short = ("2024-03-01T00:00Z", "2024-03-01T04:00Z")
    for span in (short, DAYS, short, DAYS):
        cols = store.read("metrics", "a", *span, step="1h")
        same(cols, store.read("metrics", "a", *span, step="1h", cache=False))


def test_who_waits_for_anothers_fetch_does_not_share_its_hurry(
    database: Database, sql: psycopg.Connection
) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        store.write("metrics", minutes(), series="a")
        store.read("metrics", "a", "2024-03-05T00:00Z", "2024-03-05T01:00Z")
        outcomes: list[Any] = []

        def ask(timeout: float | None) -> None:
            try:
                outcomes.append(len(store.read("metrics", "a", *DAY, timeout=timeout)))
            except ToolkitError as error:
                outcomes.append(type(error).__name__)

        with sql.transaction():
            sql.execute("LOCK TABLE metrics IN ACCESS EXCLUSIVE MODE")
            threads = [threading.Thread(target=ask, args=(t,)) for t in (0.5, None)]
            for thread in threads:
                thread.start()
                time.sleep(0.1)
            threads[0].join()
        threads[1].join()
        assert outcomes == ["QueryTimeout", 1440]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_dataset_without_series_is_read_through_the_cache(
    colour: str, database: Database
) -> None:
    with open_store(colour, cached(database.dsn)) as store:
        for options in ({}, {"step": "1h"}):
            assert len(store.read("metrics", None, "2024-01-01Z", "2024-01-02Z", **options)) == 0
