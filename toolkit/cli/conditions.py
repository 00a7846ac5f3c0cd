"""Reads what is typed for --where, --agg and --label."""

from __future__ import annotations

import re
from collections.abc import Sequence

from toolkit.dataset import Dataset
from toolkit.errors import QueryError

_CONDITION = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(<=|>=|!=|<>|==|=|<|>)\s*(.*?)\s*", re.DOTALL)
_IN = re.compile(r"\s*([a-z][a-z0-9_]*)\s+in\s+(.*?)\s*", re.DOTALL | re.IGNORECASE)
_IS = re.compile(r"\s*([a-z][a-z0-9_]*)\s+is\s+(not\s+)?null\s*", re.IGNORECASE)
_SAME = {"==": "=", "<>": "!="}


def read_conditions(texts: Sequence[str], dataset: Dataset) -> list[tuple[str, str, object]] | None:
    """Read ``volume>10``, ``side = buy``, ``side in buy,sell``, ``price is not null``."""
    return [_condition(text, dataset) for text in texts] or None


def _condition(text: str, dataset: Dataset) -> tuple[str, str, object]:
    if match := _IS.fullmatch(text):
        return match[1], "is not null" if match[2] else "is null", None
    if match := _IN.fullmatch(text):
        values = match[2].removeprefix("(").removesuffix(")").split(",")
        return match[1], "in", [_value(v, match[1], dataset) for v in values]
    if match := _CONDITION.fullmatch(text):
        operator = _SAME.get(match[2], match[2])
        return match[1], operator, _value(match[3], match[1], dataset)
    raise QueryError(
        f"--where {text!r}: write COLUMN OPERATOR VALUE with =, !=, <, <=, >, >=, or "
        "'COLUMN in A,B', 'COLUMN is null'"
    )


def _value(text: str, column: str, dataset: Dataset) -> object:
    stripped = text.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\"":
        stripped = stripped[1:-1]
    base = dataset.column(column).base
    try:
        if base == "float":
            return float(stripped)
        if base == "int":
            return int(stripped)
        if base == "bool":
            return {"true": True, "false": False}[stripped.lower()]
    except (ValueError, KeyError):
        kind = dataset.column(column).type
        raise QueryError(f"--where: {stripped!r} is no value for {column} ({kind})") from None
    return stripped


def read_aggregates(texts: Sequence[str]) -> dict[str, list[str]] | None:
    """Read ``close=max,min``.

    >>> read_aggregates(["close=max,min", "volume=avg"])
    {'close': ['max', 'min'], 'volume': ['avg']}
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        column, equals, kinds = text.partition("=")
        names = [k.strip() for k in kinds.split(",") if k.strip()]
        if not equals or not column or not names:
            raise QueryError(f"--agg {text!r}: write COLUMN=KIND,KIND, for instance close=max,min")
        found.setdefault(column.strip(), []).extend(names)
    return found or None


def read_labels(texts: Sequence[str], option: str = "--label") -> dict[str, str] | None:
    """Read ``venue=kraken``.

    >>> read_labels(["venue=kraken", "note=a=b"])
    {'venue': 'kraken', 'note': 'a=b'}
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise QueryError(f"{option} {text!r}: write KEY=VALUE, for instance venue=kraken")
        found[key] = value
    return found or None


def read_names(texts: Sequence[str]) -> list[str] | None:
    """Read names, each perhaps several by commas.

    >>> read_names(["open,close", "volume"])
    ['open', 'close', 'volume']
    """
    return [n.strip() for text in texts for n in text.split(",") if n.strip()] or None
