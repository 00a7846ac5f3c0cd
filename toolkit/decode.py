"""From packed rows to arrays: what is eight bytes wide in one bytea, row by row, big-endian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_CODE, NULL_INT
from toolkit.errors import DatabaseError
from toolkit.timegrid import PG_EPOCH

Array = npt.NDArray[Any]
_NARROW = ("bool", "category")
_FLOATS = ("float", "sum")
_BIG, _NATIVE, _FLOAT = np.dtype(">i8"), np.dtype(np.int64), np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class Packing:
    """How rows travel: ``wide`` columns, the time first, interleaved; each ``narrow`` by itself.

    A column is (name, kind); kinds are float, int, decimal, time, bool, category, and sum, a
    float whose NULL is not NaN. A packed row is a count, the wide bytea, and one a narrow column.
    """

    wide: tuple[tuple[str, str], ...]
    narrow: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, columns: Sequence[tuple[str, str]]) -> Packing:
        """Build from the columns after the time."""
        return cls(
            (("ts", "time"), *(c for c in columns if c[1] not in _NARROW)),
            tuple(c for c in columns if c[1] in _NARROW),
        )

    @property
    def width(self) -> int:
        """How many columns of a packed row follow its count."""
        return 1 + len(self.narrow)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Columns of one or more packed rows, one after the other; NULLs in the band."""

    ts: npt.NDArray[np.int64]
    values: dict[str, Array]
    categories: dict[str, tuple[str, ...]]


def unpack(packing: Packing, rows: Sequence[Sequence[Any]]) -> Unpacked:
    """Return the columns of packed rows (count, wide, narrow …), or refuse a damaged one.

    A value lost on the way would put every later one into a wrong row: lengths are checked
    against the counts (``string_agg`` leaves out NULLs). Each row is copied to its place by
    itself: no call holds other threads up for longer than that.
    """
    matrix = _matrix(len(packing.wide), rows)
    ts = matrix[0]
    ts += PG_EPOCH  # the key's time is never NULL
    floats = matrix.view(_FLOAT)
    values: dict[str, Array] = {}
    for at, (name, kind) in enumerate(packing.wide):
        if kind in _FLOATS:
            values[name] = floats[at]
        elif at:
            values[name] = matrix[at]
            if kind == "time":
                _to_unix(matrix[at])
    categories: dict[str, tuple[str, ...]] = {}
    for at, (name, kind) in enumerate(packing.narrow, 2):
        parts = [r[at] for r in rows if r[at]]
        if kind == "category":
            values[name], categories[name] = _category(parts)
        else:
            values[name] = np.frombuffer(b"".join(parts), np.int8)
        if len(values[name]) != len(ts):
            raise DatabaseError(f"{len(values[name])} values of {name!r} came for {len(ts)} rows")
    return Unpacked(ts, values, categories)


def _matrix(columns: int, rows: Sequence[Sequence[Any]]) -> npt.NDArray[np.int64]:
    """Return the wide columns as rows of one array, in this machine's byte order."""
    for count, packed, *_ in rows:
        if len(packed or b"") != 8 * columns * count:
            size = len(packed or b"")
            raise DatabaseError(f"{size} bytes came for {count} rows of {columns} columns")
    if len(rows) == 1:
        wire = np.frombuffer(rows[0][1] or b"", _BIG).reshape(rows[0][0], columns)
        return wire.T.astype(_NATIVE, order="C")
    matrix = np.empty((columns, sum(r[0] for r in rows)), _NATIVE)
    at = 0
    for count, packed, *_ in rows:
        if count:
            matrix[:, at : at + count] = np.frombuffer(packed, _BIG).reshape(count, columns).T
            at += count
    return matrix


def _to_unix(column: npt.NDArray[np.int64]) -> None:
    missing = column == NULL_INT
    column += PG_EPOCH
    if missing.any():
        column[missing] = NULL_INT


def _category(parts: Sequence[bytes]) -> tuple[Array, tuple[str, ...]]:
    index: dict[bytes, int] = {}
    codes = [_codes(part, index) for part in parts]
    joined = np.concatenate(codes) if codes else np.empty(0, np.int32)
    return joined, tuple(name.decode() for name in index)


def _codes(packed: bytes, index: dict[bytes, int]) -> npt.NDArray[np.int32]:
    pieces = packed.split(b"\x00")
    pieces.pop()
    return np.fromiter(
        (NULL_CODE if p == b"\xff" else index.setdefault(p, len(index)) for p in pieces),
        np.int32,
        len(pieces),
    )
