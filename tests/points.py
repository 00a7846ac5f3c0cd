"""Random points and questions for hypothesis: where time and numbers are at their worst."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import strategies as st
from oracle import EPOCH, Points, Question, Values, us_of

from toolkit.dataset import Column, Dataset

# each is a change of some clock, an epoch, or the end of what may be stored
HOMES = {
    us_of(datetime.fromisoformat(text).replace(tzinfo=UTC)): zone
    for text, zone in (
        ("1900-01-01T00:00", "UTC"),
        ("1960-02-29T12:00", "UTC"),
        ("1970-01-01T00:00", "UTC"),  # TRAPS 2
        ("1986-01-01T00:00", "Asia/Kathmandu"),  # +5:30 becomes +5:45
        ("2000-01-01T00:00", "UTC"),  # PostgreSQL's own epoch
        ("2006-10-29T02:31", "America/St_Johns"),  # goes back at 00:01: midnight twice
        ("2011-12-30T10:00", "Pacific/Apia"),  # leaves out a day
        ("2018-11-04T03:00", "America/Sao_Paulo"),  # goes forward at midnight: no midnight
        ("2023-03-26T01:00", "Europe/Berlin"),
        ("2023-10-29T01:00", "Europe/Berlin"),
        ("2023-04-01T15:00", "Australia/Lord_Howe"),  # goes back by half an hour
        ("2024-02-29T00:00", "UTC"),
        ("2099-12-31T23:59", "UTC"),
    )
}
ANCHORS = tuple(HOMES)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Australia/Lord_Howe",
)
STEPS = ("1s", "7s", "1m", "5m", "11m", "15m", "1h", "3h", "1d", "2d", "1w", "1M", "3M", "1y")
COMMON_STEPS = ("5m", "15m", "1h", "3h", "1d", "1w", "1M")  # a rollup can answer, in most zones
EARLIEST, LATEST = ANCHORS[0], us_of(datetime(2100, 1, 1, tzinfo=UTC))
OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in", "is null", "is not null")

_SECOND = 1_000_000
offsets = st.one_of(
    st.integers(-3, 3),
    st.integers(-90, 90).map(lambda n: n * 60 * _SECOND),
    st.integers(-40, 40).map(lambda n: n * 900 * _SECOND + 7),
    st.integers(-40, 40).map(lambda n: n * 3_600 * _SECOND),
    st.integers(-3 * 86_400 * _SECOND, 3 * 86_400 * _SECOND),
)
floats = st.one_of(
    st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), 1e100, -1e100, 1e-100, 0.1]),
    st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-60),
    st.integers(-5, 5).map(float),
)
_OF_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "float": floats,
    "int": st.integers(-(2**40), 2**40) | st.integers(-3, 3),
    "bool": st.booleans(),
    "category": st.sampled_from(["buy", "sell", "", "ünïcode 🙂", "NULL"]),
    "decimal": st.integers(-(10**12), 10**12) | st.integers(-3, 3),
}


def values_of(column: Column) -> st.SearchStrategy[Any]:
    return st.none() | _OF_TYPE[column.base]


@st.composite
def instants(draw: st.DrawFn, anchor: int) -> int:
    return min(max(anchor + draw(offsets), EARLIEST), LATEST - 1)


@st.composite
def batches(
    draw: st.DrawFn,
    dataset: Dataset,
    anchor: int,
    names: list[str],
    least: int = 0,
    most: int = 25,
) -> Points:
    row = st.fixed_dictionaries({c.name: values_of(c) for c in dataset.columns})
    seqs = st.integers(0, 2) if dataset.has_seq else st.just(0)
    key = st.tuples(st.sampled_from(names), instants(anchor), seqs)
    return draw(st.dictionaries(key, row, min_size=least, max_size=most))


def frame_of(points: Points, dataset: Dataset) -> dict[str, Any]:
    """What a caller would hand over."""
    frame: dict[str, Any] = {
        "series": [k[0] for k in points],
        "ts": np.array([k[1] for k in points], dtype="M8[us]"),
    }
    if dataset.has_seq:
        frame["seq"] = np.array([k[2] for k in points], dtype=np.int64)
    for column in dataset.columns:
        values = [v[column.name] for v in points.values()]
        if column.base == "float":
            frame[column.name] = np.array([np.nan if v is None else v for v in values], float)
        elif column.is_decimal:
            frame[column.name] = [unscaled(v, column) for v in values]
        else:
            frame[column.name] = values
    return frame


def unscaled(value: Any, column: Column) -> Any:
    if value is None or not column.is_decimal:
        return value
    return Decimal(value).scaleb(-column.scale)


@st.composite
def conditions(draw: st.DrawFn, dataset: Dataset) -> tuple[str, str, Any]:
    column = draw(st.sampled_from(dataset.columns))
    ordered = column.base in ("float", "int", "decimal")
    usable = OPERATORS if ordered else ("=", "!=", "in", "is null", "is not null")
    operator = draw(st.sampled_from(usable))
    one = _OF_TYPE[column.base]
    if operator.startswith("is"):
        return column.name, operator, None
    return column.name, operator, draw(st.lists(one, max_size=3) if operator == "in" else one)


@st.composite
def questions(
    draw: st.DrawFn, dataset: Dataset, anchor: int, names: list[str], moments: list[int]
) -> Question:
    """A native read or bars, often from one point to another, so that ends cut buckets."""
    near = st.builds(lambda t, d: t + d, st.sampled_from(moments), st.integers(-1, 1))
    bounds = near | instants(anchor)
    kind = draw(st.integers(0, 9))
    if kind < 8:
        start, end = sorted((draw(bounds), draw(bounds)))
    else:
        start, end = anchor - 5 * 86_400 * _SECOND, anchor + 5 * 86_400 * _SECOND
    step = draw(st.none() | st.sampled_from(STEPS) | st.sampled_from(COMMON_STEPS))
    if kind == 9 and (not step or step[-1] not in "dw"):  # 70,000 days are slow, and nothing new
        start, end = EARLIEST, LATEST
    start, end = (min(max(t, EARLIEST), LATEST) for t in (start, end))
    series = tuple(draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))
    if step is None:
        known, agg = dataset.names, {}
    else:
        known = tuple(a.name for a in dataset.aggregates)
        kinds = {
            c.name: st.lists(st.sampled_from(c.kinds), min_size=1, max_size=2, unique=True)
            for c in dataset.columns
        }
        agg = {
            c: tuple(draw(kinds[c]))
            for c in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=2, unique=True))
        }
    columns = draw(st.none() | st.lists(st.sampled_from(known), min_size=1, unique=True))
    return Question(
        series,
        start,
        end,
        step,
        draw(st.just(HOMES[anchor]) | st.sampled_from(ZONES)),
        tuple(columns) if columns is not None else None,
        agg,
        (draw(conditions(dataset)),) if draw(st.integers(0, 3)) == 3 else (),
        draw(st.integers(1, 20)) if draw(st.integers(0, 3)) == 3 else None,
        draw(st.booleans()),
    )


def asked(question: Question, dataset: Dataset) -> dict[str, Any]:
    """The same question as keyword arguments of a store's ``read``."""
    where = [
        (c, o, [unscaled(x, dataset.column(c)) for x in v])
        if o == "in"
        else (c, o, unscaled(v, dataset.column(c)))
        for c, o, v in question.where
    ]
    return {
        "start": EPOCH + timedelta(microseconds=question.start),
        "end": EPOCH + timedelta(microseconds=question.end),
        "step": question.step,
        "tz": question.tz,
        "columns": question.columns,
        "agg": question.agg,
        "where": where or None,
        "limit": question.limit,
        "descending": question.descending,
    }


def changed(values: Values) -> Values:
    """The same point, told differently."""
    return {n: (-v if isinstance(v, float) else v) for n, v in values.items()}
