"""The way out into Parquet: what comes back is what was there, and no file is ever half there."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from fix_servers import Database
from fix_stores import READINGS, create
from hypothesis import HealthCheck, given, settings
from points import ANCHORS, batches, frame_of
from pyarrow import parquet

import toolkit
from toolkit import exporting
from toolkit.cli import main
from toolkit.columns import Columns
from toolkit.dataset import Dataset
from toolkit.errors import ExportError, QueryError, UnknownName

Run = Callable[..., Result]
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


@pytest.fixture
def run(database: Database) -> Run:
    def run(*arguments: str, code: int = 0, dsn: str = database.dsn) -> Result:
        result = CliRunner().invoke(main, ["--dsn", dsn, *arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


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


def bars(store: Any, count: int, series: str = "BTC-USD") -> None:
    ts = np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(1, "m")
    columns = {n: np.arange(count) * 1.0 for n in ("open", "high", "low", "close", "volume")}
    store.write("candles", {"ts": ts, **columns}, series=series)


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


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
        max_examples=min(settings().max_examples, 40),
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
    assert said == {
        "start": "1950-01-01T00:00Z",
        "end": "2000-01-01T00:00Z",
        "step": None,
        "tz": None,
        "labels": {"a": {"floor": "1"}},
    }


def test_bars_of_some_columns_are_what_a_read_answers(store: Any, tmp_path: Path) -> None:
    for name in ("A", "B"):
        bars(store, 3_000, name)
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
        bars(store, 1_000, name)
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
    bars(blocking, 3_000)
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


# -- what stands in the way ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["candels"], 2, "unknown dataset 'candels': did you mean 'candles'"),
        (["candles", "BTC-UDS"], 2, "did you mean 'BTC-USD'?"),
        (["candles", "--columns", "closed"], 2, "did you mean 'close'?"),
        (["candles", "--from", "2024-02-01", "--to", "2024-01-01"], 2, "is before start"),
        (["candles", "--from", "soon"], 2, "--from: 'soon' is not a time"),
        (["candles", "--step", "auto"], 2, "export: give a step like '1h'"),
        (["candles", "BTC-USD", "--label", "a=b"], 2, "either series or labels"),
        (["candles", "--label", "a"], 2, "KEY=VALUE"),
    ],
)
def test_wrong_question_leaves_no_file(
    run: Run, blocking: toolkit.Store, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    bars(blocking, 10)
    result = run("export", *arguments, "--out", str(tmp_path / "x.parquet"), code=code)
    assert said in result.stderr
    assert result.stdout == ""
    assert left_in(tmp_path) == []


def test_file_that_exists_is_replaced_only_if_told_so(store: Any, run: Run, tmp_path: Path) -> None:
    bars(store, 10)
    path, link = tmp_path / "x.parquet", tmp_path / "link.parquet"
    path.write_text("mine")
    link.symlink_to(path)
    for taken in (path, link):
        with pytest.raises(
            ExportError, match="exists: overwrite=True, or --overwrite, replaces it"
        ):
            store.export("candles", taken)
        run("export", "candles", "--out", str(taken), code=1)
    assert path.read_text() == "mine"
    store.export("candles", link, overwrite=True)
    assert link.is_symlink()
    assert parquet.read_metadata(path).num_rows == 10
    assert left_in(tmp_path) == ["link.parquet", "x.parquet"]


def test_place_where_no_file_can_be_is_a_sentence(run: Run, tmp_path: Path) -> None:
    for out, said in (
        (tmp_path, "is no file"),
        (Path("/dev/full"), "is no file"),
        (tmp_path / "no" / "x.parquet", "there is no folder"),
        (tmp_path / "a" / "x.parquet", "Not a directory"),
    ):
        (tmp_path / "a").write_text("")
        stderr = run("export", "candles", "--out", str(out), "--overwrite", code=1).stderr
        assert said in stderr
        assert str(out) in stderr
    assert "name a file" in run("export", "candles", "--out", "-", code=2).stderr
    assert left_in(tmp_path) == ["a"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """For root, whom no folder keeps out: be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folder_that_is_closed_is_a_sentence(blocking: toolkit.Store, tmp_path: Path) -> None:
    bars(blocking, 10)
    tmp_path.chmod(0o500)
    with as_nobody(), pytest.raises(ExportError, match="Permission denied"):
        blocking.export("candles", tmp_path / "x.parquet")
    tmp_path.chmod(0o700)
    assert left_in(tmp_path) == []


