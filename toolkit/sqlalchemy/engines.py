"""An SQLAlchemy engine over one server: its conninfo, its pool, and how both are cut off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

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
from toolkit_routing import Node

DRIVERS = ("psycopg", "asyncpg")
_UNWATCHED_S = 30.0  # the prober looks at no node that nobody has asked for so long


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
    _prepare(engine, node, pool, node.conninfo)
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
    address = node.conninfo if driver == "psycopg" else url(node.conninfo)
    _prepare(engine.sync_engine, node, pool, address)
    return engine


def is_pooled(node: Node) -> bool:
    """Whether a pooler stands before a node, so that a session is not ours alone."""
    return bool(node.direct)


def _sized(pool: PoolOptions) -> dict[str, Any]:
    # no pre-ping: who is down is known, and a lost connection is found at checkout
    return {
        "pool_size": pool.max_size,
        "max_overflow": 0,
        "pool_timeout": pool.pool_timeout,
        "pool_use_lifo": True,
    }


def _with_psycopg(node: Node, pool: PoolOptions) -> dict[str, Any]:
    ours = session.arguments(node.conninfo, pool)
    found = {**ours, "autocommit": False}
    return {**found, "prepare_threshold": None} if is_pooled(node) else found


def _with_asyncpg(node: Node, pool: PoolOptions) -> dict[str, Any]:
    parts = conninfo_to_dict(node.conninfo)
    found: dict[str, Any] = {
        "timeout": float(parts.get("connect_timeout") or pool.connect_timeout),
        "server_settings": {
            "application_name": str(parts.get("application_name") or pool.application_name)
        },
    }
    if is_pooled(node):
        # unnamed, a statement is gone with its transaction, and meets no other's name
        found |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
        }
    return found


def _prepare(engine: Engine, node: Node, pool: PoolOptions, address: str) -> None:
    """Let an engine connect to an address, and set its sessions up."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], _named: Any) -> None:
        arguments[:] = [address]

    if is_pooled(node):
        return  # what is set in a shared session is set for others

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        statement, params = session.prepare(pool, _pid(connection))
        quoted = {k.encode(): b"'%d'" % int(v) for k, v in params.items()}
        cursor = connection.cursor()
        cursor.execute((statement % quoted).decode())
        cursor.close()
        connection.commit()


class Lines:
    """The connections of an engine: told off when their server is lost; threads may share it.

    A connection that was made before :meth:`cut`, or in the process this one was forked from, is
    replaced when it is taken from the pool; so is a dead one that nobody has used for a while.
    """

    def __init__(self, engine: Engine) -> None:
        self._sockets = Sockets(_number)
        self._engine = engine
        event.listen(engine, "connect", self._made)
        event.listen(engine, "checkin", self._back)
        event.listen(engine, "checkout", self._taken)

    def cut(self) -> None:
        """Break every connection; may be called from any thread."""
        self._sockets.cut()

    def _made(self, connection: Any, record: Any) -> None:
        record.info["toolkit"] = (os.getpid(), self._sockets.cuts)
        record.info["used_at"] = time.monotonic()
        self._sockets.add(connection.driver_connection if _is_adapted(connection) else connection)

    def _back(self, connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

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


def _is_adapted(connection: Any) -> bool:
    return hasattr(connection, "driver_connection")


def _pid(connection: Any) -> int:
    """Return the process id that a driver's connection was told when it was made."""
    own = connection.driver_connection if _is_adapted(connection) else connection
    return int(own.info.backend_pid if hasattr(own, "info") else own.get_server_pid())


def _number(connection: Any) -> int:
    """Return the number of the socket of a driver's connection."""
    if hasattr(connection, "pgconn"):
        return int(connection.pgconn.socket)
    # asyncpg offers no other way
    return int(connection._transport.get_extra_info("socket").fileno())


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
