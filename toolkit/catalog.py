"""What the database holds, as values: datasets, rollups and series, remembered between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import Lock
from typing import Any

from cachetools import LRUCache

from toolkit.dataset import Dataset
from toolkit.errors import UnknownName
from toolkit.timegrid import Grid, Span, Step, to_us

REVISION = "0008"
"""The migration this version works with; a test holds it against the newest one."""

VERSION_TABLE = "toolkit_version"
"""Where Alembic keeps the schema's revision: not under its own default name, which would be a
service's where the service's role is called as the schema."""

_MAX_SERIES = 200_000


@dataclass(frozen=True, slots=True)
class Rollup:
    """One step of a dataset's ladder as it stands in the database.

    ``is_trusted`` is False after a restore into another cluster, whose transaction ids start
    over: until the next refresh its cursor means nothing. Of before ``gone_before`` there are no
    buckets any more.
    """

    id: int
    grid: Grid
    relation: str
    is_trusted: bool = True
    gone_before: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One stream of points; ``step`` is the distance of its points in µs where it is regular."""

    id: int
    name: str
    step: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A dataset with its rollups (finest first) and the statements already composed for it.

    ``cold_to``: blocks hold points before this instant only; None where there are none. It may
    be out of date: who relies on it looks again in the statement that does. So it is with
    ``frozen_before``: points before it may be gone, and rollups stand for them.
    """

    id: int
    schema: str
    dataset: Dataset
    rollups: tuple[Rollup, ...]
    cold_to: int | None = None
    frozen_before: int | None = None
    statements: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_row(
        cls,
        row: tuple[
            int, Mapping[str, Any], list[Mapping[str, Any]], datetime | None, datetime | None
        ],
        schema: str,
        sysid: int | None,
    ) -> Entry:
        """Build from (id, spec, rollups as JSON objects, until when there are blocks, the mark)."""
        rollups = [
            Rollup(
                r["id"],
                Grid(Step.parse(r["step"])),
                r["relation"],
                r["sysid"] is None or sysid is None or r["sysid"] == sysid,
                to_us(datetime.fromisoformat(gone)) if (gone := r["gone_before"]) else None,
            )
            for r in row[2]
        ]
        rollups.sort(key=lambda r: r.grid.width or 0)
        cold_to, frozen = (to_us(at) if at is not None else None for at in row[3:])
        return cls(row[0], schema, Dataset.from_mapping(row[1]), tuple(rollups), cold_to, frozen)

    def is_cold(self, span: Span) -> bool:
        """Return whether a range reaches into the time of which blocks may hold points."""
        return self.cold_to is not None and span.start < self.cold_to and not span.is_empty

    def is_frozen(self, span: Span) -> bool:
        """Return whether a range reaches into the time of which points may be gone."""
        return self.frozen_before is not None and span.start < min(self.frozen_before, span.end)

    def has_marks_of(self, other: Entry) -> bool:
        """Return whether retention has moved no mark between the two."""
        mine, theirs = (self.frozen_before, self.rollups), (other.frozen_before, other.rollups)
        return mine == theirs

    def cold_share(self, span: Span) -> float:
        """Return which share of a range that is."""
        if not self.is_cold(span):
            return 0.0
        assert self.cold_to is not None
        return min((self.cold_to - span.start) / span.width, 1.0)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the statement remembered under ``key``, made on first use."""
        found = self.statements.get(key)
        if found is None:
            if len(self.statements) > 2_000:
                self.statements.clear()
            found = self.statements[key] = make()
        return found


class Catalog:
    """The memory of names: shared by threads; it never waits for a server itself.

    Ids are never reused, so what is remembered can be out of date only by lacking new names,
    which the caller looks up and adds, or by naming what is gone and has no points any more:
    ``Directory.confirm`` finds that out for who found none.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[str, Entry] = {}
        self._series: LRUCache[tuple[int, str], Series] = LRUCache(_MAX_SERIES)
        self._names: LRUCache[int, str] = LRUCache(_MAX_SERIES)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def known(self, name: str) -> Entry:
        """Return the dataset's entry or say which there are."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName("dataset", name, self._entries) from None

    def remember(self, entries: Iterable[Entry]) -> None:
        fresh = {e.dataset.name: e for e in entries}
        with self._lock:
            for name, entry in fresh.items():
                old = self._entries.get(name)
                if old is not None and (old.id, old.dataset, old.rollups) == (
                    entry.id,
                    entry.dataset,
                    entry.rollups,
                ):
                    # keep its composed statements
                    marks = (entry.cold_to, entry.frozen_before)
                    is_same = marks == (old.cold_to, old.frozen_before)
                    fresh[name] = old if is_same else replace(entry, statements=old.statements)
            self._entries = fresh

    def series(self, entry: Entry, names: Iterable[str]) -> tuple[list[Series], list[str]]:
        """Return the series known by name, in order, and the names that are not."""
        found, missing = [], []
        with self._lock:
            for name in names:
                series = self._series.get((entry.id, name))
                if series is None:
                    missing.append(name)
                else:
                    found.append(series)
        return found, missing

    def names(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the names of those ids that are known."""
        with self._lock:
            return {i: self._names[i] for i in ids if i in self._names}

    def add_series(self, entry: Entry, series: Iterable[Series]) -> None:
        with self._lock:
            for one in series:
                self._series[entry.id, one.name] = one
                self._names[one.id] = one.name

    def forget(self) -> None:
        """Drop everything: the schema has changed under us."""
        with self._lock:
            self._entries = {}
            self._series.clear()
            self._names.clear()
