"""SQLAlchemy's rarer ways to commit, and what becomes of connections that are lost or few."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
import time
import warnings
from dataclasses import replace

import pytest
from fix_pgbouncer import Bouncer, MakePgBouncer
from fix_replicas import MakeCluster, until
from fix_servers import Database
from fix_sessions import (
    ALL,
    KINDS,
    NOTE,
    Sessions,
    add,
    notes,
    on_replica,
    opened,
    replicas,
    sessions_of,
    settings_of,
)
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError

import toolkit
from toolkit.errors import NoConnection, OutcomeUnknown
from toolkit.sqlalchemy import RoutingSession, routing_session

TWO_PHASES = {"max_prepared_transactions": "10"}


def another(sessions: Sessions) -> RoutingSession:
    """Return another session, for use within the body of one."""
    return RoutingSession(routing=sessions.made.routing, freshness=toolkit.bounded(30.0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_committed_in_two_phases_is_read_back(cluster: MakeCluster, kind: str) -> None:
    servers = replicas(cluster(replicas=1, settings=TWO_PHASES))
    with opened(kind, servers, twophase=True) as sessions:
        servers.pause_replay("pg2")
        sessions.run(lambda s: add(s, "one"))
        assert sessions.made.routing.written.position is not None
        assert sessions.run(notes, twophase=False) == ["one"]

        def prepared(session: RoutingSession) -> None:
            session.execute(insert(NOTE).values(words="two"))
            session.prepare()
            session.commit()

        sessions.run(prepared)
        assert sessions.run(notes, twophase=False) == ["one", "two"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_phase_that_nobody_answers_is_of_unknown_outcome(
    cluster: MakeCluster, kind: str
) -> None:
    servers = replicas(cluster(replicas=1, sync=True, settings=TWO_PHASES))
    with opened(kind, servers, twophase=True) as sessions:

        def committing(session: RoutingSession) -> None:
            session.execute(insert(NOTE).values(words="perhaps"))
            session.prepare()
            servers.freeze("pg2")
            shooting.start()
            with pytest.raises(OutcomeUnknown, match="pg1"):
                session.commit()

        def shot() -> None:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            until(lambda: servers.ask("pg1", waits) == 1, "the COMMIT PREPARED waits")
            servers.kill("pg1")

        shooting = threading.Thread(target=shot)
        sessions.run(committing)
        shooting.join()


@pytest.mark.parametrize("of_engine", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_commits_itself_is_read_back_before_its_session_ends(
    cluster: MakeCluster, kind: str, of_engine: bool
) -> None:
    servers = replicas(cluster(replicas=1))
    alone = {"isolation_level": "AUTOCOMMIT"}
    with opened(kind, servers, engine=alone if of_engine else {}) as sessions:
        servers.pause_replay("pg2")

        def writing(session: RoutingSession) -> None:
            connection = session.connection(execution_options={} if of_engine else alone)
            connection.execute(insert(NOTE).values(words="one"))
            with RoutingSession(routing=sessions.made.routing) as other:
                assert notes(other) == ["one"]

        sessions.run(writing)
        assert sessions.run(notes) == ["one"]
        assert sessions.run(notes, freshness=toolkit.bounded(30.0)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_who_read_from_a_replica_that_was_promoted_writes_to_it(
    cluster: MakeCluster, kind: str
) -> None:
    servers = replicas(cluster(replicas=1))
    with opened(kind, servers) as sessions:
        health = sessions.cluster.health

        def reading_then_writing(session: RoutingSession) -> None:
            assert notes(session) == []
            assert session.node == "pg2"
            servers.kill("pg1")
            servers.promote("pg2")
            until(lambda: health.primary is not None and health.primary.name == "pg2", "pg2 leads")
            add(session, "one")
            assert notes(session) == ["one"]

        sessions.run(reading_then_writing)
        assert sessions.made.engine("pg2").pool.checkedout() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_that_has_nothing_left_is_passed_over(cluster: MakeCluster, kind: str) -> None:
    servers = replicas(cluster(replicas=1))
    settings = settings_of(servers, wait=0.5)
    few = replace(settings, pool=replace(settings.pool, max_size=1, pool_timeout=0.2))
    with sessions_of(kind, few, freshness=toolkit.bounded(30.0)) as sessions:
        until(lambda: sessions.run(on_replica), "the replica is fresh")

        def crowd(session: RoutingSession) -> None:
            assert on_replica(session)
            with another(sessions) as second, another(sessions) as third:
                assert not on_replica(second)
                with pytest.raises(NoConnection, match="no connection was free"):
                    on_replica(third)
            assert on_replica(session)

        sessions.run(crowd)
        assert sessions.cluster.health.nodes["pg2"].is_up


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_whose_statements_fail_is_left_alone(cluster: MakeCluster, kind: str) -> None:
    servers = replicas(cluster(replicas=1))
    with servers.admin("pg1", "toolkit") as admin:
        admin.execute(
            "CREATE FUNCTION toolkit.clash() RETURNS int LANGUAGE plpgsql AS $$ BEGIN "
            "IF pg_is_in_recovery() THEN RAISE EXCEPTION 'a conflict with recovery' "
            "USING ERRCODE = '40001'; END IF; RETURN 1; END $$"
        )
    servers.wait_replayed()
    clash = select(func.toolkit.clash())
    with opened(kind, servers, freshness=toolkit.bounded(30.0)) as sessions:

        def failing(session: RoutingSession) -> None:
            with pytest.raises(DBAPIError, match="a conflict with recovery"):
                session.execute(clash)

        for _ in range(5):
            sessions.run(failing)
        assert sessions.run(lambda s: (s.scalar(clash), s.node)) == (1, "pg1")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_on_its_way_is_counted_until_it_is_given_back(
    cluster: MakeCluster, kind: str
) -> None:
    servers = replicas(cluster(replicas=1))
    with opened(kind, servers, freshness=toolkit.bounded(30.0)) as sessions:
        load = sessions.cluster.loads["pg2"]

        def dropping(session: RoutingSession) -> None:
            on_replica(session)
            for _ in range(3):
                dropped = another(sessions)
                dropped.execute(ALL)
                del dropped
            gc.collect()
            assert load.inflight == 1

        def losing(session: RoutingSession) -> None:
            on_replica(session)
            assert load.inflight == 1
            sessions.made.routing._lines["pg2"].cut()
            with pytest.raises(DBAPIError):
                on_replica(session)
            session.rollback()
            assert load.inflight == 0

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy says that an asyncio one was dropped
            sessions.run(dropping)
        assert load.inflight == 0
        sessions.run(losing)
        sessions.run(on_replica)
        assert load.inflight == 0


def test_what_a_forked_child_gives_up_is_its_parents_still(cluster: MakeCluster) -> None:
    servers = replicas(cluster(replicas=0))
    with routing_session(servers.dsn("pg1")) as sessions, sessions() as session:
        session.execute(insert(NOTE).values(words="one"))
        routing = sessions.routing
        child = os.fork()
        if child == 0:
            status = 1
            try:
                routing._lines["primary"].cut()
                with sessions() as other:
                    other.execute(text("SELECT 1"))
                    inflight = routing.cluster.loads["primary"].inflight
                status = (inflight, routing.cluster.loads["primary"].inflight) != (1, 0)
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        session.commit()
        assert notes(session) == ["one"]


def speak_tls(bouncer: Bouncer) -> str:
    """Let a PgBouncer speak TLS, with a certificate of its own making, and return its address."""
    pair = {"-out": bouncer.home / "certificate", "-keyout": bouncer.home / "key"}
    command = "openssl req -new -x509 -nodes -newkey rsa:2048 -subj /CN=bouncer".split()  # noqa: SIM905
    words = [str(word) for entry in pair.items() for word in entry]
    subprocess.run([*command, *words], check=True, capture_output=True)
    certificate, key = pair.values()
    for path in (certificate, key):
        bouncer.account.give(path)
    bouncer.stop()
    bouncer.configure(
        client_tls_sslmode="allow", client_tls_cert_file=certificate, client_tls_key_file=key
    )
    bouncer.start()
    return bouncer.dsn.replace("sslmode=disable", "sslmode=require")


@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_over_tls_is_told_too(
    pgbouncer: MakePgBouncer, database: Database, kind: str
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version="1.24")
    with sessions_of(kind, speak_tls(bouncer)) as sessions:
        routing = sessions.made.routing
        one = select(func.abs(-1))

        def waiting(session: RoutingSession) -> None:
            with another(sessions) as gone, another(sessions) as waits:
                assert gone.scalar(one) == waits.scalar(one) == 1
                own = gone.connection().connection.driver_connection  # it is remembered yet
                gone.connection().invalidate()
                with bouncer.frozen():
                    cutting = threading.Timer(0.3, routing._lines["primary"].cut)
                    cutting.start()
                    with pytest.raises(DBAPIError) as failed:
                        waits.scalar(one)
                    assert failed.value.connection_invalidated
                    cutting.join()
                gone.rollback()
                del own
            assert session.scalar(one) == 1

        began = time.monotonic()
        sessions.run(waiting)
        assert time.monotonic() - began < 15
