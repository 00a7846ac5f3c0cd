"""The cases of several nodes: what it costs to choose one, and to see one's own writes there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit import migrate
from toolkit.bench.ground import START, Ground, at, bars
from toolkit.bench.measure import Contender, Result, Target, Timing, by_turns, compare
from toolkit.config import Settings
from toolkit.errors import Unavailable
from toolkit.local import LocalServers
from toolkit.query import Freshness, bounded
from toolkit.store import Store
from toolkit_routing import Chooser, Health, Load, Node, Position, Sample, Shard, Topology, Want
from toolkit_routing import route as decide

_SHARDS = 128
_MOST_ROUTE_US = 5.0
_MOST_SESSION_MS = 3.0
_CLIENTS = 16
_PATIENCE_S = 30.0
_OWN, _ANY, _STRONG = "session", "bounded(60)", "strong"
_THREE, _ALONE, _BARE = "primary + 2 replicas", "the primary alone", "a store without a topology"


def route(ground: Ground) -> Result:
    """Decide where a read goes, in each of many shards of three nodes."""
    shards = []
    for number in range(_SHARDS):
        health = Health([f"{node}{number}" for node in "abc"])
        for name in health.nodes:
            health.saw(name, Sample(1.0, 1.01, not name.startswith("a"), 7, 1, 1_000))
        shards.append((health, {name: Load(name) for name in health.nodes}))
    chooser, want = Chooser(), Want(Position(7, 1, 900), 1.0)
    times = []
    for _ in range(ground.sizes.turns):
        for health, loads in shards:
            began = time.perf_counter()
            found = decide(health, loads, chooser, want, 1.5)
            times.append((time.perf_counter() - began) * 1e6)
            assert found is not None
    what = f"which node a read goes to, over {_SHARDS} shards of 3 nodes"
    ours = Timing.of("toolkit_routing.route", times)
    return Result("route", what, 1, ours, unit="µs", ceiling=_MOST_ROUTE_US)


def session_read(ground: Ground) -> Result:
    """Read right after a write of one's own, from a replica that has it."""
    points = ground.sizes.small_read
    with _nodes(ground) as nodes, Store(nodes.three) as store:

        def contender(name: str, freshness: str | Freshness) -> Contender:
            def read(turn: int) -> None:
                store.read("candles", "A", START, at(points), freshness=freshness)

            def write(turn: int) -> None:
                store.write("metrics", {"ts": [at(turn + 1)], "value": [1.0]}, series=name)

            return Contender(name, read, before=write)

        kinds: dict[str, str | Freshness] = {_OWN: "session", _ANY: bounded(60), _STRONG: "strong"}
        contenders = [contender(name, freshness) for name, freshness in kinds.items()]
        found = by_turns(contenders, ground.sizes.turns)
    own, other = found[_OWN], found[_ANY]
    more = own.p99 - other.p99
    each = ", ".join(f"{n} {t.p50:.2f} and {t.p99:.2f} ms" for n, t in found.items())
    return Result(
        "session_read",
        f"how much longer {points:,} points × 6 columns take after a write of one's own, p99",
        points,
        Timing("more", own.turns, more, more),
        unit="ms more",
        ceiling=_MOST_SESSION_MS,
        lines=(f"session_read: after a write, p50 and p99: {each}",),
    )


def three_nodes(ground: Ground) -> Result:
    """Read by many threads at once from three nodes of one machine, and from one."""
    points = ground.sizes.small_read
    reads = 4 * _CLIENTS
    with _nodes(ground) as nodes, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(_CLIENTS))

        def contender(name: str, store: Store) -> Contender:
            def read(_: int) -> int:
                return len(store.read("candles", "A", START, at(points)))

            return Contender(name, lambda turn: sum(pool.map(read, range(reads))))

        kinds = {_THREE: nodes.three, _ALONE: nodes.alone, _BARE: nodes.bare}
        contenders = [
            contender(name, stack.enter_context(Store(settings)))
            for name, settings in kinds.items()
        ]
        found = by_turns(contenders, max(4, ground.sizes.turns // 8))
    what = f"{reads} reads of {points:,} points by {_CLIENTS} clients, of {_THREE}"
    compared = compare(found[_THREE], found, {_ALONE: Target(1.0)})
    return Result("three_nodes", what, reads * points, found[_THREE], compared)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Settings of a store over a primary and its replicas, over it alone, and of a plain one."""

    three: Settings
    alone: Settings
    bare: Settings


@contextmanager
def _nodes(ground: Ground) -> Iterator[_Nodes]:
    """Start a primary and two replicas that have a series, for as long as this lasts."""
    with tempfile.TemporaryDirectory(prefix="toolkit-bench-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        servers = LocalServers(home, name="nodes")
        try:
            found = servers.up(replicas=2)
            migrate.upgrade(found.dsn)
            primary = Node("primary", found.dsn)
            replicas = tuple(Node(name, dsn) for name, dsn in found.replicas.items())
            three, alone = (
                Topology((Shard("main", primary, others),)) for others in (replicas, ())
            )
            bare = replace(ground.settings, dsn=found.dsn, schema="toolkit")
            settings = replace(bare, topology=three)
            with Store(settings) as store:
                store.write("candles", bars(ground.sizes.small_read, 0), series="A")
                _wait_replayed(store)
            yield _Nodes(settings, replace(bare, topology=alone), bare)
        finally:
            servers.reset()


def _wait_replayed(store: Store) -> None:
    """Return when all replicas have what was written."""
    until = time.monotonic() + _PATIENCE_S
    while any(v for k, v in store.stats().items() if k.startswith("node_lag_bytes.")):
        if time.monotonic() > until:
            raise Unavailable(f"the replicas have not caught up within {_PATIENCE_S:g} s")
        store.read("candles", "A", START, at(1), freshness="strong")
        time.sleep(0.05)
