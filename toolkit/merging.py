"""From packed rows and blocks to one table: of two points with one key the row's counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from toolkit.blocks import (
    DamagedBlock,
    Header,
    decode_part_into,
    identity,
    read_stored_header,
)
from toolkit.columns import NULL_CODE
from toolkit.decode import Packing, unpack
from toolkit.drivers import Rows
from toolkit.errors import CorruptBlock
from toolkit.reduce import Array, Table
from toolkit.timegrid import PG_EPOCH, Span

Run = Callable[[Sequence[Callable[[], None]]], object]
"""Runs jobs, on several threads perhaps, and returns when all are done."""


def run_here(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs one after the other."""
    for job in jobs:
        job()


LAST = 2**63 - 1
"""The seq of a key that no other of its instant follows."""
_EDGES = np.dtype(">i8")


@dataclass(frozen=True, slots=True)
class Cold:
    """What came of rows and blocks, and which of it is asked for.

    ``stored`` are the columns of a block as they came, the time first; ``names`` are the series'
    by id. ``after`` is a key (time, seq) of which only what comes later is asked for; of
    ``limit`` points of a series the oldest, or where it is ``descending`` the newest.
    """

    dataset: str
    packing: Packing
    stored: tuple[str, ...]
    names: Mapping[int, str]
    span: Span
    limit: int | None = None
    after: tuple[int, int] | None = None
    descending: bool = False


class Merged(NamedTuple):
    """Points of rows and blocks; how many of them blocks gave, and the last key up to which all
    of a series' points are among them, None where they are all.

    ``whole`` are blocks of which only the header came, with the codes of their series; ``spans``
    are those of all others.
    """

    table: Table
    from_blocks: int
    reached: tuple[int, int] | None
    whole: Sequence[tuple[int, Stored]] = ()
    spans: Sequence[tuple[int, int]] = ()


class Stored(NamedTuple):
    """One block as it was read: its span, its header, and each column's bytes."""

    series: int
    lo: int
    hi: int
    header: Header
    parts: Sequence[bytes]

    @property
    def is_whole(self) -> bool:
        """Whether its header says all that is asked, and came alone."""
        return not self.parts


@dataclass(slots=True)
class _Region:
    """Where one series lies in the arrays: its blocks' points, and then its rows'."""

    code: int
    blocks: list[Stored]
    begin: int
    rows: int
    end: int
    is_cut: bool
    is_full: bool
    whole: list[Stored]


def merge_cold(cold: Cold, rows: Rows, code_of: Mapping[int, int], run: Run) -> Merged:
    """Return the points of packed rows and of blocks, each once, ordered by (series, ts, seq).

    Raises CorruptBlock for a block whose bytes are not as they were written, or that is
    another's. Costs the decoding, and where rows lie between a block's points a sort.
    """
    width = 2 + cold.packing.width
    unpacked = unpack(cold.packing, [r[1:width] for r in rows if r[1] is not None])
    regions = list(_regions(cold, rows, width, code_of))
    size = regions[-1].end if regions else 0
    columns = {"ts": unpacked.ts, **unpacked.values}
    arrays = {n: np.empty(size, columns[n].dtype) for n in cold.stored}
    taken = 0
    for region in regions:
        count = region.end - region.rows
        for name, array in arrays.items():
            own = columns[name][taken : taken + count]
            array[region.rows : region.end] = own[::-1] if cold.descending else own
        taken += count
    categories = {n: [c] for n, c in unpacked.categories.items()}
    _decode_all(cold, regions, arrays, categories, run)
    merged = _selected(cold, regions, arrays, {n: c[0] for n, c in categories.items()})
    return merged._replace(
        whole=[(r.code, b) for r in regions for b in r.whole],
        spans=[(b.lo, b.hi) for r in regions for b in r.blocks],
    )


