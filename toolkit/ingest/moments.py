"""Turns a column of times into microseconds since 1970 UTC, rounded down, inside 1900 to 2100."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_INT
from toolkit.errors import InputError, QueryError, shorten
from toolkit.ingest.coerce import refuse
from toolkit.ingest.forms import Coded, Mask, Numbers, Objects, Plain, Times, is_missing
from toolkit.timegrid import EARLIEST, LATEST, Instants, to_us, zone

UNITS = ("s", "ms", "us", "ns")

# microseconds per unit as (multiply, divide); coarser units go through days
_FACTORS = {
    "D": (86_400_000_000, 1),
    "h": (3_600_000_000, 1),
    "m": (60_000_000, 1),
    "s": (1_000_000, 1),
    "ms": (1_000, 1),
    "us": (1, 1),
    "ns": (1, 1_000),
    "ps": (1, 1_000_000),
    "fs": (1, 1_000_000_000),
    "as": (1, 1_000_000_000_000),
}
_COARSE = {"W": 100_000, "M": 100_000, "Y": 10_000}


def to_instants(
    form: Plain, place: str, *, tz: str | None = None, time_unit: str | None = None
) -> Instants:
    """Return a time column's instants.

    ``tz`` is the zone of times that carry none; ``time_unit`` ("s", "ms", "us", "ns") is what
    integers count, since 1970 UTC. Finer than a microsecond is rounded down, before 1970 too.
    """
    if time_unit is not None and time_unit not in UNITS:
        raise InputError(f"time_unit {time_unit!r} is none of {', '.join(map(repr, UNITS))}")
    match form:
        case Times(values, unit, clock):
            if clock == "none" and tz is None:
                _refuse_naive(place, values.view(f"M8[{unit}]"))
            instants = _scaled(values, unit, place)
            return instants if clock == "utc" or tz is None else _localised(instants, tz, place)
        case Numbers(values, mask):
            return _from_integers(values, mask, place, time_unit)
        case Coded(codes, names):
            first = np.zeros(len(names) + 1, dtype=np.int64)
            first[codes[::-1]] = np.arange(len(codes))[::-1]
            table = [
                _moment(name, tz, f"{place}, row {row}")
                for name, row in zip(names, first.tolist(), strict=False)
            ]
            return _scaled(np.array([*table, NULL_INT], dtype=np.int64)[codes], "us", place)
        case Objects(values):
            return _from_objects(values, place, tz)
    raise InputError(f"{place}: decimals are not times")


def _scaled(values: npt.NDArray[np.int64], unit: str, place: str, hint: str = "") -> Instants:
    if unit in _COARSE:
        bad = (values != NULL_INT) & (np.abs(values) > _COARSE[unit])
        if bad.any():
            _refuse_range(place, bad, values, unit, hint)
        values = values.view(f"M8[{unit}]").astype("M8[D]").view(np.int64)
        unit = "D"
    multiply, divide = _FACTORS[unit]
    # first and last plausible count in the column's own unit, so that nothing overflows
    low = EARLIEST // multiply * divide
    high = LATEST // multiply * divide
    if len(values) and not low <= int(values.min()) <= int(values.max()) < high:
        _refuse_range(place, (values < low) | (values >= high), values, unit, hint)
    if divide > 1:
        return values // divide
    return values * multiply if multiply > 1 else values


def _refuse_range(
    place: str, bad: Mask, values: npt.NDArray[np.int64], unit: str, hint: str
) -> NoReturn:
    first = int(values[int(np.argmax(bad))])
    if first == NULL_INT:
        refuse(place, bad, None, "there is no time (NaT)")
    shown = values[[int(np.argmax(bad))]].view(f"M8[{unit}]")[0]
    refuse(place, bad, None, f"{shown} is not between 1900 and 2100{hint}")


def _from_integers(
    values: npt.NDArray[np.generic], mask: Mask | None, place: str, time_unit: str | None
) -> Instants:
    kind = values.dtype.kind
    if kind == "f" and np.isnan(values).all():
        refuse(place, np.ones(len(values), np.bool_), None, "there is no time (NaN)")
    if kind not in "iu":
        raise InputError(
            f"{place}: values of type {values.dtype} are not times; give datetimes, "
            "or integers with time_unit="
        )
    if time_unit is None:
        raise InputError(
            f"{place}: integers need time_unit='s', 'ms', 'us' or 'ns': what they count since 1970"
        )
    if kind == "u" and values.dtype.itemsize == 8:
        beyond = values.astype(np.uint64) >= np.uint64(2**63)
        if beyond.any():
            refuse(place, beyond, values, "is not between 1900 and 2100")
    counts = values.astype(np.int64, copy=False)
    if mask is not None and mask.any():
        counts = np.where(mask, NULL_INT, counts)
    return _scaled(counts, time_unit, place, f"; are these really {time_unit!r} since 1970?")


def _from_objects(values: Sequence[object], place: str, tz: str | None) -> Instants:
    instants = np.fromiter(
        (_one(value, tz, f"{place}, row {row}") for row, value in enumerate(values)),
        dtype=np.int64,
        count=len(values),
    )
    return _scaled(instants, "us", place)


def _one(value: object, tz: str | None, place: str) -> int:
    if is_missing(value):
        return NULL_INT
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime) and value.utcoffset() is None:
        if tz is None:
            raise InputError(f"{place}: {value.isoformat()} {_NAIVE}")
        micros = (value.replace(tzinfo=UTC, fold=0) - _EPOCH) // _MICROSECOND
        return int(_localised(np.array([micros]), tz, place)[0])
    try:
        return to_us(value, place)
    except QueryError as error:
        raise InputError(f"{error}; nothing was stored") from None


def _moment(name: object, tz: str | None, place: str) -> int:
    if isinstance(name, str) and tz is not None:
        try:
            name = datetime.fromisoformat(name.strip())
        except ValueError:
            raise InputError(f"{place}: {shorten(str(name))} is not ISO 8601 time") from None
    return _one(name, tz, place)


def _refuse_naive(place: str, values: npt.NDArray[np.generic]) -> NoReturn:
    shown = f" (row 0: {values[0]})" if len(values) else ""
    raise InputError(f"{place}: the times{shown} {_NAIVE}")


def _localised(local: Instants, tz: str, place: str) -> Instants:
    """Return the instants at which clocks in ``tz`` show the ``local`` times."""
    where = zone(tz)
    if tz == "UTC":
        return local
    import pandas as pd

    there = pd.DatetimeIndex(local.view("M8[us]")).tz_localize(
        where, ambiguous="NaT", nonexistent="NaT"
    )
    instants = there.tz_convert(None).to_numpy().astype("M8[us]").view(np.int64)
    bad = instants == NULL_INT
    if bad.any():
        shown = np.datetime64(int(local[int(np.argmax(bad))]), "us")
        moment: datetime = shown.item()
        first, second = (moment.replace(tzinfo=where, fold=f).utcoffset() for f in (0, 1))
        assert first is not None
        assert second is not None
        what = "twice" if first > second else "never"
        refuse(
            place,
            bad,
            None,
            f"clocks in {tz} showed {shown} {what}, when they were changed; "
            "give these times with an offset or in UTC",
        )
    return _scaled(instants, "us", place)


_NAIVE = (
    "carry no time zone: whose clock shows them? Give tz='UTC' (or a name like "
    "'Europe/Berlin'), or make them time zone aware"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = datetime.resolution