def test_full_disk_leaves_no_file(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROWS", 1_000)
    ts = np.datetime64("2024-01-01", "us") + np.arange(20_000) * np.timedelta64(1, "s")
    store.write("metrics", {"ts": ts, "value": np.random.default_rng(1).random(20_000)}, series="x")
    store.export("metrics", tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 30_000, len(whole) - 5):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            with pytest.raises(ExportError, match="nothing was written: File too large"):
                store.export("metrics", tmp_path / "x.parquet", overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert left_in(tmp_path) == ["x.parquet"]
        assert (tmp_path / "x.parquet").read_bytes() == whole
    assert store.stats()["pool_size"] >= store.stats()["pool_available"] > 0


def test_lost_server_leaves_no_file(
    store: Any, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.roads.PIECE", 100)
    bars(store, 1_000)

    def lose(report: object) -> None:
        with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = %s AND pid <> pg_backend_pid()",
                (database.name,),
            )

    with pytest.raises(toolkit.errors.Unavailable):
        store.export("candles", tmp_path / "x.parquet", on_progress=lose)
    assert left_in(tmp_path) == []


def test_cancelled_task_leaves_no_file_and_a_clean_connection(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.roads.PIECE", 100)
    with toolkit.connect(database.dsn) as store:
        bars(store, 1_000)

    async def main() -> None:
        async with toolkit.connect_async(database.dsn) as store:
            begun = asyncio.Event()
            task = asyncio.create_task(
                store.export(
                    "candles", tmp_path / "x.parquet", on_progress=lambda report: begun.set()
                )
            )
            await begun.wait()
            assert len(left_in(tmp_path)) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert left_in(tmp_path) == []
            assert len(await store.read("candles", "BTC-USD", *ALL)) == 1_000

    asyncio.run(main())


SLOW = """
import sys, time
from toolkit import exporting, roads
from toolkit.cli import main
roads.PIECE = 100
add = exporting.ParquetFile.add
def slowly(self, piece):
    add(self, piece)
    print("added", file=sys.stderr, flush=True)
    time.sleep(0.05)
exporting.ParquetFile.add = slowly
main(sys.argv[1:])
"""


def test_interrupted_command_leaves_no_file(
    blocking: toolkit.Store, database: Database, tmp_path: Path
) -> None:
    bars(blocking, 5_000)
    command = [sys.executable, "-c", SLOW, "--dsn", database.dsn, "export", "candles", "--out"]
    with subprocess.Popen(
        [*command, str(tmp_path / "x.parquet")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "added\n"
        assert len(left_in(tmp_path)) == 1
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert said.endswith("Error: interrupted; nothing was written\n")
    assert left_in(tmp_path) == []


def test_without_pyarrow_it_says_what_to_install(
    blocking: toolkit.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(toolkit.errors.MissingExtra, match=r"timeseries-toolkit\[frames\]"):
        blocking.export("candles", tmp_path / "x.parquet")
    assert left_in(tmp_path) == []


def test_library_refuses_what_the_command_refuses(store: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(UnknownName):
        store.export("candels", path)
    with pytest.raises(QueryError, match="is before start"):
        store.export("candles", path, None, "2024-02-01Z", "2024-01-01Z")
    with pytest.raises(QueryError, match="no time zone"):
        store.export("candles", path, None, "2024-02-01")
    assert left_in(tmp_path) == []
