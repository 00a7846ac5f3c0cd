"""Turns a column of text, as CSV has it, into what its dataset's column takes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from toolkit.errors import InputError, shorten

T = TypeVar("T")
Texts = Sequence[str | None]

# what programs write where there is no number; an empty text is missing in every column
MISSING = ("", "NaN", "nan", "NAN", "NA", "N/A", "n/a", "null", "NULL", "None", "none", "NaT")
_TRUTH = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


def typed(column: Any, kind: str, place: str) -> Any:
    """Return a text column (a list or an Arrow array) as values of a column type.

    ``kind`` is a dataset's column type, ``series`` or ``ts``. Empty is NULL everywhere, and so
    are NaN, NA, null and None except in text. Raises InputError with the row, from 0.
    """
    base = kind.partition("(")[0]
    if base in ("category", "series"):
        return _texts(column)
    if base == "bool":
        return _each(_listed(column), partial(_truth), place, "true or false")
    if base == "decimal":
        return _each(_listed(column), _decimal, place, "a number")
    if not isinstance(column, list):
        fast = _by_arrow(column, base)
        if fast is not None:
            return fast
    if base == "ts":
        return _times(_listed(column), place)
    if base == "int":
        return _each(_listed(column), _decimal, place, "a whole number")
    return _each(_listed(column), _float, place, "a number")


def _texts(column: Any) -> Any:
    if isinstance(column, list):
        return [v or None for v in column]
    import pyarrow.compute as pc

    return pc.if_else(pc.equal(column, ""), None, column)


def _by_arrow(column: Any, base: str) -> Any | None:
    """Convert with Arrow's kernels, many times faster; None where they cannot."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(column)
    missing = pc.is_in(trimmed, value_set=pa.array(MISSING))
    present = pc.if_else(missing, None, trimmed)
    kinds = {
        "float": [pa.float64()],
        "int": [pa.int64()],
        "ts": [
            pa.timestamp("us", "UTC"),
            pa.timestamp("us"),
            pa.int64(),
            pa.timestamp("ns", "UTC"),
            pa.timestamp("ns"),
        ],
    }
    for kind in kinds[base]:
        try:
            return pc.cast(present, kind)
        except pa.ArrowInvalid:
            continue
    return None


def _listed(column: Any) -> Texts:
    found: Texts = column if isinstance(column, list) else column.to_pylist()
    return found


def _each(
    column: Texts, read: Callable[[str], T | None], place: str, wanted: str
) -> list[T | None]:
    values: list[T | None] = []
    for row, text in enumerate(column):
        stripped = "" if text is None else text.strip()
        if stripped in MISSING:
            values.append(None)
            continue
        value = read(stripped)
        if value is None:
            raise InputError(f"{place}, row {row}: {shorten(stripped)} is not {wanted}")
        values.append(value)
    return values


def _truth(text: str) -> bool | None:
    return _TRUTH.get(text.lower())


def _decimal(text: str) -> Decimal | None:
    # Decimal() itself would take '1_000' and full-width digits
    return Decimal(text) if len(text) < 400 and _NUMBER.fullmatch(text) else None


def _float(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) or _INFINITE.fullmatch(text) else None


def _times(column: Texts, place: str) -> list[Any]:
    """Return integers if all are, else the texts: the library reads ISO 8601."""
    stripped = [None if t is None or t.strip() in MISSING else t.strip() for t in column]
    if all(t is None or (_WHOLE.fullmatch(t) and len(t) < 20) for t in stripped):
        return [None if t is None else int(t) for t in stripped]
    return stripped


def is_text(column: Any) -> bool:
    """Whether an Arrow column holds text, perhaps by dictionary."""
    pa = sys.modules["pyarrow"]
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)
