"""No read is older than it was promised, whichever node or tier it comes from."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter

import pytest
from fix_consistency import RANGE, Done, live, violations
from fix_processes import started
from fix_replicas import Cluster, MakeCluster
from fix_servers import ON_ONE_VERSION
from fix_topologies import settings_of

import toolkit
from toolkit.options import CacheOptions

pytestmark = ON_ONE_VERSION
PROCESSES = 4
MAX_AGE = 0.5


def disturb(servers: Cluster, dice: random.Random) -> str:
    """Hold one of the replicas up in some way for a moment."""
    name = dice.choice(["pg2", "pg3"])
    what = dice.choice(["paused", "slow", "cut", "killed"])
    if what == "paused":
        servers.pause_replay(name)
        time.sleep(dice.uniform(0.1, 1.5))
        servers.resume_replay(name)
    elif what == "slow":
        servers.slow_replay(name, f"{dice.randrange(20, 800)}ms")
        time.sleep(dice.uniform(0.5, 2.0))
        servers.slow_replay(name, None)
    elif what == "killed":  # it comes back before where it was
        servers.slow_replay(name, f"{dice.randrange(200, 800)}ms")
        servers.kill(name)
        servers.start(name)
        time.sleep(dice.uniform(0.2, 1.0))
        servers.slow_replay(name, None)
    else:
        servers.cut_receiver(name)
        time.sleep(dice.uniform(0.1, 1.0))
        servers.mend_receiver(name)
    time.sleep(dice.uniform(0.0, 0.5))
    return what


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        (20.0, 1_000_000),
        pytest.param(3_000.0, 25_000, marks=[pytest.mark.soak, pytest.mark.timeout(3_600)]),
    ],
    ids=["short", "long"],
)
def test_no_read_is_older_than_promised(cluster: MakeCluster, seconds: float, most: int) -> None:
    servers = cluster(replicas=2)
    cache = CacheOptions(redis=servers.endpoints.redis_url, redis_timeout=2.0, max_age=MAX_AGE)
    settings = settings_of(servers, cache=cache)
    with toolkit.connect(settings) as store:  # a point of the series that is none of the keys
        store.write("metrics", {"ts": [RANGE[1]], "value": [0.0]}, series="a")
    servers.wait_replayed()
    spawn = multiprocessing.get_context("spawn")
    inboxes = [spawn.SimpleQueue() for _ in range(PROCESSES)]
    roles = [
        (live, ("blocking", "asyncio")[n // 2], settings, n, PROCESSES, inboxes, seconds, most)
        for n in range(PROCESSES)
    ]
    dice, disturbed = random.Random(7), Counter[str]()
    with started(*roles) as processes:
        for process in processes:
            process.say("begin")
        while not any(p.line.poll() for p in processes):
            disturbed[disturb(servers, dice)] += 1
        done: list[Done] = [process.hear() for process in processes]
    errors = [error for each in done for error in each.errors]
    assert not errors, errors
    writes = [write for each in done for write in each.writes]
    reads = [read for each in done for read in each.reads]
    stats = sum((each.stats for each in done), Counter[str]())
    promises = Counter(read.promise for read in reads)
    nodes = Counter(read.node for read in reads)
    kinds = ("cache_hits", "redis_hits")
    print(
        f"{len(writes)} writes, {len(reads)} reads: {dict(promises)}, by {dict(nodes)}; "
        f"{ ({k: stats[k] for k in kinds}) }; replicas {dict(disturbed)}"
    )
    wrong = list(violations(writes, reads, MAX_AGE))
    assert not wrong, "\n".join(wrong[:10])
    assert min(promises[p] for p in ("strong", "session", "bounded", "after")) > 20
    assert min(nodes[n] for n in servers.nodes) > 20
    assert all(stats[kind] > 50 for kind in kinds)
