"""The fixtures' clusters: that what is done to them happens, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psycopg
import pytest
from fix_local import ask, python
from fix_replicas import Cluster, MakeCluster, is_stopped, until
from fix_servers import begin_run, sweep_dead_runs

from toolkit.local.layout import Layout

INSERT = "INSERT INTO toolkit.kept VALUES (1) RETURNING 1"
COUNT = "SELECT count(*) FROM toolkit.kept"


@pytest.fixture
def servers(cluster: MakeCluster) -> Cluster:
    """A primary with two replicas, and a table to write to."""
    servers = cluster(2)
    with psycopg.connect(servers.dsn("pg1")) as connection:
        connection.execute("CREATE TABLE toolkit.kept (n int)")
    servers.wait_replayed()
    return servers


def write(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(INSERT)


def test_cluster_is_migrated_and_of_the_version_under_test(
    servers: Cluster, server_version: str
) -> None:
    for name in servers.nodes:
        assert ask(servers.dsn(name), "SELECT count(*) > 0 FROM toolkit.toolkit_version") is True
        assert str(ask(servers.dsn(name), "SHOW server_version")).startswith(server_version)


def test_killed_node_is_gone_and_starts_with_what_was_committed(servers: Cluster) -> None:
    write(servers.dsn("pg1"))
    for name in ("pg2", "pg1"):
        servers.kill(name)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(servers.dsn(name))
    for name in ("pg1", "pg2"):
        servers.start(name)
    servers.wait_streaming()
    servers.wait_replayed()
    assert [ask(servers.dsn(name), COUNT) for name in servers.nodes] == [1, 1, 1]


def test_frozen_node_takes_a_connection_and_says_nothing(servers: Cluster) -> None:
    with psycopg.connect(servers.dsn("pg1"), autocommit=True) as connection:
        servers.freeze("pg1")
        start = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(servers.dsn("pg1"), connect_timeout=2)
        assert time.monotonic() - start > 1
        servers.thaw("pg1")
        # the backend was frozen, not killed
        assert connection.execute(COUNT).fetchone() == (0,)


def test_frozen_primary_is_replaced_comes_back_and_is_demoted(servers: Cluster) -> None:
    servers.freeze("pg1")
    servers.promote("pg2")
    servers.wait_streaming("pg3")
    write(servers.dsn("pg2"))
    servers.thaw("pg1")
    write(servers.dsn("pg1"))  # nobody has told it
    assert servers.primary() == "pg2"
    servers.demote("pg1", "pg2")
    servers.wait_streaming()
    servers.wait_replayed()
    assert [ask(servers.dsn(name), COUNT) for name in servers.nodes] == [1, 1, 1]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        write(servers.dsn("pg1"))


def test_replay_is_paused_slowed_and_goes_on(servers: Cluster) -> None:
    servers.pause_replay("pg2")
    write(servers.dsn("pg1"))
    servers.wait_replayed("pg3")
    assert ask(servers.dsn("pg2"), COUNT) == 0
    servers.resume_replay("pg2")
    servers.wait_replayed("pg2")
    assert ask(servers.dsn("pg2"), COUNT) == 1
    servers.slow_replay("pg3", "1500ms")
    start = time.monotonic()
    write(servers.dsn("pg1"))
    servers.wait_replayed("pg2")
    assert ask(servers.dsn("pg3"), COUNT) == 1
    until(lambda: ask(servers.dsn("pg3"), COUNT) == 2, "pg3 shows it at last")
    assert time.monotonic() - start > 1
    servers.slow_replay("pg3", None)


def test_foremost_replica_is_the_one_that_received_most(servers: Cluster) -> None:
    servers.cut_receiver("pg2")
    write(servers.dsn("pg1"))
    servers.wait_replayed("pg3")
    servers.kill("pg1")
    assert servers.foremost() == "pg3"
    servers.promote("pg3")
    servers.mend_receiver("pg2")
    servers.wait_streaming("pg2")
    servers.wait_replayed("pg2")
    assert ask(servers.dsn("pg2"), COUNT) == 1


def test_cut_receiver_gets_nothing_until_it_is_mended(servers: Cluster) -> None:
    servers.cut_receiver("pg2")
    write(servers.dsn("pg1"))
    servers.wait_replayed("pg3")
    assert ask(servers.dsn("pg2"), COUNT) == 0
    status = {server.node: server.stream for server in servers.local.status().others}
    assert status == {"pg2": "not streaming", "pg3": "streaming"}
    servers.mend_receiver("pg2")
    servers.wait_streaming("pg2")
    servers.wait_replayed("pg2")
    assert ask(servers.dsn("pg2"), COUNT) == 1


def test_commit_waits_for_the_replicas_that_are_named(cluster: MakeCluster) -> None:
    servers = cluster(1, sync=True)
    assert servers.ask("pg1", "SHOW synchronous_standby_names") == "ANY 1 (pg2)"
    synced = "SELECT sync_state FROM pg_stat_replication"
    until(lambda: servers.ask("pg1", synced) == "quorum", "pg2 is waited for")
    servers.sync("pg1")
    until(lambda: servers.ask("pg1", synced) == "async", "nobody is waited for")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fix_replicas import Bases, Cluster, REPLICATED
from fix_servers import begin_run
from toolkit.local import LocalServers
folder, _ = begin_run(Path(sys.argv[1]))
Bases(folder).copy(sys.argv[3], 1, "left")
local = LocalServers(folder, name="left", settings=REPLICATED)
cluster = Cluster(local, local.up(pgbouncer=True))
cluster.freeze("pg2")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_cluster_of_a_killed_run_is_swept_frozen_or_not(
    run_folder: Path, server_version: str
) -> None:
    parent = run_folder / "killed-clusters"
    parent.mkdir(mode=0o711)
    process = python(KILLED, parent, Path(__file__).parent.parent, server_version)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    live, descriptor = begin_run(parent)
    left = next(folder for folder in parent.iterdir() if folder != live)
    layout = Layout(left, "left")
    files = [*layout.home.glob("p*/postmaster.pid"), layout.pgbouncer / "pgbouncer.pid"]
    pids = [int(file.read_text().split()[0]) for file in files]
    assert len(pids) == 3
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    sweep_dead_runs(parent)
    os.close(descriptor)
    assert [*parent.iterdir()] == [live]
    assert all(is_stopped(pid) for pid in pids)
