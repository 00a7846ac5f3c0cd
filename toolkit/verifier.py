"""The road of verifying: every block is read whole and decoded, and held to what is said of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from psycopg.sql import SQL, Identifier

from toolkit.blocks import (
    DamagedBlock,
    Header,
    are_states_of,
    decode_part,
    identity,
    read_stored_header,
)
from toolkit.catalog import Entry
from toolkit.columns import dtype_of
from toolkit.ddl import block_columns, blocks_table
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, Driver, Params, Rows
from toolkit.errors import DatabaseError, SchemaError
from toolkit.partitions import Partition
from toolkit.reduce import Array, Table, totals
from toolkit.statements import compose, filled, name
from toolkit.strategy.params import blocks_params, range_params
from toolkit.timegrid import EARLIEST, Grid, Span, Step, iso, to_datetime, to_us

_AT_ONCE = 8  # blocks in memory
_FIRST = {"after_id": -1, "after_lo": to_datetime(EARLIEST)}
_BROKEN = "XX"  # SQLSTATE class of a server that cannot read its own pages
_ROUNDING = 1e-9  # of a sum's absolute values: machines add in different orders


@dataclass(frozen=True, slots=True)
class Damage:
    """One block with which something is wrong, and what its points can be made again from.

    ``columns`` are those whose bytes are this block's and decode. ``late_rows`` lie in its span
    as rows; they were written after it, are whole, and count. ``bars`` says how many buckets of
    which rollup steps are stored inside its span. ``is_readable``: only its place or what its
    row says of it is wrong.
    """

    series: str
    span: Span
    problems: tuple[str, ...]
    columns: tuple[str, ...] = ()
    late_rows: int = 0
    bars: Mapping[str, int] | None = None
    is_readable: bool = False

    @property
    def remedy(self) -> str:
        """What to do, as a sentence."""
        if self.is_readable:
            return (
                "its points are whole: toolkit decompress makes rows of them, and toolkit "
                "compress makes blocks of these again"
            )
        said = []
        if self.late_rows:
            said.append(f"late points in its span are rows ({self.late_rows:,}), and whole")
        bars = ", ".join(f"{count:,} of {step}" for step, count in (self.bars or {}).items())
        said += [f"rollups hold its bars ({bars}), not its points"] if bars else []
        said.append(
            "its points come from a backup, or from loading its span again once it is deleted"
        )
        return "; ".join(said)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong; ``bytes`` are those of the blocks."""

    dataset: str
    blocks: int = 0
    points: int = 0
    bytes: int = 0
    damaged: tuple[Damage, ...] = ()
    seconds: float = 0.0


Progress = Callable[[VerifyReport, int], None]
"""Called with what was found so far, and how many blocks there are in all."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A block as it was read; ``parts`` lack what the server itself could not read."""

    series: int
    span: Span
    rows: int
    first: int
    last: int
    parts: Mapping[str, bytes]
    error: str = ""

    @property
    def size(self) -> int:
        return sum(map(len, self.parts.values()))


@dataclass(frozen=True, slots=True)
class _Look:
    """What a block looks like: what is wrong, and which columns are its own and decode."""

    problems: tuple[str, ...]
    columns: tuple[str, ...] = ()
    is_readable: bool = False


