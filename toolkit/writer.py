"""The road of a write: a frame becomes a batch, the batch one transaction."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
from psycopg.sql import SQL, Identifier

from toolkit import changes, late, moves
from toolkit.batches import STAGE, arrays, bounds, parts
from toolkit.catalog import Entry
from toolkit.changes import SeriesGone
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, Driver, Params, Transaction
from toolkit.errors import (
    DatabaseError,
    InputError,
    OutcomeUnknown,
    QueryError,
    SchemaError,
    ToolkitError,
)
from toolkit.ingest.copybinary import encode
from toolkit.ingest.frames import Batch, Numbering
from toolkit.intake import (
    Intake,
    WriteReport,
    ids_of,
    key_exists,
    make_series,
    read_frame,
    store_all,
)
from toolkit.merging import Run, run_here
from toolkit.partitions import Partitioning
from toolkit.statements import compose
from toolkit.timegrid import Span, to_datetime, to_us

MODES = ("upsert", "insert", "ignore")
SMALL = 2_000  # rows; a batch up to here travels as arrays, a larger one through a stage
_MANY_PARTITIONS = 64  # MERGE plans every partition between its bounds
_TRIES = 5


class Writer:
    """Writes of one store; remembers only which partitions it has seen."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        partitioning: Partitioning,
        plausible: Span,
        run: Run = run_here,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._partitioning = partitioning
        self._plausible = plausible
        self._run = run

    async def write(
        self,
        dataset: str,
        frame: object,
        intake: Intake,
        mode: str = "upsert",
        on_chunk: Callable[[WriteReport], None] = lambda _: None,
    ) -> WriteReport:
        """Store a frame, or each frame of an iterator, and say what that did."""
        if mode not in MODES:
            raise QueryError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")
        entry = await self._directory.entry(dataset)

        def store(chunk: object, numbering: Numbering | None) -> Awaitable[WriteReport]:
            return self._write_one(entry, chunk, intake, mode, numbering)

        def rest(error: ToolkitError) -> str:
            is_unknown = isinstance(error, OutcomeUnknown)
            return "this one may or may not be" if is_unknown else "nothing of this one is"

        return await store_all(self._driver, frame, store, WriteReport(), on_chunk, rest)

    async def _write_one(
        self, entry: Entry, frame: object, intake: Intake, mode: str, numbering: Numbering | None
    ) -> WriteReport:
        started = time.perf_counter()
        incoming = await self._driver.compute(
            read_frame, entry, frame, intake, self._plausible, numbering
        )
        inserted = updated = 0
        if len(incoming.batch):
            batch = incoming.batch
            inserted, updated = await self._driver.again(
                lambda: self._store_known(entry, batch, mode), is_idempotent=mode != "insert"
            )
        return WriteReport(
            **incoming.counts(inserted, updated, keeps=mode == "ignore"),
            seconds=time.perf_counter() - started,
        )

    async def _store_known(self, entry: Entry, batch: Batch, mode: str) -> tuple[int, int]:
        try:
            return await self._store(entry, batch, await self._ids(entry, batch), mode)
        except (SeriesGone, SchemaError):
            self._directory.catalog.forget()
            self._partitioning.forget(entry)
        entry = await self._directory.entry(entry.dataset.name)
        if entry.dataset != batch.dataset:
            raise SchemaError(
                f"dataset {entry.dataset.name!r} was changed while this was written; "
                "nothing was stored, try again"
            )
        return await self._store(entry, batch, await self._ids(entry, batch), mode)

    async def _ids(self, entry: Entry, batch: Batch) -> npt.NDArray[np.int32]:
        return ids_of(batch, await make_series(self._directory, entry, batch))

    async def _store(
        self, entry: Entry, batch: Batch, ids: npt.NDArray[np.int32], mode: str
    ) -> tuple[int, int]:
        first = int(batch.ts.min())
        changes.refuse_frozen(entry, first, entry.frozen_before)
        for attempt in range(1, _TRIES + 1):
            await self._partitioning.ensure(entry, batch.ts)
            try:
                async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
                    counts = await self._put(transaction, entry, batch, ids, mode)
                    if entry.dataset.changelog == "writer" and counts != (0, 0):
                        await changes.log(transaction, entry, batch, ids)
                    used = ids[np.unique(batch.series)]
                    await changes.check_alive(transaction, entry, used, first)
                return counts
            except DatabaseError as error:
                if error.sqlstate == "23505":
                    raise (await self._known_key(entry, batch, ids) or error) from None
                if error.sqlstate == "23514" and error.constraint is None:
                    self._partitioning.forget(entry)  # somebody dropped one since we looked
                elif error.sqlstate not in ("40001", "40P01"):
                    raise
                if attempt == _TRIES:
                    raise
                await self._driver.pause(0.05 * attempt)
        raise AssertionError("unreachable")

    async def _put(
        self,
        transaction: Transaction,
        entry: Entry,
        batch: Batch,
        ids: npt.NDArray[np.int32],
        mode: str,
    ) -> tuple[int, int]:
        batch = await self._thawed(transaction, entry, batch, ids, mode)
        if not len(batch):
            return 0, 0
        within = bounds(batch)
        is_small = len(batch) <= SMALL
        if mode == "insert":
            await self._copy(transaction, entry, batch, ids, entry.dataset.name)
            return len(batch), 0
        if not is_small and await self._is_empty(transaction, entry, batch, ids):
            try:
                async with transaction.savepoint():
                    await self._copy(transaction, entry, batch, ids, entry.dataset.name)
                return len(batch), 0
            except DatabaseError as error:
                if error.sqlstate != "23505":  # somebody else was faster: merge after all
                    raise
        params: Params
        if is_small:
            params = within | arrays(batch, ids)
        else:
            params = within
            await transaction.fetch(self._text(entry, "prepare_merge", False))
            await transaction.execute(self._text(entry, "create_stage", False))
            await self._copy(transaction, entry, batch, ids, None)
        if mode == "ignore":
            statement = self._text(entry, "ignore_rows", is_small)
            return await transaction.execute(statement, params), 0
        return await self._upsert(transaction, entry, batch, params, is_small)

    async def _thawed(
        self,
        transaction: Transaction,
        entry: Entry,
        batch: Batch,
        ids: npt.NDArray[np.int32],
        mode: str,
    ) -> Batch:
        """Look at blocks first where the write depends on what is there, or may be spared.

        A row counts before a block, so points that replace others whole need not know of them:
        who makes blocks meanwhile does no harm. All others keep them from it.
        """
        must_know = mode != "upsert" or batch.given is not None
        span = Span(int(batch.ts.min()), int(batch.ts.max()) + 1)
        if not must_know and not entry.is_cold(span):
            return batch
        used = ids[np.unique(batch.series)].tolist()
        await moves.lock(transaction, entry, used, span, shared=True)
        return await late.thaw(
            *(self._driver, transaction, entry, batch, ids, self._run),
            must_be_new=mode == "insert",
        )

    async def _upsert(
        self,
        transaction: Transaction,
        entry: Entry,
        batch: Batch,
        params: Params,
        is_small: bool,
    ) -> tuple[int, int]:
        server = await self._driver.open()
        many = self._partitioning.count(entry, batch.ts) > _MANY_PARTITIONS
        if not many:
            try:
                async with transaction.savepoint():
                    if server.version >= 170000:
                        statement = self._text(entry, "merge_rows_counted", is_small, batch.given)
                        inserted, updated = (await transaction.fetch(statement, params))[0]
                        return inserted, updated
                    matched = await self._matched(transaction, entry, params, is_small)
                    statement = self._text(entry, "merge_rows", is_small, batch.given)
                    touched = await transaction.execute(statement, params)
                    inserted = min(len(batch) - matched, touched)
                    return inserted, touched - inserted
            except DatabaseError as error:
                if error.sqlstate != "23505":
                    raise
        matched = await self._matched(transaction, entry, params, is_small)
        touched = await transaction.execute(
            self._text(entry, "upsert_rows", is_small, batch.given), params
        )
        inserted = min(len(batch) - matched, touched)
        return inserted, touched - inserted

    async def _known_key(
        self, entry: Entry, batch: Batch, ids: npt.NDArray[np.int32]
    ) -> InputError | None:
        """Return the error that names a key of a batch that is there; None: it is no more."""
        statement = self._text(entry, "find_matched", True)
        for start in range(0, len(batch), SMALL):
            some = batch.take(slice(start, start + SMALL))
            found = await self._driver.fetch(statement, bounds(some) | arrays(some, ids))
            if found:
                series, ts, *seq = found[0]
                code = int(batch.series[ids[batch.series] == series][0])
                return key_exists(batch.names[code], to_us(ts), seq[0] if seq else None)
        return None

    async def _matched(
        self, transaction: Transaction, entry: Entry, params: Params, is_small: bool
    ) -> int:
        rows = await transaction.fetch(self._text(entry, "count_matched", is_small), params)
        count: int = rows[0][0]
        return count

    async def _is_empty(
        self, transaction: Transaction, entry: Entry, batch: Batch, ids: npt.NDArray[np.int32]
    ) -> bool:
        starts = np.flatnonzero(np.append(True, batch.series[1:] != batch.series[:-1]))
        ends = np.append(starts[1:], len(batch)) - 1
        params = {
            "ids": ids[batch.series[starts]].tolist(),
            "lows": [to_datetime(int(t)) for t in batch.ts[starts]],
            "highs": [to_datetime(int(t)) for t in batch.ts[ends]],
            **bounds(batch),
        }
        rows = await transaction.fetch(self._text(entry, "probe_empty", False), params)
        return bool(rows[0][0])

    async def _copy(
        self,
        transaction: Transaction,
        entry: Entry,
        batch: Batch,
        ids: npt.NDArray[np.int32],
        table: str | None,
    ) -> None:
        """Copy a batch into the dataset's rows, or (``table`` None) into the stage."""
        dataset = entry.dataset
        into = Identifier(*STAGE) if table is None else Identifier(entry.schema, table)
        columns = SQL(", ").join(Identifier(c) for c in (*dataset.key, *dataset.names))
        statement = SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(into, columns)
        pieces = encode(batch, ids, dataset.names, with_seq=dataset.has_seq)
        await transaction.copy(statement.as_bytes(None), pieces)

    def _text(
        self,
        entry: Entry,
        statement: str,
        is_small: bool,
        given: tuple[str, ...] | None = None,
    ) -> bytes:
        def make() -> bytes:
            return compose(f"write/{statement}", **parts(entry, is_small, given))

        text: bytes = entry.once(("write", statement, is_small, given), make)
        return text
