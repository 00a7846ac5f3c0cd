"""The partitions job: ahead of time, in UTC, of rollups too; it finishes what was interrupted."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest
from fix_catalog import rows, value
from fix_replicas import until
from fix_servers import ON_ONE_VERSION, Database
from fix_stores import create

import toolkit
from toolkit import migrate
from toolkit.dataset import Aggregate, Column, Dataset
from toolkit.options import MaintenanceOptions
from toolkit_maintenance import run
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Skip
from toolkit_maintenance.partitions import plan
from toolkit_maintenance.runner import _session

ENSURE = "SELECT toolkit.ensure_partitions(%s, %s, %s)"
BOUNDS = """
    SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = %s::regclass ORDER BY 1"""
PARTITIONS = "SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r'"
DAYS = Dataset(
    "ticks",
    (Column("value"),),
    (Aggregate("value_avg", "avg", ("value",)),),
    ladder=("1h",),
    partition="1d",
    changelog="writer",  # without triggers partitions are made in half the time
)


def at(dsn: str, now: datetime, *targets: str) -> list[Act | Skip]:
    """Return the job's plan at another time."""
    with toolkit.connect(dsn) as store, _session(store) as direct:
        options = store.settings.maintenance
        return list(plan(Ground(store, direct, now, options, targets)))


def test_partitions_are_there_ahead_of_time_and_again_it_does_nothing(database: Database) -> None:
    dsn = database.dsn
    with toolkit.connect(dsn) as store:
        dry = run(store, "partitions", is_dry=True)
        report = run(store, "partitions")
        assert (report.status, report.skipped) == ("done", ())
        assert report.done == tuple(act.what for act in dry.planned)
        assert report.counts == {"partitions_made": value(dsn, PARTITIONS)}
        assert run(store, "partitions").status == "nothing"
        # the first to write now and a month on need not wait for one
        before = rows(dsn, BOUNDS, "toolkit.metrics")
        now = datetime.now(UTC)
        for ts in (now, now + timedelta(days=28)):
            store.write("candles", {"ts": [ts], "close": [1.0]}, series="x")
        store.refresh("candles")
        assert run(store, "partitions").status == "nothing"
    assert rows(dsn, BOUNDS, "toolkit.metrics") == before
    assert "ensure_partitions" in dry.planned[0].sql[2]
    assert dry.planned[0].lock == "SHARE UPDATE EXCLUSIVE on candles"


def test_bounds_are_in_utc_and_the_end_of_a_year_has_the_next_of_rollups(
    database: Database,
) -> None:
    dsn = database.dsn
    # an hour before the year ends in UTC; anywhere east of it the next has begun
    found = at(dsn, datetime(2026, 12, 31, 23, tzinfo=UTC), "candles")
    assert [f.what for f in found if isinstance(f, Act)] == [
        "make 4 partitions of candles for [2026-12-01T00:00Z, 2027-04-01T00:00Z)",
        *(
            f"make 2 partitions of candles_{step} for [2026-01-01T00:00Z, 2028-01-01T00:00Z)"
            for step in ("5m", "1h", "1d")
        ),
    ]
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SET timezone = 'Pacific/Auckland'")
        for statement in [text for act in found for text in act.sql]:  # as it is shown
            other.execute(statement.encode())
        other.execute("SET timezone = 'UTC'")
        made = other.execute(BOUNDS, ["toolkit.candles_1d"]).fetchall()
    assert made == [
        ("candles_1d_p20260101", _year(2026)),
        ("candles_1d_p20270101", _year(2027)),
    ]
    assert at(dsn, datetime(2026, 12, 31, 23, tzinfo=UTC), "candles") == []
    later = at(dsn, datetime(2027, 1, 1, tzinfo=UTC), "candles")
    assert [f.what for f in later] == [
        "make 1 partition of candles for [2027-04-01T00:00Z, 2027-05-01T00:00Z)"
    ]


def _year(year: int) -> str:
    return f"FOR VALUES FROM ('{year}-01-01 00:00:00+00') TO ('{year + 1}-01-01 00:00:00+00')"


def test_a_gap_is_a_warning_and_what_is_foreign_is_said(database: Database) -> None:
    dsn = database.dsn
    for year in (1960, 2024):
        value(dsn, ENSURE, "candles", f"{year}-01-01Z", f"{year}-02-01Z")
    rows(
        dsn,
        "CREATE TABLE toolkit.lowest PARTITION OF toolkit.candles "
        "FOR VALUES FROM (MINVALUE) TO ('1950-01-01Z')",
    )
    with toolkit.connect(dsn) as store:
        report = run(store, "partitions", ["candles"])
        assert report.status == "done"
        foreign, first, second = report.skipped
        assert "was not made by the toolkit" in foreign.why
        assert first.why == "no partition from 1960-02-01T00:00Z to 2024-01-01T00:00Z"
        assert second.why.startswith("no partition from 2024-02-01T00:00Z to ")
        assert run(store, "partitions", ["candles"]).status == "nothing"


def test_a_schema_may_have_any_name(empty_database: Database) -> None:
    admin, odd = empty_database.admin_dsn, """we"ird 'näme' {x}"""
    migrate.upgrade(admin, schema=odd)
    with toolkit.connect(replace(toolkit.resolve(admin), schema=odd)) as store:
        planned = run(store, "partitions", ["metrics"], is_dry=True).planned
        with psycopg.connect(admin, autocommit=True) as other:
            for statement in planned[0].sql:
                other.execute(statement.encode())
        done = run(store, "partitions", ["metrics"]).done
        assert done == tuple(act.what for act in planned[1:])
        assert run(store, "partitions", ["metrics"]).status == "nothing"


