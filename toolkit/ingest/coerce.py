"""Turns a column in plain form into a dataset column's in-band values, or says which row is not."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT, Codes, InBand
from toolkit.errors import InputError, shorten
from toolkit.ingest.forms import (
    Coded,
    Mask,
    Numbers,
    Objects,
    Plain,
    Scaled,
    Times,
    is_missing,
    shown,
)

MAX_TEXT = 500

_INT_LIMIT = 2**63
_EXACT = Context(prec=60, traps=[Inexact, InvalidOperation])
# integers up to here have exactly one floating-point value, so a round trip proves exactness
_EXACT_UP_TO = {2: 2**11, 4: 2**24, 8: 2**53}

Ints = npt.NDArray[np.int64]


def coerce(form: Plain, type: str, place: str) -> tuple[InBand, tuple[str, ...]]:
    """Return a column's in-band values, and its names if it is a category."""
    match type.partition("(")[0]:
        case "float":
            return to_float(form, place), ()
        case "int":
            return to_int(form, place), ()
        case "bool":
            return to_bool(form, place), ()
        case "category":
            return to_category(form, place)
        case _:
            return to_decimal(form, int(type[len("decimal(") : -1]), place), ()


def to_float(form: Plain, place: str) -> npt.NDArray[np.float64]:
    """Return float64 with NaN for NULL; -0.0 and infinities stay as they are."""
    match form:
        case Numbers(values, mask):
            result = values.astype(np.float64, copy=False)
            return result if mask is None or not mask.any() else np.where(mask, np.nan, result)
        case Scaled(values, scale, mask):
            result = values / 10.0**scale
            return result if mask is None else np.where(mask, np.nan, result)
        case Objects(values):
            return np.array([_float(v, place, row) for row, v in enumerate(values)], np.float64)
    _refuse_unless_empty(form, place, "a number")
    return np.full(_rows(form), np.nan)


def to_int(form: Plain, place: str) -> Ints:
    """Return int64 with NULL_INT for NULL; floats must be integral."""
    match form:
        case Numbers(values, mask):
            return _int_numbers(values, mask, place)
        case Scaled(values, scale, mask):
            return _rescaled(values, mask, scale, 0, place)
        case Objects(values):
            return _fit([_scaled(v, 0, place, row) for row, v in enumerate(values)], place)
    _refuse_unless_empty(form, place, "a whole number")
    return np.full(_rows(form), NULL_INT)


def to_bool(form: Plain, place: str) -> npt.NDArray[np.int8]:
    """Return int8 0, 1 or NULL_BOOL; the numbers 0 and 1 count as booleans."""
    if isinstance(form, (Objects, Scaled)):
        form = Numbers(to_float(form, place))
    if not isinstance(form, Numbers):
        _refuse_unless_empty(form, place, "a boolean")
        return np.full(_rows(form), NULL_BOOL, dtype=np.int8)
    values, missing = form.values, _missing(form.values, form.mask)
    bad = (values != 0) & (values != 1) & ~missing
    if bad.any():
        refuse(place, bad, values, "is not a boolean")
    result: npt.NDArray[np.int8] = (values == 1).astype(np.int8)
    result[missing] = NULL_BOOL
    return result


def to_category(form: Plain, place: str) -> tuple[Codes, tuple[str, ...]]:
    """Return int32 codes, NULL_CODE for NULL, and the distinct texts."""
    if isinstance(form, Coded):
        return form.codes, _texts(form, place)
    _refuse_unless_empty(form, place, "text")
    return np.full(_rows(form), NULL_CODE, dtype=np.int32), ()


def to_series(form: Plain, place: str) -> tuple[Codes, tuple[str, ...]]:
    """Return each row's series as a code, and the names, each fit to be one."""
    codes, names = to_category(form, place)
    absent = codes < 0
    if absent.any():
        refuse(place, absent, None, "has no series name")
    for code, name in enumerate(names):
        problem = name_problem(name)
        if problem:
            refuse(place, codes == code, None, f"series name {shorten(name)} {problem}")
    return codes, names


def name_problem(name: str) -> str:
    """Return what keeps a text from being a series name, or "".

    >>> name_problem("BTC-USD; 'x' % 🚀"), name_problem("")
    ('', 'is empty')
    """
    return text_problem(name) if name else "is empty"


def text_problem(text: str) -> str:
    """Return what keeps PostgreSQL from storing a text, or ""."""
    if len(text) > MAX_TEXT:
        return f"is longer than {MAX_TEXT} characters"
    if "\0" in text:
        return "contains a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which UTF-8 cannot hold"
    return ""


