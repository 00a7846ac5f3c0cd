"""Points on their way between rows and blocks: taken out of a span, and put back, in a transaction.

What is taken is what the statement removed, so nothing that others write meanwhile is lost. Series
are locked first: of one series in one partition one transaction at a time makes or changes blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg.sql import SQL, Identifier, Literal

from toolkit.blocks import SMALL, decode_part, encode_parts, identity, read_stored_header
from toolkit.catalog import Entry, Series
from toolkit.ddl import block_columns, blocks_table
from toolkit.drivers import Driver, Params, Rows, Transaction
from toolkit.errors import Busy, DatabaseError
from toolkit.merging import Cold, Run, merge_cold
from toolkit.partitions import Partitioning
from toolkit.reduce import Table, totals
from toolkit.statements import NOTHING, compose, filled
from toolkit.strategy.compose import no_block, no_points, points_statement, stored_columns
from toolkit.strategy.packing import packed, packing_of_points
from toolkit.strategy.params import blocks_params, range_params
from toolkit.timegrid import DAY, EARLIEST, LATEST, Grid, Span, Step, to_datetime

_TURN = 0.01  # seconds between two looks
_LONGEST = 300.0  # seconds to wait for others' transactions
_LOCKS = 64
_ALL = Span(EARLIEST, LATEST)

ROOM = 1_953_194_604
"""Of our locks, among the advisory locks of a database."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block ready to be stored."""

    span: Span
    rows: int
    first: int
    last: int
    header: bytes
    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Its bytes, header and all columns."""
        return len(self.header) + sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class Taken:
    """The points that were taken out of a span, how many were rows, and the blocks' spans."""

    table: Table
    rows: int
    blocks: tuple[Span, ...]


async def begin(transaction: Transaction, patience: float) -> None:
    """Let points move without the change log hearing of it; wait so many seconds for a lock."""
    await transaction.fetch(compose("blocks/begin_move"), {"patience": _ms(patience)})


async def make_room(
    driver: Driver, partitioning: Partitioning, entry: Entry, spans: Sequence[Span]
) -> None:
    """Make the partitions for blocks of spans, and wait until all that runs knows them.

    A statement is planned first and takes its snapshot then: between the two points may not
    move to a partition that the plan does not know. Whoever finds blocks in one need not wait:
    who put them there has. Nobody has to wait for us meanwhile.
    """
    blocks = Identifier(entry.schema, blocks_table(entry.dataset.name))
    statement, is_new = compose("blocks/has_blocks", blocks=blocks), False
    for span in spans:
        made = await partitioning.ensure_blocks(entry, span)
        has_some = not made and (await driver.fetch(statement, range_params(span)))[0][0]
        is_new = is_new or not has_some
    if is_new:
        await _wait_for_lockers(driver, entry)


async def _wait_for_lockers(driver: Driver, entry: Entry) -> None:
    """Wait for who may have been planned without a new partition of blocks to be gone."""
    blocks = Identifier(entry.schema, blocks_table(entry.dataset.name))
    statement, params = compose("blocks/list_lockers"), {"blocks": blocks.as_string(None)}
    before = {row[0] for row in await driver.fetch(statement, params)}
    deadline = time.monotonic() + _LONGEST
    while before:
        await driver.pause(_TURN)
        before &= {row[0] for row in await driver.fetch(statement, params)}
        if before and time.monotonic() > deadline:
            raise Busy(
                f"dataset {entry.dataset.name!r}: a transaction that began before a partition "
                "of blocks was made has not ended; do this again when it has"
            )


async def lock(
    transaction: Transaction, entry: Entry, ids: Iterable[int], span: Span, *, shared: bool = False
) -> None:
    """Keep others from making or changing blocks of series in a span until the transaction ends.

    It holds for the partitions that the span lies in, wholly: no block reaches out of one.
    """
    await lock_all(transaction, entry, [(i, span) for i in ids], shared=shared)


