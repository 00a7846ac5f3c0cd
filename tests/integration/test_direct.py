"""A session of its own: DDL gives up in time and says who was in the way; names are held alone."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_catalog import value
from fix_pgbouncer import MakePgBouncer
from fix_replicas import until
from fix_servers import ON_ONE_VERSION, Database

from toolkit.drivers.direct import Direct, Patience
from toolkit.errors import Busy, ConfigError, DatabaseError, QueryTimeout, Unavailable
from toolkit.options import PoolOptions

QUICK = Patience(lock_timeout=0.2, tries=2, pause=0.05)
OPTIONS = PoolOptions(application_name="the tests")
DDL = b"ALTER TABLE toolkit.candles ADD COLUMN extra integer"
COLUMNS = (
    "SELECT count(*) FROM pg_attribute "
    "WHERE attrelid = 'toolkit.candles'::regclass AND attname = 'extra'"
)


@contextmanager
def direct(dsn: str, name: str = "the tests") -> Iterator[Direct]:
    with Direct(dsn, replace(OPTIONS, application_name=name)) as session:
        yield session


@contextmanager
def reading(dsn: str) -> Iterator[psycopg.Connection]:
    """A transaction that has read the candles and stays open, as a forgotten one does."""
    with psycopg.connect(dsn, application_name="a long report") as connection:
        connection.execute("SELECT count(*) FROM toolkit.candles")
        yield connection


def test_ddl_behind_a_long_transaction_gives_up_names_it_and_makes_nobody_wait(
    database: Database,
) -> None:
    waits: list[float] = []
    over = threading.Event()

    def read() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as reader:
            while not over.is_set():
                began = time.monotonic()
                reader.execute("SELECT count(*) FROM toolkit.candles")
                waits.append(time.monotonic() - began)

    patience = Patience(lock_timeout=0.4, tries=2, pause=0.1)
    with reading(database.dsn) as long, direct(database.dsn) as session:
        thread = threading.Thread(target=read)
        thread.start()
        began = time.monotonic()
        with pytest.raises(Busy, match="add extra: its lock was not free in 2 tries") as caught:
            session.patiently([DDL], "add extra", patience)
        took = time.monotonic() - began
        over.set()
        thread.join()
        assert f"server process {long.info.backend_pid} (a long report)" in str(caught.value)
        assert "idle in transaction for" in str(caught.value)
        assert took < 2 * 0.4 + 0.15 + 1
        # one reader did wait behind it, and no longer than the lock was asked for
        assert 0.2 < max(waits) < 0.4 + 0.3
        long.rollback()
        session.patiently([DDL], "add extra", patience)
        assert session.fetch(b"SHOW lock_timeout") == [("0",)]
    assert value(database.dsn, COLUMNS) == 1


def test_who_may_not_be_seen_is_named_and_no_more(database: Database) -> None:
    with psycopg.connect(database.admin_dsn) as admin, direct(database.dsn) as session:
        admin.execute("LOCK TABLE toolkit.candles")
        with pytest.raises(Busy) as caught:
            session.patiently([DDL], "add extra", QUICK)
        pid, user = admin.info.backend_pid, admin.info.user
        assert str(caught.value).endswith(f"in the way was server process {pid}, user {user}")


def test_a_lock_that_comes_free_meanwhile_is_taken(database: Database) -> None:
    with reading(database.dsn) as long, direct(database.dsn) as session:
        threading.Timer(0.3, long.rollback).start()
        session.patiently([DDL], "add extra", Patience(0.2, 20, 0.05))
    assert value(database.dsn, COLUMNS) == 1


def test_statements_together_are_all_or_none_and_one_by_one_are_not(database: Database) -> None:
    bad = [DDL, b"ALTER TABLE toolkit.nosuch ADD COLUMN extra integer"]
    with direct(database.dsn) as session:
        with pytest.raises(Exception, match="nosuch"):
            session.patiently(bad, "x", QUICK)
        assert value(database.dsn, COLUMNS) == 0
        with pytest.raises(Exception, match="nosuch"):
            session.patiently(bad, "x", QUICK, together=False)
        assert value(database.dsn, COLUMNS) == 1
        concurrently = b"CREATE INDEX CONCURRENTLY extra ON toolkit.series (id)"
        with pytest.raises(DatabaseError, match="cannot run inside a transaction"):
            session.patiently([concurrently], "x", QUICK)
        with reading(database.dsn) as long:
            threading.Timer(0.3, long.rollback).start()
            after = [concurrently, b"ALTER TABLE toolkit.candles DROP COLUMN extra"]
            session.patiently(after, "x", Patience(0.2, 20, 0.05), together=False)
    assert value(database.dsn, COLUMNS) == 0


def test_a_long_statement_that_waits_for_nobody_is_looked_at_less_and_less(
    database: Database,
) -> None:
    with psycopg.connect(database.admin_dsn, dbname="postgres", autocommit=True) as other:

        def asked(query: str) -> Any:
            return other.execute(query, [database.name]).fetchone()[0]  # type: ignore[index]

        done = "SELECT xact_commit FROM pg_stat_database WHERE datname = %s"
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        until(lambda: asked(sessions) == 0, "none is left")  # what each did is counted at its end
        before = asked(done)
        with direct(database.dsn) as session:
            session.patiently([b"SELECT pg_sleep(2)"], "sleep", Patience(0.02, 1), together=False)
        until(lambda: asked(sessions) == 0, "none is left")
        assert 5 < asked(done) - before < 60  # and not 200


def test_the_end_of_a_statement_waits_for_no_connection(database: Database) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, direct(database.dsn) as session:
        session._conninfo = (
            f"host=127.0.0.1 port={silent.getsockname()[1]}"  # who looks is told this
        )
        began = time.monotonic()
        session.patiently([b"SELECT pg_sleep(0.3)"], "sleep", Patience(0.2, 1))
        assert time.monotonic() - began < 1.5
        silent.accept()[0].close()  # it did try to


def test_a_deadlock_is_tried_again(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The server ends who waited first: that is ours."""
    caplog.set_level("INFO", "toolkit.drivers")
    both = [b"LOCK TABLE toolkit.candles", b"LOCK TABLE toolkit.trades", DDL]
    with direct(database.dsn) as session, psycopg.connect(database.dsn) as other:
        other.execute("LOCK TABLE toolkit.trades")
        thread = threading.Thread(target=other.execute, args=["LOCK TABLE toolkit.candles"])

        def meet() -> None:
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            until(lambda: value(database.dsn, waits) == 1, "ours waits")
            thread.start()
            thread.join()
            other.rollback()

        meeting = threading.Thread(target=meet)
        meeting.start()
        session.patiently(both, "both", Patience(lock_timeout=8, tries=3, pause=0.01))
        meeting.join()
    assert value(database.dsn, COLUMNS) == 1
    assert [r.getMessage().partition(" (")[0] for r in caplog.records] == [
        "both: its lock was not free"
    ]


