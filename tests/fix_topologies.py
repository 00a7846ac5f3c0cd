"""Stores over a cluster of a test's own, and callers that go on asking meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any

from fix_replicas import Cluster
from fix_stores import Awaited

import toolkit
from toolkit.config import Settings, load_settings
from toolkit.options import CacheOptions
from toolkit.topologies import RoutingOptions
from toolkit_routing import Node, Shard, Topology

DAY = ("2024-01-01T00:00Z", "2024-01-02T00:00Z")


def settings_of(
    cluster: Cluster,
    *,
    dsns: Mapping[str, str] | None = None,
    cache: CacheOptions | None = None,
    **routing: Any,
) -> Settings:
    """Return the settings of a store over all nodes, or ``dsns``: the first is the primary."""
    given = dsns or {name: cluster.dsn(name) for name in cluster.nodes}
    first, *others = [Node(name, dsn) for name, dsn in given.items()]
    return replace(
        load_settings(first.conninfo, environ={}),
        topology=Topology((Shard("main", first, tuple(others)),)),
        routing=RoutingOptions(**routing),
        cache=cache or CacheOptions(memory=0),
    )


class Looped(Awaited):
    """An AsyncStore on a loop in a thread, so that many threads can have calls on their way."""

    def __init__(self, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = Thread(target=self.loop.run_forever)
        self._thread.start()
        self.store = toolkit.connect_async(settings)

    def run(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result()

    def end(self) -> None:
        self.run(self.store.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def over(colour: str, cluster: Cluster, **options: Any) -> AbstractContextManager[Any]:
    """Open a store of either colour over a cluster's nodes; threads may share it."""
    return threaded(colour, settings_of(cluster, **options))


@contextmanager
def threaded(colour: str, settings: Settings) -> Iterator[Any]:
    """Yield a store of either colour that is called without await, and that threads may share."""
    if colour == "blocking":
        with toolkit.connect(settings) as store:
            yield store
        return
    looped = Looped(settings)
    try:
        looped.run(looped.store.__aenter__())
        yield looped
    finally:
        looped.end()


def router(store: Any) -> Any:
    """What a store of either colour knows of its nodes."""
    return getattr(store, "store", store)._roads.cluster


def metric(minute: int, value: float = 1.0) -> dict[str, Any]:
    """A frame of one point, by its minute of the day."""
    return {"ts": [f"2024-01-01T{minute // 60:02d}:{minute % 60:02d}Z"], "value": [value]}


@dataclass
class Asked:
    """What callers met with: when each call began, what it took, and the errors."""

    calls: list[tuple[float, float]] = field(default_factory=list)
    errors: list[tuple[float, Exception]] = field(default_factory=list)

    def slowest(self, since: float = 0.0) -> float:
        """The longest call that was not over yet at a moment."""
        return max((took for began, took in self.calls if began + took >= since), default=0.0)

    def p99(self, since: float, until: float) -> float:
        """What all but one in a hundred took at most, of the calls that ran in that time."""
        some = sorted(took for began, took in self.calls if began < until and began + took > since)
        return some[int(len(some) * 0.99)]


@contextmanager
def asking(ask: Callable[[], object], callers: int = 1, pause: float = 0.0) -> Iterator[Asked]:
    """Let so many threads call something again and again while the block runs."""
    found, is_over = Asked(), Event()

    def go_on() -> None:
        while not is_over.is_set():
            began = time.monotonic()
            try:
                ask()
                found.calls.append((began, time.monotonic() - began))
            except Exception as error:
                found.errors.append((began, error))
            is_over.wait(pause)

    threads = [Thread(target=go_on) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
