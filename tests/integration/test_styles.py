"""A database whose sessions begin with other styles of times and texts than the usual ones."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import psycopg
import pytest
from fix_pgbouncer import MakePgBouncer
from fix_retention import END, START, retained
from fix_servers import Database
from fix_stores import READINGS, T0, create

import toolkit
from toolkit_maintenance import runner
from toolkit_maintenance.doctor import examine

STYLES = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_answer_and_no_job_depends_on_the_styles_of_a_database(database: Database) -> None:
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        for key, value in STYLES.items():
            admin.execute(f"ALTER DATABASE {database.name} SET {key} = {value}".encode())
    times = [START + timedelta(hours=n) for n in range(0, 70 * 24, 6)]
    with toolkit.connect(database.dsn) as store:
        store.write("metrics", {"ts": times, "value": [1.0] * len(times)}, series="A")
        store.refresh("metrics")
        before = store.read("metrics", "A", START, END, step="1d").to_pandas()
        assert store.partitions("metrics")[0].span.end
        assert retained(store, rows="30d").status == "done"
        assert store.read("metrics", "A", START, END, step="1d").to_pandas().equals(before)
        assert 0 < len(store.read("metrics", "A", START, END)) < len(times)
        for report in runner.maintain(store, always=True):
            assert report.status != "failed", report
        assert {f.status for f in examine(store).findings} <= {"ok", "warn", "unknown"}


def test_texts_of_ours_mean_the_same_in_sessions_that_are_not_set_up(
    database: Database, pgbouncer: MakePgBouncer
) -> None:
    """As behind a pooler that does not carry along what a session has set."""
    create(database, READINGS)
    count = 3 * 1440
    odd = {
        "ts": [T0 + timedelta(minutes=n) for n in range(count)],
        "seq": [0] * count,
        "level": [None, 1.5, -2.0] * (count // 3),
        "hits": [1, None, 3] * (count // 3),
        "is_open": [True, None, False] * (count // 3),
        "mood": ["a\\b", None, "it's"] * (count // 3),
        "cost": [0.25, 1.0, None] * (count // 3),
    }
    with toolkit.connect(database.dsn) as store:
        store.write("readings", odd, series="A")
        store.refresh("readings")
        store.compress("readings", end=T0 + timedelta(days=1))
        asked = [
            {"step": step, "strategy": strategy}
            for step, strategy in ((None, "auto"), ("1h", "auto"), ("1h", "aggregated"))
        ]
        span = ("readings", "A", T0, T0 + timedelta(days=3))
        before = [store.read(*span, **how).to_pandas() for how in asked]
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        off = (
            f"ALTER ROLE toolkit IN DATABASE {database.name} SET standard_conforming_strings = off"
        )
        admin.execute(off.encode())
    bouncer = pgbouncer(database.dsn, database.admin_dsn, default_pool_size=2)
    with (
        toolkit.connect(bouncer.dsn) as store,
        psycopg.connect(bouncer.dsn, autocommit=True, prepare_threshold=None) as unset,
    ):
        for how, frame in zip(asked, before, strict=True):
            pd.testing.assert_frame_equal(store.read(*span, **how).to_pandas(), frame)
            found = store.explain(*span, **how)
            answers = []
            for setting in ("on", "off"):
                unset.execute(f"SET standard_conforming_strings = {setting}".encode())
                answers.append(unset.execute(found.statement.encode(), found.params).fetchall())
            assert answers[0] == answers[1] != []
