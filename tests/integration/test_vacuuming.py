"""The vacuum job: each need, injected, is found and met, and then there is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from fix_cli import Run
from fix_servers import Database
from fix_stores import minutes
from fix_tending import settled, twice, value, written
from psycopg.conninfo import make_conninfo

import toolkit
from toolkit.errors import UnknownName
from toolkit_maintenance.runner import run as run_job

WEEK = 10_080  # minutes: a partition of metrics
PAST, NEXT = "metrics_p20240101", "metrics_p20240108"


@pytest.fixture
def filled(blocking: toolkit.Store, database: Database, sql: psycopg.Connection) -> toolkit.Store:
    """Two weeks that are past, each a partition; and tables that nobody made with the toolkit."""
    sql.execute("CREATE TABLE kinds (kind text) PARTITION BY LIST (kind)")
    sql.execute("CREATE TABLE kinds_rest PARTITION OF kinds DEFAULT")
    written(database, sql, "metrics", minutes(2 * WEEK))
    return blocking


def heap_fetches(sql: psycopg.Connection, table: str) -> int:
    """How many rows an index-only scan of a table has to look up, because not all may see them."""
    sql.execute("SET enable_seqscan = off")
    scan = f"SELECT ts, value FROM {table} ORDER BY series_id"
    (explained,) = value(sql, f"EXPLAIN (ANALYZE, FORMAT JSON) {scan}")
    assert explained["Plan"]["Node Type"] == "Index Only Scan"
    return int(explained["Plan"]["Heap Fetches"])


def test_a_closed_partition_is_frozen_once_and_again_when_it_was_written(
    filled: toolkit.Store, database: Database, sql: psycopg.Connection
) -> None:
    assert heap_fetches(sql, PAST) == WEEK
    # as autovacuum leaves it: nobody has written since, and what is young it does not freeze
    sql.execute(f"VACUUM (ANALYZE) {PAST}")
    settled(sql)
    report = twice(filled, "vacuum")
    assert not report.skipped
    assert report.counts["tables_frozen"] == 2
    assert {f"vacuum {PAST}", f"vacuum {NEXT}", "analyze metrics"} <= set(report.done)
    assert heap_fetches(sql, PAST) == 0
    assert value(sql, "SELECT reltuples FROM pg_class WHERE relname = 'metrics'") == 2 * WEEK
    # a vacuum by somebody else that did not freeze is not taken for one that did
    sql.execute(f"UPDATE {PAST} SET value = value + 1")
    sql.execute(f"VACUUM {PAST}")
    settled(sql)
    assert f"vacuum {PAST}" in twice(filled, "vacuum").done
    late = {"ts": [datetime(2024, 1, 2, 0, 0, 30, tzinfo=UTC)], "value": [1.0]}
    written(database, sql, "metrics", late)
    done = twice(filled, "vacuum").done
    assert [d for d in done if "metrics_p" in d] == [f"vacuum {PAST}"]


def test_dead_rows_and_lost_marks_are_found_in_an_open_partition(
    blocking: toolkit.Store, database: Database, sql: psycopg.Connection
) -> None:
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    start += timedelta(days=14 - start.weekday())
    written(database, sql, "metrics", minutes(WEEK, start))
    table = f"metrics_p{start:%Y%m%d}"
    report = twice(blocking, "vacuum")
    assert f"vacuum {table}" in report.done
    assert "tables_frozen" not in report.counts
    assert heap_fetches(sql, table) == 0
    # a row of each page, far fewer than autovacuum waits for
    sql.execute(f"UPDATE {table} SET value = 0 WHERE extract(minute FROM ts) = 0")
    settled(sql)
    assert heap_fetches(sql, table) > WEEK / 2
    planned = run_job(blocking, "vacuum", is_dry=True)
    (act,) = (a for a in planned.planned if a.what == f"vacuum {table}")
    assert "pages are not all-visible" in act.why
    assert "dead rows" not in act.why
    twice(blocking, "vacuum")
    assert heap_fetches(sql, table) == 0
    sql.execute(f"DELETE FROM {table} WHERE extract(hour FROM ts) < 8")
    settled(sql)
    (act,) = (a for a in run_job(blocking, "vacuum", is_dry=True).planned if table in a.what)
    assert act.why.startswith("3,360 dead rows, of 2,066; ")
    twice(blocking, "vacuum", table)
    assert value(sql, "SELECT pg_stat_get_dead_tuples(%s::regclass)", table) == 0


def test_old_rows_are_frozen_before_the_server_has_to(
    blocking: toolkit.Store, sql: psycopg.Connection, database: Database
) -> None:
    twice(blocking, "vacuum")
    sql.execute(
        "DO $$ BEGIN FOR i IN 1..700 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
    )
    assert run_job(blocking, "vacuum").status == "nothing"
    options = "-c vacuum_freeze_table_age=600 -c vacuum_multixact_freeze_table_age=600"
    with toolkit.connect(make_conninfo(database.dsn, options=options)) as store:
        planned = run_job(store, "vacuum", is_dry=True).planned
        assert "transactions old, of 600" in planned[0].why
        assert "FREEZE" in planned[0].sql[0]
        report = twice(store, "vacuum")
    oldest = (
        "SELECT max(greatest(age(c.relfrozenxid), age(t.relfrozenxid))) FROM pg_class AS c "
        "LEFT JOIN pg_class AS t ON t.oid = c.reltoastrelid "
        "WHERE c.relnamespace = 'toolkit'::regnamespace AND c.relkind = 'r'"
    )
    assert value(sql, oldest) < 600
    assert report.counts["tables_frozen"] > 5


def test_who_works_on_a_table_is_named_and_passed_over(
    filled: toolkit.Store, sql: psycopg.Connection, database: Database, run: Run
) -> None:
    with psycopg.connect(database.dsn, application_name="somebody") as other:
        other.execute(f"LOCK TABLE toolkit.{PAST} IN SHARE UPDATE EXCLUSIVE MODE")
        report = run_job(filled, "vacuum")
        assert report.status == "done"
        (skip,) = report.skipped
        assert skip.is_busy
        assert (
            f"vacuum {PAST}: passed over: server process {other.info.backend_pid} (somebody)"
            in str(skip)
        )
        assert f"vacuum {NEXT}" in report.done
        said = run("vacuum", PAST, code=4).output
        assert "somebody" in said
    assert run("vacuum", PAST, "--json").exit_code == 0
    assert run_job(filled, "vacuum", [PAST]).status == "nothing"


def test_what_an_old_snapshot_sees_is_not_vacuumed_in_vain_for_ever(
    filled: toolkit.Store, sql: psycopg.Connection, database: Database
) -> None:
    with psycopg.connect(database.dsn, application_name="sleeper") as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1")
        sql.execute(f"UPDATE {PAST} SET value = value + 1")
        settled(sql)
        assert f"vacuum {PAST}" in run_job(filled, "vacuum").done
        again = run_job(filled, "vacuum")
        assert again.status == "nothing"
        assert f"vacuum {PAST}" in {s.what for s in again.skipped}
        for skip in again.skipped:
            assert "an old snapshot still sees them" in skip.why
            assert "sleeper" in skip.why


def test_who_lacks_the_right_is_told_and_nothing_is_called_well(
    filled: toolkit.Store, stranger: tuple[str, str]
) -> None:
    role, dsn = stranger
    with toolkit.connect(dsn) as store:
        report = run_job(store, "vacuum")
    assert report.status == "skipped", report
    assert not report.done
    assert any("metrics (3 of its tables)" in s.what for s in report.skipped), report
    assert all(f"the role {role} may not" in s.why for s in report.skipped)


def test_what_is_named_is_looked_at_and_done_if_needed_or_forced(
    filled: toolkit.Store, run: Run
) -> None:
    with pytest.raises(UnknownName, match=f"did you mean .*'{PAST}'"):
        run_job(filled, "vacuum", ["metrics_p2024010"])
    assert "'metric'" in run("vacuum", "metric", code=2).output
    said = run("vacuum", "--dry-run", f"toolkit.{PAST}").output
    assert "VACUUM (TRUNCATE OFF, PARALLEL 0, FREEZE, INDEX_CLEANUP ON, ANALYZE)" in said
    assert "SHARE UPDATE EXCLUSIVE" in said
    report = json.loads(run("vacuum", "metrics", "--json").output)
    assert report["status"] == "done"
    assert report["counts"]["tables_frozen"] == 2
    assert "nothing" in run("vacuum", "metrics").output
    forced = json.loads(run("vacuum", PAST, "--force", "--json").output)
    assert forced["done"] == [f"vacuum {PAST}"]
    assert "--force" in run("vacuum", "--force", code=2).output
    assert "--max-runtime" in run("vacuum", "--max-runtime", "soon", code=2).output


def test_what_is_not_counted_is_not_called_well(
    blocking: toolkit.Store, database: Database
) -> None:
    twice(blocking, "vacuum")
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {database.name} SET track_counts = off".encode())
    report = run_job(blocking, "vacuum")
    assert (report.status, report.done) == ("skipped", ())
    assert "track_counts is off" in report.skipped[0].why
