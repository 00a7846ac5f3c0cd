"""One batch on its way into blocks: what is there is looked at, then a span a transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from toolkit import changes, moves
from toolkit.catalog import Entry, Series
from toolkit.columns import NULL_CODE
from toolkit.cutting import TARGET, cut, spans_to_pack
from toolkit.ddl import blocks_table
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, Driver
from toolkit.errors import Busy, DatabaseError, InputError
from toolkit.folding import Folded, fold
from toolkit.ingest.frames import Batch
from toolkit.intake import ids_of
from toolkit.merging import Run, run_here
from toolkit.moves import Encoded
from toolkit.partitions import Partitioning
from toolkit.reduce import Table
from toolkit.statements import compose, name
from toolkit.strategy.params import blocks_params, range_params
from toolkit.timegrid import (
    EARLIEST,
    LATEST,
    PG_EPOCH,
    Grid,
    Instants,
    Span,
    Step,
    iso,
    to_datetime,
    to_us,
)

_log = logging.getLogger("toolkit.filling")
_PATIENCE = 10.0  # seconds to wait for a lock
_TRIES = 6
_TOGETHER = 8 * TARGET  # points that are stored in one transaction, about, where nothing else is
_MOST = 256  # blocks of one
_MIXED = 16  # spans of one, where there is: each is read, decoded and encoded anew


@dataclass(slots=True)
class Filled:
    """What became of a batch: points that are new, points that differ, blocks and their bytes."""

    inserted: int = 0
    updated: int = 0
    blocks: int = 0
    block_bytes: int = 0

    def add(self, other: Filled) -> None:
        """Count what else was stored."""
        self.inserted += other.inserted
        self.updated += other.updated
        self.blocks += other.blocks
        self.block_bytes += other.block_bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring rows of a batch: of one series, in one partition."""

    series: Series
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Job:
    """A span that becomes blocks, and the rows that lie in it; free if no other points do.

    ``is_news`` if some row's key cannot be there yet, so that there is something to store.
    """

    piece: _Piece
    span: Span
    is_free: bool
    is_news: bool


@dataclass(slots=True)
class _Share:
    """What one worker has done, and the pieces where others have changed what is there."""

    filled: Filled = field(default_factory=Filled)
    left: list[_Piece] = field(default_factory=list)


class _Moved(Exception):
    """Blocks are not where they were when the work was planned."""


