"""The way out into Parquet: what is in the file, and that all comes back that was there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from click.testing import CliRunner
from fix_cli import Run
from fix_servers import ON_ONE_VERSION, Database
from fix_stores import READINGS, create, store_bars
from hypothesis import HealthCheck, given, settings
from points import ANCHORS, batches, frame_of
from pyarrow import parquet

import toolkit
from toolkit import exporting
from toolkit.cli import main
from toolkit.columns import Columns
from toolkit.dataset import Dataset

ALL = ("1900-01-01Z", "2100-01-01Z")
EXTREMES = {
    "series": ["a", "a", "a", "b", "b", "ünïcode 🙂"],
    "ts": np.array(
        ["1960-02-29T12:00", "1960-02-29T12:00", "2024-01-01T00:00:00.000001"] * 2, dtype="M8[us]"
    ),
    "seq": [0, 1, 2**62, -(2**63) + 1, 7, 2**63 - 1],
    "level": [-0.0, np.inf, -np.inf, np.nan, 5e-324, 0.1],
    "hits": [2**63 - 1, -(2**63) + 1, None, 0, 1, 2**53 + 1],
    "is_open": [True, False, None, None, True, False],
    "mood": ["", None, "NULL", "ünïcode 🙂", "NaN", "\\N"],
    "cost": [
        *map(Decimal, ("922337203685477.5807", "-922337203685477.5807", "0", "-0.0001", "12.5")),
        None,
    ],
}


def bits(columns: Columns) -> dict[str, Any]:
    """All of an answer, comparable to the last bit."""
    names = np.array([*columns.names, ""], dtype=object)
    found: dict[str, Any] = {
        "series": names[columns.series].tolist(),
        "ts": columns.instants.tolist(),
        "seq": None if columns.seq is None else columns.seq.tolist(),
    }
    for name in columns:
        if columns.types[name] == "category":
            texts = (*columns.categories[name], None)
            found[name] = [texts[c] for c in columns.raw(name).tolist()]
        elif columns.types[name] == "float":
            values = columns.raw(name).astype(np.float64)
            found[name] = np.where(np.isnan(values), np.nan, values).view(np.int64).tolist()
        else:
            found[name] = columns.raw(name).tolist()
    return found


# -- what comes back ----------------------------------------------------------------------------


def test_exported_points_are_loaded_back_bit_for_bit(
    store: Any, run: Run, database: Database, tmp_path: Path
) -> None:
    create(database, READINGS)
    store.write("readings", EXTREMES)
    before = bits(store.read("readings", None, *ALL))
    report = store.export("readings", tmp_path / "all.parquet")
    assert (report.rows, report.series) == (6, 3)
    assert report.bytes == (tmp_path / "all.parquet").stat().st_size
    store.drop_partitions("readings", *ALL)
    assert len(store.read("readings", None, *ALL)) == 0
    run("load", str(tmp_path / "all.parquet"), "--dataset", "readings")
    assert bits(store.read("readings", None, *ALL)) == before
    assert before["level"][0] == -(2**63)  # the bits of -0.0


@ON_ONE_VERSION
@pytest.mark.parametrize("anchor", ANCHORS[::4])
def test_any_points_come_back_through_small_row_groups(
    blocking: toolkit.Store,
    database: Database,
    tmp_path: Path,
    anchor: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = replace(READINGS, name="again")
    create(database, READINGS, again)
    monkeypatch.setattr(exporting, "ROWS", 7)
    monkeypatch.setattr("toolkit.roads.PIECE", 5)
    monkeypatch.setattr(exporting, "_MOST_HELD", 2)
    path = tmp_path / "x.parquet"

    @settings(
        max_examples=settings().max_examples // 5,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(batches(READINGS, anchor, ["a", "b", "c"], most=60))
    def holds(points: Any) -> None:
        for name in ("readings", "again"):
            blocking.drop_partitions(name, *ALL)
        if points:
            blocking.write("readings", frame_of(points, READINGS))
        report = blocking.export("readings", path, overwrite=True)
        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        assert groups[:-1] == [7] * (len(groups) - 1)
        assert sum(groups) == report.rows == len(points)
        if not points:
            return
        result = CliRunner().invoke(
            main, ["--dsn", database.dsn, "load", str(path), "--dataset", "again"]
        )
        assert result.exit_code == 0, result.output
        assert bits(blocking.read("again", None, *ALL)) == bits(
            blocking.read("readings", None, *ALL)
        )

    holds()


def test_file_has_the_types_of_the_columns_and_says_what_it_is(
    store: Any, database: Database, tmp_path: Path
) -> None:
    create(database, READINGS)
    store.write("readings", EXTREMES)
    store.label("readings", "a", {"floor": "1"})
    path = tmp_path / "a.parquet"
    store.export("readings", path, ["b", "a"], "1950-01-01Z", "2000-01-01Z")
    table = parquet.read_table(path)
    text = pa.dictionary(pa.int32(), pa.string())
    assert {f.name: f.type for f in table.schema} == {
        "series": text,
        "ts": pa.timestamp("us", tz="UTC"),
        "seq": pa.int64(),
        "level": pa.float64(),
        "hits": pa.int64(),
        "is_open": pa.bool_(),
        "mood": text,
        "cost": pa.decimal128(19, 4),
    }
    assert table["series"].to_pylist() == ["b", "b", "a", "a"]
    assert table["mood"].to_pylist() == ["ünïcode 🙂", "NaN", "", None]
    assert table["is_open"].null_count == table["level"].null_count == 1
    said = json.loads(table.schema.metadata[b"toolkit"])
    assert Dataset.from_mapping(said.pop("dataset")) == READINGS
    source = said.pop("source")
    assert (source["database"], source["schema"]) == (database.name, "toolkit")
    assert said == {
        "start": "1950-01-01T00:00Z",
        "end": "2000-01-01T00:00Z",
        "step": None,
        "tz": None,
        "labels": {"a": {"floor": "1"}},
    }


def test_bars_of_some_columns_are_what_a_read_answers(store: Any, tmp_path: Path) -> None:
    for name in ("A", "B"):
        store_bars(store, 3_000, name)
    store.label("candles", "B", {"venue": "kraken"})
    path, span = tmp_path / "hours.parquet", ("2024-01-01Z", "2024-01-02Z")
    asked = {"columns": ["close", "vwap"], "step": "1h", "labels": {"venue": "kraken"}}
    report = store.export("candles", path, None, *span, **asked)
    table = parquet.read_table(path)
    answer = store.read("candles", None, *span, **asked)
    assert report.rows == table.num_rows == len(answer) == 24
    assert table.equals(answer.to_arrow().cast(table.schema))
    with parquet.ParquetFile(path) as file:
        assert json.loads(file.metadata.metadata[b"toolkit"])["step"] == "1h"


def test_nothing_found_is_a_file_without_rows(store: Any, tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    report = store.export("trades", path, labels={"venue": "nowhere"})
    assert (report.rows, report.series) == (0, 0)
    assert parquet.read_schema(path).names == ["series", "ts", "seq", "price", "size", "side"]
    store.export("candles", path, step="1d", overwrite=True)
    assert "vwap" in parquet.read_schema(path).names


def test_export_is_of_one_snapshot_and_tells_how_far_it_is(
    store: Any, other_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROWS", 100)
    monkeypatch.setattr("toolkit.roads.PIECE", 100)
    for name in ("A", "B"):
        store_bars(store, 1_000, name)
    heard: list[toolkit.ExportReport] = []
    with other_store() as writer:

        def hear(report: toolkit.ExportReport) -> None:
            if not heard:
                writer.delete("candles", ["A", "B"], *ALL)
            heard.append(report)

        report = store.export("candles", tmp_path / "x.parquet", on_progress=hear)
    assert [r.rows for r in heard] == list(range(100, 2_001, 100))
    assert heard[-1].series == report.series == 2
    assert heard[-1].bytes > heard[4].bytes > 0
    assert parquet.read_metadata(tmp_path / "x.parquet").num_rows == report.rows == 2_000
    assert len(store.read("candles", None, *ALL)) == 0


MEASURED = """
import sys
import pyarrow.parquet
import toolkit
def memory(what):
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(what)).split()[1]) // 1024
with toolkit.connect(sys.argv[1]) as store:
    store.read("candles", "A", "2024-01-01Z", "2024-01-02Z")
    idle = memory("VmRSS")
    for end in ("2024-04-01Z", None):
        report = store.export("candles", sys.argv[2], None, None, end, overwrite=True)
        print(report.rows, memory("VmHWM") - idle)
