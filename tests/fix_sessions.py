"""Sessions of every kind over one deployment: one test body drives them all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from fix_replicas import Cluster

from toolkit.config import Settings, load_settings
from toolkit.sqlalchemy import RoutingSession, routing_async_session, routing_session
from toolkit.topologies import RoutingOptions
from toolkit_routing import Node, Shard, Topology

T = TypeVar("T")
KINDS = ("blocking", "psycopg", "asyncpg")


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
