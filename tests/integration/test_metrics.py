"""Metrics of real stores: what they say is what happened, in few series, at no cost to reads."""

from __future__ import annotations

import json
import math
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest
from fix_cache_servers import CacheServer
from fix_cli import Run
from fix_pgbouncer import MakePgBouncer
from fix_replicas import MakeCluster, until
from fix_servers import Database
from fix_shelf import configured
from fix_stores import COLOURS, cached, create, minutes, open_store
from fix_topologies import router, settings_of
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import toolkit
from toolkit import metrics
from toolkit.dataset import Aggregate, Column, Dataset
from toolkit.drivers import drive
from toolkit.errors import (
    ConfigError,
    MissingExtra,
    QueryError,
    QueryTimeout,
    ToolkitError,
    Unavailable,
    UnknownName,
)
from toolkit.metrics import exposing, server
from toolkit.metrics.table import BY_NAME, DATASETS, METRICS, SERVER, Datasets
from toolkit.options import CacheOptions, MaintenanceOptions
from toolkit_maintenance.registry import JOBS
from toolkit_routing import AdmissionOptions, Want

LONG = [pytest.mark.soak, pytest.mark.timeout(1_800)]
DAY = ("2024-01-01Z", "2024-01-02Z")
_LAST = (Aggregate("value_last", "last", ("value",)),)
OWN = [Dataset(f"own{n}", (Column("value"),), _LAST, ("1h",), "1d") for n in range(8)]