def block_of(
    dataset: str,
    names: Mapping[int, str],
    series: int,
    span: bytes,
    header: bytes,
    parts: Sequence[bytes | None],
) -> Stored:
    """Return one block of a series, its header read and checked."""
    lo, hi = (np.frombuffer(span, _EDGES).astype(np.int64) + PG_EPOCH).tolist()
    try:
        read = read_stored_header(header, identity(dataset, series, lo, hi))
    except DamagedBlock as error:
        name = names.get(series, str(series))
        raise CorruptBlock(dataset, name, Span(lo, hi), error) from error
    return Stored(series, lo, hi, read, [p for p in parts if p is not None])


def decode_block(
    dataset: str,
    names: Mapping[int, str],
    block: Stored,
    stored: Sequence[str],
    arrays: Mapping[str, Array],
    at: int,
) -> dict[str, tuple[str, ...]]:
    """Put a block's columns into the arrays from row ``at`` on; return the names of categories."""
    header = block.header
    columns = {c.name or "ts": c for c in header.columns}
    found = {}
    try:
        for name, data in zip(stored, block.parts, strict=True):
            if name not in columns:
                raise DamagedBlock(f"it has no column {name!r}")
            out = arrays[name][at : at + header.rows]
            categories = decode_part_into(header, columns[name], data, out)
            if categories is not None:
                found[name] = categories
    except ValueError as error:  # damaged, or a column of another type
        series = names.get(block.series, str(block.series))
        raise CorruptBlock(dataset, series, Span(block.lo, block.hi), error) from error
    return found


def _regions(cold: Cold, rows: Rows, width: int, code_of: Mapping[int, int]) -> Iterator[_Region]:
    blocks: dict[int, list[Stored]] = {}
    cut: dict[int, bool] = {}
    for row in rows:
        if row[1] is None:
            span, header, *parts, has_next = row[width:]
            block = block_of(cold.dataset, cold.names, row[0], span, header, parts)
            blocks.setdefault(row[0], []).append(block)
            cut[row[0]] = has_next  # the last one's counts
    at = 0
    for row in rows:
        if row[1] is None:
            continue
        found = sorted(blocks.get(row[0], ()), key=lambda b: b.lo)
        mine = [b for b in found if not b.is_whole]
        whole = [b for b in found if b.is_whole]
        begin, middle = at, at + sum([b.header.rows for b in mine])
        at = middle + row[1]
        is_full = cold.limit is not None and row[1] >= cold.limit
        is_cut = cut.get(row[0], False)
        yield _Region(code_of[row[0]], mine, begin, middle, at, is_cut, is_full, whole)


def _decode_all(
    cold: Cold,
    regions: Sequence[_Region],
    arrays: Mapping[str, Array],
    categories: Mapping[str, list[tuple[str, ...]]],
    run: Run,
) -> None:
    """Decode every block to its place, and give the codes of categories one meaning."""
    places: list[tuple[int, int, dict[str, tuple[str, ...]]]] = []

    def decode(block: Stored, at: int, found: dict[str, tuple[str, ...]]) -> None:
        found |= decode_block(cold.dataset, cold.names, block, cold.stored, arrays, at)

    jobs = []
    for region in regions:
        at = region.begin
        for block in region.blocks:
            places.append((at, at + block.header.rows, {}))
            jobs.append(partial(decode, block, at, places[-1][2]))
            at += block.header.rows
    if jobs:
        run(jobs)
    for name, known in categories.items():
        index = {text: code for code, text in enumerate(known[0])}
        for begin, end, found in places:
            table = [index.setdefault(text, len(index)) for text in found[name]] + [NULL_CODE]
            codes = arrays[name][begin:end]
            codes[:] = np.array(table, np.int32)[codes]
        known[0] = tuple(index)


def _selected(
    cold: Cold,
    regions: Sequence[_Region],
    arrays: Mapping[str, Array],
    categories: Mapping[str, tuple[str, ...]],
) -> Merged:
    """Return what is asked for of every series, in order."""
    chosen: list[slice | Array] = []
    reached: list[tuple[int, int]] = []
    counts, from_blocks = [], 0
    for region in regions:
        rows, blocks, end = _choose(cold, region, arrays)
        chosen.append(rows)
        counts.append(rows.stop - rows.start if isinstance(rows, slice) else len(rows))
        from_blocks += blocks
        if end is not None:
            reached.append(end)
    series = np.repeat(np.array([r.code for r in regions], np.int32), counts)
    taken: slice | Array
    if len(chosen) == 1:
        taken = chosen[0]
    elif all(isinstance(rows, slice) for rows in chosen) and _is_gapless(chosen):
        taken = slice(0, sum(counts))
    else:
        taken = np.concatenate([_positions(rows) for rows in chosen] or [np.empty(0, np.intp)])
    values = {n: a[taken] for n, a in arrays.items()}
    return Merged(
        Table(series, values.pop("ts"), values, categories),
        from_blocks,
        min(reached) if reached else None,
    )


