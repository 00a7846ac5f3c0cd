"""Who looks at the nodes: through poolers, beside closing and forgetting, and for how long."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from dataclasses import replace

import pytest
from fix_pgbouncer import Bouncer, MakePgBouncer
from fix_replicas import Cluster, MakeCluster, until
from fix_servers import ON_ONE_VERSION
from fix_stores import COLOURS
from fix_topologies import DAY, asking, metric, over, router, settings_of, threaded

import toolkit
from toolkit.config import Settings
from toolkit_routing import Node, Shard, Topology

pytestmark = ON_ONE_VERSION
both = pytest.mark.parametrize("colour", COLOURS)


def through(servers: Cluster, primary: Node, replica: Node) -> Settings:
    topology = Topology((Shard("main", primary, (replica,)),))
    return replace(settings_of(servers), topology=topology)


@pytest.fixture
def servers(cluster: MakeCluster) -> Cluster:
    """A primary and a replica that has a point."""
    made = cluster(replicas=1)
    with over("blocking", made) as store:
        store.write("metrics", metric(0), series="a")
    made.wait_replayed()
    return made


def before(servers: Cluster, pgbouncer: MakePgBouncer, name: str, version: str) -> Bouncer:
    return pgbouncer(
        servers.dsn(name), servers.admin_dsn(name), version=version, default_pool_size=2
    )


@both
def test_reads_move_on_from_a_pooler_that_freezes_and_come_back(
    servers: Cluster, pgbouncer: MakePgBouncer, colour: str
) -> None:
    bouncer = before(servers, pgbouncer, "pg2", "1.24")
    primary = Node("pg1", servers.dsn("pg1"))
    settings = through(servers, primary, Node("pg2", bouncer.dsn, servers.dsn("pg2")))
    with threaded(colour, settings) as store:

        def read() -> str:
            found = store.read("metrics", "a", *DAY)
            assert len(found) == 1
            return str(found.plan.node)

        assert read() == "pg2"
        health = router(store).health
        with asking(read, callers=4) as asked:
            until(lambda: len(asked.calls) > 100, "they read")
            with bouncer.frozen():
                frozen = time.monotonic()
                until(lambda: not health.nodes["pg2"].is_up, "it is given up")
                took = time.monotonic() - frozen
                time.sleep(1.0)  # the server itself answers all the time
                assert not health.nodes["pg2"].is_up
                assert "pooler" in health.nodes["pg2"].why
            until(lambda: health.nodes["pg2"].is_up, "it is used again")
        print(f"{colour}: given up after {took:.2f} s, longest read {asked.slowest(frozen):.2f} s")
        assert not asked.errors, asked.errors[:3]
        assert asked.slowest(frozen) < 5.0
        bouncer.stop()
        until(lambda: not health.nodes["pg2"].is_up or read() == "pg1", "it is given up")
        until(lambda: "pooler" in health.nodes["pg2"].why, "it is said why")
        assert read() == "pg1"
        bouncer.start()
        until(lambda: read() == "pg2", "it is used again")


def test_a_busy_pooler_is_not_taken_for_a_dead_one(
    servers: Cluster, pgbouncer: MakePgBouncer
) -> None:
    bouncer = before(servers, pgbouncer, "pg2", "1.18")
    primary = Node("pg1", servers.dsn("pg1"))
    settings = through(servers, primary, Node("pg2", bouncer.dsn, servers.dsn("pg2")))
    with threaded("blocking", settings) as store:
        assert store.read("metrics", "a", *DAY).plan.node == "pg2"
        health, driver = router(store).health, router(store).drivers["pg2"]
        slow = [
            threading.Thread(
                target=lambda: toolkit.drivers.drive(driver.fetch(b"SELECT pg_sleep(3)"))
            )
            for _ in range(2)
        ]
        for each in slow:
            each.start()
        waits = threading.Thread(target=store.read, args=("metrics", "a", *DAY))
        waits.start()
        until(lambda: not waits.is_alive() or not health.nodes["pg2"].is_up, "it had its turn")
        assert health.nodes["pg2"].is_up
        for each in (*slow, waits):
            each.join()


def test_looks_through_a_pooler_prepare_nothing(
    servers: Cluster, pgbouncer: MakePgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (before(servers, pgbouncer, name, "1.18") for name in ("pg1", "pg2"))
    settings = through(servers, Node("pg1", one.dsn), Node("pg2", two.dsn))
    with (
        threaded("blocking", settings) as a,
        threaded("blocking", settings) as b,
        threaded("asyncio", settings) as c,
    ):
        for _ in range(12):  # the sixth look would be prepared
            assert [len(s.read("metrics", "a", *DAY)) for s in (a, b, c)] == [1, 1, 1]
            time.sleep(0.2)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("toolkit")]
    assert not [text for text in said if "down" in text or "prepared statement" in text]


def test_a_server_that_ends_is_noticed_before_the_next_look_is_due(servers: Cluster) -> None:
    with over("blocking", servers, interval=20.0) as store:
        assert len(store.read("metrics", "a", *DAY)) == 1
        node = router(store).health.nodes["pg2"]
        assert node.is_up
        servers.kill("pg2")
        until(lambda: not node.is_up, "it is noticed", 2.0)


def probers() -> int:
    return sum(thread.name == "toolkit-prober" for thread in threading.enumerate())


def test_closing_beside_readers_leaves_no_thread_behind(servers: Cluster) -> None:
    assert probers() == 0
    store = toolkit.connect(settings_of(servers))
    with asking(lambda: store.read("metrics", "a", *DAY), callers=4):
        for _ in range(5):
            began = time.monotonic()
            store.close()
            assert time.monotonic() - began < 2.0
            time.sleep(0.1)
    store.close()
    until(lambda: probers() == 0, "nobody looks")


def test_a_store_that_was_forgotten_is_not_looked_at_any_more(servers: Cluster) -> None:
    store = toolkit.connect(settings_of(servers))
    assert len(store.read("metrics", "a", *DAY)) == 1
    gone = weakref.ref(router(store))
    assert probers() == 1
    del store
    gc.collect()
    assert gone() is None
    until(lambda: probers() == 0, "nobody looks")
