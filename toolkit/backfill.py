"""The road of history into blocks: points are encoded as they come, and never are rows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from toolkit.catalog import Entry
from toolkit.changes import SeriesGone
from toolkit.directory import Directory
from toolkit.drivers import Driver
from toolkit.errors import InputError, PartialWrite, QueryError, SchemaError, ToolkitError
from toolkit.filling import Filled, Filling
from toolkit.ingest.frames import Batch, Numbering
from toolkit.intake import Intake, each_frame, make_series, read_frame
from toolkit.merging import Run, run_here
from toolkit.partitions import Partitioning
from toolkit.timegrid import Span

POLICIES = ("replace", "keep", "fail")


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What a backfill did, in points, and the ``blocks`` it made, whose bytes are ``block_bytes``.

    ``received`` is the sum of the four others; ``rejected`` says why points of a good frame were
    not stored: an equal key later in the same frame, or, with ``policy="keep"``, one that exists.
    """

    received: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    blocks: int = 0
    block_bytes: int = 0
    seconds: float = 0.0
    chunks: int = 0

    def __add__(self, other: BackfillReport) -> BackfillReport:
        reasons = {**self.rejected}
        for reason, count in other.rejected.items():
            reasons[reason] = reasons.get(reason, 0) + count
        return BackfillReport(
            self.received + other.received,
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            reasons,
            self.blocks + other.blocks,
            self.block_bytes + other.block_bytes,
            self.seconds + other.seconds,
            self.chunks + other.chunks,
        )


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
        if not isinstance(frames, Iterator | AsyncIterator):
            return await self._one(dataset, frames, intake, policy, None)
        total, numbering = BackfillReport(), cast(Numbering, {})
        try:
            async for frame in each_frame(self._driver, frames):
                total += await self._one(dataset, frame, intake, policy, numbering)
                on_chunk(total)
        except ToolkitError as error:
            if not total.chunks:
                raise
            is_refused = isinstance(error, InputError)
            this = "nothing of this one is" if is_refused else "whole spans of this one may be"
            raise PartialWrite(
                f"chunk {total.chunks + 1}: {error} (the {total.chunks} chunks before it, "
                f"{total.received:,} rows, are stored; {this})",
                total,
            ) from error
        return total

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
        batch, duplicates, received = await self._driver.compute(
            read_frame, entry, frame, intake, self._plausible, numbering
        )
        done = await self._store_known(entry, batch, policy) if len(batch) else Filled()
        rest = len(batch) - done.inserted - done.updated
        rejected = {"an equal key came later in the batch": duplicates} if duplicates else {}
        if policy == "keep" and rest:
            rejected["the key exists"] = rest
        return BackfillReport(
            received,
            done.inserted,
            done.updated,
            0 if policy == "keep" else rest,
            rejected,
            done.blocks,
            done.block_bytes,
            time.perf_counter() - started,
            1,
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