def to_decimal(form: Plain, scale: int, place: str) -> Ints:
    """Return integers scaled by 10**scale, exactly, with NULL_INT for NULL.

    A float is taken if it is the float nearest to a decimal of that scale, as 0.1 is at scale
    1, and small enough for that decimal to be the only one.
    """
    match form:
        case Numbers(values, mask) if values.dtype.kind == "f":
            return _decimal_floats(values, mask, scale, place)
        case Numbers(values, mask):
            whole = _int_numbers(values, mask, place)
            return _multiplied(whole, whole == NULL_INT, 10**scale, place)
        case Scaled(values, own, mask):
            return _rescaled(values, mask, own, scale, place)
        case Objects(values):
            return _fit([_scaled(v, scale, place, row) for row, v in enumerate(values)], place)
    _refuse_unless_empty(form, place, "a decimal")
    return np.full(_rows(form), NULL_INT)


def refuse(place: str, bad: Mask, values: npt.NDArray[np.generic] | None, problem: str) -> NoReturn:
    """Raise InputError naming the first bad row, its value if given, and how many there are."""
    row, count = int(np.argmax(bad)), int(np.count_nonzero(bad))
    value = "" if values is None else f"{shown(values[row])} "
    more = f" ({count:,} such rows)" if count > 1 else ""
    raise InputError(f"{place}, row {row}: {value}{problem}{more}; nothing was stored")


def _rows(form: Plain) -> int:
    return len(form.codes) if isinstance(form, Coded) else len(form.values)


def _refuse_unless_empty(form: Plain, place: str, wanted: str) -> None:
    """Refuse a column of the wrong kind at its first value; one of only NULLs is fine."""
    match form:
        case Coded(codes, names):
            wrong = np.array([*(isinstance(n, str) for n in names), False])[codes]
            present = wrong if wrong.any() else codes >= 0
            if present.any():
                value = names[codes[int(np.argmax(present))]]
                refuse(place, present, None, f"{shown(value)} is not {wanted}")
        case Times(values, unit):
            present = values != NULL_INT
            if present.any():
                refuse(place, present, values.view(f"M8[{unit}]"), f"is a time, not {wanted}")
        case Numbers(values, mask):
            present = ~_missing(values, mask)
            if present.any():
                refuse(place, present, values, f"is not {wanted}")
        case Scaled(values, scale, mask):
            present = ~_missing(values, mask)
            if present.any():
                value = _unscaled(values[int(np.argmax(present))], scale)
                refuse(place, present, None, f"{value} is not {wanted}")
        case Objects(values):
            for row, value in enumerate(values):
                if not is_missing(value):
                    _refuse_value(value, place, row, wanted)


def _missing(values: npt.NDArray[np.generic], mask: Mask | None) -> Mask:
    is_nan = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), np.bool_)
    return is_nan if mask is None else is_nan | mask


def _unscaled(value: np.int64, scale: int) -> Decimal:
    return Decimal(int(value)).scaleb(-scale)


def _refuse_value(value: object, place: str, row: int, wanted: str) -> NoReturn:
    raise InputError(f"{place}, row {row}: {shown(value)} is not {wanted}; nothing was stored")


def _float(value: object, place: str, row: int) -> float:
    if is_missing(value):
        return float("nan")
    if isinstance(value, (int, float, Decimal, np.number, np.bool_)) and not isinstance(
        value, (np.complexfloating, np.timedelta64)
    ):
        try:
            return float(value)
        except OverflowError:
            raise InputError(
                f"{place}, row {row}: {shown(value)} is beyond a float; nothing was stored"
            ) from None
    _refuse_value(value, place, row, "a number")


def _scaled(value: object, scale: int, place: str, row: int) -> int | None:
    if is_missing(value):
        return None
    if isinstance(value, (np.number, np.bool_)) and not isinstance(value, np.timedelta64):
        value = value.item()
    wanted = f"a decimal with {scale} digits after the point" if scale else "a whole number"
    if isinstance(value, int):
        return value * int(10**scale)
    if isinstance(value, float):
        exact = _exact_float(value, scale)
        if exact is None:
            _refuse_value(value, place, row, wanted)
        return exact
    if isinstance(value, Decimal):
        if not value.is_finite():
            _refuse_value(value, place, row, wanted)
        if value and value.adjusted() + scale > 19:
            return _INT_LIMIT  # refused by _fit; the integer itself may have a million digits
        try:
            return int(value.scaleb(scale, _EXACT).to_integral_exact(context=_EXACT))
        except ArithmeticError:
            raise InputError(
                f"{place}, row {row}: {shown(value)} is not {wanted}; nothing was stored"
            ) from None
    _refuse_value(value, place, row, wanted)


