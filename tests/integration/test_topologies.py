"""What a node is said to be, and what is wrong with a topology, on real servers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fix_cli import COMMAND
from fix_replicas import Cluster, MakeCluster, until
from fix_servers import Database
from fix_stores import COLOURS
from fix_topologies import DAY, metric, over, router
from psycopg.conninfo import make_conninfo

import toolkit
from toolkit.cli import main
from toolkit.cluster import Cluster as Router
from toolkit.drivers import drive
from toolkit.errors import AccessDenied, ConfigError, NoPrimary, QueryError, Unavailable
from toolkit.local.replication import slot_of
from toolkit.nodes import NodeReport, describe_nodes
from toolkit.options import CacheOptions
from toolkit_routing import Role

both = pytest.mark.parametrize("colour", COLOURS)


def reports(nodes: Router) -> dict[str, NodeReport]:
    return {r.name: r for r in drive(describe_nodes(nodes, "toolkit"))}


@contextmanager
def looking(servers: Cluster, **options: Any) -> Iterator[tuple[Any, Router]]:
    with over("blocking", servers, **options) as store:
        store.write("metrics", metric(0), series="a")
        yield store, router(store)


def seconds(nodes: Router, name: str) -> float:
    found = nodes.health.lag(name, time.monotonic()).seconds
    return float("inf") if found is None else found


# -- lag: each is classified as it is -------------------------------------------------------------


def test_an_idle_primary_and_its_first_write_after_that_make_no_replica_old(
    cluster: MakeCluster,
) -> None:
    servers = cluster(replicas=1)
    with looking(servers) as (store, nodes):
        servers.wait_replayed()
        worst = 0.0
        for _ in range(30):  # three seconds without a write
            drive(nodes.ready())
            time.sleep(0.1)
            worst = max(worst, seconds(nodes, "pg2"))
        idle = "SELECT extract(epoch FROM now() - pg_last_xact_replay_timestamp())"
        assert float(str(servers.ask("pg2", idle))) > 2.0  # what others call lag
        assert worst < 1.5
        store.write("metrics", metric(1), series="a")
        for _ in range(5):
            assert seconds(nodes, "pg2") < 1.5
            time.sleep(0.05)
        lag = reports(nodes)["pg2"].lag
        assert (lag.bytes, lag.receiver, lag.is_paused) == (0, True, False)
        assert not reports(nodes)["pg2"].problems


@pytest.mark.parametrize("cause", ["receiver", "replay"])
def test_a_replica_that_stands_still_is_said_to_and_left_alone(
    cluster: MakeCluster, cause: str
) -> None:
    servers = cluster(replicas=1)
    with looking(servers) as (store, nodes):
        servers.wait_replayed()
        if cause == "receiver":
            servers.cut_receiver("pg2")
        else:
            servers.pause_replay("pg2")
        began = time.monotonic()
        for minute in range(1, 30):
            store.write("metrics", metric(minute), series="a")
            assert len(store.read("metrics", "a", *DAY)) == minute + 1
        until(lambda: seconds(nodes, "pg2") > 1.5, "it grows old")
        assert seconds(nodes, "pg2") < time.monotonic() - began + 1.0
        report = reports(nodes)["pg2"]
        assert report.lag.bytes
        assert report.lag.bytes > 1_000
        assert report.lag.is_paused is (cause == "replay")
        if cause == "receiver":
            assert "is not connected to what it replicates" in report.problems
        else:
            assert "its replay is paused: SELECT pg_wal_replay_resume()" in report.problems
        assert store.read("metrics", "a", *DAY).plan.node == "pg1"
        old = store.read("metrics", "a", *DAY, freshness=toolkit.bounded(600))
        assert (old.plan.node, len(old)) == ("pg2", 1)
        if cause == "receiver":
            servers.mend_receiver("pg2")
        else:
            servers.resume_replay("pg2")
        until(lambda: store.read("metrics", "a", *DAY).plan.node == "pg2", "it is read from")
        assert len(store.read("metrics", "a", *DAY)) == 30


def test_a_fresh_standby_and_a_cascading_one_are_judged_by_the_primary(
    cluster: MakeCluster,
) -> None:
    servers = cluster(replicas=2)
    servers.stop("pg3")
    slot = f"pg_create_physical_replication_slot('{slot_of('pg3')}', true)"
    servers.ask("pg2", f"SELECT {slot}::text")
    servers.follow("pg3", "pg2")
    with looking(servers) as (store, nodes):
        servers.start("pg3")  # it has replayed nothing since it was started
        until(lambda: nodes.health.nodes["pg3"].is_up, "it is there")
        servers.wait_replayed()
        drive(nodes.ready())
        until(lambda: max(seconds(nodes, "pg2"), seconds(nodes, "pg3")) < 1.0, "both are fresh")
        servers.pause_replay("pg2")  # what pg2 does not show it still passes on
        store.write("metrics", metric(1), series="a")
        servers.wait_replayed("pg3")
        assert len(store.read("metrics", "a", *DAY)) == 2
        until(lambda: seconds(nodes, "pg2") > 1.2 > seconds(nodes, "pg3"), "pg2 alone is old")
        assert store.read("metrics", "a", *DAY).plan.node == "pg3"
        servers.resume_replay("pg2")
        servers.cut_receiver("pg2")
        servers.cut_receiver("pg3")
        store.write("metrics", metric(2), series="a")
        until(lambda: seconds(nodes, "pg3") > 1.2, "and so is who gets nothing any more")
        assert len(store.read("metrics", "a", *DAY)) == 3


# -- topologies that are wrong --------------------------------------------------------------------


@both
def test_a_node_of_another_cluster_is_named_at_the_first_use(
    cluster: MakeCluster, database: Database, colour: str
) -> None:
    servers = cluster(replicas=1)
    for order in (("pg1", "pg2", "alien"), ("pg1", "alien", "pg2")):
        dsns = {n: database.dsn if n == "alien" else servers.dsn(n) for n in order}
        where = rf"main\.replicas\[{order.index('alien') - 1}\]: node 'alien' belongs to another"
        with pytest.raises(ConfigError, match=where), over(colour, servers, dsns=dsns):
            pass


@both
def test_a_primary_that_another_has_left_behind_is_said_and_gets_nothing(
    cluster: MakeCluster, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = cluster(replicas=2)
    servers.promote("pg2", follow=False)  # and pg1 takes writes, too
    with over(colour, servers) as store:
        store.write("metrics", metric(0), series="a")
        assert servers.ask("pg2", "SELECT pg_is_in_recovery()") is False
        assert router(store).health.primary.name == "pg2"
        said = "takes writes on timeline 1; the newest is 2"
        until(lambda: router(store).health.nodes["pg1"].why == said, "it is seen")
        if colour == "blocking":
            (problem,) = reports(router(store))["pg1"].problems
            assert problem == f"{said}; it gets no writes: make it a replica, or take it out"
    assert "shard main begins without pg1: " in caplog.text


@both
def test_without_a_primary_reads_go_on_and_writes_say_what_each_node_is(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=2)
    with over("blocking", servers) as store:
        store.write("metrics", metric(0), series="a")
    servers.wait_replayed()
    dsns = {name: servers.dsn(name) for name in ("pg2", "pg3")}
    with over(colour, servers, dsns=dsns, wait=0.5) as store:
        assert len(store.read("metrics", "a", *DAY)) == 1
        wanted = r"no primary .* within 0.5 s \(pg2: a replica, .*; pg3: a replica"
        with pytest.raises(NoPrimary, match=wanted):
            store.write("metrics", metric(1), series="a")
        if colour == "blocking":
            said = "declared primary, but is a replica, and no other node takes writes"
            assert said in reports(router(store))["pg2"].problems


@both
@pytest.mark.parametrize("missing", ["primary", "replica"])
def test_a_node_that_is_not_there_at_the_start_is_said_and_does_without(
    cluster: MakeCluster, colour: str, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = cluster(replicas=1)
    with over("blocking", servers) as store:
        store.write("metrics", metric(0), series="a")
    servers.wait_replayed()
    gone = "pg1" if missing == "primary" else "pg2"
    servers.stop(gone)
    began = time.monotonic()
    with over(colour, servers) as store:
        assert len(store.read("metrics", "a", *DAY)) == 1
        assert time.monotonic() - began < 3.0
        assert f"shard main begins without {gone}: cannot be reached" in caplog.text
        servers.start(gone)
        store.write("metrics", metric(1), series="a")
        assert len(store.read("metrics", "a", *DAY)) == 2


@both
def test_who_may_not_enter_one_node_reads_from_the_others(
    cluster: MakeCluster, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = cluster(replicas=2)
    wrong = {"pg3": make_conninfo(servers.dsn("pg3"), password="wrong")}
    dsns = {name: servers.dsn(name) for name in servers.nodes} | wrong
    with over(colour, servers, dsns=dsns) as store:
        store.write("metrics", metric(0), series="a")
        nodes = {store.read("metrics", "a", *DAY).plan.node for _ in range(10)}
        assert nodes == {"pg2"}
    assert "begins without pg3: the server refused the connection: " in caplog.text
    everywhere = {n: make_conninfo(servers.dsn(n), password="wrong") for n in servers.nodes}
    with (
        pytest.raises(AccessDenied, match="pg1: the server refused the connection"),
        over(colour, servers, dsns=everywhere, wait=0.5),
    ):
        pass


def test_a_node_a_revision_behind_is_named(cluster: MakeCluster) -> None:
    servers = cluster(replicas=1)
    with servers.admin("pg1", "toolkit") as admin:
        row = admin.execute("SELECT version_num FROM toolkit.toolkit_version").fetchone()
        assert row is not None
        admin.execute("UPDATE toolkit.toolkit_version SET version_num = '0001'")
        servers.wait_replayed()
        servers.pause_replay("pg2")
        admin.execute("UPDATE toolkit.toolkit_version SET version_num = %s", row)
    with looking(servers) as (store, nodes):
        found = reports(nodes)
        said = f"its schema is at revision 0001, the primary's at {row[0]}: it is behind"
        assert said in found["pg2"].problems
        assert not found["pg1"].problems
        store._roads.directory.catalog.forget()  # now a replica may be asked what there is
        cols = store.read("metrics", "a", *DAY, freshness=toolkit.bounded(600))
        assert cols.plan.node == "pg1"


def test_topology_check_lists_all_that_is_wrong_and_what_a_failover_may_lose(
    cluster: MakeCluster, database: Database, tmp_path: Path
) -> None:
    servers = cluster(replicas=1)
    dsns = [servers.dsn("pg2"), database.dsn, "host=127.0.0.1 port=1 dbname=x user=x"]
    file = tmp_path / "toolkit.toml"

    def check(*replicas: str) -> tuple[int, dict[str, Any]]:
        shard = f'[[shards]]\nprimary = "{servers.dsn("pg1")}"\nreplicas = {json.dumps(replicas)}\n'
        file.write_text(shard)
        run = CliRunner().invoke(main, ["--config", str(file), "topology", "check", "--json"])
        return run.exit_code, {each["node"]: each for each in json.loads(run.stdout)}

    code, found = check(*dsns)
    assert code == 1
    assert found["replica2"]["problems"] == [
        "belongs to another cluster than primary; give a replica of it"
    ]
    assert found["replica3"]["problems"][0].startswith("down: cannot be reached: ")
    (remark,) = found["primary"]["remarks"]
    assert "commits do not wait for a replica: when it dies, what none has received" in remark
    assert "is lost, now 0 bytes; synchronous_standby_names = 'ANY 1 (*)' ends that" in remark
    servers.sync("pg1", "pg2")
    code, found = check(dsns[0])
    assert (code, found["primary"]["remarks"], found["replica1"]["remarks"]) == (0, [], [])
    servers.hide_receiver()
    code, found = check(dsns[0])
    (remark,) = found["replica1"]["remarks"]
    assert (code, remark.endswith("GRANT pg_read_all_stats ends that")) == (0, True)


def test_what_a_failover_may_lose_is_what_no_replica_has_received(cluster: MakeCluster) -> None:
    servers = cluster(replicas=2)
    with looking(servers) as (store, nodes):

        def lost() -> int:
            (remark,) = [r for r in reports(nodes)["pg1"].remarks if "is lost, now " in r]
            return int(remark.partition("is lost, now ")[2].partition(" bytes")[0].replace(",", ""))

        servers.wait_replayed()
        servers.cut_receiver("pg3")
        servers.pause_replay("pg2")
        for minute in range(1, 20):
            store.write("metrics", metric(minute), series="a")
        until(lambda: (reports(nodes)["pg2"].lag.bytes or 0) > 1_000, "it replays nothing")
        until(lambda: lost() == 0, "it has received all")
        servers.stop("pg2")
        for minute in range(20, 40):
            store.write("metrics", metric(minute), series="a")
        until(lambda: lost() > 1_000, "nobody has received that")


def test_topology_is_shown_in_a_pipe_whole_and_at_each_look(
    cluster: MakeCluster, tmp_path: Path
) -> None:
    servers = cluster(replicas=1)
    file = tmp_path / "toolkit.toml"
    long = f"{servers.dsn('pg2')}&application_name={'x' * 150}"
    file.write_text(f'[[shards]]\nprimary = "{servers.dsn("pg1")}"\nreplicas = ["{long}"]\n')
    command = [sys.executable, "-c", COMMAND, "--config", str(file), "topology"]
    shown = subprocess.run([*command, "show"], capture_output=True, text=True, check=True).stdout
    assert any(
        "x" * 150 in line and line.rstrip().endswith("1.0") for line in shown.splitlines()
    ), shown
    watch = subprocess.Popen(
        [*command, "watch", "--every", "0.1"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert watch.stdout is not None
        heads = [next(line for line in watch.stdout if "schema" in line) for _ in range(2)]
        row = next(line for line in watch.stdout if line.startswith(" replica1"))
    finally:
        watch.kill()
        watch.communicate()
    assert len(heads) == 2
    assert row.split()[1] == "replica"


def test_a_pooler_that_is_gone_is_told_from_a_server_that_is(
    cluster: MakeCluster, tmp_path: Path
) -> None:
    servers = cluster(replicas=1)
    file = tmp_path / "toolkit.toml"
    gone = "host=127.0.0.1 port=1 user=x dbname=y"
    nodes = [
        f'{{name = "{n}", dsn = "{gone}{n}", direct = "{servers.dsn(n)}"}}' for n in ("pg1", "pg2")
    ]
    file.write_text(f"[[shards]]\nprimary = {nodes[0]}\nreplicas = [{nodes[1]}]\n")
    result = CliRunner().invoke(main, ["--config", str(file), "topology", "check"])
    said = [line for line in result.output.splitlines() if "pooler" in line]
    told = "the server is up, but the pooler before it, at 127.0.0.1:1, is not: cannot be reached: "
    assert [line.partition(told)[0] for line in said] == ["pg1: ", "pg2: "], result.output


@both
def test_where_no_node_answers_a_read_says_just_that(cluster: MakeCluster, colour: str) -> None:
    servers = cluster(replicas=1)
    dsns = {n: f"host=127.0.0.1 port=1 user=x dbname={n}" for n in ("pg1", "pg2")}
    said = "shard 'main': no node answers within 0.5 s .pg1: cannot be reached"
    with (
        pytest.raises(Unavailable, match=said),
        over(colour, servers, dsns=dsns, wait=0.5) as store,
    ):
        store.read("metrics", "a", *DAY)


# -- a server that does not tell where its log is -------------------------------------------------

_TELL = (
    "pg_last_wal_replay_lsn()",
    "pg_last_wal_receive_lsn()",
    "pg_current_wal_insert_lsn()",
    "pg_control_system()",
    "pg_control_recovery()",
    "pg_control_checkpoint()",
)


@both
@pytest.mark.parametrize("memory", [0, 16])
def test_servers_that_do_not_tell_are_trusted_max_age_after_a_write(
    cluster: MakeCluster, colour: str, memory: int
) -> None:
    servers = cluster(replicas=1)
    with servers.admin("pg1", "toolkit") as admin:
        for function in _TELL:
            admin.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC".encode())
    servers.wait_replayed()
    with over(colour, servers, cache=CacheOptions(memory=memory)) as store:
        store.write("metrics", metric(0), series="a")
        wrote = time.monotonic()
        read = store.read("metrics", "a", *DAY, cache=False)
        assert (read.plan.node, len(read)) == ("pg1", 1)
        time.sleep(max(0.0, wrote + 1.1 - time.monotonic()))
        for cache in (False, True):
            read = store.read("metrics", "a", *DAY, cache=cache)
            assert len(read) == 1
        assert store.read("metrics", "a", *DAY, cache=False).plan.node == "pg2"
        for fresh in ("strong", toolkit.bounded(60)):
            read = store.read("metrics", "a", *DAY, cache=False, freshness=fresh)
            assert read.plan.node == "pg1"
        with pytest.raises(QueryError, match="does not tell how far its log is"):
            store.token()
        servers.promote("pg2", follow=False)
        until(lambda: router(store).health.primary.name == "pg2", "who began to take writes last")
        assert router(store).health.nodes["pg1"].role is Role.FENCED
        store.write("metrics", metric(1), series="a")
        assert len(store.read("metrics", "a", *DAY)) == 2
