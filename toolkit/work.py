"""A read on its way: what a query goes to, how it will be answered, and what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from toolkit.cache import Key
from toolkit.catalog import Entry
from toolkit.dataset import Dataset
from toolkit.drivers import Params, Rows
from toolkit.errors import QueryTimeout, ToolkitError
from toolkit.merging import Run
from toolkit.query import Query
from toolkit.reduce import Table
from toolkit.strategy import Plan, compose
from toolkit.timegrid import Span

_LEAST_TIME = 0.001  # seconds that a statement gets, however late it is


@dataclass(frozen=True, slots=True)
class Unit:
    """One statement's share of a read."""

    span: Span
    ids: tuple[int, ...]


Reach = Callable[[tuple[int, int] | None], Coroutine[Any, Any, bool]]
"""Whether a node has come to a timeline and LSN of the primary; None: to where that is now."""


async def always_there(position: tuple[int, int] | None) -> bool:
    """Answer for the only node there is."""
    return True


@dataclass(frozen=True, slots=True)
class Targets:
    """The series a query goes to: by id where they were named, else by their labels.

    ``steps`` are the distances of each one's points in µs, None where it is irregular; ``step``
    is the smallest, None where one is irregular.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    source: compose.Source
    params: Params
    step: int | None
    steps: tuple[int | None, ...] = ()

    def only(self, ids: tuple[int, ...]) -> Targets:
        """Return those of some series."""
        place = {i: at for at, i in enumerate(self.ids)}
        at = [place[i] for i in ids]
        return Targets(
            tuple([self.names[i] for i in at]),
            ids,
            compose.source_of(ids),
            compose.ids_params(ids),
            self.step,
            tuple([self.steps[i] for i in at]),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """A query with all that was looked up for it, and how it will be answered.

    ``shared`` are the spans that came from what processes share, once some have. Where it
    ``is_pointwise`` the headers of blocks are not enough.
    """

    query: Query
    entry: Entry
    targets: Targets
    plan: Plan
    started: float
    shared: set[Key] = field(default_factory=set)
    is_pointwise: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a source gave: rows, the names of their series codes, and the rows it touched.

    ``is_fetched``: some, or all, come from the database just now.
    """

    table: Table
    names: tuple[str, ...]
    sources: Mapping[str, int]
    is_fetched: bool = True


def with_time_left(query: Query, started: float) -> Query:
    """Return the query with what is left of its deadline, at least a millisecond."""
    if query.timeout is None:
        return query
    left = query.timeout - (time.perf_counter() - started)
    return replace(query, timeout=max(left, _LEAST_TIME))


def time_left(work: Work) -> float | None:
    """Return what is left of a work's deadline; None if it has none."""
    return with_time_left(work.query, work.started).timeout


def check_time(query: Query, started: float) -> None:
    """Raise where the deadline of what began then has passed."""
    if query.timeout is not None and time.perf_counter() - started > query.timeout:
        raise QueryTimeout(
            "the time of the read was over before its answer was made; give it a longer timeout, "
            "or ask for a shorter range, fewer columns or a coarser step",
            "57014",
        )


def in_time(query: Query, started: float, run: Run) -> Run:
    """Return what runs jobs as ``run`` does, but begins none after the deadline."""
    if query.timeout is None:
        return run

    def begin(job: Callable[[], None]) -> None:
        check_time(query, started)
        job()

    def run_in_time(jobs: Sequence[Callable[[], None]]) -> object:
        return run([partial(begin, job) for job in jobs])

    return run_in_time


def from_now(work: Work) -> Work:
    """Return the work as if it began now, with what is left of its time."""
    if work.query.timeout is None:
        return work
    query = with_time_left(work.query, work.started)
    return replace(work, query=query, started=time.perf_counter())


def types_of(plan: Plan, dataset: Dataset) -> dict[str, str]:
    """Return the types of an answer's columns."""
    if plan.grid is None:
        return {c: dataset.column(c).type for c in plan.columns}
    return {a.name: dataset.answer_type(a) for a in plan.aggregates}


def is_backwards(query: Query, plan: Plan) -> bool:
    """Return whether points are fetched newest first; buckets and pictures are made forwards."""
    return query.asked.descending and plan.grid is None and query.asked.points is None


def point_columns(query: Query, dataset: Dataset, plan: Plan) -> tuple[str, ...]:
    """Return the value columns that a plan reads points of."""
    if plan.grid is not None:
        return tuple(dict.fromkeys(c for a in plan.aggregates for c in a.inputs))
    if query.asked.points is not None and dataset.chart not in plan.columns:
        return (*plan.columns, dataset.chart)
    return plan.columns


class Colder(Exception):
    """Blocks hold points of a range taken to be without them, or points of it may be gone."""


class Refrozen(ToolkitError):
    """Retention has moved its mark since a read was planned: it is to be planned anew."""

    retryable = True

    def __init__(self, dataset: str) -> None:
        super().__init__(f"retention has dropped points of {dataset!r} just now; ask again")


def sure(rows: Rows) -> Rows:
    """Return rows of which the last column denies that there is something to look at again.

    Raises Colder else: blocks, or a mark of retention that has moved.
    """
    if any(row[-1] for row in rows):
        raise Colder
    return rows
