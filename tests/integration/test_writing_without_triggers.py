"""Writes to a dataset without triggers: what the store logs itself keeps its rollups right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from fix_servers import Database
from fix_stores import SIZES, T0, create, metrics, one

import toolkit
from toolkit.dataset import METRICS
from toolkit.drivers.blocking import BlockingDriver

END = datetime(2024, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def unlogged(database: Database) -> str:
    """A dataset whose changes the store logs itself."""
    create(database, replace(METRICS, name="gauges", changelog="writer"))
    return "gauges"


def bars(store: Any, dataset: str, strategy: str) -> list[tuple[int, int, float]]:
    cols = store.read(dataset, "a", T0, END, step="1h", strategy=strategy)
    rows = zip(cols.instants.tolist(), cols["value_count"], cols["value_max"], strict=True)
    return [(int(t), int(n), float(v)) for t, n, v in rows]


@pytest.mark.parametrize("size", SIZES)
def test_a_store_that_logs_itself_keeps_rollups_right(
    store: Any, unlogged: str, sql: psycopg.Connection, size: int
) -> None:
    def same() -> bool:
        return bars(store, unlogged, "downsampled") == bars(store, unlogged, "aggregated")

    store.write(unlogged, metrics(size), series="a")
    assert same()
    store.refresh(unlogged)
    assert one(sql, "SELECT count(*) FROM gauges_log") == 0
    for change in (
        lambda: store.write(unlogged, metrics(3, T0 + MINUTE, 1e6), series="a"),
        lambda: store.write(
            unlogged, metrics(2, T0 + timedelta(days=40)), series="a", mode="ignore"
        ),
        lambda: store.write(
            unlogged, metrics(2, T0 + timedelta(days=41)), series="a", mode="insert"
        ),
        lambda: store.delete(unlogged, "a", T0 + MINUTE, T0 + 3 * MINUTE),
    ):
        change()
        assert same()
        store.refresh(unlogged)
        assert same()
    assert store.write(unlogged, metrics(2, T0 + timedelta(days=41)), series="a").unchanged == 2
    assert one(sql, "SELECT count(*) FROM gauges_log") == 0


def test_a_store_that_logs_itself_logs_a_dropped_partition(store: Any, unlogged: str) -> None:
    store.write(unlogged, metrics(60 * 24 * 14), series="a")
    store.refresh(unlogged)
    assert len(store.drop_partitions(unlogged, T0, T0 + timedelta(days=7))) == 1
    for _ in range(2):
        assert bars(store, unlogged, "downsampled") == bars(store, unlogged, "aggregated")
        store.refresh(unlogged)


class Meddler:
    """A transaction in which somebody else always commits something after each statement."""

    def __init__(self, transaction: Any, meddle: Callable[[], object]) -> None:
        self._transaction = transaction
        self._meddle = meddle

    async def fetch(self, *args: Any) -> Any:
        rows = await self._transaction.fetch(*args)
        self._meddle()
        return rows

    async def execute(self, *args: Any) -> Any:
        touched = await self._transaction.execute(*args)
        self._meddle()
        return touched


def test_a_store_that_logs_itself_logs_what_its_delete_really_removes(
    blocking: toolkit.Store,
    unlogged: str,
    other_store: Callable[[], AbstractContextManager[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocking.write(unlogged, metrics(3), series="a")
    begin = BlockingDriver.transaction

    def meddle() -> None:
        monkeypatch.undo()
        with other_store() as other:
            other.write(unlogged, metrics(1, T0 + timedelta(days=1)), series="a")
            other.refresh(unlogged)

    @asynccontextmanager
    async def transaction(driver: BlockingDriver, **options: Any) -> AsyncIterator[Meddler]:
        async with begin(driver, **options) as inner:
            yield Meddler(inner, meddle)

    monkeypatch.setattr(BlockingDriver, "transaction", transaction)
    blocking.delete(unlogged, "a", T0, END)
    assert bars(blocking, unlogged, "downsampled") == bars(blocking, unlogged, "aggregated")
    blocking.refresh(unlogged)
    assert bars(blocking, unlogged, "downsampled") == bars(blocking, unlogged, "aggregated")
