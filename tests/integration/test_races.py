"""Races by construction: writers and refreshers interleaved around their commits.

TRAPS 16, 17, 20, 21, 57. Values are whole numbers, so that sums are exact in any order.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Event
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_servers import Database, share

import toolkit
from toolkit import refresher
from toolkit.drivers import drive
from toolkit.drivers.inside import InsideDriver
from toolkit.query import build_query
from toolkit.reader import Reader

T0 = datetime(2024, 3, 1, tzinfo=UTC)
START, END = T0 - timedelta(days=20), T0 + timedelta(days=20)
LEVELS = ("5m", "1h", "1d")
MINUTE = timedelta(minutes=1)


def bars(read: Callable[..., Any], step: str, strategy: str, series: Any = "a") -> list[Any]:
    cols = read("metrics", series, START, END, step=step, strategy=strategy)
    found = [cols.series.tolist(), cols.instants.tolist()]
    found += [np.asarray(cols.raw(name)).tolist() for name in sorted(cols)]
    return list(zip(*found, strict=True))


def levels_that_lie(store: Any, series: Any = "a") -> list[str]:
    """The checker: at which steps a rollup answers something else than the points."""
    return [
        step
        for step in LEVELS
        if bars(store.read, step, "downsampled", series)
        != bars(store.read, step, "aggregated", series)
    ]


def rows_from_points(store: Any, step: str, series: Any = "a") -> int:
    cols = store.read("metrics", series, START, END, step=step, strategy="downsampled")
    touched: int = cols.plan.sources["points"]
    return touched


def put(connection: psycopg.Connection, at: datetime, value: float, series_id: int) -> None:
    connection.execute(
        "INSERT INTO toolkit.metrics (series_id, ts, value) VALUES (%s, %s, %s) "
        "ON CONFLICT (series_id, ts) DO UPDATE SET value = excluded.value",
        (series_id, at, value),
    )


def remove(connection: psycopg.Connection, at: datetime, series_id: int) -> None:
    connection.execute(
        "DELETE FROM toolkit.metrics WHERE series_id = %s AND ts = %s", (series_id, at)
    )


# -- the checker itself ---------------------------------------------------------------------------


def test_the_checker_sees_a_lost_change(blocking: toolkit.Store, sql: psycopg.Connection) -> None:
    """Negative control: without its row in the change log, a late point is missed."""
    blocking.write("metrics", {"ts": [T0, T0 + 3 * MINUTE], "value": [1.0, 2.0]}, series="a")
    blocking.refresh("metrics")
    put(sql, T0 + MINUTE, 9.0, blocking.series("metrics")[0].id)
    assert levels_that_lie(blocking) == []
    assert sql.execute("DELETE FROM metrics_log").rowcount == 1
    assert levels_that_lie(blocking) == list(LEVELS)


# -- every place in a refresh ---------------------------------------------------------------------


class Stepping:
    """Calls ``at(k)`` after the k-th statement or commit of everything a driver does."""

    def __init__(self, driver: Any, at: Callable[[int], None]) -> None:
        self._begin = driver.transaction
        self._at = at
        self._numbers = count()

    def step(self) -> None:
        self._at(next(self._numbers))

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[Any]:
        async with self._begin(**options) as inner:
            yield _Inside(inner, self.step)
        self.step()


class _Inside:
    def __init__(self, transaction: Any, step: Callable[[], None]) -> None:
        self._transaction = transaction
        self._step = step

    async def fetch(self, *args: Any) -> Any:
        rows = await self._transaction.fetch(*args)
        self._step()
        return rows

    async def execute(self, *args: Any) -> Any:
        touched = await self._transaction.execute(*args)
        self._step()
        return touched

    def savepoint(self) -> Any:
        return self._transaction.savepoint()


def stepped(store: toolkit.Store, at: Callable[[int], None]) -> int:
    """Refresh, and call ``at`` at each place in it; return how many there were."""
    driver: Any = store._roads.driver
    seen = []

    def note(number: int) -> None:
        seen.append(number)
        at(number)

    driver.transaction = Stepping(driver, note).transaction
    try:
        store.refresh("metrics")
    finally:
        del driver.transaction
    return len(seen)


def _changes(series_id: int) -> dict[str, Callable[[psycopg.Connection], object]]:
    return {
        "point in a changed bucket": lambda c: put(c, T0 + MINUTE, 50, series_id),
        "point in a clean bucket": lambda c: put(c, T0 + timedelta(days=2), 60, series_id),
        "bucket emptied": lambda c: remove(c, T0 + timedelta(days=3), series_id),
        "value replaced": lambda c: put(c, T0, -70, series_id),
    }


def _prepare(store: toolkit.Store) -> None:
    store.delete("metrics", "a", START, END)
    ts = [T0, T0 + 6 * MINUTE, T0 + timedelta(days=3)]
    store.write("metrics", {"ts": ts, "value": [1.0, 2.0, 3.0]}, series="a")
    store.refresh("metrics")
    store.write("metrics", {"ts": [T0 + 2 * MINUTE], "value": [4.0]}, series="a")


@pytest.fixture
def places(blocking: toolkit.Store) -> int:
    """How many places a refresh has at which something could happen."""
    blocking.write("metrics", {"ts": [T0], "value": [1.0]}, series="a")
    _prepare(blocking)
    return stepped(blocking, lambda number: None)


@pytest.mark.parametrize(
    "change",
    ["point in a changed bucket", "point in a clean bucket", "bucket emptied", "value replaced"],
)
def test_a_change_and_its_commit_at_any_two_places_of_a_refresh(
    blocking: toolkit.Store, database: Database, places: int, change: str
) -> None:
    assert places > 15
    act = _changes(blocking.series("metrics")[0].id)[change]
    grid = [(i, j) for i in range(places) for j in range(i, places)]
    every = max(1, len(grid) // share(40, database.version))  # a part, another for each change
    with (
        toolkit.connect(database.dsn) as watcher,
        psycopg.connect(database.dsn) as writer,
    ):
        for written, committed in grid[hash_of(change) % every :: every]:
            _prepare(blocking)

            def at(number: int, written: int = written, committed: int = committed) -> None:
                if number == written:
                    act(writer)
                if number == committed:
                    writer.commit()
                    assert levels_that_lie(watcher) == [], (written, committed)

            stepped(blocking, at)
            writer.commit()
            assert levels_that_lie(watcher) == [], (written, committed)
            blocking.refresh("metrics")
            assert levels_that_lie(watcher) == [], (written, committed)
            assert [rows_from_points(watcher, step) for step in LEVELS] == [0, 0, 0]


def hash_of(text: str) -> int:
    return sum(text.encode())


def test_a_refresh_that_dies_at_any_place_is_taken_over(
    blocking: toolkit.Store, database: Database, places: int
) -> None:
    class Killed(Exception):
        pass

    with toolkit.connect(database.dsn) as other:
        for place in range(places):
            _prepare(blocking)

            def at(number: int, place: int = place) -> None:
                if number == place:
                    raise Killed

            with suppress(Killed):
                stepped(blocking, at)
            assert levels_that_lie(other) == [], place
            other.refresh("metrics")
            assert levels_that_lie(other) == [], place
            assert [rows_from_points(other, step) for step in LEVELS] == [0, 0, 0]


def test_another_whole_refresh_fits_between_any_two_transactions_of_one(
    blocking: toolkit.Store, database: Database, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresher, "SLICE", timedelta(seconds=1))
    driver: Any = blocking._roads.driver
    begin = driver.transaction
    with toolkit.connect(database.dsn) as other:
        for place in range(25):
            _prepare(blocking)
            between = count()

            @asynccontextmanager
            async def transaction(
                place: int = place, between: Iterator[int] = between, **options: Any
            ) -> AsyncIterator[Any]:
                async with begin(**options) as inner:
                    yield inner
                if next(between) == place:
                    late = {"ts": [T0 + timedelta(days=5)], "value": [7.0]}
                    other.write("metrics", late, series="a")
                    other.refresh("metrics")
                    other.delete("metrics", "a", T0 + 6 * MINUTE, T0 + 7 * MINUTE)

            driver.transaction = transaction
            try:
                blocking.refresh("metrics")
            finally:
                del driver.transaction
            assert levels_that_lie(other) == [], place
            blocking.refresh("metrics")
            assert levels_that_lie(other) == [], place
            assert [rows_from_points(other, step) for step in LEVELS] == [0, 0, 0]


def test_a_slice_never_ends_between_two_changes_that_begin_alike(
    blocking: toolkit.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by reading: the longer of two log rows of one (series, lo) was cut off and skipped."""
    hours = [T0 + timedelta(minutes=5 * i) for i in range(36)]
    blocking.write("metrics", {"ts": hours, "value": np.ones(36)}, series="a")
    blocking.refresh("metrics")
    blocking.write("metrics", {"ts": hours[:1], "value": [2.0]}, series="a")
    blocking.write("metrics", {"ts": hours, "value": np.full(36, 3.0)}, series="a")
    monkeypatch.setattr(refresher, "SLICE", timedelta(seconds=1))
    blocking.refresh("metrics")
    assert levels_that_lie(blocking) == []
    assert [rows_from_points(blocking, step) for step in LEVELS] == [0, 0, 0]


