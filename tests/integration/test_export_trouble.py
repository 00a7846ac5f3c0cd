"""What stands in the way of an export: a sentence, and no file that is half there."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cli import Run
from fix_servers import Database
from fix_stores import store_bars
from pyarrow import parquet

import toolkit
from toolkit import exporting
from toolkit.errors import ExportError, QueryError, UnknownName

ALL = ("1900-01-01Z", "2100-01-01Z")


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


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
    store_bars(blocking, 10)
    result = run("export", *arguments, "--out", str(tmp_path / "x.parquet"), code=code)
    assert said in result.stderr
    assert result.stdout == ""
    assert left_in(tmp_path) == []


def test_file_that_exists_is_replaced_only_if_told_so(store: Any, run: Run, tmp_path: Path) -> None:
    store_bars(store, 10)
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
    store_bars(blocking, 10)
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
    store_bars(store, 1_000)

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
        store_bars(store, 1_000)

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
    store_bars(blocking, 5_000)
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