def test_what_has_a_name_is_done_by_one_and_the_others_hear_by_whom(database: Database) -> None:
    with direct(database.dsn, "one") as one, direct(database.dsn, "two") as two:
        assert one.fetch(b"SHOW idle_session_timeout") == [("0",)]
        with one.alone("spring"):
            with two.alone("autumn"):
                pass
            with pytest.raises(Busy, match="spring: runs already") as caught, two.alone("spring"):
                pytest.fail("two at once")
            assert f"server process {one.pid} (one), user toolkit" in str(caught.value)
            # it works elsewhere while it holds the name, and must not look as if it did nothing
            assert re.search(", from .*, running for [0-9]+ s; SELECT", str(caught.value))
            assert f"SELECT pg_terminate_backend({one.pid}) would end it" in str(caught.value)
        with pytest.raises(ZeroDivisionError), two.alone("spring"):
            _ = 1 / 0
        with one.alone("spring"):
            pass


def test_a_name_is_free_again_when_its_holder_is_ended(database: Database) -> None:
    with direct(database.dsn) as one, direct(database.dsn) as two:
        end = "SELECT pg_terminate_backend(%s, 5000)"
        with pytest.raises(Unavailable, match="connection lost"), one.alone("spring"):
            one.fetch(b"SELECT %(ended)s", {"ended": value(database.dsn, end, one.pid)})
        with two.alone("spring"):
            pass
        assert repr(two) == "<Direct primary open>"
    assert repr(two) == "<Direct primary closed>"


def test_who_has_done_it_is_not_told_that_the_session_is_gone(database: Database) -> None:
    with direct(database.dsn) as one:
        with one.alone("spring"):
            value(database.dsn, "SELECT pg_terminate_backend(%s, 5000)", one.pid)
        with pytest.raises(Unavailable):
            one.fetch(b"SELECT 1")


def test_a_connection_lost_amid_ddl_is_said_and_not_tried_again(database: Database) -> None:
    with reading(database.dsn), direct(database.dsn) as session:
        pid = session.pid

        def end() -> None:
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
            until(lambda: value(database.dsn, waits, pid) == 1, "it waits for a lock")
            value(database.dsn, "SELECT pg_terminate_backend(%s)", pid)

        ending = threading.Thread(target=end)
        ending.start()
        with pytest.raises(Unavailable, match="connection lost"):
            session.patiently([DDL], "add extra", Patience(5, 3, 0.1))
        ending.join()


def test_a_timeout_is_for_one_statement(database: Database) -> None:
    with direct(database.dsn) as session:
        before = session.fetch(b"SHOW statement_timeout")
        with pytest.raises(QueryTimeout):
            session.fetch(b"SELECT pg_sleep(5)", timeout=0.05)
        with pytest.raises(QueryTimeout), session.transaction():
            session.execute(b"SELECT pg_sleep(5)", timeout=0.05)
        assert session.fetch(b"SHOW statement_timeout") == before
        assert session.fetch(b"SHOW client_connection_check_interval") == [("5s",)]


@ON_ONE_VERSION
def test_a_pooler_is_refused(pgbouncer: MakePgBouncer, database: Database) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version="1.24")
    with pytest.raises(ConfigError, match="give the server's own address as direct"):
        Direct(bouncer.dsn, OPTIONS).__enter__()
