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
    against the counts (``string_agg`` leaves out NULLs).
    """
    count = rows[0][0] if len(rows) == 1 else sum(r[0] for r in rows)
    packed = _joined(rows, 1)
    columns = len(packing.wide)
    if len(packed) != 8 * columns * count:
        raise DatabaseError(f"{len(packed)} bytes came for {count} rows of {columns} columns")
    matrix = np.frombuffer(packed, _BIG).reshape(count, columns).T.astype(_NATIVE, order="C")
    ts = matrix[0]
    ts += PG_EPOCH  # the key's time is never NULL
    values: dict[str, Array] = {}
    for at, (name, kind) in enumerate(packing.wide[1:], 1):
        values[name] = matrix[at]
        if kind in _FLOATS:
            values[name] = matrix[at].view(_FLOAT)
        elif kind == "time":
            _to_unix(matrix[at])
    categories: dict[str, tuple[str, ...]] = {}
    for at, (name, kind) in enumerate(packing.narrow, 2):
        packed = _joined(rows, at)
        if kind == "category":
            values[name], categories[name] = _category(packed)
        else:
            values[name] = np.frombuffer(packed, np.int8)
        if len(values[name]) != count:
            raise DatabaseError(f"column {name!r} came with {len(values[name])} of {count} values")
    return Unpacked(ts, values, categories)


def _joined(rows: Sequence[Sequence[Any]], at: int) -> bytes:
    if len(rows) == 1:
        return rows[0][at] or b""
    return b"".join([r[at] for r in rows if r[at]])


def _to_unix(column: npt.NDArray[np.int64]) -> None:
    missing = column == NULL_INT
    column += PG_EPOCH
    if missing.any():
        column[missing] = NULL_INT


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
