"""A session of its own on one server, past any pooler: for DDL that gives up in time."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from types import TracebackType
from typing import Any

import psycopg
from psycopg.sql import SQL, Literal

from toolkit.drivers import Params, Rows, session
from toolkit.drivers.failures import translated
from toolkit.errors import Busy, DatabaseError, ToolkitError, Unavailable, counted
from toolkit.options import PoolOptions
from toolkit.statements import compose

_log = logging.getLogger("toolkit.drivers")
_DEADLOCK = "40P01"
# who is in the way is looked for less and less often where nobody is: a VACUUM takes hours
_SELDOM, _RARER = 5.0, 1.25
_MOMENT = 0.1


@dataclass(frozen=True, slots=True)
class Patience:
    """How long DDL waits for its locks: each try so many seconds, so many tries.

    While a statement waits for a strong lock all who come later queue behind it; so each wait is
    short, and what lies between two of them is random, so that two do not meet again and again.
    """

    lock_timeout: float = 2.0
    tries: int = 5
    pause: float = 1.0  # between tries, times a random number from 0.5 to 1.5


@dataclass(slots=True)
class _Seen:
    """Who was found in the way of a statement."""

    stop: Event = field(default_factory=Event)
    blockers: list[str] = field(default_factory=list)


class Direct:
    """One connection for one thread; used in a ``with`` block, which closes it.

    Every statement stands by itself unless it is inside :meth:`transaction`. Advisory locks
    taken by :meth:`alone` are held until the block ends, or the connection does.
    """

    def __init__(self, conninfo: str, options: PoolOptions, node: str = "primary") -> None:
        self.node = node
        self._conninfo = conninfo
        self._options = options
        self._connection: psycopg.Connection[Any] | None = None

    def __repr__(self) -> str:
        return f"<Direct {self.node} {'open' if self._connection else 'closed'}>"

    def __enter__(self) -> Direct:
        with translated(self.node):
            self._connection = self._connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; locks go with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def version(self) -> int:
        """The server's version as a number: 180000."""
        return self._open.info.server_version

    @property
    def pid(self) -> int:
        """The server's process that this session is."""
        return self._open.info.backend_pid

    def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        """Run a statement, for at most ``timeout`` seconds, and return its rows."""
        with translated(self.node), self._within(timeout):
            cursor = self._open.execute(statement, params)
            return cursor.fetchall() if cursor.description is not None else []

    def execute(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> int:
        """Run a statement, for at most ``timeout`` seconds, and return how many rows it touched."""
        with translated(self.node), self._within(timeout):
            return max(self._open.execute(statement, params).rowcount, 0)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Have the statements of the block stand together."""
        with translated(self.node), self._open.transaction():
            yield

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold the advisory lock that goes by ``name``; Busy, which names the holder, if taken."""
        if self.fetch(*session.try_alone(name)) == [(False,)]:
            rows = self.fetch(compose("session/find_holder"), {"name": name})
            raise Busy(f"{name}: {_held(rows)}")
        try:
            yield
        finally:
            if self._connection is not None and not self._connection.closed:
                with suppress(Unavailable):  # a session that is gone holds nothing
                    self.fetch(compose("session/leave_alone"), {"name": name})

    def holders(self, table: int) -> list[str]:
        """Return who works on a table (its oid) in a way that lets nobody else maintain it."""
        rows = self.fetch(compose("session/find_holders"), {"table": table})
        return [described(row) for row in rows]

    def patiently(
        self,
        statements: Sequence[bytes],
        what: str,
        patience: Patience = Patience(),
        *,
        together: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Run DDL that needs locks others may hold; tries again, and gives up in time.

        ``together`` in one transaction, else one by one, as what is CONCURRENTLY has to be; what is
        done then is not done again. Raises Busy, which says who was in the way of ``what``.
        ``timeout`` bounds each statement.
        """
        began, todo = time.monotonic(), list(statements)
        for left in range(patience.tries - 1, -1, -1):
            with self._watching(patience) as seen:
                try:
                    self._tried(todo, patience, together=together, timeout=timeout)
                    return
                except (Busy, DatabaseError) as error:
                    if isinstance(error, DatabaseError) and error.sqlstate != _DEADLOCK:
                        raise
            way = "; ".join(seen.blockers) or "nobody was seen"
            way = f"in the way was {way}"
            if not left:
                tries = counted(patience.tries, "tries")
                took = time.monotonic() - began
                raise Busy(f"{what}: its lock was not free in {tries}, {took:.1f} s: {way}")
            _log.info("%s: its lock was not free (%s), %d tries left", what, way, left)
            time.sleep(patience.pause * random.uniform(0.5, 1.5))  # noqa: S311
        raise AssertionError("unreachable")

    def _tried(
        self,
        todo: list[bytes],
        patience: Patience,
        *,
        together: bool,
        timeout: float | None,
    ) -> None:
        limit = SQL("SET lock_timeout = {}").format(Literal(round(patience.lock_timeout * 1000)))
        self.execute(limit.as_bytes(None))
        try:
            if together:
                with self.transaction():
                    for statement in todo:
                        self.execute(statement, timeout=timeout)
            else:
                while todo:
                    self.execute(todo[0], timeout=timeout)
                    del todo[0]
        finally:
            if self._connection is not None and not self._connection.closed:
                self.execute(b"RESET lock_timeout")

    @contextmanager
    def _watching(self, patience: Patience) -> Iterator[_Seen]:
        """Look, from another session and as long as the block runs, who is in its way."""
        seen = _Seen()
        thread = Thread(
            target=self._look, args=(seen, self.pid, patience.lock_timeout / 2), daemon=True
        )
        thread.start()
        try:
            yield seen
        finally:
            seen.stop.set()
            thread.join(_MOMENT)  # for a look, not for a connection that is being made

    def _look(self, seen: _Seen, pid: int, every: float) -> None:
        connection, pause = None, every
        try:
            while not seen.stop.wait(pause):
                if connection is None:
                    connection = self._connect()
                rows = connection.execute(compose("session/find_blockers"), {"pid": pid})
                found = [described(row) for row in rows.fetchall()]
                seen.blockers = found or seen.blockers
                pause = every if found else max(every, min(pause * _RARER, _SELDOM))
        except (psycopg.Error, ToolkitError) as error:  # good to know, and no more
            _log.info("%s: who is in the way was not found out: %s", self.node, error)
        finally:
            if connection is not None:
                connection.close()

    @contextmanager
    def _within(self, timeout: float | None) -> Iterator[None]:
        if timeout is None:
            yield
            return
        self._open.execute(session.patience(timeout))
        try:
            yield
        finally:
            connection = self._open
            if not connection.closed and connection.info.transaction_status != _FAILED:
                connection.execute(session.patience(self._options.statement_timeout))

    def _connect(self) -> psycopg.Connection[Any]:
        options = session.arguments(self._conninfo, self._options)
        connection = psycopg.connect(self._conninfo, **options)
        try:
            said = session.prepare(self._options, connection.info.backend_pid)
            row = connection.execute(*said).fetchone()
            assert row is not None
            if session.reached(self._options, row, False).is_pooled:
                raise session.needs_own(self.node)
            # what goes by a name may be done elsewhere, while this session only holds the name
            connection.execute(b"SET idle_session_timeout = 0")
            with suppress(psycopg.DataError):  # not every system can tell
                # a statement whose client was killed ends soon, and its locks with it
                connection.execute(b"SET client_connection_check_interval = '5s'")
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            raise RuntimeError("a Direct is used inside its with block")
        return self._connection


_COMMAND = re.compile(r"\s*((?:autovacuum: )?[A-Za-z]+(?: +[A-Za-z]+(?![\w'&]))?)(?![\w'&])")
_FAILED = psycopg.pq.TransactionStatus.INERROR


def _held(rows: Rows) -> str:
    if not rows:
        return "somebody did that until just now; try again"
    end = f"SELECT pg_terminate_backend({rows[0][0]}) would end it"
    return f"runs already: {described(rows[0])}; {end}"


def described(row: Sequence[Any]) -> str:
    """Say who a session is, of a row of ``session/find_blockers`` and its like."""
    pid, user, application, address, state, seconds, query = row
    if not pid:
        return "a prepared transaction; SELECT * FROM pg_prepared_xacts shows it"
    who = f"server process {pid}"
    if application:
        who += f" ({application})"
    if user:
        who += f", user {user}"
    if state:  # which is not told of others' sessions to who may not see them; nor is the address
        who += f", from {address or 'a local socket'}, {state} for {seconds:.0f} s"
    did = command_of(query)
    return who + (f"{' after' if state and state != 'active' else ':'} {did}" if did else "")


def command_of(query: str | None) -> str | None:
    """Return what another's statement begins with: what comes then may be a password.

    >>> command_of("ALTER ROLE ana PASSWORD 'secret'"), command_of("select 1")
    ('ALTER ROLE …', 'select …')
    """
    found = _COMMAND.match(query or "")
    return f"{found[1]} …" if found else None
