"""What every read must answer, computed the slow way: one bucket and one value after another.

Written from the documentation alone: nothing here comes from the code it judges but the
declarations of datasets. Values are plain Python, NULL is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from toolkit.columns import Columns
from toolkit.dataset import Aggregate, Dataset

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECONDS = {"s": 1, "m": 60, "h": 3600}
TOLERANCE = 1e-12

Key = tuple[str, int, int]
Values = dict[str, Any]
Points = dict[Key, Values]
"""(series, µs since 1970, seq) to the values of its columns; decimals are scaled integers."""


@dataclass(frozen=True, slots=True)
class About:
    """A float that may be off by ``by``: a sum depends on its order."""

    value: float
    by: float

    def fits(self, other: float) -> bool:
        if self.by == math.inf:  # a quotient by next to nothing: any order of summing may be right
            return True
        if math.isnan(self.value) or math.isinf(self.value):
            return other == self.value or (math.isnan(other) and math.isnan(self.value))
        return abs(other - self.value) <= self.by


@dataclass(frozen=True, slots=True)
class Question:
    """A read, as the oracle is asked it."""

    series: tuple[str, ...]
    start: int
    end: int
    step: str | None = None
    tz: str = "UTC"
    columns: tuple[str, ...] | None = None
    agg: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: tuple[tuple[str, str, Any], ...] = ()
    limit: int | None = None
    descending: bool = False
    groups: Mapping[str, str] | None = None  # series to its label's value


@dataclass(frozen=True, slots=True)
class Row:
    series: str
    ts: int
    seq: int
    values: Values


# -- time -----------------------------------------------------------------------------------------


def us_of(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def local_date(us: int, tz: str) -> date:
    return (EPOCH + timedelta(microseconds=us)).astimezone(ZoneInfo(tz)).date()


def midnight(day: date, tz: str) -> int:
    """Where midnight does not exist or exists twice: the smaller offset, as PostgreSQL has it."""
    instants = []
    for fold in (0, 1):
        there = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(tz), fold=fold)
        offset = there.utcoffset()
        assert offset is not None
        instants.append(us_of(there.replace(tzinfo=UTC) - offset))
    return max(instants)


def first_day(day: date, n: int, unit: str, shift: int) -> date:
    """The first day of the bucket ``shift`` buckets after the one that holds ``day``."""
    if unit in "My":
        months = n * (12 if unit == "y" else 1)
        count = (day.year - 1970) * 12 + day.month - 1
        count = (count // months + shift) * months
        return date(1970 + count // 12, count % 12 + 1, 1)
    days = n * (7 if unit == "w" else 1)
    origin = date(1970, 1, 5) if unit == "w" else date(1970, 1, 1)
    return origin + timedelta(days=((day - origin).days // days + shift) * days)


def bucket(us: int, step: str, tz: str) -> int:
    """The start of the bucket that holds an instant: the last start that is not after it."""
    n, unit = int(step[:-1]), step[-1]
    if unit in SECONDS:
        width = n * SECONDS[unit] * 1_000_000
        return us - us % width
    day = local_date(us, tz)
    starts = [midnight(first_day(day, n, unit, shift), tz) for shift in (-1, 0, 1)]
    return max(s for s in starts if s <= us)


# -- values ---------------------------------------------------------------------------------------


def total(values: Sequence[float]) -> float:
    if any(math.isinf(v) or math.isnan(v) for v in values):
        return float(sum(values))
    return math.fsum(values)


def _sum(values: list[Any]) -> Any:
    if not values:
        return None
    if isinstance(values[0], int):
        return sum(values)
    return About(total(values), TOLERANCE * total([abs(v) for v in values]))


def _avg(values: list[Any], scale: int) -> Any:
    if not values:
        return None
    n, unit = len(values), float(10**scale)
    size = total([abs(v) / unit for v in values]) / n
    exact = sum(values) / unit / n if isinstance(values[0], int) else total(values) / n
    return About(exact, TOLERANCE * size)


def _vwap(rows: list[Row], aggregate: Aggregate, dataset: Dataset) -> Any:
    def number(row: Row, column: str) -> float:
        scale = dataset.column(column).scale
        return row.values[column] / float(10**scale) if scale else float(row.values[column])

    assert aggregate.by is not None
    by = aggregate.by
    whole = [r for r in rows if all(r.values[c] is not None for c in (*aggregate.of, by))]
    weights = [number(r, by) for r in whole]
    prices = [sum(number(r, c) for c in aggregate.of) / len(aggregate.of) for r in whole]
    products = [p * w for p, w in zip(prices, weights, strict=True)]
    if not whole:
        return None
    above, below = total(products), total(weights)
    size = total([abs(w) for w in weights])
    if math.isnan(below) or size == 0:
        return None
    if math.isfinite(size) and abs(below) <= TOLERANCE * size:
        # what is left of weights that cancel may be nothing at all in another order
        return About(above / below if below else 0.0, math.inf) if below or size > 2**53 else None
    if below == 0:
        return About(0.0, math.inf) if any(w % 1 for w in weights) or size > 2**53 else None
    if math.isinf(below) or math.isinf(above) or math.isnan(above):
        return About(above / below, 0.0)
    # the prices are rounded, too: what a sum of opposite signs loses is no error of the sum
    sizes = [sum(abs(number(r, c)) for c in aggregate.of) for r in whole]
    reach = total([p * abs(w) for p, w in zip(sizes, weights, strict=True)])
    lost = TOLERANCE * (reach / abs(below) + abs(above) * size / below**2)
    return About(above / below, lost if size < 1e6 * abs(below) else math.inf)


def aggregated(rows: list[Row], aggregate: Aggregate, dataset: Dataset) -> Any:
    """One column of one bar; ``rows`` are in the order that first and last go by."""
    if aggregate.kind == "vwap":
        return _vwap(rows, aggregate, dataset)
    column = dataset.column(aggregate.of[0])
    values = [r.values[column.name] for r in rows if r.values[column.name] is not None]
    kinds: dict[str, Callable[[], Any]] = {
        "first": lambda: values[0] if values else None,
        "last": lambda: values[-1] if values else None,
        "min": lambda: min(values, default=None),
        "max": lambda: max(values, default=None),
        "count": lambda: len(values),
        "sum": lambda: _sum(values),
        "avg": lambda: _avg(values, column.scale),
    }
    return kinds[aggregate.kind]()


def passes(values: Values, where: Iterable[tuple[str, str, Any]]) -> bool:
    tests: dict[str, Callable[[Any, Any], bool]] = {
        "=": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "in": lambda a, b: a in b,
    }
    for column, operator, value in where:
        mine = values[column]
        if operator.startswith("is"):
            if (mine is None) != (operator == "is null"):
                return False
        elif mine is None or not tests[operator](mine, value):
            return False
    return True


# -- answers --------------------------------------------------------------------------------------


def outputs(question: Question, dataset: Dataset) -> list[Aggregate]:
    own = {a.name: a for a in dataset.aggregates}
    found = dict(own) if question.columns is None else {}
    for name in question.columns or ():
        found[name] = own[name]
    for column, kinds in question.agg.items():
        for kind in kinds:
            same = [a for a in own.values() if a.kind == kind and a.of == (column,)]
            extra = same[0] if same else Aggregate(f"{column}_{kind}", kind, (column,))
            found[extra.name] = extra
    return list(found.values())


def answer(points: Points, question: Question, dataset: Dataset) -> list[Row]:
    """The rows of a read, in their order."""
    place = {name: i for i, name in enumerate(question.series)}
    rows = [
        Row(series, ts, seq, values)
        for (series, ts, seq), values in points.items()
        if series in place
        and question.start <= ts < question.end
        and passes(values, question.where)
    ]
    rows.sort(key=lambda r: (r.ts, place[r.series], r.seq))
    if question.step is None:
        columns = question.columns or dataset.names
        found = [Row(r.series, r.ts, r.seq, {c: r.values[c] for c in columns}) for r in rows]
        order = place
    else:
        found = _bars(rows, question, dataset)
        names = sorted(set((question.groups or {}).values()))
        order = place if question.groups is None else {n: i for i, n in enumerate(names)}
    found.sort(key=lambda r: (r.ts, r.seq), reverse=question.descending)
    found.sort(key=lambda r: order[r.series])
    return found[: question.limit]


def _bars(rows: list[Row], question: Question, dataset: Dataset) -> list[Row]:
    assert question.step is not None
    groups = question.groups
    buckets: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        name = row.series if groups is None else groups[row.series]
        at = bucket(row.ts, question.step, question.tz)
        buckets.setdefault((name, at), []).append(row)
    wanted = outputs(question, dataset)
    return [
        Row(name, at, 0, {a.name: aggregated(mine, a, dataset) for a in wanted})
        for (name, at), mine in buckets.items()
    ]


# -- comparing ------------------------------------------------------------------------------------


def plain(cols: Columns) -> list[Row]:
    """The rows of an answer, NULL as None, decimals as they are stored."""
    columns = {}
    for name in cols:
        shown: Any = cols[name]
        if cols.types[name] == "category":
            known = cols.categories[name]
            columns[name] = [None if c < 0 else known[c] for c in shown.tolist()]
        elif cols.types[name] == "float":
            columns[name] = [None if v != v else v for v in shown.tolist()]
        else:
            columns[name] = shown.tolist()
    seq = cols.seq if cols.seq is not None else np.zeros(len(cols), int)
    return [
        Row(cols.names[code], ts, at, {n: v[i] for n, v in columns.items()})
        for i, (code, ts, at) in enumerate(
            zip(cols.series.tolist(), cols.instants.tolist(), seq.tolist(), strict=True)
        )
    ]


def same(mine: Any, theirs: Any, exactly: bool = False) -> bool:
    """Whether an expected value is met; ``exactly``: bit for bit, -0.0 is not 0.0."""
    if isinstance(mine, About):
        return mine.fits(math.nan if theirs is None else theirs)
    if mine is None or theirs is None:
        return mine is theirs
    if exactly and isinstance(mine, float):
        return mine == theirs and math.copysign(1, mine) == math.copysign(1, theirs)
    return bool(mine == theirs)


def differences(expected: list[Row], cols: Columns, dataset: Dataset) -> list[str]:
    """What is wrong with an answer, in words; nothing if it is right."""
    found = plain(cols)
    mine, theirs = ([(r.series, r.ts, r.seq) for r in rows] for rows in (expected, found))
    if mine != theirs:
        return [f"rows {theirs} instead of {mine}"]
    kinds = {a.name: a.kind for a in dataset.aggregates} if cols.plan.grid else {}  # type: ignore[attr-defined]
    wrong = []
    for one, other in zip(expected, found, strict=True):
        if one.values.keys() != other.values.keys():
            return [f"columns {list(other.values)} instead of {list(one.values)}"]
        for name, value in one.values.items():
            # min and max may pick either of two equal zeros
            exactly = kinds.get(name, name.rpartition("_")[2]) not in ("min", "max")
            if not same(value, other.values[name], exactly):
                place = f"{one.series} {EPOCH + timedelta(microseconds=one.ts)} {name}"
                wrong.append(f"{place}: {other.values[name]!r} instead of {value!r}")
    return wrong
