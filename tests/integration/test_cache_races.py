"""Readers that overlap writers see nothing older than they were promised: threads, and real time.

TRAPS 33, 42.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from fix_cache import DAY, HOUR, UNTIL, Counter, minutes
from fix_servers import Database
from fix_stores import COLOURS, cached, open_store

import toolkit
from toolkit.cache import Memory

MAX_AGE = 0.05
SECONDS = 10.0
LEAST_ROUNDS = 2_000
PATIENCE = 100.0  # seconds until so many rounds have overlapped


class Race:
    """What writers and readers of one hour have in common."""

    def __init__(self) -> None:
        # two for SQL, one for each of the stores
        self.counters = [Counter(0), Counter(59), Counter(30, 0), Counter(31, 1)]
        self.stale: list[Any] = []
        self.rounds = self.reads = 0
        self.failures: list[BaseException] = []
        self.began = time.monotonic()
        self._lock = threading.Lock()

    @property
    def goes_on(self) -> bool:
        ran = time.monotonic() - self.began
        is_done = ran > SECONDS and self.rounds >= LEAST_ROUNDS
        return not (self.failures or is_done or ran > PATIENCE)

    def judge(self, who: int, fresh: str | None, called: float, cols: Any) -> None:
        answered = time.monotonic()
        seen = dict(zip(cols.instants.tolist(), cols["value"].tolist(), strict=True))
        is_near = False
        for counter in self.counters:
            is_own = fresh is None and counter.who == who
            since = called if fresh == "strong" or is_own else called - MAX_AGE
            value = seen[int(counter.at.timestamp()) * 1_000_000]
            if value < counter.floor(since):
                self.stale.append((who, fresh, counter.minute, value, counter.floor(since)))
            is_near = is_near or bool(counter.near(called, answered))
        with self._lock:
            self.reads += 1
            self.rounds += is_near

    def thread(self, run: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread


def asked(number: int) -> str | None:
    return (None, "strong")[number % 2]


def count_by_sql(race: Race, counter: Counter, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as sql:
        while race.goes_on:
            value = len(counter.committed) + 1
            sql.execute("UPDATE toolkit.metrics SET value = %s WHERE ts = %s", [value, counter.at])
            counter.committed.append(time.monotonic())
            time.sleep(0.002)  # or readers would have no processor


def frame_of(counter: Counter) -> dict[str, Any]:
    return {"ts": [counter.at], "value": [len(counter.committed) + 1.0]}


def count_by_store(race: Race, counter: Counter, store: toolkit.Store) -> None:
    while race.goes_on:
        store.write("metrics", frame_of(counter), series="a")
        counter.committed.append(time.monotonic())
        time.sleep(0.01)


def read(race: Race, store: toolkit.Store, number: int) -> None:
    while race.goes_on:
        fresh, called = asked(number), time.monotonic()
        race.judge(0, fresh, called, store.read("metrics", "a", HOUR, UNTIL, freshness=fresh))


async def run_asyncio(race: Race, store: toolkit.AsyncStore) -> None:
    async def count() -> None:
        counter = race.counters[3]
        while race.goes_on:
            await store.write("metrics", frame_of(counter), series="a")
            counter.committed.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def read(number: int) -> None:
        while race.goes_on:
            fresh, called = asked(number), time.monotonic()
            cols = await store.read("metrics", "a", HOUR, UNTIL, freshness=fresh)
            race.judge(1, fresh, called, cols)

    async with store, asyncio.TaskGroup() as group:
        group.create_task(count())
        for number in range(4):
            group.create_task(read(number))


def test_trap_reads_that_overlap_writes_are_never_older_than_promised(database: Database) -> None:
    options = cached(database.dsn, max_age=MAX_AGE)
    with toolkit.connect(options) as store:
        store.write("metrics", minutes(2), series="a")
        ts = [HOUR + timedelta(minutes=n) for n in range(60)]
        store.write("metrics", {"ts": ts, "value": [0.0] * 60}, series="a")
        race = Race()
        one, two, three, _ = race.counters
        threads = [
            race.thread(lambda: count_by_sql(race, one, database.dsn)),
            race.thread(lambda: count_by_sql(race, two, database.dsn)),
            race.thread(lambda: count_by_store(race, three, store)),
            race.thread(lambda: asyncio.run(run_asyncio(race, toolkit.connect_async(options)))),
            *[race.thread(lambda n=n: read(race, store, n)) for n in range(4)],  # type: ignore[misc]
        ]
        for thread in threads:
            thread.join()
    assert race.failures == []
    assert race.stale == []
    assert race.rounds >= LEAST_ROUNDS


# -- one after the other, where threads meet but rarely -----------------------------------------


@contextmanager
def arrivals(driver: Any) -> Iterator[threading.Semaphore]:
    """Tell of everybody who is about to fetch a span, or to wait for who does."""
    real, arrived = driver.once, threading.Semaphore(0)

    async def once(key: Any, make: Any, timeout: float | None = None) -> Any:
        if key[0] == "fill":
            arrived.release()
        return await real(key, make, timeout)

    driver.once = once
    try:
        yield arrived
    finally:
        del driver.once


class Meeting:
    """A reader is held up at a moment of its fetch; a point changes, and another one comes."""

    def __init__(self, store: toolkit.Store, sql: psycopg.Connection) -> None:
        self.store, self.sql = store, sql
        self.found: list[float] = []
        self.second = threading.Thread(target=self.read)
        self.done = False

    def read(self) -> None:
        cols = self.store.read("metrics", "a", *DAY, freshness="strong")
        self.found.append(cols["value"][0])

    def take_place(self, arrived: threading.Semaphore) -> None:
        if not self.done:
            self.done = True
            assert arrived.acquire(timeout=10)  # the first one's own
            self.sql.execute("UPDATE metrics SET value = 77 WHERE ts = '2024-03-01Z'")
            self.second.start()
            assert arrived.acquire(timeout=10)
            time.sleep(0.05)  # from there to where it waits


@pytest.mark.parametrize("moment", ["before it is kept", "after it is kept"])
def test_trap_who_joins_a_fetch_sees_what_was_committed_before_the_call(
    database: Database, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with toolkit.connect(cached(database.dsn)) as store:
        store.write("metrics", minutes(2), series="a")
        store.read("metrics", "a", "2024-03-02T00:00Z", "2024-03-02T01:00Z")
        meeting = Meeting(store, sql)
        real = Memory.end
        with arrivals(store._roads.driver) as arrived:

            def end(self: Memory, fill: Any, spans: Any) -> bool:
                if moment == "before it is kept":
                    meeting.take_place(arrived)
                is_kept = real(self, fill, spans)
                meeting.take_place(arrived)
                return is_kept

            monkeypatch.setattr(Memory, "end", end)
            first = store.read("metrics", "a", *DAY)
            meeting.second.join()
        assert first["value"][0] == 0.0
        assert meeting.found == [77.0]


def test_spans_beside_an_old_cursor_are_not_taken_while_a_look_is_under_way(
    database: Database, redis_url: str
) -> None:
    with toolkit.connect(cached(database.dsn, redis=redis_url, max_age=60)) as store:
        store.write("metrics", minutes(2), series="a")
        store.read("metrics", "a", *DAY, freshness="strong")
        store.read("metrics", "a", *DAY)
        cache, driver = store._roads.cache, store._roads.driver
        assert cache is not None
        assert cache.shared is not None
        shelf: Any = cache.shared.shelf

        async def out(*args: Any) -> None:
            return None

        shelf.advance = out  # Redis is away for a moment, right after a write of our own
        store.write("metrics", {"ts": [DAY[0]], "value": [77.0]}, series="a")
        del shelf.advance
        real, is_first, found = driver.fetch, [True], []

        async def fetch(statement: bytes, *args: Any, **options: Any) -> Any:
            if b"pg_current_snapshot() AS now" in statement and is_first:
                is_first.clear()  # as another thread would, meanwhile
                found.append(store.read("metrics", "a", *DAY)["value"][0])
            return await real(statement, *args, **options)

        driver.fetch = fetch  # type: ignore[method-assign]
        assert store.read("metrics", "a", *DAY, freshness="strong")["value"][0] == 77.0
        assert found == [77.0]


@pytest.mark.parametrize("colour", COLOURS)
def test_spans_taken_while_a_look_deletes_them_are_not_remembered(
    database: Database, redis_url: str, sql: psycopg.Connection, colour: str
) -> None:
    with open_store(colour, cached(database.dsn, redis=redis_url, redis_timeout=5.0)) as store:
        store.write("metrics", minutes(2), series="a")
        store.read("metrics", "a", *DAY, freshness="strong")
        sql.execute("UPDATE metrics SET value = 77 WHERE ts = '2024-03-01Z'")
        inner = getattr(store, "store", store)
        shelf, found = inner._roads.cache.shared.shelf, []
        real = shelf.advance

        async def advance(*args: Any) -> Any:
            inner._roads.cache.memory.clear()  # as if this process had not needed it for long
            cols = inner.read("metrics", "a", *DAY, freshness=toolkit.bounded(60))
            cols = await cols if inspect.isawaitable(cols) else cols
            found.append((cols["value"][0], cols.plan.sources))
            return await real(*args)

        shelf.advance = advance
        assert store.read("metrics", "a", *DAY, freshness="strong")["value"][0] == 77.0
        assert found == [(0.0, {"redis": 1440})]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_cursor_that_saw_less_is_known_by_the_transactions_it_did_not_see(
    database: Database, redis_url: str, sql: psycopg.Connection, colour: str
) -> None:
    settings = cached(database.dsn, redis=redis_url, redis_timeout=5.0)
    with (
        open_store("blocking", settings) as other,
        open_store(colour, settings) as store,
        psycopg.connect(database.dsn) as oldest,
        psycopg.connect(database.dsn) as late,
    ):
        store.write("metrics", minutes(2), series="a")
        store.read("metrics", "a", *DAY)
        other.read("metrics", "a", *DAY)
        # the oldest goes on, and a newer one is done first: the bounds of snapshots stay
        oldest.execute("SELECT pg_current_xact_id()")
        late.execute("UPDATE toolkit.metrics SET value = 77 WHERE ts = '2024-03-01Z'")
        sql.execute("UPDATE metrics SET value = 5 WHERE ts = '2024-03-01T00:01Z'")
        assert other.read("metrics", "a", *DAY, freshness="strong")["value"][0] == 0.0
        late.commit()
        shelf = getattr(store, "store", store)._roads.cache.shared.shelf

        async def out(*args: Any) -> None:
            return None

        shelf.advance = out
        store.read("metrics", "a", "2020-01-01Z", "2020-01-01Z", freshness="strong")
        del shelf.advance
        assert store.read("metrics", "a", *DAY, freshness="strong")["value"][0] == 77.0


@pytest.mark.parametrize("colour", COLOURS)
def test_a_cursor_that_is_heard_of_late_is_not_trusted(
    database: Database, redis_url: str, colour: str
) -> None:
    settings = cached(database.dsn, redis=redis_url, redis_timeout=5.0, max_age=60)
    with open_store("blocking", settings) as other, open_store(colour, settings) as store:
        store.write("metrics", minutes(2), series="a")
        store.read("metrics", "a", *DAY)
        other.read("metrics", "a", *DAY)
        inner = getattr(store, "store", store)
        inner._roads.cache.memory.clear()
        shelf = inner._roads.cache.shared.shelf
        real = shelf.look

        async def out(*args: Any) -> None:
            return None

        async def look(*args: Any) -> Any:
            del shelf.look
            other.write("metrics", {"ts": ["2024-03-02Z"], "value": [5.0]}, series="a")
            looked = await real(*args)
            shelf.advance = out  # Redis is away for a moment
            written = inner.write("metrics", {"ts": [DAY[0]], "value": [77.0]}, series="a")
            if inspect.isawaitable(written):
                await written
            del shelf.advance
            return looked

        shelf.look = look
        store.read("metrics", "a", *DAY)
        assert store.read("metrics", "a", *DAY)["value"][0] == 77.0
