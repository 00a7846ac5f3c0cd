"""What the asyncio door does on one connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from toolkit.drivers import Params, Rows, session
from toolkit.drivers.failures import translated
from toolkit.drivers.session import DIRECT, Reached

_log = logging.getLogger("toolkit.drivers")


class AsyncTransaction:
    """An async psycopg connection inside a transaction."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], node: str) -> None:
        self._connection = connection
        self._node = node

    async def fetch(self, statement: bytes, params: Params | None = None) -> Rows:
        with translated(self._node), session.planned_anew(self._connection):
            async with self._connection.cursor(binary=True) as cursor:
                await cursor.execute(statement, params)
                return await cursor.fetchall()

    async def execute(self, statement: bytes, params: Params | None = None) -> int:
        with translated(self._node), session.planned_anew(self._connection):
            async with self._connection.cursor(binary=True) as cursor:
                await cursor.execute(statement, params)
                return cursor.rowcount

    async def copy(self, statement: bytes, pieces: Iterable[bytes]) -> None:
        with translated(self._node):
            async with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
                iterator = iter(pieces)
                # encoding is CPU work: off the loop, piece by piece
                while (piece := await asyncio.to_thread(next, iterator, None)) is not None:
                    await copy.write(piece)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with translated(self._node):
            async with self._connection.transaction():
                yield


async def ask_on(
    connection: psycopg.AsyncConnection[Any],
    statement: bytes,
    params: Params | None,
    timeout: float | None,
    where: Reached = DIRECT,
) -> Rows:
    """Run one statement, in a transaction of its own where it has a timeout."""
    cursor = connection.cursor(binary=True)

    async def ask() -> Rows:
        if timeout is None and not where.lacks:
            await cursor.execute(statement, params)
            return await cursor.fetchall()
        async with connection.transaction():
            for said in session.begin(None, False, timeout is not None, timeout, where):
                await connection.execute(said)
            await cursor.execute(statement, params)
            return await cursor.fetchall()

    try:
        with session.planned_anew(connection):
            return await ask()
    except session.Stale:
        return await ask()


async def is_tracked(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Ask whether a pooler keeps track of prepared statements; use the connection for no more."""
    connection.prepare_threshold = 0
    try:
        async with connection.transaction():
            cursor = await connection.execute(session.find_prepared())
            names = [str(name) for (name,) in await cursor.fetchall()]
            if found := session.is_renamed(names):
                return found
            for name in names:
                await connection.execute(session.forget(name), prepare=False)
            return False
    except psycopg.errors.DuplicatePreparedStatement:  # somebody's of the same name, left there
        return False


async def identify(connection: psycopg.AsyncConnection[Any]) -> int | None:
    """Ask for the server's system identifier; None where it does not tell."""
    try:
        cursor = await connection.execute(session.identify())
        row = await cursor.fetchone()
    except session.NOT_TOLD as error:
        _log.info("the server does not tell its system identifier: %s", error)
        return None
    return row[0] if row else None
