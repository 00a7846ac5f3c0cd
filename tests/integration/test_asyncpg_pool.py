"""asyncpg through PgBouncer: with its defaults, and as toolkit.asyncpg_pool makes it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import asyncpg
import psycopg
import pytest
from fix_pgbouncer import Bouncer, MakePgBouncer
from fix_replicas import MakeCluster
from fix_servers import Database
from fix_topologies import settings_of

import toolkit
from toolkit.errors import ConfigError
from toolkit.sqlalchemy import async_engine_for
from toolkit_routing import Node

VERSIONS = ("1.18", "1.24")
CALLS, CLIENTS = 320, 4


async def failures(pool: Any) -> list[Exception]:
    """Ask so often over four connections, each time for something else than the one before."""
    failed: list[Exception] = []
    asked = iter(range(CALLS))

    async def client() -> None:
        for number in asked:
            kind = number % 4
            try:
                async with pool.acquire() as connection:
                    if kind == 3:
                        found = await connection.fetchval("SELECT $1::text || 'x'", str(number))
                        assert found == f"{number}x"
                    else:
                        query = f"SELECT $1::int + {kind}, pg_sleep(0.0005)"
                        assert await connection.fetchval(query, number) == number + kind
            except Exception as error:
                failed.append(error)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return failed


def one_session(pgbouncer: MakePgBouncer, database: Database, version: str) -> Bouncer:
    return pgbouncer(database.dsn, database.admin_dsn, version=version, default_pool_size=1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sessions", [1, 2])
def test_no_call_fails_over_one_session_or_two(
    sessions: int, version: str, database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = one_session(pgbouncer, database, version)
    bouncer.configure(default_pool_size=sessions)

    async def ask() -> None:
        sizes = {"min_size": CLIENTS, "max_size": CLIENTS}
        async with toolkit.asyncpg_pool(bouncer.dsn, **sizes) as pool:
            assert await failures(pool) == []
            prepared = "SELECT count(*) FROM pg_prepared_statements"
            assert (await pool.fetchval(prepared) > 0) == (version == "1.24")

    asyncio.run(ask())


def test_asyncpgs_defaults_fail_where_statements_are_not_tracked(
    database: Database, pgbouncer: MakePgBouncer
) -> None:
    """The trap itself: named statements of one client are met by another, or by nobody."""
    bouncer = one_session(pgbouncer, database, "1.18")
    bouncer.configure(default_pool_size=2)

    async def ask() -> None:
        async with asyncpg.create_pool(bouncer.dsn, min_size=CLIENTS, max_size=CLIENTS) as pool:
            failed = await failures(pool)
            assert len(failed) > CALLS // 10
            assert {type(error) for error in failed} <= {
                asyncpg.DuplicatePreparedStatementError,
                asyncpg.InvalidSQLStatementNameError,
                asyncpg.ProtocolViolationError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                AssertionError,
            }

    asyncio.run(ask())


@pytest.mark.parametrize("version", VERSIONS)
def test_types_cursors_and_many_rows_work_over_one_session(
    version: str, database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = one_session(pgbouncer, database, version)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("CREATE TYPE toolkit.mood AS ENUM ('calm', 'rough')")
        connection.execute("CREATE TYPE toolkit.spot AS (x int, mood toolkit.mood)")
        connection.execute("CREATE TABLE toolkit.seas (n int, moods toolkit.mood[])")

    async def use(pool: Any, number: int) -> None:
        async with pool.acquire() as connection:
            spot = await connection.fetchrow("SELECT ($1::int, 'calm')::toolkit.spot AS s", number)
            assert tuple(spot["s"]) == (number, "calm")
            rows = [(number, ["calm", "rough"])] * 5
            await connection.executemany("INSERT INTO toolkit.seas VALUES ($1, $2)", rows)
            async with connection.transaction():
                query = "SELECT moods FROM toolkit.seas WHERE n = $1"
                found = [row[0] async for row in connection.cursor(query, number, prefetch=2)]
            assert found == [["calm", "rough"]] * 5
            lsn = await connection.fetchval("SELECT '1/10'::pg_lsn")
            assert lsn == (1 << 32) + 16

    async def ask() -> None:
        async with toolkit.asyncpg_pool(bouncer.dsn, min_size=4, max_size=4) as pool:
            await asyncio.gather(*(use(pool, number) for number in range(40)))
            assert await pool.fetchval("SELECT count(*) FROM toolkit.seas") == 200

    asyncio.run(ask())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_sessions_of_others_stay_as_they_are(
    version: str, database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = one_session(pgbouncer, database, version)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("CREATE TYPE toolkit.mood AS ENUM ('calm', 'rough')")
    bouncer.databases["*"] += " connect_query='SET statement_timeout = 12345'"
    bouncer.configure()

    async def ask() -> None:
        async with toolkit.asyncpg_pool(bouncer.dsn, min_size=2, max_size=2) as pool:
            assert await pool.fetchval("SELECT 'calm'::toolkit.mood") == "calm"
            for _ in range(3):  # released in between
                assert await pool.fetchval("SHOW statement_timeout") == "12345ms"
            source = "SELECT source FROM pg_settings WHERE name = 'jit'"
            assert await pool.fetchval(source) != "session"

    asyncio.run(ask())


def test_a_pool_takes_what_a_store_takes(database: Database, pgbouncer: MakePgBouncer) -> None:
    bouncer = one_session(pgbouncer, database, "1.24")
    words = psycopg.conninfo.make_conninfo(bouncer.dsn, keepalives_idle=30, application_name="me")
    sources = (bouncer.dsn, words, Node("n", bouncer.dsn), toolkit.resolve(bouncer.dsn))

    async def ask() -> None:
        for source in sources:
            async with toolkit.asyncpg_pool(source, min_size=1, max_size=2) as pool:
                assert await pool.fetchval("SELECT 1") == 1
        async with toolkit.asyncpg_pool(words, min_size=1) as pool:
            assert await pool.fetchval("SHOW application_name") == "me"
        async with toolkit.asyncpg_pool(database.dsn, command_timeout=0.2) as pool:
            with pytest.raises(TimeoutError):
                await pool.fetchval("SELECT pg_sleep(9)")
            assert await pool.fetchval("SELECT count(*) FROM pg_prepared_statements") > 0

    asyncio.run(ask())


def test_a_pool_without_a_database_says_so(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        toolkit.asyncpg_pool(tmp_path / "none.toml")


def test_a_pool_leads_to_whichever_node_is_the_primary(cluster: MakeCluster) -> None:
    servers = cluster(replicas=1)
    servers.kill("pg1")
    servers.promote("pg2")

    async def ask() -> None:
        async with toolkit.asyncpg_pool(settings_of(servers), min_size=1) as pool:
            assert await pool.fetchval("SELECT pg_is_in_recovery()") is False
            port = await pool.fetchval("SELECT inet_server_port()")
            assert f":{port}/" in servers.dsn("pg2")

    asyncio.run(ask())


def test_cursors_of_a_pool_have_names_that_no_other_process_has(
    database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = one_session(pgbouncer, database, "1.18")  # the server sees the client's names

    async def ask() -> None:
        async with (
            toolkit.asyncpg_pool(bouncer.dsn, min_size=1) as pool,
            pool.acquire() as connection,
            connection.transaction(),
        ):
            query = "SELECT name FROM pg_prepared_statements"
            (name,) = [row[0] async for row in connection.cursor(query)]
            assert re.fullmatch("__asyncpg_stmt_[0-9a-f]{32}__", name)

    asyncio.run(ask())


def test_options_of_a_conninfo_reach_the_server(database: Database) -> None:
    words = psycopg.conninfo.make_conninfo(database.dsn, options="-c work_mem=5MB -c jit=off")

    async def ask() -> None:
        async with toolkit.asyncpg_pool(words, min_size=1) as pool:
            assert await pool.fetchval("SHOW work_mem") == "5MB"

    asyncio.run(ask())


@pytest.mark.parametrize(
    "demand",
    [
        "channel_binding=require",
        "require_auth=scram-sha-256",
        "requirepeer=postgres",
        "gssencmode=require",
        "sslcertmode=require",
        "sslcrldir=/etc/revoked",
    ],
)
def test_security_that_asyncpg_would_not_give_is_refused(demand: str) -> None:
    name = demand.partition("=")[0]
    with pytest.raises(ConfigError, match=f"dsn: {name}: asyncpg does not know {demand}"):
        toolkit.asyncpg_pool(f"host=db1 {demand}")
    with pytest.raises(ConfigError, match=name):
        async_engine_for(f"host=db1 {demand}", driver="asyncpg")
    async_engine_for(f"host=db1 {demand}", driver="psycopg")


def test_security_that_is_only_preferred_is_no_hindrance(database: Database) -> None:
    words = psycopg.conninfo.make_conninfo(
        database.dsn, channel_binding="prefer", gssencmode="disable"
    )

    async def ask() -> None:
        async with toolkit.asyncpg_pool(words, min_size=1) as pool:
            assert await pool.fetchval("SELECT 1") == 1

    asyncio.run(ask())
