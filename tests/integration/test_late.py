"""Writes and deletes in compressed time: what a caller sees of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fix_compressing import CLOSED, END, MIDDLE, START, fill
from fix_servers import Database
from fix_stores import open_store

from toolkit import cutting, moves
from toolkit.dataset import CANDLES


def test_a_delete_decodes_off_the_event_loop(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "TARGET", 500)
    with open_store("asyncio", database.dsn) as store:
        fill(store, database, CANDLES)
        store.compress("candles", before=CLOSED)
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
