"""Reads by both stores: newest points, streams, pictures, and what is refused."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from fix_servers import Database
from fix_stores import READINGS, create, minutes

import toolkit
from toolkit.config import Settings
from toolkit.errors import QueryError, UnknownName

T0 = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
START, END = "2024-01-01T00:00Z", "2024-02-01T00:00Z"


# -- newest points --------------------------------------------------------------------------------


def test_latest_takes_the_newest_points_of_each_series_oldest_first(store: Any) -> None:
    store.write("metrics", minutes(1_000), series="a")
    store.write("metrics", minutes(2, T0 - 900 * DAY), series="old")
    cols = store.latest("metrics", n=3)
    assert [cols.names[c] for c in cols.series] == ["a"] * 3 + ["old"] * 2
    assert cols.ts[:3].tolist() == minutes(1_000)["ts"][-3:].tolist()
    assert np.all(np.diff(cols.ts[:3]) > np.timedelta64(0))


def test_latest_bars_are_those_a_read_would_return(store: Any) -> None:
    store.write("metrics", minutes(4_000), series="a")
    store.write("metrics", minutes(70, T0 - 200 * DAY), series="old")
    for step, n in (("1h", 5), ("1d", 2), ("1M", 3)):
        newest = store.latest("metrics", n=n, step=step)
        everything = store.read("metrics", ["a", "old"], "2020-01-01T00:00Z", END, step=step)
        for code in (0, 1):
            mine, all_ = newest.series == code, everything.series == code
            assert newest.ts[mine].tolist() == everything.ts[all_][-n:].tolist()
            for column in ("value_sum", "value_last"):
                expected = pytest.approx(everything[column][all_][-n:], rel=1e-12)
                assert newest[column][mine] == expected


def test_latest_bars_of_a_dead_series_do_not_make_the_others_read_back_to_it(store: Any) -> None:
    store.write("metrics", minutes(30_000), series="live")
    store.write("metrics", minutes(1, T0 - 900 * DAY), series="dead")
    sparse = np.datetime64("2023-01-01", "us") + np.arange(8) * np.timedelta64(30, "D")
    store.write("metrics", {"ts": sparse, "value": np.arange(8.0)}, series="sparse")
    for n in (1, 3):
        cols = store.latest("metrics", ["sparse", "live", "dead"], n=n, step="1m")
        assert cols.names == ("sparse", "live", "dead")
        assert np.bincount(cols.series).tolist() == [n, n, 1]
        assert cols["value_last"][:n].tolist() == np.arange(8.0)[-n:].tolist()
        assert cols.plan.rows < 20
    some = store.latest("metrics", n=2, step="1m")
    assert some.names == ("dead", "live", "sparse")
    assert np.bincount(some.series).tolist() == [1, 2, 2]


@pytest.mark.parametrize("n", [0, -1, True, 1.5, "2"])
def test_latest_wants_a_whole_number_of_points(store: Any, n: Any) -> None:
    with pytest.raises(QueryError, match="whole number"):
        store.latest("metrics", n=n)


# -- streams --------------------------------------------------------------------------------------


def test_a_stream_yields_what_a_read_returns_in_small_pieces(store: Any) -> None:
    store.write("metrics", minutes(5_000), series="a")
    store.write("metrics", minutes(777), series="b")
    pieces = list(store.stream("metrics", ["a", "b"], START, END, rows=600))
    assert max(map(len, pieces)) <= 600
    joined = toolkit.Columns.concat(pieces)
    whole = store.read("metrics", ["a", "b"], START, END)
    assert joined.ts.tolist() == whole.ts.tolist()
    assert joined["value"].tobytes() == whole["value"].tobytes()


def test_a_stream_sees_one_snapshot_whatever_is_written_meanwhile(
    store: Any, sql: psycopg.Connection
) -> None:
    store.write("metrics", minutes(1_000), series="a")
    pieces = store.stream("metrics", "a", START, END, rows=100)
    count = len(next(pieces))
    sql.execute("UPDATE metrics SET value = 99")
    sql.execute("DELETE FROM metrics WHERE ts > '2024-01-01T10:00Z'")
    for piece in pieces:
        count += len(piece)
        assert piece["value"].max() < 2
    assert count == 1_000


def test_a_stream_left_early_gives_its_connection_back(store: Any, sql: psycopg.Connection) -> None:
    store.write("metrics", minutes(1_000), series="a")
    pieces = store.stream("metrics", "a", START, END, rows=100)
    next(pieces)
    pieces.close()
    busy = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' "
    assert sql.execute(busy + "AND application_name = 'toolkit'").fetchone() == (0,)


@pytest.mark.parametrize(("step", "rows"), [("1s", 50_000), ("1d", 7), ("1M", 2)])
def test_a_stream_of_bars_steps_over_the_gaps_of_a_sparse_series(
    store: Any, step: str, rows: int
) -> None:
    ts = np.array(["1990-01-01T00:00:00.5", "1990-01-01T00:00:03", "2024-01-01"], "M8[us]")
    store.write("metrics", {"ts": ts, "value": np.arange(3.0)}, series="a")
    span = ("1980-01-01Z", "2099-01-01Z")
    zone = "Europe/Berlin"
    pieces = list(store.stream("metrics", "a", *span, step=step, tz=zone, rows=rows))
    assert len(pieces) == 2
    joined = toolkit.Columns.concat(pieces)
    whole = store.read("metrics", "a", *span, step=step, tz=zone)
    assert joined.ts.tolist() == whole.ts.tolist()
    assert joined["value_sum"].tolist() == whole["value_sum"].tolist()


def test_streams_of_bars_equal_a_read(store: Any) -> None:
    store.write("metrics", minutes(3_000), series="a")
    pieces = list(store.stream("metrics", "a", START, END, step="7m", rows=10))
    assert max(map(len, pieces)) <= 10
    joined = toolkit.Columns.concat(pieces)
    whole = store.read("metrics", "a", START, END, step="7m")
    assert joined.ts.tolist() == whole.ts.tolist()
    assert joined["value_count"].tolist() == whole["value_count"].tolist()


@pytest.mark.parametrize("options", [{}, {"step": "2m"}, {"step": "1s"}])
def test_streams_need_one_connection_each_however_long_they_stay_open(
    database: Database, options: dict[str, Any]
) -> None:
    pool = replace(Settings(dsn=database.dsn).pool, min_size=1, max_size=2, pool_timeout=2.0)
    with toolkit.connect(Settings(dsn=database.dsn, pool=pool)) as store:
        for name in ("a", "b"):
            store.write("metrics", minutes(50), series=name)
        now = [0.0]
        directory = store._roads.directory
        directory._clock = lambda: now[0]
        directory._loaded_at = 0.0
        if options == {"step": "1s"}:  # the recorded step is wrong, and cannot be put right here
            store.write("metrics", {"ts": [T0 + timedelta(seconds=1)], "value": [1.0]}, series="a")
            store.write("metrics", {"ts": [T0 + timedelta(seconds=1)], "value": [1.0]}, series="b")
        streams = [
            store.stream("metrics", ["a", "b"], START, END, rows=7, **options) for _ in range(2)
        ]
        counts = [len(next(stream)) for stream in streams]
        now[0] = 3_600.0
        for number, stream in enumerate(streams):
            counts[number] += sum(len(piece) for piece in stream)
        assert counts[0] == counts[1] >= 50


@pytest.mark.parametrize(
    "options", [{"limit": 5}, {"points": 5}, {"descending": True}, {"step": "auto"}]
)
def test_a_stream_refuses_what_only_a_whole_answer_can_have(
    store: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(QueryError, match="stream"):
        list(store.stream("metrics", "a", START, END, **options))


# -- pictures and plans ---------------------------------------------------------------------------


def test_points_keeps_the_extremes_of_the_chart(store: Any) -> None:
    frame = minutes(20_000)
    frame["value"][[7_000, 12_345]] = [9.0, -9.0]
    store.write("metrics", frame, series="a")
    cols = store.read("metrics", "a", START, END, points=200)
    assert 100 < len(cols) <= 200
    assert {9.0, -9.0} <= set(cols["value"].tolist())
    assert set(cols.ts.tolist()) <= set(frame["ts"].tolist())


def test_points_from_a_rollup_look_like_points_and_are_at_most_as_many(store: Any) -> None:
    store.write("metrics", minutes(20_000), series="a")
    store.refresh("metrics")
    cols = store.read("metrics", "a", START, END, points=300, strategy="downsampled")
    assert cols.plan.strategy == "downsampled"
    assert 100 < len(cols) <= 300
    assert list(cols) == ["value"]  # the columns that points would have


def test_explain_names_the_plan_and_what_speaks_against_the_others(store: Any) -> None:
    store.write("metrics", minutes(20_000), series="a")
    store.refresh("metrics")
    text = str(store.explain("metrics", "a", START, END, step="1h"))
    assert text.startswith("downsampled from the 1h rollup")
    assert "metrics_1h" in text
    refused = str(store.explain("metrics", "a", START, END, step="7m"))
    assert "not downsampled" in refused
    ran = store.explain("metrics", "a", START, END, step="1h", analyze=True)
    assert "actual" in ran.database


def test_a_plan_says_what_was_read_and_how_long_that_took(store: Any) -> None:
    store.write("metrics", minutes(600), series="a")
    store.refresh("metrics")
    cols = store.read("metrics", "a", START, END, step="1h", strategy="downsampled")
    assert cols.plan.sources == {"rollup": 10, "points": 0}
    assert cols.plan.elapsed_ms > 0
    store.write("metrics", minutes(1), series="a", mode="ignore")
    store.delete("metrics", "a", T0, T0 + MINUTE)
    cols = store.read("metrics", "a", START, END, step="1h", strategy="downsampled")
    assert cols.plan.sources == {"rollup": 9, "points": 59}


@pytest.mark.parametrize("series", [["a", "b"], None])
def test_a_long_read_in_parallel_equals_a_short_one(store: Any, series: Any) -> None:
    store.write("metrics", minutes(150_000), series="a")
    store.write("metrics", {"ts": minutes(1)["ts"], "value": [5.0]}, series="b")
    cols = store.read("metrics", series, START, "2024-12-01T00:00Z")
    assert cols["value"].tobytes() == np.append(minutes(150_000)["value"], 5.0).tobytes()
    back = store.read("metrics", series, START, "2024-12-01T00:00Z", descending=True)
    assert back.ts[:150_000].tolist() == cols.ts[:150_000][::-1].tolist()


# -- processes and threads ------------------------------------------------------------------------


def test_a_store_goes_on_in_a_forked_child_and_in_its_parent(blocking: toolkit.Store) -> None:
    blocking.write("metrics", minutes(100), series="a")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion here: only what is sent back counts
        try:
            blocking.write("metrics", minutes(1, T0 - DAY), series="a")
            found = len(blocking.read("metrics", "a", T0 - 2 * DAY, END))
            os.write(writer, str(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"101"
    os.waitpid(child, 0)
    assert len(blocking.read("metrics", "a", T0 - 2 * DAY, END)) == 101


def test_many_threads_share_a_store(blocking: toolkit.Store) -> None:
    blocking.write("metrics", minutes(5_000), series="a")
    wrong: list[int] = []

    def work() -> None:
        for _ in range(10):
            found = len(blocking.read("metrics", "a", START, END))
            if found != 5_000:
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (datetime(2024, 1, 1), END, "no time zone"),
        ("2024-01-01T00:00", END, "no time zone"),
        (date(2024, 1, 1), END, "is a date"),
        ("yesterday", END, "ISO 8601"),
        (pd.NaT, END, "NaT"),
        (np.datetime64("NaT"), END, "NaT"),
        (1_704_067_200, END, "expected a datetime"),
        (END, START, "is before start"),
        ("1816-01-01T00:00Z", END, "outside 1900 to 2100"),
    ],
)
def test_wrong_ranges_are_refused_by_name(store: Any, start: Any, end: Any, says: str) -> None:
    with pytest.raises(QueryError, match=says):
        store.read("metrics", "a", start, end)


@pytest.mark.parametrize(
    ("dataset", "series", "options", "says"),
    [
        ("metric", "cpu.load", {}, "did you mean 'metrics'"),
        ("metrics", "cpu.lod", {}, "did you mean 'cpu.load'"),
        ("metrics", "cpu.load", {"columns": ["valeu"]}, "did you mean 'value'"),
        (
            "metrics",
            "cpu.load",
            {"columns": ["value_mx"], "step": "1h"},
            "did you mean 'value_max'",
        ),
        ("metrics", "cpu.load", {"step": "5min"}, "for instance '5m'"),
        ("metrics", "cpu.load", {"step": "0m"}, "unknown step"),
        ("metrics", "cpu.load", {"step": "1s"}, "finer than series 'cpu.load'"),
        ("metrics", "cpu.load", {"step": "1d", "tz": "Europe/Berln"}, "unknown time zone"),
        ("metrics", "cpu.load", {"tz": "Mars/Base"}, "unknown time zone"),
        ("metrics", "cpu.load", {"agg": {"value": "median"}, "step": "1h"}, "it has first, last"),
        ("metrics", "cpu.load", {"agg": {"value": "max"}}, "agg needs a step"),
        ("metrics", "cpu.load", {"group_by": "host"}, "group_by needs a step"),
        ("metrics", "cpu.load", {"group_by": "host", "step": "1h"}, "has a label 'host'"),
        ("metrics", "cpu.load", {"strategy": "fast"}, "one of auto, direct"),
        ("metrics", "cpu.load", {"strategy": "downsampled"}, "cannot answer native points"),
        ("metrics", "cpu.load", {"strategy": "downsampled", "step": "7m"}, "not made of whole"),
        (
            "metrics",
            "cpu.load",
            {"strategy": "downsampled", "step": "1h", "where": {"value": (">", 0)}},
            "where tests points",
        ),
        ("metrics", "cpu.load", {"where": [("value", "~", 1)]}, "unknown operator"),
        ("metrics", "cpu.load", {"where": {"value": ("=", "x")}}, "cannot be compared"),
        ("metrics", "cpu.load", {"where": {"valeu": 1}}, "did you mean 'value'"),
        ("metrics", "cpu.load", {"limit": 0}, "at least 1"),
        ("metrics", "cpu.load", {"points": 2}, "at least 3"),
        ("metrics", "cpu.load", {"points": 9, "limit": 9}, "not both"),
        ("metrics", "cpu.load", {"points": 9, "step": "1h"}, "leave out step"),
        ("metrics", "cpu.load", {"timeout": 0}, "positive"),
        ("metrics", "cpu.load", {"labels": {"a": "b"}}, "not both"),
        ("metrics", [], {}, "empty"),
        ("metrics", [1], {}, "expected names"),
    ],
)
def test_wrong_questions_are_refused_by_name(
    store: Any, dataset: str, series: Any, options: dict[str, Any], says: str
) -> None:
    store.write("metrics", minutes(100), series="cpu.load")
    with pytest.raises(QueryError, match=says):
        store.read(dataset, series, START, END, **options)


def test_an_unknown_series_among_known_ones_is_named(store: Any) -> None:
    store.write("metrics", minutes(3), series="a")
    with pytest.raises(UnknownName, match="'nobody'"):
        store.read("metrics", ["a", "nobody"], START, END)


def test_nothing_asked_for_is_an_empty_answer_with_its_columns(
    store: Any, database: Database
) -> None:
    create(database, READINGS)
    store.write("readings", {"ts": [T0], "level": [1.0]}, series="a")
    for options in ({}, {"step": "1h"}, {"step": "1d", "tz": "Europe/Berlin"}):
        for series in ("a", None):
            for span in ((START, START), ("1999-01-01T00:00Z", "1999-02-01T00:00Z")):
                cols = store.read("readings", series, *span, **options)
                assert len(cols) == 0
                assert "level" in cols or "level_first" in cols
                assert cols.to_pandas().empty
    labelled = store.read("readings", None, START, END, labels={"no": "such"})
    assert (len(labelled), labelled.names) == (0, ())
    assert labelled.seq is not None
