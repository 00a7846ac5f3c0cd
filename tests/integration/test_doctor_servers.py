"""The doctor over several servers: what only all of them know, statements, settings, the cache."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from fix_cache_servers import CacheServer
from fix_cli import Run
from fix_doctor import bad
from fix_replicas import Cluster, MakeCluster, until
from fix_servers import Database
from fix_stores import cached
from fix_topologies import settings_of

import toolkit
from toolkit.statements import compose, name
from toolkit_maintenance.doctor import Machine, Thresholds, examine
from toolkit_maintenance.doctor.machine import machine_of
from toolkit_maintenance.doctor.questions import Asker
from toolkit_maintenance.runner import run as run_job

BUT_SETTINGS = (
    "index-*", "bloat", "hit-rate", "partitions-*", "never-*", "slow-queries", "long-*",
    "blockers", "xmin-*", "wraparound", "connections", "slots", "lag", "checkpoints",
)  # fmt: skip


@contextmanager
def session(servers: Cluster, node: str, *, is_admin: bool = False) -> Iterator[Any]:
    dsn = servers.dsn(node)
    if is_admin:
        path = urlsplit(dsn).path
        dsn = urlsplit(servers.admin_dsn(node))._replace(path=path).geturl()
    options = "-c synchronous_commit=local -c search_path=toolkit,public"
    with psycopg.connect(dsn, autocommit=True, options=options) as connection:
        yield connection


def counted(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT 1")


def test_faults_of_servers_are_found_on_whichever_node_they_are(cluster: MakeCluster) -> None:
    small = {"shared_buffers": "1MB", "shared_preload_libraries": "pg_stat_statements"}
    servers = cluster(1, settings=small)
    with ExitStack() as stack:
        sql = stack.enter_context(session(servers, "pg1"))
        admin = stack.enter_context(session(servers, "pg1", is_admin=True))
        admin.execute("CREATE EXTENSION pg_stat_statements SCHEMA public")
        store = stack.enter_context(toolkit.connect(settings_of(servers)))
        run_job(store, "partitions")
        servers.wait_replayed()

        # nothing where there is nothing
        seen = examine(store, BUT_SETTINGS)
        assert bad(seen) == {}
        assert seen.nodes == ("pg1", "pg2")
        assert "--snapshot" in seen["slow-queries"].reason

        # what a replica reads by is used; what takes longer than before is told
        for statement in (
            "CREATE TABLE note (id bigint PRIMARY KEY, n bigint, t text)",
            "INSERT INTO note SELECT n, n, repeat('x', 100) FROM generate_series(1, 40000) AS n",
            "CREATE INDEX note_n ON note (n)",
            "VACUUM (ANALYZE) note",
        ):
            sql.execute(statement)
        for _ in range(5):
            sql.execute("SELECT count(*) FROM generate_series(1, 10)")
        limits = Thresholds(
            unused_bytes=8192,
            hit_blocks=1_000,
            slow_calls=5,
            shifted_s=0.001,
            checkpoints=5,
            connections=0.1,
            statistics_age=60.0,
        )
        examine(store, ["slots"], keeps_snapshot=True)
        sql.execute("UPDATE doctor_snapshot SET taken_at = taken_at - interval '2 minutes'")
        servers.wait_replayed()
        for _ in range(5):
            sql.execute("SELECT count(*) FROM generate_series(1, 50000)")
            sql.execute("SELECT count(t) FROM note")
            admin.execute("CHECKPOINT")  # asked for: no fault
            sql.execute("DO $$ BEGIN PERFORM 'a password'; END $$")
            sql.execute("INSERT INTO toolkit.job_run (job) VALUES ('x')")
        counted(sql)
        admin.execute("SELECT pg_create_physical_replication_slot('gone', true)")
        sql.execute("INSERT INTO toolkit.job_run (job) VALUES ('y')")
        crowd = [stack.enter_context(session(servers, "pg1")) for _ in range(8)]
        seen = examine(store, BUT_SETTINGS, limits=limits)
        assert set(bad(seen)) == {
            "index-unused", "slow-queries", "hit-rate", "connections", "slots",
        }  # fmt: skip
        assert seen["checkpoints"].evidence["requested"] >= 5
        assert "others were asked for" in seen["checkpoints"].reason
        assert seen["index-unused"].evidence["nodes"] == ["pg1", "pg2"]
        assert "generate_series" in seen["slow-queries"].reason
        assert seen["slow-queries"].objects[0].figures["shift"] > 2
        told = sql.execute(compose("doctor/list_statements", schema=name("public"))).fetchall()
        assert "DO …" in [row[-1] for row in told]  # and not what it does: no literal is told
        assert seen["hit-rate"].objects[0].name == "note"
        assert seen["slots"].fix == ("SELECT pg_drop_replication_slot('gone')",)
        for one in crowd:
            one.close()

        # the log is full before the clock comes
        admin.execute("ALTER SYSTEM SET max_wal_size = '32MB'")
        admin.execute("SELECT pg_reload_conf()")
        fixes = [*seen["slots"].fix]

        def is_full() -> bool:
            admin.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 40 << 20))")
            counted(admin)
            found = examine(store, ["checkpoints"], limits=limits)["checkpoints"]
            fixes.extend(found.fix)
            return found.status == "warn"

        until(is_full, "checkpoints that come because the log is full")
        for statement in fixes:
            admin.execute(statement.encode())
        with session(servers, "pg2") as replica:
            replica.execute("SET enable_seqscan = off")
            replica.execute("SELECT t FROM note WHERE n = 7")
            counted(replica)
        seen = examine(store, ["index-unused", "slots"], limits=limits)
        assert {f.status for f in seen.findings} == {"ok"}

        # who names one server of several does not know what the others read by
        told = {}
        for node in ("pg1", "pg2"):
            with toolkit.connect(servers.dsn(node)) as alone:
                told[node] = examine(alone, ["index-unused"], limits=limits)["index-unused"]
        assert {n: f.status for n, f in told.items()} == {"pg1": "unknown", "pg2": "ok"}
        assert "[[shards]]" in told["pg1"].reason

        # replicas that stand still, and that are gone
        servers.pause_replay("pg2")
        lag = examine(store, ["lag"])["lag"]
        assert lag.status == "warn"
        assert lag.objects[0].worst == ("pg2",)
        servers.ask("pg2", lag.fix[0] + "::text")
        assert examine(store, ["lag"])["lag"].status == "ok"
        sql.execute("CREATE INDEX note_t ON note (t)")
        with Asker(store.settings, limits) as asker:
            asker.ask(["sessions"])
            assert set(asker.rows["sessions"]) == {"pg1", "pg2"}
            servers.stop("pg2")
            asker.ask(["connections"])  # lost between two questions
            assert [*asker.lost] == ["pg2"]
            assert [*asker.facts] == [*asker.rows["sessions"]] == [*asker.rows["connections"]]
        seen = examine(store, ["lag", "index-unused"], limits=limits)
        assert seen["lag"].status == "crit"
        assert "pg2" in seen["lag"].reason
        assert seen["index-unused"].status == "unknown"
        assert "pg2" in seen["index-unused"].reason


# -- settings -----------------------------------------------------------------------------------


WRONG = {
    "shared_buffers": "64MB",
    "effective_cache_size": "4GB",  # more than the machine has
    "work_mem": "512MB",
    "maintenance_work_mem": "16MB",
    "wal_buffers": "64kB",
    "effective_io_concurrency": "1",
    "checkpoint_completion_target": "0.5",
    "default_statistics_target": "10",
    "max_connections": "400",
    "autovacuum": "off",
}


def test_advice_followed_is_no_advice_any_more(cluster: MakeCluster) -> None:
    servers = cluster(0, settings=WRONG)
    big = Machine(ram=1 << 30, cpus=4, storage="ssd")
    with session(servers, "pg1", is_admin=True) as admin:
        with toolkit.connect(servers.dsn("pg1")) as store:
            seen = examine(store, ["settings-*"], machine=big)
            (grant,) = seen["settings-shared_preload_libraries"].fix
        assert grant == 'GRANT "pg_read_all_settings" TO "toolkit"'
        admin.execute(grant.encode())
        with toolkit.connect(servers.dsn("pg1")) as store:
            advice = bad(examine(store, ["settings-*"], machine=big))
            assert len(advice) == len(seen.findings) == 16  # nothing is as it should be
            assert advice["settings-autovacuum"].status == "crit"
            for finding in advice.values():
                for statement in finding.fix:
                    admin.execute(statement.encode())
        admin.execute("CREATE EXTENSION pg_stat_statements")
        with toolkit.connect(servers.dsn("pg1")) as store:
            seen = examine(store, ["slow-queries"], keeps_snapshot=True)
            assert seen["slow-queries"].status == "unknown"  # it is there, and not loaded
            assert "restart" in seen["slow-queries"].reason
    servers.restart("pg1")
    with toolkit.connect(servers.dsn("pg1")) as store:
        seen = examine(store, ["settings-*"], machine=big)
        assert bad(seen) == {}
        assert {f.status for f in seen.findings} == {"ok"}
        # a twentieth more is no news, a tenth is
        ram = round(1.03 * big.ram)
        assert bad(examine(store, ["settings-*"], machine=replace(big, ram=ram))) == {}
        more = bad(examine(store, ["settings-*"], machine=replace(big, ram=round(1.1 * big.ram))))
        assert {"settings-shared_buffers", "settings-effective_cache_size"} <= set(more)


def test_advice_is_written_for_who_sets_it(run: Run, database: Database) -> None:
    machine = ["--ram", "8GB", "--cpus", "4", "--storage", "san", "--workload", "dw"]
    conf = run("doctor", *machine, "--as", "conf", code=1).stdout
    assert "shared_buffers = '2GB'  # was 256MB; needs a restart" in conf
    shown = run("doctor", *machine, "--as", "provider", code=1)
    provider = shown.stdout
    assert "\nleft out: shared_preload_libraries: role toolkit lacks" in f"\n{shown.stderr}"
    assert "after a restart: shared_buffers\n" in shown.stderr
    told = dict(line.split(" = ") for line in provider.splitlines())
    assert told["shared_buffers"] == str((2 << 30) // 8192)
    assert told["max_wal_size"] == str(16 << 10)
    assert told["random_page_cost"] == "1.1"
    assert told["default_statistics_target"] == "500"
    assert all(line.count(" = ") == 1 for line in conf.splitlines() if line[0] != "#")
    alter = run("doctor", *machine, "--as", "alter", code=1).stdout.splitlines()
    assert alter[:2] == [
        "-- as an administrator:",
        "ALTER SYSTEM SET \"shared_buffers\" = '2GB';  -- needs a restart",
    ]
    assert alter.count("SELECT pg_reload_conf();") == 1
    assert alter[-1] == "SELECT pg_reload_conf();"
    only = run("doctor", *machine, "--as", "conf", "--only", "settings-wal_buffers")
    assert only.stdout == ""
    assert only.stderr == "nothing is advised for the settings that could be judged\n"
    # what nothing is printed of is said
    none = run("doctor", "--as", "provider", "--only", "bloat")
    assert (none.stdout, none.stderr.split(",")[0]) == ("", "--as is for the advice on settings")
    half = run("doctor", "--ram", "8GB", "--as", "provider", code=1).stderr
    assert re.search("left out: .*random_page_cost, .*: give --storage\n", half)
    assert "not both" in run("doctor", "--json", "--as", "conf", code=2).output


def test_a_machine_that_is_not_this_one_is_not_known(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database.dsn) as connection:
        here = machine_of(connection.info.backend_pid, True)
        assert here.ram is not None
        assert here.cpus is not None
        assert machine_of(connection.info.backend_pid, False) == Machine()
    assert machine_of(1, True) == Machine()  # some other program
    monkeypatch.setattr("toolkit_maintenance.doctor.questions.machine_of", lambda *_: Machine())
    with toolkit.connect(database.dsn) as store:
        seen = examine(store, ["settings-*"])
    unknown = {f.id for f in seen.findings if f.status == "unknown"}
    assert {"settings-shared_buffers", "settings-work_mem", "settings-max_connections"} <= unknown
    assert "--ram" in seen["settings-shared_buffers"].reason


# -- the cache's server -------------------------------------------------------------------------


def _value(server: CacheServer, key: str) -> Any:
    (value,) = server.admin.config_get(key).values()
    return value


def test_what_does_not_suit_a_cache_is_found_and_mended(
    database: Database, cache_server: CacheServer
) -> None:
    given = {
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "save": "3600 1",
        "tcp-keepalive": "0",
        "timeout": "30",
    }
    before = {key: _value(cache_server, key) for key in given}
    try:
        for key, value in given.items():
            cache_server.admin.config_set(key, value)
        with toolkit.connect(cached(database.dsn, redis=cache_server.url)) as store:
            seen = examine(store, ["redis-*"])
            assert len(bad(seen)) == len(seen.findings) == 5
            for finding in seen.findings:
                for statement in finding.fix:
                    cache_server.admin.execute_command(*shlex.split(statement))
            assert {f.status for f in examine(store, ["redis-*"]).findings} == {"ok"}
        rights = ("on", "nopass", "+@all", "-config", "~*")
        cache_server.admin.execute_command("ACL", "SETUSER", "weak", *rights)
        url = cache_server.url.replace("//", "//weak:x@")
        with toolkit.connect(cached(database.dsn, redis=url)) as store:
            seen = examine(store, ["redis-policy"])
            assert seen["redis-policy"].status == "unknown"  # a managed server may refuse CONFIG
    finally:
        cache_server.admin.execute_command("ACL", "DELUSER", "weak")
        for key, value in before.items():
            cache_server.admin.config_set(key, value)


def test_a_cache_server_that_is_out_is_unknown(database: Database) -> None:
    with toolkit.connect(cached(database.dsn, redis="redis://:hush@127.0.0.1:1/0")) as store:
        seen = examine(store, ["redis-policy", "lag"])
    assert seen["redis-policy"].status == "unknown"
    assert "127.0.0.1:1" in seen["redis-policy"].reason
    assert "hush" not in json.dumps(seen.to_mapping(), default=str)
    assert seen["lag"].status == "ok"
