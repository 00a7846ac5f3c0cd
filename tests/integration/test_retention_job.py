"""The retention job: what goes, what it waits for, and what stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
from fix_retention import (
    DAY,
    END,
    NOW,
    START,
    TWIN,
    Killed,
    answers,
    filled,
    killed_at,
    mark_of,
    retained,
    same,
    tables,
)
from fix_servers import Database
from fix_stores import cached, create

import toolkit
from toolkit import Retention
from toolkit.config import load_settings
from toolkit.errors import (
    QueryError,
    SchemaError,
)
from toolkit.timegrid import to_us
from toolkit_maintenance import runner


def test_what_is_not_refreshed_is_not_dropped(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    filled(blocking)
    blocking.write("metrics", {"ts": [START], "value": [9.0]}, series="A")
    count = tables(sql)
    report = retained(blocking, rows="30d")
    assert (report.status, tables(sql)) == ("skipped", count)
    assert "1 change of before is not in the rollups yet" in report.skipped[0].why
    assert "toolkit refresh metrics" in report.skipped[0].why
    blocking.refresh("metrics")
    before = answers(blocking)
    dry = runner.run(blocking, "retention", is_dry=True)
    assert tables(sql) == count
    assert same(before, answers(blocking))
    assert any("DETACH PARTITION" in s and "CONCURRENTLY" in s for s in dry.planned[1].sql)
    assert any("date_bin('" in s for s in dry.planned[1].sql)  # as it is sent
    assert not any("%(" in s for act in dry.planned for s in act.sql)
    assert dry.planned[1].bytes > 8192
    assert "SHARE UPDATE EXCLUSIVE" in dry.planned[1].lock
    done = runner.run(blocking, "retention")
    assert [a.what for a in dry.planned] == list(done.done)
    assert tables(sql) == count - len(done.done) + 1
    assert same(before, answers(blocking))


def test_rows_and_blocks_go_by_their_own_ages(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    filled(blocking)
    before = answers(blocking)
    blocking.set_compress_after("metrics", "10d")
    with pytest.raises(SchemaError, match="compressed only after 10d"):
        blocking.set_retention("metrics", Retention(rows="7d"))
    report = retained(blocking, rows="20d", blocks="40d")
    assert report.status == "skipped"
    assert "not in blocks yet; run: toolkit compress" in report.skipped[0].why
    assert (
        sql.execute("SELECT frozen_before FROM dataset WHERE name = 'metrics'").fetchone()[0]
        is None
    )
    blocking.compress("metrics")
    report = runner.run(blocking, "retention")
    assert report.status == "done"
    assert same(before, answers(blocking))
    mark = mark_of(sql)
    assert NOW - 48 * DAY < mark <= NOW - 40 * DAY
    assert blocking.read("metrics", "A", START, END).ts[0] == np.datetime64(
        mark.replace(tzinfo=None)
    )
    # late points of blocks that stay are no rows that are past
    late = {"ts": [mark + DAY + timedelta(minutes=1)], "value": [1e6]}
    blocking.write("metrics", late, series="A")
    assert runner.run(blocking, "retention").status == "nothing"
    blocking.compress("metrics")
    assert not blocking.verify("metrics").damaged
    assert blocking.read("metrics", "A", START, END, step="1d")["value_max"].max() == 1e6


def test_blocks_go_with_what_came_late_to_them(
    database: Database, sql: psycopg.Connection, tmp_path: Path
) -> None:
    settings = load_settings(database.dsn)
    to = replace(settings.maintenance, retain_export=str(tmp_path))
    with toolkit.connect(replace(settings, maintenance=to)) as store:
        filled(store)
        store.compress("metrics", None, START, NOW - 60 * DAY)
        late = {"ts": [START + timedelta(minutes=1)], "value": [1e6]}
        store.write("metrics", late, series="A")
        store.refresh("metrics")
        report = retained(store, rows="3y", blocks="60d")
        assert report.status == "skipped", report
        assert "late points in rows are not; run: toolkit compress" in report.skipped[0].why
        assert not list(tmp_path.iterdir())
        store.compress("metrics", None, START, NOW - 60 * DAY)
        count = len(store.read("metrics", None, START, NOW))
        report = runner.run(store, "retention")
        assert report.status == "done", report
        assert (
            count - len(store.read("metrics", None, START, NOW)) == report.counts["points_exported"]
        )
        assert pd.read_parquet(tmp_path).value.max() == 1e6


def test_points_are_exported_before_they_go(
    database: Database, sql: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(database.dsn)
    to = replace(settings.maintenance, retain_export=str(tmp_path / "archive"))
    with toolkit.connect(replace(settings, maintenance=to)) as store:
        filled(store)
        native = store.read("metrics", ["A", "B"], START, END).to_pandas()
        count = tables(sql)
        report = retained(store, rows="30d")
        assert report.status == "failed"
        assert tables(sql) == count
        assert "there is no folder" in report.failed[0]
        (tmp_path / "archive").mkdir()
        first = store.partitions("metrics")[0]
        folder = tmp_path / "archive" / database.name / "toolkit"
        kept = folder / f"{first.name}.parquet"
        folder.mkdir(parents=True)
        kept.write_bytes(b"not ours")
        report = runner.run(store, "retention")
        assert report.status == "failed"
        assert "no export of ours" in report.failed[0]
        assert first.name in {p.name for p in store.partitions("metrics")}
        kept.unlink()
        with killed_at(b"COMMENT", monkeypatch), pytest.raises((Killed, RuntimeError)):
            runner.run(store, "retention")
        whole = kept.stat()
        done = runner.run(store, "retention")
        assert kept.stat().st_mtime_ns == whole.st_mtime_ns
        assert done.status == "done"
        assert done.counts["points_exported"] == 2 * int(
            (first.span.end - to_us(START)) / 1_200_000_000
        )
        create(database, TWIN)
        for file in sorted(folder.iterdir()):
            store.write("twins", pd.read_parquet(file))
        mark = mark_of(sql)
        back = store.read("twins", ["A", "B"], START, END).to_pandas()
        old = native[native.ts < mark.replace(tzinfo=native.ts.dt.tz)]
        assert back.reset_index(drop=True).equals(old.reset_index(drop=True))


def test_a_table_that_somebody_detached_is_dropped_only_by_the_policy_of_now(
    database: Database, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(database.dsn)
    brief = replace(settings.maintenance, lock_timeout=0.2, tries=1)
    comments = "SELECT obj_description(%s::regclass)"
    with toolkit.connect(replace(settings, maintenance=brief)) as store:
        filled(store)
        store.set_retention("metrics", Retention("30d"))
        first, second = (p.name for p in store.partitions("metrics")[:2])
        with killed_at(b"COMMENT", monkeypatch), pytest.raises((Killed, RuntimeError)):
            runner.run(store, "retention")
        with sql.transaction():
            sql.execute("LOCK TABLE ONLY metrics IN SHARE UPDATE EXCLUSIVE MODE")
            assert runner.run(store, "retention").status == "failed"
        for name in (first, second):
            assert sql.execute(comments, [name]).fetchone() == (None,)
        with killed_at(b"ALTER", monkeypatch), pytest.raises((Killed, RuntimeError)):
            runner.run(store, "retention")
        said = sql.execute(comments, [first]).fetchone()[0]
        assert said.startswith("retention drops this table, of before 20")
        sql.execute(f"ALTER TABLE metrics DETACH PARTITION {first}")
        for ages in (Retention(), Retention("1y"), Retention(blocks="30d")):
            store.set_retention("metrics", ages)
            report = runner.run(store, "retention")
            assert [s.what for s in report.skipped if s.is_warning] == [first]
            assert "the policy of now keeps it" in report.skipped[0].why
            assert tables(sql, first) == 1
        assert retained(store, rows="30d").status == "done"
        assert tables(sql, first) == 0


def test_points_that_are_kept_hold_the_mark(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    def filled_from(days: int, count: int) -> None:
        ts = [NOW - days * DAY + timedelta(hours=h) for h in range(count * 24)]
        blocking.write("metrics", {"ts": ts, "value": np.arange(len(ts)) * 1.0}, series="A")
        blocking.refresh("metrics")

    at = "SELECT frozen_before FROM dataset WHERE name = 'metrics'"
    add = "SELECT ensure_partitions('metrics', %s, %s)"
    filled_from(90, 3)
    sql.execute(add, [NOW - 70 * DAY, NOW - 69 * DAY])
    # an empty partition is past its age, older points are kept for ever
    assert retained(blocking, blocks="30d").status == "nothing"
    assert sql.execute(at).fetchone() == (None,)
    # blocks are kept for longer than the rows that came later
    blocking.compress("metrics", None, NOW - 100 * DAY, NOW - 60 * DAY)
    filled_from(50, 3)
    report = retained(blocking, rows="30d", blocks="120d")
    assert (report.status, sql.execute(at).fetchone()) == ("nothing", (None,))
    assert all("waits for older points that are kept" in s.why for s in report.skipped)
    assert report.skipped
    before = blocking.read("metrics", "A", START - 30 * DAY, END, step="1d").to_pandas()
    assert retained(blocking, rows="30d", blocks="60d").status == "done"
    assert NOW - 50 * DAY < mark_of(sql) <= NOW - 30 * DAY
    after = blocking.read("metrics", "A", START - 30 * DAY, END, step="1d").to_pandas()
    assert before.equals(after)


def test_rollups_go_after_their_points(blocking: toolkit.Store, sql: psycopg.Connection) -> None:
    start = datetime(NOW.year - 3, 12, 1, tzinfo=UTC)
    ts = [start + timedelta(hours=h) for h in range(60 * 24)]
    blocking.write("metrics", {"ts": ts, "value": np.arange(len(ts)) * 1.0}, series="A")
    blocking.refresh("metrics")
    with pytest.raises(SchemaError, match="before its points do"):
        blocking.set_retention("metrics", Retention(rollups={"5m": "1y"}))
    edge = datetime(NOW.year - 2, 1, 1, tzinfo=UTC)
    days = blocking.read("metrics", "A", start, NOW, step="1d").to_pandas()
    report = retained(blocking, rows="30d", rollups={"5m": "40d", "1h": "40d"})
    assert report.status == "done", report
    assert runner.run(blocking, "retention").status == "nothing"
    assert tables(sql, "metrics_1d_p") == 2
    assert tables(sql, "metrics_5m_p") == 1
    assert blocking.read("metrics", "A", start, NOW, step="1d").to_pandas().equals(days)
    hours = blocking.read("metrics", "A", start, NOW, step="1h")
    assert hours.ts[0] == np.datetime64(edge.replace(tzinfo=None))
    # only the last rung knows that time: its buckets are those that a range has to keep to
    for offset in (timedelta(hours=5), timedelta(minutes=7)):
        with pytest.raises(QueryError, match=f"a 1d bucket .* start at {start:%F}.* or .*-02T"):
            blocking.read("metrics", "A", start + offset, NOW, step="1d")
    with pytest.raises(QueryError, match="are gone, too"):  # a day there is of some hours only
        blocking.read("metrics", "A", start, NOW, step="1d", tz="Asia/Kolkata")
    blocking.refresh("metrics")
    assert tables(sql, "metrics_5m_p") == 1


def test_a_cache_forgets_buckets_that_go(database: Database) -> None:
    start = datetime(NOW.year - 3, 12, 1, tzinfo=UTC)
    ts = [start + timedelta(hours=h) for h in range(60 * 24)]
    with (
        toolkit.connect(database.dsn) as store,
        toolkit.connect(cached(database.dsn, max_age=0.0)) as remembers,
    ):
        store.write("metrics", {"ts": ts, "value": np.arange(len(ts)) * 1.0}, series="A")
        store.refresh("metrics")

        def rows(of: toolkit.Store) -> int:
            return len(of.read("metrics", "A", start, NOW, step="1h"))

        assert retained(store, rows="30d").status == "done"
        assert rows(store) == rows(remembers) == rows(remembers) == len(ts)
        assert remembers.stats()["cache_spans"] > 0
        report = retained(store, rows="30d", rollups={"5m": "40d", "1h": "40d"})
        assert report.status == "done"
        assert 0 < rows(store) < len(ts)
        assert rows(remembers) == rows(store)
        store.refresh("metrics")
        assert rows(remembers) == rows(store)
        assert runner.run(store, "retention").status == "nothing"
