"""The examples of deploy/ at work: every entry point and configuration, started on this machine."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import yaml
from fix_deploy import Stage
from fix_examples import COMPOSE, DEPLOY, PAGE, SERVICES, UNITS, pods, said, unit
from fix_replicas import until
from fix_servers import ON_ONE_VERSION

import toolkit
from toolkit.pgbouncer import LOOKUP_SQL

pytestmark = ON_ONE_VERSION


# -- the database -------------------------------------------------------------------------------


def test_topology_is_clean_and_every_service_healthy(stage: Stage) -> None:
    until(lambda: streaming(stage) == {"replica1", "replica2"}, "both replicas stream")
    reports = json.loads(stage.toolkit("topology", "check", "--json"))
    assert [(r["node"], r["role"], r["problems"]) for r in reports] == [
        ("primary", "primary", []),
        ("replica1", "replica", []),
        ("replica2", "replica", []),
    ]
    # what is left is a choice, which postgresql.conf describes
    remarks = [remark for r in reports for remark in r["remarks"]]
    assert len(remarks) == 1
    assert "ANY 1" in remarks[0]
    assert "'ANY 1 " in (DEPLOY / "postgres" / "postgresql.conf").read_text()
    for service in ("primary", "replica1", "replica2", "pgbouncer", "valkey"):
        assert stage.is_healthy(service), service


def streaming(stage: Stage) -> set[str]:
    with connected(stage, "toolkit") as connection:
        rows = connection.execute(
            "SELECT r.application_name FROM pg_stat_replication r "
            "JOIN pg_replication_slots s ON s.slot_name = r.application_name "
            "WHERE s.active_pid = r.pid AND r.state = 'streaming'"
        ).fetchall()
    return {row[0] for row in rows}


def connected(
    stage: Stage, user: str, *, service: str = "primary", secret: str = "", **more: Any
) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host="127.0.0.1",
        port=stage.port(service, 6432 if service == "pgbouncer" else 5432),
        user=user,
        password=stage.secret(secret or f"{user}_password"),
        autocommit=True,
        **{"dbname": "market"} | more,
    )


def test_pgbouncer_ini_is_what_the_toolkit_renders_for_these_servers(stage: Stage) -> None:
    line = next(w for ws in said().values() for w in ws if w[:2] == ["pgbouncer", "render"])
    shown = json.loads(stage.toolkit(*line, "--json"))
    assert (DEPLOY / "pgbouncer" / "pgbouncer.ini").read_text() == stage.named(shown["ini"])
    assert LOOKUP_SQL.partition("\n")[2] in (DEPLOY / "postgres" / "roles.sql").read_text()
    (secrets,) = [remark for remark in shown["remarks"] if "userlist.txt" in remark]
    for role in re.findall(r'^"(.+?)"', stage.secret("pgbouncer_userlist"), re.MULTILINE):
        assert f"for {role}" in secrets
    (needed,) = re.findall(r"needs ([\d,]+) open files", " ".join(shown["remarks"]))
    assert SERVICES["pgbouncer"]["ulimits"]["nofile"] >= int(needed.replace(",", ""))
    assert json.loads(stage.toolkit("pgbouncer", "show", "databases", "--json"))


def test_roles_may_do_what_they_are_for_and_no_more(stage: Stage) -> None:
    denied = psycopg.errors.InsufficientPrivilege
    with connected(stage, "toolkit") as own:
        for statement in ("CREATE TABLE public.x ()", "CREATE ROLE x", "CREATE SCHEMA x"):
            with pytest.raises(denied):
                own.execute(statement)
        # statements that said a password were not kept
        kept = own.execute("SELECT string_agg(query, ' ') FROM pg_stat_statements").fetchone()
        assert kept is not None
        secrets = [p.read_text() for p in (stage.deploy / "secrets").glob("*_password")]
        assert len(secrets) == 6
        assert not any(secret in kept[0] for secret in secrets)
    with connected(stage, "pgbouncer_auth", secret="pgbouncer_password") as pooler:
        with pytest.raises(denied):
            pooler.execute("SELECT rolpassword FROM pg_authid")
        looked = pooler.execute(
            "SELECT wanted, secret FROM unnest('{toolkit,postgres,replicator}'::text[]) AS wanted, "
            "LATERAL pgbouncer.get_auth(wanted)"
        ).fetchall()
        assert [(role, secret[:13]) for role, secret in looked] == [("toolkit", "SCRAM-SHA-256")]
    # and each through its own door only, replicas' too
    for service in ("primary", "replica1"):
        for user, secret, more in (
            ("postgres", "postgres_password", {}),
            ("replicator", "replication_password", {}),
            ("toolkit", "toolkit_password", {"dbname": "postgres"}),
        ):
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                connected(stage, user, service=service, secret=secret, **more)
    with connected(stage, "toolkit", service="pgbouncer", dbname="market_replica2") as pooled:
        row = pooled.execute("SELECT pg_is_in_recovery(), current_setting('jit')").fetchone()
        assert row == (True, "off")


def test_secrets_show_in_no_argument_and_no_log(stage: Stage) -> None:
    secrets = [p.read_text() for p in (stage.deploy / "secrets").glob("*_password")]
    shown = [p.read_text() for p in stage.home.glob("*.log")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            shown.append(path.read_text(errors="replace"))
        except OSError:
            continue  # it has ended
    assert not any(secret in text for secret in secrets for text in shown)


def test_replica_is_copied_whole_or_not_at_all(stage: Stage) -> None:
    assert stage.stop("replica2") == 0
    data = Path(stage.environment("replica2")["PGDATA"])
    # as if a copy had been broken off, and the primary were not there yet
    data.rename(data.with_name("docker.copy"))
    stage.toolkit("migrate", "up")  # which needs the primary only
    nowhere = "host=127.0.0.1 port=1 user=replicator"
    stage.launch("replica2", stage.command("replica2"), PRIMARY=nowhere)
    stage.wait("replica2", lambda: "cannot be copied yet" in stage.log("replica2"))
    stage.stop("replica2", signal.SIGTERM)
    assert not data.exists()
    stage.start("replica2")
    assert [p.name for p in data.parent.glob("docker*")] == ["docker"]
    until(lambda: "replica2" in streaming(stage), "it streams")
    # the password stays in a file of its own
    with connected(stage, "toolkit", service="replica2") as replica:
        said = replica.execute("SELECT conninfo FROM pg_stat_wal_receiver").fetchone()
    assert said is not None
    assert "passfile=" in said[0]
    passfile = data.parent / "replication.pgpass"
    assert passfile.stat().st_mode & 0o777 == 0o600


# -- the cache ----------------------------------------------------------------------------------


def test_cache_is_as_advised_and_serves_the_toolkit_only(stage: Stage) -> None:
    url = stage.secret("redis_url")
    settings = toolkit.resolve(stage.deploy / "toolkit.toml")
    assert settings.topology is not None
    report = json.loads(stage.toolkit("cache", "stats", "--json"))
    assert report["warnings"] == []
    with redis.Redis.from_url(url) as client:
        client.set("tk1:x", "1", ex=5)
        for words in (["SET", "x", "1"], ["KEYS", "*"], ["FLUSHALL"], ["CONFIG", "GET", "dir"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*words)
    with redis.Redis(port=stage.port("valkey", 6379)) as anybody:
        assert anybody.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            anybody.get("tk1:x")


def test_reads_of_two_processes_share_the_cache_and_hear_of_writes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", stage.secret("toolkit_password"))
    monkeypatch.setenv("TOOLKIT_CACHE_REDIS", stage.secret("redis_url"))
    monkeypatch.setenv("TOOLKIT_CACHE_MEMORY", "64")
    file, day = stage.deploy / "toolkit.toml", ("2024-03-01Z", "2024-03-02Z")
    with toolkit.connect(file) as one, toolkit.connect(file) as other:
        one.write("metrics", {"ts": ["2024-03-01T12:00Z"], "value": [1.0]}, series="load")
        assert one.read("metrics", "load", *day)["value"].tolist() == [1.0]
        found = other.read("metrics", "load", *day, freshness=toolkit.bounded(60))
        assert found.plan.sources == {"redis": 1}
        until(lambda: other.stats()["redis_is_listening"], "it listens")
        one.forget("metrics", "load")


# -- what keeps and watches it ------------------------------------------------------------------


def test_maintenance_runs_in_its_container_as_the_file_says(stage: Stage) -> None:
    stage.launch("maintain", stage.command("maintain"))
    file = Path(stage.local("maintain", "/metrics/toolkit.prom"))
    stage.wait("maintain", lambda: file.exists() and "toolkit_build_info" in file.read_text())
    stage.stop("maintain", signal.SIGTERM)
    assert "exit" not in stage.log("maintain"), stage.log("maintain")


def test_units_and_jobs_run_with_the_settings_they_are_given(stage: Stage) -> None:
    """The settings' file is a credential to systemd, a Secret to Kubernetes."""
    text = (stage.deploy / "toolkit.toml").read_text()
    password = stage.secret("toolkit_password")
    given = stage.home / "given"
    given.mkdir()
    (given / "toolkit.toml").write_text(text.replace("user=", f"password={password} user="))
    for path in UNITS:
        service = unit(path)["Service"]
        name, _, source = service["LoadCredential"].partition(":")
        assert service["Environment"] == f"TOOLKIT_CONFIG=%d/{name}"
        assert source == "/etc/timeseries-toolkit/toolkit.toml"
    for name, container in pods():
        (variable,) = container["env"]
        assert variable == {"name": "TOOLKIT_CONFIG", "value": "/etc/toolkit/toolkit.toml"}, name
        assert container["volumeMounts"][0]["mountPath"] == "/etc/toolkit"
    metrics = stage.local("maintain", "/metrics/unit.prom")
    for where, commands in said().items():
        if where not in ("compose.yml", PAGE.name):
            words = [re.sub(r"^/var/lib/prometheus/.*", metrics, word) for word in commands[0]]
            stage.toolkit(*words, config=str(given / "toolkit.toml"))


