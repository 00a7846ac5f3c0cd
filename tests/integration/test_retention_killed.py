"""The retention job is killed at any statement, and what is left is done later."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from fix_retention import (
    NOW,
    Killed,
    answers,
    filled,
    killed_at,
    mark_of,
    same,
)
from fix_servers import Database

import toolkit
from toolkit import Retention
from toolkit.config import load_settings
from toolkit.drivers.direct import Direct
from toolkit.opening import primary_of
from toolkit_maintenance import retention, runner
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act


def test_killed_at_any_statement_the_next_run_finishes(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(blocking)
    before = answers(blocking)
    blocking.set_retention("metrics", Retention("30d"))
    sql.execute("CREATE TABLE metrics_p20010101 (LIKE metrics)")  # somebody else's
    for kind in (b"LOCK", b"UPDATE", b"COMMENT", b"ALTER", b"INSERT", b"DROP", b"INSERT", b"DROP"):
        with killed_at(kind, monkeypatch), pytest.raises((Killed, RuntimeError)):
            runner.run(blocking, "retention")
        assert same(before, answers(blocking))
    orphans = "SELECT relname FROM pg_class WHERE relname ~ '_p[0-9]{8}$' AND NOT relispartition"
    orphans += " AND relkind = 'r' ORDER BY 1"
    assert len(sql.execute(orphans).fetchall()) == 2
    assert runner.run(blocking, "retention").status == "done"
    assert runner.run(blocking, "retention").status == "nothing"
    assert sql.execute(orphans).fetchall() == [("metrics_p20010101",)]
    assert same(before, answers(blocking))


def test_what_was_begun_is_ended_where_the_time_of_a_run_is_over(
    database: Database, sql: psycopg.Connection, tmp_path: Path
) -> None:
    settings = load_settings(database.dsn)
    options = replace(settings.maintenance, retain_export=str(tmp_path))
    with (
        toolkit.connect(database.dsn) as store,
        Direct(primary_of(settings), settings.pool) as direct,
    ):
        filled(store)
        store.set_retention("metrics", Retention("30d"))
        ground = Ground(store, direct, NOW, options, until=time.monotonic() - 2.5)
        assert ground.timeout == 1.0
        for act in retention.plan(ground):
            assert isinstance(act, Act)
            act.do()
        assert sql.execute("SELECT min(ts) FROM metrics").fetchone()[0] == mark_of(sql)
