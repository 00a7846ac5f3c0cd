"""The doctor: a fault of each kind is found, and mended by its SQL; nothing where all is well."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_doctor import bad, mend
from fix_servers import Database
from fix_stores import create, minutes

import toolkit
from toolkit.dataset import METRICS
from toolkit_maintenance.doctor import Examination, Finding, Thresholds, examine
from toolkit_maintenance.registry import JOBS
from toolkit_maintenance.runner import maintain
from toolkit_maintenance.runner import run as run_job

TWO_MONTHS = {"ts": ["2024-01-01Z", "2024-02-01Z"], "close": [1.0, 2.0]}
OBJECTS = ("index-*", "bloat", "hit-rate", "partitions-*", "never-*", "settings-autovacuum")
REST = ("long-*", "blockers", "xmin-*", "wraparound", "connections", "slots", "lag", "checkpoints")


def counted(connection: psycopg.Connection[Any]) -> None:
    """Let the server count at once what a session has done."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT 1")


def test_nothing_is_found_on_a_clean_database(
    database: Database, blocking: toolkit.Store, sql: psycopg.Connection[Any]
) -> None:
    # as it is made: settings, too; but for the checkpoints, which are of all tests so far
    assert bad(examine(blocking)).keys() <= {"checkpoints"}
    assert "as toolkit up has it" in examine(blocking)["settings-checkpoint_timeout"].reason
    run_job(blocking, "partitions")
    blocking.write("metrics", minutes(20_000), series="cpu")
    blocking.refresh("metrics")
    sql.execute("VACUUM (ANALYZE)")
    asked = [c for c in (*OBJECTS, *REST) if c != "checkpoints"]  # those of all tests so far
    with toolkit.connect(database.admin_dsn) as store:
        for seen in (examine(blocking, asked), examine(store, asked)):
            assert bad(seen) == {}
            assert len({f.id for f in seen.findings}) == len(seen.findings)
            for finding in seen.findings:
                assert finding.status == "ok" or (finding.status == "unknown" and finding.reason)
        # who may see all knows more
        assert {f.id for f in seen.findings if f.status == "unknown"} <= {"hit-rate"}


# -- indexes ------------------------------------------------------------------------------------


def test_odd_indexes_are_found_and_their_sql_mends_them(
    blocking: toolkit.Store, sql: psycopg.Connection[Any]
) -> None:
    blocking.write(
        "candles", {"ts": ["2024-01-01Z", "2024-02-01Z"], "close": [1.0, 2.0]}, series="A"
    )
    for statement in (
        "CREATE INDEX again ON series (dataset_id, name)",
        "CREATE INDEX begins ON job_run (job)",
        "CREATE INDEX middle ON job_run (job, started_at, status)",
        "CREATE INDEX candles_middle ON candles (series_id, ts, close)",
        "CREATE INDEX candles_whole ON ONLY candles (close)",
        "CREATE TABLE note (id bigint PRIMARY KEY, series_id integer REFERENCES series, t text)",
        "INSERT INTO note VALUES (1, NULL, 'a'), (2, NULL, 'a')",
        "CREATE TABLE parted (series_id integer REFERENCES series) PARTITION BY LIST (series_id)",
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1)",
        "CREATE INDEX note_hash ON note USING hash (t)",  # never overlaps a btree
        "CREATE INDEX note_t ON note (t) WHERE id > 1",  # nor does what is partial
        "CREATE INDEX note_ti ON note (t, id)",
    ):
        sql.execute(statement)
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON note (t)")
    seen = examine(blocking, ["index-*"], limits=Thresholds(unindexed_bytes=0))
    found = {f.id: {t for o in f.objects for t in o.worst} for f in seen.findings if f.is_bad}
    assert found == {
        "index-duplicate": {"again"},
        "index-overlapping": {"begins"},
        "index-time-in-middle": {"middle", "candles_middle"},
        "index-invalid": {"broken", "candles_whole"},
        "index-missing": {"note", "parted"},
    }
    assert len(seen["index-invalid"].fix) == 1 + 2 * 2  # a part for each of two partitions
    assert [o.name for o in seen["index-time-in-middle"].objects] == ["candles", "job_run"]
    assert len(seen["index-time-in-middle"].fix) == 2 + (1 + 2 * 2 + 1)
    made = seen["index-missing"].fix
    assert len(made) == 1 + 3
    assert all(re.search(" CONCURRENTLY | ON ONLY | ATTACH ", fix) for fix in made)
    for finding in bad(seen).values():
        mend(sql, finding)
    assert bad(examine(blocking, ["index-*"], limits=Thresholds(unindexed_bytes=0))) == {}
    valid = sql.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'candles_whole'::regclass"
    )
    assert valid.fetchone() == (True,)


def test_an_index_that_may_be_being_built_is_unknown(
    blocking: toolkit.Store, sql: psycopg.Connection[Any], superuser: psycopg.Connection[Any]
) -> None:
    sql.execute("CREATE TABLE note (t text)")
    sql.execute("INSERT INTO note VALUES ('a'), ('a')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON note (t)")
    with superuser.transaction():
        superuser.execute("LOCK TABLE note IN SHARE UPDATE EXCLUSIVE MODE")  # as a build does
        assert examine(blocking, ["index-invalid"])["index-invalid"].status == "unknown"
    assert examine(blocking, ["index-invalid"])["index-invalid"].status == "warn"


