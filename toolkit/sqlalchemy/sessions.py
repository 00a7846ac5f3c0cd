"""Sessions whose transactions find their node: the primary to write, a fresh one to read."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, sessionmaker

from toolkit import resolve
from toolkit.config import Settings
from toolkit.drivers import drive
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver
from toolkit.errors import ConfigError, MissingExtra
from toolkit.query import Freshness, freshness_of
from toolkit.sqlalchemy.engines import async_engine_for, engine_for
from toolkit.sqlalchemy.reads import is_read
from toolkit.sqlalchemy.routing import Place, Routing

Source = str | os.PathLike[str] | Settings | None


class RoutingSession(Session):
    """A session each of whose transactions has a node, chosen at its first statement.

    One that begins with a read goes to a node as fresh as the execution option ``freshness``
    says, or ``session.info["freshness"]``; one that begins with anything else to the primary. A
    transaction moves to the primary, and stays there, with its first write, and with a read that
    wants another freshness than the first. What is not known to be a read is a write.
    """

    def __init__(
        self,
        bind: None = None,
        *,
        binds: None = None,
        routing: Routing,
        freshness: str | Freshness = "session",
        info: dict[Any, Any] | None = None,
        **options: Any,
    ) -> None:
        if bind is not None or binds is not None:
            raise ConfigError(
                "RoutingSession", "bind", "each transaction finds its own; use a plain Session"
            )
        known = {"freshness": freshness_of(freshness), **(info or {})}
        super().__init__(info=known, **options)
        self._routing = routing
        self._reading: Place | None = None
        self._primary: Place | None = None
        self._asked: Freshness | None = None

    def get_bind(
        self,
        mapper: Any = None,
        *,
        clause: Any = None,
        bind: Engine | Connection | None = None,
        freshness: Freshness | None = None,
        **_: Any,
    ) -> Engine | Connection:
        """Return the connection of this transaction; ``freshness`` None: for a write."""
        if bind is not None:
            return bind
        if not self.in_transaction() and self.autobegin:
            self.begin()  # whose end gives the connection back
        if self._primary is None and (freshness is None or self._reading is None):
            self._begin(freshness)
        elif self._primary is None and freshness != self._asked:
            self._begin(None)
        place = self._primary or self._reading
        assert place is not None
        if freshness is None or freshness.max_age == 0.0:  # a function that writes is asked so
            place.writes()
        return place.connection

    def _begin(self, freshness: Freshness | None) -> None:
        place = self._routing.wait(self._routing.open(None if self.twophase else freshness))
        if place.is_primary or freshness is None:
            self._primary = place
        else:
            # begun here, and so not committed by the session: to a replica that was lost after
            # its last read a COMMIT would fail, when the primary's has been done
            place.connection.begin()
            self._reading, self._asked = place, freshness

    def token(self) -> str:
        """Return what stands for all that was written here: for :func:`toolkit.after` elsewhere."""
        return str(self._routing.wait(self._routing.token()))

    @property
    def node(self) -> str | None:
        """The node that this transaction's next read goes to; None before its first statement."""
        place = self._primary or self._reading
        return place.node if place is not None else None


@event.listens_for(RoutingSession, "do_orm_execute")
def _route(state: ORMExecuteState) -> None:
    session = state.session
    assert isinstance(session, RoutingSession)
    if "freshness" not in state.bind_arguments and is_read(state.statement):
        asked = state.execution_options.get("freshness", session.info["freshness"])
        state.bind_arguments["freshness"] = freshness_of(asked)


@event.listens_for(RoutingSession, "after_commit")
def _committed(session: RoutingSession) -> None:
    if not session.in_nested_transaction() and session._primary and session._primary.has_committed:
        session._routing.wait(session._routing.written.wrote(may_be_stored=True))


@event.listens_for(RoutingSession, "after_transaction_end")
def _ended(session: RoutingSession, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    places = [place for place in (session._reading, session._primary) if place is not None]
    session._reading = session._primary = session._asked = None
    with ExitStack() as stack:
        for place in places:
            stack.callback(session._routing.end, place)


class RoutingAsyncSession(AsyncSession):
    """The asyncio form of :class:`RoutingSession`."""

    sync_session_class = RoutingSession
    sync_session: RoutingSession

    async def token(self) -> str:
        """Return what stands for all that was written here: for :func:`toolkit.after` elsewhere."""
        return str(await self.sync_session._routing.token())

    @property
    def node(self) -> str | None:
        """The node that this transaction's next read goes to; None before its first statement."""
        return self.sync_session.node


class RoutingSessions(sessionmaker[RoutingSession]):
    """Makes sessions, as ``sessionmaker`` does, over engines of its own; threads may share it."""

    def __init__(self, settings: Settings, engine: dict[str, Any], **options: Any) -> None:
        make = partial(engine_for, **engine)
        self.routing = Routing(settings, BlockingDriver, make)
        super().__init__(class_=RoutingSession, routing=self.routing, **options)

    def engine(self, node: str) -> Engine:
        """Return the engine of one node, past all choosing."""
        found = self.routing.engines[node]
        assert isinstance(found, Engine)
        return found

    def __enter__(self) -> RoutingSessions:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        drive(self.routing.close())


class RoutingAsyncSessions(async_sessionmaker[RoutingAsyncSession]):
    """Makes asyncio sessions over engines of its own; the tasks of a loop may share it."""

    def __init__(
        self, settings: Settings, driver: str, engine: dict[str, Any], **options: Any
    ) -> None:
        make = partial(async_engine_for, driver=driver, **engine)
        self.routing = Routing(settings, AsyncDriver, make)
        super().__init__(class_=RoutingAsyncSession, routing=self.routing, **options)

    def engine(self, node: str) -> AsyncEngine:
        """Return the engine of one node, past all choosing."""
        found = self.routing.engines[node]
        assert isinstance(found, AsyncEngine)
        return found

    async def __aenter__(self) -> RoutingAsyncSessions:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self.routing.close()


def routing_session(
    source: Source = None, *, engine: dict[str, Any] | None = None, **options: Any
) -> RoutingSessions:
    """Return what makes sessions over the servers that :func:`toolkit.connect` would use.

    ``options`` are those of ``sessionmaker``, and ``freshness``, the default of each session;
    ``engine`` those of ``create_engine``, for all engines. Nothing is connected before the first
    statement.
    """
    return RoutingSessions(resolve(source), engine or {}, **options)


def routing_async_session(
    source: Source = None,
    *,
    driver: str = "psycopg",
    engine: dict[str, Any] | None = None,
    **options: Any,
) -> RoutingAsyncSessions:
    """Return what makes asyncio sessions, with ``driver`` psycopg or asyncpg."""
    for package in ("greenlet", "asyncpg") if driver == "asyncpg" else ("greenlet",):
        if find_spec(package) is None:
            raise MissingExtra(package, "async", "routing_async_session")
    return RoutingAsyncSessions(resolve(source), driver, engine or {}, **options)
