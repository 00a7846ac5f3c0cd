"""The local servers after a promotion: who is what, who follows whom, and the way back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fix_local import Instances, ask, has_the_row, keep_a_row
from fix_replicas import REPLICATED, Cluster, MakeCluster

from toolkit.errors import ConfigError, Unavailable
from toolkit.local import LocalServers
from toolkit.local.replication import node


def roles(servers: LocalServers) -> dict[str, tuple[str | None, str | None]]:
    """Role and stream of each node."""
    found = (servers.status().postgres, *servers.status().others)
    return {str(server.node): (server.role, server.stream) for server in found}


def promote(servers: Cluster, name: str) -> None:
    """As somebody would do it by hand."""
    servers.wait_replayed(name)
    assert servers.ask(name, "SELECT pg_promote()") is True


def test_promoted_replica_is_the_primary_and_the_old_one_is_left_alone(
    cluster: MakeCluster,
) -> None:
    servers = cluster(2)
    keep_a_row(servers.endpoints)
    servers.wait_replayed()
    servers.stop("pg1")
    assert servers.ask("pg2", "SELECT pg_promote()") is True
    assert roles(servers.local) == {
        "pg1": ("replaced", None),
        "pg2": ("primary", None),
        "pg3": ("replica", "not streaming"),
    }
    endpoints = servers.local.up()
    assert (endpoints.primary, endpoints.dsn) == ("pg2", servers.dsn("pg2"))
    assert list(endpoints.replicas) == ["pg3"]
    assert has_the_row(endpoints)
    assert roles(servers.local)["pg3"] == ("replica", "streaming")
    assert node(servers.layout, "pg1").running() is None
    # and again from nothing running
    servers.local.down()
    assert servers.local.up() == endpoints
    assert has_the_row(endpoints)
    assert node(servers.layout, "pg1").is_made
    assert not servers.local.status().is_ready


def test_old_primary_with_writes_of_its_own_rejoins_without_them(
    cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    servers = cluster(1)
    promote(servers, "pg2")
    # both are up, and each takes writes
    with servers.admin("pg1", "toolkit") as lost, servers.admin("pg2", "toolkit") as kept:
        lost.execute("CREATE TABLE toolkit.lost AS SELECT generate_series(1, 10000) AS n")
        lost.execute("CHECKPOINT")
        kept.execute("CREATE TABLE toolkit.kept AS SELECT 42 AS answer")
        kept.execute("GRANT SELECT ON toolkit.kept TO toolkit")
    said = servers.local.up()
    assert (said.primary, said.replicas) == ("pg2", {})
    endpoints = servers.local.rejoin("pg1")
    assert roles(servers.local) == {"pg1": ("replica", "streaming"), "pg2": ("primary", None)}
    servers.wait_replayed("pg1")
    assert ask(endpoints.replicas["pg1"], "SELECT answer FROM toolkit.kept") == 42
    assert ask(endpoints.replicas["pg1"], "SELECT to_regclass('toolkit.lost')") is None
    assert "pg_rewind failed" not in caplog.text
    slots = "SELECT count(*) FROM pg_replication_slots"
    assert servers.ask("pg1", slots) == 0
    assert servers.ask("pg2", slots) == 1
    servers.local.down()
    assert servers.local.up() == endpoints


def test_replica_that_went_past_the_fork_is_said_and_rejoins(cluster: MakeCluster) -> None:
    servers = cluster(2)
    servers.wait_streaming()
    promote(servers, "pg2")
    with servers.admin("pg1", "toolkit") as old:
        old.execute("CREATE TABLE toolkit.lost AS SELECT generate_series(1, 10000) AS n")
        old.execute("CHECKPOINT")
    servers.local.up(pgbouncer=False)
    assert roles(servers.local)["pg3"] == ("replica", "not streaming")
    servers.local.down()
    with pytest.raises(Unavailable, match=r"pg3 does not follow pg2; `toolkit up --rejoin pg3`"):
        servers.local.up()
    assert servers.local.status().postgres.is_ready
    assert servers.local.status().valkey.is_ready
    servers.local.rejoin("pg3")
    assert roles(servers.local)["pg3"] == ("replica", "streaming")


def test_old_primary_that_cannot_be_rewound_is_copied_anew(cluster: MakeCluster) -> None:
    servers = cluster(1)
    promote(servers, "pg2")
    with servers.admin("pg1", "toolkit") as lost:
        lost.execute("CREATE TABLE toolkit.lost AS SELECT 1 AS n")
    servers.stop("pg1")
    for segment in (servers.layout.data("pg1") / "pg_wal").glob("0" * 8 + "?" * 16):
        segment.unlink()
    servers.local.rejoin("pg1")
    assert roles(servers.local)["pg1"] == ("replica", "streaming")
    assert ask(servers.dsn("pg1"), "SELECT to_regclass('toolkit.lost')") is None


def test_rejoin_killed_midway_leaves_no_half_a_node(cluster: MakeCluster) -> None:
    servers = cluster(1)
    promote(servers, "pg2")
    servers.stop("pg1")
    # as it is left when pg_rewind and its caller are killed
    servers.layout.postgres.rename(servers.layout.home / "making-0123")
    endpoints = servers.local.up()
    assert endpoints.primary == "pg2"
    assert roles(servers.local)["pg1"] == ("replica", "streaming")
    assert not [*servers.layout.home.glob("making-*")]


def test_no_primary_is_said_with_the_way_out_and_nothing_is_made(cluster: MakeCluster) -> None:
    servers = cluster(1)
    servers.local.down()
    shutil.rmtree(servers.layout.postgres)
    with pytest.raises(Unavailable, match="no node is a primary"):
        servers.local.up()
    assert not servers.layout.postgres.exists()


@pytest.mark.parametrize("name", ["pg1", "pg7", "../x", ""])
def test_only_a_node_that_is_not_the_primary_can_rejoin(make_servers: Instances, name: str) -> None:
    servers = make_servers(settings=REPLICATED)
    servers.up()
    with pytest.raises(ConfigError, match="no node that could follow pg1"):
        servers.rejoin(name)
    assert servers.status().is_ready


def test_first_node_can_go_once_another_is_the_primary(cluster: MakeCluster) -> None:
    servers = cluster(1)
    keep_a_row(servers.endpoints)
    promote(servers, "pg2")
    servers.stop("pg1")
    endpoints = servers.local.up(replicas=0)
    assert not servers.layout.postgres.exists()
    assert has_the_row(endpoints)
    servers.local.down()
    assert servers.local.up() == endpoints
    assert has_the_row(endpoints)
    assert list(servers.local.up(replicas=1).replicas) == ["pg1"]
    assert roles(servers.local)["pg1"] == ("replica", "streaming")


def test_fewer_replicas_take_the_replaced_one_first(cluster: MakeCluster) -> None:
    servers = cluster(2)
    promote(servers, "pg2")
    servers.stop("pg1")
    assert list(servers.local.up(replicas=1).replicas) == ["pg3"]
    assert not Path(servers.layout.postgres).exists()
