"""Which plans can answer a query with a fixed step, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toolkit.catalog import Entry, Rollup
from toolkit.dataset import Aggregate, Dataset, State
from toolkit.query import Query
from toolkit.timegrid import Grid, Span


class Road(NamedTuple):
    """A plan that can answer: from points, or from a rollup of buckets ``width`` µs long.

    ``is_merged``: buckets of the answer are made of several of the rollup's.
    """

    name: str
    strategy: str
    rollup: Rollup | None = None
    width: int = 0
    origin: int = 0
    is_merged: bool = False

    @classmethod
    def of(cls, rollup: Rollup, grid: Grid) -> Road:
        finer = rollup.grid
        name = f"downsampled from {finer.step}"
        return cls(name, "downsampled", rollup, finer.width or 0, finer.origin, finer != grid)


_POINTS = (Road("direct", "direct"), Road("aggregated", "aggregated"))


@dataclass(frozen=True, slots=True)
class Ways:
    """What is the same for all plans of a query, and the rollups that can answer (finest first).

    ``inputs`` counts the value columns that points are fetched with; ``is_ordered``: the database
    has to sort points for a state; ``width`` is about that of a bucket, ``is_zoned``: not all are
    that wide. ``why_not`` says why no rollup can answer, ``cannot`` that of every one that cannot,
    by the name of its plan.
    """

    grid: Grid
    aggregates: tuple[Aggregate, ...]
    states: tuple[State, ...]
    columns: tuple[str, ...]
    inputs: int
    is_ordered: bool
    rollups: tuple[Rollup, ...]
    roads: tuple[Road, ...]
    width: int
    is_zoned: bool
    why_not: str
    cannot: Mapping[str, str]


def ways_of(query: Query, entry: Entry, grid: Grid) -> Ways:
    """Return the ways to answer; worked out once a question, unless it is of calendar days."""
    if grid.width is None:
        return _ways(query, entry, grid)
    ways: Ways = entry.once(("ways", query.asked, grid), lambda: _ways(query, entry, grid))
    return ways


def outputs_of(query: Query, dataset: Dataset) -> tuple[Aggregate, ...]:
    """Return the bar columns a query asks for: its columns, then those of ``agg``."""
    extra = [dataset.extra_aggregate(column, kind) for column, kind in query.asked.agg]
    if query.asked.columns is None:
        chosen = list(dataset.aggregates)
    else:
        names = {a.name for a in extra}
        chosen = [dataset.aggregate(c) for c in query.asked.columns if c not in names]
    found = {a.name: a for a in (*chosen, *extra)}
    return tuple(found.values())


def states_of(
    dataset: Dataset, aggregates: tuple[Aggregate, ...], *, with_times: bool = False
) -> tuple[State, ...]:
    """Return what the aggregates derive from; times order first and last across series only."""
    found = {s.name: s for a in aggregates for s in dataset.states_of(a)}
    return tuple(s for s in found.values() if with_times or s.type != "time")


def _ways(query: Query, entry: Entry, grid: Grid) -> Ways:
    aggregates = outputs_of(query, entry.dataset)
    states = states_of(entry.dataset, aggregates, with_times=query.asked.group_by is not None)
    why_not = _why_none(query, entry, states)
    rollups: tuple[Rollup, ...] = ()
    cannot: Mapping[str, str] = {"downsampled": why_not}
    if not why_not:
        rollups, why_not, cannot = _fitting(entry, grid, query.span)
    return Ways(
        grid,
        aggregates,
        states,
        tuple(a.name for a in aggregates),
        len({column for a in aggregates for column in a.inputs}),
        any(s.kind in ("first", "last") for s in states),
        rollups,
        (*_POINTS, *[Road.of(r, grid) for r in rollups]),
        grid.step.approximate_us,
        grid.width is None,
        why_not,
        cannot,
    )


def _why_none(query: Query, entry: Entry, states: tuple[State, ...]) -> str:
    if query.asked.where:
        return "where tests points, and a rollup has none"
    if not entry.rollups:
        return f"dataset {entry.dataset.name!r} has no ladder"
    stored = {s.name for s in entry.dataset.states}
    missing = [s for s in states if s.name not in stored]
    if missing:
        return f"the rollups do not keep {missing[0].kind} of {', '.join(missing[0].of)}"
    return ""


def _fitting(
    entry: Entry, grid: Grid, span: Span
) -> tuple[tuple[Rollup, ...], str, Mapping[str, str]]:
    """Return the rollups that can answer exactly; if none, why; and why each other cannot."""
    edges = None if grid.width is not None else grid.edges(span)
    fitting, cannot = [], {}
    for rollup in entry.rollups:
        finer = rollup.grid
        if edges is None or finer.width is None:
            is_on = grid.is_on(finer, span)
        else:
            is_on = bool(np.all((edges - finer.origin) % finer.width == 0))
        name = f"downsampled from {finer.step}"
        if not is_on:
            cannot[name] = f"{grid.step} buckets in {grid.tz} are not whole {finer.step} buckets"
            continue
        fitting.append(rollup)
        if not rollup.is_trusted:
            cannot[name] = "the database was restored, and nothing refreshed since"
    trusted = tuple(r for r in fitting if r.is_trusted)
    if trusted:
        return trusted, "", cannot
    if fitting:
        why_not = "the database was restored; its rollups count again after: toolkit refresh"
    else:
        steps = ", ".join(str(r.grid.step) for r in entry.rollups)
        why_not = f"{grid.step} buckets in {grid.tz} are not made of whole ladder steps ({steps})"
    return (), why_not, {"downsampled": why_not}
