"""`toolkit load --compressed`: files straight into blocks, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from fix_servers import Database
from pyarrow import csv, parquet

import toolkit
from toolkit.cli import main

Run = Callable[..., Result]
ROWS = 20_000
LOAD = ("--dataset", "candles", "--series", "BTC-USD", "--compressed")
SMALL = (
    "from toolkit.cli.loading.delimited import DelimitedFile as F\n"
    "F.__init__.__defaults__ = (',', 300_000)\n"
)


@pytest.fixture
def run(database: Database) -> Run:
    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["--dsn", database.dsn, *arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    """A CSV of minute bars from the first of January 2024 on."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    lines = ["ts,open,high,low,close,volume"]
    for i in range(ROWS):
        ts = start + timedelta(minutes=i)
        lines.append(f"{ts:%Y-%m-%dT%H:%M:%SZ},{i},{i + 1},{i - 1},{i + 0.5},{i % 7}")
    path = tmp_path / "bars.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def counts(database: Database) -> tuple[int, int]:
    """Return how many points lie in rows and in blocks."""
    with psycopg.connect(database.dsn) as connection:
        found = connection.execute(
            "SELECT (SELECT count(*) FROM toolkit.candles), "
            "(SELECT coalesce(sum(_rows), 0) FROM toolkit.candles_blocks)"
        ).fetchone()
    assert found is not None
    return int(found[0]), int(found[1])


def closes(database: Database) -> list[float]:
    with toolkit.connect(database.dsn) as store:
        cols = store.read("candles", "BTC-USD", "2023-01-01T00:00Z", "2025-01-01T00:00Z")
        found: list[float] = cols["close"].tolist()
        return found


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_goes_into_blocks_and_the_mode_decides_about_what_is_there(
    run: Run, bars: Path, database: Database, tmp_path: Path, kind: str
) -> None:
    path = bars
    if kind == "parquet":
        path = tmp_path / "bars.parquet"
        parquet.write_table(csv.read_csv(bars), path)
    said = run("load", str(path), *LOAD).stdout
    assert "20,000 rows of 1 series: 20,000 inserted; 2 blocks of" in said
    assert counts(database) == (0, ROWS)
    assert closes(database) == [i + 0.5 for i in range(ROWS)]
    report = json.loads(run("load", str(path), *LOAD, "--json").stdout)["report"]
    assert (report["received"], report["unchanged"], report["blocks"]) == (ROWS, ROWS, 0)
    assert "20,000 the key exists" in run("load", str(path), *LOAD, "--mode", "ignore").stdout
    said = run("load", str(path), *LOAD, "--mode", "insert", code=1).stderr
    assert "series 'BTC-USD' has a point at 2024-01-01T00:00Z" in said
    assert counts(database) == (0, ROWS)


def test_a_dry_run_stores_nothing(run: Run, bars: Path, database: Database) -> None:
    assert "checked, nothing stored" in run("load", str(bars), *LOAD, "--dry-run").stdout
    assert counts(database) == (0, 0)


def test_a_broken_line_is_named_and_nothing_stored(
    run: Run, bars: Path, database: Database
) -> None:
    with bars.open("a") as file:
        file.write("2024-02-01T00:00:00Z,1,2,3,not a number,5\n")
    said = run("load", str(bars), *LOAD, code=1).stderr
    assert f"{bars}, line {ROWS + 2}: column 'close'" in said
    assert counts(database) == (0, 0)


@pytest.mark.parametrize("before", ["", SMALL], ids=["one piece", "many pieces"])
def test_interrupted_it_says_what_is_stored_and_can_be_run_again(
    database: Database, bars: Path, run: Run, before: str
) -> None:
    code = f"{before}\nfrom toolkit.cli import main; main(prog_name='toolkit')"
    environment = {**os.environ, "TOOLKIT_DSN": database.dsn}
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END'"
        )
        admin.execute(
            "CREATE TRIGGER wait BEFORE INSERT ON toolkit.candles_blocks FOR EACH ROW "
            "WHEN (NEW._last >= '2024-01-13 00:00+00') EXECUTE FUNCTION public.wait()"
        )
        admin.execute("SELECT pg_advisory_lock(42)")
        process = subprocess.Popen(
            [sys.executable, "-c", code, "load", str(bars), *LOAD],
            env=environment,
            stderr=subprocess.PIPE,
        )
        wait_for(admin, database)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 130, said
    _, stored = counts(database)
    assert stored < ROWS
    assert (stored > 0) == bool(before)
    assert f"the first {stored:,} of 20,000 rows are stored" in said
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute("DROP TRIGGER wait ON toolkit.candles_blocks")
    assert f"{ROWS - stored:,} inserted" in run("load", str(bars), *LOAD).stdout
    assert counts(database) == (0, ROWS)
    assert closes(database) == [i + 0.5 for i in range(ROWS)]


def wait_for(admin: Any, database: Database) -> None:
    """Return when a load waits for our lock."""
    for _ in range(600):
        found = admin.execute(
            "SELECT count(*), pg_sleep(0.05) FROM pg_stat_activity "
            "WHERE datname = %s AND wait_event_type = 'Lock'",
            (database.name,),
        ).fetchone()
        if found[0]:
            return
    raise AssertionError("no load ever waited")
