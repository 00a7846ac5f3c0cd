"""The road of compression: rows of closed time become blocks, a span a transaction, and back."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
from psycopg.sql import SQL, Identifier

from toolkit import moves
from toolkit.catalog import Entry, Series
from toolkit.cutting import cut, spans_to_pack
from toolkit.ddl import block_columns, blocks_table
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, Driver, Params
from toolkit.errors import Busy, CorruptBlock, DatabaseError, QueryError
from toolkit.forecast import sample
from toolkit.ingest.copybinary import encode
from toolkit.ingest.frames import Batch
from toolkit.merging import Run, run_here
from toolkit.partitions import Partition, Partitioning, ensuring_blocks
from toolkit.reclaiming import reclaim, reclaim_blocks
from toolkit.statements import compose, filled, name
from toolkit.strategy.params import blocks_params, log_start, range_params
from toolkit.tally import PackReport, Progress, Share, Tally, Task
from toolkit.timegrid import PG_EPOCH, Instants, Span, Step, to_datetime

_log = logging.getLogger("toolkit.packer")
_PATIENCE = 1.0  # seconds to wait for a lock: what is busy now is done the next time
_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Manner:
    """What of the rows is to move, whether it really does, and whether others come first."""

    only_late: bool
    is_dry: bool
    is_gentle: bool


class _Grown(Exception):
    """Somebody else has made a block larger than it was."""

    def __init__(self, span: Span) -> None:
        super().__init__(str(span))
        self.span = span


class Packer:
    """Compressions of one store; any number of processes may run at once."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        partitioning: Partitioning,
        parallel: int = 2,
        run: Run = run_here,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._partitioning = partitioning
        self._parallel = parallel
        self._run = run

    async def compress(
        self,
        dataset: str,
        names: tuple[str, ...] | None,
        span: Span,
        *,
        only_late: bool = False,
        is_dry: bool = False,
        is_gentle: bool = False,
        on_progress: Progress = lambda report, total: None,
    ) -> PackReport:
        """Move rows inside ``span`` to blocks; ``only_late``: those in the spans of blocks.

        Each span is a transaction: killed at any time, the next run goes on. Newer rows of a
        partition that still grows wait until they fill a block. A damaged block is passed over:
        CorruptBlock is raised when all others are done. ``is_gentle``: by one worker, who rests
        after a span for as long as it took, so that others have most of the machine.
        """
        started = time.perf_counter()
        entry = await self._directory.confirmed(dataset)
        ids = None
        if names is not None:
            ids = [s.id for s in await self._directory.series(entry, names)]
        partitions = [p for p in await self._partitioning.ranges(entry) if _overlap(p.span, span)]
        tally = Tally(PackReport(dataset), sum(p.rows for p in partitions), on_progress)
        shares = []
        for partition in partitions:
            mine, waiting = await self._tasks(entry, ids, partition, span, with_waiting=is_dry)
            tally.add(waiting=waiting)
            shares.append(Share(partition, mine, max(len(mine), 1)))
        regions = [share.partition.span.clip(span) for share in shares if share.tasks]
        if regions and not is_dry:
            await self._prepare(entry, regions)
        await self._each(entry, shares, span, tally, _Manner(only_late, is_dry, is_gentle))
        if tally.found:
            points, size = await sample(self._driver, entry, tally.found, self._run)
            expected = tally.report.points * size // max(points, 1)
            tally.add(sampled=points, block_bytes=expected)
        if tally.damaged:
            raise tally.damaged[0]
        return replace(tally.report, seconds=time.perf_counter() - started)

    async def statements(self, dataset: str, span: Span) -> tuple[str, ...]:
        """Return the statements that move a span, from what tells readers of it on."""
        entry = await self._directory.entry(dataset)
        return (
            "BEGIN",
            filled(*self._announcing(entry, span.end)),
            "COMMIT",
            filled(*ensuring_blocks(entry, span)),
            *moves.statements(entry, span, _PATIENCE),
        )

    async def _tasks(
        self,
        entry: Entry,
        ids: list[int] | None,
        partition: Partition,
        span: Span,
        *,
        with_waiting: bool,
    ) -> tuple[list[Task], int]:
        """Return the series that have rows in a partition, and how many have to wait."""
        region = partition.span.clip(span)
        params = {
            **range_params(region),
            "ids": ids,
            "log_start": log_start(region),
            "dataset_id": entry.id,
        }
        rows = await self._driver.fetch(self._text(entry, "find_series"), params)
        by_id = await self._directory.series_by_id(entry, [row[0] for row in rows])
        is_closed = partition.span.end <= span.end
        tasks = [
            Task(by_id[row[0]], region, is_closed)
            for row in rows
            if (with_waiting or not row[1]) and row[0] in by_id
        ]
        return tasks, sum(row[1] for row in rows)

    async def _prepare(self, entry: Entry, regions: Sequence[Span]) -> None:
        """Tell readers that there may be blocks, and make the partitions for them."""
        announcing = self._announcing(entry, max(region.end for region in regions))
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            await transaction.execute(*announcing)
        await moves.make_room(self._driver, self._partitioning, entry, regions)

    def _announcing(self, entry: Entry, upto: int) -> tuple[bytes, Params]:
        params: Params = {"dataset_id": entry.id, "upto": to_datetime(upto)}
        return self._text(entry, "announce_cold"), params

    async def _each(
        self,
        entry: Entry,
        shares: Sequence[Share],
        span: Span,
        tally: Tally,
        manner: _Manner,
    ) -> None:
        """Do all tasks, some at a time, oldest first; and with its last one finish a partition."""
        steps = [(share, task) for share in shares for task in share.tasks or (None,)]
        queue = iter(steps)

        async def work() -> None:
            for share, task in queue:
                if task is not None:
                    await self._pack(entry, task, tally, manner)
                if tally.is_done(share):
                    await self._finish(entry, share, span, tally, is_dry=manner.is_dry)

        def stop() -> None:
            for _ in queue:  # the others find nothing left to do
                pass

        most = 1 if manner.is_gentle else self._parallel
        jobs = [work] * max(1, min(most, len(steps)))
        await self._driver.gather(jobs, on_error=stop)

    async def _finish(
        self, entry: Entry, share: Share, span: Span, tally: Tally, *, is_dry: bool
    ) -> None:
        """Give back the space of a partition's rows, or say what that would be."""
        partition = share.partition
        if is_dry:
            counted = sum(task.points for task in share.tasks)
            part = counted / max(partition.rows, counted, 1)
            tally.add(row_bytes=round(partition.bytes * part))
        elif partition.span.end <= span.end:
            if share.tasks:
                await tally.landed(self._driver)  # a vacuum leaves what the others still see
            with tally.flight():
                given = await reclaim(self._driver, entry, partition, has_moved=bool(share.tasks))
            tally.add(row_bytes=given)

    async def _pack(self, entry: Entry, task: Task, tally: Tally, manner: _Manner) -> None:
        with tally.flight():
            ts, blocks = await self._instants(entry, task)
        spans = spans_to_pack(task.region, ts, blocks, is_closed=task.is_closed)
        if manner.only_late:
            held = [b for b, _ in blocks]
            spans = [s for s in spans if any(_overlap(s, b) for b in held)]
        for span in spans:
            low, high = np.searchsorted(ts, (span.start, span.end)).tolist()
            if manner.is_dry:
                tally.found.append((task.series, span))
                task.points += high - low
                tally.add(points=high - low, spans=1)
                continue
            started = time.perf_counter()
            try:
                with tally.flight():
                    await self._pack_span(entry, task, span, tally)
            except Busy as error:
                _log.info("%s, %s: %s", task.series.name, span, error)
                tally.add(busy=1)
            except CorruptBlock as error:
                _log.warning("passed over: %s", error)
                tally.damaged.append(error)
            if manner.is_gentle:
                await self._driver.pause(time.perf_counter() - started)

    async def _pack_span(self, entry: Entry, task: Task, span: Span, tally: Tally) -> None:
        series = task.series
        for attempt in range(1, _TRIES + 1):
            try:
                async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
                    await moves.begin(transaction, _PATIENCE)
                    await moves.lock(transaction, entry, [series.id], span)
                    taken = await moves.take(transaction, entry, series, span, self._run)
                    if any(b.start < span.start or b.end > span.end for b in taken.blocks):
                        raise Busy(f"somebody else has changed the blocks of {series.name!r}")
                    blocks = await self._driver.compute(
                        moves.encoded, entry, series, taken.table, cut(span, taken.table.ts)
                    )
                    await moves.put(transaction, entry, series, blocks)
            except DatabaseError as error:
                if error.sqlstate not in ("40001", "40P01") or attempt == _TRIES:
                    raise
                await self._driver.pause(0.05 * attempt)
            else:
                size = sum(b.size for b in blocks)
                tally.add(points=taken.rows, spans=1, blocks=len(blocks), block_bytes=size)
                return

    async def _instants(self, entry: Entry, task: Task) -> tuple[Instants, list[tuple[Span, int]]]:
        """Return when a series has rows, and its blocks with the points of each."""
        params = {
            "id": task.series.id,
            **range_params(task.region),
            **blocks_params(entry, task.region),
        }
        row = (await self._driver.fetch(self._text(entry, "list_instants"), params))[0]
        ts = _unpacked(row[0])
        edges = _unpacked(row[1]).reshape(-1, 2).tolist()
        spans = [Span(lo, hi) for lo, hi in edges]
        return ts, list(zip(spans, row[2] or [], strict=True))

    async def decompress(
        self,
        dataset: str,
        names: tuple[str, ...] | None,
        span: Span,
        *,
        is_dry: bool = False,
        on_progress: Progress = lambda report, total: None,
    ) -> PackReport:
        """Make rows again of the blocks that reach into ``span``, one a transaction."""
        started = time.perf_counter()
        entry = await self._directory.confirmed(dataset)
        ids = None
        if names is not None:
            ids = [s.id for s in await self._directory.series(entry, names)]
        params = {**range_params(span), **blocks_params(entry, span), "ids": ids}
        rows = await self._driver.fetch(self._text(entry, "list_blocks"), params)
        by_id = await self._directory.series_by_id(entry, sorted({row[0] for row in rows}))
        tally = Tally(PackReport(dataset), sum(row[3] for row in rows), on_progress)
        for series_id, lo, hi, count, size in rows:
            block, points = Span.between(lo, hi), count
            if not is_dry:
                points = await self._unpack(entry, by_id[series_id], block)
            tally.add(points=points, spans=1, blocks=1, block_bytes=size)
        if not is_dry:
            await reclaim_blocks(self._driver, entry, [Span.between(r[1], r[2]) for r in rows])
        return replace(tally.report, seconds=time.perf_counter() - started)

    async def _unpack(self, entry: Entry, series: Series, span: Span) -> int:
        dataset = entry.dataset
        await self._partitioning.ensure(entry, np.array([span.start]))
        statement = SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
            Identifier(entry.schema, dataset.name),
            SQL(", ").join(map(Identifier, (*dataset.key, *dataset.names))),
        )
        for attempt in range(1, _TRIES + 1):
            try:
                async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
                    await moves.begin(transaction, _PATIENCE)
                    await moves.lock(transaction, entry, [series.id], span)
                    taken = await moves.take(transaction, entry, series, span, self._run)
                    if (hull := _hull(span, taken.blocks)) != span:
                        raise _Grown(hull)  # what was taken is there again
                    table = taken.table
                    batch = Batch(
                        dataset,
                        (series.name,),
                        table.series,
                        table.ts,
                        table.values.get("seq"),
                        {n: table.values[n] for n in dataset.names},
                        table.categories,
                    )
                    pieces = encode(
                        batch,
                        np.array([series.id], np.int32),
                        dataset.names,
                        with_seq=dataset.has_seq,
                    )
                    await transaction.copy(statement.as_bytes(None), pieces)
                return len(table)
            except _Grown as grown:
                span = grown.span
            except DatabaseError as error:
                # a point written meanwhile has a key of ours: now it is a row, and counts
                if error.sqlstate not in ("40001", "40P01", "23505") or attempt == _TRIES:
                    raise
                await self._driver.pause(0.05 * attempt)
        raise Busy(f"somebody else has changed the blocks of {series.name!r}")

    def _text(self, entry: Entry, statement: str) -> bytes:
        def make() -> bytes:
            blocks = blocks_table(entry.dataset.name)
            stored = ("_header", *block_columns(entry.dataset))
            return compose(
                f"blocks/{statement}",
                points=name(entry.schema, entry.dataset.name),
                blocks=name(entry.schema, blocks),
                log=name(entry.schema, f"{entry.dataset.name}_log"),
                rollup=name(entry.schema, "rollup"),
                series=name(entry.schema, "series"),
                dataset=name(entry.schema, "dataset"),
                bytes=SQL(" + ").join(
                    SQL("octet_length({})").format(Identifier("b", c)) for c in stored
                ),
            )

        text: bytes = entry.once(("blocks", statement), make)
        return text


async def old_before(directory: Directory, dataset: str) -> datetime:
    """Return before when points are old by the dataset's own policy, as it is now."""
    await directory.load()
    age = (await directory.entry(dataset)).dataset.compress_after
    if not age:
        raise QueryError(
            f"compress: dataset {dataset!r} has no compress_after; give end (toolkit "
            f"compress: --to or --after), or set one: toolkit datasets set {dataset} "
            "--compress-after 30d"
        )
    return datetime.now(UTC) - timedelta(microseconds=Step.parse(age).approximate_us)


def _unpacked(data: bytes | None) -> Instants:
    return np.frombuffer(data or b"", ">i8").astype(np.int64) + PG_EPOCH


def _hull(span: Span, blocks: Sequence[Span]) -> Span:
    return Span(
        min([span.start, *(b.start for b in blocks)]), max([span.end, *(b.end for b in blocks)])
    )


def _overlap(a: Span, b: Span) -> bool:
    return a.start < b.end and b.start < a.end