def test_prometheus_loads_its_rules_and_finds_the_metrics(stage: Stage) -> None:
    probe = Path(stage.local("maintain", "/metrics/probe.prom"))
    probe.write_text("toolkit_probe 1\n")
    config = stage.local("prometheus", "/etc/prometheus/prometheus.yml")
    checked = stage.run("prometheus", ["promtool", "check", "config", config])
    assert "rules found" in checked.stdout
    stage.wait("prometheus", lambda: stage.is_healthy("prometheus"))

    def ask(path: str, **params: str) -> Any:
        url = f"http://127.0.0.1:{stage.port('prometheus', 9090)}/api/v1/{path}"
        with urllib.request.urlopen(
            f"{url}?{urllib.parse.urlencode(params)}", timeout=10
        ) as answer:
            return json.load(answer)["data"]

    until(lambda: ask("targets")["activeTargets"], "it has looked at its targets")
    targets = {t["scrapePool"]: t["scrapeUrl"] for t in ask("targets")["activeTargets"]}
    assert targets.keys() == {"toolkit", "prometheus"}
    until(lambda: "toolkit_probe 1" in fetched(targets["toolkit"]), "the exporter has the probe")
    assert "prometheus_build_info" in fetched(targets["prometheus"])
    assert ask("rules")["groups"]
    # what the autoscaler asks by way of the adapter can be asked
    values = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yml").read_text())
    (rule,) = values["rules"]["custom"]
    filled = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
    filled = filled.replace("<<.Series>>", "toolkit_pool_waiting").replace("<<.LabelMatchers>>", "")
    assert ask("query", query=filled)["resultType"] == "vector"
    assert ask("query", query=rule["seriesQuery"])["resultType"] == "vector"
    scaler = yaml.safe_load((DEPLOY / "kubernetes" / "hpa.yml").read_text())
    (metric,) = scaler["spec"]["metrics"]
    assert re.fullmatch(rule["name"]["matches"], metric["pods"]["metric"]["name"])


