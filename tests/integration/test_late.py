"""Writes and deletes in compressed time: what a caller sees of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_compressing import CLOSED, END, MIDDLE, START, fill, rows_of
from fix_servers import Database
from fix_stores import open_store

from toolkit import cutting, moves
from toolkit.dataset import CANDLES
from toolkit.errors import InputError


def test_a_delete_decodes_off_the_event_loop(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "TARGET", 500)
    with open_store("asyncio", database.dsn) as store:
        fill(store, database, CANDLES)
        store.compress("candles", end=CLOSED)
        threads: dict[str, set[str]] = {}

        def seen(what: str) -> Callable[..., Any]:
            function = getattr(moves, what)

            def call(*args: Any, **options: Any) -> Any:
                threads.setdefault(what, set()).add(threading.current_thread().name)
                return function(*args, **options)

            return call

        for what in ("merge_taken", "encoded"):
            monkeypatch.setattr(moves, what, seen(what))
        before = len(store.read("candles", "A", START, END))
        count = store.delete("candles", "A", "2024-01-21T07:11Z", MIDDLE)
        assert len(store.read("candles", "A", START, END)) == before - count > 0
    assert set(threads) == {"merge_taken", "encoded"}
    assert threading.main_thread().name not in set().union(*threads.values())


@pytest.mark.parametrize("place", ["rows", "blocks"])
@pytest.mark.parametrize("count", [50, 5_000], ids=["through arrays", "by copying"])
def test_insert_names_the_first_key_that_is_there(
    store: Any, sql: psycopg.Connection, place: str, count: int
) -> None:
    ts = np.datetime64("2024-01-20T00:00", "us") + np.arange(count) * np.timedelta64(1, "s")
    new = {"ts": ts, "seq": np.full(count, 7), "price": np.ones(count)}
    there = {"ts": ts[30:40], "seq": [7] * 9 + [8], "price": [1.0] * 10}
    store.write("trades", there, series="o'dd")
    if place == "blocks":
        store.compress("trades", end=CLOSED)
    rows = rows_of(sql, "trades")
    said = r"mode 'insert': series \"o'dd\" has a point at 2024-01-20T00:00:30Z, seq 7 already"
    with pytest.raises(InputError, match=said) as failed:
        store.write("trades", new, series="o'dd", mode="insert")
    assert "nothing was stored (mode 'upsert' replaces what is there, 'ignore' keeps it)" in str(
        failed.value
    )
    assert rows_of(sql, "trades") == rows
    del new["ts"], new["seq"]
    free = {"ts": ts + np.timedelta64(500, "ms"), "seq": np.full(count, 7), **new}
    assert store.write("trades", free, series="o'dd", mode="insert").inserted == count
