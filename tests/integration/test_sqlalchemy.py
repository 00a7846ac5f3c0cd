"""Where the statements of an SQLAlchemy session go, and what they see there."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from fix_replicas import MakeCluster, until
from fix_sessions import (
    ALL,
    KINDS,
    NOTE,
    add,
    notes,
    on_replica,
    opened,
    replicas,
    sessions_of,
    settings_of,
)
from sqlalchemy import column, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

import toolkit
from toolkit.drivers import drive
from toolkit.errors import AccessDenied, OutcomeUnknown, QueryError
from toolkit.sqlalchemy import RoutingSession, engines, routing_session
from toolkit_routing import Shard, Topology

READS: list[Callable[[], Any]] = [
    lambda: ALL,
    lambda: select(func.count()).select_from(NOTE),
    lambda: select(NOTE.c.words).union_all(select(NOTE.c.words)),
    lambda: select(ALL.cte()),
    lambda: text("SELECT words FROM toolkit.note -- UPDATE"),
    lambda: text("SELECT words FROM toolkit.note WHERE words <> 'FOR UPDATE;'"),
    lambda: text("SELECT words FROM toolkit.note").columns(column("words")),
]
WRITES: list[Callable[[], Any]] = [
    lambda: insert(NOTE).values(words="x"),
    lambda: insert(NOTE).values(words="x").returning(NOTE.c.id),
    lambda: update(NOTE).values(words="x").where(NOTE.c.id == 0),
    lambda: delete(NOTE).where(NOTE.c.id == 0),
    lambda: ALL.with_for_update(),
    lambda: ALL.with_for_update(read=True, skip_locked=True),
    lambda: select(ALL.with_for_update().subquery()),
    lambda: select(insert(NOTE).values(words="x").returning(NOTE.c.id).cte()),
    lambda: select(func.nextval("toolkit.note_id_seq")),
    lambda: select(func.pg_try_advisory_xact_lock(1)),
    lambda: select(text("nextval('toolkit.note_id_seq')")),
    lambda: text("SELECT words FROM toolkit.note FOR NO KEY UPDATE"),
    lambda: text("SELECT words FROM toolkit.note FOR SHARE"),
    lambda: text("WITH x AS (DELETE FROM toolkit.note WHERE id = 0 RETURNING 1) SELECT * FROM x"),
    lambda: text("SELECT pg_advisory_xact_lock(1)"),
    lambda: text("CREATE TABLE toolkit.other ()"),
    lambda: text("LOCK TABLE toolkit.note"),
    lambda: text("EXPLAIN ANALYZE DELETE FROM toolkit.note WHERE id = 0"),
    lambda: text("DO 'BEGIN END'"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_transaction_goes_where_its_statements_can_be_run(
    cluster: MakeCluster, kind: str
) -> None:
    servers = replicas(cluster(replicas=1))
    primary, replica = servers.nodes

    def alone(session: RoutingSession, statement: Any) -> tuple[str | None, bool]:
        """Where a statement goes, and a read that follows it in its transaction."""
        session.execute(statement)
        found = session.node, on_replica(session)
        session.rollback()
        return found

    def body(session: RoutingSession) -> None:
        for make in READS:
            assert alone(session, make()) == (replica, True), make()
        for make in WRITES:
            assert alone(session, make()) == (primary, False), make()
        session.connection()
        assert session.node == primary
        session.rollback()
        # a read first: what is read after the first write sees it
        assert notes(session) == []
        assert session.node == replica
        session.execute(insert(NOTE).values(words="one"))
        assert (notes(session), session.node) == (["one"], primary)
        with session.begin_nested():
            session.execute(insert(NOTE).values(words="two"))
        session.commit()
        assert session.node is None

    with opened(kind, servers) as sessions:
        sessions.run(body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_reads_what_was_written_and_others_when_it_is_there(
    cluster: MakeCluster, kind: str
) -> None:
    servers = replicas(cluster(replicas=1))
    primary, replica = servers.nodes
    with opened(kind, servers) as sessions, opened("blocking", servers) as others:
        servers.pause_replay(replica)
        sessions.run(lambda s: add(s, "one"))
        assert sessions.run(notes) == ["one"]
        assert sessions.run(lambda s: (s.execute(ALL).all(), s.node)[1]) == primary
        assert others.run(notes) == []  # as old as the settings allow

        token = sessions.run(lambda s: s.token())
        after = toolkit.after(token)
        assert others.run(notes, freshness=after) == ["one"]
        assert others.run(notes, info={"freshness": "strong"}) == ["one"]
        assert others.run(notes, freshness=toolkit.bounded(30.0)) == []

        def choosing(session: RoutingSession) -> list[Any]:
            old = session.scalars(ALL).all()
            place = session.node
            new = session.scalars(ALL, execution_options={"freshness": after}).all()
            return [old, place, new, session.node, session.scalars(ALL).all()]

        # one that asks for more than the node was chosen for is answered by the primary
        assert others.run(choosing) == [[], replica, ["one"], primary, ["one"]]
        with pytest.raises(QueryError, match="freshness: 'new' is none of"):
            others.run(lambda s: on_replica(s, freshness="new"))

        # a function that writes, asked for as its error says
        def jot(session: RoutingSession) -> None:
            words = select(func.toolkit.jot("two"))
            session.execute(words, execution_options={"freshness": "strong"})
            session.commit()

        sessions.run(jot)
        assert sessions.run(notes) == ["one", "two"]
        sessions.run(lambda s: (s.execute(delete(NOTE).where(NOTE.c.words == "two")), s.commit()))

        # from a session to a store, and back
        settings = settings_of(servers)
        with toolkit.connect(settings) as store:
            bars = {"ts": ["2024-01-01Z"], "close": [1.0]}
            store.write("candles", bars, series="BTC-USD")
            count = text("SELECT count(*) FROM toolkit.candles")
            assert others.run(lambda s: s.scalar(count)) == 0
            told = toolkit.after(store.token())
            assert others.run(lambda s: s.scalar(count), freshness=told) == 1
            sessions.run(lambda s: (s.execute(text("DELETE FROM toolkit.candles")), s.commit()))
            gone = toolkit.after(sessions.run(lambda s: s.token()))
            week = ("2024-01-01Z", "2024-01-02Z")
            assert len(store.read("candles", "BTC-USD", *week, freshness=gone)) == 0

        servers.resume_replay(replica)
        servers.wait_replayed()
        assert sessions.run(lambda s: (notes(s), s.node)) == (["one"], replica)
        assert others.run(lambda s: (notes(s), s.node), freshness=after) == (["one"], replica)


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_go_on_when_a_replica_dies_and_when_the_primary_does(
    cluster: MakeCluster, kind: str
) -> None:
    servers = replicas(cluster(replicas=2), 2)
    with opened(kind, servers, freshness=toolkit.bounded(30.0)) as sessions:
        sessions.run(lambda s: add(s, "one"))
        servers.wait_replayed()

        def losing(session: RoutingSession) -> str:
            assert on_replica(session)
            lost = session.node
            assert lost is not None
            servers.kill(lost)
            with pytest.raises(DBAPIError) as failed:
                notes(session)
            assert failed.value.connection_invalidated
            session.rollback()
            assert notes(session) == ["one"]  # the next transaction goes elsewhere
            assert session.node != lost
            # what was read of a replica that dies then is no reason to fail
            return lost

        lost = sessions.run(losing)
        servers.start(lost)
        until(lambda: sessions.cluster.health.nodes[lost].is_up, f"{lost} is back")

        def writing(session: RoutingSession) -> None:
            notes(session)
            read = session.node
            assert read is not None
            session.execute(insert(NOTE).values(words="two"))
            servers.kill(read)
            session.commit()
            servers.start(read)

        servers.wait_streaming()
        sessions.run(writing)
        assert sessions.run(notes, freshness="strong") == ["one", "two"]
        servers.wait_streaming()
        servers.wait_replayed()

        def freezing(session: RoutingSession) -> None:
            session.execute(insert(NOTE).values(words="lost"))
            servers.freeze("pg1")
            servers.promote("pg2")
            with pytest.raises(DBAPIError) as failed:  # cut off: not after 30 s
                session.execute(insert(NOTE).values(words="lost"))
            assert failed.value.connection_invalidated
            session.rollback()
            add(session, "three")  # waits for the new primary
            session.execute(select(NOTE).with_for_update())
            assert session.node == "pg2"

        sessions.run(freezing)
        servers.thaw("pg1")
        until(lambda: str(sessions.cluster.health.nodes["pg1"].role) == "fenced", "pg1 is fenced")
        sessions.run(lambda s: add(s, "four"))
        assert sessions.run(notes, freshness="strong") == ["one", "two", "three", "four"]
        servers.demote("pg1", "pg2")
        servers.wait_replayed("pg1")


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_nobody_answers_is_of_unknown_outcome(
    cluster: MakeCluster, kind: str
) -> None:
    # a synchronous standby that does not confirm keeps the COMMIT waiting
    servers = replicas(cluster(replicas=1, sync=True))
    with opened(kind, servers) as sessions:

        def committing(session: RoutingSession) -> None:
            session.execute(insert(NOTE).values(words="perhaps"))
            servers.freeze("pg2")
            with pytest.raises(OutcomeUnknown, match="pg1"):
                session.commit()

        def shot() -> None:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            until(lambda: servers.ask("pg1", waits) == 1, "the COMMIT waits")
            servers.kill("pg1")

        thread = threading.Thread(target=shot)
        thread.start()
        sessions.run(committing)
        thread.join()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_takes_no_writes_is_left_at_once(cluster: MakeCluster, kind: str) -> None:
    servers = replicas(cluster(replicas=1))
    with opened(kind, servers, freshness=toolkit.bounded(30.0)) as sessions:

        def jotting(session: RoutingSession) -> None:
            jot = select(func.toolkit.jot("x"))
            with pytest.raises(DBAPIError, match="read-only") as failed:
                session.execute(jot)
            assert "freshness='strong'" in failed.value.__notes__[0]
            assert not failed.value.connection_invalidated
            session.rollback()
            session.execute(jot, execution_options={"freshness": "strong"})
            session.commit()

        sessions.run(jotting)
        assert sessions.run(notes, freshness="strong") == ["x"]
        # a primary that is demoted between two looks: who writes to it is the first to hear
        writes = insert(NOTE).values(words="y")

        def demoted(session: RoutingSession) -> None:
            notes(session)
            session.connection()
            assert session.node == "pg1"
            session.execute(text("SET TRANSACTION READ ONLY"))
            with pytest.raises(DBAPIError, match="read-only") as failed:
                session.execute(writes)
            assert failed.value.connection_invalidated
            session.rollback()
            session.execute(writes)  # it is looked at anew, and is the primary
            session.commit()

        sessions.run(demoted)
        assert sessions.run(notes, freshness="strong") == ["x", "y"]
        engine = sessions.made.engine("pg1")
        assert engine.pool.checkedout() == 0


def test_no_password_is_shown(cluster: MakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    servers = cluster(replicas=1)
    settings = settings_of(servers, wait=0.5)
    secret = urlsplit(servers.dsn("pg1")).password
    assert secret is not None
    caplog.set_level("DEBUG")
    for kind in KINDS:
        with sessions_of(kind, settings) as sessions:
            made = sessions.made
            sessions.run(on_replica)
            shown = [repr(made), repr(made.routing), repr(made.engine("pg1")), repr(made.kw)]
            shown += [sessions.run(repr), str(made.engine("pg1").url)]
            assert not [text for text in shown if secret in text]
    wrong = replace(
        settings.topology.shards[0].primary,
        conninfo=servers.dsn("pg1").replace(secret, "mistaken"),
    )
    denied = replace(settings, topology=Topology((Shard("main", wrong),)))
    for kind in KINDS:
        with sessions_of(kind, denied) as sessions, pytest.raises(AccessDenied) as failed:
            sessions.run(on_replica)
        said = "".join(traceback.format_exception(failed.value))
        assert "mistaken" not in said
    assert secret not in caplog.text
    assert "mistaken" not in caplog.text


def test_a_connection_that_died_while_nobody_looked_is_replaced(
    cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = cluster(replicas=0)
    pid = select(func.pg_backend_pid())
    for kind in KINDS:
        with sessions_of(kind, servers.dsn("pg1")) as sessions:
            monkeypatch.setattr(engines, "_UNWATCHED_S", 0.0)
            first = sessions.run(lambda s: s.scalar(pid))
            assert sessions.run(lambda s: s.scalar(pid)) == first
            servers.ask("pg1", f"SELECT pg_terminate_backend({first}, 5000)")
            assert sessions.run(lambda s: s.scalar(pid)) != first


def test_a_forked_child_makes_connections_of_its_own(cluster: MakeCluster) -> None:
    servers = cluster(replicas=0)
    with routing_session(servers.dsn("pg1")) as sessions:
        pid = select(func.pg_backend_pid())

        def backend() -> int:
            with sessions() as session:
                return int(session.scalar(pid) or 0)

        mine = backend()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # no assertion here: only what is sent back counts
            try:
                os.write(writing, str(backend()).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading) as pipe:
            theirs = int(pipe.read())
        os.waitpid(child, 0)
        assert theirs != mine
        assert backend() == mine


def test_where_the_log_is_does_not_go_back(cluster: MakeCluster) -> None:
    # one asks before another's write, and hears after it
    servers = replicas(cluster(replicas=1))
    with opened("blocking", servers) as sessions:
        known, driver = sessions.made.routing.written, sessions.cluster.drivers["pg1"]
        ask, has_asked, may_hear = driver.fetch, threading.Event(), threading.Event()

        async def slowly(*args: Any, **options: Any) -> Any:
            found = await ask(*args, **options)
            has_asked.set()
            assert may_hear.wait(30)
            return found

        driver.fetch = slowly  # type: ignore[method-assign]  # the answer is late
        late = threading.Thread(target=lambda: drive(known.own()))
        late.start()
        assert has_asked.wait(30)
        driver.fetch = ask  # type: ignore[method-assign]  # and the next is not
        servers.pause_replay("pg2")
        sessions.run(lambda s: add(s, "one"))
        written = known.position
        may_hear.set()
        late.join()
        assert known.position == written
        assert sessions.run(notes) == ["one"]
        servers.resume_replay("pg2")


@pytest.mark.parametrize("kind", KINDS)
def test_many_callers_each_see_their_own_writes_on_slow_replicas(
    cluster: MakeCluster, kind: str
) -> None:
    servers = replicas(cluster(replicas=1))
    callers, rounds = 4, 15
    read_from: list[str | None] = []

    def see(session: RoutingSession, caller: str) -> None:
        mine = select(func.count()).where(NOTE.c.words == caller)
        for number in range(rounds):
            assert session.scalar(mine) == number
            read_from.append(session.node)
            session.rollback()
            add(session, caller)

    with opened(kind, servers) as sessions:
        servers.slow_replay("pg2", "200ms")
        sessions.run_all([partial(see, caller=str(n)) for n in range(callers)])
        servers.slow_replay("pg2", None)
    assert len(read_from) == callers * rounds
    assert "pg1" in read_from  # what the replica was too slow for
