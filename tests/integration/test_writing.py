"""Writes by both stores: what a report counts, what is stored, what the change log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from threading import Barrier
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from fix_servers import Database
from fix_stores import READINGS, SIZES, T0, create, metrics, one

import toolkit
from toolkit.config import load_settings
from toolkit.errors import DatabaseError, InputError, PartialWrite, QueryError
from toolkit.intake import WriteReport
from toolkit.writer import SMALL

MINUTE = timedelta(minutes=1)
KNOWN = r"series 'a' has a point at 2024-01-01T00:00Z already; nothing was stored \(mode 'upsert'"


def counts(report: WriteReport) -> tuple[int, int, int, int]:
    return report.received, report.inserted, report.updated, report.unchanged


def read(store: Any, dataset: str = "metrics", series: str | None = "a") -> Any:
    return store.read(dataset, series, "1900-01-01T00:00Z", "2100-01-01T00:00Z")


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_new_points_are_inserted_and_read_back(store: Any, size: int) -> None:
    report = store.write("metrics", metrics(size), series="a")
    assert counts(report) == (size, size, 0, 0)
    assert report.chunks == 1
    cols = read(store)
    assert np.array_equal(cols.ts, metrics(size)["ts"])
    assert np.array_equal(cols["value"], metrics(size)["value"])


@pytest.mark.parametrize("size", SIZES)
def test_upsert_replaces_what_differs_and_says_so(store: Any, size: int) -> None:
    store.write("metrics", metrics(size), series="a")
    frame = metrics(size + 2)
    frame["value"][1] = -1.0
    assert counts(store.write("metrics", frame, series="a")) == (size + 2, 2, 1, size - 1)
    assert np.array_equal(read(store)["value"], frame["value"])


@pytest.mark.parametrize("size", SIZES)
def test_insert_refuses_a_key_that_exists_and_stores_nothing(store: Any, size: int) -> None:
    store.write("metrics", metrics(1), series="a", mode="insert")
    frame = {n: v[::-1] for n, v in metrics(size).items()}
    with pytest.raises(InputError, match=KNOWN) as failed:
        store.write("metrics", frame, series="a", mode="insert")
    assert "duplicate key" not in str(failed.value)
    assert len(read(store)) == 1


@pytest.mark.parametrize("size", SIZES)
def test_ignore_keeps_what_is_there(store: Any, size: int) -> None:
    store.write("metrics", metrics(3), series="a")
    report = store.write("metrics", metrics(size, value=9.0), series="a", mode="ignore")
    assert counts(report) == (size, size - 3, 0, 0)
    assert report.rejected == {"the key exists": 3}
    assert read(store)["value"][:4].tolist() == [0.0, 1.0, 2.0, 12.0]


def test_an_unknown_mode_is_refused_with_the_known_ones(store: Any) -> None:
    with pytest.raises(QueryError, match="upsert, insert, ignore"):
        store.write("metrics", metrics(1), series="a", mode="replace")


# -- identical reloads and duplicates (trap 15) ---------------------------------------------------


@pytest.mark.parametrize("size", [500, 20_000])
def test_an_identical_reload_writes_no_wal_and_logs_no_change(
    store: Any, sql: psycopg.Connection, size: int
) -> None:
    frame = metrics(size)
    frame["value"][::7] = np.nan
    store.write("metrics", frame, series="a")
    before = one(sql, "SELECT pg_current_wal_insert_lsn()")
    logged = one(sql, "SELECT count(*) FROM metrics_log")
    report = store.write("metrics", frame, series="a")
    grown = int(one(sql, f"SELECT pg_current_wal_insert_lsn() - '{before}'"))
    assert counts(report) == (size, 0, 0, size)
    assert one(sql, "SELECT count(*) FROM metrics_log") == logged
    # a stage is not logged, its catalog rows are; 20,000 locked rows would be 1 MB and more
    assert grown < 300_000


@pytest.mark.parametrize("size", SIZES)
def test_of_equal_keys_in_a_batch_the_last_wins(store: Any, size: int) -> None:
    frame = metrics(size)
    twice = {k: np.concatenate([v, v]) for k, v in frame.items()}
    twice["value"][size:] += 100.0
    report = store.write("metrics", twice, series="a")
    assert counts(report) == (2 * size, size, 0, 0)
    assert report.rejected == {"an equal key came later in the batch": size}
    assert np.array_equal(read(store)["value"], frame["value"] + 100.0)


@pytest.mark.parametrize("size", [5, SMALL + 1])
def test_minus_zero_replaces_zero_bit_for_bit(store: Any, size: int) -> None:
    frame = metrics(size)
    frame["value"][:] = 0.0
    store.write("metrics", frame, series="a")
    frame["value"][:] = -0.0
    assert store.write("metrics", frame, series="a").updated == size
    assert np.signbit(read(store)["value"]).all()


@pytest.mark.parametrize("size", [5, SMALL + 1])
def test_infinities_and_nan_come_back_as_they_were(store: Any, size: int) -> None:
    frame = metrics(size)
    frame["value"][:5] = [np.inf, -np.inf, -0.0, np.nan, 5e-324]
    store.write("metrics", frame, series="a")
    assert read(store)["value"].tobytes() == frame["value"].tobytes()


# -- trades ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [6, 3 * SMALL])
def test_trades_without_seq_are_numbered_in_frame_order(store: Any, size: int) -> None:
    ts = metrics(size // 3)["ts"].repeat(3)
    prices = np.arange(size, dtype=float)
    store.write("trades", {"ts": ts, "price": prices}, series="a")
    cols = read(store, "trades")
    assert cols.seq.tolist() == [0, 1, 2] * (size // 3)
    assert np.array_equal(cols["price"], prices)


def test_numbering_goes_on_from_chunk_to_chunk(store: Any) -> None:
    ts = metrics(1)["ts"]
    chunks = iter([{"ts": ts.repeat(2), "price": [1.0, 2.0]}, {"ts": ts, "price": [3.0]}])
    report = store.write("trades", chunks, series="a")
    assert (report.inserted, report.chunks) == (3, 2)
    assert read(store, "trades")["price"].tolist() == [1.0, 2.0, 3.0]


# -- chunks ---------------------------------------------------------------------------------------


def test_an_iterator_is_stored_chunk_by_chunk_and_reports_each(store: Any) -> None:
    heard: list[int] = []
    chunks = (metrics(100, T0 + 100 * i * MINUTE) for i in range(3))
    report = store.write(
        "metrics", chunks, series="a", on_chunk=lambda total: heard.append(total.received)
    )
    assert counts(report) == (300, 300, 0, 0)
    assert heard == [100, 200, 300]


def test_a_bad_chunk_leaves_the_ones_before_it_and_says_how_many(store: Any) -> None:
    bad = metrics(5) | {"value": ["x"] * 5}
    with pytest.raises(PartialWrite, match="chunk 2") as failed:
        store.write("metrics", iter([metrics(10), bad, metrics(20)]), series="a")
    assert failed.value.report.received == 10
    assert isinstance(failed.value.__cause__, InputError)
    assert len(read(store)) == 10


def test_a_bad_first_chunk_is_an_ordinary_error(store: Any) -> None:
    with pytest.raises(InputError):
        store.write("metrics", iter([metrics(5) | {"value": ["x"] * 5}]), series="a")


# -- all or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, SMALL + 1])
def test_a_row_that_the_database_refuses_takes_the_whole_frame_with_it(
    store: Any, sql: psycopg.Connection, size: int
) -> None:
    sql.execute("ALTER TABLE metrics ADD CONSTRAINT small CHECK (value < 50)")
    with pytest.raises(DatabaseError, match="small"):
        store.write("metrics", metrics(size), series="a")
    assert len(read(store)) == 0
    assert one(sql, "SELECT count(*) FROM metrics_log") == 0


def test_implausible_times_make_no_partition(database: Database, sql: psycopg.Connection) -> None:
    # trap 9
    settings = load_settings(
        database.dsn, flags={"write.earliest": "2020-01-01T00:00Z"}, environ={}
    )
    frame = metrics(3)
    frame["ts"][1] = np.datetime64("1999-12-31T23:59:59")
    with toolkit.connect(settings) as store:
        with pytest.raises(InputError, match=r"row 1: 1999-12-31T23:59:59Z is outside"):
            store.write("metrics", frame, series="a")
        assert store.partitions("metrics") == []


@pytest.mark.parametrize("moment", ["1900-01-01T00:00:00", "2099-12-31T23:59:59.999999"])
def test_the_first_and_last_moments_are_stored_and_rolled_up(store: Any, moment: str) -> None:
    # sentinels like 2099-12-31T23:59:59 must not stop the refresh of everything else
    for dataset, column in (("metrics", "value"), ("trades", "price"), ("candles", "close")):
        store.write(dataset, {"ts": [f"{moment}Z"], column: [1.0]}, series="a")
        store.write(dataset, metrics_as(column), series="a")
        store.refresh(dataset)
        bars = store.read(
            dataset,
            "a",
            "1900-01-01T00:00Z",
            "2100-01-01T00:00Z",
            step="1d",
            strategy="downsampled",
        )
        assert len(bars) == 2


def metrics_as(column: str) -> dict[str, Any]:
    frame = metrics(3)
    return {"ts": frame["ts"], column: frame["value"]}


# -- series and partitions ------------------------------------------------------------------------


def test_missing_series_and_partitions_are_made(store: Any) -> None:
    frame = pd.DataFrame(
        {
            "series": ["b", "a", "b"],
            "ts": pd.to_datetime(["2024-01-03", "1969-12-31", "2024-02-03"], utc=True),
            "value": [1.0, 2.0, 3.0],
        }
    )
    store.write("metrics", frame)
    assert [s.name for s in store.series("metrics")] == ["a", "b"]
    starts = [p.span.start for p in store.partitions("metrics")]
    assert len(starts) == 3
    assert starts[0] < 0
    assert read(store, series=None)["value"].tolist() == [2.0, 1.0, 3.0]


def test_many_writers_may_make_the_same_series_and_partitions_at_once(
    database: Database, blocking: toolkit.Store
) -> None:
    writers = 6
    barrier = Barrier(writers)

    def write(number: int) -> WriteReport:
        with toolkit.connect(database.dsn) as mine:
            mine.datasets()
            barrier.wait()
            return mine.write("metrics", metrics(200, T0 + number * MINUTE), series="new")

    with ThreadPoolExecutor(writers) as pool:
        reports = list(pool.map(write, range(writers)))
    assert len(blocking.series("metrics")) == 1
    assert len(read(blocking, series="new")) == 200 + writers - 1
    for report in reports:
        assert sum(counts(report)[1:]) == report.received


@pytest.mark.parametrize("size", [300, SMALL * 2])
def test_threads_that_upsert_the_same_new_keys_all_succeed(
    database: Database, blocking: toolkit.Store, size: int
) -> None:
    rounds, writers = 5, 4
    barrier = Barrier(writers)

    def write(number: int) -> None:
        with toolkit.connect(database.dsn) as mine:
            for round_ in range(rounds):
                barrier.wait()
                start = T0 + timedelta(days=4 * round_)
                report = mine.write("metrics", metrics(size, start, number), series="a")
                assert min(counts(report)) >= 0
                assert sum(counts(report)[1:]) == size

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    assert len(read(blocking)) == rounds * size


def test_a_partition_dropped_behind_the_stores_back_is_made_again(
    store: Any, sql: psycopg.Connection
) -> None:
    store.write("metrics", metrics(3), series="a")
    sql.execute(f'DROP TABLE "{store.partitions("metrics")[0].name}"')
    assert store.write("metrics", metrics(5), series="a").inserted == 5
    assert len(read(store)) == 5


def test_dropping_partitions_takes_only_those_wholly_inside(store: Any) -> None:
    store.write("metrics", metrics(60 * 24 * 30), series="a")
    names = [p.name for p in store.partitions("metrics")]
    gone = store.drop_partitions("metrics", "2024-01-08T00:00Z", "2024-01-22T00:00:01Z")
    assert [p.name for p in gone] == names[1:3]
    left = read(store).ts
    assert len(left) == 16 * 1440
    assert not ((left >= np.datetime64("2024-01-08")) & (left < np.datetime64("2024-01-22"))).any()
    assert store.write("metrics", metrics(60 * 24 * 30), series="a").inserted == 14 * 1440


@pytest.mark.parametrize("size", [100, SMALL + 100])
def test_a_batch_over_very_many_partitions_is_upserted(store: Any, size: int) -> None:
    # trap 26: not through MERGE, which would plan them all
    days = np.datetime64("2022-01-01", "us") + np.arange(size) * np.timedelta64(86_400, "s")
    days = days[:1000].repeat(-(-size // 1000))[:size]
    ts = days + np.arange(size).astype("m8[s]")
    frame = {"ts": ts, "value": np.arange(size, dtype=float)}
    store.write("metrics", frame | {"value": frame["value"] * 0}, series="a")
    report = store.write("metrics", frame, series="a")
    assert counts(report) == (size, 0, size - 1, 1)
    assert counts(store.write("metrics", frame, series="a")) == (size, 0, 0, size)


# -- deletes --------------------------------------------------------------------------------------


def test_delete_takes_the_points_inside_and_counts_them(store: Any) -> None:
    for series in "abc":
        store.write("metrics", metrics(100), series=series)
    assert store.delete("metrics", ["a", "b"], T0 + 10 * MINUTE, T0 + 20 * MINUTE) == 20
    assert [len(read(store, series=s)) for s in "abc"] == [90, 90, 100]


# -- all types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [50, SMALL + 1])
def test_every_type_comes_back_as_it_was_written(store: Any, database: Database, size: int) -> None:
    create(database, READINGS)
    random = np.random.default_rng(size)
    frame = pd.DataFrame(
        {
            "ts": pd.to_datetime(metrics(size)["ts"], utc=True),
            "level": random.normal(size=size),
            "hits": random.integers(-(2**62), 2**62, size),
            "is_open": random.random(size) < 0.5,
            "mood": random.choice(["warm", "ünïcode 🙂", "", "a\tb\\c'd\"e{f},NULL"], size),
            "cost": [Decimal(n) / 10_000 for n in random.integers(-(10**9), 10**9, size).tolist()],
        }
    ).astype({"hits": "Int64", "is_open": "boolean", "mood": object, "cost": object})
    for number, column in enumerate(("level", "hits", "is_open", "mood", "cost"), 2):
        frame.loc[random.random(size) < 1 / number, column] = None
    assert store.write("readings", frame, series="a").inserted == size
    assert store.write("readings", frame, series="a").unchanged == size
    back = read(store, "readings").to_pandas()
    for column in ("level", "hits", "is_open", "mood"):
        mine, theirs = frame[column], back[column]
        assert mine.isna().tolist() == theirs.isna().tolist()
        assert mine.dropna().tolist() == theirs.dropna().tolist()
    assert frame["cost"].dropna().tolist() == back["cost"].dropna().tolist()


def test_an_empty_frame_stores_nothing_and_is_no_error(store: Any) -> None:
    assert counts(store.write("metrics", metrics(0), series="a")) == (0, 0, 0, 0)
    assert store.series("metrics") == ()


def test_an_async_iterator_of_frames_is_stored(database: Database) -> None:
    async def frames() -> AsyncIterator[dict[str, Any]]:
        yield metrics(10)
        yield metrics(10, T0 + 10 * MINUTE)

    async def main() -> WriteReport:
        async with toolkit.connect_async(database.dsn) as store:
            return await store.write("metrics", frames(), series="a")

    report = asyncio.run(main())
    assert (report.inserted, report.chunks) == (20, 2)
