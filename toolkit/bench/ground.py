"""The ground all cases stand on: a server of its own, with the bars they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import psycopg
from psycopg.sql import SQL, Identifier, Literal

from toolkit import migrate
from toolkit.bench.peers import Peers
from toolkit.bench.questions import Questions, compose
from toolkit.config import Settings, load_settings
from toolkit.dataset import CANDLES
from toolkit.ddl import create_dataset
from toolkit.local import Endpoints, LocalServers
from toolkit.options import CacheOptions
from toolkit.store import Store
from toolkit.timegrid import to_us

SCHEMA = "toolkit_bench"  # on a database that was named; dropped at the end
SEED = 7
START = "2023-01-01T00:00Z"
MINUTE = 60_000_000
_PATIENCE_S = 2.0
NOISY = replace(CANDLES, name="noisy")  # candles with a long change log
WRITTEN = replace(CANDLES, name="written")  # what the write cases fill
PRICED = replace(CANDLES, name="priced")  # what the chooser is tried on
LONG = replace(CANDLES, name="long")  # what the memory cases stream in their full form
COLD = replace(CANDLES, name="cold")  # the bars again, in blocks
REAL = replace(CANDLES, name="real")  # real bars, in blocks
FILLED = replace(CANDLES, name="filled")  # what a backfill fills
PACKED = replace(CANDLES, name="packed")  # what becomes blocks while it is timed
_OWN = (NOISY, WRITTEN, PRICED, LONG, COLD, REAL, FILLED, PACKED)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: the defaults take some minutes, a test shrinks them."""

    series: int = 4
    minutes: int = 525_600
    small_read: int = 1_000
    large_read: int = 500_000
    buckets: int = 1_000
    log_rows: int = 1_000_000
    log_series: int = 1_000
    written_rows: int = 1_000_000
    written_series: int = 10
    to_sql_rows: int = 10_000
    streamed_rows: int = 2_000_000
    priced_minutes: int = 1_051_200
    real_series: int = 10  # a partition of one is mostly pages that any number would share
    packed_rows: int = 500_000
    load_s: float = 4.0
    cached_days: int = 30
    turns: int = 200
    cached_turns: int = 2_000
    large_turns: int = 10
    write_turns: int = 3


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """A loaded database and the ways into it; the blocking store is ours, and remembers nothing."""

    dsn: str
    redis_url: str
    schema: str
    settings: Settings
    store: Store
    peers: Peers
    sizes: Sizes
    is_full: bool

    def names(self) -> list[str]:
        return [f"B{number}" for number in range(self.sizes.series)]

    def id_of(self, dataset: str, series: str) -> int:
        """Return a series' id: peers know no names."""
        return next(s.id for s in self.store.series(dataset) if s.name == series)

    def questions(self, dataset: str, series: str) -> Questions:
        """Return what peers are asked about a series."""
        return Questions(self.schema, dataset, self.id_of(dataset, series))

    def remembering(self, memory: int = 64, redis_url: str = "") -> Settings:
        """Return the settings of a store that remembers, here and perhaps in a Redis."""
        return replace(self.settings, cache=CacheOptions(memory=memory, redis=redis_url))

    def sharing(self, memory: int) -> Settings:
        """Return those of one that shares through our Redis, which a busy machine may delay."""
        cache = CacheOptions(memory=memory, redis=self.redis_url, redis_timeout=_PATIENCE_S)
        return replace(self.settings, cache=cache)

    def execute(self, statement: LiteralString, table: str, **values: float | str) -> None:
        """Run a statement by itself, with ``{table}`` of our schema and values filled in."""
        literals = {name: Literal(value) for name, value in values.items()}
        text = compose(statement, table=Identifier(self.schema, table), **literals)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(text.encode())


@contextmanager
def local_servers(root: Path, say: Say) -> Iterator[Endpoints]:
    """Yield the addresses of servers of our own; their data is gone afterwards."""
    servers = LocalServers(root, name="bench")
    servers.reset()
    say("starting PostgreSQL and Valkey")
    try:
        yield servers.up()
    finally:
        servers.reset()


@contextmanager
def prepared(
    dsn: str, redis_url: str, schema: str, sizes: Sizes, say: Say, *, is_full: bool = False
) -> Iterator[Ground]:
    """Migrate, load, and yield the ground."""
    say("migrating")
    migrate.upgrade(dsn, schema=schema)
    quiet = CacheOptions(memory=0, keep_log=0)  # what is measured is the road to the database
    settings = replace(load_settings(dsn), dsn=dsn, schema=schema, cache=quiet)
    with ExitStack() as stack:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for dataset in _OWN:
                for statement in create_dataset(dataset, schema):
                    connection.execute(statement.encode())
        store = stack.enter_context(Store(settings))
        peers = stack.enter_context(Peers(dsn, schema))
        ground = Ground(dsn, redis_url, schema, settings, store, peers, sizes, is_full)
        say(f"loading {sizes.series * sizes.minutes:,} bars")
        for number, name in enumerate(ground.names()):
            store.write("candles", bars(sizes.minutes, number), series=name)
        say("refreshing rollups")
        store.refresh("candles")
        say("vacuuming")
        ground.execute("VACUUM (ANALYZE) {table}", "candles")
        for step in CANDLES.ladder:
            ground.execute("VACUUM (ANALYZE) {table}", f"candles_{step}")
        yield ground


def drop_schema(dsn: str, schema: str) -> None:
    """Remove everything that was loaded."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))


def bars(minutes: int, number: int, start: str = START) -> dict[str, Any]:
    """Return regular minute bars as a dict of arrays: a random walk in cents."""
    generator = np.random.default_rng([SEED, number])
    close = np.round(100 + np.cumsum(generator.normal(0, 0.02, minutes)), 2)
    opening = np.append(close[:1], close[:-1])
    wick = np.abs(np.round(generator.normal(0, 0.02, (2, minutes)), 2))
    return {
        "ts": (to_us(start) + MINUTE * np.arange(minutes)).view("M8[us]"),
        "open": opening,
        "high": np.maximum(opening, close) + wick[0],
        "low": np.minimum(opening, close) - wick[1],
        "close": close,
        "volume": np.floor(generator.exponential(1_000.0, minutes)),
    }


def at(minute: int) -> str:
    """Return the time of a minute of the bars, as ISO 8601."""
    ts = np.datetime64(to_us(START) + MINUTE * minute, "us")
    return f"{ts}Z"
