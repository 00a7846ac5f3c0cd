"""Sessions of every kind over one deployment: one test body drives them all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from fix_replicas import Cluster, until
from sqlalchemy import column, func, insert, select, table

from toolkit.config import Settings, load_settings
from toolkit.sqlalchemy import RoutingSession, routing_async_session, routing_session
from toolkit.topologies import RoutingOptions
from toolkit_routing import Node, Shard, Topology

T = TypeVar("T")
KINDS = ("blocking", "psycopg", "asyncpg")
WHERE = select(func.current_setting("port"), func.pg_is_in_recovery())
NOTE = table("note", column("id"), column("words"), schema="toolkit")
ALL = select(NOTE.c.words).order_by(NOTE.c.id)


def settings_of(servers: Cluster, **routing: Any) -> Settings:
    """Return the settings for all nodes; what others wrote may be old, on a slow machine, too."""
    nodes = [Node(name, servers.dsn(name)) for name in servers.nodes]
    given = load_settings(servers.dsn("pg1"), environ={})
    return replace(
        given,
        topology=Topology((Shard("main", nodes[0], tuple(nodes[1:])),)),
        routing=RoutingOptions(**{"deadline": 2.0, "patience": 4.0} | routing),
        cache=replace(given.cache, max_age=30.0),
    )


class Sessions:
    """A factory of one kind; each `run` is a session, with its body in the blocking form."""

    def __init__(self, kind: str, source: Any, **options: Any) -> None:
        self.kind = kind
        self._runner = asyncio.Runner() if kind != "blocking" else None
        if self._runner is None:
            self.made: Any = routing_session(source, **options)
        else:
            self.made = routing_async_session(source, driver=kind, **options)
        self.cluster = self.made.routing.cluster

    def run(self, body: Callable[[RoutingSession], T], **options: Any) -> T:
        """Open a session, give it to a body, and close it."""
        if self._runner is None:
            with self.made(**options) as session:
                return body(session)

        async def within() -> T:
            async with self.made(**options) as session:
                return await session.run_sync(body)

        return self._runner.run(within())

    def run_all(self, bodies: list[Callable[[RoutingSession], None]]) -> None:
        """Give each body a session of its own, all at the same time."""
        if self._runner is None:
            with ThreadPoolExecutor(len(bodies)) as threads:
                list(threads.map(self.run, bodies))
            return

        async def one(body: Callable[[RoutingSession], None]) -> None:
            async with self.made() as session:
                await session.run_sync(body)

        async def everybody() -> None:
            await asyncio.gather(*map(one, bodies))

        self._runner.run(everybody())

    def close(self) -> None:
        if self._runner is None:
            self.made.close()
            return
        self._runner.run(self.made.close())
        self._runner.close()


@contextmanager
def sessions_of(kind: str, source: Any, **options: Any) -> Iterator[Sessions]:
    """Yield a factory of a kind, and close it."""
    made = Sessions(kind, source, **options)
    try:
        yield made
    finally:
        made.close()


def on_replica(session: RoutingSession, **options: Any) -> bool:
    """Whether the next read of a session is answered by a replica."""
    found = session.execute(WHERE, execution_options=options).one()
    return bool(found[1])


def add(session: RoutingSession, *words: str) -> None:
    """Add notes, and commit."""
    for word in words:
        session.execute(insert(NOTE).values(words=word))
    session.commit()


def notes(session: RoutingSession) -> list[str]:
    return list(session.scalars(ALL))


@contextmanager
def opened(kind: str, servers: Cluster, **options: Any) -> Iterator[Sessions]:
    """Yield sessions that know their replicas."""
    with sessions_of(kind, settings_of(servers), **options) as sessions:
        health = sessions.cluster.health

        def is_known(name: str) -> bool:
            sessions.run(on_replica)
            return health.primary is not None and health.nodes[name].as_of > 0

        for name in servers.nodes[1:]:
            until(lambda: is_known(name), f"{name} is known to be fresh")  # noqa: B023
        yield sessions


def replicas(servers: Cluster, count: int = 1) -> Cluster:
    with servers.admin("pg1", "toolkit") as admin:
        admin.execute("CREATE TABLE toolkit.note (id serial PRIMARY KEY, words text)")
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA toolkit TO toolkit")
        admin.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA toolkit TO toolkit")
        admin.execute(
            "CREATE FUNCTION toolkit.jot(text) RETURNS void LANGUAGE sql SECURITY DEFINER "
            "AS 'INSERT INTO toolkit.note (words) VALUES ($1)'"
        )
    servers.wait_replayed()
    return servers
