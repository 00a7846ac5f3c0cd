"""Questions, checked without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from toolkit.dataset import Column
from toolkit.errors import QueryError
from toolkit.query import Condition, build_query, conditions
from toolkit.strategy.values import comparable
from toolkit.timegrid import Grid, Span, Step, to_us
from toolkit.together import question_of

T0 = datetime(2024, 1, 1, tzinfo=UTC)
T1 = T0 + timedelta(days=1)


def build(**options: Any) -> Any:
    return build_query("metrics", options.pop("series", "a"), T0, T1, **options)


def test_a_query_holds_what_was_asked() -> None:
    query = build(
        series=["a", "b", "a"],
        step="1d",
        tz="Europe/Berlin",
        columns="value",
        limit=3,
        agg={"value": ["max", "min"]},
    )
    assert query.asked.series == ("a", "b")
    assert query.span == Span(to_us(T0), to_us(T1))
    assert query.asked.grid == Grid(Step(1, "d"), "Europe/Berlin")
    assert query.asked.columns == ("value",)
    assert query.asked.agg == (("value", "max"), ("value", "min"))
    assert not query.asked.is_native


def test_native_points_are_what_no_step_means() -> None:
    assert build().asked.is_native
    assert not build(step="auto").asked.is_native
    assert build(step="auto").asked.grid is None


@pytest.mark.parametrize(
    "options",
    [
        {"step": "1x"},
        {"step": 60},
        {"tz": "Nowhere"},
        {"tz": "../../etc/passwd"},
        {"step": "1d", "tz": ""},
        {"strategy": "slow"},
        {"points": 2},
        {"points": True},
        {"points": 5.0},
        {"limit": 0},
        {"limit": "3"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"series": []},
        {"series": [None]},
        {"columns": []},
        {"labels": {"a": "b"}},
        {"series": None, "labels": {"a": 1}},
        {"points": 5, "limit": 5},
        {"points": 5, "step": "1h"},
        {"points": 5, "strategy": "aggregated"},
        {"agg": {"value": "max"}},
        {"group_by": "host"},
        {"strategy": "downsampled"},
        {"strategy": "aggregated"},
        {"where": {"value": ("is",)}, "limit": -1},
        {"where": [("value",)]},
        {"where": [("value", "like", "x")]},
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(QueryError):
        build(**options)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (None, []),
        ({"a": 1}, [("a", "=", 1)]),
        ({"a": None}, [("a", "is null", None)]),
        ({"a": (">", 1), "b": ["x", "y"]}, [("a", ">", 1), ("b", "in", ("x", "y"))]),
        ({"a": ("in", {1})}, [("a", "in", (1,))]),
        ({"a": ("is not null",)}, [("a", "is not null", None)]),
        ({"a": ()}, [("a", "in", ())]),
        ([("a", ">", 1), ("a", "<=", 2)], [("a", ">", 1), ("a", "<=", 2)]),
        ([("a", "in", [1, 2])], [("a", "in", (1, 2))]),
    ],
)
def test_where_can_be_written_in_many_ways(where: Any, found: list[tuple[Any, ...]]) -> None:
    assert conditions(where) == tuple(Condition(*f) for f in found)


@pytest.mark.parametrize(
    ("value", "type", "stored"),
    [
        (1, "float", 1.0),
        (Decimal("1.5"), "float", 1.5),
        (float("-inf"), "float", float("-inf")),
        (7, "int", 7),
        (True, "bool", True),
        ("x", "category", "x"),
        ("1.25", "decimal(4)", 12_500),
        (0.1, "decimal(4)", 1_000),
        (Decimal("-0.0001"), "decimal(4)", -1),
    ],
)
def test_a_value_is_compared_as_it_is_stored(value: Any, type: str, stored: Any) -> None:
    found = comparable(Condition("c", "=", value), Column("c", type))
    assert found == stored
    assert found.__class__ is stored.__class__


@pytest.mark.parametrize(
    ("value", "type"),
    [
        ("1", "float"),
        (True, "float"),
        (1.5, "int"),
        (2**63, "int"),
        (-(2**63), "int"),
        (1, "bool"),
        (1, "category"),
        ("0.00001", "decimal(4)"),
        ("NaN", "decimal(4)"),
        ("1e30", "decimal(4)"),
        ("x", "decimal(4)"),
    ],
)
def test_a_value_that_no_stored_one_can_equal_is_refused(value: Any, type: str) -> None:
    with pytest.raises(QueryError, match="cannot be compared"):
        comparable(Condition("c", "=", value), Column("c", type))


def test_the_same_question_about_another_range_is_the_same_object() -> None:
    first = build_query("metrics", "a", T0, T1, columns=["value"], limit=1)
    again = build_query("metrics", ["a"], T0, T0, columns="value", limit=1)
    assert again.asked is first.asked
    assert again.span != first.span
    assert build_query("metrics", "b", T0, T1, columns="value", limit=1).asked is not first.asked


def test_trap_true_is_one_and_no_limit() -> None:
    assert build_query("metrics", "a", T0, T1, limit=1).asked.limit == 1
    with pytest.raises(QueryError, match="limit: True is not a whole number"):
        build_query("metrics", "a", T0, T1, limit=True)
    with pytest.raises(QueryError, match=r"points: 3\.0 is not a whole number"):
        build_query("metrics", "a", T0, T1, points=3.0)  # type: ignore[arg-type]


def test_what_cannot_be_a_key_is_refused_by_its_name() -> None:
    with pytest.raises(QueryError, match="unknown step"):
        build_query("metrics", "a", T0, T1, step=["1h"])  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="dataset: expected a name, got list"):
        build_query(["metrics"], "a", T0, T1)  # type: ignore[arg-type]


def test_a_misspelt_name_of_a_question_is_told_its_nearest() -> None:
    asked = {"dataset": "candles", "seris": "A", "start": "2024-01-01Z", "end": "2024-01-02Z"}
    with pytest.raises(QueryError, match=r"questions\[1\]: unknown argument 'seris': .*'series'"):
        question_of(asked, 1)
