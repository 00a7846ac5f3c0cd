"""The aggregates that compute mergeable states: from points, and from finer states."""

from __future__ import annotations

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from toolkit.dataset import Dataset, State

LEFT_BIGINT = "'-9223372036854775808'::bigint"
"""Stands for "no bigint" in an integer sum that a rollup stores, where NULL is "no values".

No point has that value. Its negation is an error, SQLSTATE 22003: what adds sums up negates each
of them twice, and so never takes one that is none for nothing.
"""


def state_of_points(state: State, dataset: Dataset, *, is_total: bool = False) -> Composed:
    """Return the aggregate that computes a state from points ``t``, named as the state.

    PostgreSQL raises an error where a sum or product leaves its type. ``is_total`` is the form
    for such values, added up as numeric: what is too large for a float is infinite, what is too
    small 0, as IEEE 754 (and numpy) has it; an integer sum that leaves bigint is LEFT_BIGINT,
    which an answer shows as NULL.
    """
    value = Identifier("t", state.of[0])
    order = [Identifier("t", k) for k in dataset.key[1:]]
    # first and last ask for the same order: one sort serves both (from version 16, for all groups)
    stored = SQL("(array_agg({v} ORDER BY {o}) FILTER (WHERE {v} IS NOT NULL))[{at}]")
    ascending = SQL(", ").join(order)
    match state.kind:
        case "first":
            body = stored.format(v=value, o=ascending, at=Literal(1))
        case "last":
            at = SQL("count({})").format(value)
            body = stored.format(v=value, o=ascending, at=at)
        case "first_ts":
            body = SQL("min(t.ts) FILTER (WHERE {} IS NOT NULL)").format(value)
        case "last_ts":
            body = SQL("max(t.ts) FILTER (WHERE {} IS NOT NULL)").format(value)
        case "sum":
            body = _sum(value, state, is_total)
        case "pv" | "v":
            body = _weighted(state, dataset, is_total)
        case kind:
            body = SQL("{}({})").format(SQL(kind), value)
    return SQL("{} AS {}").format(body, Identifier(state.name))


def merged_state(state: State, *, is_total: bool = False) -> Composed:
    """Return the aggregate that computes a state from the finer rollup's rows ``t``.

    An integer sum of which one row is no bigint is an error, ``is_total`` or not: then only the
    points can tell.
    """
    own = Identifier("t", state.name)
    stored = SQL("(array_agg({v} ORDER BY t.ts) FILTER (WHERE {v} IS NOT NULL))[{at}]")
    match state.kind:
        case "first":
            body = stored.format(v=own, at=Literal(1))
        case "last":
            body = stored.format(v=own, at=SQL("count({})").format(own))
        case "first_ts" | "min":
            body = SQL("min({})").format(own)
        case "last_ts" | "max":
            body = SQL("max({})").format(own)
        case _:
            body = _sum(own if state.type == "float" else addend(own), state, is_total)
    return SQL("{} AS {}").format(body, Identifier(state.name))


def _sum(value: Composable, state: State, is_total: bool) -> Composed:
    if state.type == "float":
        return _total(value) if is_total else SQL("sum({})").format(value)
    if is_total:
        return SQL(
            "CASE WHEN abs(sum({0})) < 9223372036854775808 THEN sum({0})::bigint "
            "WHEN sum({0}) IS NOT NULL THEN {1} END"
        ).format(value, SQL(LEFT_BIGINT))
    return SQL("sum({})::bigint").format(value)


def _total(value: Composable) -> Composed:
    """Return a float sum that cannot fail: exact to the 15 digits a numeric takes of a float."""
    n = SQL("sum(({})::numeric)").format(value)  # written four times, computed once
    return SQL(
        "CASE WHEN {n} = 'NaN' THEN 'NaN'::float8 "
        "WHEN abs({n}) > 1.7976931348623157e308 THEN sign({n})::float8 * 'Infinity'::float8 "
        "WHEN abs({n}) < 5e-324 THEN 0 ELSE ({n})::float8 END"
    ).format(n=n)


def _weighted(state: State, dataset: Dataset, is_total: bool) -> Composed:
    assert state.by is not None

    def factor(column: str) -> Composed:
        value = _as_float(column, dataset)
        return SQL("({})::numeric").format(value) if is_total else value

    total = SQL(" + ").join(factor(c) for c in state.of)
    price = SQL("({})").format(total)
    if len(state.of) > 1:
        count = Literal(len(state.of)) if is_total else Literal(float(len(state.of)))
        price = SQL("({} / {})").format(price, count)
    weight = factor(state.by)
    if state.kind == "pv":
        product = SQL("{} * {}").format(price, weight)
        return _total(product) if is_total else SQL("sum({})").format(product)
    counted = SQL("CASE WHEN ({}) IS NOT NULL THEN {} END").format(total, weight)
    return _total(counted) if is_total else SQL("sum({})").format(counted)


def _as_float(column: str, dataset: Dataset) -> Composed:
    name, declared = Identifier("t", column), dataset.column(column)
    if declared.scale:
        return SQL("{}::float8 / {}").format(name, Literal(float(10**declared.scale)))
    return SQL("{}::float8").format(name)


def addend(value: Composable) -> Composed:
    """Return an integer sum that is about to be added to others: an error where it is none."""
    return SQL("-(-{})").format(value)
