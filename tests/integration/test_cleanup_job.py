"""The cleanup job: what has expired goes, what somebody may miss is told of and stays."""

from __future__ import annotations

import psycopg
from fix_servers import Database
from fix_stores import minutes

import toolkit
from toolkit.timegrid import EARLIEST, to_datetime
from toolkit_maintenance import runner
from toolkit_maintenance.doctor import examine
from toolkit_maintenance.job import DONE, NOTHING
from toolkit_maintenance.looked import place_of_gap


def test_cleanup_removes_what_nobody_needs_and_nothing_else(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    blocking.write("metrics", minutes(60), series="a")
    blocking.refresh("metrics")
    assert dict(runner.run(blocking, "cleanup").counts) == {"snapshots_kept": 1}  # once a day
    assert runner.run(blocking, "cleanup").status == NOTHING
    # runs of long ago: the last of each job and its last success stay, however old
    sql.execute(
        "INSERT INTO job_run (job, started_at, status) SELECT 'reindex', "
        "now() - make_interval(days => 300 - n), CASE WHEN n = 3 THEN 'done' ELSE 'failed' END "
        "FROM generate_series(1, 9) AS n"
    )
    # hardly read any more, and read often
    sql.execute(
        "INSERT INTO popularity (series_id, step, reads, at, width, behind) "
        "VALUES (1, '1h', 9, now() - interval '20 days', '1 day', '0'), "
        "(1, '', 900, now() - interval '2 days', '1 day', '0')"
    )
    # what everybody has followed, with nobody left to wait for
    sql.execute(
        "INSERT INTO metrics_log (series_id, lo, hi) VALUES (1, '2024-01-01', '2024-01-01 00:05')"
    )
    blocking.refresh("candles")
    sql.execute("UPDATE rollup SET cursor = pg_current_snapshot()")
    # what was looked at: what is before all partitions, one of them, and one that has gone
    part = blocking.partitions("metrics")[0].span
    gap = place_of_gap(EARLIEST)
    for start in (gap, part.start, part.start - 86_400_000_000):
        sql.execute(
            "INSERT INTO looked_at SELECT 'audit', id, %s FROM dataset WHERE name = 'metrics'",
            [to_datetime(start)],
        )
    # tables that are no partitions: an empty one, and one with points
    for table in ("metrics_p20300101", "metrics_5m_p20310101"):
        sql.execute(f"CREATE TABLE {table} (LIKE metrics)")
    sql.execute("INSERT INTO metrics_5m_p20310101 VALUES (1, '2031-01-01', 1)")

    planned = runner.run(blocking, "cleanup", is_dry=True)
    assert len(planned.planned) == 5
    assert any("DELETE FROM" in statement for act in planned.planned for statement in act.sql)
    report = runner.run(blocking, "cleanup")
    assert report.status == DONE
    expected = {"runs_forgotten": 7, "popularity_forgotten": 1, "tables_dropped": 1}
    expected["looked_forgotten"] = 1
    assert dict(report.counts) == {**expected, "log_rows_removed": 1}
    (warned,) = report.skipped
    assert (warned.what, warned.is_warning) == ("metrics_5m_p20310101", True)
    left = sql.execute("SELECT status FROM job_run WHERE job = 'reindex' ORDER BY id").fetchall()
    assert left == [("done",), ("failed",)]
    assert sql.execute("SELECT to_regclass('metrics_p20300101')").fetchone() == (None,)
    assert runner.run(blocking, "cleanup").status == NOTHING
    blocking.write("metrics", {"ts": ["2030-01-05T00:00Z"], "value": [1.0]}, series="a")


def test_a_slot_that_nobody_reads_is_told_of_and_stays(
    blocking: toolkit.Store, database: Database
) -> None:
    runner.run(blocking, "cleanup")
    name = f"gone_{database.name}"
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_create_physical_replication_slot(%s, true)", [name])
        unused = f"{name}_unused"  # and holds nothing back
        admin.execute("SELECT pg_create_physical_replication_slot(%s)", [unused])
        try:
            report = runner.run(blocking, "cleanup")
            (said,) = [s for s in report.skipped if s.what == f"slot {name}"]
            assert "bytes of WAL back" in said.why
            assert f"pg_drop_replication_slot('{name}')" in said.why
            assert report.status == NOTHING
            # the doctor tells of the same
            seen = examine(blocking, ["slots"])["slots"]
            by_doctor = {f"slot {slot}" for o in seen.objects for slot in o.worst}
            for told in ({s.what for s in report.skipped}, by_doctor):
                assert told & {f"slot {name}", f"slot {unused}"} == {f"slot {name}"}
            query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
            assert admin.execute(query, [name]).fetchone() == (1,)
        finally:
            for slot in (name, unused):
                admin.execute("SELECT pg_drop_replication_slot(%s)", [slot])
