"""Where points go before they are dropped: whose a file is, and what a killed export leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from fix_contract import kill_at
from fix_retention import DAY, START, retained, tables
from fix_servers import Database, Fleet
from pyarrow import parquet

import toolkit
from toolkit import ddl
from toolkit.config import load_settings
from toolkit.dataset import METRICS
from toolkit_maintenance import runner

POINTS = {"ts": [START + DAY * n + timedelta(hours=1) for n in range(3)]}


@contextmanager
def archiving(database: Database, folder: Path) -> Iterator[toolkit.Store]:
    settings = load_settings(database.dsn)
    to = replace(settings.maintenance, retain_export=str(folder))
    with toolkit.connect(replace(settings, maintenance=to)) as store:
        yield store


@contextmanager
def archiving_beside(
    fleet: Fleet, version: str, template: str, folder: Path
) -> Iterator[toolkit.Store]:
    """A store on a second database of the same server, with the same folder."""
    server = fleet.server(version)
    beside = server.database(template)
    try:
        with archiving(beside, folder) as store:
            yield store
    finally:
        server.drop(beside)


def filled(store: toolkit.Store, value: float) -> None:
    store.write("metrics", {**POINTS, "value": [value] * 3}, series="A")
    store.refresh("metrics")


def values(folder: Path) -> list[float]:
    return [
        value
        for path in sorted(folder.rglob("*.parquet"))
        for value in parquet.read_table(path)["value"].to_pylist()
    ]


def test_the_file_of_another_dataset_of_the_same_name_is_not_taken_for_our_own(
    database: Database, fleet: Fleet, server_version: str, template: str, tmp_path: Path
) -> None:
    with archiving(database, tmp_path) as store:
        filled(store, 1.0)
        assert retained(store, rows="30d").status == "done"
    assert values(tmp_path) == [1.0] * 3
    with psycopg.connect(database.dsn) as sql:  # made anew, with as many points in the same time
        for statements in (ddl.drop_dataset, ddl.create_dataset):
            for statement in statements(METRICS, "toolkit"):
                sql.execute(statement)
    with archiving(database, tmp_path) as store, psycopg.connect(database.dsn) as sql:
        filled(store, 2.0)
        count = tables(sql)
        report = retained(store, rows="30d")
        assert (report.status, tables(sql)) == ("failed", count)
        assert "holds points of another 'metrics'" in report.failed[0]
        assert f"database '{database.name}', schema 'toolkit'" in report.failed[0]
        assert "move it away, or name another folder" in report.failed[0]
        assert values(tmp_path) == [1.0] * 3
        assert list(store.read("metrics", "A", START, START + 9 * DAY)["value"]) == [2.0] * 3
        (tmp_path / database.name).rename(tmp_path / "old")
        assert runner.run(store, "retention").status == "done"
    with archiving_beside(fleet, server_version, template, tmp_path) as store:
        filled(store, 3.0)
        assert retained(store, rows="30d").status == "done"
    assert sorted(values(tmp_path)) == [1.0] * 3 + [2.0] * 3 + [3.0] * 3


def test_what_a_killed_export_left_is_removed(
    database: Database, sql: psycopg.Connection, tmp_path: Path
) -> None:
    with archiving(database, tmp_path) as store:
        filled(store, 1.0)
        table = store.partitions("metrics")[0].name
        folder = tmp_path / database.name / "toolkit"
        folder.mkdir(parents=True)
        left, theirs = folder / f".{table}.parquet.0123abcd", folder / ".other.parquet.0123abcd"
        for path in (left, theirs):
            path.write_bytes(b"PAR1 and no end")
        assert retained(store, rows="30d").status == "done"
    assert {p.name for p in folder.iterdir() if p.name.startswith(".")} == {theirs.name}
    assert values(tmp_path) == [1.0] * 3


def test_a_range_whose_rows_were_dropped_when_it_was_killed_is_exported_once(
    database: Database,
    sql: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with archiving(database, tmp_path) as store:
        hours = [START + timedelta(hours=n) for n in range(3)]  # of one partition
        store.write("metrics", {"ts": hours, "value": [1.0] * 3}, series="A")
        store.refresh("metrics")
        (first,) = store.partitions("metrics")
        store.compress("metrics", None, START, START + 30 * DAY)
        late = {"ts": [START + timedelta(hours=3)], "value": [2.0]}
        store.write("metrics", late, series="A")
        store.refresh("metrics")
        bars = store.read("metrics", "A", START, START + 9 * DAY, step="1d").to_pandas()
        store.set_retention("metrics", toolkit.Retention("30d", "30d"))
    monkeypatch.setenv("TOOLKIT_MAINTENANCE_RETAIN_EXPORT", str(tmp_path))
    kill_at(database.dsn, "retention", 2, b"COMMENT")  # the first table of the range has gone
    left = [name for name in ("metrics_p", "metrics_blocks_p") if tables(sql, name)]
    assert (left, sorted(values(tmp_path))) == (["metrics_blocks_p"], [1.0] * 3 + [2.0])
    with archiving(database, tmp_path) as store:
        report = runner.run(store, "retention")
        assert (report.status, tables(sql, "metrics_blocks_p")) == ("done", 0), report
        found = store.read("metrics", "A", START, START + 9 * DAY, step="1d").to_pandas()
        assert found.equals(bars)
    (file,) = tmp_path.rglob("*.parquet")
    assert (file.stem, sorted(values(tmp_path))) == (first.name, [1.0] * 3 + [2.0])