class Filling:
    """The way of one batch; its policy is one of "replace", "keep" and "fail"."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        partitioning: Partitioning,
        entry: Entry,
        batch: Batch,
        series: Mapping[int, Series],
        policy: str,
        parallel: int,
        run: Run = run_here,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._partitioning = partitioning
        self._entry = entry
        self._batch = batch
        self._series = series
        self._policy = policy
        self._parallel = parallel
        self._run = run
        self._ids = ids_of(batch, series)
        self._keys = replace(batch, values={}, categories={}, seq=None)  # what is logged needs

    async def store(self) -> Filled:
        """Store the batch; what others change meanwhile is planned anew."""
        first = int(self._batch.ts.min(initial=LATEST))
        changes.refuse_frozen(self._entry, first, self._entry.frozen_before)
        total, pieces = Filled(), list(self._pieces())
        for attempt in range(1, _TRIES + 1):
            await self._prepare(pieces)
            jobs = await self._plan(pieces)
            if self._policy == "fail":
                await self._refuse_known(jobs)
            pieces = []
            for share in await self._work(jobs):
                pieces += share.left
                total.add(share.filled)
            if not pieces:
                return total
            await self._driver.pause(0.05 * attempt)
        raise Busy(
            f"others keep changing the blocks of {pieces[0].series.name!r} and "
            f"{len(pieces) - 1} more spans; what is not there yet is stored by the same call again"
        )

    def _pieces(self) -> Iterator[_Piece]:
        batch = self._batch
        partition = self._grid().floor(batch.ts)
        is_first = np.ones(len(batch), bool)
        is_first[1:] = (batch.series[1:] != batch.series[:-1]) | (partition[1:] != partition[:-1])
        starts = np.flatnonzero(is_first).tolist()
        for low, high in zip(starts, [*starts[1:], len(batch)], strict=True):
            yield _Piece(self._series[int(batch.series[low])], low, high)

    def _grid(self) -> Grid:
        grid: Grid = self._entry.once(
            "partitions", lambda: Grid(Step.parse(self._entry.dataset.partition))
        )
        return grid

    async def _prepare(self, pieces: Sequence[_Piece]) -> None:
        """Make the partitions, and tell readers that there may be blocks."""
        entry, ts = self._entry, self._batch.ts
        starts = ts[[piece.low for piece in pieces]]
        await self._partitioning.ensure(entry, starts)  # for what is written later
        grid = self._grid()
        first = np.unique(grid.floor(starts)).tolist()
        found = [Span(start, int(grid.edges(Span(start, start + 1))[1])) for start in first]
        spans = [Span(max(s.start, EARLIEST), min(s.end, LATEST)) for s in found]
        await moves.make_room(self._driver, self._partitioning, entry, spans)
        end = int(ts.max()) + 1
        if entry.cold_to is not None and end <= entry.cold_to:
            return
        params = {"dataset_id": entry.id, "upto": to_datetime(end)}
        statement = compose("blocks/announce_cold", dataset=name(entry.schema, "dataset"))
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            await transaction.execute(statement, params)
        await self._directory.load()

    async def _plan(self, pieces: Sequence[_Piece]) -> list[_Job]:
        """Return the spans to store, those where other points are in the order of their keys."""
        ts = self._batch.ts
        spans = [Span(int(ts[p.low]), int(ts[p.high - 1]) + 1) for p in pieces]
        rooms = [TARGET - (p.high - p.low) for p in pieces]
        params = self._probe_params([p.series.id for p in pieces], spans, rooms)
        begins: dict[int, Any] = dict(await self._driver.fetch(self._probe(), params))
        jobs = []
        for number, (piece, span) in enumerate(zip(pieces, spans, strict=True), 1):
            mine = ts[piece.low : piece.high]
            if number in begins:
                begin = begins[number]
                low = span.start if begin is None else to_us(begin)
                jobs += await self._beside(piece, Span(low, span.end))
            else:
                jobs += self._cut(piece, cut(span, mine), mine[:0], ())
        return jobs

    async def _beside(self, piece: _Piece, region: Span) -> list[_Job]:
        """Plan a piece among rows and blocks: as rows are packed, but only where it has points."""
        entry, batch = self._entry, self._batch
        statement = entry.once(("list_instants",), lambda: self._compose("blocks/list_instants"))
        params = {"id": piece.series.id, **range_params(region), **blocks_params(entry, region)}
        row = (await self._driver.fetch(statement, params))[0]
        there, new = _unpacked(row[0]), batch.ts[piece.low : piece.high]
        edges = _unpacked(row[1]).reshape(-1, 2).tolist()
        blocks = [(Span(lo, hi), n) for (lo, hi), n in zip(edges, row[2] or (), strict=True)]
        both = np.concatenate([there, new])
        both = np.sort(both) if batch.seq is not None else np.unique(both)

        end = max([region.end, *(b.end for b, _ in blocks)])
        spans = spans_to_pack(Span(region.start, end), both, blocks, is_closed=True)
        return self._cut(piece, spans, there, [b for b, _ in blocks])

    def _cut(
        self, piece: _Piece, spans: Sequence[Span], there: Instants, held: Sequence[Span]
    ) -> list[_Job]:
        """Return the spans that rows of a piece lie in, told what is there already."""
        jobs, ts = [], self._batch.ts[piece.low : piece.high]
        is_new = ~np.isin(ts, there)
        for block in held:
            low, high = np.searchsorted(ts, (block.start, block.end)).tolist()
            is_new[low:high] = False
        for span in spans:
            low, high = np.searchsorted(ts, (span.start, span.end)).tolist()
            if low == high:
                continue
            first, end = np.searchsorted(there, (span.start, span.end)).tolist()
            is_held = any(span.start < b.end and b.start < span.end for b in held)
            mine = _Piece(piece.series, piece.low + low, piece.low + high)
            is_free = first == end and not is_held
            jobs.append(_Job(mine, span, is_free, bool(is_new[low:high].any())))
        return jobs

    async def _refuse_known(self, jobs: Sequence[_Job]) -> None:
        """Raise where a key is there already, before anything is stored."""
        for job in jobs:
            if not job.is_free:
                there = await moves.look(
                    self._driver, self._entry, job.piece.series, job.span, self._run
                )
                await self._driver.compute(self._fold, job, there.table)

    async def _work(self, jobs: Sequence[_Job]) -> list[_Share]:
        queue = iter([list(group) for group in _grouped(jobs)])

        async def work() -> _Share:
            share = _Share()
            for group in queue:
                try:
                    put = self._put if group[0].is_free else self._mix
                    await put(group, share)
                except (_Moved, Busy, DatabaseError) as error:
                    if isinstance(error, DatabaseError) and not self._may_pass(error):
                        raise
                    _log.info("%s: %s; once more", group[0].piece.series.name, error)
                    share.left += [job.piece for job in group]
            return share

        def stop() -> None:
            for _ in queue:  # the others find nothing left to do
                pass

        workers = [work] * max(1, min(self._parallel, len(jobs)))
        return await self._driver.gather(workers, on_error=stop)

    def _may_pass(self, error: DatabaseError) -> bool:
        if error.sqlstate == "23514" and error.constraint is None:
            self._partitioning.forget(self._entry)  # somebody dropped one since we looked
            return True
        return error.sqlstate in ("40001", "40P01")

    async def _put(self, jobs: Sequence[_Job], share: _Share) -> None:
        """Store spans in which nothing else is; those where now something is are left."""
        entry = self._entry
        made = await self._driver.compute(self._encoded, jobs)
        ids = [job.piece.series.id for job in jobs]
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            await moves.begin(transaction, _PATIENCE)
            await moves.lock_all(transaction, entry, _places(jobs))
            params = self._probe_params(ids, [job.span for job in jobs], [-1] * len(jobs))
            found = {row[0] for row in await transaction.fetch(self._probe(), params)}
            left = [job for number, job in enumerate(jobs, 1) if number in found]
            free = [n for n in range(len(jobs)) if n + 1 not in found]
            if free:
                await moves.put_all(transaction, entry, [(ids[n], made[n]) for n in free])
                pieces = [jobs[n].piece for n in free]
                rows = np.concatenate([np.arange(p.low, p.high) for p in pieces])
                await self._finish(transaction, rows)
        if free:
            size = sum(made[n].size for n in free)
            share.filled.add(Filled(len(rows), 0, len(free), size))
        share.left += [job.piece for job in left]

    def _encoded(self, jobs: Sequence[_Job]) -> list[Encoded]:
        made = []
        for job in jobs:
            made += moves.encoded(self._entry, job.piece.series, self._table(job.piece), [job.span])
        return made

    async def _mix(self, jobs: Sequence[_Job], share: _Share) -> None:
        """Store spans that other points lie in; those that would not change are left alone."""
        entry, filled = self._entry, Filled()
        made: list[tuple[int, Encoded]] = []
        rows = []
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            await moves.begin(transaction, _PATIENCE)
            await moves.lock_all(transaction, entry, _places(jobs))
            for job in jobs:
                where = (transaction, entry, job.piece.series, job.span, self._run)
                if not job.is_news:
                    there = await moves.look(*where)
                    folded = await self._driver.compute(self._fold_there, job, there)
                    if not folded.is_stored.any():
                        continue
                taken = await moves.take(*where)
                folded, blocks = await self._driver.compute(self._mixed, job, taken)
                made += [(job.piece.series.id, block) for block in blocks]
                rows.append(job.piece.low + np.flatnonzero(folded.is_stored))
                size = sum(b.size for b in blocks)
                filled.add(Filled(folded.inserted, folded.updated, len(blocks), size))
            if made:
                await moves.put_all(transaction, entry, made)
                await self._finish(transaction, np.concatenate(rows))
        share.filled.add(filled)

    def _mixed(self, job: _Job, taken: moves.Taken) -> tuple[Folded, list[Encoded]]:
        folded = self._fold_there(job, taken)
        spans = cut(job.span, folded.table.ts)
        return folded, moves.encoded(self._entry, job.piece.series, folded.table, spans)

    def _fold_there(self, job: _Job, there: moves.Taken) -> Folded:
        if any(b.start < job.span.start or b.end > job.span.end for b in there.blocks):
            raise _Moved(f"somebody else has changed the blocks of {job.span}")
        return self._fold(job, there.table)

    def _fold(self, job: _Job, there: Table) -> Folded:
        new = self._table(job.piece)
        folded = fold(there, new, replaces=self._policy == "replace", given=self._batch.given)
        if self._policy == "fail" and folded.is_known.any():
            row = int(np.argmax(folded.is_known))
            seq = f", seq {new.values['seq'][row]}" if "seq" in new.values else ""
            raise InputError(
                f"policy 'fail': series {job.piece.series.name!r} has a point at "
                f"{iso(int(new.ts[row]))}{seq}; nothing of {job.span} was stored "
                "(policy 'replace', of a load mode 'upsert', takes the new point; 'keep', or "
                "'ignore', the one that is there)"
            )
        return folded

    async def _finish(self, transaction: Any, rows: Any) -> None:
        """Log where rows of the batch lie, and see that their series are still there."""
        changed = self._keys.take(rows)
        await changes.log(transaction, self._entry, changed, self._ids)
        used = self._ids[np.unique(changed.series)]
        await changes.check_alive(
            transaction, self._entry, used, int(changed.ts.min(initial=LATEST))
        )

    def _table(self, piece: _Piece) -> Table:
        """Return rows of the batch as points of one series, with the names they use only."""
        batch, rows = self._batch, slice(piece.low, piece.high)
        values = {n: v[rows] for n, v in batch.values.items()}
        if batch.seq is not None:
            values = {"seq": batch.seq[rows], **values}
        categories = {}
        for column, names in batch.categories.items():
            used, codes = np.unique(values[column], return_inverse=True)
            has_null = int(len(used) > 0 and used[0] == NULL_CODE)
            values[column] = codes.astype(np.int32) - has_null
            categories[column] = tuple(names[code] for code in used[has_null:].tolist())
        series = np.zeros(piece.high - piece.low, np.int32)
        return Table(series, batch.ts[rows], values, categories)

    def _probe(self) -> bytes:
        text: bytes = self._entry.once(
            ("probe_pieces",), lambda: self._compose("blocks/probe_pieces")
        )
        return text

    def _compose(self, statement: str) -> bytes:
        entry = self._entry
        points, blocks = entry.dataset.name, blocks_table(entry.dataset.name)
        return compose(
            statement, points=name(entry.schema, points), blocks=name(entry.schema, blocks)
        )

    def _probe_params(
        self, ids: list[int], spans: Sequence[Span], rooms: list[int]
    ) -> dict[str, Any]:
        hull = Span(min(s.start for s in spans), max(s.end for s in spans))
        colds = self._grid().floor(np.array([s.start for s in spans])).tolist()
        return {
            "ids": ids,
            "starts": [to_datetime(s.start) for s in spans],
            "ends": [to_datetime(s.end) for s in spans],
            "cold_starts": [to_datetime(max(c, EARLIEST)) for c in colds],
            "rooms": rooms,
            **range_params(hull),
            **blocks_params(self._entry, hull),
        }


def _places(jobs: Sequence[_Job]) -> list[tuple[int, Span]]:
    return [(job.piece.series.id, job.span) for job in jobs]


def _grouped(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Yield jobs that go into one transaction: free ones, or others, some together."""
    for is_free, most in ((True, _MOST), (False, _MIXED)):
        group: list[_Job] = []
        rows = 0
        for job in jobs:
            if job.is_free != is_free:
                continue
            group.append(job)
            rows += job.piece.high - job.piece.low
            if rows >= _TOGETHER or len(group) == most:
                yield group
                group, rows = [], 0
        if group:
            yield group


def _unpacked(data: bytes | None) -> Any:
    return np.frombuffer(data or b"", ">i8").astype(np.int64) + PG_EPOCH
