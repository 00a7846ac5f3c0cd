"""The roads of reads over each node, and which of them a read takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from toolkit.cached import Cache
from toolkit.cluster import Cluster
from toolkit.config import Settings
from toolkit.directory import Directory
from toolkit.drivers import Driver
from toolkit.errors import QueryError, Unavailable
from toolkit.merging import Run
from toolkit.newest import Newest
from toolkit.partitions import NativePartitioning
from toolkit.query import Freshness, Query
from toolkit.reader import Reader
from toolkit.streaming import Streamer
from toolkit.work import Reach, always_there, with_time_left
from toolkit.written import Written
from toolkit_routing import Position, Token, Want

T = TypeVar("T")
_log = logging.getLogger("toolkit.cluster")


@dataclass(frozen=True, slots=True)
class Reading:
    """The roads of reads over one node."""

    reader: Reader
    streamer: Streamer
    newest: Newest

    @classmethod
    def over(
        cls,
        driver: Driver,
        directory: Directory,
        settings: Settings,
        cache: Cache | None,
        run: Run,
        reach: Reach = always_there,
    ) -> Reading:
        """Return those over a driver."""
        limits, prices, parallel = settings.limits, settings.prices, settings.parallel
        reader = Reader(driver, directory, limits, parallel, cache, prices, run, reach)
        return cls(
            reader,
            Streamer(driver, directory, limits, prices, run),
            Newest(driver, directory, NativePartitioning(driver, directory), reader),
        )


class Readings:
    """The reads of a store: over its only node, or over the one of a cluster that suits each."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        settings: Settings,
        cache: Cache | None,
        run: Run,
        cluster: Cluster | None = None,
    ) -> None:
        self.home = Reading.over(driver, directory, settings, cache, run)
        self._cluster = cluster
        self._max_age = settings.cache.max_age
        self._of: dict[str, Reading] = {}
        self._names = {"": directory}
        if cluster is None:
            return
        self.written = Written(cluster)
        for name, node in cluster.drivers.items():
            reach = partial(cluster.reached, name)
            names = self._names[name] = directory.over(node)
            self._of[name] = Reading.over(node, names, settings, cache, run, reach)
            self._of[name].reader.shortcuts = self.home.reader.shortcuts

    async def learn(self) -> None:
        """Read which datasets there are, from whichever node."""
        if self._cluster is None:
            await self._names[""].load()
            return
        await self._cluster.read(Want(), lambda name: self._names[name].load(), None)

    async def ask(
        self,
        query: Query,
        job: Callable[[Reading, Query], Coroutine[Any, Any, T]],
        kind: str = "small",
    ) -> T:
        """Run a job over a node that is as fresh as the query wants, and over another if it fails.

        Without a primary that answers nobody can tell what has changed: then nothing cached is
        believed.
        """
        cluster = self._cluster
        if cluster is None:
            return await job(self.home, query)
        started, uncached = time.perf_counter(), replace(query, is_cached=False)

        async def ask(name: str) -> T:
            left = partial(with_time_left, started=started)
            if cluster.health.is_heard:
                try:
                    return await job(self._of[name], left(query))
                except Unavailable as error:
                    if not query.is_cached or error.node == name:
                        raise
                    _log.info("read without the cache: %s", error)
            return await job(self._of[name], left(uncached))

        await cluster.ready()
        want = await want_of(query.freshness, cluster, self.written, self._max_age, kind)
        found, _ = await cluster.read(want, ask, query.timeout)
        return found


async def want_of(
    freshness: Freshness, cluster: Cluster, written: Written, max_age: float, kind: str = "small"
) -> Want:
    """Return what a read of a freshness must see on the node that answers it."""
    if freshness.max_age == 0.0:
        return Want(is_strict=True, is_primary=True, kind=kind)
    if not freshness.sees_own:
        return Want(None, freshness.max_age, is_strict=True, kind=kind)
    position = await written.wanted()
    if freshness.token is not None:
        position = later(position, told(freshness.token, cluster))
    return Want(position, max_age, kind=kind, wrote_at=written.wrote_at)


def told(token: Token, cluster: Cluster) -> Position | None:
    """Return what a token says of a shard; QueryError if it is of another cluster."""
    found = token.positions.get(cluster.shard.name)
    sysid = cluster.health.sysid
    if found is not None and sysid is not None and found.sysid != sysid:
        raise QueryError(
            f"freshness: the token is of another cluster than shard {cluster.shard.name!r} "
            f"(system {found.sysid}, not {sysid}); pass on tokens only between stores of one"
        )
    return found


def later(one: Position | None, other: Position | None) -> Position | None:
    """Return the later of two positions; of two timelines, one that no replica can have."""
    if one is None or other is None:
        return one or other
    if one.timeline != other.timeline:
        return Position(one.sysid, -1, 0)
    return max(one, other, key=lambda p: p.lsn)
