"""Time ranges of a dataset's rows: made, listed and dropped behind one small protocol."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np

from toolkit.catalog import Entry
from toolkit.ddl import blocks_table
from toolkit.directory import Directory
from toolkit.drivers import Driver, Params, Transaction
from toolkit.errors import Busy, DatabaseError
from toolkit.statements import Part, compose, name
from toolkit.timegrid import EARLIEST, LATEST, Grid, Instants, Span, Step, to_datetime, to_us

_TRIES = 5
_AT_ONCE = 200  # partitions made in one transaction
_BOUND = re.compile(r"FROM \('([^']+)'\) TO \('([^']+)'\)")


@dataclass(frozen=True, slots=True)
class Partition:
    """One time range of a dataset; ``rows`` is the server's last count, in ``bytes``.

    Where it was asked for, there are ``blocks`` with ``block_points`` in ``block_bytes``, too.
    """

    name: str
    span: Span
    bytes: int = 0
    rows: int = 0
    blocks: int = 0
    block_points: int = 0
    block_bytes: int = 0

    @classmethod
    def from_row(cls, row: tuple[str, str, int, int]) -> Partition:
        """Build from (name, bound as PostgreSQL writes it, bytes, rows)."""
        return cls(row[0], _span(row[1]), row[2], row[3])


class Partitioning(Protocol):
    """How a dataset's rows are split by time."""

    async def ensure(self, entry: Entry, ts: Instants) -> None:
        """Make the ranges that the instants fall into, where they are missing."""

    async def ensure_blocks(self, entry: Entry, span: Span) -> int:
        """Make the ranges for the blocks of a span, where they are missing; return how many."""

    async def ranges(self, entry: Entry) -> list[Partition]:
        """Return the ranges there are, oldest first."""

    async def described(self, entry: Entry) -> list[Partition]:
        """Return the ranges with what blocks hold of each, oldest first; counts the blocks."""

    async def drop(self, entry: Entry, span: Span) -> list[Partition]:
        """Drop the ranges that lie wholly inside ``span``, and return them."""

    def count(self, entry: Entry, ts: Instants) -> int:
        """Return how many ranges lie between the first and the last of the instants."""

    def forget(self, entry: Entry) -> None:
        """Look again next time: a range was dropped by somebody else."""


