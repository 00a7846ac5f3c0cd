"""Opens any kind of frame: its columns by name, each in one of five plain forms."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_INT, Columns, is_null
from toolkit.errors import InputError, shorten
from toolkit.ingest.forms import (
    Coded,
    Mask,
    Numbers,
    Objects,
    Plain,
    Scaled,
    Times,
    compacted,
    filled,
    shown,
)

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's columns by name, not yet converted, and its row count.

    ``index`` holds what may stand in for a missing column: a pandas index's levels.
    """

    kind: str
    rows: int
    columns: Sequence[tuple[str, object]]
    index: Sequence[tuple[str, object]] = ()


def open_frame(frame: object) -> Frame:
    """Return the columns of a pandas, polars or Arrow frame, of Columns or a dict of arrays."""
    if isinstance(frame, Mapping):
        return _open_mapping(frame)
    if isinstance(frame, Columns):
        return _open_columns(frame)
    if sys.modules.get("pandas"):
        import pandas as pd

        if isinstance(frame, pd.DataFrame):
            return _open_pandas(frame)
    if sys.modules.get("polars"):
        import polars as pl

        if isinstance(frame, pl.DataFrame):
            pairs = list(zip(frame.columns, frame.get_columns(), strict=True))
            return Frame("polars DataFrame", frame.height, pairs)
        if isinstance(frame, pl.LazyFrame):
            raise InputError("a polars LazyFrame has no rows yet: give frame.collect()")
    if sys.modules.get("pyarrow"):
        import pyarrow as pa

        if isinstance(frame, (pa.Table, pa.RecordBatch)):
            pairs = list(zip(frame.schema.names, frame.columns, strict=True))
            return Frame(f"pyarrow {type(frame).__name__}", frame.num_rows, pairs)
    raise InputError(
        f"cannot take a {type(frame).__module__}.{type(frame).__qualname__}: give a pandas or "
        "polars DataFrame, a pyarrow Table or RecordBatch, Columns, or a dict of arrays or lists"
    )


