"""Which points pass the conditions of a query, in numpy: the twin of the SQL's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.columns import is_null
from toolkit.dataset import Column, Dataset
from toolkit.query import Condition
from toolkit.reduce import Table
from toolkit.strategy.values import comparable

Mask = npt.NDArray[np.bool_]
_COMPARE = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}


def is_of_texts(condition: Condition, dataset: Dataset) -> bool:
    """Return whether a condition orders texts: only the database knows how."""
    is_text = dataset.column(condition.column).base == "category"
    return is_text and condition.operator in ("<", "<=", ">", ">=")


def passes(
    where: Sequence[Condition],
    dataset: Dataset,
    table: Table,
    texts: Mapping[int, frozenset[str]],
) -> Mask:
    """Return which points pass all conditions; ``texts`` are those that pass one, by its place."""
    mask = np.ones(len(table), bool)
    for number, condition in enumerate(where):
        column = dataset.column(condition.column)
        mask &= _test(condition, column, table, texts.get(number))
    return mask


def _test(condition: Condition, column: Column, table: Table, texts: frozenset[str] | None) -> Mask:
    values = table.values[column.name]
    missing = is_null(column.type, values)
    if condition.operator == "is null":
        return missing
    if condition.operator == "is not null":
        return ~missing
    wanted: Any = comparable(condition, column)
    if column.base == "category":
        names = table.categories[column.name]
        if texts is None:
            some = set(wanted) if condition.operator == "in" else {wanted}
            texts = frozenset(names) - some if condition.operator == "!=" else frozenset(some)
        # the entry past the last name is what code -1 finds: NULL passes nothing
        passing = np.array([*(name in texts for name in names), False])
        return passing[values]
    if condition.operator == "in":
        found = np.zeros(len(table), bool)
        for one in wanted:
            found |= _compared("=", values, one)
    else:
        found = _compared(condition.operator, values, wanted)
    return found & ~missing


def _compared(operator: str, values: Any, wanted: Any) -> Mask:
    if wanted != wanted:  # PostgreSQL: NaN is greater than all numbers, and no value is NaN
        return np.full(len(values), operator in ("<", "<=", "!="))
    result: Mask = _COMPARE[operator](values, wanted)
    return result