def _exact_float(value: float, scale: int) -> int | None:
    """Return the scaled integer a float stands for, None if there is none or more than one.

    >>> _exact_float(0.1, 2), _exact_float(0.125, 2), _exact_float(1e300, 0) == int(1e300)
    (10, None, True)
    """
    if value.is_integer():
        return int(value) * int(10**scale)
    if not abs(value) * 10**scale <= _EXACT_UP_TO[8]:
        return None
    nearest = round(value * 10**scale)
    return nearest if nearest / 10**scale == value else None


def _fit(values: Sequence[int | None], place: str) -> Ints:
    for row, value in enumerate(values):
        if value is not None and not -_INT_LIMIT < value < _INT_LIMIT:
            raise InputError(f"{place}, row {row}: a number beyond 64 bits; nothing was stored")
    return np.array([NULL_INT if v is None else v for v in values], dtype=np.int64)


def _with_nulls(values: Ints, mask: Mask | None) -> Ints:
    return values if mask is None or not mask.any() else np.where(mask, NULL_INT, values)


def _int_numbers(values: npt.NDArray[np.generic], mask: Mask | None, place: str) -> Ints:
    kind = values.dtype.kind
    if kind == "f":
        floats = values.astype(np.float64, copy=False)
        mask = _missing(floats, mask)
        bad = (np.trunc(floats) != floats) | (np.abs(floats) >= _INT_LIMIT)
        bad &= ~mask
        if bad.any():
            refuse(place, bad, values, "is not a whole number of 64 bits")
        return _with_nulls(np.where(mask, 0, floats).astype(np.int64), mask)
    if kind == "u" and values.dtype.itemsize == 8:
        bad = values.astype(np.uint64) >= np.uint64(_INT_LIMIT)
    elif kind == "i" and values.dtype.itemsize == 8:
        bad = values.astype(np.int64, copy=False) == NULL_INT
    else:
        return _with_nulls(values.astype(np.int64), mask)
    if mask is not None:
        bad &= ~mask
    if bad.any():
        refuse(place, bad, values, "is beyond 64 bits (the least int64 stands for NULL)")
    return _with_nulls(values.astype(np.int64, copy=False), mask)


def _rescaled(values: Ints, mask: Mask | None, scale: int, wanted: int, place: str) -> Ints:
    missing = _missing(values, mask)
    if wanted >= scale:
        return _multiplied(values, missing, 10 ** (wanted - scale), place)
    whole, rest = np.divmod(values, 10 ** (scale - wanted))
    bad = (rest != 0) & ~missing
    if bad.any():
        value = _unscaled(values[int(np.argmax(bad))], scale)
        refuse(place, bad, None, f"{value} has more than {wanted} digits after the point")
    return _with_nulls(whole, missing)


def _multiplied(values: Ints, mask: Mask, factor: int, place: str) -> Ints:
    room = (_INT_LIMIT - 1) // factor
    bad = ((values > room) | (values < -room)) & ~mask
    if bad.any():
        refuse(place, bad, values, "is beyond 64 bits at this scale")
    return _with_nulls(np.where(mask, 0, values) * factor, mask)


def _decimal_floats(
    values: npt.NDArray[np.generic], mask: Mask | None, scale: int, place: str
) -> Ints:
    mask = _missing(values, mask)
    floats = np.where(mask, 0.0, values.astype(np.float64))
    factor = 10**scale
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = np.rint(floats * factor)
        limit = _EXACT_UP_TO[min(values.dtype.itemsize, 8)]
        unique = (np.abs(nearest) <= limit) & (
            (nearest / factor).astype(values.dtype) == np.where(mask, 0, values)
        )
        integral = (np.trunc(floats) == floats) & (np.abs(floats) <= (_INT_LIMIT - 1) // factor)
        integral &= np.abs(floats) < _INT_LIMIT
    bad = ~(unique | integral)
    if bad.any():
        refuse(
            place,
            bad,
            values,
            f"is no exact decimal with {scale} digits after the point; "
            "round it, or give decimal.Decimal",
        )
    whole = np.where(integral, floats, 0).astype(np.int64) * factor
    return _with_nulls(
        np.where(integral, whole, np.where(unique, nearest, 0).astype(np.int64)), mask
    )


def _texts(form: Coded, place: str) -> tuple[str, ...]:
    texts: list[str] = []
    for code, name in enumerate(form.names):
        if not isinstance(name, str):
            refuse(place, form.codes == code, None, f"{shown(name)} is not text")
        problem = text_problem(name)
        if problem:
            refuse(place, form.codes == code, None, f"{shorten(name)} {problem}")
        texts.append(str(name))
    return tuple(texts)