def test_unused_is_what_is_known_to_be_old_and_was_never_read(
    blocking: toolkit.Store, sql: psycopg.Connection[Any], superuser: psycopg.Connection[Any]
) -> None:
    blocking.write(
        "candles", {"ts": ["2024-01-01Z", "2024-02-01Z"], "close": [1.0, 2.0]}, series="A"
    )
    sql.execute("CREATE INDEX candles_close ON candles (close)")
    limits = Thresholds(unused_bytes=8192)

    def seen() -> Finding:
        return examine(blocking, ["index-unused"], limits=limits)["index-unused"]

    assert "--snapshot" in seen().reason  # nobody knows how old it is
    assert seen().status == "unknown"
    examine(blocking, ["lag"], keeps_snapshot=True)
    assert seen().status == "unknown"
    sql.execute("UPDATE doctor_snapshot SET taken_at = taken_at - interval '8 days'")
    assert seen().status == "warn"
    assert seen().objects[0].name == "candles"
    assert seen().fix == ('DROP INDEX "toolkit"."candles_close"',)
    superuser.execute("SELECT pg_stat_reset()")
    assert "younger" in seen().reason
    assert seen().status == "unknown"
    sql.execute("SET enable_seqscan = off")  # read in one partition of two
    sql.execute("SELECT count(*) FROM candles WHERE close = 1 AND ts < '2024-01-15Z'")
    counted(sql)
    assert seen().status == "ok"


# -- tables -------------------------------------------------------------------------------------


def test_neglected_tables_are_found_per_parent_and_mended(
    blocking: toolkit.Store, sql: psycopg.Connection[Any]
) -> None:
    blocking.write("metrics", minutes(3_000), series="cpu")
    for (part,) in sql.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'metrics'::regclass"
    ).fetchall():
        sql.execute(f"ALTER TABLE {part} SET (autovacuum_enabled = off)".encode())
    sql.execute("CREATE TABLE note (id bigint PRIMARY KEY) WITH (autovacuum_enabled = off)")
    sql.execute("INSERT INTO note SELECT generate_series(1, 100000)")
    sql.execute(
        "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off"
    )
    for _ in range(3):
        sql.execute("SELECT count(*) FROM note WHERE id = 1")
    counted(sql)
    limits = Thresholds(
        partitions=0, unvacuumed_rows=1_000, scans=3, scanned_rows=10_000, bloat_bytes=1 << 20
    )
    wanted = ("partitions-*", "never-*", "settings-autovacuum", "index-missing", "bloat")

    def looked() -> Examination:
        return examine(blocking, wanted, limits=limits)

    seen = looked()
    assert {f.id: sorted(o.name for o in f.objects) for f in bad(seen).values()} == {
        "partitions-ahead": ["metrics"],  # the others never had a point
        "partitions-many": ["metrics"],
        "never-vacuumed": ["metrics", "note"],
        "never-analyzed": ["metrics", "note"],
        "settings-autovacuum": ["metrics"],
        "index-missing": ["note"],
    }
    assert seen["bloat"].status == "unknown"  # nobody has analyzed it
    assert seen["partitions-ahead"].status == "crit"  # there are some, and not the present one
    for name in ("partitions-ahead", "never-vacuumed", "never-analyzed", "settings-autovacuum"):
        mend(sql, seen[name])
    assert set(bad(looked())) == {"partitions-many", "index-missing"}
    assert looked()["bloat"].status == "ok"
    sql.execute("DELETE FROM note WHERE id > 20000")
    sql.execute("VACUUM (ANALYZE) note")
    for statement in (  # a refresh has cut the log, and a vacuum will cut the other
        "CREATE TABLE emptied (series_id integer, lo timestamptz, hi timestamptz)",
        "ALTER TABLE emptied SET (autovacuum_enabled = off)",
        "INSERT INTO emptied SELECT 1, now(), now() FROM generate_series(1, 60000)",
        "INSERT INTO metrics_log (series_id, lo, hi) TABLE emptied",
        "ANALYZE emptied",
        "DELETE FROM emptied",
        "ANALYZE emptied",
        "DELETE FROM metrics_log WHERE ctid < '(300,0)'",
        "VACUUM (ANALYZE) metrics_log",
    ):
        sql.execute(statement)
    bloat = looked()["bloat"]
    assert [o.worst for o in bloat.objects] == [("note_pkey",)]
    assert bloat.evidence["is_estimate"] is True
    assert "the job reindex makes indexes anew" in bloat.reason
    assert "reindex note_pkey" in run_job(blocking, "reindex").done
    assert looked()["bloat"].status == "ok"


