"""Stores through PgBouncer in transaction mode, before and after it knew prepared statements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_pgbouncer import Bouncer, MakePgBouncer
from fix_servers import Database
from fix_stores import COLOURS, open_store
from fix_topologies import router

import toolkit
from toolkit import migrate
from toolkit.config import Settings, load_settings
from toolkit.drivers import drive
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver
from toolkit.errors import ConfigError, SchemaError, Unavailable
from toolkit.nodes import describe_nodes
from toolkit.options import PoolOptions
from toolkit.topologies import RoutingOptions
from toolkit_routing import Node, Shard, Topology

VERSIONS = ("1.18", "1.24")
START, END = "2024-01-01T00:00Z", "2024-02-01T00:00Z"
MINUTES = 31 * 24 * 60
SET_UP = "SET plan_cache_mode = force_custom_plan; SET jit = off; SET statement_timeout = 30000"


@dataclass(frozen=True, slots=True)
class Behind:
    """A database, a PgBouncer before it, and the settings of a store that goes through it."""

    database: Database
    bouncer: Bouncer
    settings: Settings


def through(bouncer: Bouncer, direct: str, **options: Any) -> Settings:
    """The settings of a store that reads and writes through PgBouncer."""
    topology = Topology((Shard("main", Node("primary", bouncer.dsn, direct)),))
    pool = PoolOptions(**{"min_size": 1, "max_size": 4} | options)
    return replace(load_settings(direct or bouncer.dsn), topology=topology, pool=pool)


@pytest.fixture(params=VERSIONS)
def behind(request: pytest.FixtureRequest, database: Database, pgbouncer: MakePgBouncer) -> Behind:
    """Four connections of the store share two of the server, which are set up by nobody."""
    version = request.param
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version=version, default_pool_size=2)
    return Behind(database, bouncer, through(bouncer, database.dsn))


@pytest.fixture(params=COLOURS)
def pooled(request: pytest.FixtureRequest, behind: Behind) -> Iterator[Any]:
    """A store of either colour through PgBouncer."""
    with open_store(request.param, behind.settings) as store:
        yield store


def bars(count: int = MINUTES) -> dict[str, Any]:
    close = 100 + np.cumsum(np.random.default_rng(5).normal(0, 0.05, count)).round(2)
    ts = np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(60, "s")
    sides = dict.fromkeys(("open", "high", "low", "close"), close)
    return {"ts": ts, **sides, "volume": np.arange(count) % 97 + 1.0}


def same(one: Any, other: Any) -> None:
    assert np.array_equal(one.ts, other.ts)
    for column in one:
        np.testing.assert_allclose(one[column], other[column], rtol=1e-12)


def test_the_main_road_leads_through_pgbouncer(behind: Behind, pooled: Any) -> None:
    frame = bars()
    with toolkit.connect(behind.database.dsn) as direct:
        assert pooled.write("candles", frame, series="A").inserted == MINUTES
        assert pooled.write("candles", frame, series="B").inserted == MINUTES
        pooled.refresh("candles")
        for strategy in ("direct", "aggregated", "downsampled"):
            step = None if strategy == "direct" else "1h"
            asked = ("candles", ["A", "B"], START, END)
            found = pooled.read(*asked, step=step, strategy=strategy)
            assert len(found) > 1_000
            same(found, direct.read(*asked, step=step, strategy=strategy))
        same(pooled.latest("candles", n=3), direct.latest("candles", n=3))
        pieces = list(pooled.stream("candles", "A", START, END))
        assert sum(len(piece) for piece in pieces) == MINUTES
        pooled.compress("candles", end=END)
        same(pooled.read("candles", "A", START, END), direct.read("candles", "A", START, END))
        checked = pooled.verify("candles")
        assert checked.blocks > 0
        assert checked.damaged == ()
        pooled.label("candles", "A", {"venue": "kraken"})
        assert [s.name for s in direct.series("candles", {"venue": "kraken"})] == ["A"]
        pooled.delete("candles", "A", START, "2024-01-15T00:00Z")
        pooled.write("candles", bars(60), series="A")
        pooled.refresh("candles")
        for step in (None, "1h", "1d"):
            asked = ("candles", "A", START, END)
            same(pooled.read(*asked, step=step), direct.read(*asked, step=step))


def test_nothing_is_left_behind_in_the_servers_sessions(behind: Behind, pooled: Any) -> None:
    pooled.write("candles", bars(600), series="A")
    pooled.refresh("candles")
    for _ in range(10):
        pooled.read("candles", "A", START, END, step="1h")
    shown = "SELECT current_setting('jit'), current_setting('statement_timeout')"
    with (
        psycopg.connect(behind.bouncer.dsn, autocommit=True, prepare_threshold=None) as one,
        psycopg.connect(behind.bouncer.dsn, autocommit=True, prepare_threshold=None) as two,
        one.transaction(),
        two.transaction(),
    ):  # these are both of the server's sessions, which the store has used
        for other in (one, two):
            assert other.execute(shown).fetchone() == ("on", "0")
            left = other.execute("SELECT name FROM pg_prepared_statements WHERE name ~ '^_pg3'")
            assert left.fetchall() == []


def reached(colour: str, dsn: str) -> Any:
    """What a driver has found out about where its connections lead."""
    options = PoolOptions(min_size=1, max_size=2)
    if colour == "blocking":
        driver = BlockingDriver(dsn, options)
        drive(driver.fetch(b"SELECT 1"))
        drive(driver.close())
        return driver._reached

    async def ask() -> Any:
        driver = AsyncDriver(dsn, options)
        await driver.fetch(b"SELECT 1")
        await driver.close()
        return driver._reached

    return asyncio.run(ask())


@pytest.mark.parametrize("colour", COLOURS)
def test_a_driver_finds_out_what_it_speaks_through(
    colour: str, database: Database, pgbouncer: MakePgBouncer
) -> None:
    found = reached(colour, database.dsn)
    assert not found.is_pooled
    assert found.is_prepared
    for version in VERSIONS:
        bouncer = pgbouncer(database.dsn, database.admin_dsn, version=version)
        found = reached(colour, bouncer.dsn)
        assert found.is_pooled
        assert found.lacks == ("statement_timeout", "jit")
        assert not found.is_prepared  # plans would be made for any value
        place = bouncer.databases["*"]
        bouncer.databases["*"] = f"{place} connect_query='{SET_UP}'"
        bouncer.configure()
        bouncer.console("RECONNECT")
        found = reached(colour, bouncer.dsn)
        assert found.lacks == ()
        assert found.is_prepared == (version == "1.24")
    bouncer.configure(max_prepared_statements=0)
    assert not reached(colour, bouncer.dsn).is_prepared


async def _roll_back(driver: Any) -> None:
    async with driver.transaction() as transaction:
        for _ in range(8):
            await transaction.fetch(b"SELECT count(*) FROM toolkit.series")
        raise ZeroDivisionError


def test_statements_are_prepared_across_sessions(
    database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version="1.24", default_pool_size=2)
    bouncer.databases["*"] += f" connect_query='{SET_UP}'"
    bouncer.configure()
    bouncer.console("RECONNECT")

    def read_often(store: Any) -> None:
        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(store.read, "candles", "A", START, END) for _ in range(80)]
            assert [len(job.result()) for job in jobs] == [600] * 80

    with toolkit.connect(through(bouncer, database.dsn)) as store:
        store.write("candles", bars(600), series="A")
        for _ in range(3):
            read_often(store)
            assert held(bouncer) > 0
            for _ in range(4):  # psycopg says DEALLOCATE ALL after each
                with pytest.raises(ZeroDivisionError):
                    drive(_roll_back(store._roads.driver))


def held(bouncer: Bouncer) -> int:
    """How many statements PgBouncer keeps prepared in the session it gives us."""
    with psycopg.connect(bouncer.dsn, autocommit=True, prepare_threshold=None) as other:
        row = other.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE name ~ '^PGBOUNCER_'"
        ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_statement_has_its_deadline_where_nobody_set_one(
    colour: str, version: str, database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version=version)
    options = PoolOptions(min_size=1, max_size=2, statement_timeout=0.3)

    async def ask(driver: Any) -> None:
        with pytest.raises(toolkit.errors.QueryTimeout):
            await driver.fetch(b"SELECT pg_sleep(20)")
        with pytest.raises(toolkit.errors.QueryTimeout):
            async with driver.transaction() as transaction:
                await transaction.fetch(b"SELECT pg_sleep(20)")
        async with driver.transaction() as transaction:
            shown = b"SELECT current_setting('jit'), current_setting('transaction_isolation')"
            assert await transaction.fetch(shown) == [("off", "read committed")]
        await driver.close()

    if colour == "blocking":
        drive(ask(BlockingDriver(bouncer.dsn, options)))
    else:
        asyncio.run(ask(AsyncDriver(bouncer.dsn, options)))


def test_time_zones_of_two_clients_stay_apart(behind: Behind, pooled: Any) -> None:
    frame = bars(3_000)
    pooled.write("candles", frame, series="A")
    with psycopg.connect(behind.bouncer.dsn, autocommit=True, prepare_threshold=None) as other:
        for _ in range(5):
            other.execute("SET timezone = 'Asia/Tokyo'")
            found = pooled.read("candles", "A", START, END)
            assert np.array_equal(found.ts, frame["ts"])
            pooled.write("candles", frame, series="A")
            assert other.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)
    with toolkit.connect(behind.database.dsn) as direct:
        assert len(direct.read("candles", "A", START, END)) == 3_000


@pytest.mark.parametrize("colour", COLOURS)
def test_a_read_does_not_wait_for_a_second_session_while_it_holds_one(
    colour: str, database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, default_pool_size=1, query_wait_timeout=5)
    settings = through(bouncer, database.dsn)
    ts = np.datetime64("2024-01-01", "us") + np.arange(150_000) * np.timedelta64(60, "s")
    with toolkit.connect(database.dsn) as direct:
        direct.write("metrics", {"ts": ts, "value": np.arange(len(ts)) + 0.0}, series="A")
    with open_store(colour, settings) as store:
        assert settings.parallel > 1
        found = store.read("metrics", "A", "2024-01-01Z", "2025-01-01Z")
        assert len(found) == len(ts)
    assert all(row["maxwait"] == 0 for row in bouncer.console("SHOW POOLS"))
    assert "query_wait_timeout" not in bouncer.log.read_text("utf-8")


@pytest.mark.parametrize("colour", COLOURS)
def test_what_needs_its_own_session_says_so(colour: str, behind: Behind) -> None:
    async def ask(kind: Callable[..., Any]) -> None:
        driver = kind(behind.bouncer.dsn, PoolOptions(min_size=1, max_size=2))
        with pytest.raises(ConfigError, match=r"direct: .*\[\[shards\]\]"):
            await driver.command(b"VACUUM toolkit.series", timeout=5, alone="x")
        await driver.close()
        driver = kind(
            behind.bouncer.dsn, PoolOptions(min_size=1, max_size=2), "n", behind.database.dsn
        )
        assert await driver.command(b"VACUUM toolkit.series", timeout=5, alone="x")
        await driver.close()

    if colour == "blocking":
        drive(ask(BlockingDriver))
    else:
        asyncio.run(ask(AsyncDriver))


def test_migrations_go_past_pgbouncer(behind: Behind) -> None:
    with pytest.raises(ConfigError, match="direct"):
        migrate.upgrade(behind.bouncer.dsn)
    assert migrate.upgrade(behind.database.dsn).is_current


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("is_pooled", [False, True], ids=["direct", "pooled"])
def test_a_statement_is_planned_anew_after_a_migration(
    colour: str, is_pooled: bool, database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version="1.24", default_pool_size=1)
    bouncer.databases["*"] += f" connect_query='{SET_UP}'"
    bouncer.configure()
    dsn = bouncer.dsn if is_pooled else database.dsn
    change = "ALTER TABLE toolkit.changing ALTER COLUMN n TYPE {}"

    async def ask(driver: Any, admin: psycopg.Connection) -> None:
        statement = b"SELECT * FROM toolkit.changing"
        for _ in range(8):
            assert await driver.fetch(statement) == [(1,)]
        assert driver._reached.is_prepared
        admin.execute(change.format("text").encode())
        for _ in range(3):
            assert await driver.fetch(statement) == [("1",)]
        await driver.close()
        if is_pooled:
            bouncer.console("RECONNECT")
        statement = b"SELECT n FROM toolkit.changing"
        for _ in range(8):
            async with driver.transaction() as transaction:
                await transaction.fetch(statement)
        admin.execute(change.format("int USING n::int").encode())
        with pytest.raises(SchemaError, match="try again"):
            async with driver.transaction() as transaction:
                await transaction.fetch(statement)
        async with driver.transaction() as transaction:
            assert await transaction.fetch(statement) == [(1,)]
        await driver.close()

    options = PoolOptions(min_size=1, max_size=1)
    with psycopg.connect(database.dsn, autocommit=True) as admin:
        admin.execute("CREATE TABLE toolkit.changing AS SELECT 1 AS n")
        if colour == "blocking":
            drive(ask(BlockingDriver(dsn, options), admin))
        else:
            asyncio.run(ask(AsyncDriver(dsn, options), admin))


def test_what_sessions_lack_is_logged_once(
    database: Database, pgbouncer: MakePgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn)
    driver = BlockingDriver(bouncer.dsn, PoolOptions(min_size=3, max_size=3))
    for _ in range(5):
        drive(driver.fetch(b"SELECT 1"))
    drive(driver.close())
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "lack statement_timeout, jit" in warnings[0]
    assert "connect_query" in warnings[0]


def test_topology_check_says_what_sessions_lack(behind: Behind) -> None:
    def remarks() -> tuple[str, ...]:
        with toolkit.connect(behind.settings) as store:
            (found,) = drive(describe_nodes(router(store), "toolkit"))
        assert not found.problems
        return found.remarks

    (lack,) = remarks()
    assert lack.startswith("sessions behind the pooler lack statement_timeout, jit, so each")
    behind.bouncer.databases["*"] += f" connect_query='{SET_UP}'"
    behind.bouncer.configure()
    behind.bouncer.console("RECONNECT")
    assert not remarks()


def test_a_restart_of_pgbouncer_fails_no_later_call(behind: Behind, pooled: Any) -> None:
    pooled.write("candles", bars(600), series="A")
    for _ in range(3):
        behind.bouncer.stop()
        behind.bouncer.start()
        assert len(pooled.read("candles", "A", START, END)) == 600
        behind.bouncer.stop()
        behind.bouncer.start()
        assert pooled.write("candles", bars(600), series="A").unchanged == 600


@pytest.mark.parametrize("colour", COLOURS)
def test_a_pgbouncer_that_is_down_is_named(colour: str, behind: Behind) -> None:
    settings = replace(behind.settings, routing=RoutingOptions(wait=1.0))
    with open_store(colour, settings) as store:
        assert store.series("candles") == ()
        behind.bouncer.stop()
        with pytest.raises(Unavailable, match=r"primary: .*the pooler before it"):
            store.write("candles", bars(10), series="A")