def test_who_may_not_make_partitions_skips_them_and_is_told(database: Database) -> None:
    role = f"guest_{database.name}"
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        for statement in (
            f"CREATE ROLE {role} LOGIN PASSWORD 'pw'",
            f"GRANT USAGE ON SCHEMA toolkit TO {role}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA toolkit TO {role}",
            f"GRANT INSERT, UPDATE ON toolkit.job_run TO {role}",
        ):
            admin.execute(statement.encode())
        parts = urlsplit(database.dsn)
        place = f"{role}:pw@{parts.hostname}:{parts.port}"
        try:
            with toolkit.connect(parts._replace(netloc=place).geturl()) as store:
                planned = run(store, "partitions", is_dry=True).planned
                report = run(store, "partitions")
        finally:
            admin.execute(f"DROP OWNED BY {role}".encode())
            admin.execute(f"DROP ROLE {role}".encode())
    assert (report.status, report.done, report.failed) == ("skipped", (), ())
    assert [s.what for s in report.skipped] == [act.what for act in planned]
    assert all("lacks a privilege: permission denied" in s.why for s in report.skipped)


def interrupt_detach(dsn: str, parent: str, partition: str) -> None:
    """Have a session die that detaches a partition: it waits for who may still read it."""
    with psycopg.connect(dsn) as reader:
        reader.execute(f"SELECT count(*) FROM toolkit.{parent}".encode())
        with psycopg.connect(dsn, autocommit=True) as session:
            pid = session.info.backend_pid

            def detach() -> None:
                statement = f"ALTER TABLE toolkit.{parent} DETACH PARTITION toolkit.{partition}"
                with pytest.raises(psycopg.OperationalError):
                    session.execute(f"{statement} CONCURRENTLY".encode())

            thread = threading.Thread(target=detach)
            thread.start()
            pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
            until(lambda: value(dsn, pending) == 1, "the first half of the detach")
            assert value(dsn, "SELECT pg_terminate_backend(%s, 5000)", pid)
            thread.join()


@pytest.mark.parametrize("parent", ["candles", "candles_blocks", "candles_1d"])
def test_a_detach_that_was_killed_is_finished(database: Database, parent: str) -> None:
    dsn = database.dsn
    ensure = "SELECT toolkit.add_partitions_v1(%s, '1M', '2024-01-01Z', '2024-03-01Z', NULL)"
    value(dsn, ensure, parent)
    interrupt_detach(dsn, parent, f"{parent}_p20240101")
    with toolkit.connect(dsn) as store:
        run(store, "partitions", ["trades"])
        report = run(store, "partitions", ["candles"], is_dry=True)
        act = next(a for a in report.planned if "detaching" in a.what)
        assert act.sql == (
            f'ALTER TABLE "toolkit"."{parent}" DETACH PARTITION '
            f'"toolkit"."{parent}_p20240101" FINALIZE',
        )
        assert act.bytes > 0
        report = run(store, "partitions", ["candles"])
        assert report.failed == ()
        assert report.counts["detaches_finished"] == 1
        assert "detaches_finished" not in run(store, "partitions", ["candles"]).counts
    assert value(dsn, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 0
    assert value(dsn, "SELECT to_regclass(%s) IS NOT NULL", f"toolkit.{parent}_p20240101")


def test_behind_a_long_transaction_it_gives_up_says_who_and_makes_no_writer_wait(
    database: Database,
) -> None:
    """Who holds the parent's lock holds up the making of partitions; we hold up nobody."""
    dsn, waits = database.dsn, []
    over = threading.Event()

    def write() -> None:
        insert = "INSERT INTO toolkit.candles (series_id, ts, close) VALUES (1, '2024-01-05Z', %s)"
        with psycopg.connect(dsn, autocommit=True) as writer:
            while not over.is_set():
                began = time.monotonic()
                writer.execute(insert + " ON CONFLICT (series_id, ts) DO UPDATE SET close = 2", [1])
                waits.append(time.monotonic() - began)

    value(dsn, ENSURE, "candles", "2024-01-01Z", "2024-01-02Z")
    settings = toolkit.resolve(dsn)
    options = MaintenanceOptions(lock_timeout=0.3, tries=1)
    with psycopg.connect(dsn, application_name="a migration") as other:
        other.execute("LOCK TABLE toolkit.candles IN SHARE UPDATE EXCLUSIVE MODE")
        thread = threading.Thread(target=write)
        thread.start()
        began = time.monotonic()
        with toolkit.connect(replace(settings, maintenance=options)) as store:
            report = run(store, "partitions", ["candles"])
        took = time.monotonic() - began
        over.set()
        thread.join()
        pid = other.info.backend_pid
    assert report.status == "failed"
    assert f"in the way was server process {pid} (a migration)" in report.failed[0]
    assert took < 0.3 + 2  # not the five seconds that the function would wait
    assert max(waits) < 0.3 + 0.3


@ON_ONE_VERSION
@pytest.mark.parametrize(
    "count", [500, pytest.param(5_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_800)])]
)
def test_many_partitions_are_quick(database: Database, count: int) -> None:
    create(database, DAYS)
    first = datetime.now(UTC) - timedelta(days=count)
    for low in range(0, count, 1_000):
        span = (first + timedelta(days=d) for d in (low, min(low + 1_000, count)))
        value(database.dsn, ENSURE, "ticks", *span)
    with toolkit.connect(database.dsn) as store:
        took = []
        for status in ("done", "nothing"):
            began = time.monotonic()
            report = run(store, "partitions")
            took.append(time.monotonic() - began)
            assert report.status == status
            assert report.skipped == ()
    assert max(took) < 5, took
