"""Compression beside who holds on to old plans and snapshots, and after who was interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest
from fix_servers import Database

import toolkit
from toolkit import moves, reclaiming
from toolkit.dataset import CANDLES
from toolkit.statements import Part
from toolkit.timegrid import Grid, Span, Step, to_us

START = np.datetime64("2024-02-01T00:00", "us")
MARCH = "2024-03-01Z"
MONTH = ("2024-02-01Z", MARCH)


@pytest.fixture
def filled(blocking: toolkit.Store) -> Iterator[toolkit.Store]:
    """A month of minute bars of one series."""
    ts = START + np.arange(29 * 1_440) * np.timedelta64(1, "m")
    blocking.write("candles", {"ts": ts, "close": np.arange(len(ts)) / 4}, series="A")
    return blocking


def _invalid(sql: psycopg.Connection) -> list[str]:
    rows = sql.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
    return [row[0] for row in rows]


def test_an_interrupted_reindex_leaves_nothing_behind_for_ever(
    filled: toolkit.Store, sql: psycopg.Connection, database: Database
) -> None:
    with psycopg.connect(database.dsn) as reader:
        reader.execute("SELECT count(*) FROM toolkit.candles")
        sql.execute("SET statement_timeout = '1s'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            sql.execute("REINDEX TABLE CONCURRENTLY candles_p20240201")
        sql.execute("RESET statement_timeout")
    assert _invalid(sql)
    filled.compress("candles", end=MARCH)
    assert not _invalid(sql)
    assert len(filled.read("candles", "A", *MONTH)) == 29 * 1_440


def test_space_is_given_back_later_where_an_old_snapshot_needs_it(
    filled: toolkit.Store, database: Database
) -> None:
    with psycopg.connect(database.dsn) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        before = reader.execute("SELECT count(*), sum(close) FROM toolkit.candles").fetchone()
        reported = filled.compress("candles", end=MARCH)
        assert reported.points == 29 * 1_440
        # what the snapshot saw it still sees
        count = "SELECT count(*), sum(close) FROM toolkit.candles"
        assert reader.execute(count).fetchone() == before
    again = filled.compress("candles", end=MARCH)
    assert again.points == 0
    assert reported.row_bytes + again.row_bytes > 2_000_000


def test_a_partition_that_is_dropped_while_its_space_is_looked_at_is_passed_over(
    filled: toolkit.Store,
    sql: psycopg.Connection,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with psycopg.connect(database.dsn) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM toolkit.candles")
        assert filled.compress("candles", end=MARCH).points == 29 * 1_440
    compose = reclaiming.compose

    def dropped_before(statement: str, **parts: Part) -> bytes:
        if statement == "blocks/holds_rows":
            sql.execute("DROP TABLE candles_p20240201")
        return compose(statement, **parts)

    monkeypatch.setattr(reclaiming, "compose", dropped_before)
    assert filled.compress("candles", end=MARCH).points == 0
    assert sql.execute("SELECT to_regclass('candles_p20240201')").fetchone() == (None,)


def test_points_move_only_when_every_plan_knows_their_partition(
    filled: toolkit.Store, sql: psycopg.Connection, database: Database
) -> None:
    # as a compressor leaves it that was killed while it waited
    sql.execute("SELECT ensure_partitions('candles_blocks', '2024-02-01Z', '2024-02-02Z')")
    with psycopg.connect(database.dsn) as reader, ThreadPoolExecutor(1) as other:
        reader.execute("SELECT count(*) FROM toolkit.candles_blocks")
        moving = other.submit(filled.compress, "candles", end=MARCH)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            assert not moving.done()
            assert sql.execute("SELECT count(*) FROM candles_blocks").fetchone() == (0,)
        reader.rollback()
        assert moving.result(timeout=30).points == 29 * 1_440


def test_no_worker_keeps_the_space_that_another_gives_back(
    filled: toolkit.Store, sql: psycopg.Connection, database: Database
) -> None:
    march = np.datetime64(MARCH[:-1], "us") + np.arange(5_000) * np.timedelta64(1, "m")
    filled.write("candles", {"ts": march, "close": np.arange(5_000.0)}, series="A")
    filled.refresh("candles")
    (series,) = filled.series("candles")
    start = to_us(MARCH)
    (lock,) = moves.locks_of(Grid(Step.parse(CANDLES.partition)), series.id, Span(start, start + 1))
    with psycopg.connect(database.dsn, autocommit=True) as holder:  # with no snapshot of its own
        holder.execute("SELECT pg_advisory_lock(%s, %s)", [moves.ROOM, lock])
        # one worker makes blocks of February, while the other waits for March with a snapshot
        report = filled.compress("candles", end="2024-04-01Z")
    assert (report.points, report.busy) == (29 * 1_440, 1)
    size = "SELECT pg_relation_size('candles_p20240201')"
    assert sql.execute(size).fetchone() == (0,)
