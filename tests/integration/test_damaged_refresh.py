"""Rollups over a damaged block: it is passed over and named, and everything else is followed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner
from fix_compressing import snapshot
from fix_servers import Database

import toolkit
from toolkit import cutting, filling
from toolkit.cli import main
from toolkit.errors import CorruptBlock
from toolkit.strategy import Plan

START = np.datetime64("2024-01-20T00:00", "us")
DAYS = ("2024-01-20T00:00Z", "2024-01-22T00:00Z")
CLOSED = "2024-03-01Z"
SECOND = "[2024-01-20T02:00Z, 2024-01-20T04:00Z)"  # the block that is damaged
BARS = {"step": "1h", "strategy": "downsampled", "cache": False}


def minutes(first: int, count: int) -> Any:
    return START + np.arange(first, first + count) * np.timedelta64(1, "m")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cutting, filling):
        monkeypatch.setattr(module, "TARGET", 120)


@pytest.fixture
def parts(store: Any, sql: psycopg.Connection) -> dict[str, bytes]:
    """The bytes of A's second block, which is damaged after late points came over it."""
    for name in "AB":
        store.write("metrics", {"ts": minutes(0, 600), "value": np.arange(600.0)}, series=name)
    store.compress("metrics", end=CLOSED)
    text = (
        "SELECT b.value FROM metrics_blocks AS b JOIN series AS s ON s.id = b.series_id "
        "WHERE s.name = 'A' ORDER BY b.lo OFFSET 1 LIMIT 1"
    )
    row = sql.execute(text).fetchone()
    assert row is not None
    for name in "AB":  # 01:50 to 04:09: over three blocks, the second of them whole
        store.write("metrics", {"ts": minutes(110, 140), "value": np.zeros(140)}, series=name)
    damage(sql, row[0][:-1])
    return {"value": row[0]}


def damage(sql: psycopg.Connection, value: bytes) -> None:
    """Give A's second block other bytes."""
    text = (
        "UPDATE metrics_blocks AS b SET value = %s FROM series AS s "
        "WHERE s.id = b.series_id AND s.name = 'A' AND b.lo = '2024-01-20T02:00Z'"
    )
    assert sql.execute(text, [value]).rowcount == 1


def touched(cols: toolkit.Columns) -> int:
    """How many points an answer out of a rollup was made of."""
    assert isinstance(cols.plan, Plan)
    return cols.plan.sources["points"] + cols.plan.sources.get("blocks", 0)


def unfollowed(store: Any) -> int:
    return int(store.describe("metrics").unfollowed)


def test_a_damaged_block_does_not_hold_up_the_rest(
    store: Any, parts: dict[str, bytes], sql: psycopg.Connection
) -> None:
    report = store.refresh("metrics")
    (error,) = report.damaged
    assert isinstance(error, CorruptBlock)
    assert (error.dataset, error.series, str(error.span)) == ("metrics", "A", SECOND)
    # all of B, and of A what lies before and behind the block, is in the rollups
    cols = store.read("metrics", "B", *DAYS, **BARS)
    assert touched(cols) == 0
    for around in ((DAYS[0], "2024-01-20T02:00Z"), ("2024-01-20T04:00Z", DAYS[1])):
        cols = store.read("metrics", "A", *around, **BARS)
        assert touched(cols) == 0
        direct = {**BARS, "strategy": "direct"}
        assert snapshot(cols) == snapshot(store.read("metrics", "A", *around, **direct))
    # what is damaged is told, not left out
    with pytest.raises(CorruptBlock):
        store.read("metrics", "A", *DAYS, **BARS)
    assert 0 < unfollowed(store) < 10


def test_what_changed_there_waits_for_the_repair(
    store: Any, parts: dict[str, bytes], sql: psycopg.Connection
) -> None:
    for _ in range(3):  # however often it is tried, it is told once, and is not forgotten
        assert len(store.refresh("metrics").damaged) == 1
        waiting = unfollowed(store)
        assert 0 < waiting < 10
    damage(sql, parts["value"])
    assert store.refresh("metrics").damaged == ()
    assert unfollowed(store) == 0
    cols = store.read("metrics", "A", *DAYS, **BARS)
    assert touched(cols) == 0
    direct = {**BARS, "strategy": "direct"}
    assert snapshot(cols) == snapshot(store.read("metrics", "A", *DAYS, **direct))


def test_compress_names_it_when_all_others_are_done(
    store: Any, parts: dict[str, bytes], sql: psycopg.Connection
) -> None:
    with pytest.raises(CorruptBlock, match="series 'A'"):
        store.compress("metrics", end=CLOSED)
    left = sql.execute("SELECT DISTINCT series_id FROM metrics").fetchall()
    assert len(left) == 1  # those of A wait for the rollups
    assert store.compress("metrics", "B", end=CLOSED).points == 0  # B is no reason to complain


def test_the_command_names_it_and_exits_1(
    blocking: toolkit.Store, parts: dict[str, bytes], database: Database
) -> None:
    said = CliRunner().invoke(main, ["--dsn", database.dsn, "refresh", "metrics"])
    assert said.exit_code == 1
    assert f"series 'A', block {SECOND}: " in said.stderr
    assert "1 block is damaged: what changed over it waits for its repair" in said.stderr
    assert "refresh: failed" in said.stdout
    said = CliRunner().invoke(main, ["--dsn", database.dsn, "refresh", "metrics", "--json"])
    assert said.exit_code == 1
    (failed,) = json.loads(said.stdout)["failed"]
    assert f"block {SECOND}" in failed