class NativePartitioning:
    """PostgreSQL's own range partitions; remembers which it has seen."""

    def __init__(self, driver: Driver, directory: Directory) -> None:
        self._driver = driver
        self._directory = directory
        self._seen: dict[int, set[int]] = {}

    async def ensure(self, entry: Entry, ts: Instants) -> None:
        if not len(ts):
            return
        grid = _grid(entry)
        seen = self._seen.setdefault(entry.id, set())
        low, high = grid.floor_one(int(ts.min())), grid.floor_one(int(ts.max()))
        starts = [low] if low == high else [int(s) for s in np.unique(grid.floor(ts))]
        missing = [s for s in starts if s not in seen]
        if not missing:
            return
        # a call is a transaction, and a new partition takes seven locks: leave the table room
        calls = [missing[i : i + _AT_ONCE] for i in range(0, len(missing), _AT_ONCE)]
        for span in [s for starts in calls for s in _joined(grid, starts)]:
            # the outermost partitions may reach beyond what may be asked for
            within = Span(max(span.start, EARLIEST), min(span.end, LATEST))
            await self._patiently(*_ensuring(entry, entry.dataset.name, within))
        seen.update(missing)

    async def ensure_blocks(self, entry: Entry, span: Span) -> int:
        return await self._patiently(*ensuring_blocks(entry, span))

    async def _patiently(self, statement: bytes, params: Params) -> int:
        for attempt in range(1, _TRIES + 1):
            try:
                rows = await self._driver.fetch(statement, params)
                made: int = rows[0][0]
                return made
            except (Busy, DatabaseError) as error:
                # making a partition locks all, one of which may be made anew by who waits for us
                is_in_the_way = isinstance(error, Busy) or error.sqlstate == "40P01"
                if not is_in_the_way or attempt == _TRIES:
                    raise
                await self._driver.pause(random.uniform(0.05, 0.2) * attempt)  # noqa: S311
        raise AssertionError("unreachable")

    async def ranges(self, entry: Entry) -> list[Partition]:
        parent = name(entry.schema, entry.dataset.name).as_string(None)
        rows = await self._driver.fetch(compose("partition/list_partitions"), {"parent": parent})
        return [Partition.from_row((r[0], r[1], r[2], r[3])) for r in rows]

    async def described(self, entry: Entry) -> list[Partition]:
        found = {p.span: p for p in await self.ranges(entry)}
        blocks = name(entry.schema, blocks_table(entry.dataset.name))
        statement = compose("partition/list_blocks", blocks=blocks)
        rows = await self._driver.fetch(statement, {"parent": blocks.as_string(None)})
        for table, bound, size, count, points in rows:
            known = found.get(span := _span(bound)) or Partition(table, span)
            found[span] = replace(known, blocks=count, block_points=points, block_bytes=size)
        return sorted(found.values(), key=lambda p: p.span.start)

    async def drop(self, entry: Entry, span: Span) -> list[Partition]:
        inside = [
            p
            for p in await self.ranges(entry)
            if span.start <= p.span.start and p.span.end <= span.end
        ]
        for partition in inside:
            for attempt in range(1, _TRIES + 1):
                try:
                    await self._drop(entry, partition)
                    break
                except DatabaseError as error:  # its index may be made anew: that waits for us
                    if error.sqlstate != "40P01" or attempt == _TRIES:
                        raise
                await self._driver.pause(0.05 * attempt)
        self.forget(entry)
        return inside

    async def _drop(self, entry: Entry, partition: Partition) -> None:
        parent = name(entry.schema, entry.dataset.name)
        table = name(entry.schema, partition.name)
        async with self._driver.transaction() as transaction:
            # the parent first; TRUNCATE fires the trigger that logs what goes
            await transaction.execute(compose("partition/set_lock_timeout"))
            await transaction.execute(compose("partition/lock_parent", points=parent))
            if entry.dataset.changelog == "writer":
                await self._log(transaction, entry, table)
            await transaction.execute(compose("partition/empty_partition", partition=table))
            await transaction.execute(compose("partition/drop_partition", partition=table))
            await self._drop_blocks(transaction, entry, partition.span)

    async def _drop_blocks(self, transaction: Transaction, entry: Entry, span: Span) -> None:
        """Drop the blocks of a range, and log what time they hold."""
        parent = name(entry.schema, blocks_table(entry.dataset.name))
        params = {"parent": parent.as_string(None)}
        for row in await transaction.fetch(compose("partition/list_partitions"), params):
            if _span(row[1]) != span:
                continue
            table = name(entry.schema, row[0])
            await transaction.execute(compose("partition/lock_parent", points=parent))
            await self._log(transaction, entry, table, "log_blocks")
            await transaction.execute(compose("partition/drop_partition", partition=table))

    async def _log(
        self, transaction: Transaction, entry: Entry, table: Part, how: str = "log_partition"
    ) -> None:
        grid = entry.dataset.log_step
        assert grid.width is not None
        params: Params = {
            "width": timedelta(microseconds=grid.width),
            "origin": to_datetime(grid.origin),
        }
        log = name(entry.schema, f"{entry.dataset.name}_log")
        statement = compose(f"partition/{how}", log=log, partition=table)
        await transaction.execute(statement, params)

    def count(self, entry: Entry, ts: Instants) -> int:
        return _grid(entry).count(Span(int(ts.min()), int(ts.max()) + 1))

    def forget(self, entry: Entry) -> None:
        self._seen.pop(entry.id, None)


def ensuring_blocks(entry: Entry, span: Span) -> tuple[bytes, Params]:
    """Return what makes the partitions for blocks of a span, where they are missing."""
    return _ensuring(entry, blocks_table(entry.dataset.name), span)


def _ensuring(entry: Entry, table: str, span: Span) -> tuple[bytes, Params]:
    ensure = name(entry.schema, "ensure_partitions")
    params: Params = {
        "dataset": table,
        "low": to_datetime(span.start),
        "high": to_datetime(span.end),
    }
    return compose("partition/ensure_partitions", ensure_partitions=ensure), params


def _grid(entry: Entry) -> Grid:
    return Grid(Step.parse(entry.dataset.partition))


def _joined(grid: Grid, starts: list[int]) -> list[Span]:
    """Return the ranges that begin at ``starts``, neighbours joined.

    >>> [str(s) for s in _joined(Grid(Step.parse("1d")), [0, 86_400_000_000])]
    ['[1970-01-01T00:00Z, 1970-01-03T00:00Z)']
    """
    spans: list[Span] = []
    for start in starts:
        end = int(grid.edges(Span(start, start + 1))[1])
        if spans and spans[-1].end == start:
            spans[-1] = Span(spans[-1].start, end)
        else:
            spans.append(Span(start, end))
    return spans


def _span(bound: str) -> Span:
    match = _BOUND.search(bound)
    if match is None:
        raise DatabaseError(f"a partition with the bound {bound!r} was not made by the toolkit")
    low, high = (to_us(datetime.fromisoformat(_full_offset(text))) for text in match.groups())
    return Span(low, high)


def _full_offset(text: str) -> str:
    return re.sub(r"([+-]\d{2})$", r"\1:00", text)