def test_what_maintenance_is_for_is_no_finding_after_it(worn_database: Database) -> None:
    with (
        toolkit.connect(worn_database.dsn) as store,
        psycopg.connect(worn_database.dsn, autocommit=True) as sql,
        psycopg.connect(worn_database.dsn) as other,
    ):
        part = sql.execute(
            "SELECT min(inhrelid::regclass::text) FROM pg_inherits "
            "WHERE inhparent = 'toolkit.metrics'::regclass"
        ).fetchone()[0]  # type: ignore[index]  # there is one
        other.execute(f"DELETE FROM {part} WHERE false".encode())  # the build waits for that
        with waiting(worn_database, f"REINDEX INDEX CONCURRENTLY {part}_pkey") as pid:
            sql.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        other.rollback()
        assert {"index-invalid", "never-vacuumed"} <= bad(examine(store, OBJECTS)).keys()
        acting = [job for job in JOBS if job not in ("audit", "verify")]
        for jobs in (acting, ["refresh", "vacuum"]):  # statistics come late to who vacuums
            ended = {r.status for r in maintain(store, jobs, always=True)}
            assert ended <= {"done", "nothing"}
        assert bad(examine(store, OBJECTS)) == {}


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_500_partitions_are_one_finding_and_5000_take_seconds(
    count: int,
    database: Database,
    blocking: toolkit.Store,
    sql: psycopg.Connection[Any],
    tell: Callable[[str], None],
) -> None:
    sql.execute("SET client_min_messages = error")
    names = ["metrics", *(f"metrics{n}" for n in range(1, count))]
    create(database, *(replace(METRICS, name=name) for name in names[1:]))
    for name in names:  # a parent of 5,000 would take minutes to make
        sql.execute("SELECT ensure_partitions(%s, '1950-01-02Z', '1959-08-03Z')", [name])
        sql.execute(
            f"INSERT INTO {name} (series_id, ts, value) SELECT 1, '1950-01-03Z'::timestamptz "
            "+ n * interval '7 days', 1 FROM generate_series(0, 498) AS n".encode()
        )
    counted(sql)
    seen = examine(blocking, limits=Thresholds(partitions=400, unvacuumed_rows=1))
    tell(f"{500 * count:,} partitions: {seen.seconds:.2f} s")
    assert seen.seconds < 10
    many = seen["partitions-many"].objects
    assert {o.name: o.figures["partitions"] for o in many} == dict.fromkeys(names, 500)
    never = {o.name: o for o in seen["never-vacuumed"].objects}
    assert {(never[n].count, len(never[n].worst)) for n in names} == {(499, 3)}
    assert len(seen["never-vacuumed"].fix) == len(never)


# -- sessions -----------------------------------------------------------------------------------


@contextmanager
def waiting(database: Database, statement: str) -> Iterator[int]:
    """Have a session wait for a lock, and let it go at the end; yields its process id."""
    with closing(psycopg.connect(database.dsn, autocommit=True)) as connection:
        connection.pgconn.send_query(statement.encode())
        with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
            for _ in range(1_000):
                found = admin.execute(
                    "SELECT count(*), pg_sleep(0.01) FROM pg_locks "
                    "WHERE pid = %s AND NOT granted AND waitstart IS NOT NULL",
                    [connection.info.backend_pid],
                ).fetchone()
                if found is not None and found[0]:
                    break
            yield connection.info.backend_pid


def test_sessions_in_the_way_are_found_and_their_end_mends_it(
    database: Database, superuser: psycopg.Connection[Any]
) -> None:
    limits = Thresholds(transaction_s=0.0, idle_s=0.0, blocked_s=0.0, xmin_age=2, xid_age=2)
    with (
        closing(psycopg.connect(database.dsn, application_name="forgotten")) as forgotten,
        toolkit.connect(database.admin_dsn) as store,
        toolkit.connect(database.dsn) as ordinary,
    ):
        forgotten.execute("SELECT pg_current_xact_id()")
        forgotten.execute("LOCK TABLE toolkit.series")
        for _ in range(3):
            superuser.execute("SELECT pg_current_xact_id()")
        with waiting(database, "SELECT count(*) FROM toolkit.series"):
            seen = examine(store, ["long-*", "blockers", "xmin-*", "wraparound"], limits=limits)
            # its own role's sessions an ordinary role sees, too
            less = examine(ordinary, ["blockers", "long-*"], limits=limits)
        pid = forgotten.info.backend_pid
        assert set(bad(seen)) == {"long-transactions", "blockers", "xmin-holders", "wraparound"}
        assert set(bad(less)) == {"long-transactions", "blockers"}
        assert seen["blockers"].fix == (f"SELECT pg_terminate_backend({pid})",)
        assert f"{pid} (forgotten)" in seen["blockers"].objects[0].worst
        assert f"SELECT pg_terminate_backend({pid})" in seen["long-transactions"].fix
        assert f"SELECT pg_terminate_backend({pid})" in seen["xmin-holders"].fix
        mend(superuser, seen["blockers"])
        after = examine(store, ["blockers"], limits=limits)
        assert after["blockers"].status == "ok"
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            for statement in seen["wraparound"].fix:
                assert statement.startswith("VACUUM (FREEZE)")
                owner.execute(statement.encode())


# -- rights, the command ------------------------------------------------------------------------