def test_a_truncate_cannot_remove_what_it_does_not_log(
    blocking: toolkit.Store, database: Database
) -> None:
    """TRUNCATE removes points its snapshot does not see: from an old one it is refused."""
    blocking.write("metrics", {"ts": [T0], "value": [1.0]}, series="a")
    partition = blocking.partitions("metrics")[0].name
    with psycopg.connect(database.dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM toolkit.metrics")
        blocking.write("metrics", {"ts": [T0 + timedelta(hours=3)], "value": [2.0]}, series="a")
        blocking.refresh("metrics")
        try:
            connection.execute(f"TRUNCATE toolkit.{partition}")  # type: ignore[call-overload]
            connection.commit()
        except psycopg.errors.InvalidTransactionState:
            connection.rollback()
    assert levels_that_lie(blocking) == []
    blocking.refresh("metrics")
    assert levels_that_lie(blocking) == []


def test_a_database_that_defaults_to_another_isolation_changes_nothing(
    database: Database,
) -> None:
    setting = "default_transaction_isolation = 'repeatable read'"
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {database.name} SET {setting}")  # type: ignore[call-overload]
    with toolkit.connect(database.dsn) as store:
        store.write("metrics", {"ts": [T0, T0 + MINUTE], "value": [1.0, 2.0]}, series="a")
        _prepare(store)
        store.drop_partitions("metrics", T0 - timedelta(days=9), T0 + timedelta(days=9))
        store.refresh("metrics")
        assert levels_that_lie(store) == []


# -- at full speed --------------------------------------------------------------------------------

SERIES = tuple("abcdef")


def _write(dsn: str, ids: list[int], number: int, stop: Event) -> int:
    """Transactions of inserts, changes, deletes, savepoints; some are rolled back."""
    chance, done = random.Random(number), 0
    with psycopg.connect(dsn) as connection:
        while not stop.is_set():
            try:
                for _ in range(chance.randint(1, 4)):
                    _act(connection, chance, ids)
                if chance.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
            except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
                connection.rollback()
            done += 1
    return done


def _act(connection: psycopg.Connection, chance: random.Random, ids: list[int]) -> None:
    number = chance.choice(ids)
    at = T0 + timedelta(minutes=chance.randrange(-3 * 1440, 3 * 1440))
    what = chance.random()
    if what < 0.15:
        connection.execute("SAVEPOINT s")
        put(connection, at, chance.randrange(100), number)
        connection.execute("ROLLBACK TO SAVEPOINT s" if what < 0.1 else "RELEASE SAVEPOINT s")
    elif what < 0.4:
        connection.execute(
            "DELETE FROM toolkit.metrics WHERE series_id = %s AND ts >= %s AND ts < %s",
            (number, at, at + timedelta(hours=chance.choice((1, 30)))),
        )
    else:
        connection.execute(
            "INSERT INTO toolkit.metrics (series_id, ts, value) "
            "SELECT %s, %s + n * interval '1 minute', %s FROM generate_series(1, %s) AS n "
            "ON CONFLICT (series_id, ts) DO UPDATE SET value = excluded.value",
            (number, at, chance.randrange(100), chance.choice((1, 20))),
        )


def _refresh(dsn: str, stop: Event) -> int:
    done = 0
    with toolkit.connect(dsn) as store:
        while not stop.is_set():
            store.refresh("metrics")
            done += 1
    return done


def _compare(dsn: str, number: int, stop: Event) -> tuple[int, int]:
    """Read each step twice in one snapshot: (comparisons, how many differed)."""
    chance, reads, bad = random.Random(number), 0, 0
    with toolkit.connect(dsn) as store:
        roads = store._roads
        while not stop.is_set():
            step = chance.choice((*LEVELS, "15m", "1w"))

            async def both(step: str = step) -> bool:
                async with roads.driver.transaction(repeatable=True, read_only=True) as snapshot:
                    inside = InsideDriver(roads.driver, snapshot)
                    reader = Reader(inside, roads.directory, store.settings.limits)

                    def read(*args: Any, **options: Any) -> Any:
                        return drive(reader.read(build_query(*args, **options)))

                    rollup = bars(read, step, "downsampled", SERIES)
                    return rollup == bars(read, step, "aggregated", SERIES)

            bad += not drive(both())
            reads += 1
    return reads, bad


@pytest.mark.parametrize(
    "seconds",
    [8.0, pytest.param(900.0, marks=[pytest.mark.soak, pytest.mark.timeout(1_200)])],
)
def test_rollups_are_right_in_every_snapshot_while_all_write_and_refresh(
    blocking: toolkit.Store,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    monkeypatch.setattr(refresher, "SLICE", timedelta(hours=20))
    blocking.write(
        "metrics",
        {"series": list(SERIES), "ts": [T0] * 6, "value": np.ones(6)},
    )
    blocking.write("metrics", {"ts": [T0 - 9 * 1440 * MINUTE], "value": [1.0]}, series="a")
    blocking.write("metrics", {"ts": [T0 + 9 * 1440 * MINUTE], "value": [1.0]}, series="a")
    ids = [s.id for s in blocking.series("metrics")]
    stop = Event()
    with ThreadPoolExecutor(8) as pool:
        try:
            writers = [pool.submit(_write, database.dsn, ids, n, stop) for n in range(4)]
            refreshers = [pool.submit(_refresh, database.dsn, stop) for _ in range(2)]
            readers = [pool.submit(_compare, database.dsn, n, stop) for n in range(2)]
            until = time.monotonic() + seconds
            everybody = [*writers, *refreshers, *readers]
            while time.monotonic() < until and not any(f.done() for f in everybody):
                stop.wait(0.1)
        finally:
            stop.set()
        assert sum(f.result() for f in writers) > 20
        assert sum(f.result() for f in refreshers) > 2
        reads, bad = (sum(x) for x in zip(*(f.result() for f in readers), strict=True))
    assert (reads > 20, bad) == (True, 0)
    assert levels_that_lie(blocking, SERIES) == []
    blocking.refresh("metrics")
    assert levels_that_lie(blocking, SERIES) == []
    assert [rows_from_points(blocking, step, SERIES) for step in LEVELS] == [0, 0, 0]
