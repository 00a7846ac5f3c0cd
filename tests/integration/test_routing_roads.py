"""What else a store does over several nodes: names, labels, exports, batches, turns, migrations."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from fix_replicas import MakeCluster, until
from fix_servers import PROJECT, Database
from fix_stores import COLOURS
from fix_topologies import DAY, metric, over, router, threaded

from toolkit.cli import main
from toolkit.config import load_settings
from toolkit.drivers import drive
from toolkit.errors import Overloaded, ReadOnlyDatabase
from toolkit.options import CacheOptions
from toolkit_routing import AdmissionOptions

both = pytest.mark.parametrize("colour", COLOURS)
ASKED = {"dataset": "metrics", "series": "a", "start": DAY[0], "end": DAY[1]}


@both
def test_all_that_reads_does_without_a_primary_that_is_dead_from_the_start(
    cluster: MakeCluster, colour: str, tmp_path: Path
) -> None:
    servers = cluster(replicas=2)
    with over("blocking", servers) as store:
        store.write("metrics", metric(0), series="a")
        store.label("metrics", "a", {"x": "1"})
    servers.wait_replayed()
    servers.kill("pg1")
    with over(colour, servers) as store:
        file = tmp_path / "a.parquet"
        for call in (
            lambda: store.read_many([ASKED, {**ASKED, "step": "1h"}]),
            lambda: store.latest("metrics", "a"),
            lambda: store.explain("metrics", "a", *DAY).plan and "a",
            lambda: list(store.stream("metrics", "a", *DAY)),
            lambda: store.datasets(),
            lambda: [s.labels["x"] for s in store.series("metrics")],
            lambda: store.export("metrics", file, "a", *DAY) and file.read_bytes(),
        ):
            began = time.monotonic()
            assert call()
            assert time.monotonic() - began < 3.0


@both
def test_who_labels_a_series_reads_it_by_that(cluster: MakeCluster, colour: str) -> None:
    servers = cluster(replicas=1)
    with over(colour, servers) as store:
        store.write("metrics", metric(0), series="a")
        servers.wait_replayed()
        until(lambda: store.read("metrics", "a", *DAY).plan.node == "pg2", "it is read from")
        servers.pause_replay("pg2")
        before = store.token()
        store.label("metrics", "a", {"x": "1"})
        by_label = store.read("metrics", None, *DAY, labels={"x": "1"})
        assert (len(by_label), by_label.plan.node) == (1, "pg1")
        assert [s.labels for s in store.series("metrics", {"x": "1"})] == [{"x": "1"}]
        assert store.token() != before
        servers.resume_replay("pg2")
        servers.wait_replayed()
        until(lambda: store.read("metrics", "a", *DAY).plan.node == "pg2", "it is read from again")
        servers.pause_replay("pg2")
        store.set_compress_after("metrics", "40d")
        (metrics,) = [d for d in store.datasets() if d.name == "metrics"]
        assert metrics.compress_after == "40d"


@both
def test_reads_of_a_batch_choose_their_node_as_analysis_does(
    cluster: MakeCluster, colour: str
) -> None:
    servers = cluster(replicas=2)
    with over(colour, servers, analysis="round-robin") as store:
        store.write("metrics", metric(0), series="a")
        servers.wait_replayed()

        def nodes() -> list[str]:
            reads = [store.read("metrics", "a", *DAY, priority="batch") for _ in range(12)]
            return [read.plan.node for read in reads]

        until(lambda: set(nodes()) == {"pg2", "pg3"}, "both are read from")
        taken = nodes()
        assert all(one != other for one, other in pairwise(taken)), taken


@both
def test_whatever_reads_waits_for_its_turn_and_a_stream_only_to_begin(
    database: Database, colour: str, tmp_path: Path
) -> None:
    settings = replace(
        load_settings(database.dsn, environ={}),
        cache=CacheOptions(memory=0),
        admission=AdmissionOptions(max_inflight=1, normal=0.1),
    )
    with threaded(colour, settings) as store:
        store.write("metrics", metric(0), series="a")
        store.write("metrics", metric(1), series="a")

        def inflight() -> float:
            found: float = store.stats()["admission_inflight"]
            return found

        with psycopg.connect(database.dsn) as other:
            other.execute("LOCK TABLE toolkit.metrics")
            reader = Thread(target=lambda: store.read("metrics", "a", *DAY))
            reader.start()
            until(lambda: inflight() == 1, "a read is under way")
            for call in (
                lambda: store.read_many([ASKED]),
                lambda: store.latest("metrics", "a"),
                lambda: store.explain("metrics", "a", *DAY),
                lambda: next(store.stream("metrics", "a", *DAY)),
                lambda: store.export("metrics", tmp_path / "a.parquet", "a", *DAY),
            ):
                with pytest.raises(Overloaded):
                    call()
        reader.join()
        pieces: Any = store.stream("metrics", "a", *DAY, rows=1)
        assert len(next(pieces)) == 1
        assert inflight() == 0
        assert len(store.read("metrics", "a", *DAY)) == 2
        assert [len(piece) for piece in pieces] == [1]


def test_migrations_go_to_the_server_that_is_the_primary_now(
    cluster: MakeCluster, tmp_path: Path
) -> None:
    servers = cluster(replicas=1)
    file = tmp_path / "toolkit.toml"
    nodes = f'primary = "{servers.dsn("pg1")}"\nreplicas = ["{servers.dsn("pg2")}"]\n'
    file.write_text(f"[[shards]]\n{nodes}[routing]\nwait = 1.0\n")
    migrated = "SELECT to_regclass('toolkit.dataset') IS NOT NULL"

    def is_migrated(name: str) -> bool:
        with servers.admin(name, "toolkit") as admin:
            row = admin.execute(migrated.encode()).fetchone()
        assert row is not None
        return bool(row[0])

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["--config", str(file), "migrate", *words])
        assert result.exit_code == code, result.output
        return result.output

    servers.promote("pg2", follow=False)  # and pg1, which it left behind, still takes writes
    run("down", "base", "--yes")
    assert (is_migrated("pg1"), is_migrated("pg2")) == (True, False)
    run("status", code=1)
    given = [sys.executable, "-m", "alembic", "-c", str(PROJECT / "alembic.ini"), "upgrade", "head"]
    environ = {"TOOLKIT_CONFIG": str(file), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(
        given, env=environ, cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert is_migrated("pg2")
    run("status")
    servers.kill("pg2")
    servers.kill("pg1")
    said = run("up", code=3)
    assert "no primary that takes writes within 1 s (primary: cannot be reached: " in said


@both
def test_a_position_asked_of_a_demoted_primary_tells_that_it_is_none(
    cluster: MakeCluster, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = cluster(replicas=1)
    with over(colour, servers, interval=30.0) as store:
        store.write("metrics", metric(0), series="a")
        nodes = router(store)
        nodes._prober.close()
        monkeypatch.setattr(nodes._prober, "touch", lambda: None)
        servers.stop("pg1")
        servers.promote("pg2")
        servers.demote("pg1", "pg2")
        assert nodes.health.primary.name == "pg1"  # nobody has looked since

        with pytest.raises(ReadOnlyDatabase, match=r"pg1: .*recovery is in progress"):
            drive(nodes.position()) if colour == "blocking" else store.run(nodes.position())
        monkeypatch.undo()
        store.read("metrics", "a", *DAY)
        found = nodes.health
        until(lambda: found.primary is not None and found.primary.name == "pg2", "it is found", 5.0)
