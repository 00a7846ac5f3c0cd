"""What the tests of vacuum and reindex share: a run, and counters that are up to date."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import psycopg
from fix_servers import Database
from psycopg import sql

import toolkit
from toolkit.config import load_settings
from toolkit_maintenance.job import Report
from toolkit_maintenance.runner import run


def settled(client: psycopg.Connection) -> None:
    """Have what a client wrote be known: to the counters, and on disk."""
    client.execute("SET synchronous_commit = on")
    client.execute("COMMENT ON SCHEMA toolkit IS 'on disk'")
    client.execute("SELECT pg_stat_force_next_flush()")
    client.execute("SELECT 1")


def written(database: Database, client: psycopg.Connection, dataset: str, data: Any) -> None:
    """Write by a store whose sessions have ended, so that what they did is counted."""
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        # what is not on disk yet no vacuum calls visible to all
        name = sql.Identifier(database.name)
        admin.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = on").format(name))
    settings = load_settings(database.dsn)
    pool = replace(settings.pool, application_name="writer")
    with toolkit.connect(replace(settings, pool=pool)) as store:
        store.write(dataset, data, series="A")
    sessions = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'writer'"
    )
    deadline = time.monotonic() + 20
    while value(client, sessions):
        assert time.monotonic() < deadline
    settled(client)


def twice(store: toolkit.Store, job: str, *targets: str, **options: Any) -> Report:
    """Run a job, and again: the second time there is nothing left to do; return the first run."""
    first = run(store, job, targets, **options)
    again = run(store, job, targets, **options)
    assert (again.status, again.done) == ("nothing", ()), again
    return first


def value(client: psycopg.Connection, statement: str, *params: object) -> Any:
    """Return the one value of a question."""
    row = client.execute(sql.SQL(statement), params).fetchone()  # type: ignore[arg-type]  # a test's own words
    assert row is not None
    return row[0]
