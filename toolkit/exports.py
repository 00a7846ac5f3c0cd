"""Renders columns for pandas and Arrow, one column at a time and exactly."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_INT, Codes, Columns, InBand, is_null

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_EXACT = Context(prec=40)
_DIGITS = 18  # of an Arrow decimal; a sum that outgrows them gets one more


def to_pandas(columns: Columns) -> pd.DataFrame:
    """Return the DataFrame that ``Columns.to_pandas`` describes."""
    import pandas as pd

    data: dict[str, object] = {
        "series": _pandas_text(columns.series, columns.names),
        "ts": pd.DatetimeIndex(columns.ts).tz_localize("UTC"),
    }
    if columns.seq is not None:
        data["seq"] = columns.seq
    for name in columns:
        names = columns.categories.get(name, ())
        data[name] = _for_pandas(columns.types[name], columns.raw(name), names)
    return pd.DataFrame(data)


def to_arrow(columns: Columns) -> pa.Table:
    """Return the table that ``Columns.to_arrow`` describes."""
    import pyarrow as pa

    data = {
        "series": _arrow_text(columns.series, columns.names),
        "ts": pa.array(columns.ts, type=pa.timestamp("us", tz="UTC")),
    }
    if columns.seq is not None:
        data["seq"] = pa.array(columns.seq)
    for name in columns:
        names = columns.categories.get(name, ())
        data[name] = _for_arrow(columns.types[name], columns.raw(name), names)
    return pa.table(data)


def to_decimals(scaled: npt.NDArray[np.int64], scale: int) -> list[Decimal | None]:
    """Return the exact values of scaled integers, None for NULL.

    >>> to_decimals(np.array([12345, NULL_INT]), 2)
    [Decimal('123.45'), None]
    """
    shift = _EXACT.scaleb
    return [None if v == NULL_INT else shift(Decimal(v), -scale) for v in scaled.tolist()]


def _for_pandas(kind: str, values: InBand, names: tuple[str, ...]) -> object:
    import pandas as pd

    if kind == "float":
        return values
    if kind == "category":
        return _pandas_text(values.astype(np.int32, copy=False), names)
    if kind == "time":
        return pd.DatetimeIndex(values.view("M8[us]")).tz_localize("UTC")
    if kind.startswith("decimal"):
        made = np.empty(len(values), dtype=object)
        made[:] = to_decimals(values.astype(np.int64, copy=False), _scale(kind))
        return made
    mask = is_null(kind, values)
    if kind == "bool":
        return pd.arrays.BooleanArray(values == 1, mask) if mask.any() else values == 1
    if mask.any():
        return pd.arrays.IntegerArray(np.where(mask, 0, values.astype(np.int64)), mask)
    return values


def _pandas_text(codes: Codes, names: tuple[str, ...]) -> object:
    import pandas as pd

    return pd.Categorical.from_codes(codes, pd.Index(list(names), dtype="str"))


def _for_arrow(kind: str, values: InBand, names: tuple[str, ...]) -> pa.Array:
    import pyarrow as pa

    if kind == "float":
        return pa.array(values, from_pandas=True)
    if kind == "category":
        return _arrow_text(values.astype(np.int32, copy=False), names)
    if kind == "time":
        return pa.array(values.view("M8[us]"), type=pa.timestamp("us", tz="UTC"))
    mask = is_null(kind, values)
    if kind.startswith("decimal"):
        return _arrow_decimal(values.astype(np.int64, copy=False), mask, _scale(kind))
    return pa.array(values == 1 if kind == "bool" else values, mask=mask)


def _arrow_text(codes: Codes, names: tuple[str, ...]) -> pa.Array:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(
        pa.array(codes, mask=codes < 0), pa.array(names, type=pa.string())
    )


def _arrow_decimal(
    scaled: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_], scale: int
) -> pa.Array:
    import pyarrow as pa

    value = np.where(mask, 0, scaled)
    words = np.empty((len(value), 2), dtype="<i8")
    words[:, 0], words[:, 1] = value, value >> 63
    longest = max(abs(int(value.min())), abs(int(value.max()))) if len(value) else 0
    validity = pa.py_buffer(np.packbits(~mask, bitorder="little")) if mask.any() else None
    return pa.Array.from_buffers(
        pa.decimal128(_DIGITS if longest < 10**_DIGITS else _DIGITS + 1, scale),
        len(value),
        [validity, pa.py_buffer(words)],
    )


def _scale(kind: str) -> int:
    return int(kind[len("decimal(") : -1])
