"""`toolkit load --compressed`: files straight into blocks, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fix_cli import Run, in_pieces, interrupted, write_bars
from fix_compressing import rows_and_blocks
from fix_servers import ON_ONE_VERSION, Database
from pyarrow import csv, parquet

import toolkit

ROWS = 20_000
LOAD = ("--dataset", "candles", "--series", "BTC-USD", "--compressed")
LATE = "NEW._last >= '2024-01-13 00:00+00'"


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    return write_bars(tmp_path / "bars.csv", ROWS)


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
    assert rows_and_blocks(database.dsn) == (0, ROWS)
    assert closes(database) == [i + 0.5 for i in range(ROWS)]
    report = json.loads(run("load", str(path), *LOAD, "--json").stdout)["report"]
    assert (report["received"], report["unchanged"], report["blocks"]) == (ROWS, ROWS, 0)
    assert "20,000 the key exists" in run("load", str(path), *LOAD, "--mode", "ignore").stdout
    said = run("load", str(path), *LOAD, "--mode", "insert", code=1).stderr
    assert "series 'BTC-USD' has a point at 2024-01-01T00:00Z" in said
    assert rows_and_blocks(database.dsn) == (0, ROWS)


def test_a_dry_run_stores_nothing(run: Run, bars: Path, database: Database) -> None:
    assert "checked, nothing stored" in run("load", str(bars), *LOAD, "--dry-run").stdout
    assert rows_and_blocks(database.dsn) == (0, 0)


def test_a_broken_line_is_named_and_nothing_stored(
    run: Run, bars: Path, database: Database
) -> None:
    with bars.open("a") as file:
        file.write("2024-02-01T00:00:00Z,1,2,3,not a number,5\n")
    said = run("load", str(bars), *LOAD, code=1).stderr
    assert f"{bars}, line {ROWS + 2}: column 'close'" in said
    assert rows_and_blocks(database.dsn) == (0, 0)


@ON_ONE_VERSION
@pytest.mark.parametrize("before", ["", in_pieces(300_000)], ids=["one piece", "many pieces"])
def test_interrupted_it_says_what_is_stored_and_can_be_run_again(
    database: Database, bars: Path, run: Run, before: str
) -> None:
    command = ("load", str(bars), *LOAD)
    code, said = interrupted(database, "candles_blocks", LATE, *command, before=before)
    assert code == 130, said
    _, stored = rows_and_blocks(database.dsn)
    assert stored < ROWS
    assert (stored > 0) == bool(before)
    assert f"the first {stored:,} of 20,000 rows are stored" in said
    assert f"{ROWS - stored:,} inserted" in run(*command).stdout
    assert rows_and_blocks(database.dsn) == (0, ROWS)
    assert closes(database) == [i + 0.5 for i in range(ROWS)]
