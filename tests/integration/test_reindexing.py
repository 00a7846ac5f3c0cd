"""The reindex job: what is too large is made anew once, and nobody's build is taken for dead."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest
from fix_cli import Run
from fix_servers import Database
from fix_tending import settled, twice, value
from psycopg.conninfo import make_conninfo

import toolkit
from toolkit.config import load_settings
from toolkit_maintenance import reindex
from toolkit_maintenance.runner import run as run_job

PAST = "candles_p20240101"
KEY = f"{PAST}_pkey"


@pytest.fixture
def sparse(database: Database, sql: psycopg.Connection) -> Iterator[toolkit.Store]:
    """A month that is past, of 40 series that were written in turns: its key is half empty."""
    sql.execute("SELECT ensure_partitions('candles', '2024-01-01Z', '2024-01-02Z')")
    sql.execute(
        f"INSERT INTO {PAST} (series_id, ts, open, high, low, close, volume) "
        "SELECT s, '2024-01-01Z'::timestamptz + m * interval '1 minute', 1, 2, 3, 4, m "
        "FROM generate_series(1, 1000) AS m, generate_series(1, 40) AS s ORDER BY m, s"
    )
    sql.execute(f"ANALYZE {PAST}")
    settled(sql)
    settings = load_settings(database.dsn)
    quick = replace(settings.maintenance, lock_timeout=0.2, tries=1)
    with toolkit.connect(replace(settings, maintenance=quick)) as store:
        yield store


def size(sql: psycopg.Connection, index: str) -> int:
    return int(value(sql, "SELECT pg_relation_size(%s::regclass)", index))


def invalid(sql: psycopg.Connection) -> list[str]:
    rows = sql.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
    return sorted(row[0] for row in rows)


@pytest.mark.parametrize("how", ["sampled", "by pgstattuple"])
def test_a_key_that_is_half_empty_is_made_anew_once(
    sparse: toolkit.Store, sql: psycopg.Connection, database: Database, how: str
) -> None:
    if how != "sampled":
        with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
            admin.execute("CREATE EXTENSION pgstattuple SCHEMA public")
            admin.execute("GRANT EXECUTE ON FUNCTION public.pgstatindex(regclass) TO toolkit")
            taken = f"REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC, toolkit"
            admin.execute(taken.encode())  # so that it is not by a sample
    before = size(sql, KEY)
    looking = make_conninfo(database.dsn, options="-c default_transaction_read_only=on")
    with toolkit.connect(looking) as store:
        (act,) = run_job(store, "reindex", is_dry=True).planned
    assert act.what == f"reindex {KEY}"
    assert act.bytes == before == size(sql, KEY)
    foretold = float(act.why.partition(" MB, ")[2].partition(" MB")[0]) * (1 << 20)
    assert twice(sparse, "reindex").done == (f"reindex {KEY}",)
    after = size(sql, KEY)
    assert after < 0.7 * before
    assert foretold == pytest.approx(after, rel=0.1)
    assert invalid(sql) == []


def test_every_kind_of_index_is_measured_by_a_sample(
    sparse: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex, "WORTH", 1 << 16)
    sql.execute(f"DELETE FROM {PAST} WHERE ts >= '2024-01-01T05:00Z'")
    sql.execute(f"VACUUM FULL {PAST}")
    sql.execute(
        "ALTER TABLE candles ADD COLUMN gone text, ADD COLUMN note text NOT NULL DEFAULT ''"
    )
    sql.execute("ALTER TABLE candles DROP COLUMN gone")
    sql.execute(f"CREATE INDEX half ON {PAST} (ts, volume) WHERE series_id > 20")
    sql.execute(f"CREATE INDEX made ON {PAST} ((volume::text || 'a text'), series_id, ts)")
    sql.execute(f"CREATE INDEX alike ON {PAST} (volume)")
    sql.execute(f"REINDEX TABLE {PAST}")
    assert twice(sparse, "reindex").status == "nothing"  # none is taken for larger than it is
    # pages that nobody needs any more
    sql.execute(f"UPDATE {PAST} SET volume = volume + 1, ts = ts + interval '10 days'")
    sql.execute(f"VACUUM (ANALYZE) {PAST}")
    settled(sql)
    before = {name: size(sql, name) for name in ("half", "made", KEY)}
    done = twice(sparse, "reindex").done
    assert {f"reindex {name}" for name in before} <= set(done)
    assert all(size(sql, name) < 0.7 * was for name, was in before.items())


@contextmanager
def waiting(
    database: Database, holder: psycopg.Connection, build: Callable[[], object]
) -> Iterator[int]:
    """Have something be built that waits for what the holder does, and goes on after."""
    who = (
        "SELECT coalesce(max(pid), 0) FROM pg_stat_activity "
        "WHERE datname = current_database() AND %s = ANY (pg_blocking_pids(pid))"
    )
    with ThreadPoolExecutor(1) as other, psycopg.connect(database.admin_dsn, autocommit=True) as up:
        done = other.submit(build)
        deadline = time.monotonic() + 20
        while not (pid := value(up, who, holder.info.backend_pid)):
            assert time.monotonic() < deadline
            assert not done.done(), done.result()
        try:
            yield pid
        finally:
            holder.rollback()
            done.exception(timeout=30)


HOLDS = {
    "before it builds": f"UPDATE toolkit.{PAST} SET volume = 0 WHERE series_id = 1",
    "when it is built": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1",
    "when it is in place": f"SELECT count(*) FROM toolkit.{PAST}",
}


@pytest.mark.parametrize("phase", HOLDS)
def test_what_a_killed_build_left_is_removed_and_a_live_one_is_left_alone(
    sparse: toolkit.Store, sql: psycopg.Connection, database: Database, phase: str
) -> None:
    left = f"{KEY}_ccold" if phase == "when it is in place" else f"{KEY}_ccnew"
    with (
        psycopg.connect(database.dsn) as holder,
        # somebody whose work the role may not see
        psycopg.connect(database.admin_dsn, autocommit=True) as admin,
    ):
        holder.execute(HOLDS[phase].encode())
        statement = f"REINDEX INDEX CONCURRENTLY toolkit.{KEY}".encode()
        with waiting(database, holder, lambda: admin.execute(statement)):
            assert invalid(sql) == [left]
            assert run_job(sparse, "reindex", [PAST]).done == ()
            assert invalid(sql) == [left]
        assert invalid(sql) == []  # it went on to its end
        holder.execute(HOLDS[phase].encode())
        patient = replace(sparse.settings.maintenance, lock_timeout=30.0)
        with (
            toolkit.connect(replace(sparse.settings, maintenance=patient)) as store,
            waiting(
                database, holder, lambda: run_job(store, "reindex", [KEY], is_forced=True)
            ) as pid,
        ):
            sql.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            assert invalid(sql) == [left]
    assert f"drop {left}" in twice(sparse, "reindex").done
    assert invalid(sql) == []


def test_who_is_in_the_way_is_named_and_nothing_is_left_behind(
    sparse: toolkit.Store, sql: psycopg.Connection, database: Database, run: Run
) -> None:
    with psycopg.connect(database.dsn, application_name="somebody") as other:
        other.execute(f"LOCK TABLE toolkit.{PAST} IN SHARE UPDATE EXCLUSIVE MODE")
        (skip,) = run_job(sparse, "reindex").skipped
        assert "(somebody)" in skip.why
        assert "somebody" in run("reindex", KEY, "--force", code=4).output
        other.rollback()
        # who began and writes, unseen by those who may not see others: found by waiting
        other.execute(f"UPDATE toolkit.{PAST} SET volume = 0 WHERE series_id = 1")
        report = run_job(sparse, "reindex")
        assert report.done == ()
        assert report.skipped[0].is_busy
    report = run_job(sparse, "reindex")
    assert f"reindex {KEY}" in report.done
    assert invalid(sql) == []


def test_what_the_time_was_over_for_the_next_run_does(
    sparse: toolkit.Store, sql: psycopg.Connection, database: Database
) -> None:
    patient = replace(sparse.settings.maintenance, lock_timeout=30.0)
    with (
        toolkit.connect(replace(sparse.settings, maintenance=patient)) as store,
        psycopg.connect(database.admin_dsn) as holder,
    ):
        holder.execute(f"UPDATE toolkit.{PAST} SET volume = 0 WHERE series_id = 1")
        report = run_job(store, "reindex", [KEY], is_forced=True, max_runtime=1.0)
        assert (report.status, report.done) == ("cut", ())
        assert len(invalid(sql)) == 1
    assert twice(sparse, "reindex").done == (f"drop {KEY}_ccnew", f"reindex {KEY}")
    assert invalid(sql) == []


def test_invalid_indexes_of_others_are_said_and_left(
    sparse: toolkit.Store, sql: psycopg.Connection, database: Database
) -> None:
    sql.execute("CREATE INDEX by_volume ON ONLY candles (volume)")
    with psycopg.connect(database.dsn) as holder:
        holder.execute(f"UPDATE toolkit.{PAST} SET volume = 0 WHERE series_id = 1")
        sql.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            sql.execute(f"CREATE INDEX CONCURRENTLY broken ON {PAST} (volume)")
    report = run_job(sparse, "reindex")
    said = " ".join(str(s) for s in report.skipped)
    assert "index by_volume of candles: is invalid: none is attached to it in 1 partition;" in said
    assert f"index broken of {PAST}: is invalid" in said
    assert report.status == "done"
    assert {"by_volume", "broken"} == set(invalid(sql))
    assert run_job(sparse, "reindex", ["broken"], is_forced=True).done == ("reindex broken",)
    assert invalid(sql) == ["by_volume"]


def test_who_may_not_is_told(
    sparse: toolkit.Store, database: Database, stranger: tuple[str, str]
) -> None:
    role, dsn = stranger
    with toolkit.connect(dsn) as store:
        report = run_job(store, "reindex")
    assert (report.status, report.done) == ("skipped", ())
    assert str(report.skipped[0]).startswith(f"reindex candles: the role {role} may not")
    # the owner may, but cannot measure
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        taken = f"REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC, toolkit"
        admin.execute(taken.encode())
    report = run_job(sparse, "reindex")
    assert (report.status, report.done) == ("skipped", ())
    assert "the extension pgstattuple, or the right to make temporary" in report.skipped[0].why


def test_what_is_named_is_made_anew_if_needed_or_forced(
    sparse: toolkit.Store, sql: psycopg.Connection, run: Run
) -> None:
    assert f"'{KEY}'" in run("reindex", KEY[:-1], code=2).output
    for job in ("vacuum", "reindex"):  # datasets, not each of their partitions
        assert "there is 'candles', 'metrics', 'trades'" in run(job, "qqq", code=2).output
    said = run("reindex", "--dry-run", PAST).output
    assert f'REINDEX INDEX CONCURRENTLY "toolkit"."{KEY}"' in said
    assert "needs as much of the disk meanwhile" in said
    assert json.loads(run("reindex", "candles", "--json").output)["done"] == [f"reindex {KEY}"]
    assert "nothing" in run("reindex", "candles_pkey").output
    done = json.loads(run("reindex", "candles_pkey", "--force", "--json").output)["done"]
    assert done == [f"reindex {KEY}"]
