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
from toolkit.query import SESSION, Freshness, Query
from toolkit.reader import Reader
from toolkit.statements import compose
from toolkit.streaming import Streamer
from toolkit.work import Reach, always_there, with_time_left
from toolkit.written import Written
from toolkit_routing import NOWHERE, Position, Token, Want

T = TypeVar("T")
_log = logging.getLogger("toolkit.cluster")
_TURN = 0.01  # seconds between looks whether a replica has come to a token
_MOST_MET = 10_000


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
        self._driver, self._cache, self._wait = driver, cache, settings.routing.wait
        self._met: set[str] = set()
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
        await self._cluster.read(
            Want(max_age=self._max_age), lambda name: self._names[name].load(), None
        )

    async def look_up(self, job: Callable[[Directory], Coroutine[Any, Any, T]]) -> T:
        """Run a job over the names as a node has them that is fresh enough for a session."""
        cluster = self._cluster
        if cluster is None:
            return await job(self._names[""])
        await cluster.ready()
        want = await want_of(SESSION, cluster, self.written, self._max_age)
        found, _ = await cluster.read(want, lambda name: job(self._names[name]), None)
        return found

    async def ask(
        self,
        query: Query,
        job: Callable[[Reading, Query], Coroutine[Any, Any, T]],
        kind: str = "",
    ) -> T:
        """Run a job over a node that is as fresh as the query wants, and over another if it fails.

        It is chosen as for that ``kind`` of query; for analysis where it is one of a batch.
        Without a primary that answers nobody can tell what has changed: then nothing cached is
        believed.
        """
        cluster, token = self._cluster, query.freshness.token
        if cluster is None:
            if token is not None:
                await self._meet(token)
            return await job(self.home, query)
        started = time.perf_counter()

        async def ask(name: str) -> T:
            reading = self._of[name]
            if not query.is_cached or cluster.health.is_heard:
                try:
                    return await job(reading, with_time_left(query, started))
                except Unavailable as error:
                    if not query.is_cached or error.node == name:
                        raise
                    _log.info("read without the cache: %s", error)
            return await job(reading, with_time_left(replace(query, is_cached=False), started))

        await cluster.ready()
        kind = kind or ("analysis" if query.priority == "batch" else "small")
        want = await want_of(query.freshness, cluster, self.written, self._max_age, kind)
        if token is not None and self._cache is not None:
            self._cache.follower.hear(token)
        found, _ = await cluster.read(want, ask, query.timeout)
        return found

    async def _meet(self, token: Token) -> None:
        """Return when the only server there is has what a token stands for; it may be a replica."""
        text = str(token)
        if text in self._met:
            return
        position = told(token, (await self._driver.open()).sysid)
        if self._cache is not None:
            self._cache.follower.hear(token)
        until = time.monotonic() + self._wait
        while True:
            (is_replica, lsn), *_ = await self._driver.fetch(compose("routing/look_at_replica"))
            if not is_replica or (lsn is not None and lsn >= position.lsn):
                break
            if time.monotonic() > until:
                raise Unavailable(
                    f"{self._driver.node}: this replica has not come to the token within "
                    f"{self._wait:g} s; read from the primary, or give [[shards]]"
                )
            await self._driver.pause(_TURN)
        if len(self._met) >= _MOST_MET:
            self._met.clear()
        self._met.add(text)


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
        position = later(position, told(freshness.token, cluster.health.sysid))
    return Want(position, max_age, kind=kind, wrote_at=written.wrote_at)


def told(token: Token, sysid: int | None) -> Position:
    """Return what a token says of a cluster; QueryError if it says nothing of it.

    Whatever its shard is called there: a cluster is known by its system identifier, if it tells.
    """
    for position in token.positions.values():
        if sysid is None or position.sysid == sysid:
            return position
    others = ", ".join(f"{name!r} (system {at.sysid})" for name, at in token.positions.items())
    raise QueryError(
        f"freshness: the token is of {others or 'no cluster'}, not of this one (system {sysid}); "
        "pass on tokens only between stores of the same servers"
    )


def later(one: Position | None, other: Position | None) -> Position | None:
    """Return the later of two positions.

    What has survived of a timeline is on the next one before all that was written there.
    """
    if one is None or other is None:
        return one or other
    if NOWHERE in (one.lsn, other.lsn):
        return Position(one.sysid, max(one.timeline, other.timeline), NOWHERE)
    return max(one, other, key=lambda p: (p.timeline, p.lsn))
