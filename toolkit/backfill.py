"""The road of history into blocks: points are encoded as they come, and never are rows."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from toolkit.catalog import Entry
from toolkit.changes import SeriesGone
from toolkit.directory import Directory
from toolkit.drivers import Driver
from toolkit.errors import InputError, QueryError, SchemaError, ToolkitError
from toolkit.filling import Filled, Filling
from toolkit.ingest.frames import Batch, Numbering
from toolkit.intake import (
    Intake,
    WriteReport,
    make_series,
    read_frame,
    store_all,
)
from toolkit.merging import Run, run_here
from toolkit.partitions import Partitioning
from toolkit.timegrid import Span

POLICIES = ("replace", "keep", "fail")


@dataclass(frozen=True, slots=True)
class BackfillReport(WriteReport):
    """What a backfill did, in points, and the ``blocks`` it made, whose bytes are ``block_bytes``.

    ``received`` is the sum of the four others; ``rejected`` says why points of a good frame were
    not stored: an equal key later in the same frame, or, with ``policy="keep"``, one that exists.
    """

    blocks: int = 0
    block_bytes: int = 0


class Backfiller:
    """Backfills of one store; any number of processes may run at once."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        partitioning: Partitioning,
        plausible: Span,
        parallel: int = 2,
        run: Run = run_here,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._partitioning = partitioning
        self._plausible = plausible
        self._parallel = parallel
        self._run = run

    async def backfill(
        self,
        dataset: str,
        frames: object,
        intake: Intake,
        policy: str = "replace",
        on_chunk: Callable[[BackfillReport], None] = lambda _: None,
    ) -> BackfillReport:
        """Store a frame, or each frame of an iterator, as blocks, and say what that did."""
        if policy not in POLICIES:
            raise QueryError(f"unknown policy {policy!r}; use one of {', '.join(POLICIES)}")

        def store(frame: object, numbering: Numbering | None) -> Awaitable[BackfillReport]:
            return self._one(dataset, frame, intake, policy, numbering)

        def rest(error: ToolkitError) -> str:
            is_refused = isinstance(error, InputError)
            return "nothing of this one is" if is_refused else "whole spans of this one may be"

        return await store_all(self._driver, frames, store, BackfillReport(), on_chunk, rest)

    async def _one(
        self,
        dataset: str,
        frame: object,
        intake: Intake,
        policy: str,
        numbering: Numbering | None,
    ) -> BackfillReport:
        started = time.perf_counter()
        entry = await self._directory.entry(dataset)
        incoming = await self._driver.compute(
            read_frame, entry, frame, intake, self._plausible, numbering
        )
        batch = incoming.batch
        done = await self._store_known(entry, batch, policy) if len(batch) else Filled()
        return BackfillReport(
            **incoming.counts(done.inserted, done.updated, keeps=policy == "keep"),
            blocks=done.blocks,
            block_bytes=done.block_bytes,
            seconds=time.perf_counter() - started,
        )

    async def _store_known(self, entry: Entry, batch: Batch, policy: str) -> Filled:
        for _ in range(2):
            try:
                series = await make_series(self._directory, entry, batch)
                filling = Filling(
                    self._driver,
                    self._directory,
                    self._partitioning,
                    entry,
                    batch,
                    series,
                    policy,
                    self._parallel,
                    self._run,
                )
                return await filling.store()
            except (SeriesGone, SchemaError):
                self._directory.catalog.forget()
                self._partitioning.forget(entry)
            entry = await self._directory.entry(entry.dataset.name)
            if entry.dataset != batch.dataset:
                break
        raise SchemaError(
            f"dataset {entry.dataset.name!r} was changed while this was written; try again"
        )
