"""The benchmark's case of PgBouncer, at a tiny size, and where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fix_pgbouncer import Programs
from fix_servers import Database

from toolkit.bench import pooled
from toolkit.bench.ground import Sizes, prepared
from toolkit.errors import Unavailable

TINY = Sizes(series=1, minutes=2_000, small_read=100, turns=5)


def silent(text: str) -> None:
    return None


@pytest.mark.parametrize("version", ["1.18", "1.24"])
def test_pgbouncer_in_the_path_is_measured(
    version: str,
    database: Database,
    redis_url: str,
    pgbouncer_programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = pgbouncer_programs.program(version)
    monkeypatch.setattr(pooled.debian, "pgbouncer", lambda account, store: program)
    begun: list[int | None] = []
    start = pooled.PgBouncer.start

    def note(bouncer: pooled.PgBouncer, *arguments: Any) -> None:
        start(bouncer, *arguments)
        begun.append(bouncer.running())

    monkeypatch.setattr(pooled.PgBouncer, "start", note)
    with prepared(database.dsn, redis_url, "toolkit", TINY, silent) as ground:
        result = pooled.pooled(ground)
    assert [pid is not None and not _runs(pid) for pid in begun] == [True]
    assert result.unit == "µs"
    assert result.ceiling == 150
    (line,) = result.lines
    assert line.startswith(f"pgbouncer: {version}")
    kind = "store.read" if version == "1.24" else "psycopg"
    assert f"{kind}, pooled, beyond {kind};" in line


def _runs(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def test_a_missing_pgbouncer_is_told(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(account: object, store: object) -> None:
        raise Unavailable("there is no pgbouncer on the PATH")

    monkeypatch.setattr(pooled.debian, "pgbouncer", missing)
    with prepared(database.dsn, redis_url, "toolkit", replace(TINY, turns=2), silent) as ground:
        result = pooled.pooled(ground)
    assert not result.is_met
    assert result.missing[0].peer == "PgBouncer"
