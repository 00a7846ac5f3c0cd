"""How an answer's columns travel: the expressions that pack them, and what unpacks them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from psycopg.sql import SQL, Composed, Identifier

from toolkit.catalog import Entry
from toolkit.dataset import State
from toolkit.decode import Packing
from toolkit.strategy.states import addend

EMPTY_SUM = "-1.7976931348623157e308"  # stands for "no values" in a packed sum: NaN can be a sum
_NULLS = {
    "float": "'NaN'::float8",
    "int": "'-9223372036854775808'::bigint",
    "decimal": "'-9223372036854775808'::bigint",
    "addend": "'-9223372036854775808'::bigint",
    "sum": f"'{EMPTY_SUM}'::float8",
}


def packed(packing: Packing) -> Composed:
    """Return the expressions that pack the columns of ``q`` into bytea, NULLs in the band."""
    wide = SQL(" || ").join(_wide(packing.wide))
    parts = [wide, *(_sent(name, kind) for name, kind in packing.narrow)]
    return SQL(", ").join(SQL("string_agg({}, ''::bytea)").format(p) for p in parts)


def _wide(columns: Sequence[tuple[str, str]]) -> Iterator[Composed]:
    """Yield the expressions that send eight-byte columns, floats in fours and twos.

    ``lseg_send`` writes four floats as they are: one function and no concatenation where
    ``float8send`` needs four and three, 12 to 16 % of a read of five float columns.
    """
    for is_float, run in groupby(columns, lambda c: c[1] in ("float", "sum")):
        names = list(run)
        while is_float and len(names) > 1:
            size = 4 if len(names) > 3 else 2
            values = [_filled(name, kind) for name, kind in names[:size]]
            shape = "lseg_send(lseg(point({}, {}), point({}, {})))"
            yield SQL(shape if size == 4 else "point_send(point({}, {}))").format(*values)
            names = names[size:]
        yield from (_sent(name, kind) for name, kind in names)


def _filled(column: str, kind: str) -> Composed:
    name = Identifier("q", column)
    value = addend(name) if kind == "addend" else name
    return SQL("coalesce({}, {})").format(value, SQL(_NULLS[kind]))


def _sent(column: str, kind: str) -> Composed:
    name = Identifier("q", column)
    match kind:
        case "time" if column == "ts":  # the key is never NULL
            return SQL("timestamptz_send({})").format(name)
        case "time":
            return SQL("coalesce(timestamptz_send({}), E'\\\\x8000000000000000')").format(name)
        case "bool":
            return SQL("coalesce(boolsend({}), E'\\\\x02')").format(name)
        case "category":  # text holds no zero byte and no 0xff
            return SQL("coalesce(textsend({}), E'\\\\xff') || E'\\\\x00'").format(name)
        case _:
            sender = SQL("int8send" if kind in ("int", "decimal", "addend") else "float8send")
            return SQL("{}({})").format(sender, _filled(column, kind))


def packing_of(state: State, *, is_added: bool = False) -> str:
    """Return the kind a state travels as: its type's, but a float sum of nothing is not NaN.

    An integer sum that the reader adds to others (``is_added``) travels only if it is one.
    """
    base = state.type.partition("(")[0]
    if state.kind in ("sum", "pv", "v") and base == "float":
        return "sum"
    return "addend" if state.kind == "sum" and is_added else base


def packing_of_points(entry: Entry, columns: tuple[str, ...]) -> Packing:
    """Return how points with the given value columns travel."""

    def make() -> Packing:
        seq = [("seq", "int")] if entry.dataset.has_seq else []
        return Packing.of([*seq, *((c, entry.dataset.column(c).base) for c in columns)])

    packing: Packing = entry.once(("packing of points", columns), make)
    return packing


def packing_of_states(states: Sequence[State], *, is_added: bool = False) -> Packing:
    """Return how buckets of states travel."""
    return Packing.of([(s.name, packing_of(s, is_added=is_added)) for s in states])
