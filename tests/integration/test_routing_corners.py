"""Stores over several nodes where processes fork, loops end, interpreters exit and nobody reads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from fix_replicas import Cluster, MakeCluster, until
from fix_servers import ON_ONE_VERSION
from fix_stores import COLOURS
from fix_topologies import DAY, metric, over, router

import toolkit

pytestmark = ON_ONE_VERSION
both = pytest.mark.parametrize("colour", COLOURS)

_FORKS = """
import asyncio, os, signal, sys, threading, toolkit
DAY = ("2024-01-01T00:00Z", "2024-01-02T00:00Z")

def child(number, store, is_async):
    signal.alarm(20)  # kills it if it hangs
    frame = {"ts": [f"2024-01-01T01:0{number}Z"], "value": [1.0]}
    if is_async:
        async def run():
            await store.write("metrics", frame, series="a")
            found = [len(await store.read("metrics", "a", *DAY)) for _ in range(20)]
            await store.close()
            return found
        found = asyncio.run(run())
    else:
        store.write("metrics", frame, series="a")
        found = [len(store.read("metrics", "a", *DAY)) for _ in range(20)]
        store.close()
    os._exit(0 if min(found) >= 2 else 3)

def forks(store, is_async):
    children = []
    for number in range(6):
        pid = os.fork()
        if pid == 0:
            child(number, store, is_async)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

if sys.argv[2] == "blocking":
    with toolkit.connect(sys.argv[1]) as store:
        is_over = threading.Event()
        def read():
            while not is_over.is_set():
                store.read("metrics", "a", *DAY)
        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        codes = forks(store, False)
        is_over.set()
        for reader in readers:
            reader.join()
        assert len(store.read("metrics", "a", *DAY)) == 7
else:
    store = toolkit.connect_async(sys.argv[1])
    asyncio.run(store.read("metrics", "a", *DAY))
    codes = forks(store, True)
    assert len(asyncio.run(store.read("metrics", "a", *DAY))) == 7
print(codes)
"""

_EXITS = """
import asyncio, sys, time, toolkit
DAY = ("2024-01-01T00:00Z", "2024-01-02T00:00Z")
if sys.argv[2] == "blocking":
    store = toolkit.connect(sys.argv[1])
    print(len(store.read("metrics", "a", *DAY)))
else:
    store = toolkit.connect_async(sys.argv[1])
    for _ in range(3):  # each in a loop of its own, and nothing is closed
        print(len(asyncio.run(store.read("metrics", "a", *DAY))))
"""


def script(
    servers: Cluster, folder: Path, code: str, colour: str
) -> subprocess.CompletedProcess[str]:
    """Run a script over the nodes, in an interpreter of its own."""
    others = ", ".join(f'"{servers.dsn(n)}"' for n in servers.nodes if n != "pg1")
    file = folder / "toolkit.toml"
    file.write_text(f'[[shards]]\nprimary = "{servers.dsn("pg1")}"\nreplicas = [{others}]\n')
    given = [sys.executable, "-c", code, str(file), colour]
    return subprocess.run(given, capture_output=True, text=True, timeout=100, check=False)


@both
def test_forked_children_go_on_with_the_store(
    cluster: MakeCluster, colour: str, tmp_path: Path
) -> None:
    servers = cluster(replicas=1)
    with over("blocking", servers) as store:
        store.write("metrics", metric(0), series="a")
    servers.wait_replayed()
    ran = script(servers, tmp_path, _FORKS, colour)
    assert (ran.returncode, ran.stdout) == (0, "[0, 0, 0, 0, 0, 0]\n"), ran.stderr


@both
@pytest.mark.parametrize("is_frozen", [False, True], ids=["well", "frozen"])
def test_an_interpreter_ends_in_silence_with_a_store_open(
    cluster: MakeCluster, colour: str, tmp_path: Path, is_frozen: bool
) -> None:
    servers = cluster(replicas=2)
    with over("blocking", servers) as store:
        store.write("metrics", metric(0), series="a")
    servers.wait_replayed()
    if is_frozen:
        servers.freeze("pg2")
    began = time.monotonic()
    ran = script(servers, tmp_path, _EXITS, colour)
    assert (ran.returncode, set(ran.stdout.split())) == (0, {"1"}), ran.stderr
    assert not [line for line in ran.stderr.splitlines() if "begins without" not in line]
    assert time.monotonic() - began < 10.0


@both
def test_who_slept_through_a_failover_finds_the_new_primary_at_once(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=2)
    probes = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%probe'"
    with over(colour, servers) as store:
        store.write("metrics", metric(0), series="a")
        assert int(str(servers.ask("pg1", probes))) == 1
        router(store)._prober.idle = 0.2
        until(lambda: servers.ask("pg1", probes) == 0, "nobody looks any more")
        servers.kill("pg1")
        servers.promote("pg2")
        time.sleep(1.5)
        began = time.monotonic()
        assert len(store.read("metrics", "a", *DAY)) == 1
        store.write("metrics", metric(1), series="a")
        assert len(store.read("metrics", "a", *DAY, freshness="strong")) == 2
        assert time.monotonic() - began < 2.0
        assert router(store).health.primary.name == "pg2"


@both
def test_a_token_of_another_process_is_kept_over_a_failover(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=1)
    with over(colour, servers) as store, over(colour, servers) as other:
        store.write("metrics", metric(0), series="a")
        servers.pause_replay("pg2")
        store.write("metrics", metric(1), series="a")
        after = toolkit.after(store.token())
        read = other.read("metrics", "a", *DAY, freshness=after)
        assert (read.plan.node, len(read)) == ("pg1", 2)
        servers.resume_replay("pg2")
        servers.wait_replayed()
        servers.kill("pg1")
        servers.promote("pg2")
        assert len(other.read("metrics", "a", *DAY, freshness=after)) == 2
