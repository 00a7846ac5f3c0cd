"""Fixtures: one test body for both stores, and a dataset that has every type of column."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_servers import Database

import toolkit
from toolkit import ddl
from toolkit.config import Settings, load_settings
from toolkit.dataset import Aggregate, Column, Dataset
from toolkit.options import CacheOptions
from toolkit.writer import SMALL

COLOURS = ("blocking", "asyncio")


def _every(column: str, *kinds: str) -> tuple[Aggregate, ...]:
    return tuple(Aggregate(f"{column}_{kind}", kind, (column,)) for kind in kinds)


READINGS = Dataset(
    "readings",
    (
        Column("level"),
        Column("hits", "int"),
        Column("is_open", "bool"),
        Column("mood", "category"),
        Column("cost", "decimal(4)"),
    ),
    (
        *_every("level", "first", "last", "min", "max", "sum", "count", "avg"),
        *_every("hits", "first", "last", "min", "max", "sum", "count", "avg"),
        *_every("is_open", "first", "last", "count"),
        *_every("mood", "first", "last", "count"),
        *_every("cost", "first", "last", "min", "max", "sum", "count", "avg"),
        Aggregate("worth", "vwap", ("level", "cost"), "hits"),
    ),
    ladder=("1m", "15m", "1h", "1d"),
    partition="1M",
    has_seq=True,
    chart="level",
)


class Awaited:
    """An AsyncStore that is called like a Store: each call runs on one loop that stays open."""

    def __init__(self, store: toolkit.AsyncStore, runner: asyncio.Runner) -> None:
        self.store = store
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            if inspect.isawaitable(result):
                return self.run(result)
            return self._pieces(result) if isinstance(result, AsyncIterator) else result

        return call

    def run(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self._runner.run(wait())

    def _pieces(self, pieces: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    piece = self.run(anext(pieces))
                except StopAsyncIteration:
                    return
                yield piece
        finally:
            self.run(pieces.aclose())  # type: ignore[attr-defined]  # an async generator


@contextmanager
def open_store(colour: str, source: Any) -> Iterator[Any]:
    """Yield a store of either colour that is called without await."""
    if colour == "blocking":
        with toolkit.connect(source) as store:
            yield store
        return
    with asyncio.Runner() as runner:
        awaited = Awaited(toolkit.connect_async(source), runner)
        try:
            yield awaited
        finally:
            awaited.close()


def cached(dsn: str, **options: Any) -> Settings:
    """Return the settings of a store that remembers its answers."""
    return replace(load_settings(dsn), cache=CacheOptions(**options))


def create(database: Database, *datasets: Dataset) -> None:
    """Create datasets beside those that ship."""
    with psycopg.connect(database.dsn) as connection:
        for dataset in datasets:
            for statement in ddl.create_dataset(dataset, "toolkit"):
                connection.execute(statement)


T0 = datetime(2024, 1, 1, tzinfo=UTC)
SIZES = (7, SMALL, SMALL + 1, 5_000)  # through arrays, and through a stage


def minutes(count: int, start: datetime = T0) -> dict[str, Any]:
    """So many points of metrics, a minute apart."""
    first = np.datetime64(start.replace(tzinfo=None), "us")
    ts = first + np.arange(count) * np.timedelta64(60, "s")
    return {"ts": ts, "value": np.sin(np.arange(count) / 50)}


def metrics(count: int, start: datetime = T0, value: float = 0.0) -> dict[str, Any]:
    """The same, with values that count up from ``value``."""
    ts = np.datetime64(start.replace(tzinfo=None), "us") + np.arange(count) * np.timedelta64(
        60, "s"
    )
    return {"ts": ts, "value": np.arange(count, dtype=float) + value}


def store_bars(store: Any, count: int, series: str = "BTC-USD") -> None:
    """Store minute bars from 2024-01-01 on."""
    ts = np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(1, "m")
    columns = {n: np.arange(count) * 1.0 for n in ("open", "high", "low", "close", "volume")}
    store.write("candles", {"ts": ts, **columns}, series=series)


@pytest.fixture(params=COLOURS)
def store(request: pytest.FixtureRequest, database: Database) -> Iterator[Any]:
    """A store on the test's own database; each test that asks runs with both."""
    with open_store(request.param, database.dsn) as store:
        yield store


@pytest.fixture
def stores(database: Database) -> Iterator[tuple[Any, ...]]:
    """Both stores on one database that has a dataset with every type; they remember answers."""
    create(database, READINGS)
    with ExitStack() as stack:
        settings = cached(database.dsn, keep_log=0)
        yield tuple(stack.enter_context(open_store(c, settings)) for c in COLOURS)


@pytest.fixture
def blocking(database: Database) -> Iterator[toolkit.Store]:
    """A blocking store, for tests of what lies below both."""
    with toolkit.connect(database.dsn) as store:
        yield store


@pytest.fixture
def other_store(database: Database) -> Callable[[], AbstractContextManager[Any]]:
    """Opens a second store on the same database, which remembers nothing of the first."""
    return lambda: open_store("blocking", database.dsn)


@pytest.fixture
def sql(database: Database) -> Iterator[psycopg.Connection]:
    """A client that has never heard of the toolkit, in autocommit."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("SET timezone = 'America/New_York'")
        connection.execute("SET search_path = toolkit")
        yield connection


def end_sessions(sql: psycopg.Connection) -> int:
    """End all other sessions of a database, and return how many; what they did is counted then."""
    ended = sql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return len(ended.fetchall())


def one(sql: psycopg.Connection, statement: str) -> Any:
    """The only value of a statement's first row."""
    row = sql.execute(statement).fetchone()  # type: ignore[call-overload]
    return row[0]
