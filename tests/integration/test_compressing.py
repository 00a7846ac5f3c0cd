"""Compressing and its reverse: no answer changes, space comes back, nobody is in the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
from fix_cache import memory, no_database, same
from fix_compressing import (
    CLOSED,
    DATASETS,
    END,
    MIDDLE,
    START,
    answers,
    blocks_of,
    fill,
    frame,
    rows_of,
)
from fix_servers import Database
from fix_stores import COLOURS, cached, end_sessions, open_store

from toolkit import moves
from toolkit.dataset import CANDLES, TRADES, Dataset
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver
from toolkit.errors import QueryError, UnknownName
from toolkit.refresher import Refresher
from toolkit.timegrid import Grid, Span, Step, to_us

SPARSE = 54  # points of candles B after MIDDLE
Open = Callable[[], AbstractContextManager[Any]]


class Stopped(Exception):
    """Somebody has had enough."""


def compare(found: list[Any], expected: list[Any]) -> None:
    for (asked, mine), (_, theirs) in zip(found, expected, strict=True):
        wrong = [name for name in theirs if mine.get(name) != theirs[name]]
        assert not wrong, (asked, wrong)


def stored(sql: psycopg.Connection, dataset: str) -> list[Any]:
    """The blocks as they stand, with which transaction made each."""
    return sql.execute(
        f"SELECT series_id, lo, hi, _rows, xmin::text FROM {dataset}_blocks ORDER BY 1, 2"
    ).fetchall()


# -- what stays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.name)
def test_no_answer_changes(
    store: Any, database: Database, sql: psycopg.Connection, dataset: Dataset
) -> None:
    fill(store, database, dataset)
    before = answers(store, dataset)
    rows = rows_of(sql, dataset.name)
    report = store.compress(dataset.name, end=CLOSED)
    assert (report.points, report.busy, report.waiting) == (rows, 0, 0)
    assert report.blocks == blocks_of(sql, dataset.name) > 2
    assert rows_of(sql, dataset.name) == 0
    compare(answers(store, dataset), before)
    # points written since: new ones, and others in place of old ones
    late = {n: v[100:900:7] for n, v in frame(dataset, 2_000, 5).items()}
    store.write(dataset.name, late, series="A")
    assert 0 < rows_of(sql, dataset.name) <= len(late["ts"])
    store.refresh(dataset.name)
    before = answers(store, dataset)
    folded = store.recompress(dataset.name)
    assert folded.points > 0
    assert rows_of(sql, dataset.name) == 0
    compare(answers(store, dataset), before)
    undone = store.decompress(dataset.name)
    assert undone.points == rows_of(sql, dataset.name) >= rows
    assert blocks_of(sql, dataset.name) == 0
    compare(answers(store, dataset), before)


def test_every_bit_comes_back(store: Any, sql: psycopg.Connection) -> None:
    odd = [0.0, -0.0, 5e-324, -1.7e308, np.inf, -np.inf, np.nan, 0.1, 1e-310]
    ts = np.datetime64("2024-03-04", "us") + np.arange(9_000) * np.timedelta64(1, "s")
    store.write("metrics", {"ts": ts, "value": odd * 1_000}, series="A")
    before = store.read("metrics", "A", "2024-03-04Z", "2024-03-05Z")
    table = sql.execute("TABLE metrics ORDER BY ts").fetchall()
    store.compress("metrics", end="2024-04-01Z")
    assert blocks_of(sql, "metrics") == 1
    same(store.read("metrics", "A", "2024-03-04Z", "2024-03-05Z"), before)
    store.decompress("metrics")
    assert repr(sql.execute("TABLE metrics ORDER BY ts").fetchall()) == repr(table)


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.name)
def test_an_export_of_blocks_is_that_of_rows(
    store: Any, database: Database, dataset: Dataset, tmp_path: Path
) -> None:
    fill(store, database, dataset)
    files = tmp_path / "rows.parquet", tmp_path / "blocks.parquet"
    rows = store.export(dataset.name, files[0]).rows
    store.compress(dataset.name, end=MIDDLE)
    assert store.export(dataset.name, files[1]).rows == rows
    exported = [repr(pq.read_table(file).to_pydict()) for file in files]
    assert exported[0] == exported[1]


@pytest.mark.parametrize("colour", COLOURS)
def test_what_is_remembered_stays_and_the_log_hears_of_nothing(
    colour: str, database: Database, sql: psycopg.Connection
) -> None:
    settings = cached(database.dsn, keep_log=600, max_age=0)
    with open_store(colour, settings) as store, open_store(colour, settings) as other:
        fill(store, database, CANDLES)
        count = "SELECT count(*) FROM candles_log"
        log = sql.execute(count).fetchone()
        days = ("2024-01-21Z", "2024-01-30Z")
        first = store.read("candles", "A", *days, freshness="strong")
        spans = len(memory(store))
        assert spans > 0
        with no_database(store) as asked:
            store.read("candles", "A", *days, freshness="strong")
        looks = len(asked)
        for act in ("compress", "decompress"):
            until = {"end": CLOSED} if act == "compress" else {}
            assert getattr(other, act)("candles", **until).points > 20_000
            with no_database(store) as asked:
                same(store.read("candles", "A", *days, freshness="strong"), first)
            assert (len(asked), len(memory(store))) == (looks, spans)
        assert sql.execute(count).fetchone() == log


# -- space --------------------------------------------------------------------------------------


def test_space_is_given_back(store: Any, database: Database) -> None:
    fill(store, database, CANDLES)
    before = sum(p.bytes for p in store.partitions("candles"))
    report = store.compress("candles", end=CLOSED)
    after = sum(p.bytes for p in store.partitions("candles"))
    assert report.row_bytes == before - after
    said = store.describe("candles")
    assert (said.blocks, said.block_points) == (report.blocks, report.points)
    assert report.block_bytes < said.block_bytes
    assert after + said.block_bytes < before / 4  # of noise: prices that follow one another pack


def test_a_dry_run_foretells_and_changes_nothing(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    store.write("candles", frame(CANDLES, 700, 9), series="A")  # a rollup has to follow these
    rows = rows_of(sql, "candles")
    end_sessions(sql)  # what is counted after a vacuum would be added to what that has counted
    sql.execute("VACUUM ANALYZE candles")
    said = store.compress("candles", end=CLOSED, dry_run=True)
    assert (said.points, said.blocks, rows_of(sql, "candles")) == (rows, 0, rows)
    assert 0 < said.sampled <= rows
    assert blocks_of(sql, "candles") == 0
    assert sql.execute("SELECT cold_to FROM dataset WHERE name = 'candles'").fetchone() == (None,)
    done = store.compress("candles", end=CLOSED)
    assert (done.points, done.spans) == (said.points, said.spans)
    assert 0.8 < done.block_bytes / said.block_bytes < 1.25
    assert 0.8 < done.row_bytes / said.row_bytes < 1.25


# -- what is compressed, and what waits ---------------------------------------------------------


def test_the_second_time_there_is_nothing_to_do(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, TRADES)
    store.compress("trades", end=CLOSED)
    blocks = stored(sql, "trades")
    again = store.compress("trades", end=CLOSED)
    assert again == replace(again, points=0, spans=0, blocks=0, row_bytes=0, busy=0)
    assert again.points == store.recompress("trades").points == 0
    assert stored(sql, "trades") == blocks
    assert store.decompress("trades").points == sum(b[3] for b in blocks)
    assert store.decompress("trades").points == 0


def test_an_open_partition_waits_for_full_blocks(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    late_january = "2024-01-31T23:00Z"  # A has 17,220 minutes before it
    report = store.compress("candles", end=late_january)
    (block,) = stored(sql, "candles")
    assert 8_000 < block[3] == report.points <= 16_384
    left = rows_of(sql, "candles")
    assert store.compress("candles", end=late_january).points == 0
    assert rows_of(sql, "candles") == left
    report = store.compress("candles", end=MIDDLE)  # now it is closed
    assert len(stored(sql, "candles")) == 3
    assert sql.execute("SELECT min(ts) FROM candles").fetchone() == (
        datetime(2024, 2, 1, tzinfo=UTC),
    )


def test_late_rows_are_folded_into_their_blocks_alone(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    store.compress("candles", end=MIDDLE)
    one = {n: v[:1] for n, v in frame(CANDLES, 1, 4).items()}
    store.write("candles", one, series="B")
    blocks, rows = stored(sql, "candles"), rows_of(sql, "candles")
    late = sql.execute("SELECT count(*) FROM candles WHERE ts < %s", [MIDDLE]).fetchone()
    assert late == (1,)
    report = store.recompress("candles")
    assert (report.points, report.spans) == (1, 1)
    assert rows_of(sql, "candles") == rows - 1  # rows of February have no block to go to
    after = stored(sql, "candles")
    assert [b[:4] for b in after] == [b[:4] for b in blocks]
    assert sum(a[4] != b[4] for a, b in zip(after, blocks, strict=True)) == 1
    at = store.read("candles", "B", START, MIDDLE, limit=1)
    assert at["open"][0] == one["open"][0]


def test_only_the_series_and_the_time_asked_for(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    store.compress("candles", "B", start=MIDDLE, end=CLOSED)
    assert [b[3] for b in stored(sql, "candles")] == [SPARSE]
    store.compress("candles", end=CLOSED)
    total = blocks_of(sql, "candles")
    assert store.decompress("candles", ["B"], "2024-02-01T05:00Z", "2024-02-01T06:00Z").blocks == 1
    assert blocks_of(sql, "candles") == total - 1
    assert rows_of(sql, "candles") == SPARSE


def test_points_before_1970_and_at_the_end_of_time(store: Any, sql: psycopg.Connection) -> None:
    ts = ["1900-01-01T00:00Z", "1969-12-31T23:59:59.999999Z", "1970-01-01Z", "2099-12-31T23:59Z"]
    store.write("metrics", {"ts": ts, "value": [1.0, 2.0, 3.0, 4.0]}, series="A")
    before = store.read("metrics", "A", "1900-01-01Z", "2100-01-01Z")
    assert store.compress("metrics", end="2100-01-01Z").points >= 3
    same(store.read("metrics", "A", "1900-01-01Z", "2100-01-01Z"), before)
    assert store.verify("metrics").damaged == ()
    store.decompress("metrics")
    same(store.read("metrics", "A", "1900-01-01Z", "2100-01-01Z"), before)


# -- what is told ------------------------------------------------------------------------------


def test_partitions_say_what_of_them_is_rows_and_blocks(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    sql.execute("ANALYZE candles")
    january, february = store.partitions("candles")
    assert january.span.end == february.span.start
    assert min(january.rows, february.rows) > 0  # the server counts, and not at once
    assert (january.blocks, january.block_points, january.block_bytes) == (0, 0, 0)
    report = store.compress("candles", end=MIDDLE)
    packed, still = store.partitions("candles")
    assert (packed.blocks, packed.block_points) == (report.blocks, report.points)
    assert 0 < packed.block_bytes < january.bytes
    assert packed.bytes < january.bytes
    assert (still.span, still.blocks, still.block_points) == (february.span, 0, 0)
    # where there are blocks only, they are not left out
    sql.execute("DROP TABLE candles_p20240101")
    only, _ = store.partitions("candles")
    assert (only.span, only.rows, only.blocks) == (january.span, 0, report.blocks)


def test_the_seconds_of_a_compression_are_those_of_its_refresh_too(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refresh, late = time.perf_counter, Refresher.refresh, [0.0]

    async def slow(*args: Any, **options: Any) -> Any:
        late[0] += 100.0
        return await refresh(*args, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: real() + late[0])
    monkeypatch.setattr(Refresher, "refresh", slow)
    assert 100 <= store.compress("metrics", end=CLOSED).seconds < 200


# -- others at the same time, and interruptions -------------------------------------------------


def test_two_compressors_at_once_do_the_work_of_one(
    store: Any, database: Database, sql: psycopg.Connection, other_store: Open
) -> None:
    fill(store, database, CANDLES)
    before, rows = answers(store, CANDLES), rows_of(sql, "candles")
    with other_store() as other, ThreadPoolExecutor(2) as pool:
        first = pool.submit(other.compress, "candles", end=CLOSED)
        mine = store.compress("candles", end=CLOSED)
        reports = [mine, first.result()]
    assert sum(r.points for r in reports) == rows
    assert rows_of(sql, "candles") == 0
    assert sum(b[3] for b in stored(sql, "candles")) == rows
    assert store.verify("candles").damaged == ()
    compare(answers(store, CANDLES), before)


def test_a_busy_series_is_for_the_next_run(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    rows = rows_of(sql, "candles")
    with sql.transaction():
        held = sql.execute(
            "SELECT c.ts FROM candles AS c JOIN series AS s ON s.id = c.series_id "
            "WHERE s.name = 'B' AND c.ts >= %s LIMIT 1 FOR UPDATE OF c",
            [MIDDLE],
        ).fetchone()
        assert held is not None
        report = store.compress("candles", end=CLOSED)
    assert report.busy == 1
    left = rows_of(sql, "candles")
    assert left == rows - report.points == SPARSE
    report = store.compress("candles", end=CLOSED)
    assert (report.points, report.busy) == (left, 0)


def test_gently_is_one_span_at_a_time_and_as_much_rest(
    store: Any, database: Database, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, database, CANDLES)
    before, rests = answers(store, CANDLES), []
    seen: list[tuple[int, int]] = []
    at_once = 0

    async def rest(driver: Any, seconds: float) -> None:
        if seen:  # not while it waits for a new partition to be known
            rests.append(seconds)

    take = moves.take

    async def taking(*given: Any) -> moves.Taken:
        nonlocal at_once
        at_once += 1
        try:
            taken = await take(*given)
            seen.append((at_once, len(rests)))
            return taken
        finally:
            at_once -= 1

    for driver in (AsyncDriver, BlockingDriver):
        monkeypatch.setattr(driver, "pause", rest)
    monkeypatch.setattr(moves, "take", taking)
    report = store.compress("candles", end=CLOSED, gently=True)
    assert report.points == sum(b[3] for b in stored(sql, "candles"))
    assert seen == [(1, number) for number in range(report.spans)]  # a rest before the next
    assert len(rests) == report.spans > 2
    assert min(rests) > 0
    assert rows_of(sql, "candles") == 0
    compare(answers(store, CANDLES), before)


def test_a_series_is_locked_in_one_partition_alone(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    before = answers(store, CANDLES)
    a = next(s.id for s in store.series("candles") if s.name == "A")
    january = Span(to_us(START), to_us(MIDDLE))
    (lock,) = moves.locks_of(Grid(Step.parse(CANDLES.partition)), a, january)
    with sql.transaction():
        sql.execute("SELECT pg_advisory_xact_lock(%s, %s)", [moves.ROOM, lock])
        report = store.compress("candles", ["A"], end=CLOSED)
    assert report.busy == 2
    left = sql.execute("SELECT max(ts) FROM candles WHERE series_id = %s", [a]).fetchone()
    assert left == (datetime(2024, 1, 31, 23, 59, tzinfo=UTC),)
    compare(answers(store, CANDLES), before)
    assert store.compress("candles", end=CLOSED).busy == 0
    compare(answers(store, CANDLES), before)


def test_what_is_interrupted_stays_done_and_goes_on(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    fill(store, database, CANDLES)
    before, rows = answers(store, CANDLES), rows_of(sql, "candles")

    def stop(report: Any, total: int) -> None:
        if report.spans == 2:
            raise Stopped

    with pytest.raises(Stopped):
        store.compress("candles", end=CLOSED, on_progress=stop)
    done = sum(b[3] for b in stored(sql, "candles"))
    assert 0 < done < rows
    assert rows_of(sql, "candles") == rows - done
    compare(answers(store, CANDLES), before)
    assert store.compress("candles", end=CLOSED).points == rows - done
    with pytest.raises(Stopped):
        store.decompress("candles", on_progress=stop)
    left = sum(b[3] for b in stored(sql, "candles"))
    assert 0 < left < rows
    assert rows_of(sql, "candles") == rows - left
    compare(answers(store, CANDLES), before)


@pytest.mark.parametrize("act", ["compress", "recompress", "decompress", "verify"])
def test_what_is_not_there_is_said(store: Any, act: str) -> None:
    later = {"end": END} if act == "compress" else {}
    with pytest.raises(UnknownName, match=r"unknown dataset 'candle'.*'candles'"):
        getattr(store, act)("candle", **later)
    with pytest.raises(UnknownName, match="unknown series 'nosuch'"):
        getattr(store, act)("candles", ["nosuch"], **later)
    with pytest.raises(QueryError, match=r"end .* is before start"):
        getattr(store, act)("candles", start=END, end=START)
    with pytest.raises(QueryError, match=r"^end.*no time zone"):
        getattr(store, act)("candles", end="2024-01-01")
