"""Buckets in numpy: against the oracle, in one pass or by way of a finer step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fix_stores import READINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Points, Question, Row, answer, differences
from points import ANCHORS, EARLIEST, LATEST, batches

from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT, Columns
from toolkit.dataset import CANDLES, METRICS, Aggregate, Dataset
from toolkit.reduce import EMPTY_SUM, Table, bucket_points, finish, group_series, is_valid, merge
from toolkit.timegrid import Grid, Step

NAMES = ("a", "b")
_DTYPES = {"float": float, "int": "i8", "decimal": "i8", "bool": "i1", "category": "i4"}
_NULLS = {
    "float": np.nan,
    "int": NULL_INT,
    "decimal": NULL_INT,
    "bool": NULL_BOOL,
    "category": NULL_CODE,
}


class Planned:
    """What a comparison wants to know of a plan."""

    grid = Grid(Step.parse("1h"))


def table_of(points: Points, dataset: Dataset) -> Table:
    keys = sorted(points, key=lambda k: (NAMES.index(k[0]), *k[1:]))
    values: dict[str, Any] = {}
    categories = {}
    for column in dataset.columns:
        mine = [points[k][column.name] for k in keys]
        if column.base == "category":
            known = sorted({v for v in mine if v is not None})
            categories[column.name] = tuple(known)
            mine = [None if v is None else known.index(v) for v in mine]
        null = _NULLS[column.base]
        values[column.name] = np.array(
            [null if v is None else v for v in mine], _DTYPES[column.base]
        )
    series = np.array([NAMES.index(k[0]) for k in keys], np.int32)
    return Table(series, np.array([k[1] for k in keys], np.int64), values, categories)


def columns_of(table: Table, dataset: Dataset, names: tuple[str, ...]) -> Columns:
    values, categories = finish(table, dataset.aggregates, dataset)
    types = {a.name: dataset.answer_type(a) for a in dataset.aggregates}
    return Columns(names, table.series, table.ts, values, types, categories, plan=Planned)


def states_of(dataset: Dataset, with_times: bool = False) -> tuple[Any, ...]:
    return tuple(s for s in dataset.states if with_times or s.type != "time")


def asked(step: str, tz: str = "UTC", **other: Any) -> Question:
    return Question(NAMES, EARLIEST, LATEST, step, tz, **other)


def points_of(dataset: Dataset) -> st.SearchStrategy[Points]:
    return st.sampled_from(ANCHORS).flatmap(lambda a: batches(dataset, a, list(NAMES), 0, 40))


@pytest.mark.parametrize("dataset", [READINGS, CANDLES, METRICS], ids=lambda d: d.name)
@pytest.mark.parametrize(("step", "tz"), [("15m", "UTC"), ("1d", "Europe/Berlin"), ("1M", "UTC")])
def test_buckets_of_points_are_the_oracles(dataset: Dataset, step: str, tz: str) -> None:
    @settings(max_examples=60)
    @given(points_of(dataset))
    def run(points: Points) -> None:
        grid = Grid(Step.parse(step), tz)
        table = bucket_points(table_of(points, dataset), states_of(dataset), dataset, grid)
        expected = answer(points, asked(step, tz), dataset)
        assert not differences(expected, columns_of(table, dataset, NAMES), dataset)

    run()


@pytest.mark.parametrize("dataset", [READINGS, CANDLES, METRICS], ids=lambda d: d.name)
def test_buckets_by_way_of_finer_ones_are_the_same(dataset: Dataset) -> None:
    # TRAPS 12 and 13
    @settings(max_examples=60)
    @given(points_of(dataset))
    def run(points: Points) -> None:
        states = states_of(dataset)
        table = table_of(points, dataset)
        fine = bucket_points(table, states, dataset, Grid(Step.parse("1m")))
        between = merge(fine, states, Grid(Step.parse("15m")))
        coarse = merge(between, states, Grid(Step.parse("1d")))
        expected = answer(points, asked("1d"), dataset)
        assert not differences(expected, columns_of(coarse, dataset, NAMES), dataset)

    run()


@pytest.mark.parametrize("dataset", [READINGS, CANDLES, METRICS], ids=lambda d: d.name)
def test_groups_of_series_are_the_oracles(dataset: Dataset) -> None:
    @settings(max_examples=60)
    @given(points_of(dataset))
    def run(points: Points) -> None:
        states = states_of(dataset, with_times=True)
        grid = Grid(Step.parse("1h"))
        table = bucket_points(table_of(points, dataset), states, dataset, grid)
        merged = group_series(table, states, np.array([0, 0], np.int32))
        question = asked("1h", groups=dict.fromkeys(NAMES, "g"))
        assert not differences(
            answer(points, question, dataset), columns_of(merged, dataset, ("g",)), dataset
        )

    run()


def one_bucket(values: Any, kind: str, type: str = "float") -> Any:
    dataset = Dataset(
        "x",
        (READINGS.column("level") if type == "float" else READINGS.column("hits"),),
        (Aggregate("out", kind, ("level" if type == "float" else "hits",)),),
        ladder=(),
    )
    array = np.array(values, float if type == "float" else np.int64)
    series, ts = np.zeros(len(array), np.int32), np.arange(len(array))
    table = Table(series, ts, {dataset.names[0]: array})
    bars = bucket_points(table, dataset.states, dataset, Grid(Step.parse("1h")))
    return finish(bars, dataset.aggregates, dataset)[0]["out"].tolist()


def test_nothing_to_sum_is_null_not_zero() -> None:
    # TRAPS 14
    assert np.isnan(one_bucket([np.nan, np.nan], "sum")).all()
    assert np.isnan(one_bucket([np.nan], "avg")).all()
    assert one_bucket([NULL_INT], "sum", "int") == [NULL_INT]
    assert one_bucket([np.nan], "count") == [0]


def test_a_null_does_not_wipe_a_bar() -> None:
    # TRAPS 10
    for kind, wanted in (("sum", 3.0), ("min", 1.0), ("max", 2.0), ("first", 1.0), ("last", 2.0)):
        assert one_bucket([np.nan, 1.0, 2.0, np.nan], kind) == [wanted]


def test_infinities_of_both_signs_sum_to_no_number_that_is_not_nothing() -> None:
    total = bucket_points(
        Table(np.zeros(2, np.int32), np.arange(2), {"value": np.array([np.inf, -np.inf])}),
        METRICS.states,
        METRICS,
        Grid(Step.parse("1h")),
    ).values["value_sum"]
    assert np.isnan(total).all()
    assert total.tolist() != [EMPTY_SUM]


def test_a_sum_that_leaves_bigint_is_null() -> None:
    for wide in ([2**62, 2**62], [-(2**62)] * 2, [2**63 - 1] * 2, [2**62] * 4):
        assert one_bucket(wide, "sum", "int") == [NULL_INT]
    assert one_bucket([2**63 - 1, 2**63 - 1, -(2**63 - 1)], "sum", "int") == [2**63 - 1]
    assert one_bucket([2**62, 2**62 - 2_000, -5], "sum", "int") == [2**63 - 2_005]


def test_no_rows_make_no_buckets() -> None:
    for dataset in (READINGS, CANDLES, METRICS):
        table = table_of({}, dataset)
        grid = Grid(Step.parse("1d"), "Europe/Berlin")
        states = states_of(dataset, with_times=True)
        bars = bucket_points(table, states, dataset, grid)
        assert len(bars) == len(merge(bars, states, grid)) == 0
        assert len(group_series(bars, states, np.empty(0, np.int32))) == 0


@pytest.mark.parametrize(
    ("values", "valid"),
    [
        (np.array([np.nan, 0.0, np.inf]), [False, True, True]),
        (np.array([NULL_INT, 0]), [False, True]),
        (np.array([NULL_BOOL, 0, 1], np.int8), [False, True, True]),
        (np.array([NULL_CODE, 0], np.int32), [False, True]),
    ],
)
def test_null_is_told_from_every_value(values: Any, valid: list[bool]) -> None:
    assert is_valid(values).tolist() == valid


def test_the_oracle_sees_a_wrong_answer() -> None:
    """Negative control of the comparison all these tests lean on."""
    points: Points = {("a", 0, 0): {"value": 1.0}, ("a", 1, 0): {"value": 2.0}}
    expected: list[Row] = answer(points, asked("1h"), METRICS)
    states = states_of(METRICS)
    bars = bucket_points(table_of(points, METRICS), states, METRICS, Grid(Step.parse("1h")))
    for name in bars.values:
        wrong = dict(bars.values) | {name: bars.values[name] + 1}
        spoiled = Table(bars.series, bars.ts, wrong)
        assert differences(expected, columns_of(spoiled, METRICS, NAMES), METRICS)
    late = Table(bars.series, bars.ts + 1, bars.values)
    assert differences(expected, columns_of(late, METRICS, NAMES), METRICS)
