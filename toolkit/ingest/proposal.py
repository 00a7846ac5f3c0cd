"""Proposes a dataset for a frame: types from its values, partition and ladder from its density."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from toolkit.dataset import Aggregate, Column, Dataset
from toolkit.errors import InputError, shorten
from toolkit.ingest.coerce import to_series
from toolkit.ingest.forms import Coded, Numbers, Objects, Plain, Scaled, is_missing, shown
from toolkit.ingest.moments import to_instants
from toolkit.ingest.sources import Frame, open_frame, plain
from toolkit.timegrid import DAY, SECOND, Instants, Step

if TYPE_CHECKING:
    import pandas as pd

_KEY = ("series", "ts", "seq")
_CANDLE = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
_NUMERIC = ("float", "int", "decimal")
_OTHERS = ("min", "max", "sum", "count")

_ROWS_PER_PARTITION = 5_000_000
_PARTITIONS = {"1y": 365 * DAY, "1M": 30 * DAY, "1w": 7 * DAY}  # else a day
_LADDER = ("1m", "5m", "1h", "1d")
_LIKELY_UNITS = {"s": 1e11, "ms": 1e14, "us": 1e17}  # what is larger counts nanoseconds
_POINTS_PER_BUCKET = 4  # a rung with fewer points a bucket saves too little to be kept


@dataclass(frozen=True, slots=True)
class _Density:
    """How a frame's points lie in time: all series together, and one of them."""

    rows_per_day: float
    spacing_us: float
    has_ties: bool


_SPARSE = _Density(rows_per_day=1.0, spacing_us=60.0 * SECOND, has_ties=False)


def propose(frame: pd.DataFrame, name: str) -> Dataset:
    """Propose a dataset called ``name`` for a frame, as ``Dataset.from_frame`` describes.

    Only the density is taken from ``ts``, so times without a zone count as UTC here and
    integers in the unit that their size suggests. The ladder has the rungs that gather at
    least four points of a series' usual spacing. ``seq`` joins the key if the frame has it, or
    has different rows of one series at one instant.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"cannot propose from a {type(frame).__qualname__}: give a DataFrame")
    opened = open_frame(frame)
    columns: list[Column] = []
    for column, values in opened.columns:
        if column not in _KEY:
            place = f"column {shorten(column)}"
            columns.append(Column(column, _type_of(plain(values, place), place)))
    density = _density(frame, opened, [c.name for c in columns])
    partition = "1d"
    for text, width in _PARTITIONS.items():
        if density.rows_per_day * width / DAY <= _ROWS_PER_PARTITION:
            partition = text
            break
    usual = _POINTS_PER_BUCKET * density.spacing_us
    return Dataset(
        name,
        tuple(columns),
        tuple(_aggregates(columns)),
        ladder=tuple(s for s in _LADDER if Step.parse(s).approximate_us >= usual),
        partition=partition,
        has_seq=density.has_ties or "seq" in dict([*opened.index, *opened.columns]),
    )


def _type_of(form: Plain, place: str) -> str:
    match form:
        case Numbers(values):
            kind = values.dtype.kind
            return "bool" if kind == "b" else "float" if kind == "f" else "int"
        case Coded():
            return "category"
        case Scaled(_, scale):
            return f"decimal({scale})"
        case Objects(values):
            return _type_of_objects([v for v in values if not is_missing(v)], place)
    raise InputError(f"{place}: times are not values; leave it out, or give it as integers")


def _type_of_objects(values: list[object], place: str) -> str:
    if all(isinstance(v, Decimal) and v.is_finite() for v in values):
        decimals = [v for v in values if isinstance(v, Decimal)]
        return f"decimal({max((_digits(v) for v in decimals), default=0)})"
    if all(isinstance(v, (int, np.integer)) for v in values):
        return "int"
    if all(isinstance(v, (int, float, Decimal, np.number)) for v in values):
        return "float"
    odd = next(v for v in values if not isinstance(v, (int, float, Decimal, np.number)))
    raise InputError(f"{place}: {shown(odd)} is no number, boolean or text")


def _digits(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _aggregates(columns: list[Column]) -> Iterator[Aggregate]:
    numeric = {c.name for c in columns if c.base in _NUMERIC}
    taken = {c.name for c in columns}
    for column in columns:
        of = (column.name,)
        if column.name not in numeric:
            yield Aggregate(column.name, "last", of)
        elif column.name in _CANDLE:
            yield Aggregate(column.name, _CANDLE[column.name], of)
        else:
            yield Aggregate(column.name, "avg", of)
            for kind in _OTHERS:
                if f"{column.name}_{kind}" not in taken:
                    yield Aggregate(f"{column.name}_{kind}", kind, of)
    if {"high", "low", "close", "volume"} <= numeric and "vwap" not in taken:
        yield Aggregate("vwap", "vwap", ("high", "low", "close"), "volume")


def _density(frame: pd.DataFrame, opened: Frame, columns: list[str]) -> _Density:
    import pandas as pd

    given = dict(opened.index) | dict(opened.columns)
    times = given.get("ts", opened.index[0][1] if len(opened.index) == 1 else None)
    if times is None:
        raise InputError("the frame has no column 'ts' and no index of times to propose from")
    if len(frame) < 2:
        return _SPARSE
    ts = _instants(plain(times, "column 'ts'"))
    codes = np.zeros(len(ts), dtype=np.int32)
    if "series" in given:
        codes, _ = to_series(plain(given["series"], "column 'series'"), "column 'series'")
    order = np.lexsort((ts, codes))
    gaps = np.diff(ts[order])[np.diff(codes[order]) == 0]
    keys = pd.DataFrame({"series": codes, "ts": ts})
    tied = keys.duplicated(keep=False).to_numpy()
    rows = pd.concat([keys[tied], frame[columns].reset_index(drop=True)[tied]], axis=1)
    return _Density(
        rows_per_day=len(ts) * DAY / max(int(np.ptp(ts)), DAY // 24),
        spacing_us=float(np.median(gaps)) if len(gaps) else float(DAY),
        has_ties=len(rows.drop_duplicates()) > len(keys[tied].drop_duplicates()),
    )


def _instants(form: Plain) -> Instants:
    unit = None
    if isinstance(form, Numbers) and form.values.dtype.kind in "iu":
        size = float(np.abs(form.values.astype(np.float64)).max())
        unit = next((u for u, limit in _LIKELY_UNITS.items() if size < limit), "ns")
    return to_instants(form, "column 'ts'", tz="UTC", time_unit=unit)
