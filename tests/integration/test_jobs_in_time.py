"""Runs of jobs and their time: who comes first, and what is left when it is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from fix_catalog import rows
from fix_jobs import AGO, Register, job, settings
from fix_servers import Database

import toolkit
from toolkit.config import load_settings
from toolkit.errors import QueryTimeout
from toolkit.options import MaintenanceOptions
from toolkit_maintenance import jobs, maintain, run
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Job
from toolkit_maintenance.runner import _session


def test_who_has_missed_the_most_turns_is_first_and_none_starves(
    database: Database, register: Register
) -> None:
    def spend(ground: Ground) -> None:
        time.sleep(max(ground.left or 0, 0))

    def ran(job: str, ago: str, lasted: str = "0 s") -> None:
        rows(
            database.dsn,
            "UPDATE toolkit.job_run SET started_at = now() - %s::interval - %s::interval, "
            "ended_at = now() - %s::interval WHERE job = %s",
            *(ago, lasted, ago, job),
        )

    names = ("refresh", "partitions", "verify", "warm", "cleanup")
    register(*(job(name, *[spend] * (name == "verify"), "SELECT 1") for name in names))
    options = MaintenanceOptions(refresh="1m", partitions="1h", verify="30d", warm="10m")
    with toolkit.connect(replace(load_settings(database.dsn), maintenance=options)) as store:

        def due() -> list[str]:
            return [r.job for r in maintain(store, is_dry=True)]

        # nobody ran: in their order; the last ones find no time
        assert due() == ["partitions", "refresh", "verify", "warm", "cleanup"]
        reports = maintain(store, max_runtime=1.5)
        assert [r.status for r in reports] == ["done", "done", "cut", "cut", "cut"]
        # a verify that was cut has had its turn; who had none comes first
        assert due() == ["warm", "cleanup", "verify"]
        maintain(store, ["warm", "cleanup"])
        ran("verify", "5 s", "10 minutes")
        ran("refresh", "10 minutes")
        ran("warm", "15 minutes")
        assert due() == ["refresh", "verify", "warm"]
        ran("warm", "25 minutes")
        ran("cleanup", "3 days")
        assert due() == ["refresh", "cleanup", "warm", "verify"]
        ran("refresh", "1 minute")
        ran("partitions", "1 hour")
        assert due() == ["partitions", "cleanup", "warm", "refresh", "verify"]


def test_a_statement_after_the_end_of_the_time_has_a_second(
    database: Database, register: Register
) -> None:
    def late(ground: Ground) -> None:
        time.sleep(min(max(ground.left or 0, 0), 1))
        timeouts.append(ground.timeout)
        ground.direct.execute(b"SELECT pg_sleep(0.01)", timeout=ground.timeout)

    timeouts: list[float] = []
    register(job("vacuum", late, "SELECT 1"))
    with toolkit.connect(database.dsn) as store:
        assert run(store, "vacuum", max_runtime=0.5).status == "cut"
        assert run(store, "vacuum", max_runtime=1e9).status == "done"
    assert timeouts == [1.0, 86_400.0]
    with _session(store) as direct:
        for left in (0, -1.5, 0.0001):  # 0 would be any time, and less than that an error
            with pytest.raises(QueryTimeout):
                direct.fetch(b"SELECT pg_sleep(5)", timeout=left)


def test_time_that_is_over_cuts_and_the_next_run_goes_on(
    database: Database, register: Register
) -> None:
    rows(database.dsn, "CREATE TABLE toolkit.left AS SELECT generate_series(1, 6) AS n")

    def plan(ground: Ground) -> Iterator[Act]:
        while found := ground.direct.fetch(b"SELECT n FROM toolkit.left ORDER BY n LIMIT 1"):
            (number,) = found[0]

            def do(number: int = number) -> dict[str, int]:
                ground.direct.execute(b"SELECT pg_sleep(0.1)")
                ground.direct.execute(b"DELETE FROM toolkit.left WHERE n = %(n)s", {"n": number})
                return {"done": 1}

            yield Act(f"number {number}", (), "none", do)

    def long(ground: Ground) -> None:
        ground.ddl("long", [b"SELECT pg_sleep(30)"], together=False)

    register(Job("vacuum", "in pieces", plan), job("reindex", long), job("refresh", "SELECT 1"))
    with toolkit.connect(database.dsn) as store:
        report = run(store, "vacuum", max_runtime=0.25)
        assert (report.status, report.counts) == ("cut", {"done": 3})
        assert run(store, "vacuum").counts == {"done": 3}
        # the time is for all together; what had none left is due the next time
        reports = maintain(store, max_runtime=0.7)
        assert [(r.job, r.status) for r in reports] == [("reindex", "cut"), ("refresh", "cut")]
        assert reports[0].seconds < 2.2  # a statement is cut, too, a second at the least
        assert [r.job for r in maintain(store, is_dry=True)] == ["refresh", "reindex"]


def test_ddl_near_the_end_of_the_time_tries_less_often(
    database: Database, register: Register
) -> None:
    def lock(ground: Ground) -> None:
        ground.ddl("lock it", [b"LOCK TABLE toolkit.candles"])

    register(job("vacuum", lock))
    with psycopg.connect(database.dsn) as other:
        other.execute("LOCK TABLE toolkit.candles")
        with toolkit.connect(settings(database.dsn, lock_timeout=0.1, tries=50)) as store:
            report = run(store, "vacuum", max_runtime=1.5)
    assert report.status == "failed"
    assert "act 1: lock it: its lock was not free in 1 try" in report.failed[0]


def test_due_once_however_many_turns_were_missed(database: Database, register: Register) -> None:
    register(job("vacuum", "SELECT 1"), job("reindex", "SELECT 1"), job("refresh", "SELECT 1"))
    with toolkit.connect(settings(database.dsn, reindex="", refresh="1m")) as store:
        assert [r.job for r in maintain(store)] == ["vacuum", "refresh"]
        assert maintain(store) == []
        rows(database.dsn, AGO, "50 days")
        assert [r.job for r in maintain(store)] == ["vacuum", "refresh"]
        assert maintain(store) == []
        # cron's minute is not always sixty seconds long
        rows(database.dsn, AGO, "55 seconds")
        assert [r.job for r in maintain(store)] == ["refresh"]
        assert [r.job for r in maintain(store, ["reindex", "vacuum"], always=True)] == [
            "reindex",
            "vacuum",
        ]
        never = {s.job: s for s in jobs(store)}["reindex"]
        assert (never.every, never.next_at) == ("", None)
