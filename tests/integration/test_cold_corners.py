"""Corners of compressed time: odd names, damaged or tampered blocks, sums that leave 64 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from fix_compressing import snapshot
from fix_servers import Database
from fix_stores import READINGS, create

import toolkit
from toolkit import Columns, cutting, filling, whole
from toolkit.dataset import Aggregate, Column, Dataset

START = np.datetime64("2024-01-20T00:00", "us")
DAYS = ("2024-01-20T00:01Z", "2024-01-21T10:00Z")
LATER = "2024-03-01Z"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cutting, filling, whole):
        monkeypatch.setattr(module, "TARGET", 50)


def _minutes(count: int) -> Any:
    return START + np.arange(count) * np.timedelta64(1, "m")


@pytest.mark.parametrize("column", ["before", "is_whole", "has_next", "span", "id", "n", "rows"])
def test_a_column_may_be_called_what_our_statements_call_things(
    database: Database, blocking: toolkit.Store, column: str
) -> None:
    sums = (Aggregate("s", "sum", (column,)),)
    create(database, Dataset("odd", (Column(column), Column("x")), sums, ladder=("1h",)))
    blocking.write("odd", {"ts": _minutes(2_000), column: np.arange(2_000.0)}, series="A")
    blocking.refresh("odd")

    def all_of_it() -> list[Any]:
        read = [
            {},
            {"limit": 5},
            {"limit": 5, "descending": True},
            {"step": "1d", "strategy": "direct"},
            {"step": "auto"},
            {"points": 20},
        ]
        found = [snapshot(blocking.read("odd", "A", *DAYS, **kw)) for kw in read]  # type: ignore[arg-type]  # mypy takes a dict for one of its values
        stream = Columns.concat(list(blocking.stream("odd", "A", *DAYS, rows=100)))
        return [*found, snapshot(blocking.latest("odd", n=3)), snapshot(stream)]

    before = all_of_it()
    blocking.compress("odd", end=LATER)
    assert all_of_it() == before


def test_a_damaged_block_that_is_deleted_leaves_no_bar_behind(
    database: Database, blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    create(database, READINGS)
    ts = START + np.timedelta64(40, "s") + np.arange(400) * np.timedelta64(1_700, "ms")
    points = {"ts": ts, "seq": np.arange(400), "level": np.arange(400.0)}
    blocking.write("readings", points, series="A")
    blocking.compress("readings", end=LATER)
    for lo, hi in sql.execute("SELECT lo, hi FROM readings_blocks ORDER BY lo").fetchall():
        sql.execute("UPDATE readings_blocks SET level = '\\x00' WHERE lo = %s", (lo,))
        assert blocking.delete("readings", "A", lo, hi) > 0
        blocking.refresh("readings")
        bars = [
            snapshot(
                blocking.read(
                    "readings",
                    "A",
                    *DAYS,
                    step="1m",
                    agg={"level": ["count"]},
                    strategy=strategy,
                )
            )
            for strategy in ("direct", "downsampled")
        ]
        assert bars[0] == bars[1]


def test_the_newest_bars_are_the_newest_where_a_sum_leaves_64_bits(
    database: Database, blocking: toolkit.Store
) -> None:
    create(database, READINGS)
    points = {"ts": _minutes(600), "seq": np.arange(600), "hits": [2**62] * 600}
    blocking.write("readings", points, series="A")
    blocking.refresh("readings")
    for limit in (None, 1):
        found = [
            blocking.read(
                "readings",
                "A",
                *DAYS,
                step="7h",
                agg={"hits": ["sum", "count"]},
                descending=True,
                limit=limit,
                strategy=strategy,
            ).instants.tolist()
            for strategy in ("direct", "downsampled")
        ]
        assert found[0] == found[1]


def test_a_header_used_alone_is_held_against_its_row(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cutting, whole):
        monkeypatch.setattr(module, "TARGET", 3_000)
    blocking.write("candles", {"ts": _minutes(20_000), "close": np.arange(20_000.0)}, series="A")
    blocking.compress("candles", end=LATER)

    def ask() -> Any:
        span = ("2024-01-10Z", "2024-02-20Z")
        return snapshot(blocking.read("candles", "A", *span, step="1d", strategy="direct"))

    before = ask()
    third = "(SELECT lo FROM candles_blocks ORDER BY lo OFFSET 2 LIMIT 1)"
    sql.execute(f"UPDATE candles_blocks SET _last = _first WHERE lo = {third}")
    assert ask() == before


def test_a_stream_may_feed_a_backfill_into_new_time(blocking: toolkit.Store) -> None:
    blocking.write("candles", {"ts": _minutes(500), "close": np.arange(500.0)}, series="A")
    for number, piece in enumerate(blocking.stream("candles", "A", *DAYS, rows=100)):
        moved = piece.ts + np.timedelta64(365 * number, "D")
        blocking.backfill("candles", {"ts": moved, "close": piece["close"]}, series="B")
    assert len(blocking.read("candles", "B", "2024-01-01Z", "2030-01-01Z")) == 499
