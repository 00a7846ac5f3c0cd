"""The local servers' replicas: made, kept, taken away, killed, and what a commit waits for."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psycopg
import pytest
from fix_local import UP, Instances, ask, has_the_row, keep_a_row, python
from fix_replicas import REPLICATED, is_stopped, until
from fix_servers import SETTINGS, sweep, system_bin

from toolkit.errors import ConfigError
from toolkit.local import Endpoints, LocalServers
from toolkit.local.replication import node
from toolkit.local.state import State


@pytest.fixture(params=["18", "15"])
def servers(make_servers: Instances, request: pytest.FixtureRequest) -> LocalServers:
    """An instance of either version whose commits are in the log."""
    pg_bin = system_bin("15") if request.param == "15" else None
    return make_servers(settings=REPLICATED, pg_bin=pg_bin)


def everyone_has_the_row(endpoints: Endpoints) -> bool:
    try:
        return all(
            ask(dsn, "SELECT answer FROM toolkit.kept") == 42 for dsn in addresses(endpoints)
        )
    except psycopg.errors.UndefinedTable:  # not yet
        return False


def addresses(endpoints: Endpoints) -> list[str]:
    return [endpoints.dsn, *endpoints.replicas.values()]


def roles(servers: LocalServers) -> dict[str, tuple[str | None, str | None]]:
    """Role and stream of each node."""
    found = (servers.status().postgres, *servers.status().others)
    return {str(server.node): (server.role, server.stream) for server in found}


def test_replicas_are_made_and_follow(servers: LocalServers) -> None:
    endpoints = servers.up(replicas=2)
    keep_a_row(endpoints)
    until(lambda: everyone_has_the_row(endpoints), "the row is on both replicas")
    assert list(endpoints.replicas) == ["pg2", "pg3"]
    assert roles(servers) == {
        "pg1": ("primary", None),
        "pg2": ("replica", "streaming"),
        "pg3": ("replica", "streaming"),
    }
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        keep_a_row(replace(endpoints, dsn=endpoints.replicas["pg2"]))


def test_up_again_is_quick_and_down_keeps_all(servers: LocalServers) -> None:
    start = time.perf_counter()
    endpoints = servers.up(replicas=2)
    first = time.perf_counter() - start
    keep_a_row(endpoints)
    before = [server.pid for server in servers.status().servers]
    start = time.perf_counter()
    assert servers.up() == servers.up(replicas=2) == endpoints
    assert time.perf_counter() - start < first / 2
    assert [server.pid for server in servers.status().servers] == before
    assert servers.down()
    assert not any(server.pid for server in servers.status().servers)
    assert servers.up() == endpoints
    until(lambda: everyone_has_the_row(endpoints), "the row is on both replicas")


def test_instance_made_before_gets_replicas_by_a_restart_that_is_said(
    make_servers: Instances,
) -> None:
    said: list[str] = []
    servers = make_servers(settings=REPLICATED, on_progress=said.append)
    keep_a_row(servers.up())
    # as an instance is left by who knew no replicas
    state = asdict(State.load(servers.layout.state) or State())
    state["postgres_port"] = state.pop("nodes")["pg1"]
    for later in ("replication_password", "pgbouncer_password", "pgbouncer_port"):
        del state[later]
    del state["is_pooled"], state["is_sync"]
    servers.layout.state.write_text(json.dumps(state))
    conf = servers.layout.postgres / "toolkit.conf"
    old = [line for line in conf.read_text().splitlines() if "include" not in line]
    conf.write_text("\n".join([*old, ""]))
    assert servers.up().replicas == {}
    assert not any("restarting" in line for line in said)
    endpoints = servers.up(replicas=1)
    assert any("restarting" in line for line in said)
    assert has_the_row(endpoints)
    until(lambda: everyone_has_the_row(endpoints), "the row is on the replica")


def test_replicas_can_be_fewer_and_none(servers: LocalServers) -> None:
    keep_a_row(servers.up(replicas=2, sync=True))
    assert list(servers.up(replicas=1).replicas) == ["pg2"]
    assert not servers.layout.data("pg3").exists()
    slots = "SELECT coalesce(string_agg(slot_name, ' '), '') FROM pg_replication_slots"
    assert ask(servers.endpoints().admin_dsn, slots) == "toolkit_pg2"
    endpoints = servers.up(replicas=0)
    assert endpoints.replicas == {}
    assert ask(endpoints.admin_dsn, slots) == ""
    # nothing waits for replicas that are gone
    with psycopg.connect(endpoints.dsn) as connection:
        connection.execute("UPDATE toolkit.kept SET answer = 42")
    assert has_the_row(endpoints)


def test_killed_replica_comes_back_and_catches_up(servers: LocalServers) -> None:
    endpoints = servers.up(replicas=1)
    server = node(servers.layout, "pg2")
    running = server.running()
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: server.running() is None, "the replica is dead")
    assert not servers.status().is_ready
    keep_a_row(endpoints)
    assert servers.up() == endpoints
    until(lambda: everyone_has_the_row(endpoints), "the row is on the replica")


def test_sync_commit_waits_for_a_replica_and_async_does_not(servers: LocalServers) -> None:
    endpoints = servers.up(replicas=2, sync=True)
    keep_a_row(endpoints)
    followers = [server for server in servers.status().others if server.pid]
    write = "UPDATE toolkit.kept SET answer = answer"
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(endpoints.dsn, autocommit=True) as writer:
        os.kill(followers[0].pid or 0, signal.SIGKILL)
        writer.execute(write)  # one of two is enough
        os.kill(followers[1].pid or 0, signal.SIGKILL)
        until(lambda: not any(s.pid for s in servers.status().others), "both replicas are dead")
        waiting = pool.submit(writer.execute, write)
        until(lambda: ask(endpoints.admin_dsn, waits) == 1, "the commit waits")
        assert servers.up() == endpoints
        waiting.result(30)
    servers.up(sync=False)
    shown = "SELECT current_setting('synchronous_standby_names')"
    until(lambda: ask(endpoints.dsn, shown) == "", "commits wait for nobody")


@pytest.mark.parametrize("wish", [{"replicas": 9}, {"replicas": -1}, {"sync": True}])
def test_impossible_wishes_are_refused_before_anything_is_made(
    make_servers: Instances, wish: dict[str, int]
) -> None:
    servers = make_servers()
    with pytest.raises(ConfigError, match="local servers"):
        servers.up(**wish)  # type: ignore[arg-type]
    assert not servers.layout.postgres.exists()


def test_port_of_a_replica_that_is_taken_moves_it(make_servers: Instances) -> None:
    servers = make_servers(settings=REPLICATED)
    before = servers.up(replicas=1)
    servers.down()
    port = (State.load(servers.layout.state) or State()).nodes["pg2"]
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port or 0))
        thief.listen()
        after = servers.up()
    assert after.dsn == before.dsn
    assert after.replicas != before.replicas
    assert roles(servers)["pg2"] == ("replica", "streaming")


def test_replicas_follow_a_primary_whose_port_moved(make_servers: Instances) -> None:
    servers = make_servers(settings=REPLICATED)
    servers.up(replicas=1)
    servers.down()
    port = (State.load(servers.layout.state) or State()).nodes["pg1"]
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port or 0))
        thief.listen()
        servers.up()
    assert roles(servers)["pg2"] == ("replica", "streaming")


UP_REPLICAS = UP.replace(".up()", ".up(replicas=2)")


def test_two_ups_at_once_make_one_set_of_replicas(make_servers: Instances) -> None:
    servers = make_servers()
    arguments = (UP_REPLICAS, servers.layout.root, servers.layout.name)
    both = [python(*arguments) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(roles(servers)) == 3
    assert servers.status().is_ready


@pytest.mark.parametrize("moment", ["pgpass", "making-*", "pg2", "pg2/postmaster.pid", "pg3"])
def test_up_killed_midway_is_taken_up_again(make_servers: Instances, moment: str) -> None:
    servers = make_servers(settings=REPLICATED)
    keep_a_row(servers.up())
    process = python(UP_REPLICAS, servers.layout.root, servers.layout.name)
    deadline = time.monotonic() + 60
    while not [*servers.layout.home.glob(moment)]:
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.kill()
    process.communicate()
    endpoints = servers.up(replicas=2)
    until(lambda: everyone_has_the_row(endpoints), "the row is on both replicas")
    assert roles(servers)["pg3"] == ("replica", "streaming")


def test_root_may_hold_spaces_quotes_and_accents(run_folder: Path) -> None:
    root = run_folder / "it's a \\ “replikat” für Prüfungen"
    servers = LocalServers(root, settings=SETTINGS)
    try:
        servers.up(replicas=1, pgbouncer=True)
        assert roles(servers)["pg2"] == ("replica", "streaming")
        assert servers.status().is_ready
    finally:
        sweep(root)


def test_replication_role_copies_and_may_nothing_else(make_servers: Instances) -> None:
    servers = make_servers(settings=REPLICATED)
    endpoints = servers.up(replicas=1)
    powers = ask(
        endpoints.admin_dsn,
        "SELECT rolreplication AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls) "
        "FROM pg_roles WHERE rolname = 'toolkit_replication'",
    )
    assert powers is True
    passfile = servers.layout.passfile
    assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
    password = passfile.read_text().strip().rpartition(":")[2]
    assert len(password) >= 32
    told = [path.read_text() for path in servers.layout.data("pg2").glob("*.conf")]
    shown = [*told, *(path.read_text() for path in servers.layout.logs.iterdir())]
    assert not any(password in text for text in shown)
    with (
        psycopg.connect(endpoints.dsn, user="toolkit_replication", password=password) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT FROM toolkit.kept")


def test_reset_leaves_one_server_to_be_made_and_nothing_of_the_others(
    make_servers: Instances,
) -> None:
    servers = make_servers(settings=REPLICATED)
    endpoints = servers.up(replicas=1, pgbouncer=True)
    keep_a_row(endpoints)
    found = servers.status().servers
    servers.reset()
    assert sorted(path.name for path in servers.layout.home.iterdir()) == ["lock", "state.json"]
    assert all(is_stopped(server.pid or 0) for server in found)
    again = servers.up()
    assert (again.dsn, again.replicas, again.pooled) == (endpoints.dsn, {}, None)
