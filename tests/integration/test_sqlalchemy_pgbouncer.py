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
from toolkit.sqlalchemy import RoutingSession, routing_async_session, routing_session
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


@pytest.mark.parametrize("version", ["1.18", "1.24"])
@pytest.mark.parametrize("kind", KINDS)
def test_sessions_share_what_pgbouncer_has(
    pgbouncer: MakePgBouncer, database: Database, kind: str, version: str
) -> None:
    bouncer = pgbouncer(
        database.dsn, database.admin_dsn, version=version, default_pool_size=SERVERS
    )
    node = Node("primary", bouncer.dsn, direct=database.dsn)
    settings = replace(
        load_settings(database.dsn, environ={}), topology=Topology((Shard("main", node),))
    )
    drive_all(kind, settings, ask)
    with psycopg.connect(bouncer.dsn, autocommit=True, prepare_threshold=None) as connection:
        kept = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert kept == (0,)
