"""Questions asked at once: those that differ in their series only are one read."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.columns import Columns
from toolkit.errors import QueryError, UnknownName
from toolkit.query import Query, build_query

_MOST = 500  # series of one read
_TAKEN = tuple(signature(build_query).parameters)


@dataclass(frozen=True, slots=True)
class Group:
    """One read that answers several questions: their places, and the series of each."""

    query: Query
    places: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]

    def parts(self, columns: Columns) -> Iterator[tuple[int, Columns]]:
        """Yield each question's place and its answer."""
        if len(self.places) == 1:
            yield self.places[0], columns
            return
        codes = {name: code for code, name in enumerate(columns.names)}
        starts = np.searchsorted(columns.series, np.arange(len(columns.names) + 1))
        for place, names in zip(self.places, self.names, strict=True):
            yield place, _part(columns, names, [codes[n] for n in names], starts)


def question_of(question: Mapping[str, Any], number: int) -> Query:
    """Return the query that a question's names and values stand for."""
    if not isinstance(question, Mapping):
        raise QueryError(
            f"questions[{number}]: expected a mapping of what read takes, "
            f"got {type(question).__name__}"
        )
    for needed in ("dataset", "start", "end"):
        if needed not in question:
            raise QueryError(f"questions[{number}]: {needed} is missing")
    for name in question:
        if name not in _TAKEN:
            raise QueryError(f"questions[{number}]: {UnknownName('argument', str(name), _TAKEN)}")
    try:
        return build_query(**{"series": None, **question})
    except (TypeError, QueryError) as error:
        raise QueryError(f"questions[{number}]: {error}") from None


def grouped(queries: Sequence[Query]) -> list[Group]:
    """Return the reads that answer queries, in the order in which they are first asked."""
    together: dict[Hashable, list[int]] = {}
    for place, query in enumerate(queries):
        together.setdefault(_key(query, place), []).append(place)
    found = []
    for places in together.values():
        while places:
            many, names = _as_many(queries, places)
            mine, places = places[:many], places[many:]
            one = queries[mine[0]]
            if many > 1:
                one = replace(one, asked=replace(one.asked, series=names))
            found.append(
                Group(one, tuple(mine), tuple(queries[p].asked.series or () for p in mine))
            )
    return found


def _as_many(queries: Sequence[Query], places: Sequence[int]) -> tuple[int, tuple[str, ...]]:
    """Return how many of the questions go into one read, and the series of those."""
    names: dict[str, None] = {}
    for count, place in enumerate(places):
        more = dict.fromkeys(queries[place].asked.series or ())
        if count and len(names | more) > _MOST:
            return count, tuple(names)
        names |= more
    return len(places), tuple(names)


def _key(query: Query, place: int) -> Hashable:
    """Return what queries have in common that can be one read; their place, where they cannot.

    What depends on all series of a read, as a limit or a choice of the step, is asked by itself.
    """
    asked = query.asked
    alone = (asked.limit, asked.group_by, asked.points) != (None, None, None)
    if alone or asked.is_auto or asked.descending or not asked.series:
        return place
    return (
        asked.dataset,
        asked.columns,
        asked.agg,
        asked.grid,
        asked.tz,
        asked.where,
        asked.strategy,
        query.span,
        query.timeout,
        query.freshness,
        query.is_cached,
        query.caller,
        query.priority,
    )


def _part(
    columns: Columns, names: tuple[str, ...], codes: Sequence[int], starts: npt.NDArray[np.intp]
) -> Columns:
    """Return the rows of some series of an answer, as an answer of their own."""
    if len(codes) == 1:
        rows: slice | npt.NDArray[np.intp] = slice(starts[codes[0]], starts[codes[0] + 1])
    else:
        rows = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in codes])
    chosen = columns.select(rows)
    counts = [starts[c + 1] - starts[c] for c in codes]
    series = np.repeat(np.arange(len(codes), dtype=np.int32), counts)
    return Columns(
        names,
        series,
        chosen.instants,
        {name: chosen.raw(name) for name in chosen},
        chosen.types,
        chosen.categories,
        chosen.seq,
        chosen.plan,
    )
