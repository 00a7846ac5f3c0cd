"""One test body for both colours of a shelf, and what every lost server has to show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fix_cache_servers import CacheServer

from toolkit.drivers import drive
from toolkit.drivers.shelf import Shelf
from toolkit.drivers.shelf_aio import AsyncWire
from toolkit.drivers.shelf_blocking import BlockingWire
from toolkit.drivers.shelf_wire import ShelfOptions

PATIENT = ShelfOptions(timeout=2.0)  # where no fault is meant, none may come from a busy machine
BRISK = ShelfOptions(timeout=0.05, longest_pause=0.2, locked_pause=0.2)
DEADLINE_S = 10.0


class Client:
    """A shelf of either colour that is called without await."""

    def __init__(self, colour: str, url: str, options: ShelfOptions) -> None:
        self.runner = asyncio.Runner() if colour == "asyncio" else None
        wire = AsyncWire(url, options) if self.runner else BlockingWire(url, options)
        self.shelf = Shelf(wire)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.run(getattr(self.shelf, name)(*args, **options))

    def run(self, awaitable: Any) -> Any:
        return self.runner.run(awaitable) if self.runner else drive(awaitable)

    def scan(self, pattern: str, count: int) -> list[str]:
        async def collect() -> list[str]:
            return [key async for keys in self.shelf.scan(pattern, count) for key in keys]

        return self.run(collect())

    def until(self, is_so: Callable[[], Any]) -> None:
        """Wait for something that happens beside the callers; an event loop runs meanwhile."""
        deadline = time.monotonic() + DEADLINE_S

        while not is_so():
            assert time.monotonic() < deadline, f"not in {DEADLINE_S} s: {self.stats}"
            if self.runner:
                self.run(asyncio.sleep(0.005))
            else:
                time.sleep(0.005)

    @property
    def stats(self) -> dict[str, float]:
        return self.shelf.stats()

    def timed(self, times: int = 1) -> float:
        """Look so many times in vain; return the seconds."""

        async def look() -> float:
            started = time.perf_counter()
            for _ in range(times):
                assert await self.shelf.look("cursor", ["a"]) is None
            return time.perf_counter() - started

        return self.run(look())

    def end(self) -> None:
        self.run(self.shelf.close())
        if self.runner:
            self.runner.close()


@contextmanager
def opened(colour: str, url: str, options: ShelfOptions = BRISK) -> Iterator[Client]:
    client = Client(colour, url, options)
    try:
        yield client
    finally:
        client.end()


def warm_up(client: Client) -> None:
    """Look until that goes well: a busy machine may be slow at first."""
    deadline = time.monotonic() + DEADLINE_S
    while client.look("cursor", ["a"]) is None:
        assert time.monotonic() < deadline
        client.until(lambda: not client.shelf.is_out)


def assert_lost_cheaply(client: Client, reason: str) -> None:
    """The first caller may lose a timeout, later ones nothing."""
    assert client.timed() < 0.2
    assert client.shelf.is_out
    assert client.stats[f"errors_{reason}"] >= 1
    assert client.timed(100) < 0.02


def assert_back(client: Client) -> None:
    client.until(lambda: not client.shelf.is_out)
    warm_up(client)
    assert client.lease("lease after it", "t", 60_000) is True


@contextmanager
def configured(server: CacheServer, **settings: object) -> Iterator[None]:
    before = {}
    for name, value in settings.items():
        key = name.replace("_", "-")
        before |= server.admin.config_get(key)
        server.admin.config_set(key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            server.admin.config_set(key, value)
