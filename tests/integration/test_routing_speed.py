"""What routing costs: bounds that hold on a busy machine, each in the best of some rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import numpy as np
from fix_cache import minutes
from fix_replicas import MakeCluster
from fix_servers import ON_ONE_VERSION
from fix_topologies import metric, over

import toolkit
from toolkit_routing import Chooser, Health, Load, Position, Sample, Want, route

ROUNDS = 30  # at most: what something else does to a busy machine lasts for some of them
THOUSAND = ("2024-03-01T00:00Z", "2024-03-01T16:40Z")


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def test_a_route_is_decided_in_some_microseconds() -> None:
    shards = []
    for number in range(128):
        health = Health([f"{n}{number}" for n in "abc"])
        loads = {name: Load(name) for name in health.nodes}
        for name in health.nodes:
            health.saw(name, Sample(1.0, 1.01, not name.startswith("a"), 7, 1, 1_000))
        shards.append((health, loads))
    chooser, want = Chooser(random=Random(1)), Want(Position(7, 1, 900), 1.0)
    best = float("inf")
    for _ in range(15):
        times = []
        for health, loads in shards:
            began = time.perf_counter()
            found = route(health, loads, chooser, want, 1.5)
            times.append(time.perf_counter() - began)
            assert found is not None
        best = min(best, float(np.median(times)))
    print(f"a route: {best * 1e6:.2f} µs p50")
    assert best < 10e-6  # 5 where nothing else runs: a case of the benchmark


@ON_ONE_VERSION
def test_a_session_read_after_a_write_costs_at_most_three_milliseconds_more(
    cluster: MakeCluster,
) -> None:
    servers = cluster(replicas=2)
    found: list[tuple[float, float]] = []  # ms more at p99, and at p50
    with over("blocking", servers) as store:
        store.write("metrics", minutes(1), series="a")
        servers.wait_replayed()
        for turn in range(ROUNDS):
            times: dict[str, list[float]] = {"session": [], "bounded": []}
            for number in range(200):
                store.write("metrics", metric(number, turn + 2.0), series="w")
                which = ("session", "bounded")[number % 2]
                freshness = which if which == "session" else toolkit.bounded(60)
                began = time.perf_counter()
                store.read("metrics", "a", *THOUSAND, freshness=freshness, cache=False)
                times[which].append(time.perf_counter() - began)
            more = [f(times["session"]) - f(times["bounded"]) for f in (p99, np.median)]
            found.append((more[0] * 1e3, float(more[1]) * 1e3))
            if max(found[-1]) < 3.0:
                break
    print("a session read after a write, ms p99 and p50:", np.round(found, 2).tolist())
    assert max(found[-1]) < 3.0


@ON_ONE_VERSION
def test_three_nodes_are_no_slower_than_one(cluster: MakeCluster) -> None:
    servers = cluster(replicas=2)
    with (
        over("blocking", servers) as three,
        over("blocking", servers, dsns={"pg1": servers.dsn("pg1")}) as one,
        toolkit.connect(servers.dsn("pg1")) as plain,
        ThreadPoolExecutor(16) as pool,
    ):
        three.write("metrics", minutes(1), series="a")
        servers.wait_replayed()

        def rate(store: Any) -> float:
            began, ask = time.perf_counter(), _reader(store)
            many = sum(pool.map(lambda _: ask(), range(600)))
            return many / (time.perf_counter() - began)

        for store in (three, one, plain):
            rate(store)
        rounds: list[tuple[float, float, float]] = []
        while len(rounds) < ROUNDS and not any(a > 0.9 * max(b, c) for a, b, c in rounds):
            rounds.append((rate(three), rate(one), rate(plain)))
    print("reads a second of three nodes, of one, and without a router:", np.round(rounds))
    assert any(a > 0.9 * max(b, c) for a, b, c in rounds)


def _reader(store: Any) -> Callable[[], int]:
    def ask() -> int:
        assert len(store.read("metrics", "a", *THOUSAND, cache=False)) == 1_000
        return 1

    return ask