class Verifier:
    """Looks at the blocks of one store; beside readers, writers and compressions."""

    def __init__(self, driver: Driver, directory: Directory) -> None:
        self._driver = driver
        self._directory = directory

    async def verify(
        self, dataset: str, names: tuple[str, ...] | None, span: Span, on_progress: Progress
    ) -> VerifyReport:
        """Check the blocks that reach into ``span``; a partition after the other, by key."""
        started = time.perf_counter()
        entry = await self._directory.confirmed(dataset)
        params = await self._params(entry, names, span)
        total, misplaced = await self._misplaced(entry, params)
        report, series = VerifyReport(dataset), dict[int, str]()
        async for blocks in self._pages(entry, span, params):
            found = await self._driver.compute(_look, entry, blocks)
            series |= await self._names({b.series for b in blocks} - series.keys())
            damaged = []
            for block, look in zip(blocks, found, strict=True):
                problems = (*look.problems, *misplaced.get((block.series, block.span.start), ()))
                if block.series not in series:
                    problems = (*problems, f"there is no series with the id {block.series}")
                if problems:
                    who = series.get(block.series, str(block.series))
                    damaged.append(await self._damage(entry, block, look, who, problems))
            report = replace(
                report,
                blocks=report.blocks + len(blocks),
                points=report.points + sum(b.rows for b in blocks),
                bytes=report.bytes + sum(b.size for b in blocks),
                damaged=(*report.damaged, *damaged),
            )
            on_progress(report, total)
        return replace(report, seconds=time.perf_counter() - started)

    async def statements(
        self, dataset: str, names: tuple[str, ...] | None, span: Span
    ) -> tuple[str, ...]:
        """Return what :meth:`verify` reads, as it is sent; of each partition the first page."""
        entry = await self._directory.confirmed(dataset)
        params = await self._params(entry, names, span)
        pages = [
            filled(_page(entry, partition, _columns(entry)), {**params, **_FIRST})
            for partition in await self._partitions(entry, span)
        ]
        return (filled(_places(entry), params), *pages)

    async def _params(self, entry: Entry, names: tuple[str, ...] | None, span: Span) -> Params:
        ids = None
        if names is not None:
            ids = [s.id for s in await self._directory.series(entry, names)]
        places = {**blocks_params(entry, span), "dataset_id": entry.id}
        return {**range_params(span), **places, "ids": ids, "limit": _AT_ONCE}

    async def _misplaced(
        self, entry: Entry, params: Params
    ) -> tuple[int, dict[tuple[int, int], list[str]]]:
        """Return how many blocks there are, and what is wrong with the place of some."""
        row = (await self._driver.fetch(_places(entry), params, timeout=BULK_TIMEOUT))[0]
        misplaced = {}
        for series, lo, overlaps in zip(*row[2:], strict=True):
            what = (
                "an earlier block of the series reaches into its span"
                if overlaps
                else "it has points where readers look for none, at or after dataset.cold_to"
            )
            misplaced[series, to_us(lo)] = [what]
        return row[0], misplaced

    async def _pages(self, entry: Entry, span: Span, params: Params) -> AsyncIterator[list[_Read]]:
        for partition in await self._partitions(entry, span):
            after = {**params, **_FIRST}
            while blocks := await self._next(entry, partition, span, after):
                yield blocks
                lo = to_datetime(blocks[-1].span.start)
                after |= {"after_id": blocks[-1].series, "after_lo": lo}

    async def _partitions(self, entry: Entry, span: Span) -> list[str]:
        """Return the partitions of blocks that a range touches, oldest first."""
        parent = name(entry.schema, blocks_table(entry.dataset.name)).as_string(None)
        rows = await self._driver.fetch(compose("partition/list_partitions"), {"parent": parent})
        found = [Partition.from_row((r[0], r[1], r[2], r[3])) for r in rows]
        return [p.name for p in found if not p.span.clip(span).is_empty]

    async def _next(self, entry: Entry, partition: str, span: Span, params: Params) -> list[_Read]:
        """Return the next blocks; none where retention has dropped the partition meanwhile."""
        try:
            return await self._page(entry, partition, params)
        except (SchemaError, DatabaseError):
            if partition in await self._partitions(entry, span):
                raise
            return []

    async def _page(self, entry: Entry, partition: str, params: Params) -> list[_Read]:
        """Return the next blocks; where the server cannot read one of them, one, piece by piece."""
        columns = _columns(entry)
        try:
            rows = await self._fetch(entry, partition, columns, params)
            return [_read(row, columns) for row in rows]
        except DatabaseError as error:
            if not (error.sqlstate or "").startswith(_BROKEN):
                raise
        one = {**params, "limit": 1}
        whole = await self._fetch(entry, partition, (), one)
        if not whole:  # those of the page went meanwhile
            return []
        parts: dict[str, bytes] = {}
        problem = ""
        for column in columns:
            try:
                found = await self._fetch(entry, partition, (column,), one)
            except DatabaseError as error:
                problem = problem or str(error)
                continue
            if [row[:6] for row in found] != whole:  # it went or came meanwhile
                return await self._page(entry, partition, params)
            parts[column] = found[0][6]
        return [replace(_read(whole[0], ()), parts=parts, error=problem)]

    async def _fetch(
        self, entry: Entry, partition: str, columns: Sequence[str], params: Params
    ) -> Rows:
        text = _page(entry, partition, columns)
        return await self._driver.fetch(text, params, timeout=BULK_TIMEOUT)

    async def _names(self, ids: Iterable[int]) -> dict[int, str]:
        params = {"ids": list(ids)}
        if not params["ids"]:
            return {}
        rows = await self._directory.run("catalog/list_series_by_id", "series", params=params)
        return {row[0]: row[1] for row in rows}

    async def _damage(
        self, entry: Entry, block: _Read, look: _Look, series: str, problems: tuple[str, ...]
    ) -> Damage:
        span, bars = block.span, {}
        for rollup in entry.rollups:
            low, high = rollup.grid.ceil_one(span.start), rollup.grid.floor_one(span.end)
            inner = Span(low, max(low, high))
            if count := await self._count(entry, rollup.relation, block.series, inner):
                bars[str(rollup.grid.step)] = count
        return Damage(
            series,
            span,
            problems,
            look.columns,
            await self._count(entry, entry.dataset.name, block.series, span),
            bars,
            look.is_readable,
        )

    async def _count(self, entry: Entry, table: str, series: int, span: Span) -> int:
        text = compose("blocks/count_between", table=name(entry.schema, table))
        params = {"id": series, **range_params(span)}
        count: int = (await self._driver.fetch(text, params, timeout=BULK_TIMEOUT))[0][0]
        return count


def _columns(entry: Entry) -> tuple[str, ...]:
    return ("_header", *block_columns(entry.dataset))


