"""What other processes do with a store: started anew, they share servers with a test, no more."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import psycopg
from fix_cache import HOUR, UNTIL, Counter

import toolkit
from toolkit.config import Settings

WORKERS = 4  # threads, or tasks, of a reader
PATIENCE = 60.0
_SPAWN = multiprocessing.get_context("spawn")
T = TypeVar("T")


class Process(Generic[T]):
    """Another process, and the line to it."""

    def __init__(self, role: Callable[..., None], *args: Any) -> None:
        self.line, there = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=role, args=(there, *args), daemon=True)
        self._process.start()
        there.close()

    def say(self, word: Any) -> None:
        self.line.send(word)

    def hear(self) -> T:
        """Return what it says next; EOFError if it has died."""
        assert self.line.poll(PATIENCE), "it says nothing"
        said: T = self.line.recv()
        return said

    def kill(self) -> None:
        """End it as an operating system does that has no memory left."""
        self._process.kill()
        self._process.join()


@contextmanager
def started(*roles: tuple[Any, ...]) -> Iterator[list[Process[Any]]]:
    """Start a process for each role, and see that each is ready."""
    processes = [Process[Any](role, *args) for role, *args in roles]
    try:
        for process in processes:
            assert process.hear() == "ready"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.line.close()


# -- many that ask for the same -----------------------------------------------------------------


def ask(line: Connection, colour: str, settings: Settings, callers: int, span: Any) -> None:
    """Open a store, wait for the word, and ask for one span as so many callers at once."""
    if colour == "blocking":
        _ask_blocking(line, settings, callers, span)
    else:
        asyncio.run(_ask_asyncio(line, settings, callers, span))


def _ask_blocking(line: Connection, settings: Settings, callers: int, span: Any) -> None:
    with toolkit.connect(settings) as store, ThreadPoolExecutor(callers) as pool:
        store.read("metrics", "a", span[0], span[0])
        line.send("ready")
        line.recv()
        found = pool.map(lambda _: store.read("metrics", "a", *span)["value"].sum(), range(callers))
        line.send([float(each) for each in found])
        line.recv()


async def _ask_asyncio(line: Connection, settings: Settings, callers: int, span: Any) -> None:
    async with toolkit.connect_async(settings) as store:
        await store.read("metrics", "a", span[0], span[0])
        line.send("ready")
        await asyncio.to_thread(line.recv)
        found = await asyncio.gather(*[store.read("metrics", "a", *span) for _ in range(callers)])
        line.send([float(each["value"].sum()) for each in found])
        await asyncio.to_thread(line.recv)


# -- one that writes, one that reads ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """One read: what it was promised, when it was called and answered, and what it saw."""

    fresh: str | None
    called: float
    answered: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, fresh: str | None, called: float, cols: Any) -> Seen:
        """Return what a read has seen of the counters."""
        answered = time.monotonic()
        found = dict(zip(cols.instants.tolist(), cols["value"].tolist(), strict=True))
        at = [int(counter.at.timestamp()) * 1_000_000 for counter in counters()]
        return cls(fresh, called, answered, tuple(found[ts] for ts in at))


def counters() -> list[Counter]:
    """The points that a writer counts up: one by SQL, one through its store."""
    return [Counter(0), Counter(30, 1)]


def count_up(line: Connection, settings: Settings, seed: int) -> None:
    """Count, and tell when asked when each value was there and what own reads have seen."""
    dice, found = random.Random(seed), counters()
    seen: list[Seen] = []
    dsn = str(settings.dsn)
    with toolkit.connect(settings) as store, psycopg.connect(dsn, autocommit=True) as sql:
        store.read("metrics", "a", HOUR, UNTIL)
        line.send("ready")
        for number in count():
            if line.poll():
                if not line.recv():
                    return
                line.send((found, seen, store.stats()))
                seen = []
            counter = found[number % 2]
            value = len(counter.committed) + 1.0
            if counter.who is None:
                update = "UPDATE toolkit.metrics SET value = %s WHERE ts = %s"
                sql.execute(update, [value, counter.at])
            else:
                frame = {"ts": [counter.at], "value": [value]}
                store.write("metrics", frame, series="a")
            counter.committed.append(time.monotonic())
            if number % 4 == 1:
                called = time.monotonic()
                seen.append(Seen.of(None, called, store.read("metrics", "a", HOUR, UNTIL)))
            time.sleep(dice.uniform(0.0, 0.004))  # or readers would have no processor


def watch(line: Connection, colour: str, settings: Settings) -> None:
    """Read as many times as told, again and again; tell what was seen, and the counters."""
    if colour == "blocking":
        _watch_blocking(line, settings)
    else:
        asyncio.run(_watch_asyncio(line, settings))


def _watch_blocking(line: Connection, settings: Settings) -> None:
    with toolkit.connect(settings) as strong, toolkit.connect(settings) as session:
        stores = [("strong", strong), (None, session)]

        def read(asked: tuple[str | None, toolkit.Store]) -> Seen:
            fresh, store = asked
            called = time.monotonic()
            cols = store.read("metrics", "a", HOUR, UNTIL, freshness=fresh)
            return Seen.of(fresh, called, cols)

        with ThreadPoolExecutor(WORKERS) as pool:
            line.send("ready")
            while rounds := line.recv():
                seen = list(pool.map(read, stores * rounds))
                line.send((seen, [strong.stats(), session.stats()]))


async def _watch_asyncio(line: Connection, settings: Settings) -> None:
    async with (
        toolkit.connect_async(settings) as strong,
        toolkit.connect_async(settings) as session,
    ):
        stores = [("strong", strong), (None, session)]

        async def read(left: Iterator[tuple[str | None, toolkit.AsyncStore]]) -> list[Seen]:
            seen = []
            for fresh, store in left:
                called = time.monotonic()
                cols = await store.read("metrics", "a", HOUR, UNTIL, freshness=fresh)
                seen.append(Seen.of(fresh, called, cols))
            return seen

        line.send("ready")
        while rounds := await asyncio.to_thread(line.recv):
            left = iter(stores * rounds)
            found = await asyncio.gather(*[read(left) for _ in range(WORKERS)])
            line.send(([s for each in found for s in each], [strong.stats(), session.stats()]))
