"""A backfill that is killed anywhere: nothing is there twice, and the same call again ends it."""

from __future__ import annotations

import random
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psycopg
from fix_processes import started
from fix_servers import ON_ONE_VERSION, Database

import toolkit
from toolkit.errors import Unavailable

pytestmark = ON_ONE_VERSION
MINUTE = np.timedelta64(60, "s")
START = np.datetime64("2024-01-22", "us")
CHUNK, CHUNKS = 4_000, 12
NAMES = ["a", "b", "c"]
TIMES = 10


def chunk(number: int, value: float) -> Any:
    """Some minutes of three series, the second half of which the next chunk has again."""
    ts = START + np.arange(number * CHUNK // 2, number * CHUNK // 2 + CHUNK) * MINUTE
    return {
        "series": np.repeat(NAMES, CHUNK),
        "ts": np.tile(ts, 3),
        "value": np.full(3 * CHUNK, value),
    }


def fill(line: Connection, dsn: str, value: float) -> None:
    """Open a store, wait for the word, and fill in all chunks."""
    with toolkit.connect(dsn) as store:
        store.datasets()
        line.send("ready")
        line.recv()
        frames = (chunk(number, value) for number in range(CHUNKS))
        store.backfill("metrics", frames, on_chunk=lambda report: line.send(report.chunks))
        line.send("done")


def check(store: toolkit.Store, allowed: set[float]) -> int:
    """See that every key is there once, with a value that was given, and count."""
    cols = store.read("metrics", None, "2024-01-01T00:00Z", "2024-06-01T00:00Z", cache=False)
    keys = np.stack([cols.series, cols.instants])
    assert np.unique(keys, axis=1).shape == keys.shape
    assert set(cols["value"].tolist()) <= allowed
    return len(cols)


def whole(store: toolkit.Store, value: float) -> None:
    """See that everything is there, with the last value, in points and in rollups."""
    minutes = (CHUNKS + 1) * CHUNK // 2
    assert check(store, {value}) == 3 * minutes
    store.refresh("metrics")
    span = ("2024-01-01T00:00Z", "2024-06-01T00:00Z")
    for strategy in ("downsampled", "direct"):
        bars = store.read("metrics", None, *span, step="1d", strategy=strategy)
        assert bars["value_count"].sum() == 3 * minutes
        assert bars["value_sum"].sum() == 3 * minutes * value


def test_killed_at_any_time_the_same_call_again_ends_it(database: Database) -> None:
    dice = random.Random(4)
    with toolkit.connect(database.dsn) as store:
        store.write("metrics", chunk(3, 0.5))
        begun = time.monotonic()
        store.backfill("metrics", (chunk(number, 0.25) for number in range(CHUNKS)))
        lasts = time.monotonic() - begun
        allowed = {0.25}
        for number in range(1, TIMES + 1):
            allowed.add(float(number))
            with started((fill, database.dsn, float(number))) as (process,):
                process.say("go")
                time.sleep(dice.uniform(0.0, lasts))
                process.kill()
            check(store, allowed)
        frames = (chunk(number, 99.0) for number in range(CHUNKS))
        store.backfill("metrics", frames)
        whole(store, 99.0)
        again = store.backfill("metrics", (chunk(number, 99.0) for number in range(CHUNKS)))
        assert (again.inserted, again.updated, again.blocks) == (0, 0, 0)


def test_two_at_the_same_time_store_everything_once(database: Database) -> None:
    with started((fill, database.dsn, 7.0), (fill, database.dsn, 7.0)) as both:
        for process in both:
            process.say("go")
        for process in both:
            while process.hear() != "done":
                pass
    with toolkit.connect(database.dsn) as store:
        whole(store, 7.0)


def test_a_server_that_goes_away_midway_leaves_whole_spans(database: Database) -> None:
    """Its connections are cut, inside transactions too."""
    dice = random.Random(5)
    with (
        toolkit.connect(database.dsn) as store,
        psycopg.connect(database.admin_dsn, autocommit=True) as admin,
    ):
        for _ in range(3):
            with started((fill, database.dsn, 1.0)) as (process,):
                process.say("go")
                time.sleep(dice.uniform(0.05, 0.4))
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = %s AND pid <> pg_backend_pid()",
                    [psycopg.conninfo.conninfo_to_dict(database.dsn)["dbname"]],
                )
            try:
                check(store, {1.0})
            except Unavailable:  # our own connections were cut as well
                check(store, {1.0})
        store.backfill("metrics", (chunk(number, 1.0) for number in range(CHUNKS)))
        whole(store, 1.0)