def _page(entry: Entry, partition: str, columns: Sequence[str]) -> bytes:
    return compose(
        "blocks/verify_page",
        partition=name(entry.schema, partition),
        columns=SQL("").join(SQL(", {}").format(Identifier("b", c)) for c in columns),
    )


def _places(entry: Entry) -> bytes:
    return compose(
        "blocks/verify_places",
        blocks=name(entry.schema, blocks_table(entry.dataset.name)),
        dataset=name(entry.schema, "dataset"),
    )


def _read(row: tuple[Any, ...], columns: Sequence[str]) -> _Read:
    series, lo, hi, rows, first, last, *parts = row
    named = dict(zip(columns, parts, strict=True))
    return _Read(series, Span.between(lo, hi), rows, to_us(first), to_us(last), named)


def _look(entry: Entry, blocks: Sequence[_Read]) -> list[_Look]:
    """Decode blocks, and return what each looks like."""
    return [_look_at(entry, block) for block in blocks]


def _look_at(entry: Entry, block: _Read) -> _Look:
    dataset, span = entry.dataset, block.span
    problems = [block.error] if block.error else []
    try:
        stamp = identity(dataset.name, block.series, span.start, span.end)
        header = read_stored_header(block.parts.get("_header", b""), stamp)
    except DamagedBlock as error:
        return _Look((*problems, str(error)))
    types = {"ts": "time", "seq": "int"} | {c.name: c.type for c in dataset.columns}
    values: dict[str, Array] = {}
    categories = {}
    known = {c.name or "ts": c for c in header.columns}
    for column in block_columns(dataset):
        try:
            if column not in known:
                raise DamagedBlock(f"it has no column {column!r}")
            if column not in block.parts:
                continue  # what the server could not read is said already
            found, names = decode_part(header, known[column], block.parts[column])
            if found.dtype != dtype_of(types[column]):
                raise DamagedBlock(f"column {column!r} is of another type: {found.dtype}")
        except DamagedBlock as error:
            problems.append(str(error))
            continue
        values[column] = found
        if names is not None:
            categories[column] = names
    columns = tuple(values)
    inner = list(_contradictions(header, values))
    if len(columns) == len(block_columns(dataset)) and not inner:
        inner += _wrong_sums(entry, header, values, categories)
    if (ts := values.get("ts")) is not None:
        inner += _wrong_keys(span, ts, values.get("seq"))
    is_readable = not problems and not inner
    return _Look((*problems, *inner, *_wrong_row(entry, block, header, ts)), columns, is_readable)


def _contradictions(header: Header, values: Mapping[str, Array]) -> Iterator[str]:
    """Yield which columns are not as the header's states say."""
    for column in header.columns:
        found = values.get(column.name or "ts")
        if column.states is None or found is None:
            continue
        if not are_states_of(column.kind, column.states, found):
            yield f"column {column.name or 'ts'!r}: the header's states are not those of its values"


def _wrong_sums(
    entry: Entry, header: Header, values: Mapping[str, Array], categories: Mapping[str, Any]
) -> Iterator[str]:
    """Yield which weighted sums in the header are not those of the values."""
    dataset = entry.dataset
    states = [s for s in dataset.states if s.name in header.sums]
    others = {n: v for n, v in values.items() if n != "ts"}
    table = Table(np.zeros(header.rows, np.int32), values["ts"], others, categories)
    with np.errstate(all="ignore"):
        sizes = replace(table, values={n: np.abs(v) for n, v in others.items()})
    found, slack = totals(table, states, dataset), totals(sizes, states, dataset)
    for state in states:
        said, true = header.sums[state.name], found[state.name]
        is_same = said == true or (said != said and true != true)
        if not is_same and not abs(said - true) <= _ROUNDING * slack[state.name]:
            yield f"sum {state.name!r}: the header's is not that of the values"


def _wrong_keys(span: Span, ts: Array, seq: Array | None) -> Iterator[str]:
    later = ts[1:] > ts[:-1]
    if seq is not None:
        later |= (ts[1:] == ts[:-1]) & (seq[1:] > seq[:-1])
    if not later.all():
        yield "its keys do not ascend"
    if len(ts) and not (span.start <= ts.min() and ts.max() < span.end):
        yield f"it has times outside its span, {iso(int(ts.min()))} to {iso(int(ts.max()))}"


def _wrong_row(entry: Entry, block: _Read, header: Header, ts: Array | None) -> Iterator[str]:
    """Yield what the table says of a block and is not so."""
    if block.rows != header.rows:
        yield f"_rows says {block.rows:,} points, the header {header.rows:,}"
    if ts is not None and len(ts) and (block.first, block.last) != (ts[0], ts[-1]):
        yield f"_first and _last are not those of its times, {iso(int(ts[0]))}, {iso(int(ts[-1]))}"
    grid = Grid(Step.parse(entry.dataset.partition))
    if grid.floor_one(block.span.start) != grid.floor_one(block.span.end - 1):
        yield "its span reaches beyond its partition, where readers do not look for it"
