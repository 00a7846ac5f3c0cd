"""The schema's tables as maintenance sees them, and the way to work on one alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from toolkit.ddl import blocks_table
from toolkit.drivers.direct import Patience
from toolkit.errors import Busy, DatabaseError, UnknownName
from toolkit.partitions import Partition
from toolkit.statements import compose
from toolkit.timegrid import Span
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Counts, Skip

# short: who waits longer than deadlock_timeout (1 s) for an autovacuum has it cancelled
_IMPATIENT = 0.5
_SETTLED = 3_600.0  # seconds
NO_RIGHT = (
    "the role {} may not; its owner may, and toolkit check --grants --as maintainer says what lacks"
)


@dataclass(frozen=True, slots=True)
class Limited:
    """A number, and the one above which something is to be done."""

    value: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.value / max(self.limit, 1.0)

    @property
    def is_over(self) -> bool:
        return self.value > self.limit


@dataclass(frozen=True, slots=True)
class Table:
    """A table, or the parent of partitions; ``visible`` and ``frozen`` are pages.

    ``frozen`` is None before PostgreSQL 18. Ages are in transactions, its TOAST's among them;
    ``inserted`` are rows since the last vacuum, ``changed`` since the last analyze.
    """

    oid: int
    name: str
    parent: str | None
    is_parent: bool
    span: Span | None
    bytes: int
    pages: int
    rows: float
    visible: int
    frozen: int | None
    age: Limited
    multixact_age: Limited
    dead: Limited
    toast_dead: Limited
    inserted: int
    changed: Limited
    live: int
    vacuumed_at: datetime | None
    vacuumed_by_hand_at: datetime | None
    analyzed_at: datetime | None
    is_ours: bool

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Table:
        """Build from a row of ``vacuum/list_tables``."""
        span = span_of(row[1], row[4])
        limited = [Limited(row[n], row[n + 1]) for n in (10, 12, 14, 16, 19)]
        return cls(*row[:4], span, *row[5:10], *limited[:4], row[18], limited[4], *row[21:])  # type: ignore[call-arg]  # as the statement has them

    @property
    def group(self) -> str:
        """What it is told of by: its parent's name, or its own."""
        return self.parent or self.name


def span_of(table: str, bound: str | None) -> Span | None:
    """Return the time that a partition is for; None where it is none, or not one of ours.

    >>> bound = "FOR VALUES FROM ('2024-01-01 00:00:00+00') TO ('2024-02-01 00:00:00+00')"
    >>> str(span_of("candles_p20240101", bound))
    '[2024-01-01T00:00Z, 2024-02-01T00:00Z)'
    >>> span_of("candles_rest", "DEFAULT")
    """
    if bound is None:
        return None
    try:
        return Partition.from_row((table, bound, 0, 0)).span
    except DatabaseError:
        return None


def list_tables(ground: Ground, oid: int | None = None) -> list[Table]:
    """Return the schema's tables, or the one that is meant, as they are now."""
    params = {"schema": ground.schema, "table": oid}
    return [Table.from_row(r) for r in ground.direct.fetch(compose("vacuum/list_tables"), params)]


def meant(ground: Ground, tables: Iterable[Table], indexes: Iterable[str] = ()) -> set[str]:
    """Return the names of the tables (and indexes) that the run is for.

    A target is a dataset, which is all that is kept of it; a table, a parent being all its
    partitions; or one of ``indexes``. Nothing named is everything.
    """
    tables, of_indexes = list(tables), set(indexes)
    if not ground.targets:
        return {t.name for t in tables} | of_indexes
    names = {t.name for t in tables}
    datasets = {d.name: d for d in ground.store.datasets()}
    found: set[str] = set()
    for target in ground.targets:
        asked = target.removeprefix(f"{ground.schema}.")
        roots = {asked}
        if (dataset := datasets.get(asked)) is not None:
            roots |= {blocks_table(asked), f"{asked}_log"}
            roots |= {f"{asked}_{step}" for step in dataset.ladder}
        elif asked in of_indexes:
            found.add(asked)
            continue
        elif asked not in names:
            kind = "dataset, table or index" if of_indexes else "dataset or table"
            near = get_close_matches(asked, {*names, *of_indexes, *datasets})
            raise UnknownName(kind, target, near or datasets, f"schema {ground.schema}")
        found |= {t.name for t in tables if t.name in roots or t.parent in roots}
    return found


def is_closed(span: Span | None, now: datetime) -> bool:
    """Return whether a partition's time is past, and long enough that few still write to it."""
    return span is not None and span.end / 1e6 + _SETTLED <= now.timestamp()


def role(ground: Ground) -> str:
    """Return the role that the run is."""
    return str(ground.direct.fetch(compose("session/name_role"))[0][0])


def taken(ground: Ground, oid: int, what: str) -> Skip | None:
    """Return why a table has to be passed over: somebody works on it."""
    holders = ground.direct.holders(oid)
    if not holders:
        return None
    return Skip(what, f"passed over: {'; '.join(holders)}", is_warning=True, is_busy=True)


def alone_on(
    ground: Ground,
    oid: int,
    what: str,
    statements: Sequence[bytes],
    counts: Counts,
    *,
    waits: float = _IMPATIENT,
) -> Counts | Skip:
    """Run statements that have a table to themselves, until the run's time is over.

    Two of that kind on one table would wait for each other, and an autovacuum ends where
    somebody waits for it: so who works there already is looked for first, and passed over.
    """
    if (skip := taken(ground, oid, what)) is not None:
        return skip
    try:
        ground.direct.patiently(
            statements, what, Patience(waits, tries=1), together=False, timeout=ground.timeout
        )
    except Busy as error:
        why = str(error).removeprefix(f"{what}: ")
        return Skip(what, f"passed over: {why}", is_warning=True, is_busy=True)
    return counts
