"""Values to compare columns with, as the database stores them."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import numpy as np

from toolkit.dataset import Column
from toolkit.errors import QueryError
from toolkit.query import Condition


def comparable(condition: Condition, column: Column) -> object:
    """Return the condition's value in the column's stored form, or say why it has none.

    >>> comparable(Condition("price", ">", "1.25"), Column("price", "decimal(4)"))
    12500
    """
    if condition.operator == "in":
        assert isinstance(condition.value, tuple)
        return [_stored(v, column) for v in condition.value]
    return _stored(condition.value, column)


def _stored(value: object, column: Column) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    try:
        match column.base:
            case "bool" if isinstance(value, bool):
                return value
            case "category" if isinstance(value, str):
                return value
            case _ if isinstance(value, bool):
                pass
            case "float" if isinstance(value, int | float | Decimal):
                return float(value)
            case "int" if isinstance(value, int):
                if -(2**63) < value < 2**63:
                    return value
            case "decimal" if isinstance(value, int | str | Decimal | float):
                scaled = Decimal(str(value)).scaleb(column.scale)
                if scaled == scaled.to_integral_value() and abs(scaled) < 2**63:
                    return int(scaled)
    except (InvalidOperation, OverflowError):
        pass
    raise QueryError(
        f"where: {value!r} cannot be compared with column {column.name!r} of type {column.type}"
    )