def fetched(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.URLError:
        return ""


def test_grafana_finds_its_source_and_its_dashboards(stage: Stage) -> None:
    """By what its documentation calls these keys: it is not to be had here."""
    there = stage.deploy / "grafana" / "provisioning"
    sources = yaml.safe_load((there / "datasources" / "prometheus.yml").read_text())
    providers = yaml.safe_load((there / "dashboards" / "toolkit.yml").read_text())
    assert sources["apiVersion"] == providers["apiVersion"] == 1
    (source,) = sources["datasources"]
    assert source.keys() <= {
        *("name", "uid", "type", "access", "url", "isDefault", "editable", "jsonData"),
    }
    assert (source["type"], source["access"]) == ("prometheus", "proxy")
    assert source["url"] == f"http://127.0.0.1:{stage.port('prometheus', 9090)}"
    (provider,) = providers["providers"]
    assert provider.keys() <= {"name", "type", "disableDeletion", "allowUiUpdates", "options"}
    mounted = stage.mounts("grafana")
    path = provider["options"]["path"]
    boards = [here for target, here in mounted.items() if Path(target).parent == Path(path)]
    assert [json.loads(Path(board).read_text())["title"] for board in boards]
    assert str(there) == mounted["/etc/grafana/provisioning"]
    assert COMPOSE["services"]["grafana"]["secrets"] == ["grafana_password"]
