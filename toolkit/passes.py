"""Statements of a refresh: those that a pass over the change log sends, and a dry run shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg.sql import SQL, Composed, Identifier, Literal

from toolkit.catalog import Entry, Rollup
from toolkit.ddl import ROLLUP_PARTITION
from toolkit.drivers import Params
from toolkit.recount import storing
from toolkit.statements import NOTHING, compose, filled, name, part
from toolkit.strategy.compose import points_statement
from toolkit.strategy.states import merged_state, state_of_points
from toolkit.timegrid import EARLIEST, to_datetime

# the state of a level's passes: over all changes, and over the newest, which goes before
_ALL, _NEWEST = "rollup", "rollup_head"


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over what a rollup has yet to follow: over all of it, or the newest, which goes first.

    ``finer`` is the rollup that it is counted of, None where that is the points.
    """

    entry: Entry
    rollup: Rollup
    finer: Rollup | None
    is_newest: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """What is known of a slice before it is begun."""
        grid = self.rollup.grid
        assert grid.width is not None
        width = timedelta(microseconds=grid.width)
        params = {"rollup": self.rollup.id, "width": width, "origin": to_datetime(grid.origin)}
        return params if self.is_newest else {**params, "since": to_datetime(EARLIEST)}

    @property
    def begin(self) -> bytes:
        return text(self.entry, "begin_head" if self.is_newest else "begin_pass")

    @property
    def next_slice(self) -> bytes:
        return text(self.entry, "next_slice", self._state)

    @property
    def advance(self) -> bytes:
        return text(self.entry, "advance_pass", self._state)

    @property
    def end(self) -> bytes:
        return text(self.entry, "end_head" if self.is_newest else "end_pass")

    @property
    def plan_cold(self) -> bytes:
        """What asks for the changed buckets of a slice that the database cannot count."""
        cold = _cold(self.entry, before=True)
        return compose("refresh/plan_cold", changed=self._changed, cold=cold)

    @property
    def make_room(self) -> bytes:
        """What makes the partition of a year, see :func:`year_params`."""
        add = name(self.entry.schema, "add_partitions_v1")
        return compose("partition/add_rollup_partition", add_partitions=add)

    def recompute(self, source: Rollup | None, *, is_total: bool) -> bytes:
        """Return what counts a slice anew from a finer rollup or, None, from the points."""

        def make() -> bytes:
            entry, dataset = self.entry, self.entry.dataset
            columns = [Identifier(s.name) for s in dataset.states]
            if source is None:
                states = [state_of_points(s, dataset, is_total=is_total) for s in dataset.states]
            else:
                states = [merged_state(s, is_total=is_total) for s in dataset.states]

            def each(before: str) -> Composed:
                return Composed([SQL(", ") + Identifier(before, s.name) for s in dataset.states])

            return compose(
                "refresh/recompute_slice",
                changed=self._changed,
                relation=name(entry.schema, self.rollup.relation),
                source=name(entry.schema, source.relation if source else dataset.name),
                states=Composed([SQL(", ") + s for s in states]),
                columns=Composed([SQL(", ") + c for c in columns]),
                fresh_columns=each("f"),
                assignments=SQL(", ").join(SQL("{0} = excluded.{0}").format(c) for c in columns),
                old_columns=SQL(", ").join(Identifier("g", s.name) for s in dataset.states),
                new_columns=SQL(", ").join(SQL("excluded.{}").format(c) for c in columns),
                # finer buckets are all there, whatever holds their points
                hot=NOTHING if source else SQL(" * {}").format(_cold(entry, before=False)),
                is_cold=SQL("false") if source else _has_cold(entry),
            )

        key = ("recompute", self.rollup.relation, source is None, is_total, self._state)
        statement: bytes = self.entry.once(key, make)
        return statement

    def statements(self, begin: Params, most: timedelta) -> Iterator[str]:
        """Yield what it sends, in order, of its slices one; what only a slice knows is $1 and on.

        Savepoints, and what is tried again where a sum is too large, are not among it.
        """
        entry, params = self.entry, {**self.params, "most": most}
        locked = [text(entry, "lock_rollup"), *([text(entry, "lock_head")] * self.is_newest)]
        found = [*locked, text(entry, "prepare_slice"), self.next_slice]
        slice_ = [filled(s, params) for s in found]
        yield "BEGIN"
        yield filled(self.begin, begin)
        if self.is_newest and self.finer:
            yield "-- where one is under way, or the finer rollup has none\n" + filled(
                text(entry, "lock_head"), {"rollup": self.finer.id}
            )
        yield "COMMIT"
        yield from ("BEGIN", *slice_)
        yield filled(self.make_room, {"relation": self.rollup.relation, "every": ROLLUP_PARTITION})
        yield filled(self.recompute(self.finer, is_total=False), params)
        if self.finer is None and entry.cold_to is not None:
            yield "-- where blocks may hold points of it\n" + filled(self.plan_cold, params)
            yield filled(
                points_statement(entry, entry.dataset.names, source="one", is_cold=True), {}
            )
            yield filled(storing(entry, self.rollup), {})
        yield from (filled(self.advance, params), "COMMIT")
        yield from ("-- when no slice is left\nBEGIN", *slice_, filled(self.end, params), "COMMIT")

    @property
    def _state(self) -> str:
        return _NEWEST if self.is_newest else _ALL

    @property
    def _changed(self) -> Composed:
        entry = self.entry
        tables = {"log": f"{entry.dataset.name}_log", "rollup": self._state, "dataset": "dataset"}
        return part("refresh/list_changed", **{k: name(entry.schema, v) for k, v in tables.items()})