def plain(column: object, place: str) -> Plain:
    """Return one column of any of these frames in a plain form, without a copy if it can be."""
    if isinstance(column, Plain):
        return column
    if isinstance(column, np.ndarray):
        return _from_numpy(column, place)
    if isinstance(column, (list, tuple)):
        return _from_objects(column)
    if sys.modules.get("pandas"):
        import pandas as pd

        if isinstance(column, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
            return _from_pandas(pd.Series(column, copy=False), place)
    if sys.modules.get("polars"):
        import polars as pl

        if isinstance(column, pl.Series):
            return _from_polars(column, place)
    if sys.modules.get("pyarrow"):
        import pyarrow as pa

        from toolkit.ingest.arrowsource import from_arrow

        if isinstance(column, (pa.Array, pa.ChunkedArray)):
            return from_arrow(column, place)
    if isinstance(column, range):
        return Numbers(np.arange(column.start, column.stop, column.step, dtype=np.int64))
    hint = ""
    if isinstance(column, str):
        hint = "; one name for all rows goes into series="
    raise InputError(f"{place}: {shown(column)} is not an array or a list{hint}")


def _open_mapping(frame: Mapping[object, object]) -> Frame:
    pairs: list[tuple[str, object]] = []
    for name, column in frame.items():
        if not isinstance(name, str):
            raise InputError(f"column name {name!r} is a {type(name).__name__}, not text")
        form = column
        if not hasattr(column, "__len__") or isinstance(column, (str, bytes)):
            form = plain(column, f"column {shorten(name)}")
        elif isinstance(column, np.ndarray) and column.ndim != 1:
            raise InputError(f"column {shorten(name)}: an array of {column.ndim} dimensions, not 1")
        pairs.append((name, form))
    lengths = {name: len(column) for name, column in pairs}  # type: ignore[arg-type]  # checked above
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{shorten(n)} {k:,}" for n, k in lengths.items())
        raise InputError(f"the columns differ in length: {shown}")
    return Frame("dict", next(iter(lengths.values()), 0), pairs)


def _open_columns(columns: Columns) -> Frame:
    pairs: list[tuple[str, object]] = [
        ("series", Coded(columns.series, columns.names)),
        ("ts", Times(columns.instants, "us", "utc")),
    ]
    if columns.seq is not None:
        pairs.append(("seq", columns.seq))
    for name in columns:
        kind, values = columns.types[name], columns.raw(name)
        form: Plain
        if kind == "category":
            form = Coded(values.astype(np.int32, copy=False), columns.categories[name])
        elif kind.startswith("decimal"):
            exact = values.astype(np.int64, copy=False)
            form = Scaled(exact, int(kind[len("decimal(") : -1]), is_null(kind, values))
        elif kind == "time":
            form = Times(values.astype(np.int64, copy=False), "us", "utc")
        else:
            form = Numbers(values, is_null(kind, values))
        pairs.append((name, form))
    return Frame("Columns", len(columns), pairs)


def _open_pandas(frame: pd.DataFrame) -> Frame:
    import pandas as pd

    if isinstance(frame.columns, pd.MultiIndex):
        raise InputError(
            "the DataFrame's columns have several levels; flatten them, "
            "for instance frame.columns = ['_'.join(c) for c in frame.columns]"
        )
    pairs: list[tuple[str, object]] = []
    for position, name in enumerate(frame.columns):
        if not isinstance(name, str):
            raise InputError(f"column name {name!r} is a {type(name).__name__}, not text")
        pairs.append((name, frame.iloc[:, position]))
    index: list[tuple[str, object]] = []
    for level in range(frame.index.nlevels):
        values = frame.index.get_level_values(level)
        if isinstance(values.name, str):
            index.append((values.name, values))
        elif isinstance(values, pd.DatetimeIndex):
            index.append(("", values))
    return Frame("pandas DataFrame", len(frame), pairs, index)


def _from_numpy(array: npt.NDArray[np.generic], place: str) -> Plain:
    if array.ndim != 1:
        raise InputError(f"{place}: an array of {array.ndim} dimensions, not 1")
    mask: Mask | None = None
    if isinstance(array, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(array)
        array = array.data
    match array.dtype.kind:
        case "b" | "i" | "u" | "f":
            return Numbers(array, mask)
        case "M":
            unit = np.datetime_data(array.dtype)[0]  # type: ignore[arg-type]  # kind M
            counts = array.astype(f"M8[{unit}]", copy=False).view(np.int64)
            return Times(filled(counts, mask, NULL_INT), unit, "numpy")
        case "O" | "U" | "T":
            values = array.tolist()
            if mask is not None:
                values = [None if m else v for v, m in zip(values, mask.tolist(), strict=True)]
            return _from_objects(values)
    hint = "; decode it first, for instance array.astype('U')" if array.dtype.kind == "S" else ""
    raise InputError(f"{place}: values of numpy type {array.dtype} are not taken{hint}")


def _from_objects(values: Sequence[object]) -> Plain:
    kinds = set(map(type, values))
    has_none = type(None) in kinds
    kinds.discard(type(None))
    if not kinds or kinds <= {float, np.float64}:
        return Numbers(np.array(values, dtype=np.float64))  # None becomes NaN
    if kinds in ({int}, {bool}):
        mask = np.array([v is None for v in values]) if has_none else None
        present = [0 if v is None else v for v in values] if has_none else values
        try:
            return Numbers(np.array(present, dtype=np.int64 if int in kinds else np.bool_), mask)
        except OverflowError:
            return Objects(values)
    if any(issubclass(kind, str) for kind in kinds):
        return _encoded(values)
    return Objects(values)


def _encoded(values: Sequence[object]) -> Plain:
    position: dict[object, int] = {}
    add = position.setdefault
    try:
        found = [add(v, len(position)) for v in values]
    except TypeError:  # an unhashable object among the texts
        return Objects(values)
    return compacted(np.array(found, dtype=np.int32), list(position))


def _from_pandas(series: pd.Series, place: str) -> Plain:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.DatetimeTZDtype):
        form = _from_numpy(series.dt.tz_convert(None).to_numpy(), place)
        return replace(form, clock="utc") if isinstance(form, Times) else form
    if isinstance(dtype, pd.CategoricalDtype):
        names = dtype.categories.tolist()
        if not all(isinstance(n, str) for n in names):
            return _from_numpy(np.asarray(series), place)
        return compacted(series.cat.codes.to_numpy().astype(np.int32), names)
    if isinstance(dtype, pd.ArrowDtype) or getattr(dtype, "storage", "") == "pyarrow":
        import pyarrow as pa

        from toolkit.ingest.arrowsource import from_arrow

        return from_arrow(pa.array(series.array, from_pandas=True), place)
    if isinstance(dtype, np.dtype):
        form = _from_numpy(series.to_numpy(), place)
        return replace(form, clock="none") if isinstance(form, Times) else form
    array = series.array
    if isinstance(array, (pd.arrays.IntegerArray, pd.arrays.FloatingArray, pd.arrays.BooleanArray)):
        mask = series.isna().to_numpy()
        return Numbers(array.to_numpy(dtype=np.dtype(array.dtype.type), na_value=0), mask)
    if isinstance(dtype, (pd.PeriodDtype, pd.IntervalDtype)):
        raise InputError(f"{place}: values of pandas type {dtype} are not taken")
    return _from_numpy(np.asarray(series), place)


def _from_polars(series: pl.Series, place: str) -> Plain:
    import polars as pl

    dtype = series.dtype
    mask = series.is_null().to_numpy() if series.null_count() else None
    if dtype.is_integer() or dtype.is_float():
        return Numbers((series if mask is None else series.fill_null(0)).to_numpy(), mask)
    if dtype == pl.Boolean:
        return Numbers((series if mask is None else series.fill_null(False)).to_numpy(), mask)
    if isinstance(dtype, (pl.Datetime, pl.Date)):
        physical = series.to_physical()
        whole = (physical if mask is None else physical.fill_null(0)).to_numpy()
        counts = filled(whole.astype(np.int64, copy=False), mask, NULL_INT)
        if isinstance(dtype, pl.Date):
            return Times(counts, "D", "none")
        return Times(counts, dtype.time_unit, "utc" if dtype.time_zone else "none")
    if dtype in (pl.String, pl.Categorical, pl.Enum) or isinstance(dtype, pl.Decimal):
        try:
            from toolkit.ingest.arrowsource import from_arrow

            return from_arrow(series.to_arrow(), place)
        except ImportError:
            return _from_objects(series.to_list())
    if dtype in (pl.Null, pl.Object):
        return _from_objects(series.to_list())
    raise InputError(f"{place}: values of polars type {dtype} are not taken")
