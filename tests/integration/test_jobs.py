"""Runs of jobs: alone, in their time, recorded; what fails stops nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from fix_catalog import rows, value
from fix_jobs import AGO, RUNS, Register, job, settings
from fix_pgbouncer import MakePgBouncer
from fix_replicas import MakeCluster
from fix_servers import ON_ONE_VERSION, PROJECT, Database

import toolkit
import toolkit_maintenance
from toolkit.errors import ConfigError, ToolkitError, UnknownName
from toolkit.options import MaintenanceOptions
from toolkit_maintenance import jobs, maintain, partitions, run
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Job, Skip
from toolkit_maintenance.registry import JOBS
from toolkit_maintenance.runner import _session
from toolkit_maintenance.tables import alone_on


def test_a_run_is_recorded_with_what_it_did_and_what_it_could_not(
    database: Database, register: Register
) -> None:
    gap = Skip("candles", "no partition from x to y", is_warning=True)
    register(job("vacuum", "SELECT 1", gap, "SELECT 2"), job("refresh"))
    with toolkit.connect(database.dsn) as store:
        report = run(store, "vacuum")
        assert (report.status, report.counts) == ("done", {"acts": 2})
        assert report.done == ("act 1", "act 3")
        assert report.skipped == (gap,)
        assert run(store, "refresh", ["candles"]).status == "nothing"
        found = {state.job: state for state in jobs(store)}
    assert rows(database.dsn, RUNS) == [
        ("vacuum", "done", {"acts": 2}, ["candles: no partition from x to y"], []),
        ("refresh", "nothing", {}, [], ["candles"]),
    ]
    state = found["vacuum"]
    assert (state.status, state.failures, state.every) == ("done", 0, "10m")
    assert state.started_at == state.success_at
    assert state.next_at == state.started_at + timedelta(minutes=10)
    assert 0 <= state.seconds < 5
    # what was done for something that was named is not the job's turn
    assert found["refresh"].started_at is None
    assert found["refresh"].next_at is not None


def test_a_dry_run_shows_acts_changes_nothing_and_runs_beside_the_job(
    database: Database, register: Register
) -> None:
    register(job("vacuum", "SELECT 1", Skip("x", "too young")))

    def sneaky(ground: Ground) -> Iterator[Act]:
        yield Act("x", ("SELECT 1",), "none", dict)
        ground.direct.execute(b"CREATE TABLE toolkit.sneaky ()")

    with toolkit.connect(database.dsn) as store, _session(store) as other:
        with other.alone("job toolkit vacuum"):
            report = run(store, "vacuum", is_dry=True)
        assert report.status == "skipped"
        (act,) = report.planned
        assert (act.what, act.sql, act.bytes) == ("act 1", ("SELECT 1",), 8192)
        assert report.to_mapping()["planned"] == [
            {
                "what": "act 1",
                "why": "so it is",
                "sql": ["SELECT 1"],
                "lock": "none",
                "bytes": 8192,
            }
        ]
        register(Job("vacuum", "writes while it plans", sneaky))
        report = run(store, "vacuum", is_dry=True)
        assert report.status == "failed"
        assert "read-only" in report.failed[0]
    assert rows(database.dsn, RUNS) == []


def test_two_at_once_are_one_too_many_and_the_holder_is_named(
    database: Database, register: Register
) -> None:
    register(job("vacuum", "SELECT 1"), job("refresh", "SELECT 1"))
    with toolkit.connect(database.dsn) as store, _session(store) as other:
        with other.alone("job toolkit vacuum"):
            report = run(store, "vacuum")
            assert report.status == "busy"
            assert f"runs already: server process {other.pid}" in report.skipped[0].why
            assert [r.status for r in maintain(store)] == ["busy", "done"]
        assert [r.job for r in maintain(store)] == ["vacuum"]


def test_many_at_once_do_everything_once(database: Database, register: Register) -> None:
    meeting = threading.Barrier(4, timeout=30)

    def look(ground: Ground) -> None:
        ground.direct.execute(b"INSERT INTO toolkit.looks VALUES (1)")

    def maintained(number: int) -> list[str]:
        with toolkit.connect(database.dsn) as store:
            meeting.wait()
            return [r.status for r in maintain(store)]

    rows(database.dsn, "CREATE TABLE toolkit.looks (n integer)")
    register(partitions.JOB, job("verify", look))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(maintained, range(4)))
    assert {status for statuses in found for status in statuses} <= {"done", "busy"}
    # who was told that verify is due, and came when it had been done, did not do it again
    assert value(database.dsn, "SELECT count(*) FROM toolkit.looks") == 1
    assert len(rows(database.dsn, RUNS)) == 2


def test_what_fails_stops_neither_another_act_nor_another_job(
    database: Database, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    def full(ground: Ground) -> None:
        raise OSError(28, "No space left on device", "/exports/x.parquet")

    def bug(ground: Ground) -> None:
        raise ZeroDivisionError("odd")

    def ended(ground: Ground) -> None:
        with psycopg.connect(database.dsn) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [ground.direct.pid])
        ground.direct.fetch(b"SELECT 1")

    def halfway(ground: Ground) -> Iterator[Act]:
        yield Act("x", ("SELECT 1",), "none", lambda: {"acts": 1})
        ground.direct.fetch(b"SELECT 1 / 0")

    register(
        job("retention", "SELECT 1/0", full, "SELECT 3"),
        Job("compress", "fails while it plans", halfway),
        job("reindex", "SELECT 1", bug),
        job("vacuum", "SELECT 1", ended),
        job("refresh", "SELECT 1"),
    )
    with toolkit.connect(database.dsn) as store:
        reports = {r.job: r for r in maintain(store)}
        assert reports["retention"].status == "failed"
        assert reports["retention"].done == ("act 3",)
        assert [text.partition(":")[0] for text in reports["retention"].failed] == [
            "act 1",
            "act 2",
        ]
        assert "division by zero" in reports["retention"].failed[0]
        assert "x.parquet" in reports["retention"].failed[1]
        assert reports["compress"].done == ("x",)
        assert reports["compress"].failed[0].startswith("division by zero")
        assert reports["retention"].failed[0].startswith("act 1: division by zero")
        assert any(r.getMessage().startswith("compress: division") for r in caplog.records)
        assert reports["reindex"].failed[0].startswith("ended by ZeroDivisionError: odd, which sh")
        assert "connection lost" in reports["vacuum"].failed[0]
        assert reports["refresh"].status == "done"
        assert "ZeroDivisionError" in caplog.text  # with its traceback: it is a bug
        found = {s.job: s for s in jobs(store)}
        # whose session was ended could not say so itself
        assert [found[j].status for j in reports] == [
            "failed",
            "failed",
            "failed",
            "killed",
            "done",
        ]
        assert found["reindex"].counts == {"acts": 1}
        assert [s.failures for s in found.values()] == [1, 1, 1, 0, 0]
        # what failed is due again in a minute, what was killed at once
        assert [r.job for r in maintain(store, is_dry=True)] == ["vacuum"]
        rows(database.dsn, AGO, "61 seconds")
        assert "reindex" in [r.job for r in maintain(store, is_dry=True)]


def test_where_no_session_is_to_be_had_what_was_done_is_told(
    database: Database, register: Register
) -> None:
    connections = "ALTER DATABASE {} ALLOW_CONNECTIONS {}"
    name = value(database.dsn, "SELECT current_database()")

    def shut(is_open: bool) -> None:
        with psycopg.connect(database.admin_dsn, dbname="postgres", autocommit=True) as server:
            server.execute(connections.format(name, is_open))

    register(
        job("partitions", "SELECT 1"),
        job("refresh", lambda ground: shut(False)),
        job("vacuum", "SELECT 1"),
        job("cleanup", "SELECT 1"),
    )
    with toolkit.connect(database.dsn) as store:
        try:
            reports = maintain(store)
            with pytest.raises(ToolkitError):  # nothing was done that could be told
                maintain(store, ["vacuum"], always=True)
        finally:
            shut(True)
        assert [(r.job, r.status) for r in reports] == [
            ("partitions", "done"),
            ("refresh", "done"),
            ("vacuum", "failed"),
        ]
        assert "not currently accepting connections" in reports[2].failed[0]
        assert [r.job for r in maintain(store)] == ["vacuum", "cleanup"]


def test_what_failed_is_not_tried_again_in_the_same_run(
    database: Database, register: Register
) -> None:
    rows(database.dsn, "CREATE TABLE toolkit.left AS SELECT generate_series(-1, 3) AS n")
    tried: list[int] = []

    def plan(ground: Ground) -> Iterator[Act]:
        # as one that looks at the server for what is still to be done
        while found := ground.direct.fetch(b"SELECT n FROM toolkit.left ORDER BY n LIMIT 3"):
            for (number,) in found:

                def do(number: int = number) -> dict[str, int]:
                    tried.append(number)
                    statement = b"DELETE FROM toolkit.left WHERE n = %(n)s AND sqrt(n - 1) >= 0"
                    return {"acts": ground.direct.execute(statement, {"n": number})}

                yield Act(f"number {number}", (), "none", do)

    register(Job("vacuum", "never ends", plan))
    with toolkit.connect(database.dsn) as store:
        report = run(store, "vacuum")
    assert tried == [-1, 0, 1, 2, 3]  # two fail each time, and keep none of the others back
    assert (report.status, len(report.failed)) == ("failed", 2)
    assert report.done == ("number 1", "number 2", "number 3")


def test_bad_names_are_said_at_once(database: Database, register: Register) -> None:
    def plan(ground: Ground) -> Iterator[Act]:
        yield from (Act(d.name, (), "none", dict) for d in ground.datasets())

    register(Job("vacuum", "looks at datasets", plan))
    with toolkit.connect(database.dsn) as store:
        with pytest.raises(UnknownName, match="unknown job 'vacum': did you mean 'vacuum'"):
            run(store, "vacum")
        with pytest.raises(UnknownName, match="unknown dataset 'candels'"):
            run(store, "vacuum", ["candels"])
        assert run(store, "vacuum", ["candles"]).done == ("candles",)


def test_a_missing_right_is_skipped_and_never_well(database: Database, register: Register) -> None:
    register(job("vacuum", "CREATE ROLE nobody_may", "SELECT 1"))
    with toolkit.connect(database.dsn) as store:
        report = run(store, "vacuum")
        assert (report.status, report.done, report.is_success) == ("skipped", ("act 2",), False)
        assert report.skipped[0].what == "act 1"
        assert "lacks a privilege" in report.skipped[0].why
        assert "toolkit check --grants" in report.skipped[0].why


def test_what_an_act_is_called_is_said_once(database: Database, register: Register) -> None:
    passed = []
    oid = value(database.dsn, "SELECT 'toolkit.series'::regclass::oid::int")

    def lock(ground: Ground) -> None:
        ground.ddl("act 1", [b"LOCK TABLE toolkit.candles"])

    def index(ground: Ground) -> None:
        build = [b"CREATE INDEX CONCURRENTLY ON toolkit.series (labels)"]
        passed.append(alone_on(ground, oid, "act 2", build, {}, waits=0.1))

    register(job("vacuum", lock, index))
    with psycopg.connect(database.dsn) as other:
        other.execute("LOCK TABLE toolkit.candles, toolkit.series IN ROW EXCLUSIVE MODE")
        with toolkit.connect(settings(database.dsn, lock_timeout=0.1, tries=1)) as store:
            report = run(store, "vacuum")
    assert report.failed[0].startswith("act 1: its lock was not free in 1 try")
    assert str(passed[0]).startswith("act 2: passed over: its lock was not free in 1 try")


@ON_ONE_VERSION
def test_a_pooler_is_gone_around(
    pgbouncer: MakePgBouncer, database: Database, tmp_path: Path
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version="1.24")
    config = tmp_path / "toolkit.toml"
    address = f'dsn = "{bouncer.dsn}", direct = "{database.dsn}"'
    config.write_text(f'[[shards]]\nname = "main"\nprimary = {{ {address} }}\n')
    with toolkit.connect(config) as store:
        assert run(store, "partitions").status == "done"
    with toolkit.connect(bouncer.dsn) as store, pytest.raises(ConfigError, match="as direct"):
        run(store, "partitions")


def test_every_job_has_a_setting_and_a_section() -> None:
    page = (PROJECT / "docs" / "maintenance.md").read_text("utf-8")
    for name in JOBS:
        assert hasattr(MaintenanceOptions(), name)
        assert f"\n## {name}\n" in page


@ON_ONE_VERSION
def test_on_a_standby_jobs_are_skipped(cluster: MakeCluster) -> None:
    servers = cluster(replicas=1)
    with toolkit.connect(servers.dsn("pg2")) as store:
        report = run(store, "partitions")
        assert (report.status, report.is_success) == ("skipped", False)
        assert "is a standby" in report.skipped[0].why
        assert {r.status for r in maintain(store)} == {"skipped"}
        assert jobs(store)[0].started_at is None
        servers.promote("pg2")
        assert run(store, "partitions").status == "done"


def test_what_is_public_is_there_and_comes_when_asked_for() -> None:
    code = (
        "import sys, toolkit_maintenance as m; assert 'psycopg' not in sys.modules\n"
        "print(all(hasattr(m, name) for name in m.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    with pytest.raises(AttributeError, match="nosuch"):
        _ = toolkit_maintenance.nosuch
