"""What a read promises where positions mislead: nodes that restart, commits that wait, tokens."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from fix_replicas import Cluster, MakeCluster, until
from fix_servers import ON_ONE_VERSION
from fix_stores import COLOURS
from fix_topologies import DAY, metric, over, router, settings_of, threaded

import toolkit
from toolkit.config import Settings, load_settings
from toolkit.errors import QueryError, Unavailable
from toolkit.options import CacheOptions
from toolkit_routing import Position, Shard, Token, Topology

pytestmark = ON_ONE_VERSION
both = pytest.mark.parametrize("colour", COLOURS)


def checkpoint(servers: Cluster, *names: str) -> None:
    for name in names:
        with servers.admin(name) as connection:
            connection.execute("CHECKPOINT")
        servers.wait_replayed()


@both
def test_a_replica_that_was_restarted_is_where_it_says_and_not_where_it_was(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    with over(colour, servers, cache=CacheOptions(memory=0, max_age=30.0)) as store:
        store.write("metrics", metric(0), series="a")
        servers.wait_replayed()
        checkpoint(servers, "pg1", "pg2")
        store.write("metrics", metric(1), series="a")
        servers.wait_replayed()
        assert len(store.read("metrics", "a", *DAY)) == 2
        health = router(store).health
        was = health.nodes["pg2"].replayed
        servers.kill("pg2")
        until(lambda: not health.nodes["pg2"].is_up, "it is down")
        with (servers.layout.data("pg2") / "postgresql.auto.conf").open("a") as settings:
            settings.write("\nrecovery_min_apply_delay = '60s'\n")  # as behind a long backlog
        servers.start("pg2")
        until(lambda: health.nodes["pg2"].is_up, "it is up")
        assert health.nodes["pg2"].sample.lsn < was  # else this shows nothing
        for _ in range(5):
            read = store.read("metrics", "a", *DAY)
            assert (len(read), read.plan.node) == (2, "pg1")
            time.sleep(0.1)


@both
def test_a_commit_that_waited_while_the_cache_looked_is_seen_by_its_token(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1, sync=True)
    writing = settings_of(servers)
    with (
        toolkit.connect(writing) as writer,
        over(colour, servers, cache=CacheOptions(max_age=30.0)) as reader,
    ):
        writer.write("metrics", metric(0), series="a")
        assert len(reader.read("metrics", "a", *DAY, freshness="strong")) == 1
        tokens: list[str] = []

        def write() -> None:
            writer.write("metrics", metric(1), series="a")
            tokens.append(writer.token())

        servers.freeze("pg2")
        thread = Thread(target=write)
        thread.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until(lambda: servers.ask("pg1", waits) == 1, "the commit waits for its replica")
        assert len(reader.read("metrics", "a", *DAY, freshness="strong")) == 1
        servers.thaw("pg2")
        thread.join()
        after = toolkit.after(tokens[0])
        assert len(reader.read("metrics", "a", *DAY, freshness=after)) == 2

        def held() -> bool:
            found = reader.read("metrics", "a", *DAY, freshness=after)
            assert len(found) == 2
            return "memory" in found.plan.sources

        until(held, "it is remembered")


@both
def test_a_token_of_a_newer_timeline_is_not_answered_by_a_primary_that_was_left_behind(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    old = {"pg1": servers.dsn("pg1")}
    with over("blocking", servers) as store, over(colour, servers, dsns=old, wait=0.5) as other:
        store.write("metrics", metric(0), series="a")
        assert len(other.read("metrics", "a", *DAY)) == 1
        servers.wait_replayed()
        servers.promote("pg2")
        until(lambda: router(store).health.primary.name == "pg2", "the new primary is found")
        store.write("metrics", metric(1), series="a")
        after = toolkit.after(store.token())
        with pytest.raises(Unavailable, match=r"no node that is fresh enough within 0\.5 s"):
            other.read("metrics", "a", *DAY, freshness=after)


def named(settings: Settings, name: str) -> Settings:
    """The same servers under another shard's name."""
    assert settings.topology is not None
    (shard,) = settings.topology.shards
    renamed = Shard(name, shard.primary, shard.replicas)
    return replace(settings, topology=Topology((renamed,)))


@both
def test_a_token_is_known_by_its_cluster_whatever_its_shard_is_called(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    settings = settings_of(servers, cache=CacheOptions(max_age=30.0))
    plain = load_settings(servers.dsn("pg1"), environ={})
    with toolkit.connect(plain) as writer, threaded(colour, named(settings, "prices")) as reader:
        writer.write("metrics", metric(0), series="a")
        servers.wait_replayed()
        assert len(reader.read("metrics", "a", *DAY)) == 1
        servers.pause_replay("pg2")
        writer.write("metrics", metric(1), series="a")
        token = writer.token()
        assert token.startswith("main=")
        assert len(reader.read("metrics", "a", *DAY, freshness=toolkit.after(f" {token}\n"))) == 2
        alien = toolkit.after(Token({"prices": Position(77, 1, 5)}))
        for _ in range(2):  # held or not
            with pytest.raises(
                QueryError, match=r"token is of 'prices' \(system 77\), not of this"
            ):
                reader.read("metrics", "a", *DAY, freshness=alien)
    with pytest.raises(QueryError, match="the token is empty"):
        toolkit.after("")


@both
def test_a_store_over_one_server_that_is_a_replica_waits_for_a_token(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    settings = replace(load_settings(servers.dsn("pg2"), environ={}))
    settings = replace(settings, routing=replace(settings.routing, wait=0.5))
    primary = load_settings(servers.dsn("pg1"), environ={})
    with toolkit.connect(primary) as writer, threaded(colour, settings) as reader:
        writer.write("metrics", metric(0), series="a")
        servers.wait_replayed()

        def read(after: Any) -> int:
            return len(reader.read("metrics", "a", *DAY, freshness=after))

        assert read(toolkit.after(writer.token())) == 1
        servers.pause_replay("pg2")
        writer.write("metrics", metric(1), series="a")
        after = toolkit.after(writer.token())
        with pytest.raises(Unavailable, match=r"has not come to the token within 0\.5 s"):
            read(after)
        servers.resume_replay("pg2")
        assert read(after) == 2
        with pytest.raises(QueryError, match="the token is of 'x'"):
            read(toolkit.after(Token({"x": Position(77, 1, 5)})))
