"""Nodes that die, freeze, are promoted and come back: reads go on, writes find the new primary."""

from __future__ import annotations

import time
from threading import Thread
from typing import Any

import numpy as np
import pytest
from fix_proxy import Proxy
from fix_replicas import Cluster, MakeCluster, until
from fix_stores import COLOURS
from fix_topologies import DAY, asking, metric, over, router

from toolkit.errors import OutcomeUnknown, Unavailable
from toolkit.options import CacheOptions

both = pytest.mark.parametrize("colour", COLOURS)
COUNT = "SELECT count(*) FROM toolkit.metrics"


class Writing:
    """A thread that writes one minute after another; what was acknowledged, and when."""

    def __init__(self, store: Any, mode: str = "upsert") -> None:
        self.acknowledged: list[int] = []
        self.ended: list[float] = []
        self.errors: list[Exception] = []
        self._store, self._mode, self._is_over = store, mode, False
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def _run(self) -> None:
        for minute in range(1440):
            if self._is_over:
                return
            try:
                self._store.write("metrics", metric(minute), series="w", mode=self._mode)
                self.acknowledged.append(minute)
                self.ended.append(time.monotonic())
            except Exception as error:
                self.errors.append(error)
            time.sleep(0.005)

    def first_after(self, moment: float) -> float:
        """How long after a moment the first write ended that began after it."""
        until(lambda: bool(self.ended) and self.ended[-1] > moment, "writes go on", 20.0)
        return next(at for at in self.ended if at > moment) - moment


def minutes_in(cluster: Cluster, node: str) -> list[int]:
    """The minutes of the series that is written, as a server has them, in order."""
    with cluster.admin(node, "toolkit") as connection:
        rows = connection.execute(
            "SELECT extract(hour FROM ts AT TIME ZONE 'UTC') * 60 + extract(minute FROM ts) "
            "FROM toolkit.metrics JOIN toolkit.series s ON s.id = series_id "
            "WHERE s.name = 'w' ORDER BY ts"
        ).fetchall()
    return [int(row[0]) for row in rows]


def furthest(cluster: Cluster, *names: str) -> str:
    """The replica that has received most."""
    position = "SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint"
    return max(names, key=lambda n: int(str(cluster.ask(n, position))))


@both
def test_no_read_fails_when_a_replica_is_killed_under_sixteen_readers(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=2)
    with over(colour, servers) as store:
        store.write("metrics", metric(0), series="a")

        def read() -> None:
            assert len(store.read("metrics", "a", *DAY)) == 1

        with asking(read, callers=16) as asked:
            until(lambda: len(asked.calls) > 500, "they read")
            at = time.monotonic()
            servers.kill("pg2")
            time.sleep(1.0)
        assert not asked.errors, asked.errors[:3]
        took = asked.p99(at, at + 1.0)
        print(f"{colour}: {len(asked.calls)} reads, p99 {took * 1e3:.0f} ms in that second")
        assert took < 1.0
        servers.start("pg2")
        until(lambda: router(store).health.nodes["pg2"].is_up, "it is used again")


