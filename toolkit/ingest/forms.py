"""The plain forms a column can have before its dataset's types are applied to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_CODE, Codes
from toolkit.errors import shorten

_MAX_SHOWN = 60

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """Booleans, integers or floats of any width; ``mask`` marks NULLs besides NaN."""

    values: npt.NDArray[np.generic]
    mask: Mask | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Codes into the distinct values, -1 for NULL; the values are as yet unchecked."""

    codes: Codes
    names: tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """int64 counts of ``unit`` since 1970, NULL_INT for NaT.

    ``clock`` says whose time it is: "utc", "none" is said, or "numpy": UTC unless a zone is
    given with the frame.
    """

    values: npt.NDArray[np.int64]
    unit: str
    clock: Literal["utc", "none", "numpy"]


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """Exact decimals as integers of ``scale`` digits after the point."""

    values: npt.NDArray[np.int64]
    scale: int
    mask: Mask | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """Anything else, one Python object a row."""

    values: Sequence[object]


Plain = Numbers | Coded | Times | Scaled | Objects


def is_missing(value: object) -> bool:
    """Return whether a Python object stands for NULL: None, NaN, NaT, pandas.NA.

    >>> [is_missing(v) for v in (None, float("nan"), Decimal("NaN"), 0, "", "nan")]
    [True, True, True, False, False, False]
    """
    if value is None:
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, (float, np.floating)):
        return bool(value != value)
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    return type(value).__name__ in ("NAType", "NaTType")


def shown(value: object) -> str:
    """Quote a value for a message.

    >>> shown("abc"), shown(np.float64(1.5)), shown([1])
    ("'abc'", '1.5', '[1]')
    """
    if isinstance(value, str):
        return shorten(value)
    try:
        text = str(value) if isinstance(value, np.generic) else repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def compacted(codes: Codes, names: Sequence[object]) -> Coded:
    """Give equal names one code, missing ones -1, and drop names without a row."""
    used = np.zeros(len(names) + 1, dtype=np.bool_)
    used[codes] = True  # -1 marks the spare last entry
    position: dict[object, int] = {}
    table = np.full(len(names) + 1, NULL_CODE, dtype=np.int32)
    for code in np.flatnonzero(used[:-1]).tolist():
        if not is_missing(names[code]):
            table[code] = position.setdefault(names[code], len(position))
    if len(position) == len(names):
        return Coded(codes, tuple(names))
    return Coded(table[codes], tuple(position))


def filled(values: npt.NDArray[np.int64], mask: Mask | None, null: int) -> npt.NDArray[np.int64]:
    """Return the values with ``null`` where the mask says so."""
    return values if mask is None or not mask.any() else np.where(mask, null, values)
