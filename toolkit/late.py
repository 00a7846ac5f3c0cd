"""Writes and deletes in compressed time: what they have to know of blocks, and do to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit import changes, moves
from toolkit.batches import arrays, bounds, parts
from toolkit.catalog import Entry, Series
from toolkit.cold import points_of_one
from toolkit.columns import InBand
from toolkit.cutting import cut
from toolkit.ddl import blocks_table
from toolkit.drivers import Driver, Rows, Transaction
from toolkit.drivers.inside import InsideDriver
from toolkit.errors import CorruptBlock
from toolkit.ingest.frames import Batch
from toolkit.intake import key_exists
from toolkit.merging import Run
from toolkit.reduce import Table
from toolkit.statements import compose, name
from toolkit.strategy.params import blocks_params
from toolkit.timegrid import Instants, Span, to_datetime, to_us

PATIENCE = 30.0
"""Seconds to wait for who makes blocks: they hold a lock for milliseconds."""
_AT_ONCE = 32  # blocks decoded together
_MOST = 2_000  # rows that travel as arrays


async def cold_to(transaction: Transaction, entry: Entry) -> int | None:
    """Return until when blocks may hold points; who has locked the series relies on it."""
    dataset = name(entry.schema, "dataset")
    statement = compose("blocks/read_cold", dataset=dataset)
    rows = await transaction.fetch(statement, {"dataset_id": entry.id})
    return to_us(rows[0][0]) if rows and rows[0][0] is not None else None


async def thaw(
    driver: Driver,
    transaction: Transaction,
    entry: Entry,
    batch: Batch,
    ids: npt.NDArray[np.int32],
    run: Run,
    *,
    must_be_new: bool = False,
) -> Batch:
    """Make rows of the points in blocks that an arranged batch is about to change.

    So it finds them where it looks for them, and nobody's other columns are lost. Returns the
    batch without the points that are there already, bit for bit as given; where they
    ``must_be_new`` one that is there is an InputError. The change log hears of none.
    """
    edge = await cold_to(transaction, entry)
    if edge is None or not len(batch) or int(batch.ts.min()) >= edge:
        return batch
    found = await _blocks(transaction, entry, batch, ids)
    if not found:
        return batch
    await moves.begin(transaction, PATIENCE)
    inside = InsideDriver(driver, transaction)
    starts, ends = _runs(batch)
    is_same = np.zeros(len(batch), bool)
    for start, end in zip(starts, ends, strict=True):
        code = int(batch.series[start])
        series = Series(int(ids[code]), batch.names[code])
        ts = batch.ts[start:end]
        spans = [s for s in found.get(series.id, []) if _holds(s, ts)]
        for span in _neighbours(spans):
            low, high = (start + np.searchsorted(ts, (span.start, span.end))).tolist()
            table = await points_of_one(inside, entry, series, span, run)
            mine = batch.take(slice(low, high))
            at, has_one = _found(table, mine)
            if must_be_new and has_one.any():
                row = int(np.argmax(has_one))
                seq = None if mine.seq is None else int(mine.seq[row])
                raise key_exists(series.name, int(mine.ts[row]), seq)
            same = has_one & _are_equal(table, at, mine)
            is_same[low:high] = same
            old = _batch_of(entry, series, table.take(at[has_one & ~same]))
            await _put(transaction, entry, old, np.array([series.id], np.int32))
    await transaction.fetch(compose("blocks/end_move"))
    return batch.take(~is_same) if is_same.any() else batch


async def cut_out(
    driver: Driver,
    transaction: Transaction,
    entry: Entry,
    series: Series,
    span: Span,
    run: Run,
) -> tuple[int, Instants]:
    """Remove what a locked series has in a range of blocks' time; return how many points, and when.

    Blocks that the range cuts are made anew of the rest, late points folded in. A damaged block
    goes if all of it is to.
    """
    statement = compose(
        "blocks/list_blocks",
        blocks=name(entry.schema, blocks_table(entry.dataset.name)),
        bytes=name("b", "_rows"),
    )
    params = {
        "start": to_datetime(span.start),
        "end": to_datetime(span.end),
        **blocks_params(entry, span),
        "ids": [series.id],
    }
    lost, removed = 0, [np.empty(0, np.int64)]
    for _, lo, hi, count, _ in await transaction.fetch(statement, params):
        block = Span(to_us(lo), to_us(hi))
        try:
            rows = await moves.take_rows(transaction, entry, series, block)
            taken = await driver.compute(moves.merge_taken, entry, series, rows, run)
        except CorruptBlock:
            if not (span.start <= block.start and block.end <= span.end):
                raise
            # gone by now, and nothing of it is to stay: when it held points is not known
            lost += count
            removed.append(changes.within(entry, block))
            continue
        table = taken.table
        low, high = np.searchsorted(table.ts, (span.start, span.end)).tolist()
        lost += high - low
        removed.append(table.ts[low:high])
        if high - low < len(table):
            rest = table.take(np.r_[0:low, high : len(table)])
            spans = cut(block, rest.ts)
            blocks = await driver.compute(moves.encoded, entry, series, rest, spans)
            await moves.put(transaction, entry, series, blocks)
    return lost, np.concatenate(removed)


async def _blocks(
    transaction: Transaction, entry: Entry, batch: Batch, ids: npt.NDArray[np.int32]
) -> dict[int, list[Span]]:
    starts, ends = _runs(batch)
    edges = bounds(batch)
    statement = compose(
        "blocks/find_blocks", blocks=name(entry.schema, blocks_table(entry.dataset.name))
    )
    params: dict[str, Any] = {
        "ids": ids[batch.series[starts]].tolist(),
        "lows": [to_datetime(t) for t in batch.ts[starts].tolist()],
        "highs": [to_datetime(t) for t in batch.ts[ends - 1].tolist()],
        "high": edges["end"],
        **blocks_params(entry, Span.between(edges["start"], edges["end"])),
    }
    rows: Rows = await transaction.fetch(statement, params)
    found: dict[int, list[Span]] = {}
    for series, lo, hi in rows:
        found.setdefault(series, []).append(Span(to_us(lo), to_us(hi)))
    return found


def _runs(batch: Batch) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return where each series of an arranged batch begins and ends."""
    starts = np.flatnonzero(np.append(True, batch.series[1:] != batch.series[:-1]))
    return starts, np.append(starts[1:], len(batch))