def year_params(rollup: Rollup, year: int) -> Params:
    """Return which partition of a rollup is to be there."""
    return {
        "relation": rollup.relation,
        "every": ROLLUP_PARTITION,
        "low": datetime(year, 1, 1, tzinfo=UTC),
        "high": datetime(year, 1, 2, tzinfo=UTC),
    }


def pruning(entry: Entry, keep: timedelta) -> list[tuple[bytes, Params]]:
    """Return what cuts the change log, in a transaction; the last one says by how many rows."""
    params: Params = {"dataset_id": entry.id, "keep": keep}
    return [(text(entry, s), params) for s in ("plan_prune", "prune_log")]


def text(entry: Entry, statement: str, state: str = _ALL) -> bytes:
    """Return a statement of ``sql/refresh`` with the tables of a dataset in it."""

    def make() -> bytes:
        tables = {
            "rollup": name(entry.schema, state),
            "head": name(entry.schema, _NEWEST),
            "log": name(entry.schema, f"{entry.dataset.name}_log"),
            "dataset": name(entry.schema, "dataset"),
        }
        return compose(f"refresh/{statement}", **tables)

    made: bytes = entry.once(("refresh", statement, state), make)
    return made


def _cold(entry: Entry, *, before: bool) -> Composed:
    """Return the whole buckets of which blocks may hold points, or all the others."""
    edge = SQL(
        "(SELECT date_bin(%(width)s, d.cold_to + %(width)s - interval '1 microsecond', %(origin)s) "
        "FROM {} AS d WHERE d.id = {})"
    ).format(name(entry.schema, "dataset"), Literal(entry.id))
    if before:
        return SQL(
            "CASE WHEN {e} IS NULL THEN '{{}}' ELSE tstzmultirange(tstzrange(NULL, {e})) END"
        ).format(e=edge)
    return SQL("tstzmultirange(tstzrange({}, NULL))").format(edge)


def _has_cold(entry: Entry) -> Composed:
    return SQL("EXISTS (SELECT FROM work AS w WHERE w.ranges && {})").format(
        _cold(entry, before=True)
    )
