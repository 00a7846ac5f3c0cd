"""Fixtures: stores that share what they remember, on a server of their own, and a silent writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from fix_cache import minutes
from fix_cache_servers import CacheServer
from fix_servers import Database
from fix_stores import COLOURS, cached, open_store


@contextmanager
def sharing(colour: str, database: Database, server: CacheServer) -> Iterator[Any]:
    # patient: on a busy machine nobody here means to find it hung
    settings = cached(database.dsn, redis=server.url, redis_timeout=2.0)
    with open_store(colour, settings) as store:
        yield store


@pytest.fixture(params=COLOURS)
def pair(
    request: pytest.FixtureRequest, database: Database, cache_server: CacheServer
) -> Iterator[tuple[Any, Any]]:
    """One of each colour, this one first; they share a week of minutes of two series."""
    other = next(c for c in COLOURS if c != request.param)
    with ExitStack() as stack:
        found = [
            stack.enter_context(sharing(c, database, cache_server)) for c in (request.param, other)
        ]
        for series in ("a", "b"):
            found[0].write("metrics", minutes(), series=series)
        yield found[0], found[1]


@pytest.fixture
def unlogged(database: Database) -> Iterator[psycopg.Connection]:
    """A client whose writes no trigger hears of."""
    with psycopg.connect(database.admin_dsn, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET search_path = toolkit")
        yield connection


def spans(server: CacheServer) -> list[bytes]:
    keys = server.admin.scan_iter("tk1:*:*:*:*:*:*")
    return sorted(k for k in keys if b":lease:" not in k)


def cursor(server: CacheServer) -> bytes:
    (key,) = server.admin.scan_iter("tk1:*:cursor")
    found: bytes = server.admin.get(key)
    return found
