"""Reads Arrow columns into plain form, without a copy where there is neither NULL nor text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toolkit.columns import NULL_CODE, NULL_INT
from toolkit.errors import InputError
from toolkit.ingest.forms import Mask, Numbers, Objects, Plain, Scaled, Times, compacted


def from_arrow(column: pa.Array | pa.ChunkedArray, place: str) -> Plain:
    """Return an Arrow column in plain form."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind, rows = array.type, len(array)
    mask = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None

    def filled(of: pa.Array, null: object) -> npt.NDArray[np.generic]:
        whole = of.fill_null(null) if of.null_count else of
        result: npt.NDArray[np.generic] = whole.to_numpy(zero_copy_only=False)
        return result

    if pa.types.is_null(kind):
        return Numbers(np.full(rows, np.nan))
    if pa.types.is_floating(kind):
        return Numbers(array.to_numpy(zero_copy_only=False))  # NaN for null
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return Numbers(filled(array, pa.scalar(0).cast(kind)), mask)
    if pa.types.is_timestamp(kind):
        counts = filled(array.view(pa.int64()), NULL_INT).astype(np.int64, copy=False)
        return Times(counts, kind.unit, "none" if kind.tz is None else "utc")
    if pa.types.is_date(kind):
        counts = filled(array.cast(pa.date64()).view(pa.int64()), NULL_INT).astype(np.int64)
        return Times(counts, "ms", "none")
    if pa.types.is_decimal(kind):
        return _from_arrow_decimal(array, mask)
    if pa.types.is_dictionary(kind):
        if not _is_text(kind.value_type):
            return from_arrow(array.dictionary_decode(), place)
        codes = filled(array.indices.cast(pa.int64()), NULL_CODE).astype(np.int32)
        return compacted(codes, array.dictionary.to_pylist())
    if _is_text(kind):
        if pa.types.is_string_view(kind):
            array = array.cast(pa.large_string())
        return from_arrow(array.dictionary_encode(), place)
    raise InputError(f"{place}: values of Arrow type {kind} are not taken")


def _is_text(kind: pa.DataType) -> bool:
    tests: list[Callable[[pa.DataType], bool]] = [
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
    ]
    return any(test(kind) for test in tests)


def _from_arrow_decimal(array: pa.Array, mask: Mask | None) -> Plain:
    scale = array.type.scale
    try:
        wide = array.cast(pa.decimal128(38, scale))
    except pa.ArrowInvalid:
        return Objects(array.to_pylist())
    words = np.frombuffer(wide.buffers()[1], dtype="<i8", count=2 * (len(wide) + wide.offset))
    low, high = words.reshape(-1, 2)[wide.offset :].T
    fits = high == low >> 63
    if mask is not None:
        fits |= mask
    if scale < 0 or not fits.all():
        return Objects(array.to_pylist())
    return Scaled(low, scale, mask)