def registered(store: Any, **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics.register(getattr(store, "store", store), registry, **options)
    return registry


def samples(registry: CollectorRegistry) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


@pytest.mark.parametrize("colour", COLOURS)
def test_what_a_store_did_is_in_its_metrics(colour: str, database: Database) -> None:
    with open_store(colour, cached(database.dsn)) as store:
        registry = registered(store, server_every=None)
        store.write("metrics", minutes(500), series="cpu")
        for _ in range(3):
            store.read("metrics", "cpu", *DAY)
        store.read("metrics", "cpu", *DAY, step="1h", cache=False)
        with psycopg.connect(database.dsn) as other:
            other.execute("LOCK TABLE toolkit.metrics")
            with pytest.raises(QueryTimeout):
                store.read("metrics", "cpu", *DAY, timeout=0.1, cache=False)
        store.delete("metrics", "cpu", *DAY)
        calls = [
            *(store.refresh, store.compress, store.recompress, store.decompress, store.verify),
            lambda name: store.backfill(name, minutes(1), series="a"),
            lambda name: store.label(name, "a", {"b": "c"}),
            store.audit,
            lambda name: store.drop_partitions(name, *DAY),
            lambda name: store.set_compress_after(name, "1d"),
        ]
        for call in calls:
            with pytest.raises(UnknownName):
                call("nosuch")
        with pytest.raises(QueryError, match="compress_after"):
            store.compress("metrics")
        store.verify("metrics")
        found = samples(registry)
    assert sum(found["toolkit_reads_total"].values()) == 4
    assert found["toolkit_reads_total"]["metrics", "direct"] >= 3
    assert found["toolkit_read_duration_seconds_count"]["memory",] == 2
    assert found["toolkit_read_duration_seconds_count"]["database",] == 2
    assert found["toolkit_read_duration_seconds_bucket"]["memory", "10"] == 2
    assert found["toolkit_read_duration_seconds_bucket"]["memory", "0.0001"] <= 2
    assert found["toolkit_rows_returned_total"][()] == 1_509
    assert found["toolkit_rows_touched_total"][()] >= 1_000
    # 500 points of a time, a code and a value, and nine bars
    assert found["toolkit_answer_bytes_total"]["database",] >= 500 * (8 + 4 + 8)
    assert found["toolkit_errors_total"]["QueryTimeout",] == 1
    assert found["toolkit_errors_total"]["UnknownName",] == len(calls)
    assert found["toolkit_errors_total"]["QueryError",] == 1
    assert found["toolkit_calls_total"]["upkeep",] == 1
    assert found["toolkit_errors_total"]["Overloaded",] == 0
    assert found["toolkit_rows_written_total"]["inserted",] == 500
    assert found["toolkit_rows_written_total"]["deleted",] == 500
    assert found["toolkit_calls_total"]["write",] == 1
    assert found["toolkit_cache_hits_total"]["memory",] >= 2
    assert 0 < found["toolkit_cache_bytes"][()] < found["toolkit_cache_max_bytes"][()]
    assert found["toolkit_pool_size"]["primary",] >= 1
    assert found["toolkit_node_reads_total"]["primary",] == 2
    assert found["toolkit_process_resident_bytes"][()] > 1e7
    assert found["toolkit_process_resident_bytes"][()] < found["toolkit_process_limit_bytes"][()]
    assert math.isnan(found["toolkit_memory_trend_bytes_per_hour"]["process",])


@pytest.mark.parametrize("count", [500, pytest.param(5_000, marks=LONG)])
def test_series_are_few_however_many_partitions_series_and_datasets_there_are(
    count: int, database: Database, valkey9: CacheServer
) -> None:
    create(database, *OWN)
    with psycopg.connect(database.dsn, autocommit=True) as sql:
        for day in range(0, count, 100):
            sql.execute(
                "SELECT toolkit.ensure_partitions('own1', d, d + interval '100 days') "
                "FROM (SELECT timestamptz '2011-01-01Z' + %s * interval '1 day') AS x (d)",
                [day],
            )
    settings = cached(database.dsn, redis=valkey9.url, redis_timeout=2.0)
    settings = replace(settings, admission=AdmissionOptions(max_inflight=10))
    with open_store("blocking", settings) as store:
        registry = registered(store)
        for n in range(8):
            store.write(f"own{n}", minutes(10), series="cpu")
        names = [f"host{n}" for n in range(50)]
        ts = np.repeat(minutes(1)["ts"], 50)
        store.write("metrics", {"ts": ts, "series": names, "value": np.zeros(50)})
        for series in range(50):
            store.read("metrics", f"host{series}", *DAY)
        for n in range(8):
            for strategy in ("direct", "aggregated", "downsampled"):
                step = None if strategy == "direct" else "1h"
                store.read(f"own{n}", "cpu", *DAY, step=step, strategy=strategy, cache=False)
        until(lambda: "toolkit_server_up" in samples(registry), "the server's figures")
        found = samples(registry)
        several = [name for name in found if not name.endswith("_created")]
        assert sum(len(found[name]) for name in several) < 200
        assert found["toolkit_server_up"][()] == 1
        assert found["toolkit_partitions"]["other",] + sum(
            found["toolkit_partitions"].get((f"own{n}",), 0) for n in range(8)
        ) >= count  # fmt: skip
        assert found["toolkit_reads_total"]["other", "downsampled"] >= 2
        assert found["toolkit_redis_memory_bytes"][()] > 0
    names = {name for name in BY_NAME if BY_NAME[name].full_name not in str(sorted(found))}
    nodes = {"node_up", "node_inflight", "node_latency_seconds", "node_lag_seconds"}
    # of a topology, of replicas, of a Redis with a limit, and of a job that ran
    nodes |= {"node_lag_bytes", "node_reads_moved", "replica_lag_seconds", "replica_lag_bytes"}
    assert names <= nodes | {"redis_max_memory_bytes", "job_duration_seconds"}


def test_a_registry_shows_one_store(blocking: toolkit.Store) -> None:
    registry = CollectorRegistry()
    first = metrics.register(blocking, registry, server_every=None)
    with pytest.raises(ConfigError, match="shows a store already"):
        metrics.register(blocking, registry, server_every=None)
    registry.unregister(first)
    metrics.register(blocking, registry, server_every=None)
    assert samples(registry)["toolkit_build_info"] == {(toolkit.__version__,): 1.0}
    wrong: list[Any] = ["x", blocking]
    with pytest.raises(QueryError, match="store: expected a Store or an AsyncStore, got str"):
        metrics.register(wrong[0], registry)
    with pytest.raises(QueryError, match=r"registry: expected a CollectorRegistry .* got Store"):
        metrics.register(blocking, wrong[1])


def test_a_scrape_waits_for_no_server_and_says_when_it_is_out(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = cached(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/x")
        settings = replace(settings, pool=replace(settings.pool, connect_timeout=0.3))
        with open_store("asyncio", settings) as store:
            registry = registered(store)
            assert "toolkit_server_up" not in samples(registry)  # nobody has answered yet
            until(lambda: "toolkit_server_up" in samples(registry), "a look that failed")
            found = samples(registry)
    assert found["toolkit_server_up"][()] == 0
    assert "toolkit_server_connections" not in found
    assert found["toolkit_calls_total"]["write",] == 0


def test_a_role_that_may_see_nothing_makes_parts_unknown(database: Database) -> None:
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS metrics_blind")
        admin.execute("CREATE ROLE metrics_blind LOGIN PASSWORD 'x'")
        admin.execute("GRANT USAGE ON SCHEMA toolkit TO metrics_blind")
        admin.execute("GRANT SELECT ON toolkit.dataset, toolkit.toolkit_version TO metrics_blind")
    parts = urlsplit(database.dsn)
    blind = parts._replace(netloc=f"metrics_blind:x@{parts.netloc.rpartition('@')[2]}").geturl()
    try:
        with psycopg.connect(database.admin_dsn):
            figures = server.look(cached(blind))
        assert figures.database.connections
        assert figures.database.hidden
        assert figures.jobs is None
        assert "job_run" in figures.unknown["jobs"]
        assert server.values(figures, Datasets())["server_up"] == {(): 0.0}
    finally:
        with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
            admin.execute("DROP OWNED BY metrics_blind")
            admin.execute("DROP ROLE metrics_blind")


def test_textfile_and_text_are_what_prometheus_reads(
    database: Database, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "toolkit.prom"
    run("metrics", "--textfile", str(path))
    found = {f.name: f for f in text_string_to_metric_families(path.read_text())}
    assert {s.labels["dataset"] for s in found["toolkit_partitions"].samples} == {
        *("candles", "metrics", "trades"),
    }
    assert list(tmp_path.iterdir()) == [path]
    shown = {f.name for f in text_string_to_metric_families(run("metrics").stdout)}
    assert shown == set(found)
    spoken = json.loads(run("metrics", "--json").stdout)
    assert spoken["toolkit_job_failures"]["samples"] == [{"labels": {}, "value": 0}]
    due = spoken["toolkit_job_interval_seconds"]["samples"]
    assert {"labels": {"job_name": "partitions"}, "value": 3_600.0} in due
    of_server = {m.full_name for m in METRICS if m.of == SERVER} | {"toolkit_build_info"}
    assert set(spoken) <= of_server
    said = run("metrics", "--textfile", str(tmp_path / "no" / "x.prom"), code=1)
    assert "No such file" in said.stderr
    with pytest.raises(ToolkitError, match="No such file"):
        exposing.write_textfile({}, tmp_path / "no" / "x.prom")


def test_without_the_extra_only_what_needs_it_is_refused(
    run: Run, blocking: toolkit.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "timeseries-toolkit[metrics]" in run("metrics", code=2).stderr
    assert json.loads(run("metrics", "--json").stdout)["toolkit_server_up"]
    with pytest.raises(MissingExtra, match=r"timeseries-toolkit\[metrics\]"):
        metrics.register(blocking)


def test_figures_are_told_through_a_pooler(
    database: Database, pgbouncer: MakePgBouncer, run: Run
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn)
    spoken = json.loads(run("metrics", "--json", dsn=bouncer.dsn).stdout)
    assert spoken["toolkit_server_up"]["samples"] == [{"labels": {}, "value": 1.0}]
    assert spoken["toolkit_server_max_connections"]["samples"][0]["value"] > 0


def test_a_read_that_moves_on_is_counted_where_it_failed_and_where_it_was_answered(
    cluster: MakeCluster,
) -> None:
    servers = cluster(replicas=1)
    with toolkit.connect(settings_of(servers)) as store:
        registry = registered(store, server_every=None)
        store.write("metrics", minutes(10), series="cpu")
        asked = []

        async def ask(name: str) -> str:
            asked.append(name)
            if len(asked) == 1:
                raise Unavailable("gone", name)
            return name

        drive(router(store).read(Want(max_age=60.0), ask, None))
        found = samples(registry)
    first, last = asked
    assert found["toolkit_node_reads_moved_total"][first,] == 1
    assert found["toolkit_node_reads_total"][last,] >= 1
    assert found["toolkit_node_up"].keys() == {("pg1",), ("pg2",)}
    assert found["toolkit_breaker_open"] == {("pg1",): 0, ("pg2",): 0}


def test_series_stay_few_with_replicas_all_jobs_and_more_datasets_than_have_labels(
    cluster: MakeCluster, valkey9: CacheServer
) -> None:
    servers = cluster(replicas=2)
    dsn = servers.dsn("pg1")
    create(Database("", dsn, "", ""), *OWN)
    cache = CacheOptions(redis=valkey9.url, redis_timeout=2.0)
    settings = replace(
        settings_of(servers, cache=cache),
        admission=AdmissionOptions(max_inflight=10),
        maintenance=MaintenanceOptions(audit="1d"),
    )
    with psycopg.connect(dsn) as sql:
        for job in JOBS:
            sql.execute(
                "INSERT INTO toolkit.job_run (job, status, ended_at) "
                "VALUES (%s, 'done', now() + interval '1 s')",
                [job],
            )
    with configured(valkey9, maxmemory=64 << 20), toolkit.connect(settings) as store:
        registry = registered(store)
        for own in OWN:
            store.write(own.name, minutes(90), series="cpu")
            for strategy in ("direct", "aggregated", "downsampled"):
                step = None if strategy == "direct" else "1h"
                store.read(own.name, "cpu", *DAY, step=step, strategy=strategy)
            store.read(own.name, "cpu", *DAY)
        for wrong in ({"dataset": "nosuch"}, {"columns": ["nosuch"]}):
            with pytest.raises(ToolkitError):
                store.read(**{"dataset": "own1", "series": "cpu", "start": DAY[0], "end": DAY[1],
                              "cache": False, **wrong})  # fmt: skip
        until(lambda: "toolkit_job_failures" in samples(registry), "the server's figures")
        found = samples(registry)
    # and room for as many classes of errors again as a service may well see
    assert sum(map(len, found.values())) + 10 < 200
    assert len(found["toolkit_reads_total"]) == 3 * (DATASETS + 1)
    assert {job for (job,) in found["toolkit_job_duration_seconds"]} == set(JOBS)
    missing = {name for name in BY_NAME if BY_NAME[name].full_name not in str(sorted(found))}
    assert missing == {"replica_lag_seconds", "replica_lag_bytes"}  # node_lag_* has them
