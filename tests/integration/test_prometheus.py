"""Debian's Prometheus on a real store's metrics: no expression is empty, each alert can fire."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

from fix_cache_servers import CacheServer
from fix_prometheus import MakePrometheus, Promtool
from fix_replicas import MakeCluster, until
from fix_servers import PROJECT
from fix_shelf import configured
from fix_stores import minutes
from fix_topologies import settings_of
from prometheus_client import CollectorRegistry, start_http_server

import toolkit
from toolkit import metrics
from toolkit.errors import QueryTimeout
from toolkit.metrics.alerts import ALERTS
from toolkit.metrics.dashboard import DASHBOARD
from toolkit.metrics.rendering import GRAFANA, RULES, dashboard, rules
from toolkit.metrics.table import BOUNDS_S, HISTOGRAM, METRICS
from toolkit.options import AlertOptions, CacheOptions
from toolkit_maintenance.runner import run
from toolkit_routing import AdmissionOptions

DAY = ("2024-01-01Z", "2024-01-02Z")
DEPLOY = PROJECT / "deploy"
EXPRESSIONS = {
    **{alert.name: alert.value for alert in ALERTS},
    **{
        f"{row.title}: {panel.title} {legend}": expression
        for row in DASHBOARD
        for panel in row.panels
        for expression, legend in panel.lines
    },
}
UP, DOWN, RISING = "1x60", "0x60", "0+60x60"
P95 = "toolkit_read_duration_seconds_bucket"
# alert → what it fires on, and what it is silent on: series of a sample a minute
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "ToolkitSlowReads": (
        {f'{P95}{{le="0.5"}}': DOWN, f'{P95}{{le="1"}}': RISING, f'{P95}{{le="+Inf"}}': RISING},
        {f'{P95}{{le="0.1"}}': RISING, f'{P95}{{le="+Inf"}}': RISING},
    ),
    "ToolkitSlowQueries": (
        {"toolkit_server_longest_statement_seconds": "31x60"},
        {"toolkit_server_longest_statement_seconds": "29x60"},
    ),
    "ToolkitErrors": (
        {
            'toolkit_errors_total{error="Unavailable"}': "0+1x60",
            "toolkit_read_duration_seconds_count": RISING,
            "toolkit_calls_total": DOWN,
        },
        {
            'toolkit_errors_total{error="QueryError"}': RISING,
            'toolkit_errors_total{error="Unavailable"}': DOWN,
            "toolkit_read_duration_seconds_count": RISING,
            "toolkit_calls_total": DOWN,
        },
    ),
    "ToolkitReplicaLag": (
        {'toolkit_replica_lag_seconds{node="a"}': "11x60"},
        {'toolkit_node_lag_seconds{node="a"}': "9x60"},
    ),
    "ToolkitNodeDown": (
        {'toolkit_node_up{node="a"}': DOWN},
        {'toolkit_node_up{node="a"}': UP},
    ),
    "ToolkitCacheHitRate": (
        {
            'toolkit_cache_hits_total{tier="redis"}': "0+4x60",
            'toolkit_cache_misses_total{tier="redis"}': "0+6x60",
        },
        {
            'toolkit_cache_hits_total{tier="redis"}': "0+6x60",
            'toolkit_cache_misses_total{tier="redis"}': "0+4x60",
        },
    ),
    "ToolkitMemory": (
        {"toolkit_process_resident_bytes": "81x60", "toolkit_process_limit_bytes": "100x60"},
        {"toolkit_process_resident_bytes": "79x60", "toolkit_process_limit_bytes": "100x60"},
    ),
    "ToolkitRedisMemory": (
        {"toolkit_redis_memory_bytes": "81x60", "toolkit_redis_max_memory_bytes": "100x60"},
        {"toolkit_redis_memory_bytes": "81x60"},
    ),
    "ToolkitPoolPressure": (
        {"toolkit_pool_size": "9x60", "toolkit_pool_idle": DOWN, "toolkit_pool_max": "10x60"},
        {"toolkit_pool_size": "9x60", "toolkit_pool_idle": UP, "toolkit_pool_max": "10x60"},
    ),
    "ToolkitConnections": (
        {"toolkit_server_connections": "81x60", "toolkit_server_max_connections": "100x60"},
        {"toolkit_server_connections": "79x60", "toolkit_server_max_connections": "100x60"},
    ),
    "ToolkitJobSilence": (
        {
            'toolkit_job_last_success_timestamp_seconds{job_name="a"}': DOWN,
            'toolkit_job_interval_seconds{job_name="a"}': "60x60",
        },
        {
            'toolkit_job_last_success_timestamp_seconds{job_name="a"}': "1860x60",
            'toolkit_job_interval_seconds{job_name="a"}': "60x60",
        },
    ),
    "ToolkitPartitionsMissing": (
        {'toolkit_partitions_ahead{dataset="a"}': DOWN},
        {'toolkit_partitions_ahead{dataset="a"}': UP},
    ),
    "ToolkitUnknown": ({"toolkit_server_up": DOWN}, {"toolkit_server_up": UP}),
}


def test_what_is_deployed_is_what_the_lists_say() -> None:
    assert (DEPLOY / RULES).read_text("utf-8") == rules(), "run: ./run render"
    assert (DEPLOY / GRAFANA).read_text("utf-8") == dashboard(), "run: ./run render"


def test_no_panel_lies_over_another() -> None:
    panels = json.loads(dashboard())["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_is_shown_and_nothing_else_is_asked_for() -> None:
    known = {m.full_name for m in METRICS if m.kind != HISTOGRAM}
    known |= {f"toolkit_{m.name}_{end}" for m in METRICS if m.kind == HISTOGRAM
              for end in ("bucket", "count")}  # fmt: skip
    panels = " ".join(e for row in DASHBOARD for p in row.panels for e, _ in p.lines)
    assert set(re.findall(r"toolkit_\w+", panels)) == known
    alerts = " ".join(alert.value for alert in ALERTS)
    assert set(re.findall(r"toolkit_\w+", alerts)) <= known


def test_the_page_lists_every_metric_and_every_alert_as_it_is() -> None:
    page = (PROJECT / "docs" / "metrics.md").read_text("utf-8").splitlines()
    for metric in METRICS:
        row = f"| `{metric.full_name}` | {', '.join(metric.labels)} | {metric.help} |"
        assert page.count(row) == 1, row
    listed = [line for line in page if line.startswith("| `toolkit_")]
    assert len(listed) == len(METRICS)
    *most, last = [f"{b * 1000:g}" for b in BOUNDS_S if b < 1]
    long = " and ".join(f"{b:g}" for b in BOUNDS_S if b >= 1)
    assert f"bounds of {', '.join(most)} and {last} ms, {long} s," in " ".join(page)
    for alert in ALERTS:
        key = alert.threshold
        limit = f"`{key}` | {alert.limit(AlertOptions()):g}" if isinstance(key, str) else "|"
        ends = f"| {limit} | {alert.severity} |"
        (row,) = [line for line in page if line.startswith(f"| {alert.id} |")]
        assert row.endswith(ends), row


def test_each_alert_fires_on_what_it_is_for_and_on_nothing_less(
    promtool: Promtool, tmp_path: Path
) -> None:
    assert CASES.keys() == {alert.name for alert in ALERTS}
    file = tmp_path / "alerts.yml"
    file.write_text(rules(AlertOptions()))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stderr
    tests = []
    for name, cases in CASES.items():
        for series, fired in zip(cases, (1, 0), strict=True):
            expression = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)'
            expected = {"expr": expression, "eval_time": "45m"}
            expected["exp_samples"] = [{"labels": "{}", "value": fired}]  # type: ignore[assignment]
            given = [{"series": s, "values": v} for s, v in series.items()]
            one = {"interval": "1m", "input_series": given, "promql_expr_test": [expected]}
            tests.append({"name": f"{name} {fired}", **one})
    whole = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(json.dumps(whole))  # which is YAML
    tested = promtool("test", "rules", tmp_path / "tests.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@contextmanager
def under_load(store: Any) -> Iterator[None]:
    """Read and write until the block ends."""
    is_over, numbers = Event(), count()

    def work() -> None:
        while not is_over.wait(0.02):
            n = next(numbers)
            store.read("metrics", "cpu", *DAY)
            store.read("metrics", "cpu", *DAY, step="1h", cache=False)
            if n % 10 == 0:
                store.write("metrics", minutes(20 + n), series=f"host{n % 50}")
                store.read("metrics", f"host{n % 50}", *DAY)
                store.forget("metrics", "cpu")
            if n % 15 == 0:
                with suppress(QueryTimeout):  # which it may or may not be in time for
                    store.read("metrics", "cpu", *DAY, cache=False, timeout=1e-6)

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def served(store: Any) -> Iterator[int]:
    """Serve a store's metrics over HTTP, as a service does; yields the port."""
    registry = CollectorRegistry()
    metrics.register(store, registry, server_every=0.5)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_no_expression_is_empty_on_a_store_at_work(
    cluster: MakeCluster, valkey9: CacheServer, prometheus: MakePrometheus
) -> None:
    servers = cluster(replicas=1)
    cache = CacheOptions(redis=valkey9.url, redis_timeout=2.0)
    settings = settings_of(servers, cache=cache)
    settings = replace(settings, admission=AdmissionOptions(max_inflight=50))
    with configured(valkey9, maxmemory=64 << 20), toolkit.connect(settings) as store:
        store.write("metrics", minutes(1_000), series="cpu")
        assert run(store, "partitions").status == "done"
        with under_load(store), served(store) as port:
            scraping = prometheus(port, DEPLOY / RULES)
            until(lambda: len(scraping.ask("toolkit_server_up")) == 1, "the server's figures")
            asked = {what: e.replace("$__rate_interval", "1m") for what, e in EXPRESSIONS.items()}
            left = dict(asked)

            def is_told() -> bool:
                for what, expression in list(left.items()):
                    values = [value for _, value in scraping.ask(expression)]
                    is_odd = what.startswith("Memory and server: Growth")  # for five minutes
                    if values and (is_odd or any(math.isfinite(v) for v in values)):
                        del left[what]
                return not left

            until(is_told, f"values of all expressions, not of {left}")
            groups = scraping.get("/api/v1/rules")["groups"]
    assert [r["name"] for r in groups[0]["rules"]] == [alert.name for alert in ALERTS]
    assert {r["health"] for r in groups[0]["rules"]} <= {"ok", "unknown"}
