"""The numbers of the block format: kinds, codecs, limits and what a breach of them raises."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAGIC = b"TSTB"
VERSION = 1
MAX_COLUMNS = 2_048  # PostgreSQL's tables have 1,600 at most
MAX_ROWS = 2**24
MAX_CELLS = 2**26  # rows × columns, the time too: 512 MiB decoded


class Kind(IntEnum):
    """What a column holds; NULLs are in the band, as ``toolkit.columns`` says."""

    TIME = 0
    FLOAT = 1
    INT = 2
    BOOL = 3
    CATEGORY = 4


class Codec(IntEnum):
    """How the values of a column are written."""

    RAW = 0
    CONSTANT = 1
    LINEAR = 2
    PCO = 3


DTYPES: tuple[np.dtype[Any], ...] = tuple(np.dtype(t) for t in ("<i8", "<f8", "<i8", "i1", "<i4"))
"""The type of a kind's values, by the kind's number."""

WHOLE = (Kind.TIME, Kind.INT)
"""The kinds whose values are int64."""


class DamagedBlock(ValueError):
    """Bytes that are not a whole block of a version known here.

    Not one of the public errors: a cache counts a miss; who reads stored blocks knows which
    one it was, and says so in an error of its own.
    """


def check_extent(rows: int, columns: int) -> str:
    """Return what is wrong with so many rows of so many columns (the time is one), or nothing."""
    if rows > MAX_ROWS:
        return f"{rows:,} rows; a block holds at most {MAX_ROWS:,}"
    if columns > MAX_COLUMNS:
        return f"{columns:,} columns; a block holds at most {MAX_COLUMNS:,}"
    if rows * columns > MAX_CELLS:
        return f"{rows:,} rows of {columns:,} columns; a block holds at most {MAX_CELLS:,} values"
    return ""
