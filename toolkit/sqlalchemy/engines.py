"""An SQLAlchemy engine over one server: its conninfo, its pool, and how both are cut off."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from psycopg import BaseConnection
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from toolkit.drivers import session
from toolkit.drivers.pool_asyncpg import url
from toolkit.drivers.sockets import Sockets
from toolkit.errors import ConfigError, DatabaseError, ReadOnlyDatabase, ToolkitError, Unavailable
from toolkit.options import PoolOptions
from toolkit_routing import Load, Node

DRIVERS = ("psycopg", "asyncpg")
_UNWATCHED_S = 30.0  # the prober looks at no node that nobody has asked for so long
# for asyncpg: unnamed, a statement is gone with its transaction, and meets no other's name
_UNNAMED: dict[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
}


def engine_for(node: Node | str, pool: PoolOptions = PoolOptions(), **options: Any) -> Engine:
    """Return an engine over one server, a node or a conninfo, with psycopg.

    Its sessions are as the toolkit's own (UTC, a statement timeout); its URL shows no password.
    ``options`` are those of ``sqlalchemy.create_engine``, and win.
    """
    node = node if isinstance(node, Node) else Node("primary", node)
    given = options.pop("connect_args", {})
    engine = create_engine(
        "postgresql+psycopg://",
        connect_args=_with_psycopg(node, pool) | given,
        **_sized(pool) | options,
    )
    _prepare(engine, pool, node.conninfo)
    return engine


def async_engine_for(
    node: Node | str, pool: PoolOptions = PoolOptions(), driver: str = "psycopg", **options: Any
) -> AsyncEngine:
    """Return the asyncio engine over one server, with psycopg or asyncpg."""
    node = node if isinstance(node, Node) else Node("primary", node)
    if driver not in DRIVERS:
        raise ConfigError("async_engine_for", "driver", f"{driver!r} is none of {DRIVERS}")
    arguments = _with_psycopg if driver == "psycopg" else _with_asyncpg
    given = options.pop("connect_args", {})
    engine = create_async_engine(
        f"postgresql+{driver}://",
        connect_args=arguments(node, pool) | given,
        **_sized(pool) | options,
    )
    if driver == "psycopg":
        _prepare(engine.sync_engine, pool, node.conninfo)
    else:
        _prepare(engine.sync_engine, pool, url(node.conninfo))
        _find_out(engine.sync_engine)
    return engine


def _sized(pool: PoolOptions) -> dict[str, Any]:
    # no pre-ping: who is down is known, and a lost connection is found at checkout
    return {
        "pool_size": pool.max_size,
        "max_overflow": 0,
        "pool_timeout": pool.pool_timeout,
        "pool_use_lifo": True,
    }


def _with_psycopg(node: Node, pool: PoolOptions) -> dict[str, Any]:
    return {**session.arguments(node.conninfo, pool), "autocommit": False}


def _with_asyncpg(node: Node, pool: PoolOptions) -> dict[str, Any]:
    parts = conninfo_to_dict(node.conninfo)
    return {
        "timeout": float(parts.get("connect_timeout") or pool.connect_timeout),
        "server_settings": {
            "application_name": str(parts.get("application_name") or pool.application_name)
        },
    }


def _prepare(engine: Engine, pool: PoolOptions, address: str) -> None:
    """Let an engine connect to an address, and set up its sessions where they are its own."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], _named: Any) -> None:
        arguments[:] = [address]

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        statement, params = session.prepare(pool, _pid(connection))
        quoted = {k.encode(): b"'%d'" % int(v) for k, v in params.items()}
        cursor = connection.cursor()
        cursor.execute((statement % quoted).decode())
        is_direct = cursor.fetchone()[0]
        cursor.close()
        connection.commit()
        if not is_direct and _is_psycopg(connection):
            _own(connection).prepare_threshold = None