async def lock_all(
    transaction: Transaction,
    entry: Entry,
    wanted: Iterable[tuple[int, Span]],
    *,
    shared: bool = False,
) -> None:
    """Do so for several series, each with a span of its own."""
    grid = entry.once("partitions", lambda: Grid(Step.parse(entry.dataset.partition)))
    numbers = {n for series, span in wanted for n in locks_of(grid, series, span)}
    await transaction.fetch(_locking(shared=shared), {"locks": sorted(numbers)})


def locks_of(grid: Grid, series: int, span: Span) -> set[int]:
    """Return the locks of a series in the partitions that a span touches.

    >>> week = Grid(Step.parse("1w"))
    >>> sorted(locks_of(week, 7, Span(0, 1))), len(locks_of(week, 7, Span(EARLIEST, LATEST)))
    ([4], 64)
    """
    if grid.count(span) >= _LOCKS:
        return set(range(_LOCKS))
    starts = grid.edges(span)[:-1] // DAY
    return set(((starts + series) % _LOCKS).tolist())


async def take(
    transaction: Transaction, entry: Entry, series: Series, span: Span, run: Run
) -> Taken:
    """Remove the points of a locked series in a span, and the blocks that reach into it, whole."""
    return merge_taken(entry, series, await take_rows(transaction, entry, series, span), run)


async def take_rows(transaction: Transaction, entry: Entry, series: Series, span: Span) -> Rows:
    """Remove what :func:`take` does, and return it undecoded, for :func:`merge_taken`."""
    statement = entry.once(("take",), lambda: _take(entry))
    params: Params = {"id": series.id, **range_params(span), **blocks_params(entry, span)}
    return await transaction.fetch(statement, params)


async def look(
    reader: Driver | Transaction, entry: Entry, series: Series, span: Span, run: Run
) -> Taken:
    """Return what :func:`take` would, and leave it there."""
    statement = points_statement(entry, entry.dataset.names, source="one", is_cold=True)
    params: Params = {"id": series.id, **range_params(span), **blocks_params(entry, span)}
    return merge_taken(entry, series, await reader.fetch(statement, params), run)


def merge_taken(entry: Entry, series: Series, rows: Rows, run: Run) -> Taken:
    """Return a row of points and blocks as one table, whatever its times."""
    dataset = entry.dataset
    stored = stored_columns(dataset, dataset.names)
    names = {series.id: series.name}
    cold = Cold(dataset.name, packing_of_points(entry, dataset.names), stored, names, _ALL)
    merged = merge_cold(cold, rows, {series.id: 0}, run)
    count = sum(row[1] or 0 for row in rows)
    return Taken(merged.table, count, tuple(Span(lo, hi) for lo, hi in merged.spans))


def encoded(
    entry: Entry, series: Series, table: Table, spans: Sequence[Span], level: int = SMALL
) -> list[Encoded]:
    """Return blocks of the points in each of the spans, every one decoded and compared.

    A span without points gives none.
    """
    made = (_encoded(entry, series, table, span, level) for span in spans)
    return [block for block in made if block is not None]


def _encoded(entry: Entry, series: Series, table: Table, span: Span, level: int) -> Encoded | None:
    dataset = entry.dataset
    low, high = np.searchsorted(table.ts, (span.start, span.end)).tolist()
    if low == high:
        return None
    mine = table.take(slice(low, high))
    names = stored_columns(dataset, dataset.names)[1:]
    values = {n: np.ascontiguousarray(mine.values[n]) for n in names}
    stamp = identity(dataset.name, series.id, span.start, span.end)
    sums = totals(mine, [s for s in dataset.states if s.kind in ("pv", "v")], dataset)
    header, parts = encode_parts(
        np.ascontiguousarray(mine.ts),
        values,
        {n: mine.categories[n] for n in names if n in mine.categories},
        stamp=stamp,
        level=level,
        sums=sums,
    )
    first, last = int(mine.ts[0]), int(mine.ts[-1])
    block = Encoded(span, high - low, first, last, header, parts)
    _check(block, stamp, mine, values)
    return block


