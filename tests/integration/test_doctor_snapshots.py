"""Snapshots that the doctor compares with: one a day, and few of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
from fix_servers import Database

import toolkit
from toolkit.drivers.direct import Direct
from toolkit_maintenance.doctor import examine, snapshots
from toolkit_maintenance.ground import Ground


def test_a_job_keeps_a_snapshot_a_day(
    database: Database, blocking: toolkit.Store, sql: psycopg.Connection[Any]
) -> None:
    settings = blocking.settings
    with Direct(database.dsn, settings.pool) as direct:
        ground = Ground(blocking, direct, datetime.now(UTC), settings.maintenance)
        (act,) = snapshots(ground)
        assert "INSERT INTO" in act.sql[1]  # after its BEGIN
        assert act.do() == {"snapshots_kept": 1}
        assert list(snapshots(ground)) == []
        sql.execute("UPDATE doctor_snapshot SET taken_at = taken_at - interval '25 hours'")
        assert len(list(snapshots(ground))) == 1


def test_snapshots_stay_few(blocking: toolkit.Store, sql: psycopg.Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO doctor_snapshot (taken_at, statements, indexes) SELECT clock_timestamp() "
        "- n * interval '1 hour', '{}', '{}' FROM generate_series(1000, 1, -1) AS n"
    )
    examine(blocking, ["lag"], keeps_snapshot=True)
    kept = sql.execute(
        # in hours: of days this session's own zone has longer ones
        f"SELECT count(*), min(taken_at) < now() - interval '{29 * 24} hours' FROM doctor_snapshot"
    )
    assert kept.fetchone() in [(n, True) for n in range(50, 56)]