@both
def test_reads_of_a_replica_that_freezes_move_on(
    cluster: MakeCluster, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = cluster(replicas=2)
    with over(colour, servers) as store:
        store.write("metrics", metric(0), series="a")

        def read() -> None:
            assert len(store.read("metrics", "a", *DAY)) == 1

        with asking(read, callers=8) as asked:
            until(lambda: len(asked.calls) > 200, "they read")
            at = time.monotonic()
            servers.freeze("pg2")
            until(lambda: not router(store).health.nodes["pg2"].is_up, "it is given up")
            given_up = time.monotonic()
            time.sleep(0.5)
            servers.thaw("pg2")
        print(f"{colour}: given up after {given_up - at:.2f} s, longest {asked.slowest(at):.2f} s")
        assert not asked.errors, asked.errors[:3]
        assert asked.slowest(at) < 2.5
        assert asked.slowest(given_up + 0.5) < 2.0
        until(lambda: router(store).health.nodes["pg2"].is_up, "it is used again")
    assert not [r for r in caplog.records if r.name == "asyncio"]


@both
@pytest.mark.parametrize("mode", ["upsert", "insert"])
def test_with_sync_no_acknowledged_write_is_lost_or_doubled_when_the_primary_is_killed(
    cluster: MakeCluster, colour: str, mode: str
) -> None:
    servers = cluster(replicas=2, sync=True)
    with over(colour, servers) as store:
        store.write("metrics", metric(1439), series="w")
        with Writing(store, mode) as writing:
            until(lambda: len(writing.acknowledged) > 30, "it writes")
            servers.kill("pg1")
            chosen = furthest(servers, "pg2", "pg3")
            servers.promote(chosen)
            took = writing.first_after(time.monotonic())
        print(f"{colour}: writes again {took * 1e3:.0f} ms after the promotion")
        assert took < 2.0
        there = minutes_in(servers, chosen)
        assert len(there) == len(set(there))
        assert set(writing.acknowledged) <= set(there)
        extra = set(there) - set(writing.acknowledged) - {1439}
        assert len(extra) <= len(writing.errors)
        if mode == "upsert":
            assert not writing.errors
        assert all(isinstance(error, OutcomeUnknown) for error in writing.errors)


@both
def test_a_frozen_primary_is_left_behind_and_gets_no_write_when_it_is_back(
    cluster: MakeCluster, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = cluster(replicas=2)
    cache = CacheOptions()
    with over(colour, servers, cache=cache) as store, over(colour, servers) as reader:
        store.write("metrics", metric(0), series="a")

        def read() -> None:
            assert len(reader.read("metrics", "a", *DAY)) == 1

        def cached() -> None:
            assert len(store.read("metrics", "a", *DAY)) == 1

        with Writing(store) as writing, asking(read, 4) as reads, asking(cached, 2) as held:
            until(lambda: len(writing.acknowledged) > 10, "it writes")
            frozen = time.monotonic()
            servers.freeze("pg1")
            time.sleep(2.5)
            servers.promote("pg2")
            promoted = time.monotonic()
            took = writing.first_after(promoted)
            began_after = len(writing.acknowledged)
            servers.thaw("pg1")
            until(lambda: router(store).health.nodes["pg1"].role.value == "fenced", "it is seen")
            before = minutes_in(servers, "pg1")
            time.sleep(1.0)
        print(
            f"{colour}: writes again {took:.2f} s after the promotion, "
            f"{took + promoted - frozen:.2f} s after the freeze; "
            f"longest read {reads.slowest(frozen):.2f} s, "
            f"through the cache {held.slowest(frozen):.2f} s"
        )
        assert took < 3.0
        assert not reads.errors, reads.errors[:3]
        assert not held.errors, held.errors[:3]
        assert not writing.errors, writing.errors[:3]
        assert reads.slowest(frozen) < 2.5  # some 0.1 s, where the machine is not busy
        assert held.slowest(frozen) < 3.5
        old = minutes_in(servers, "pg1")
        assert old == before
        # what was on its way when it froze may be there; nothing that began after the promotion
        assert not set(old) & set(writing.acknowledged[began_after:])
        assert router(store).health.primary.name == "pg2"
    assert "couldn't stop" not in caplog.text  # a pool that is cut ends in silence


@both
def test_a_demoted_primary_gets_no_write_and_its_pool_recovers(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    with over(colour, servers) as store:
        store.write("metrics", metric(0), series="a")
        with Writing(store) as writing:
            until(lambda: len(writing.acknowledged) > 10, "it writes")
            servers.stop("pg1")
            servers.promote("pg2", follow=False)
            took = writing.first_after(time.monotonic())
            servers.demote("pg1", "pg2")
            until(lambda: router(store).health.nodes["pg1"].role.value == "replica", "it is seen")
            many = len(writing.acknowledged)
            until(lambda: len(writing.acknowledged) > many + 10, "it writes")
        print(f"{colour}: writes again after {took * 1e3:.0f} ms")
        assert not writing.errors, writing.errors[:3]
        assert router(store).health.primary.name == "pg2"
        servers.wait_replayed("pg1")
        assert minutes_in(servers, "pg1") == minutes_in(servers, "pg2")
        until(lambda: store.read("metrics", "a", *DAY).plan.node == "pg1", "the old one is read")


def test_the_other_replica_is_read_soon_after_a_failover(cluster: MakeCluster) -> None:
    servers = cluster(replicas=2)
    with over("blocking", servers) as store:
        store.write("metrics", metric(0), series="a")
        servers.wait_replayed()
        servers.stop("pg1")
        servers.promote("pg2")
        store.write("metrics", metric(1), series="a")
        until(lambda: store.read("metrics", "a", *DAY).plan.node == "pg3", "it is read", 10.0)


@both
def test_a_primary_set_read_only_is_waited_for_and_reads_go_on(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    with over(colour, servers, wait=3.0) as store:
        store.write("metrics", metric(0), series="a")
        with servers.admin("pg1") as admin:
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            admin.execute("SELECT pg_reload_conf()")
        on = "SELECT current_setting('default_transaction_read_only')"
        until(lambda: servers.ask("pg1", on) == "on", "it takes no writes")
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            store.write("metrics", metric(1), series="a")
        said = "pg1: the primary, but default_transaction_read_only is on"
        assert said in str(caught.value)
        assert 2.5 < time.monotonic() - began < 6.0
        assert len(store.read("metrics", "a", *DAY, freshness="strong")) == 1
        with servers.admin("pg1") as admin:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            admin.execute("SELECT pg_reload_conf()")
        store.write("metrics", metric(1), series="a")
        assert len(store.read("metrics", "a", *DAY)) == 2


@both
def test_a_commit_whose_reply_is_lost_is_repeated_only_where_that_is_right(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    proxy = Proxy(servers.dsn("pg1"))
    dsns = {"pg1": proxy.dsn, "pg2": servers.dsn("pg2")}
    try:
        with over(colour, servers, dsns=dsns) as store:
            store.write("metrics", metric(0), series="a")
            proxy.is_armed = True
            with pytest.raises(OutcomeUnknown, match="the connection to pg1 was lost while it"):
                store.write("metrics", metric(1), series="a", mode="insert")
            assert not proxy.is_armed
            proxy.is_armed = True
            report = store.write("metrics", metric(2, 7.0), series="a")
            assert not proxy.is_armed
            assert (report.inserted, report.unchanged) in ((0, 1), (1, 0))
            proxy.is_armed = True
            with pytest.raises(OutcomeUnknown, match="the connection to pg1 was lost while it"):
                store.delete("metrics", "a", "2024-01-01T00:00Z", "2024-01-01T00:01Z")
            assert not proxy.is_armed
            found = store.read("metrics", "a", *DAY)
            assert np.array_equal(found["value"], [1.0, 7.0])  # all were stored, and nobody told
    finally:
        proxy.close()


@both
def test_what_a_lost_commit_may_have_stored_is_seen_by_who_looks(
    cluster: MakeCluster, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = cluster(replicas=1)
    proxy = Proxy(servers.dsn("pg1"))
    dsns = {"pg1": proxy.dsn, "pg2": servers.dsn("pg2")}

    async def unknown(wait: float | None = None) -> None:
        raise Unavailable("the primary does not say where its log is")

    try:
        with over(colour, servers, dsns=dsns) as store:
            store.write("metrics", metric(0), series="a")
            servers.wait_replayed("pg2")
            servers.pause_replay("pg2")
            proxy.is_armed = True
            monkeypatch.setattr(router(store), "position", unknown)
            with pytest.raises(OutcomeUnknown):
                store.write("metrics", metric(1), series="a", mode="insert")
            monkeypatch.undo()
            assert len(store.read("metrics", "a", *DAY)) == 2
    finally:
        proxy.close()


@both
def test_without_any_node_a_call_says_why_in_time(cluster: MakeCluster, colour: str) -> None:
    servers = cluster(replicas=1)
    with over(colour, servers, wait=1.0) as store:
        store.write("metrics", metric(0), series="a")
        servers.kill("pg1")
        servers.kill("pg2")
        for call in (
            lambda: store.read("metrics", "a", *DAY),
            lambda: store.read("metrics", "a", *DAY, freshness="strong"),
            lambda: store.write("metrics", metric(1), series="a"),
        ):
            began = time.monotonic()
            with pytest.raises(Unavailable, match=r"shard 'main': no .* within 1 s .*pg1: .*pg2: "):
                call()
            assert time.monotonic() - began < 4.0
        began = time.monotonic()
        with pytest.raises(Unavailable):
            store.read("metrics", "a", *DAY, timeout=0.2)
        assert time.monotonic() - began < 1.0
        servers.start("pg1")
        assert len(store.read("metrics", "a", *DAY)) == 1
