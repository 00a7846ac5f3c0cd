"""From packed rows to arrays: one bytea a column, big-endian, NULLs in the band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_CODE, NULL_INT
from toolkit.errors import DatabaseError
from toolkit.timegrid import PG_EPOCH

Array = npt.NDArray[Any]
_WIRE = {"float": ">f8", "sum": ">f8", "int": ">i8", "decimal": ">i8", "time": ">i8", "bool": "i1"}


def column(kind: str, parts: Sequence[bytes | None]) -> tuple[Array, tuple[str, ...]]:
    """Return a column from the bytea of each series in turn, and its names if it is a category."""
    packed = b"".join([p for p in parts if p]) if len(parts) != 1 else parts[0] or b""
    if kind == "category":
        return _category(packed)
    wire = np.frombuffer(packed, _WIRE[kind])
    values: Array = wire.astype(wire.dtype.newbyteorder("="))
    if kind == "time":
        missing = values == NULL_INT
        values += PG_EPOCH
        if missing.any():
            values[missing] = NULL_INT
    return values, ()


def times(parts: Sequence[bytes | None]) -> npt.NDArray[np.int64]:
    """Return the key's times, which are never NULL, in µs since 1970."""
    packed = b"".join([p for p in parts if p]) if len(parts) != 1 else parts[0] or b""
    values = np.frombuffer(packed, ">i8").astype(np.int64)
    values += PG_EPOCH
    return values


def check_length(name: str, values: Array, count: int) -> None:
    """Refuse a packed column that lost a value: every later one would stand in a wrong row."""
    if len(values) != count:
        raise DatabaseError(f"column {name!r} came with {len(values)} values for {count} rows")


def _category(packed: bytes) -> tuple[Array, tuple[str, ...]]:
    pieces = packed.split(b"\x00")
    pieces.pop()
    index: dict[bytes, int] = {}
    codes = np.fromiter(
        (NULL_CODE if p == b"\xff" else index.setdefault(p, len(index)) for p in pieces),
        np.int32,
        len(pieces),
    )
    return codes, tuple(name.decode() for name in index)
