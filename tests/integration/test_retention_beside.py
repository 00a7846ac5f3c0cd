"""The retention job beside other jobs and writers that are in its way, or it in theirs."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import psycopg
import pytest
from fix_retention import (
    DAY,
    END,
    NOW,
    START,
    answers,
    filled,
    mark_of,
    retained,
    same,
)
from fix_servers import Database
from fix_stores import cached

import toolkit
from toolkit import Retention, verifier
from toolkit.config import load_settings
from toolkit.drivers.direct import Direct
from toolkit.errors import (
    Busy,
)
from toolkit.opening import primary_of
from toolkit_maintenance import compress, retention, runner
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Skip


@pytest.mark.parametrize("job", ["recompress", "verify"])
def test_who_works_on_what_it_drops_passes_it_over(
    blocking: toolkit.Store, sql: psycopg.Connection, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(blocking)
    blocking.compress("metrics", None, START, START + 21 * DAY)
    late = [START + timedelta(days=n, minutes=1) for n in range(7)]
    blocking.write("metrics", {"ts": late, "value": [1.0] * 7}, series="A")
    dropped: list[str] = []

    def drop(said: str) -> None:
        if " of " in said and not dropped:
            dropped.append(blocking.partitions("metrics")[0].name)
            for table in (dropped[0], dropped[0].replace("metrics_p", "metrics_blocks_p")):
                sql.execute(f"DROP TABLE {table}".encode())

    def late_look(ground: Ground, *args: Any, **how: Any) -> Any:
        if not dropped and job == "recompress":  # between its list of partitions and its look
            drop(" of ")
            ground.direct.fetch(f"SELECT FROM toolkit.{dropped[0]}".encode())
        return looked(ground, *args, **how)

    looked = compress._report
    monkeypatch.setattr(compress, "_report", late_look)
    report = runner.run(blocking, job, ["metrics"], say=drop)
    assert dropped
    assert report.status in ("done", "skipped", "nothing"), report
    assert not report.failed


def test_what_is_not_frozen_for_its_lock_is_not_said_to_be_written(database: Database) -> None:
    settings = load_settings(database.dsn)
    brief = replace(settings.maintenance, lock_timeout=0.2, tries=1)
    with (
        toolkit.connect(replace(settings, maintenance=brief)) as store,
        psycopg.connect(database.dsn) as writer,
    ):
        filled(store)
        writer.execute("LOCK TABLE toolkit.metrics IN ROW EXCLUSIVE MODE")
        report = retained(store, rows="30d")
        assert report.status == "failed"
        assert f"server process {writer.info.backend_pid}" in report.failed[0]
        assert len(report.failed) > 1
        assert all("what was to freeze it did not get to" in said for said in report.failed[1:])


def test_blocks_that_go_while_they_are_verified_are_no_damage(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "_AT_ONCE", 1)
    filled(blocking)
    blocking.compress("metrics", None, START, START + 28 * DAY)
    tables = [p.name.replace("_p", "_blocks_p") for p in blocking.partitions("metrics") if p.blocks]
    first, second, third, *_ = tables

    def drop(*names: str) -> None:  # the partitions of rows stay
        for name in names:
            sql.execute(f"DROP TABLE IF EXISTS {name}".encode())

    report = blocking.verify("metrics", on_progress=lambda *_: drop(first, second))
    assert (report.damaged, report.blocks) == ((), 1 + 2 * (len(tables) - 2))

    said: list[str] = []

    def say(text: str) -> None:
        if " blocks" in text:
            said.append(text)
            drop(third)

    by_job = runner.run(blocking, "verify", ["metrics"], say=say)
    assert (by_job.status, by_job.failed) == ("done", ())
    assert 0 < by_job.counts["blocks_read"] <= 2 * (len(tables) - 2) - 1


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
        (failed,) = report.failed  # the others are not tried in vain, and say so
        assert f"server process {reader.info.backend_pid}" in failed
        assert len(report.skipped) > 3
        for skip in report.skipped:
            assert skip.is_busy
            assert "has to be detached from metrics first; the next run goes on" in skip.why
        # the first waits half detached: for who reads and writes it is gone, and nobody waits
        sql.execute("SET lock_timeout = '100ms'")
        store.write("metrics", {"ts": [END], "value": [1.0]}, series="A")
        store.delete("metrics", "A", END, END + DAY)
        assert same(before, answers(store))
        again = runner.run(store, "retention")
        assert [len(again.failed), len(again.skipped)] == [1, len(report.skipped)]
        assert "finish the detaching" in again.failed[0]
        assert same(before, answers(store))
        reader.rollback()
        assert runner.run(store, "retention").status == "done"
        assert runner.run(store, "retention").status == "nothing"
        assert same(before, answers(store))
        assert sql.execute("SELECT min(ts) FROM metrics").fetchone()[0] == mark_of(sql)


def test_what_is_written_between_the_plan_and_the_freezing_stays(
    database: Database, sql: psycopg.Connection
) -> None:
    settings = load_settings(database.dsn)
    with (
        toolkit.connect(database.dsn) as store,
        Direct(primary_of(settings), settings.pool) as direct,
    ):
        filled(store)
        store.compress("metrics", None, START, NOW - 40 * DAY)
        early = START - 20 * DAY
        sql.execute("SELECT ensure_partitions('metrics', %s, %s)", [early, early + DAY])
        store.set_retention("metrics", Retention(blocks="40d"))
        plan = retention.plan(Ground(store, direct, NOW, settings.maintenance))
        freeze = next(plan)
        assert isinstance(freeze, Act)
        store.write("metrics", {"ts": [early], "value": [1.0]}, series="A")
        with pytest.raises(Busy, match="not in the rollups yet"):
            freeze.do()  # what came since was not in the plan's look
        store.refresh("metrics")
        freeze.do()
        drop = next(plan)
        assert isinstance(drop, Act)
        assert drop.why == "holds no points"
        assert isinstance(drop.do(), Skip)
        assert store.read("metrics", "A", early, early + DAY)["value"].tolist() == [1.0]
        assert runner.run(store, "retention").status == "done"
        assert len(store.read("metrics", "A", early, early + DAY)) == 1
        assert len(store.read("metrics", "A", START, mark_of(sql))) == 0


def test_writers_do_not_wait_for_a_look_at_the_whole_log(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    filled(blocking)
    sql.execute("ANALYZE metrics_log")
    blocking.set_retention("metrics", Retention("30d"))
    lock, freeze = runner.run(blocking, "retention", is_dry=True).planned[0].sql
    assert lock.rstrip().endswith("IN SHARE MODE")
    found = "\n".join(row[0] for row in sql.execute(f"EXPLAIN {freeze}"))
    assert "metrics_log_xid" in found
    assert "Seq Scan on metrics_log" not in found