def _holds(span: Span, ts: Instants) -> bool:
    low, high = np.searchsorted(ts, (span.start, span.end))
    return bool(low < high)


def _neighbours(spans: list[Span]) -> list[Span]:
    """Return spans that follow one another as one, some blocks at a time.

    >>> [str(len(_neighbours([Span(n, n + 1) for n in range(40)])))]
    ['2']
    """
    joined: list[Span] = []
    count = 0
    for span in spans:
        if joined and joined[-1].end == span.start and count < _AT_ONCE:
            joined[-1] = Span(joined[-1].start, span.end)
            count += 1
        else:
            joined.append(span)
            count = 1
    return joined


def _found(table: Table, batch: Batch) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return where the keys of a batch of one series are in a table, and which of them are."""
    if not len(table):
        return np.zeros(len(batch), np.intp), np.zeros(len(batch), bool)
    if batch.seq is None:
        at = np.minimum(np.searchsorted(table.ts, batch.ts), len(table) - 1)
        return at, table.ts[at] == batch.ts
    names = [("ts", np.int64), ("seq", np.int64)]
    keys = np.empty(len(table), names)
    keys["ts"], keys["seq"] = table.ts, table.values["seq"]
    wanted = np.empty(len(batch), names)
    wanted["ts"], wanted["seq"] = batch.ts, batch.seq
    at = np.minimum(np.searchsorted(keys, wanted), len(table) - 1)
    return at, keys[at] == wanted


def _are_equal(table: Table, at: npt.NDArray[np.intp], batch: Batch) -> npt.NDArray[np.bool_]:
    """Return which points are bit for bit those of a batch, in the columns that it gives."""
    same = np.ones(len(batch), bool)
    if not len(table):
        return ~same
    for column in batch.given if batch.given is not None else tuple(batch.values):
        mine, theirs = batch.values[column], table.values[column][at]
        if column in batch.categories:
            own = (*batch.categories[column], None)
            there = (*table.categories[column], None)
            index = {text: code for code, text in enumerate(there)}
            same &= np.array([index.get(text, -2) for text in own])[mine] == np.where(
                theirs < 0, len(there) - 1, theirs
            )
        elif mine.dtype == np.float64:
            both = np.isnan(mine) & np.isnan(theirs)
            same &= both | (_bits(mine) == _bits(theirs))
        else:
            same &= mine == theirs
    return same


def _bits(values: InBand) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(values).view(np.int64)


def _batch_of(entry: Entry, series: Series, table: Table) -> Batch:
    return Batch(
        entry.dataset,
        (series.name,),
        np.zeros(len(table), np.int32),
        table.ts,
        table.values.get("seq"),
        {n: table.values[n] for n in entry.dataset.names},
        table.categories,
    )


async def _put(
    transaction: Transaction, entry: Entry, batch: Batch, ids: npt.NDArray[np.int32]
) -> None:
    statement = compose("write/ignore_rows", **parts(entry, True, None))
    for start in range(0, len(batch), _MOST):
        some = batch.take(slice(start, start + _MOST))
        await transaction.execute(statement, bounds(some) | arrays(some, ids))
