"""The nodes of a deployment with an engine each, and the connections that sessions get of them."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_

from toolkit.cluster import Cluster
from toolkit.config import Settings
from toolkit.drivers import drive
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver
from toolkit.drivers.failures import is_denied, is_full, unknown_outcome
from toolkit.errors import (
    AccessDenied,
    DatabaseError,
    NoConnection,
    ReadOnlyDatabase,
    ToolkitError,
    Unavailable,
)
from toolkit.options import PoolOptions
from toolkit.query import Freshness
from toolkit.reading import want_of
from toolkit.sqlalchemy.engines import Lines, on_failure
from toolkit.written import Written
from toolkit_routing import Node, Token, Topology, Want

T = TypeVar("T")
_log = logging.getLogger("toolkit.sqlalchemy")
_WRITES = "toolkit_writes"  # in a connection's info: its transaction has something to commit
_COMMITS = "toolkit_commits"  # and that has been sent
_HINT = (
    "{} is a replica, and the statement was taken for a read; "
    "execution_options(freshness='strong') sends it to the primary"
)


@dataclass(slots=True, eq=False)
class Place:
    """The connection of a session's transaction, and the node it leads to."""

    node: str
    connection: Connection
    is_primary: bool

    def writes(self) -> None:
        """Hear that the transaction has something to commit."""
        if not self.connection.invalidated:
            self.connection.info[_WRITES] = True

    @property
    def has_committed(self) -> bool:
        """Whether there was something to commit, and that has been sent."""
        return not self.connection.invalidated and _COMMITS in self.connection.info