def _is_gapless(chosen: Sequence[Any]) -> bool:
    at = 0
    for rows in chosen:
        if rows.start != at:
            return False
        at = rows.stop
    return True


def _positions(rows: slice | Array) -> Array:
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def _choose(
    cold: Cold, region: _Region, arrays: Mapping[str, Array]
) -> tuple[slice | Array, int, tuple[int, int] | None]:
    """Return a series' rows in order, how many came from blocks, and up to where all are there."""
    ts, seq = arrays["ts"], arrays.get("seq")
    begin, middle, end = region.begin, region.rows, region.end
    reached = _reached(cold, region, ts, seq) if region.is_cut or region.is_full else None
    order: slice | Array = slice(begin, end)
    if begin < middle < end and ts[middle - 1] >= ts[middle]:
        order = begin + _sorted(ts[begin:end], seq[begin:end] if seq is not None else None)
    keys = ts[order]
    low, high = np.searchsorted(keys, (cold.span.start, cold.span.end)).tolist()
    if cold.after is not None:
        low = max(low, _place(keys, seq, order, cold.after, "right"))
    if reached is not None and cold.descending:
        low = max(low, _place(keys, seq, order, reached, "left"))
    elif reached is not None:
        high = min(high, _place(keys, seq, order, reached, "right"))
    low = min(low, high)
    if cold.limit is not None and high - low > cold.limit:
        low, high = (high - cold.limit, high) if cold.descending else (low, low + cold.limit)
        reached = None if cold.descending else (int(keys[high - 1]), _seq(seq, order, high - 1))
    rows = slice(begin + low, begin + high) if isinstance(order, slice) else order[low:high]
    if isinstance(rows, slice):
        from_blocks = max(min(rows.stop, middle) - rows.start, 0)
    else:
        from_blocks = int(np.count_nonzero(rows < middle))
    if cold.descending:
        rows = _positions(rows)[::-1]
    return rows, from_blocks, reached


def _sorted(ts: Array, seq: Array | None) -> Array:
    """Return the order of keys, of equal ones the last given only."""
    order = np.argsort(ts, kind="stable") if seq is None else np.lexsort((seq, ts))
    last = np.ones(len(order), bool)
    keys = ts[order]
    last[:-1] = keys[1:] != keys[:-1]
    if seq is not None:
        tied = seq[order]
        last[:-1] |= tied[1:] != tied[:-1]
    return order[last]


def _reached(cold: Cold, region: _Region, ts: Array, seq: Array | None) -> tuple[int, int] | None:
    """Return the key up to which both rows and blocks are whole."""
    ends = []
    if region.is_full:  # the row farthest from where the range is read from
        at = region.rows if cold.descending else region.end - 1
        ends.append((int(ts[at]), int(seq[at]) if seq is not None else 0))
    if region.is_cut:
        block = region.blocks[0] if cold.descending else region.blocks[-1]
        ends.append((block.lo, -LAST) if cold.descending else (block.hi - 1, LAST))
    return max(ends) if cold.descending else min(ends)


def _seq(seq: Array | None, order: slice | Array, at: int) -> int:
    return int(seq[order][at]) if seq is not None else 0


def _place(
    keys: Array, seq: Array | None, order: slice | Array, key: tuple[int, int], side: Any
) -> int:
    """Return where a key (time, seq) would be put in."""
    if seq is None:
        return int(np.searchsorted(keys, key[0], side))
    low, high = np.searchsorted(keys, (key[0], key[0] + 1)).tolist()
    return int(low + np.searchsorted(seq[order][low:high], key[1], side))
