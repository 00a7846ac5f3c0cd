"""Sessions through PgBouncer, whose transactions share the server's sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_pgbouncer import MakePgBouncer
from fix_servers import Database
from fix_sessions import KINDS
from sqlalchemy import func, select, text

from toolkit.config import load_settings
from toolkit.sqlalchemy import (
    RoutingSession,
    async_engine_for,
    routing_async_session,
    routing_session,
)
from toolkit_routing import Node, Shard, Topology

CALLERS, CALLS, SERVERS = 8, 15, 2


def ask(session: RoutingSession) -> None:
    for number in range(3):
        assert session.scalar(select(func.abs(number))) == number
    assert session.scalars(text("SELECT generate_series(1, :n)"), {"n": 3}).all() == [1, 2, 3]


def drive_all(kind: str, settings: Any, body: Callable[[RoutingSession], None]) -> None:
    """Run a body many times by several callers."""
    if kind == "blocking":
        with routing_session(settings) as sessions, ThreadPoolExecutor(CALLERS) as threads:

            def call(_: int) -> None:
                with sessions.begin() as session:
                    body(session)

            list(threads.map(call, range(CALLERS * CALLS)))
        return

    async def calls(sessions: Any) -> None:
        for _ in range(CALLS):
            async with sessions.begin() as session:
                await session.run_sync(body)

    async def everybody() -> None:
        async with routing_async_session(settings, driver=kind) as sessions:
            await asyncio.gather(*(calls(sessions) for _ in range(CALLERS)))

    asyncio.run(everybody())


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("version", ["1.18", "1.24"])
@pytest.mark.parametrize("kind", KINDS)
def test_sessions_share_what_pgbouncer_has(
    pgbouncer: MakePgBouncer, database: Database, kind: str, version: str, is_told: bool
) -> None:
    bouncer = pgbouncer(
        database.dsn, database.admin_dsn, version=version, default_pool_size=SERVERS
    )
    bouncer.databases["*"] += " connect_query='SET statement_timeout = 12345'"
    bouncer.configure()
    node = Node("primary", bouncer.dsn, direct=database.dsn if is_told else "")
    settings = replace(
        load_settings(database.dsn, environ={}), topology=Topology((Shard("main", node),))
    )
    drive_all(kind, settings, ask)
    with psycopg.connect(bouncer.dsn, autocommit=True, prepare_threshold=None) as connection:
        kept = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        timeout = connection.execute("SHOW statement_timeout").fetchone()
        source = "SELECT source FROM pg_settings WHERE name = 'jit'"
        jit = connection.execute(source).fetchone()
    assert kept == (0,)
    # nothing is set in what is others' as well
    assert (timeout, jit) == (("12345ms",), ("default",))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_engine_that_leads_to_the_server_prepares_by_name(
    database: Database, driver: str
) -> None:
    async def prepared() -> int:
        engine = async_engine_for(database.dsn, driver=driver)
        async with engine.connect() as connection:
            for number in range(8):
                await connection.scalar(select(func.abs(number)))
            found = await connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
        await engine.dispose()
        return int(found)

    assert asyncio.run(prepared()) > 0