class Routing:
    """An engine for each node, and the cluster that knows them; sessions share it.

    ``door`` is the driver for the toolkit's own questions, ``engine`` makes a node's.
    """

    def __init__(
        self,
        settings: Settings,
        door: type[BlockingDriver] | type[AsyncDriver],
        engine: Callable[[Node, PoolOptions], Engine | AsyncEngine],
    ) -> None:
        assert settings.dsn is not None
        topology = settings.topology or Topology.of(settings.dsn)
        (shard,) = topology.shards
        few = replace(settings.pool, min_size=0, max_size=2)  # the engines' have the work
        drivers = {n.name: door(n.conninfo, few, n.name, n.direct, True) for n in shard.nodes}
        self.cluster = Cluster(shard, drivers, settings.pool, settings.routing)
        self.written = Written(self.cluster)
        self.engines = {n.name: engine(n, settings.pool) for n in shard.nodes}
        # a session holds one connection of an engine: who has read from a replica that was promoted
        # meanwhile writes to it by another, over the same pool
        self._writing = {name: found.execution_options() for name, found in self.engines.items()}
        self._is_async = door is AsyncDriver
        self._max_age = settings.cache.max_age
        self._lines = {name: self._watched(name) for name in self.engines}
        self.cluster.listen(lambda name: self._lines[name].cut())

    def wait(self, road: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, from within a session."""
        return await_(road) if self._is_async else drive(road)

    def _watched(self, name: str) -> Lines:
        """Let the cluster know how a node answers, and what it fails with."""
        engine, load = _core(self.engines[name]), self.cluster.loads[name]

        @event.listens_for(engine, "before_cursor_execute")
        def begin(_c: Any, _cursor: Any, _s: Any, _p: Any, context: Any, _many: bool) -> None:
            context.toolkit_began = time.monotonic()

        @event.listens_for(engine, "after_cursor_execute")
        def end(
            connection: Connection, _cursor: Any, _s: Any, _p: Any, context: Any, _many: bool
        ) -> None:
            now = time.monotonic()
            load.done(now, now - context.toolkit_began)
            if connection.info.get(_WRITES) and _commits_itself(connection):
                self.written.writing()

        @event.listens_for(engine, "commit")
        def commit(connection: Connection) -> None:
            if connection.info.get(_WRITES):
                connection.info[_COMMITS] = True
                self.written.writing()

        @event.listens_for(engine, "commit_twophase")
        def commit_prepared(connection: Connection, _id: Any, _is_prepared: bool) -> None:
            commit(connection)

        def failed(error: ToolkitError, context: ExceptionContext) -> ToolkitError | None:
            is_primary, connection = self._is_primary(name), context.connection
            if isinstance(error, ReadOnlyDatabase) and not is_primary:
                assert context.sqlalchemy_exception is not None
                context.sqlalchemy_exception.add_note(_HINT.format(name))
                return None
            if type(error) is not DatabaseError:
                context.is_disconnect = True
            elif is_primary:
                return None  # two of ours met: the node is well
            began = getattr(context.execution_context, "toolkit_began", time.monotonic())
            self.cluster.failed(name, error, began)
            if connection is None or connection.invalidated or not isinstance(error, Unavailable):
                return None
            return unknown_outcome(name) if _COMMITS in connection.info else None

        on_failure(engine, name, failed)
        return Lines(engine, load)

    async def open(self, freshness: Freshness | None) -> Place:
        """Return a connection to a node that is fresh enough; None: to the primary.

        A node that cannot be connected to is passed over, and there being none waited out, as
        the cluster does.
        """
        await self.cluster.ready()
        if freshness is None:
            want = Want(is_primary=True)
        else:
            want = await want_of(freshness, self.cluster, self.written, self._max_age)

        engines = self.engines if freshness is not None else self._writing

        async def connect(name: str) -> Place:
            engine = engines[name]
            try:
                if isinstance(engine, Engine):
                    connection = engine.connect()
                else:
                    connection = _core_of(await engine.connect())
            except DBAPIError as error:
                raise _no_connection(name, error.orig) from error
            except PoolTimeout as error:
                raise NoConnection(f"{name}: no connection was free in time: {error}") from error
            except OSError as error:
                raise Unavailable(f"{name}: cannot be reached: {error}") from error
            _tidy(connection)
            return Place(name, connection, self._is_primary(name))

        place, chosen = await self.cluster.read(want, connect, None)
        _log.debug("a transaction goes to %s: %s", place.node, chosen.reason)
        return place

    def _is_primary(self, name: str) -> bool:
        primary = self.cluster.health.primary
        return primary is not None and primary.name == name

    def end(self, place: Place) -> None:
        """Give a connection back; nothing that is not committed stays."""
        connection = place.connection
        try:
            if not connection.invalidated and not connection.closed:
                _tidy(connection)
            connection.close()
        except DBAPIError as error:  # its rollback: what was read has been read
            _log.info("a connection to %s was lost after its use: %s", place.node, error.orig)
            if not connection.closed:
                connection.invalidate()
                connection.close()

    async def token(self) -> Token:
        """Return what a reader elsewhere must have seen to see what was written here."""
        return Token({self.cluster.shard.name: await self.written.own()})

    async def close(self) -> None:
        """Close every connection; sessions open new ones if they go on."""
        for engine in self.engines.values():
            closing = engine.dispose()
            if inspect.isawaitable(closing):
                await closing
        await self.cluster.close()


def _no_connection(name: str, error: Any) -> ToolkitError:
    if is_full(error):
        return NoConnection(f"{name}: the server has no connection left: {error}")
    text = f"{name}: cannot be reached: {error}"
    return (AccessDenied if is_denied(text) else Unavailable)(text)


def _commits_itself(connection: Connection) -> bool:
    """Whether each statement of a connection is committed at once (AUTOCOMMIT)."""
    own = connection.connection.dbapi_connection
    return own is not None and connection.dialect.detect_autocommit_setting(own)


def _core_of(connection: AsyncConnection) -> Connection:
    assert connection.sync_connection is not None
    return connection.sync_connection


def _core(engine: Engine | AsyncEngine) -> Engine:
    return engine if isinstance(engine, Engine) else engine.sync_engine


def _tidy(connection: Connection) -> None:
    """Forget what another transaction has left in a connection's info."""
    for key in (_WRITES, _COMMITS):
        connection.info.pop(key, None)
