"""Retention: points go, and every answer that a rollup knew stays what it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from fix_replicas import MakeCluster, until
from fix_servers import Database
from fix_stores import cached, create
from fix_topologies import over

import toolkit
from toolkit import Retention
from toolkit.config import load_settings
from toolkit.dataset import METRICS
from toolkit.drivers.direct import Direct
from toolkit.errors import (
    DatabaseError,
    InputError,
    QueryError,
    SchemaError,
    ToolkitError,
)
from toolkit.timegrid import to_us
from toolkit_maintenance import runner
from toolkit_maintenance.job import Report

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
END = NOW.replace(minute=0, second=0, microsecond=0)
START = (NOW - 70 * DAY).replace(hour=0, minute=0, second=0, microsecond=0)
TIMES = [START + timedelta(minutes=20 * n) for n in range(70 * 72)]
STEPS = ("20m", "1h", "2h", "1d", "2d", "1w")
TWIN = replace(METRICS, name="twins")  # the same points, for ever


def filled(store: toolkit.Store, *datasets: str) -> None:
    for dataset in datasets or ("metrics",):
        for number, series in enumerate("AB"):
            values = np.random.default_rng(number).normal(size=len(TIMES)).round(2)
            store.write(dataset, {"ts": TIMES, "value": values}, series=series)
        store.refresh(dataset)


def retained(store: toolkit.Store, **ages: Any) -> Report:
    """Keep metrics for so long, and no longer."""
    store.set_retention("metrics", Retention(**ages))
    return runner.run(store, "retention", ["metrics"])


def answers(store: toolkit.Store, dataset: str = "metrics", start: datetime = START) -> list[Any]:
    found = [
        store.read(dataset, ["A", "B"], start, END, step=step, tz=tz)
        for step in STEPS
        for tz in ("UTC", "Europe/Berlin")
        if start == START or step not in ("1d", "2d", "1w")
    ]
    found.append(store.read(dataset, None, start, END, step="1d", columns=["value_sum"]))
    return [cols.to_pandas() for cols in found]


def same(some: list[Any], others: list[Any]) -> bool:
    """Whether they are equal, sums up to the order they were added in."""
    for one, other in zip(some, others, strict=True):
        assert one.columns.tolist() == other.columns.tolist()
        for name in one.columns:
            left, right = one[name].to_numpy(), other[name].to_numpy()
            if left.dtype.kind == "f":
                np.testing.assert_allclose(left, right, rtol=0, atol=1e-9)
            else:
                assert (left == right).all()
    return True


def mark_of(sql: psycopg.Connection) -> datetime:
    text = "SELECT frozen_before FROM dataset WHERE name = 'metrics'"
    mark: datetime = sql.execute(text).fetchone()[0].astimezone(UTC)
    return mark


def tables(sql: psycopg.Connection, like: str = "metrics_p") -> int:
    text = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND starts_with(relname, %s)"
    count: int = sql.execute(text, [like]).fetchone()[0]
    return count


def test_every_bar_stays_when_its_points_go(
    blocking: toolkit.Store, database: Database, sql: psycopg.Connection
) -> None:
    filled(blocking)
    before, native = answers(blocking), blocking.read("metrics", "A", START, END)
    bars = blocking.latest("metrics", "A", n=60, step="1d").to_pandas()
    streamed = [p.to_pandas() for p in blocking.stream("metrics", "A", START, END, step="1h")]
    with (
        toolkit.connect(database.dsn) as unaware,
        toolkit.connect(cached(database.dsn, max_age=0.0)) as remembers,
    ):
        for other in (unaware, remembers):  # they know of no mark, nor that they should look
            same(before, answers(other))
        report = retained(blocking, rows="30d")
        assert report.status == "done", report
        assert report.counts["marks_moved"] == 1
        mark = mark_of(sql)
        assert NOW - 38 * DAY < mark <= NOW - 30 * DAY
        for other in (unaware, remembers, blocking):
            assert same(before, answers(other))
            left = other.read("metrics", "A", START, END)
            assert left.ts[0] == np.datetime64(mark.replace(tzinfo=None))
            assert len(left) == int((native.ts >= left.ts[0]).sum())
    assert runner.run(blocking, "retention").status == "nothing"
    assert bars.equals(blocking.latest("metrics", "A", n=60, step="1d").to_pandas())
    again = [p.to_pandas() for p in blocking.stream("metrics", "A", START, END, step="1h")]
    assert sum(map(len, again)) == sum(map(len, streamed)) == len(before[2]) // 2
    auto = blocking.read("metrics", "A", START, END, step="auto")
    assert str(auto.plan.grid.step) == "1d"  # type: ignore[union-attr]
    assert len(auto) == 70
    picture = blocking.read("metrics", "A", START, END, points=300)
    assert picture.ts[0] < left.ts[0]
    # late changes after the mark count, as ever; with a refresh and without
    blocking.write("metrics", {"ts": [mark], "value": [1e6]}, series="A")
    for _ in range(2):
        found = blocking.read("metrics", "A", START, END, step="1d", columns=["value_max"])
        assert found["value_max"].max() == 1e6
        assert len(found) == 70
        blocking.refresh("metrics")
    blocking.delete("metrics", "A", mark, mark + timedelta(minutes=20))
    blocking.refresh("metrics")
    later = [f[f.ts < mark.replace(tzinfo=f.ts.dt.tz)] for f in (before[6], answers(blocking)[6])]
    assert len(later[0])
    assert later[0].equals(later[1])


def test_a_read_that_cannot_be_as_before_says_so(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    filled(blocking)
    assert retained(blocking, rows="30d").status == "done"
    for strategy in ("direct", "aggregated"):
        with pytest.raises(QueryError, match=r"before .* may be gone, and only rollups know"):
            blocking.read("metrics", "A", START, END, step="1h", strategy=strategy)
    cut = START + timedelta(minutes=10)
    with pytest.raises(QueryError, match=r"start at .*00:10Z or .*00:15Z"):
        blocking.read("metrics", "A", cut + timedelta(minutes=1), END, step="1h")
    whole = blocking.read("metrics", "A", cut, END, step="1h")  # two 5m buckets fewer
    assert str(whole.plan.rollup.grid.step) == "5m"  # type: ignore[union-attr]
    # what rollups never knew is made of what there is
    mark = np.datetime64(mark_of(sql).replace(tzinfo=None))
    where = blocking.read("metrics", "A", START, END, step="1h", where={"value": (">", -100)})
    assert where.ts[0] == mark
    assert blocking.read("metrics", "A", cut, END).ts[0] == mark


def test_nothing_is_written_before_the_mark(
    blocking: toolkit.Store, database: Database, sql: psycopg.Connection
) -> None:
    filled(blocking)
    with toolkit.connect(database.dsn) as unaware:
        unaware.read("metrics", "A", START, END)
        assert retained(blocking, rows="30d").status == "done"
        mark = mark_of(sql)
        one = {"ts": [mark - DAY], "value": [7.0]}
        for store in (unaware, blocking):
            for write in (store.write, store.backfill):
                with pytest.raises((InputError, DatabaseError), match=r"before .*retention"):
                    write("metrics", one, series="A")
            with pytest.raises(InputError, match="are frozen"):
                store.delete("metrics", "A", START, mark + DAY)
    with pytest.raises(psycopg.Error, match="no partition of metrics is made before"):
        sql.execute("SELECT ensure_partitions('metrics', %s, %s)", [START, START + DAY])
    spans = "SELECT ensure_partitions('metrics', %s, %s)"
    assert sql.execute(spans, [mark - DAY, mark + DAY]).fetchone() == (0,)
    # a partition that is there still, as between the freezing and the dropping
    sql.execute("UPDATE dataset SET frozen_before = frozen_before + interval '1 day'")
    part = sql.execute("SELECT tableoid::regclass::text FROM metrics LIMIT 1").fetchone()[0]
    for text in (
        "INSERT INTO metrics VALUES (1, %s + interval '1 s', 5)",
        f"INSERT INTO {part} VALUES (1, %s + interval '1 s', 5)",
        "UPDATE metrics SET value = 5 WHERE ts = %s",
        "DELETE FROM metrics WHERE ts = %s",
    ):
        with pytest.raises(psycopg.Error, match=r"points of metrics before .* are frozen"):
            sql.execute(text, [mark])
    assert blocking.write("metrics", {"ts": [mark + DAY], "value": [7.0]}, series="A").updated


def test_what_is_not_refreshed_is_not_dropped(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    filled(blocking)
    blocking.write("metrics", {"ts": [START], "value": [9.0]}, series="A")
    count = tables(sql)
    report = retained(blocking, rows="30d")
    assert (report.status, tables(sql)) == ("skipped", count)
    assert "1 changes of before are not in the rollups yet" in report.skipped[0].why
    assert "toolkit refresh metrics" in report.skipped[0].why
    blocking.refresh("metrics")
    before = answers(blocking)
    dry = runner.run(blocking, "retention", is_dry=True)
    assert tables(sql) == count
    assert same(before, answers(blocking))
    assert any("DETACH PARTITION" in s and "CONCURRENTLY" in s for s in dry.planned[1].sql)
    assert dry.planned[1].bytes > 8192
    assert "SHARE UPDATE EXCLUSIVE" in dry.planned[1].lock
    done = runner.run(blocking, "retention")
    assert [a.what for a in dry.planned] == list(done.done)
    assert tables(sql) == count - len(done.done) + 1
    assert same(before, answers(blocking))


class _Killed(BaseException):
    pass


@contextmanager
def killed_at(kind: bytes, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the job's session end before its first statement of a kind."""
    execute = Direct.execute

    def stop(self: Direct, statement: bytes, *args: Any, **options: Any) -> int:
        if statement.startswith(kind) and b"job_run" not in statement:
            self.close()
            raise _Killed
        return execute(self, statement, *args, **options)

    with patch.context() as patched:
        patched.setattr(Direct, "execute", stop)
        yield


