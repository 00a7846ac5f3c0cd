"""The doctor at a prompt, and what it says where it may not look."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from fix_cli import Run, on_terminal
from fix_doctor import mend
from fix_servers import Database

import toolkit
from toolkit.errors import Unavailable, UnknownName
from toolkit_maintenance.doctor import examine
from toolkit_maintenance.doctor.settings import FORMULAS


def test_what_a_role_may_not_see_is_unknown_and_never_ok(
    database: Database, superuser: psycopg.Connection[Any]
) -> None:
    role = f"reader_{database.name}"
    superuser.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'".encode())
    try:
        superuser.execute(f"GRANT USAGE ON SCHEMA toolkit TO {role}".encode())
        tables = "dataset, series, rollup, toolkit_version"
        superuser.execute(f"GRANT SELECT ON {tables} TO {role}".encode())
        superuser.execute("CREATE TABLE note AS SELECT generate_series(1, 300000) AS id")
        superuser.execute("ANALYZE note")
        dsn = database.dsn.replace("//toolkit:", f"//{role}:").split("@")
        with toolkit.connect(f"postgresql://{role}:x@{dsn[1]}") as store:
            seen = examine(store)
        unknown = {f.id: f.reason for f in seen.findings if f.status == "unknown"}
        assert {"bloat", "index-unused", "blockers", "long-transactions", "slow-queries"} <= set(
            unknown
        )
        assert unknown["blockers"].endswith("it lacks pg_read_all_stats")
        assert "may not see" in unknown["index-unused"]
        for check in ("blockers", "long-transactions", "xmin-holders"):
            mend(superuser, seen[check])  # what is unknown, too, has what mends it
        with toolkit.connect(f"postgresql://{role}:x@{dsn[1]}") as store:
            assert {f.status for f in examine(store, ["blockers", "xmin-*"]).findings} == {"ok"}
    finally:
        superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_command_says_what_it_found_and_ends_with_1(
    database: Database, run: Run, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("CREATE INDEX again ON series (dataset_id, name)")
    text = run("doctor", "--only", "index-*", code=1).output
    assert 'DROP INDEX CONCURRENTLY "toolkit"."again";' in text
    told = json.loads(run("doctor", "--only", "index-duplicate", "--json", code=1).output)
    (check,) = told["checks"]
    assert told["schema_version"] == 1
    assert told["counts"] == {"ok": 0, "warn": 1, "crit": 0, "unknown": 0}
    assert list(check) == ["id", "status", "reason", "evidence", "fix", "objects"]
    assert check["objects"][0]["name"] == "series"
    sql.execute(check["fix"][0])
    run("doctor", "--only", "index-*")
    described = ("--storage", "ssd")  # now settings are found, at least
    json.loads(run("doctor", "--snapshot", "--json", *described, code=1).output)
    assert sql.execute("SELECT count(*) FROM doctor_snapshot").fetchone() == (1,)
    assert "did you mean 'index-unused'" in run("doctor", "--only", "index-unusd", code=2).output
    listed = run("doctor", "--only", "zzz", code=2).output
    assert "'wraparound'" in listed
    assert "…" not in listed
    assert "there is none that could go" in run("doctor", "--only", "index-unused").output
    assert "no size" in run("doctor", "--ram", "much", code=2).output
    # the worst first; what is ok is counted; what an administrator does stands in one place
    lines = run("doctor", "--ram", "64GB", code=1).stdout.splitlines()
    whole = run("doctor", "--ram", "64GB", "--all", code=1).stdout.splitlines()
    ids = [line.split()[:2] for line in lines if line.startswith(("crit ", "warn ", "unknown "))]
    statuses = [status for status, _ in ids]
    assert statuses == sorted(statuses, key=("crit", "warn", "unknown").index)
    ok = [line for line in whole if line.startswith("ok ")]
    assert lines[-1] == f"{len(ok)} checks are ok (--all)"
    assert len(ok) > 10
    assert lines.count("    SELECT pg_reload_conf();") == 1
    begin = lines.index(
        "as an administrator (of a managed server in its parameters: --as provider):"
    )
    mine = [line for line in lines[begin:] if line.startswith("    ")]
    assert mine.count('    GRANT "pg_read_all_stats" TO "toolkit";') == 1
    assert not any("ALTER SYSTEM" in line or "GRANT" in line for line in lines[:begin])
    assert lines[-2] == "  after a restart of the server: shared_buffers"
    # and no name is broken, however narrow the terminal is
    narrow = on_terminal(database.dsn, 80, "doctor", "--ram", "64GB", "--all")
    assert max(map(len, narrow)) <= 80
    heads = [line.split()[1].rstrip(":") for line in narrow if line[:1].isalpha() and ":" in line]
    assert {f"settings-{key}" for key in FORMULAS} <= set(heads)
    run("doctor", dsn="postgresql://127.0.0.1:1/x", code=3)


def test_a_check_that_is_not_there_is_an_error(blocking: toolkit.Store) -> None:
    with pytest.raises(UnknownName, match=r"cache\.redis"):
        examine(blocking, ["redis-policy"])
    with pytest.raises(Unavailable), toolkit.connect("postgresql://127.0.0.1:1/x") as store:
        examine(store)


def test_a_schema_of_before_is_told_and_ends_no_doctor(
    blocking: toolkit.Store, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("DROP TABLE doctor_snapshot")
    seen = examine(blocking, ["index-unused", "index-invalid"])
    assert [f.status for f in seen.findings] == ["unknown", "ok"]
    assert "toolkit migrate up" in seen["index-unused"].reason
