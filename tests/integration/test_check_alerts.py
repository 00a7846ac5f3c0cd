"""`toolkit check --alerts`: each threshold judged by the server; what is not told is unknown."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from fix_cache_servers import CacheServer
from fix_cli import Run
from fix_jobs import Register, job
from fix_replicas import MakeCluster, until
from fix_servers import Database
from fix_stores import cached
from fix_topologies import settings_of

import toolkit
from toolkit.cli import main
from toolkit.config import Settings
from toolkit.metrics.alerts import ALERTS, FIRING, OK, UNKNOWN, judged
from toolkit.metrics.server import Database as ServerSaid
from toolkit.metrics.server import Figures, Job, Redis, Replica, look
from toolkit.options import AlertOptions
from toolkit_maintenance.job import Skip
from toolkit_maintenance.registry import JOBS
from toolkit_maintenance.runner import maintain

INSIDE = {"slow-reads", "errors", "memory", "pool-pressure"}
CALM = ServerSaid(10, 100, None, 0, 0.0, 0.0)


def statuses(figures: Figures, options: AlertOptions = AlertOptions()) -> dict[str, str]:
    return {alert.id: verdict.status for alert, verdict in judged(figures, options)}


def fired(run: Run, code: int, *more: str) -> dict[str, Any]:
    found = json.loads(run("check", "--alerts", "--json", *more, code=code).stdout)
    return {one["alert"]: one for one in found}


@pytest.fixture
def only_partitions(tmp_path: Path) -> Path:
    """A configuration in which no other job is ever due."""
    others = [f'{job} = ""' for job in JOBS if job != "partitions"]
    file = tmp_path / "toolkit.toml"
    file.write_text("\n".join(["[alerts]", "slow = 0.05", "[maintenance]", *others]))
    return file


def test_a_fresh_database_lacks_maintenance_and_after_it_nothing_fires(
    database: Database, run: Run, only_partitions: Path
) -> None:
    before = fired(run, 1, "--config", str(only_partitions))
    assert {n for n, one in before.items() if one["status"] == FIRING} == {
        *("job-silence", "partitions-missing"),
    }
    assert "no success: partitions ever (due every 3600 s)" in before["job-silence"]["said"]
    assert "candles has 0" in before["partitions-missing"]["said"]
    with toolkit.connect(database.dsn) as store:
        maintain(store, ["partitions"])
    found = fired(run, 0, "--config", str(only_partitions))
    assert found.keys() == {alert.id for alert in ALERTS}
    assert {n for n, one in found.items() if one["status"] == UNKNOWN} == INSIDE | {
        "cache-hit-rate",
    }
    assert "only services know" in found["slow-reads"]["said"]
    text = run("check", "--alerts", "--config", str(only_partitions)).stdout
    assert "every job had success in time" in text


def test_a_statement_that_runs_long_and_a_job_that_fell_silent_fire(
    database: Database, run: Run, only_partitions: Path
) -> None:
    with toolkit.connect(database.dsn) as store:
        maintain(store, ["partitions"])
    with closing(psycopg.connect(database.dsn)) as busy:
        busy.execute("UPDATE toolkit.job_run SET started_at = started_at - interval '4 hours'")
        busy.commit()
        busy.pgconn.send_query(b"SELECT pg_sleep(60)")
        found: dict[str, Any] = {}

        def is_seen() -> bool:
            found.update(fired(run, 1, "--config", str(only_partitions)))
            return found["slow-queries"]["status"] == FIRING

        until(is_seen, "the statement")
        busy.cancel()
    assert found["slow-queries"]["threshold"] == 0.05
    assert found["job-silence"]["status"] == FIRING


def test_who_looked_and_had_nothing_to_do_is_not_silent_and_who_could_not_look_is(
    database: Database, register: Register
) -> None:
    with toolkit.connect(database.dsn) as store:
        first = maintain(store, always=True)  # the real ones, with nothing to do for most
        assert {r.status for r in first} <= {"done", "nothing"}
        assert statuses(look(store.settings))["job-silence"] == OK
        with psycopg.connect(database.dsn) as sql:
            sql.execute("DELETE FROM toolkit.job_run")
        busy = Skip("candles", "passed over", is_warning=True, is_busy=True)
        told = Skip("candles", "somebody should look at it", is_warning=True)
        register(
            *(job("retention"), job("warm", told), job("vacuum", busy, "SELECT 1")),
            *(job("verify", "CREATE ROLE nobody_may"), job("reindex", busy)),
        )
        maintain(store)
        found = look(store.settings).jobs or {}
    ended = {n: j.last.partition(":")[0] for n, j in found.items() if j.success_at}
    assert ended == {"retention": "nothing", "warm": "nothing", "vacuum": "done"}
    figures = Figures(CALM, jobs={n: found[n] for n in (*ended, "verify", "reindex")})
    (said,) = [v.said for a, v in judged(figures, AlertOptions()) if a.id == "job-silence"]
    assert "verify ever (due every 2592000 s; the last run: skipped: act 1: " in said
    assert "reindex ever (due every 86400 s; the last run: skipped: candles: passed over)" in said
    assert not [n for n in ended if n in said]


def test_sessions_that_may_not_be_seen_make_slow_queries_unknown() -> None:
    hidden = replace(CALM, hidden=3)
    assert statuses(Figures(CALM))["slow-queries"] == OK
    assert statuses(Figures(hidden))["slow-queries"] == UNKNOWN
    assert statuses(Figures(replace(hidden, longest=31.0)))["slow-queries"] == FIRING


def test_what_was_not_told_is_unknown_and_said_to_be() -> None:
    found = statuses(Figures(CALM, unknown={"jobs": "no right", "redis": "no answer"}))
    assert found["unknown"] == FIRING
    for alert in ("job-silence", "partitions-missing", "replica-lag", "redis-memory", "node-down"):
        assert found[alert] == UNKNOWN
    assert {found[alert] for alert in INSIDE} == {UNKNOWN}


@pytest.mark.parametrize(
    ("alert", "calm", "beyond"),
    [
        ("connections", {}, {"database": replace(CALM, connections=81)}),
        ("replica-lag", {"replicas": {"a": Replica(1, 9)}}, {"replicas": {"a": Replica(1, 11)}}),
        ("node-down", {"replicas": {"a": Replica(0, 0)}}, {"replicas": {"a": Replica(0, 0, "x")}}),
        ("redis-memory", {"redis": Redis(79, 100, 0, 0)}, {"redis": Redis(81, 100, 0, 0)}),
        ("cache-hit-rate", {"redis": Redis(0, 0, 600, 500)}, {"redis": Redis(0, 0, 400, 601)}),
        ("partitions-missing", {"partitions": {"a": (9, 1)}}, {"partitions": {"a": (9, 0)}}),
        (
            "job-silence",
            {"jobs": {"a": Job(60, 1.0, 899, None, 0)}},
            {"jobs": {"a": Job(600, 1.0, 1801, None, 0)}},
        ),
    ],
)  # fmt: skip
def test_each_threshold_is_where_the_settings_put_it(
    alert: str, calm: dict[str, Any], beyond: dict[str, Any]
) -> None:
    assert statuses(Figures(**{"database": CALM, **calm}))[alert] == OK
    assert statuses(Figures(**{"database": CALM, **beyond}))[alert] == FIRING


def test_redis_that_is_out_is_unknown_and_one_that_answers_is_judged(
    database: Database, valkey9: CacheServer
) -> None:
    def redis(url: str) -> Figures:
        return look(cached(database.dsn, redis=url))

    out = redis("redis://127.0.0.1:1/0")
    assert out.redis is None
    assert "redis" in out.unknown
    there = redis(valkey9.url)
    assert there.redis is not None
    assert there.redis.memory > 0


def test_a_replica_that_is_down_is_told_from_one_that_keeps_up(cluster: MakeCluster) -> None:
    servers = cluster(replicas=1)
    settings: Settings = settings_of(servers, deadline=0.5, patience=0.5)
    with_replica = statuses(look(settings))
    assert (with_replica["replica-lag"], with_replica["node-down"]) == (OK, OK)
    # without a topology the primary tells of those that are connected
    alone = replace(settings, topology=None)
    (seen,) = (look(alone).replicas or {}).values()
    assert seen.bytes is not None
    standby = look(replace(settings, topology=None, dsn=servers.dsn("pg2")))
    assert (standby.replicas, standby.unknown) == ({}, {})
    servers.kill("pg2")
    without = statuses(look(settings))
    assert (without["replica-lag"], without["node-down"]) == (UNKNOWN, FIRING)


def test_thresholds_are_checked_and_rules_follow_them(tmp_path: Any) -> None:
    file = tmp_path / "toolkit.toml"
    file.write_text("[alerts]\nmemory = 80\n")
    wrong = CliRunner().invoke(main, ["--config", str(file), "metrics", "--rules"])
    assert wrong.exit_code == 2
    assert "alerts.memory: 80 is no share of 1; 0.8 is 80 %" in wrong.stderr
    file.write_text("[alerts]\nsilence = 7.5\n")
    shown = CliRunner().invoke(main, ["--config", str(file), "metrics", "--rules"])
    assert shown.exit_code == 0
    assert ", 300) > 7.5" in shown.stdout
    panels = CliRunner().invoke(main, ["metrics", "--dashboard"])
    assert json.loads(panels.stdout)["title"] == "Time-series toolkit"
    said = CliRunner().invoke(main, ["check"])
    assert said.exit_code == 2
    assert "--alerts" in said.stderr