def test_killed_at_any_statement_the_next_run_finishes(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(blocking)
    before = answers(blocking)
    blocking.set_retention("metrics", Retention("30d"))
    sql.execute("CREATE TABLE metrics_p20010101 (LIKE metrics)")  # somebody else's
    for kind in (b"LOCK", b"UPDATE", b"COMMENT", b"ALTER", b"INSERT", b"DROP", b"INSERT", b"DROP"):
        with killed_at(kind, monkeypatch), pytest.raises((_Killed, RuntimeError)):
            runner.run(blocking, "retention")
        assert same(before, answers(blocking))
    orphans = "SELECT relname FROM pg_class WHERE relname ~ '_p[0-9]{8}$' AND NOT relispartition"
    orphans += " AND relkind = 'r' ORDER BY 1"
    assert len(sql.execute(orphans).fetchall()) == 2
    assert runner.run(blocking, "retention").status == "done"
    assert runner.run(blocking, "retention").status == "nothing"
    assert sql.execute(orphans).fetchall() == [("metrics_p20010101",)]
    assert same(before, answers(blocking))


def test_beside_it_nobody_waits_and_no_answer_changes(
    database: Database, sql: psycopg.Connection
) -> None:
    with toolkit.connect(database.dsn) as store:
        filled(store)
        before, is_over, slowest, wrong = answers(store), Event(), [0.0], list[Exception]()

        def work(settings: Any, number: int) -> None:
            with toolkit.connect(settings) as mine:
                while not is_over.is_set():
                    began = time.monotonic()
                    try:
                        if number:
                            mine.write("metrics", {"ts": [NOW + DAY], "value": [began]}, series="A")
                        else:
                            step = ("1h", "1d")[int(began * 100) % 2]
                            found = mine.read("metrics", ["A", "B"], START, END, step=step)
                            same([found.to_pandas()], [before[2 if step == "1h" else 6]])
                    except Exception as error:
                        wrong.append(error)
                    slowest[0] = max(slowest[0], time.monotonic() - began)

        kinds = (load_settings(database.dsn), cached(database.dsn), cached(database.dsn))
        threads = [Thread(target=work, args=(k, n)) for n, k in enumerate(kinds[:2])]
        threads += [Thread(target=work, args=(kinds[2], 0))]
        for thread in threads:
            thread.start()
        try:
            report = retained(store, rows="15d")
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        # a writer may be on its way: then the freezing says so, and the next run does it
        assert report.status in ("done", "skipped"), report
        store.refresh("metrics")
        assert runner.run(store, "retention").status in ("done", "nothing")
        assert not wrong, wrong[0]
        assert slowest[0] < store.settings.maintenance.lock_timeout


def test_a_long_transaction_is_named_and_nobody_waits_for_it(
    database: Database, sql: psycopg.Connection
) -> None:
    settings = load_settings(database.dsn)
    brief = replace(settings.maintenance, lock_timeout=0.2, tries=1)
    with (
        toolkit.connect(replace(settings, maintenance=brief)) as store,
        psycopg.connect(database.dsn) as reader,
    ):
        filled(store)
        before = answers(store)
        reader.execute("SELECT count(*) FROM toolkit.metrics")
        report = retained(store, rows="30d")
        assert report.status == "failed"
        assert f"server process {reader.info.backend_pid}" in report.failed[0]
        # the first waits half detached: for who reads and writes it is gone, and nobody waits
        sql.execute("SET lock_timeout = '100ms'")
        store.write("metrics", {"ts": [END], "value": [1.0]}, series="A")
        store.delete("metrics", "A", END, END + DAY)
        assert same(before, answers(store))
        reader.rollback()
        assert runner.run(store, "retention").status == "done"
        assert runner.run(store, "retention").status == "nothing"
        assert same(before, answers(store))
        assert sql.execute("SELECT min(ts) FROM metrics").fetchone()[0] == mark_of(sql)


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
        kept = tmp_path / "archive" / f"{first.name}.parquet"
        kept.write_bytes(b"not ours")
        report = runner.run(store, "retention")
        assert report.status == "failed"
        assert "no export of ours" in report.failed[0]
        assert first.name in {p.name for p in store.partitions("metrics")}
        kept.unlink()
        with killed_at(b"COMMENT", monkeypatch), pytest.raises((_Killed, RuntimeError)):
            runner.run(store, "retention")
        whole = kept.stat()
        done = runner.run(store, "retention")
        assert kept.stat().st_mtime_ns == whole.st_mtime_ns
        assert done.status == "done"
        assert done.counts["points_exported"] == 2 * int(
            (first.span.end - to_us(START)) / 1_200_000_000
        )
        create(database, TWIN)
        for file in sorted((tmp_path / "archive").iterdir()):
            store.write("twins", pd.read_parquet(file))
        mark = mark_of(sql)
        back = store.read("twins", ["A", "B"], START, END).to_pandas()
        old = native[native.ts < mark.replace(tzinfo=native.ts.dt.tz)]
        assert back.reset_index(drop=True).equals(old.reset_index(drop=True))


def test_replicas_answer_as_before(cluster: MakeCluster) -> None:
    servers = cluster(replicas=1)
    with over("blocking", servers) as store:
        filled(store)
        servers.wait_replayed()
        before = answers(store)
        until(lambda: store.read("metrics", "A", START, END).plan.node == "pg2", "it is read from")
        servers.pause_replay("pg2")  # it knows of no mark, and has the points
        assert retained(store, rows="30d").status == "done"
        assert same(before, answers(store))
        old = store.read("metrics", "A", START, END, step="1d", freshness=toolkit.bounded(600))
        assert len(old) == 70
        servers.resume_replay("pg2")
        servers.wait_replayed()
        until(lambda: store.read("metrics", "A", START, END).plan.node == "pg2", "it is back")
        assert same(before, answers(store))
        assert len(store.read("metrics", "A", START, END)) < len(TIMES) - 30 * 72


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
    with pytest.raises(QueryError, match="are gone, too"):  # a day there is of some hours only
        blocking.read("metrics", "A", start, NOW, step="1d", tz="Asia/Kolkata")
    blocking.refresh("metrics")
    assert tables(sql, "metrics_5m_p") == 1


@pytest.mark.parametrize(
    "seed", [0, *[pytest.param(n, marks=pytest.mark.soak) for n in range(1, 20)]]
)
def test_any_history_leaves_the_bars_of_a_twin_that_keeps_all(
    database: Database, seed: int
) -> None:
    random = np.random.default_rng(seed)
    create(database, TWIN)
    with toolkit.connect(cached(database.dsn, max_age=0.0)) as store:
        filled(store, "metrics", "twins")
        ages, oldest = (60, 50, 30, 15) if seed else (50, 20), START
        for age in ages:
            for _ in range(6 if seed else 4):
                move = random.integers(5)
                at = oldest + (END - oldest) * random.random()
                for dataset in ("metrics", "twins"):
                    if move <= 1:
                        few = [at + timedelta(minutes=m) for m in range(0, 400, 50)]
                        store.write(dataset, {"ts": few, "value": np.arange(8.0)}, series="A")
                    elif move == 2:
                        store.delete(dataset, "B", at, at + timedelta(hours=30))
                    elif move == 3:
                        store.refresh(dataset)
                    elif dataset == "metrics":
                        store.compress(dataset, None, oldest, at)
            store.refresh("metrics")
            ages_of = {"rows": f"{age}d", "blocks": f"{age}d"}
            assert retained(store, **ages_of).status in ("done", "nothing")
            with psycopg.connect(database.dsn, options="-c search_path=toolkit") as sql:
                oldest = mark_of(sql)
            assert same(answers(store), answers(store, "twins"))
            assert same(
                [store.read(d, None, oldest, END).to_pandas() for d in ("metrics",)],
                [store.read(d, None, oldest, END).to_pandas() for d in ("twins",)],
            )


def test_an_age_is_checked() -> None:
    with pytest.raises(SchemaError, match=r"retain rows: .*'soon'"):
        Retention(rows="soon")
    with pytest.raises(ToolkitError, match="unknown rollup '7m'"):
        replace(METRICS, retain=Retention("30d", rollups={"7m": "1y"}))
    kept = replace(METRICS, retain=Retention("30d", rollups={"5m": "1y"}))
    assert toolkit.Dataset.from_mapping(kept.to_mapping()) == kept
    assert "retain" not in METRICS.to_mapping()