"""


@ON_ONE_VERSION
def test_memory_does_not_grow_with_the_rows(
    blocking: toolkit.Store, sql: psycopg.Connection, database: Database, tmp_path: Path
) -> None:
    months = np.arange("2024-01", "2026-01", dtype="M8[M]").astype("M8[us]")
    blocking.write("candles", {"ts": months, "close": np.ones(24)}, series="A")
    sql.execute(
        "INSERT INTO candles (series_id, ts, open, high, low, close, volume) "
        "SELECT 1, '2024-01-01Z'::timestamptz + make_interval(mins => i), "
        "random(), random(), random(), random(), random() FROM generate_series(1, 1000000) AS i "
        "ON CONFLICT DO NOTHING"
    )
    sql.execute("VACUUM ANALYZE candles")
    command = [sys.executable, "-c", MEASURED, database.dsn, str(tmp_path / "x.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, peak, rows, highest = map(int, done.stdout.split())
    assert rows > 990_000 > 7 * few
    assert highest < 150, done.stdout
    assert highest < peak + 25  # of all rows the numbers alone are 48 MB


# -- the command --------------------------------------------------------------------------------


def test_command_writes_what_it_says(run: Run, blocking: toolkit.Store, tmp_path: Path) -> None:
    store_bars(blocking, 3_000)
    out = tmp_path / "bars.parquet"
    said = run("export", "candles", "--out", str(out)).stdout
    assert said.startswith(f"3,000 rows of 1 series to {out}: ")
    span = ("--from", "2024-01-01 01:00", "--to", "2024-01-01 03:00", "--tz", "Europe/Berlin")
    some = ("--columns", "close,volume", "--step", "1h", "--overwrite", "--json")
    told = json.loads(run("export", "candles", "BTC-USD", *span, *some, "--out", str(out)).stdout)
    assert told["file"] == str(out)
    assert told["report"] == {
        "rows": 2,
        "series": 1,
        "bytes": out.stat().st_size,
        "seconds": told["report"]["seconds"],
    }
    table = parquet.read_table(out)
    assert table.column_names == ["series", "ts", "close", "volume"]
    assert table["ts"].to_pylist()[0] == datetime(2024, 1, 1, tzinfo=UTC)
