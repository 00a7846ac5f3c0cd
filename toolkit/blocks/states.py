"""What can be said of a column without decoding it: count, extremes, ends and sum."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from toolkit.blocks.format import Array, Kind
from toolkit.columns import NULL_BOOL, NULL_INT

_FLOATS = struct.Struct("<I4x5d8x")
_WHOLE = struct.Struct("<I4x4q16s")
SIZE = _WHOLE.size
_ROUNDING = 1e-9  # of the values' absolute sum: machines add in different orders


class States(NamedTuple):
    """States of the values that are not NULL; None where there is none of the kind.

    Floats are floats, all else is int (a bool 0 or 1, a category its code); sums of ints are
    exact. A time has no sum; a category has no sum, min and max.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks
    min: float | None = None
    max: float | None = None
    first: float | None = None
    last: float | None = None
    sum: float | None = None


_FLOAT = int(Kind.FLOAT)  # enums are slow to compare
_NONE = States(0)


def states_of(kind: Kind, values: Array) -> States:
    """Return the states of a column in-band; some passes over it."""
    match kind:
        case Kind.FLOAT:
            values = values[~np.isnan(values)]
        case Kind.INT:
            values = values[values != NULL_INT]
        case Kind.BOOL:
            values = values[values != NULL_BOOL]
        case Kind.CATEGORY:
            values = values[values >= 0]
    if not len(values):
        return States(0)
    ends = values[0].item(), values[-1].item()
    if kind is Kind.CATEGORY:
        return States(len(values), None, None, *ends)
    extremes = values.min().item(), values.max().item()
    return States(len(values), *extremes, *ends, None if kind is Kind.TIME else _sum(kind, values))


def are_states_of(kind: Kind, states: States, values: Array) -> bool:
    """Return whether states are those of a column; a float sum may be off by rounding."""
    found = states_of(kind, values)
    if kind is not Kind.FLOAT or states.sum is None or found.sum is None:
        return states == found
    with np.errstate(all="ignore"):
        slack = _ROUNDING * float(np.nansum(np.abs(values)))
    is_same = math.isclose(states.sum, found.sum, rel_tol=0, abs_tol=slack)
    is_nan = math.isnan(states.sum) and math.isnan(found.sum)
    return states[:5] == found[:5] and (is_same or is_nan)


def pack_states(kind: Kind, states: States) -> bytes:
    """Return the states as they stand in a header, ``SIZE`` bytes; 0 where there is none."""
    count, *values, total = (0 if value is None else value for value in states)
    if kind is Kind.FLOAT:
        return _FLOATS.pack(count, *values, total)
    return _WHOLE.pack(count, *values, int(total).to_bytes(16, "little", signed=True))


def unpack_states(kind: int, data: bytes, at: int = 0) -> States:
    """Return the states that stand in ``data`` of a header ``at`` that place."""
    if kind == _FLOAT:
        floats = States._make(_FLOATS.unpack_from(data, at))
        return floats if floats.count else _NONE
    count, least, most, first, last, total = _WHOLE.unpack_from(data, at)
    if not count:
        return _NONE
    if kind == Kind.CATEGORY:
        return States(count, None, None, first, last)
    whole = None if kind == Kind.TIME else int.from_bytes(total, "little", signed=True)
    return States(count, least, most, first, last, whole)


def _sum(kind: Kind, values: Array) -> float:
    if kind is Kind.FLOAT:
        with np.errstate(all="ignore"):  # inf - inf
            return float(values.sum())
    wide = values.astype(np.int64, copy=False)
    # in halves: as many int64 as a block holds would overflow one
    return (int((wide >> 32).sum()) << 32) + int((wide & 0xFFFF_FFFF).sum())
