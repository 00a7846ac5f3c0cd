"""Random points, random questions: every road of both stores answers what the oracle does.

Whatever lies in rows, in blocks, and in both, with rows on top of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from fix_blocks_states import ACTS, acts, pack
from fix_servers import share
from fix_stores import READINGS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import Points, Question, Row, answer, differences, plain
from points import ANCHORS, asked, batches, changed, frame_of, questions

from toolkit import cutting
from toolkit.dataset import CANDLES, METRICS, TRADES, Dataset
from toolkit.errors import QueryError

# a thread of the connection pool may roll its dice while a value is drawn
pytestmark = [
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
    pytest.mark.usefixtures("small_blocks"),
]

EXAMPLES = settings.default.max_examples // 2  # each asks servers by every road
DATASETS = (READINGS, CANDLES, TRADES, METRICS)
LONG = settings(
    max_examples=EXAMPLES,
    phases=set(Phase) - {Phase.explain},  # it takes minutes here, and shrinking does not
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # one database for all examples, as meant
        HealthCheck.data_too_large,
    ],
)
_numbers = count(1)
Few = Callable[[int], settings]


@pytest.fixture
def few(server_version: str) -> Few:
    """How many examples are looked at: on older servers fewer."""
    return lambda examples: settings(LONG, max_examples=share(examples, server_version))


def fresh_names(how_many: int) -> list[str]:
    """Series that no example before this one has used: nothing needs deleting between them."""
    number = next(_numbers)
    return [f"s{number}{letter}" for letter in "abc"[:how_many]]


def store_points(stores: Any, dataset: Dataset, batch: Points, points: Points) -> None:
    if batch:
        stores[0].write(dataset.name, frame_of(batch, dataset))
        points.update(batch)


def is_too_fine(points: Points, question: Question) -> bool:
    """Whether some series is really coarser than the step: then it may be refused."""
    n, unit = int((question.step or "0s")[:-1]), (question.step or "0s")[-1]
    width = n * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}.get(unit, 2_592_000)
    for name in question.series:
        ts = {k[1] for k in points if k[0] == name and question.start <= k[1] < question.end}
        apart = np.diff(sorted(ts))
        if not len(apart) or apart.min() > width * 1_000_000:
            return True
    return False


def check(stores: Any, dataset: Dataset, points: Points, question: Question, **other: Any) -> None:
    expected = answer(points, question, dataset)
    options = asked(question, dataset) | other
    series = options.pop("series", question.series)
    strategies = ["auto", "direct"]
    if question.step is not None:
        strategies += ["aggregated", "downsampled"]
    for number, strategy in enumerate(strategies):
        for turn, store in enumerate(stores, number + len(points)):
            fresh = {"freshness": "strong", "cache": turn % 2 == 0}
            try:
                cols = store.read(dataset.name, series, strategy=strategy, **fresh, **options)
            except QueryError as error:
                if "is finer than" in str(error) and is_too_fine(points, question):
                    return
                if strategy == "downsampled" and "cannot answer" in str(error):
                    break
                raise
            wrong = differences(expected, cols, dataset)
            assert not wrong, (strategy, type(store).__name__, cols.plan, wrong)


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.name)
def test_every_road_answers_what_the_oracle_does(stores: Any, dataset: Dataset, few: Few) -> None:
    @few(EXAMPLES)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        anchor = data.draw(st.sampled_from(ANCHORS), "anchor")
        names = fresh_names(data.draw(st.integers(1, 3), "series"))
        letters = [n[-1] for n in names]
        points: Points = {}

        def drawn(what: str, least: int = 0) -> Points:
            batch = data.draw(batches(dataset, anchor, letters, least), what)
            return {(names[letters.index(k[0])], *k[1:]): v for k, v in batch.items()}

        first = everywhere(dataset, names, anchor) | drawn("first", 8)
        store_points(stores, dataset, first, points)
        refreshed = data.draw(st.sampled_from(["after", "between", "both", "never"]), "refreshed")
        if refreshed in ("between", "both"):
            stores[1].refresh(dataset.name)
        packed(data, stores[0], dataset, points, "first")
        store_points(stores, dataset, drawn("late"), points)
        if data.draw(st.booleans(), "in between"):
            packed(data, stores[1], dataset, points, "late")
        again = data.draw(st.lists(st.sampled_from(sorted(points)), max_size=3), "overwritten")
        store_points(stores, dataset, {k: changed(points[k]) for k in again}, points)
        same = data.draw(st.lists(st.sampled_from(sorted(points)), max_size=3), "written again")
        store_points(stores, dataset, {k: points[k] for k in same}, points)
        packed(data, stores[1], dataset, points, "all")
        if refreshed in ("after", "both"):
            stores[0].refresh(dataset.name)
        asking = questions(dataset, anchor, letters, [k[1] for k in points])
        for number in range(4):
            question = data.draw(asking, f"question {number}")
            mine = tuple(names[letters.index(s)] for s in question.series)
            check(stores, dataset, points, replace(question, series=mine))

    run()


def packed(data: st.DataObject, store: Any, dataset: Dataset, points: Points, what: str) -> None:
    """Move a part of the points, perhaps, into blocks or out of them."""
    act = data.draw(acts, f"{what}, moved")
    if act != "nothing":
        pack(store, dataset, points, act, data.draw(st.integers(0, 1_000), "part"))


def everywhere(dataset: Dataset, names: list[str], anchor: int) -> Points:
    """One point a series, so that each of them exists."""
    return {(n, anchor, 0): dict.fromkeys(dataset.names) for n in names}


def dense(dataset: Dataset, names: list[str], anchor: int, seed: int) -> Points:
    """Some hundred points a series, so near to each other that any range cuts full buckets."""
    random = np.random.default_rng(seed)
    points: Points = {}
    for name in names:
        apart = random.choice([7_000_000, 60_000_000, 300_000_000], 150)
        for ts in (max(anchor - 300 * 60_000_000, ANCHORS[0]) + np.cumsum(apart)).tolist():
            numbers = iter(random.integers(-1_000, 1_000, len(dataset.columns)).tolist())
            values = {c.name: _VALUE_OF[c.base](next(numbers)) for c in dataset.columns}
            points[name, ts, 0] = {
                n: None if random.random() < 0.1 else v for n, v in values.items()
            }
    return {k: v for k, v in points.items() if k[1] < max(ANCHORS) + 60_000_000}


_VALUE_OF: dict[str, Any] = {
    "float": lambda n: n / 7,
    "int": int,
    "bool": lambda n: n > 0,
    "category": lambda n: "xyz"[n % 3],
    "decimal": lambda n: n * 1_001,
}


@pytest.mark.parametrize("dataset", [READINGS, METRICS], ids=lambda d: d.name)
def test_dense_points_answer_what_the_oracle_does(stores: Any, dataset: Dataset, few: Few) -> None:
    @few(EXAMPLES // 3)
    @given(st.data(), st.integers(0, 2**32 - 1), st.sampled_from(ANCHORS))
    def run(data: st.DataObject, seed: int, anchor: int) -> None:
        names = fresh_names(2)
        every = dense(dataset, names, anchor, seed)
        late = {k: v for k, v in every.items() if k[1] % 13 == seed % 13}
        points: Points = {}
        early = {k: v for k, v in every.items() if k not in late}
        store_points(stores, dataset, early | everywhere(dataset, names, anchor), points)
        stores[0].refresh(dataset.name)
        packed(data, stores[0], dataset, points, "early")
        if seed % 2:
            store_points(stores, dataset, late, points)
        packed(data, stores[0], dataset, points, "all")
        moments = [k[1] for k in points]
        for number in range(6):
            question = data.draw(questions(dataset, anchor, ["a", "b"], moments), f"{number}")
            check(stores, dataset, points, replace(question, series=tuple(names)))

    run()


@pytest.mark.parametrize("dataset", [READINGS, CANDLES], ids=lambda d: d.name)
def test_groups_and_labels_answer_what_the_oracle_does(
    stores: Any, dataset: Dataset, few: Few
) -> None:
    @few(EXAMPLES // 2)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        anchor = data.draw(st.sampled_from(ANCHORS), "anchor")
        names = fresh_names(3)
        letters = [n[-1] for n in names]
        batch = data.draw(batches(dataset, anchor, letters, 5, 40), "points")
        points: Points = everywhere(dataset, names, anchor)
        points |= {(names[letters.index(k[0])], *k[1:]): v for k, v in batch.items()}
        some = {k: v for n, (k, v) in enumerate(points.items()) if n % 3}
        stores[0].write(dataset.name, frame_of(some, dataset))
        packed(data, stores[0], dataset, some, "some")
        stores[0].write(dataset.name, frame_of(points, dataset))
        groups = {n: data.draw(st.sampled_from(["x", "y"]), "group") for n in names}
        for name, group in groups.items():
            stores[0].label(dataset.name, name, {"run": names[0], "side": group})
        if data.draw(st.booleans(), "refresh"):
            stores[0].refresh(dataset.name)
        question = data.draw(
            questions(dataset, anchor, letters, [k[1] for k in points]), "question"
        )
        question = replace(question, series=tuple(names))
        by_labels = {"series": None, "labels": {"run": names[0]}}
        check(stores, dataset, points, question, **by_labels)
        if question.step is not None:
            question = replace(question, groups=groups)
            check(stores, dataset, points, question, group_by="side")
            check(stores, dataset, points, question, group_by="side", **by_labels)

    run()


@pytest.mark.parametrize("dataset", [READINGS, METRICS], ids=lambda d: d.name)
def test_latest_and_streams_answer_what_the_oracle_does(
    stores: Any, dataset: Dataset, few: Few
) -> None:
    @few(EXAMPLES // 2)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        anchor = data.draw(st.sampled_from(ANCHORS), "anchor")
        names = fresh_names(2)
        letters = [n[-1] for n in names]
        batch = data.draw(batches(dataset, anchor, letters, 5, 40), "points")
        points: Points = everywhere(dataset, names, anchor)
        points |= {(names[letters.index(k[0])], *k[1:]): v for k, v in batch.items()}
        some = {k: v for n, (k, v) in enumerate(points.items()) if n % 3}
        stores[0].write(dataset.name, frame_of(some, dataset))
        packed(data, stores[0], dataset, some, "some")
        stores[0].write(dataset.name, frame_of(points, dataset))
        packed(data, stores[1], dataset, points, "all")
        question = data.draw(
            questions(dataset, anchor, letters, [k[1] for k in points]), "question"
        )
        question = replace(question, series=tuple(names), limit=None, descending=False, agg={})
        n = data.draw(st.integers(1, 5), "n")
        for store in stores:
            check_stream(store, dataset, points, question, n)
            check_latest(store, dataset, points, question, n)

    run()


def check_stream(
    store: Any, dataset: Dataset, points: Points, question: Question, rows: int
) -> None:
    options = {
        k: v for k, v in asked(question, dataset).items() if k not in ("limit", "descending")
    }
    try:
        pieces = list(store.stream(dataset.name, question.series, rows=rows, **options))
    except QueryError as error:
        if "is finer than" in str(error) and is_too_fine(points, question):
            return
        raise
    assert all(0 < len(p) <= rows for p in pieces)
    expected = answer(points, question, dataset)
    assert sum(map(len, pieces)) == len(expected)
    for piece in pieces:
        part, expected = expected[: len(piece)], expected[len(piece) :]
        assert not differences(part, piece, dataset)


def check_latest(store: Any, dataset: Dataset, points: Points, question: Question, n: int) -> None:
    if (question.step or "")[-1:] in ("d", "w"):
        question = replace(question, tz="UTC")  # 70,000 days from 1900 on are slow
    everything = replace(question, start=-(2**61), end=2**61, where=())
    try:
        cols = store.latest(
            dataset.name,
            question.series,
            n=n,
            step=question.step,
            tz=question.tz,
            columns=question.columns,
        )
    except QueryError as error:
        if "is finer than" in str(error):
            return
        raise
    expected: list[Row] = []
    for name in question.series:
        expected += answer(points, replace(everything, series=(name,)), dataset)[-n:]
    assert not differences(expected, cols, dataset)


@pytest.mark.parametrize("dataset", [READINGS, TRADES], ids=lambda d: d.name)
def test_auto_answers_at_the_step_it_says(
    stores: Any, dataset: Dataset, few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    @few(EXAMPLES // 4)
    @given(
        st.integers(0, 2**32 - 1), st.sampled_from([30, 1_500, 12_000]), st.sampled_from(ANCHORS)
    )
    def run(number: int, size: int, anchor: int) -> None:
        monkeypatch.setattr(cutting, "TARGET", max(5, size // 60))  # of 5 points: too many blocks
        random = np.random.default_rng(number)
        name = fresh_names(1)[0]
        start = max(anchor - 10 * 86_400_000_000, ANCHORS[0])
        ts = start + random.integers(0, 9 * 86_400_000_000, size)
        column = dataset.chart
        values = random.normal(size=size)
        empty = dict.fromkeys(dataset.names)
        points: Points = {
            (name, int(t), 0): empty | {column: v} for t, v in zip(ts, values.tolist(), strict=True)
        }
        some = {k: v for n, (k, v) in enumerate(points.items()) if n % 5 or number % 5}
        stores[0].write(dataset.name, frame_of(some, dataset))
        pack(stores[0], dataset, some, ACTS[number % len(ACTS)], number)
        stores[0].write(dataset.name, frame_of(points, dataset))
        if number % 2:
            stores[0].refresh(dataset.name)
        question = Question((name,), start, start + 10 * 86_400_000_000, tz="Asia/Kathmandu")
        expected: dict[str | None, list[Row]] = {}
        for store in stores:
            options = asked(question, dataset) | {"step": "auto"}
            cols = store.read(dataset.name, name, **options)
            step = cols.plan.step
            if step not in expected:
                expected[step] = answer(points, replace(question, step=step), dataset)
            assert not differences(expected[step], cols, dataset)
            assert len(cols) <= 1_000

    run()


def test_points_keep_to_their_number_and_are_rows_of_the_answer(stores: Any, few: Few) -> None:
    @few(EXAMPLES // 2)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        anchor = data.draw(st.sampled_from(ANCHORS), "anchor")
        name = fresh_names(1)[0]
        batch = data.draw(batches(READINGS, anchor, ["a"], 0, 60), "points")
        points: Points = everywhere(READINGS, [name], anchor)
        points |= {(name, *k[1:]): v for k, v in batch.items()}
        some = {k: v for n, (k, v) in enumerate(points.items()) if n % 3}
        stores[0].write("readings", frame_of(some, READINGS))
        packed(data, stores[0], READINGS, some, "some")
        stores[0].write("readings", frame_of(points, READINGS))
        packed(data, stores[1], READINGS, points, "all")
        n = data.draw(st.integers(3, 30), "n")
        question = Question((name,), ANCHORS[0], max(ANCHORS) + 60_000_000)
        options = asked(question, READINGS) | {"points": n}
        every = [(r.ts, r.values) for r in answer(points, question, READINGS)]
        drawn = [row for row in every if row[1]["level"] is not None]
        for store in stores:
            picked = [(r.ts, r.values) for r in plain(store.read("readings", name, **options))]
            assert len(picked) <= n
            assert all(row in drawn for row in picked)
            if len(drawn) <= n:
                assert len(picked) == len(drawn)
                assert all(row in picked for row in drawn)

    run()


# -- found by the tests above, kept by name -------------------------------------------------------


def test_a_step_finer_than_doubled_microseconds_is_no_division_by_zero(stores: Any) -> None:
    for step, size in ((60, 3), (60, 1)):
        ts = np.datetime64("2024-01-01", "us") + np.arange(size) * np.timedelta64(step, "s")
        seq = np.full(size, size)
        stores[0].write("trades", {"ts": ts, "seq": seq, "price": np.ones(size)}, series="a")
    for store in stores:
        span = ("2024-01-01T00:00Z", "2024-01-01T00:00:59Z")
        assert len(store.read("trades", "a", *span, step="7s")) == 1
        assert len(store.read("trades", "a", *span)) == 2