def _find_out(engine: Engine) -> None:
    """Let asyncpg's connections name no statement where the first finds a pooler."""
    is_pooled: bool | None = None

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
        nonlocal is_pooled
        if is_pooled is False:
            return None
        connection = dialect.connect(*arguments, **_UNNAMED | named)
        if is_pooled is None:
            try:
                cursor = connection.cursor()
                cursor.execute("SELECT pg_backend_pid()")
                is_pooled = cursor.fetchone()[0] != _pid(connection)
                cursor.close()
                connection.rollback()
            except BaseException:
                connection.terminate()
                raise
        if is_pooled:
            return connection
        connection.close()
        return None


class Lines:
    """The connections of an engine: counted, and told off when their server is lost.

    Threads may share it. A connection that was made before :meth:`cut`, or in the process this one
    was forked from, is replaced when it is taken from the pool; so is a dead one that nobody has
    used for a while.
    """

    def __init__(self, engine: Engine, load: Load) -> None:
        self._sockets = Sockets()
        self._engine = engine
        self._load = load
        event.listen(engine, "connect", self._made)
        event.listen(engine, "checkin", self._back)
        event.listen(engine, "checkout", self._taken)
        event.listen(engine, "detach", self._back)  # dropped by an asyncio session, too

    def cut(self) -> None:
        """Break every connection; may be called from any thread."""
        self._sockets.cut()

    def _made(self, connection: Any, record: Any) -> None:
        record.info["toolkit"] = (os.getpid(), self._sockets.cuts)
        record.info["used_at"] = time.monotonic()
        if _is_psycopg(connection):
            self._sockets.add(_own(connection))
        else:
            end = partial(_terminate, asyncio.get_running_loop())
            self._sockets.add(_own(connection), end)

    def _back(self, connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()
        # not after a failed checkout, nor in a child for its parent
        if record.record_info.pop("toolkit_taken", None) == os.getpid():
            self._load.inflight -= 1

    def _taken(self, connection: Any, record: Any, place: Any) -> None:
        pid, cuts = record.info["toolkit"]
        if pid != os.getpid():
            record.dbapi_connection = place.dbapi_connection = None  # the parent's: leave it alone
            raise InvalidatePoolError("the process was forked")
        if cuts != self._sockets.cuts:
            raise InvalidatePoolError("its server was lost")
        if time.monotonic() - record.info["used_at"] > _UNWATCHED_S:
            dialect = self._engine.dialect
            try:
                dialect.do_ping(connection)
            except dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError("it was dead") from error
        record.record_info["toolkit_taken"] = pid
        self._load.inflight += 1


def _own(connection: Any) -> Any:
    """Return the driver's connection within the form that SQLAlchemy gives it, if any."""
    return connection.driver_connection if hasattr(connection, "driver_connection") else connection


def _is_psycopg(connection: Any) -> bool:
    return isinstance(_own(connection), BaseConnection)


def _pid(connection: Any) -> int:
    """Return the process id that a driver's connection was told when it was made."""
    own = _own(connection)
    return int(own.info.backend_pid if _is_psycopg(own) else own.get_server_pid())


def _terminate(loop: asyncio.AbstractEventLoop, connection: Any) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it all who wait
        loop.call_soon_threadsafe(connection.terminate)


def on_failure(
    engine: Engine, node: str, tell: Callable[[ToolkitError, ExceptionContext], ToolkitError | None]
) -> None:
    """Have told what statements on an engine meet with, where it is about the server.

    What ``tell`` returns is raised in its place.
    """

    @event.listens_for(engine, "handle_error")
    def heard(context: ExceptionContext) -> BaseException | None:
        if context.connection is None:
            return None  # who connects hears it as well
        state = getattr(context.original_exception, "sqlstate", None) or ""
        words = f"{node}: {context.original_exception}"
        if state == "25006":
            return tell(ReadOnlyDatabase(words, state), context)
        if context.is_disconnect or state.startswith(("08", "57P")):
            return tell(Unavailable(words), context)
        return tell(DatabaseError(words, state), context) if state else None
