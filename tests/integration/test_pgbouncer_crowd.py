"""Thousands of clients over twenty sessions: each of them is answered."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from fix_pgbouncer import Bouncer, MakePgBouncer
from fix_servers import ON_ONE_VERSION, Database, give_up

import toolkit
from toolkit.drivers.pool_asyncpg import url

SESSIONS = 20
WAVE = 100
SPARE = 500  # open files of a process beside its clients


@pytest.fixture
def many_files() -> Iterator[int]:
    """Let this process, and what it starts, have as many open files as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@ON_ONE_VERSION
@pytest.mark.parametrize("version", ["1.18", "1.24"])
@pytest.mark.parametrize(
    "clients", [1_000, pytest.param(10_000, marks=pytest.mark.soak)], ids="{:,}".format
)
def test_every_client_of_a_crowd_is_answered(
    clients: int, version: str, database: Database, pgbouncer: MakePgBouncer, many_files: int
) -> None:
    if many_files < clients + SPARE:
        give_up(f"{many_files:,} open files are allowed, {clients + SPARE:,} needed: ulimit -n")
    with toolkit.connect(database.dsn) as store:
        ts = [f"2024-01-01T00:{minute:02}Z" for minute in range(60)]
        store.write("metrics", {"ts": ts, "value": range(60)}, series="A")
    bouncer = crowded(pgbouncer, database, version, clients)
    found = asyncio.run(ask(url(bouncer.dsn), clients))
    assert found == [60 * 59 / 2] * (2 * clients)
    (pool,) = (p for p in bouncer.console("SHOW POOLS") if p["database"] == database.name)
    assert sum(int(str(pool[state])) for state in ("sv_active", "sv_idle", "sv_used")) <= SESSIONS


def crowded(pgbouncer: MakePgBouncer, database: Database, version: str, clients: int) -> Bouncer:
    """A PgBouncer that believes its clients: thousands of handshakes are not what is asked."""
    login = urlsplit(database.dsn)
    bouncer = pgbouncer(
        database.dsn,
        database.admin_dsn,
        version=version,
        databases={
            database.name: f"host=127.0.0.1 port={login.port} dbname={database.name} "
            f"user={login.username} password={login.password}"
        },
        max_client_conn=clients + 100,
        default_pool_size=SESSIONS,
        query_wait_timeout=60,
        log_connections=0,
        log_disconnections=0,
    )
    bouncer.configure(auth_type="trust")
    bouncer.console("RELOAD")
    return bouncer


async def ask(address: str, clients: int) -> list[float]:
    """Connect them all, wave by wave; then let all ask at once, twice."""
    statement = "SELECT sum(value) FROM toolkit.metrics WHERE ts >= '2024-01-01Z'"
    connections: list[asyncpg.Connection] = []
    try:
        for _ in range(0, clients, WAVE):
            connections += await asyncio.gather(
                *(asyncpg.connect(address, statement_cache_size=0) for _ in range(WAVE))
            )
        answers: list[float] = []
        for _ in range(2):
            answers += await asyncio.gather(*(c.fetchval(statement) for c in connections))
        return answers
    finally:
        for connection in connections:
            connection.terminate()