def _check(block: Encoded, stamp: str, table: Table, values: dict[str, Any]) -> None:
    """Raise unless a block gives back bit for bit what went into it."""
    header = read_stored_header(block.header, stamp)
    wanted = [table.ts, *values.values()]
    for column, data, before in zip(header.columns, block.parts, wanted, strict=True):
        after, _ = decode_part(header, column, data)
        if after.dtype != before.dtype or after.tobytes() != before.tobytes():
            raise DatabaseError(
                f"block {stamp!r}: column {column.name or 'ts'!r} does not come back as it was; "
                "nothing was changed"
            )


async def put(
    transaction: Transaction, entry: Entry, series: Series, blocks: Sequence[Encoded]
) -> None:
    """Store blocks; their partitions are there."""
    await put_all(transaction, entry, [(series.id, b) for b in blocks])


async def put_all(
    transaction: Transaction, entry: Entry, blocks: Sequence[tuple[int, Encoded]]
) -> None:
    """Store blocks of several series, each with its series' id."""
    if blocks:
        statement = entry.once(("put",), lambda: _put(entry))
        await transaction.execute(statement, put_params(entry, blocks))


def put_params(entry: Entry, blocks: Sequence[tuple[int, Encoded]]) -> dict[str, Any]:
    """Return blocks of series as one array a column."""
    params: dict[str, Any] = {
        "c0": [series for series, _ in blocks],
        "c1": [to_datetime(b.span.start) for _, b in blocks],
        "c2": [to_datetime(b.span.end) for _, b in blocks],
        "c3": [b.rows for _, b in blocks],
        "c4": [to_datetime(b.first) for _, b in blocks],
        "c5": [to_datetime(b.last) for _, b in blocks],
        "c6": [b.header for _, b in blocks],
    }
    for number in range(len(block_columns(entry.dataset))):
        params[f"c{7 + number}"] = [b.parts[number] for _, b in blocks]
    return params


def statements(entry: Entry, span: Span, patience: float) -> tuple[str, ...]:
    """Return what takes points of a series out of a span, and what puts blocks in.

    Only a move knows the series, its locks and the blocks: these are $1, $2 and so on.
    """
    begin = filled(compose("blocks/begin_move"), {"patience": _ms(patience)})
    params = {**range_params(span), **blocks_params(entry, span)}
    return (
        "BEGIN",
        begin,
        filled(_locking(shared=False), {}),
        filled(_take(entry), params),
        filled(_put(entry), {}),
        "COMMIT",
    )


def _ms(seconds: float) -> str:
    return f"{max(int(seconds * 1000), 1)}ms"


def _locking(*, shared: bool) -> bytes:
    how = SQL("_shared") if shared else NOTHING
    return compose("blocks/lock_series", room=Literal(ROOM), shared=how)


def _put(entry: Entry) -> bytes:
    stored = block_columns(entry.dataset)
    kinds = ["integer", *["timestamptz"] * 2, "integer", *["timestamptz"] * 2, "bytea"]
    kinds += ["bytea"] * len(stored)
    named = ("series_id", "lo", "hi", "_rows", "_first", "_last", "_header", *stored)
    return compose(
        "blocks/put_blocks",
        blocks=Identifier(entry.schema, blocks_table(entry.dataset.name)),
        columns=SQL(", ").join(map(Identifier, named)),
        arrays=SQL(", ").join(
            # b: bytes travel as they are, and not as digits
            [SQL(f"%(c{number})b::{kind}[]") for number, kind in enumerate(kinds)]
        ),
    )


def _take(entry: Entry) -> bytes:
    dataset = entry.dataset
    key = dataset.key[1:]
    each = stored_columns(dataset, dataset.names)
    return compose(
        "blocks/take_span",
        points=Identifier(entry.schema, dataset.name),
        blocks=Identifier(entry.schema, blocks_table(dataset.name)),
        columns=SQL(", ").join(Identifier("t", c) for c in (*key, *dataset.names)),
        packed=packed(packing_of_points(entry, dataset.names)),
        order=SQL(", ").join(map(Identifier, key)),
        last=no_block(entry, dataset.names),
        nulls=no_points(packing_of_points(entry, dataset.names)),
        parts=SQL(", ").join(Identifier("c", c) for c in each),
    )
