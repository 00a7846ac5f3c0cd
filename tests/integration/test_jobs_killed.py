"""Runs of jobs that are killed or interrupted: recorded, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import psycopg
from fix_catalog import rows, value
from fix_cli import COMMAND
from fix_jobs import RUNS, WAITS
from fix_replicas import until
from fix_servers import Database

import toolkit
from toolkit_maintenance import jobs, maintain, run


def test_killed_amid_a_statement_the_next_run_records_it_and_finishes(
    database: Database,
) -> None:
    """As the system kills who takes too much memory: the server goes on, and notices at its end."""
    with psycopg.connect(database.dsn) as other, toolkit.connect(database.dsn) as store:
        other.execute("LOCK TABLE toolkit.candles")
        process = started(database, "maintain", "partitions")
        until(lambda: value(database.dsn, WAITS, "toolkit.candles") == 1, "it waits")
        process.kill()
        process.wait()
        report = run(store, "partitions")
        assert report.status == "busy"
        assert [s.status for s in jobs(store) if s.job == "partitions"] == ["running"]
        other.rollback()
        until(lambda: run(store, "partitions").status != "busy", "its session ends")
        assert run(store, "partitions").status == "nothing"
    found = [(job, status) for job, status, *_ in rows(database.dsn, RUNS)]
    assert found[0] == ("partitions", "killed")
    assert ("partitions", "done") in found
    assert "running" not in dict(found).values()


def test_interrupted_it_is_recorded_and_the_next_run_goes_on(database: Database) -> None:
    terminal, there = os.openpty()
    with psycopg.connect(database.dsn) as other, open(terminal, "rb", 0) as screen:
        other.execute("LOCK TABLE toolkit.trades")
        process = started(database, "maintain", stderr=there)
        os.close(there)
        shown = b""
        while b"make 4 partitions of trades" not in shown:  # which is what it waits with
            shown += screen.read(1_000)
        until(lambda: value(database.dsn, WAITS, "toolkit.trades") == 1, "it waits")
        process.send_signal(signal.SIGTERM)  # which is made what Ctrl-C is
        assert process.wait(timeout=30) == 130
        with suppress(OSError):  # nobody is left at the other end
            while said := screen.read(1_000):
                shown += said
    assert b"Error: interrupted" in shown
    ((_, status, counts, said, _),) = rows(database.dsn, RUNS)
    assert (status, said) == ("cut", ["partitions: interrupted"])
    assert counts["partitions_made"] > 0  # those of candles were made before
    with toolkit.connect(database.dsn) as store:
        assert "partitions" in [r.job for r in maintain(store, is_dry=True)]


def started(
    database: Database, *arguments: str, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env={**os.environ, "TOOLKIT_DSN": database.dsn, "TOOLKIT_MAINTENANCE_LOCK_TIMEOUT": "20"},
        stderr=stderr,
        stdout=subprocess.DEVNULL,
    )
