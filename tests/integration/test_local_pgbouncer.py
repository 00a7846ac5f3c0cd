"""The local PgBouncer: through it by both drivers, its roles, and after a promotion."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tomllib
from pathlib import Path

import asyncpg
import psycopg
import pytest
from fix_local import Instances, ask, has_the_row, keep_a_row, python
from fix_pgbouncer import MakePgBouncer
from fix_replicas import REPLICATED, MakeCluster, is_stopped, until
from fix_servers import Database

from toolkit.local import LocalServers, debian
from toolkit.local.account import choose_account
from toolkit.local.state import State


@pytest.fixture
def servers(make_servers: Instances) -> LocalServers:
    servers = make_servers(settings=REPLICATED)
    servers.up(replicas=1, pgbouncer=True)
    return servers


def pid_of(servers: LocalServers) -> int:
    status = servers.status().pgbouncer
    assert status is not None
    assert status.pid is not None
    return status.pid


def plain(dsn: str | None) -> str:
    """An address without the words that only libpq knows."""
    assert dsn is not None
    return dsn.partition("?")[0]


def test_both_drivers_read_and_write_through_it(servers: LocalServers) -> None:
    endpoints = servers.endpoints()
    assert endpoints.pooled is not None
    with psycopg.connect(endpoints.pooled) as connection:
        connection.execute("CREATE TABLE toolkit.kept AS SELECT 42 AS answer")

    async def by_asyncpg() -> object:
        # 1.18 knows no prepared statements
        connection = await asyncpg.connect(plain(endpoints.pooled), statement_cache_size=0)
        try:
            return await connection.fetchval("SELECT answer FROM toolkit.kept")
        finally:
            await connection.close()

    assert asyncio.run(by_asyncpg()) == 42


def test_each_node_has_a_database_of_its_name(servers: LocalServers) -> None:
    shard = tomllib.loads(servers.endpoints().topology())["shards"][0]
    nodes = [shard["primary"], *shard["replicas"]]
    assert [found["name"] for found in nodes] == ["pg1", "pg2"]
    where = "SELECT (current_setting('port'), pg_is_in_recovery())::text"
    for found in nodes:
        assert ask(found["dsn"], where) == ask(found["direct"], where)
    assert [ask(found["dsn"], "SELECT pg_is_in_recovery()") for found in nodes] == [False, True]


def test_topology_without_pgbouncer_is_direct(make_servers: Instances) -> None:
    endpoints = make_servers().up()
    shard = tomllib.loads(endpoints.topology())["shards"]
    assert shard == [{"name": "local", "primary": {"name": "pg1", "dsn": endpoints.dsn}}]


def test_wrong_password_is_refused_and_only_the_console_user_sees_the_console(
    servers: LocalServers,
) -> None:
    endpoints = servers.endpoints()
    assert endpoints.pooled is not None
    assert endpoints.console_dsn is not None
    for dsn in (endpoints.pooled, endpoints.console_dsn):
        for password in ("wrong", ""):
            with pytest.raises(psycopg.OperationalError, match=r"password|authentication"):
                psycopg.connect(dsn, password=password)
    with pytest.raises(psycopg.OperationalError, match=r"not allowed|not authorized|no such"):
        psycopg.connect(endpoints.pooled, dbname="pgbouncer")
    with psycopg.connect(endpoints.console_dsn, autocommit=True) as console:
        modes = {row[0]: row[1] for row in console.execute("SHOW CONFIG")}
    assert modes["pool_mode"] == "transaction"
    assert modes["unix_socket_dir"] in ("", None)
    assert modes["auth_type"] == "scram-sha-256"


def test_passwords_show_in_no_argument_log_or_repr(servers: LocalServers) -> None:
    endpoints = servers.endpoints()
    shown = [repr(endpoints), repr(servers.status())]
    shown += [Path(f"/proc/{pid_of(servers)}/cmdline").read_text()]
    shown += [path.read_text() for path in servers.layout.logs.iterdir()]
    state = State.load(servers.layout.state) or State()
    for password in (state.pgbouncer_password, state.toolkit_password, state.replication_password):
        assert not any(password in text for text in shown)
    # the role's secret is a verifier, also in PgBouncer's own file
    assert state.toolkit_password not in (servers.layout.pgbouncer / "userlist.txt").read_text()


def test_killed_it_is_started_again_and_without_it_it_is_gone(servers: LocalServers) -> None:
    endpoints, before = servers.endpoints(), pid_of(servers)
    os.kill(before, signal.SIGKILL)
    until(lambda: not servers.status().is_ready, "it is dead")
    assert servers.up() == endpoints
    after = pid_of(servers)
    assert after != before
    assert ask(str(endpoints.pooled), "SELECT 1") == 1
    assert servers.up(pgbouncer=False).pooled is None
    assert servers.status().pgbouncer is None
    assert is_stopped(after)


def test_frozen_it_can_be_stopped(servers: LocalServers) -> None:
    os.kill(pid_of(servers), signal.SIGSTOP)
    assert servers.down()
    assert not any(server.pid for server in servers.status().servers)


def test_port_that_is_taken_moves_it(servers: LocalServers) -> None:
    before = servers.endpoints()
    servers.down()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", (State.load(servers.layout.state) or State()).pgbouncer_port or 0))
        thief.listen()
        after = servers.up()
    assert after.dsn == before.dsn
    assert after.pooled != before.pooled
    assert ask(str(after.pooled), "SELECT 1") == 1


def test_pooled_address_leads_to_the_promoted_node_after_up(cluster: MakeCluster) -> None:
    servers = cluster(1, pgbouncer=True)
    endpoints = servers.endpoints
    keep_a_row(endpoints)
    pid = pid_of(servers.local)
    servers.wait_replayed()
    servers.kill("pg1")
    servers.promote("pg2")
    after = servers.local.up()
    assert after.pooled == endpoints.pooled
    assert pid_of(servers.local) == pid
    until(lambda: _writes(str(after.pooled)), "it leads to the new primary")
    assert has_the_row(after)


def _writes(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn, connect_timeout=2) as connection:
            connection.execute("UPDATE toolkit.kept SET answer = 42")
    except psycopg.OperationalError:
        return False
    return True


NOT_FOUND = """
import os, sys
from pathlib import Path
from toolkit.local import debian
from toolkit.local.account import choose_account
os.environ["PATH"] = sys.argv[1]
debian.shutil.which = lambda name, path=None: None
try:
    debian.pgbouncer(choose_account(Path("/nonexistent")), Path(sys.argv[1]) / "store")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_no_pgbouncer_and_no_way_to_get_it_says_what_to_install(tmp_path: Path) -> None:
    out, err = python(NOT_FOUND, tmp_path).communicate(timeout=60)
    assert out.startswith("Unavailable there is no pgbouncer on the PATH"), err
    assert "apt-get install pgbouncer" in out
    assert not [*(tmp_path / "store").iterdir()]


def test_system_pgbouncer_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pgbouncer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = debian.pgbouncer(choose_account(tmp_path), tmp_path / "store")
    assert found.command == [str(program.resolve())]
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("version", ["1.18", "1.24"])
def test_fixtures_pgbouncer_serves_with_the_settings_it_is_given(
    pgbouncer: MakePgBouncer, database: Database, version: str
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version=version, max_client_conn=77)
    assert str(bouncer.console("SHOW VERSION")[0]["version"]).startswith(f"PgBouncer {version}.")
    assert ask(bouncer.dsn, "SELECT current_database()") == database.name
    bouncer.configure(max_client_conn=78)
    until(lambda: _setting(bouncer.console("SHOW CONFIG"), "max_client_conn") == "78", "it reads")
    with bouncer.frozen(), pytest.raises(psycopg.OperationalError):
        psycopg.connect(bouncer.dsn, connect_timeout=2)
    bouncer.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(bouncer.dsn)
    bouncer.start()
    assert ask(bouncer.dsn, "SELECT 1") == 1


def _setting(rows: list[dict[str, object]], key: str) -> object:
    return next(row["value"] for row in rows if row["key"] == key)
