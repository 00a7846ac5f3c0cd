"""Runs of jobs and their time: who comes first, and what is left when it is over."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from fix_catalog import rows
from fix_jobs import Register, job
from fix_servers import Database

import toolkit
from toolkit.config import load_settings
from toolkit.errors import QueryTimeout
from toolkit.options import MaintenanceOptions
from toolkit_maintenance import maintain, run
from toolkit_maintenance.ground import Ground
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
