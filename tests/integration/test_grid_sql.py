"""One definition of time: the buckets of Python are the buckets of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_servers import Database
from points import ANCHORS, ZONES

from toolkit.timegrid import Grid, Instants, Span, Step, to_datetime, to_us

HOUR = 3_600_000_000


@pytest.fixture
def instants() -> Instants:
    """Around every change of clock: the microseconds at the edges, and quarters of an hour."""
    near = [a + d for a in ANCHORS for d in (-1, 0, 1)]
    wide = [a + q * HOUR // 4 + s for a in ANCHORS for q in range(-200, 200, 3) for s in (-1, 0)]
    found: Instants = np.unique(np.array(near + wide, dtype=np.int64))
    return found


@pytest.fixture
def client(database: Database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        yield connection


def ask(client: psycopg.Connection, expression: str, ts: Instants, *params: object) -> list[int]:
    source = "unnest(%s::timestamptz[]) WITH ORDINALITY AS t (ts, n) ORDER BY n"
    statement: Any = f"SELECT {expression} FROM {source}"
    rows = client.execute(statement, [*params, [to_datetime(int(t)) for t in ts]]).fetchall()
    return [to_us(r[0]) for r in rows]


@pytest.mark.parametrize("text", ["1s", "7s", "1m", "11m", "1h", "5h", "1d", "3d", "1w", "2w"])
def test_equal_steps_are_those_of_date_bin(
    client: psycopg.Connection, instants: Instants, text: str
) -> None:
    # TRAPS 2: also before 1970 and before 2000
    grid = Grid(Step.parse(text))
    assert grid.width is not None
    mine = grid.floor(instants).tolist()
    theirs = ask(
        client,
        "date_bin(make_interval(secs => %s), ts, %s)",
        instants,
        grid.width // 1_000_000,
        to_datetime(grid.origin),
    )
    assert mine == theirs


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("unit", ["day", "week", "month", "year"])
def test_calendar_steps_are_those_of_date_trunc_in_a_zone(
    client: psycopg.Connection, instants: Instants, unit: str, tz: str
) -> None:
    # TRAPS 3 and 4
    letter = {"day": "d", "week": "w", "month": "M", "year": "y"}[unit]
    mine = Grid(Step(1, letter), tz).floor(instants)
    theirs = ask(client, "date_trunc(%s, ts, %s)", instants, unit, tz)
    different = [
        (to_datetime(int(t)), to_datetime(int(m)), to_datetime(o))
        for t, m, o in zip(instants, mine, theirs, strict=True)
        # where a day begins twice, the hours between are before PostgreSQL's own bucket start:
        # ours keep to start <= ts
        if m != o and o <= t
    ]
    assert different == []


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("text", ["1d", "2d", "1w", "1M", "5M", "1y"])
def test_edges_given_to_width_bucket_are_the_same_buckets(
    client: psycopg.Connection, instants: Instants, text: str, tz: str
) -> None:
    grid = Grid(Step.parse(text), tz)
    # one anchor at a time, as one read would
    for anchor in ANCHORS:
        near = instants[abs(instants - anchor) < 48 * HOUR]
        span = Span(int(near.min()), int(near.max()) + 1)
        edges = [to_datetime(int(e)) for e in grid.edges(span)]
        found = ask(client, "(%s::timestamptz[])[width_bucket(ts, %s)]", near, edges, edges)
        assert found == grid.floor(near).tolist()


def test_partition_bounds_do_not_follow_the_sessions_zone(database: Database) -> None:
    # TRAPS 5
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for zone in ("America/New_York", "Asia/Kathmandu", "UTC"):
            connection.execute("SELECT set_config('timezone', %s, false)", [zone])
            for day in (1, 20):
                moment = datetime(2024, 5, day, tzinfo=UTC)
                connection.execute(
                    "SELECT toolkit.ensure_partitions('candles', %s, %s)", [moment, moment]
                )
                connection.execute(
                    "SELECT toolkit.ensure_partitions('candles', %s, %s + interval '1 day')",
                    [moment, moment],
                )
        connection.execute("SET timezone = 'UTC'")
        bounds = connection.execute(
            "SELECT pg_get_expr(relpartbound, oid) FROM pg_class "
            "WHERE relname LIKE 'candles_p%' AND relkind = 'r'"
        ).fetchall()
    assert bounds == [("FOR VALUES FROM ('2024-05-01 00:00:00+00') TO ('2024-06-01 00:00:00+00')",)]
