"""Several reads at once: in order, as each alone, with as few statements as they need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fix_compressing import END, START, fill, frame
from fix_servers import Database
from fix_stores import COLOURS, open_store

import toolkit
from toolkit.config import load_settings
from toolkit.dataset import CANDLES, TRADES
from toolkit.errors import QueryError, UnknownName
from toolkit.options import CacheOptions, PoolOptions

DAY = "2024-01-21T00:00Z"


@pytest.fixture
def store(database: Database) -> Iterator[toolkit.Store]:
    with toolkit.connect(database.dsn) as opened:
        fill(opened, database, CANDLES, TRADES)
        for name in ("C", "D"):
            opened.write("candles", frame(CANDLES, 3_000, ord(name)), series=name)
        yield opened


def question(series: Any, **more: Any) -> dict[str, Any]:
    return {"dataset": "candles", "series": series, "start": START, "end": END, **more}


def reads(store: toolkit.Store) -> float:
    return sum(v for k, v in store.stats().items() if k.startswith("reads_"))


def texts(columns: toolkit.Columns, name: str) -> list[str | None]:
    known = columns.categories[name]
    return [known[code] if code >= 0 else None for code in columns[name].tolist()]


def same(one: toolkit.Columns, other: toolkit.Columns) -> None:
    assert one.names == other.names
    assert one.types == other.types
    np.testing.assert_array_equal(one.series, other.series)
    np.testing.assert_array_equal(one.ts, other.ts)
    if other.seq is not None:
        np.testing.assert_array_equal(one.seq, other.seq)
    for name in other:
        if other.types[name] == "category":
            a, b = (
                [c.categories[name][i] if i >= 0 else None for i in c[name]] for c in (one, other)
            )
            assert a == b
        else:
            np.testing.assert_array_equal(one[name], other[name])


QUESTIONS = [
    question("A"),
    question("B", step="1h"),
    question(["C", "A"]),
    question("A", end=DAY),
    question("D"),
    question("A", step="1h", columns=["close"]),
    question("B", step="1h"),
    question("C", step="auto"),
    question("A", limit=7),
    question("A", points=50),
    {"dataset": "trades", "series": "A", "start": START, "end": END},
    {"dataset": "trades", "series": "B", "start": START, "end": END, "where": {"side": "buy"}},
    {"dataset": "trades", "series": ["B", "A"], "start": START, "end": END, "step": "1d"},
    question(None, step="1d"),
    question("D", descending=True),
]


def test_each_is_answered_as_by_itself_and_in_order(store: toolkit.Store) -> None:
    found = store.read_many(QUESTIONS)
    assert len(found) == len(QUESTIONS)
    for columns, asked in zip(found, QUESTIONS, strict=True):
        same(columns, store.read(**asked))


def test_both_colours_answer_alike(store: toolkit.Store, database: Database) -> None:
    async def ask() -> list[toolkit.Columns]:
        async with toolkit.connect_async(database.dsn) as other:
            return await other.read_many(QUESTIONS)

    for one, two in zip(asyncio.run(ask()), store.read_many(QUESTIONS), strict=True):
        same(one, two)


def test_what_differs_in_series_only_is_one_read(store: toolkit.Store) -> None:
    asked = [question(name, step="1h") for name in "ABCD"]
    before = reads(store)
    found = store.read_many([*asked, question("A", step="1d")])
    assert reads(store) - before == 2
    for columns, one in zip(found, asked, strict=False):
        same(columns, store.read(**one))


def test_nothing_asked_is_nothing_answered(store: toolkit.Store) -> None:
    assert store.read_many([]) == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"dataset": "candles", "series": "A", "start": START}, r"questions\[1\]: end is missing"),
        (question("A", stepp="1h"), r"questions\[1\]: .*stepp"),
        (question("A", step="1x"), r"questions\[1\]: .*1x"),
        ("candles", r"questions\[1\]: expected a mapping of what read takes, got str"),
    ],
)
def test_a_wrong_question_is_named(store: toolkit.Store, bad: Any, says: str) -> None:
    with pytest.raises(QueryError, match=says):
        store.read_many([question("A"), bad])


def test_an_unknown_series_fails_all_of_it(store: toolkit.Store) -> None:
    with pytest.raises(UnknownName, match="'Z'"):
        store.read_many([question("A"), question("Z")])


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("memory", [0, 64])
def test_questions_that_take_several_connections_each_do_not_wait_for_each_other(
    database: Database, colour: str, memory: int
) -> None:
    pool = PoolOptions(min_size=0, max_size=2)
    settings = load_settings(database.dsn, environ={})
    settings = replace(settings, pool=pool, cache=CacheOptions(memory))
    ts = np.datetime64("2024-01-01", "us") + np.arange(100_000) * np.timedelta64(1, "s")
    asked = [
        {"dataset": "metrics", "series": name, "start": "2024-01-01Z", "end": f"2024-01-0{day}Z"}
        for day, name in enumerate("ABABAB", 3)
    ]
    found: list[int] = []

    def ask() -> None:
        with open_store(colour, settings) as store:
            for name in "AB":
                store.write("metrics", {"ts": ts, "value": np.arange(100_000.0)}, series=name)
            found.extend(len(columns) for columns in store.read_many(asked))

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(30)
    assert found == [100_000] * 6
