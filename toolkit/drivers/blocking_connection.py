"""What the blocking door does on one connection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from toolkit.drivers import Params, Rows, session
from toolkit.drivers.failures import translated
from toolkit.drivers.session import DIRECT, Reached

_log = logging.getLogger("toolkit.drivers")


class BlockingTransaction:
    """A psycopg connection inside a transaction."""

    def __init__(self, connection: psycopg.Connection[Any], node: str) -> None:
        self._connection = connection
        self._node = node

    async def fetch(self, statement: bytes, params: Params | None = None) -> Rows:
        with self._translated(), self._connection.cursor(binary=True) as cursor:
            return cursor.execute(statement, params).fetchall()

    async def execute(self, statement: bytes, params: Params | None = None) -> int:
        with self._translated(), self._connection.cursor(binary=True) as cursor:
            return cursor.execute(statement, params).rowcount

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with translated(self._node), session.planned_anew(self._connection):
            yield

    async def copy(self, statement: bytes, pieces: Iterable[bytes]) -> None:
        with (
            translated(self._node),
            self._connection.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            for piece in pieces:
                copy.write(piece)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with translated(self._node), self._connection.transaction():
            yield


def ask_on(
    connection: psycopg.Connection[Any],
    statement: bytes,
    params: Params | None,
    timeout: float | None,
    where: Reached = DIRECT,
) -> Rows:
    """Run one statement, in a transaction of its own where it has a timeout."""
    cursor = connection.cursor(binary=True)

    def ask() -> Rows:
        if timeout is None and not where.lacks:
            return cursor.execute(statement, params).fetchall()
        with connection.transaction():
            for said in session.begin(None, False, timeout is not None, timeout, where):
                connection.execute(said)
            return cursor.execute(statement, params).fetchall()

    try:
        with session.planned_anew(connection):
            return ask()
    except session.Stale:
        return ask()


def is_tracked(connection: psycopg.Connection[Any]) -> bool:
    """Ask whether a pooler keeps track of prepared statements; use the connection for no more."""
    connection.prepare_threshold = 0
    try:
        with connection.transaction():
            rows = connection.execute(session.find_prepared()).fetchall()
            names = [str(name) for (name,) in rows]
            if found := session.is_renamed(names):
                return found
            for name in names:
                connection.execute(session.forget(name), prepare=False)
            return False
    except psycopg.errors.DuplicatePreparedStatement:  # somebody's of the same name, left there
        return False


def identify(connection: psycopg.Connection[Any]) -> int | None:
    """Ask for the server's system identifier; None where it does not tell."""
    try:
        row = connection.execute(session.identify()).fetchone()
    except session.NOT_TOLD as error:
        _log.info("the server does not tell its system identifier: %s", error)
        return None
    return row[0] if row else None
