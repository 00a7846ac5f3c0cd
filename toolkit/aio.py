"""The asyncio store: the same names as the blocking one, awaited."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

from toolkit.assembly import opened, shelf_of
from toolkit.backfill import BackfillReport
from toolkit.catalog import Series
from toolkit.columns import Columns
from toolkit.config import Settings
from toolkit.dataset import Dataset
from toolkit.drivers.aio import AsyncDriver
from toolkit.exporting import ExportReport, export_query
from toolkit.inspection import DatasetStats
from toolkit.intake import Intake, WriteReport
from toolkit.partitions import Partition
from toolkit.query import Freshness, build_query, latest_query
from toolkit.reader import Explanation
from toolkit.refresher import Progress, RefreshReport
from toolkit.retaining import Retention
from toolkit.shelved import LevelShared, ShelfReport
from toolkit.tally import PackReport
from toolkit.tally import Progress as PackProgress
from toolkit.timegrid import Step, to_datetime
from toolkit.upkeep_aio import AsyncUpkeep
from toolkit.verifier import Progress as VerifyProgress
from toolkit.verifier import VerifyReport


class AsyncStore(AsyncUpkeep):
    """Time series in one PostgreSQL database, for the tasks of one event loop.

    The twin of :class:`toolkit.Store`: each method takes and returns the same. A task that is
    cancelled cancels its statement on the server and gives back a clean connection.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._roads = opened(settings, AsyncDriver, shelf_of(settings, "shelf_aio", "AsyncWire"))

    def __repr__(self) -> str:
        return f"<AsyncStore schema {self.settings.schema!r}>"

    async def __aenter__(self) -> AsyncStore:
        await self._roads.readings.learn()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; the store can be used again and opens new ones."""
        await self._roads.close()

    async def write(
        self,
        dataset: str,
        frame: object,
        *,
        series: str | None = None,
        mode: str = "upsert",
        mapping: Mapping[str, str | None] | None = None,
        tz: str | None = None,
        time_unit: str | None = None,
        on_chunk: Callable[[WriteReport], None] = lambda report: None,
    ) -> WriteReport:
        """Store points; see :meth:`toolkit.Store.write`; async iterators of frames go, too."""
        intake = Intake(series, mapping, tz, time_unit)
        return await self._roads.write(dataset, frame, intake, mode, on_chunk)

    async def backfill(
        self,
        dataset: str,
        frames: object,
        *,
        series: str | None = None,
        policy: str = "replace",
        mapping: Mapping[str, str | None] | None = None,
        tz: str | None = None,
        time_unit: str | None = None,
        on_chunk: Callable[[BackfillReport], None] = lambda report: None,
    ) -> BackfillReport:
        """Store points of the past as blocks, encoded as they come: they never are rows.

        Takes what :meth:`write` takes, an iterator of frames, plain or asynchronous, for what is
        larger than memory.
        ``policy`` says what becomes of a key that is there already, in a row or a block: with
        ``replace`` the new point counts, with ``keep`` the old one, and with ``fail`` it is an
        InputError that names the first such key. A span of some thousand points is a
        transaction; after a failure, or killed at any time, the same call goes on: what would
        come out the same is left alone.

        Raises InputError for what cannot be stored, PartialWrite if a later chunk fails.
        """
        intake = Intake(series, mapping, tz, time_unit)
        return await self._roads.backfill(dataset, frames, intake, policy, on_chunk)

    async def read(
        self,
        dataset: str,
        series: str | Iterable[str] | None,
        start: object,
        end: object,
        *,
        labels: Mapping[str, str] | None = None,
        columns: str | Iterable[str] | None = None,
        agg: Mapping[str, str | Iterable[str]] | None = None,
        step: str | Step | None = None,
        tz: str = "UTC",
        points: int | None = None,
        group_by: str | None = None,
        where: Mapping[str, object] | Iterable[tuple[str, str, object]] | None = None,
        limit: int | None = None,
        descending: bool = False,
        strategy: str = "auto",
        timeout: float | None = None,
        freshness: str | Freshness | None = None,
        cache: bool = True,
        caller: str = "",
        priority: str = "normal",
    ) -> Columns:
        """Return points, or bars of a step; see :meth:`toolkit.Store.read`."""
        query = build_query(
            dataset,
            series,
            start,
            end,
            labels=labels,
            columns=columns,
            agg=agg,
            step=step,
            tz=tz,
            points=points,
            group_by=group_by,
            where=where,
            limit=limit,
            descending=descending,
            strategy=strategy,
            timeout=timeout,
            freshness=freshness,
            cache=cache,
            caller=caller,
            priority=priority,
        )
        return await self._roads.read(query)

    async def read_many(self, questions: Iterable[Mapping[str, Any]]) -> list[Columns]:
        """Answer several reads, in order; see :meth:`toolkit.Store.read_many`."""
        return await self._roads.read_many(questions)

    async def explain(
        self,
        dataset: str,
        series: str | Iterable[str] | None,
        start: object,
        end: object,
        *,
        analyze: bool = False,
        **options: Any,
    ) -> Explanation:
        """Say how :meth:`read` would answer, and what PostgreSQL's EXPLAIN says of it.

        Takes what ``read`` takes; with ``analyze`` the statement is run.
        """
        query = build_query(dataset, series, start, end, **options)
        return await self._roads.explain(query, analyze)

    async def latest(
        self,
        dataset: str,
        series: str | Iterable[str] | None = None,
        *,
        n: int = 1,
        labels: Mapping[str, str] | None = None,
        columns: str | Iterable[str] | None = None,
        step: str | None = None,
        tz: str = "UTC",
    ) -> Columns:
        """Return the newest ``n`` points (with ``step``: bars) of each series, oldest first.

        Costs about ``n`` index entries a series that is still being written.
        """
        query = latest_query(dataset, series, labels, columns, step, tz)
        return await self._roads.latest(query, n)

    def stream(
        self,
        dataset: str,
        series: str | Iterable[str] | None,
        start: object,
        end: object,
        *,
        rows: int = 65_536,
        **options: Any,
    ) -> AsyncGenerator[Columns]:
        """Yield what :meth:`read` would return in pieces; see :meth:`toolkit.Store.stream`."""
        query = build_query(dataset, series, start, end, **options)
        return self._roads.stream(query, rows)

    async def export(
        self,
        dataset: str,
        path: str | os.PathLike[str],
        series: str | Iterable[str] | None = None,
        start: object = None,
        end: object = None,
        *,
        labels: Mapping[str, str] | None = None,
        columns: str | Iterable[str] | None = None,
        step: str | None = None,
        tz: str = "UTC",
        overwrite: bool = False,
        on_progress: Callable[[ExportReport], None] = lambda report: None,
    ) -> ExportReport:
        """Write points, or bars, to a Parquet file; see :meth:`toolkit.Store.export`.

        ``on_progress`` is called, not awaited; the file is written in threads.
        """
        query = export_query(
            dataset, series, start, end, labels=labels, columns=columns, step=step, tz=tz
        )
        return await self._roads.export(query, path, overwrite, on_progress)

    async def delete(
        self, dataset: str, series: str | Iterable[str], start: object, end: object
    ) -> int:
        """Delete the points of series in ``[start, end)`` and return how many there were."""
        return await self._roads.delete(dataset, series, start, end)

    async def refresh(
        self,
        dataset: str,
        on_progress: Progress = lambda step, buckets: None,
        *,
        max_runtime: float | None = None,
    ) -> RefreshReport:
        """Bring the rollups of a dataset up to now; answers are right without it, only slower.

        Any number of processes may refresh at once; one that is killed is taken over. After
        ``max_runtime`` seconds it ends between two slices, and the next one goes on from there.
        """
        return await self._roads.refresh(dataset, on_progress, max_runtime)

    async def compress(
        self,
        dataset: str,
        series: str | Iterable[str] | None = None,
        start: object = None,
        end: object = None,
        *,
        dry_run: bool = False,
        gently: bool = False,
        on_progress: PackProgress = lambda report, total: None,
    ) -> PackReport:
        """Move points of ``[start, end)`` from rows to blocks; answers stay what they are.

        A span of some thousand points is a transaction; killed at any time, the next call goes
        on. Points written later into that time are rows again, and count; they are folded into
        their blocks. Rollups are refreshed first. Takes no lock that readers notice; who writes
        to the same points waits for milliseconds. Without ``end`` the dataset's own
        ``compress_after`` says what is old. With ``dry_run`` nothing is changed: the report says
        what there is to do, and from a sample of spans, which is encoded, what it would save.
        ``gently``: one span at a time, with rests, so that readers notice less.
        """
        return await self._roads.compress(
            dataset, series, start, end, dry_run, False, gently, on_progress
        )

    async def recompress(
        self,
        dataset: str,
        series: str | Iterable[str] | None = None,
        start: object = None,
        end: object = None,
        *,
        dry_run: bool = False,
        on_progress: PackProgress = lambda report, total: None,
    ) -> PackReport:
        """Fold points that were written into compressed time into its blocks.

        With ``dry_run`` nothing is changed: the report says what there is to do.
        """
        return await self._roads.compress(
            dataset, series, start, end, dry_run, True, False, on_progress
        )

    async def decompress(
        self,
        dataset: str,
        series: str | Iterable[str] | None = None,
        start: object = None,
        end: object = None,
        *,
        dry_run: bool = False,
        on_progress: PackProgress = lambda report, total: None,
    ) -> PackReport:
        """Make rows again of the blocks that reach into ``[start, end)``: compress undone.

        With ``dry_run`` nothing is changed: the report says what these blocks hold.
        """
        return await self._roads.decompress(dataset, series, start, end, dry_run, on_progress)

    async def verify(
        self,
        dataset: str,
        series: str | Iterable[str] | None = None,
        start: object = None,
        end: object = None,
        *,
        on_progress: VerifyProgress = lambda report, total: None,
    ) -> VerifyReport:
        """Read and decode every block that reaches into ``[start, end)``, and say what is wrong.

        Changes nothing. For each damaged block the report says which columns still decode, and
        what it can be made again from. Memory is bounded by some blocks.
        """
        return await self._roads.verify(dataset, series, start, end, on_progress)

    async def forget(
        self,
        dataset: str,
        series: str | None = None,
        start: object = None,
        end: object = None,
    ) -> int:
        """Drop what this store remembers of a range, and return how many spans that were.

        ``series`` is a name or a pattern (``"BTC-*"``), None for all; without ``start`` and
        ``end`` it is all of time. What is shared is dropped, too, but not what other processes
        remember themselves. Never needed for what the change log tells. Raises Unavailable
        where Redis is out: what is there will be found again.
        """
        return await self._roads.forget(dataset, series, start, end)

    async def describe_shared(self, seconds: float = 5.0) -> ShelfReport:
        """Say what of the datasets lies in ``cache.redis``, and how that server is set up.

        Looks at every key there, for at most so many seconds. Raises ConfigError where nothing
        is shared, Unavailable where Redis is out.
        """
        return await self._roads.describe_shared(seconds)

    async def peek_shared(
        self, dataset: str, series: str, start: object, end: object
    ) -> tuple[LevelShared, ...]:
        """Say which spans of a series' range lie in ``cache.redis``, level by level."""
        return await self._roads.peek_shared(dataset, series, start, end)

    async def datasets(self) -> tuple[Dataset, ...]:
        """Return the datasets there are."""
        return await self._roads.datasets()

    async def series(
        self, dataset: str, labels: Mapping[str, str] | None = None
    ) -> tuple[Series, ...]:
        """Return the series of a dataset, those that carry all of ``labels``, by name."""
        return await self._roads.series(dataset, labels)

    async def label(
        self, dataset: str, series: str, labels: Mapping[str, str | None]
    ) -> dict[str, str]:
        """Give a series labels beside those it has (None takes one away); return all of them."""
        return await self._roads.label(dataset, series, labels)

    async def partitions(self, dataset: str) -> list[Partition]:
        """Return the time ranges that a dataset is stored in, oldest first; counts its blocks."""
        return await self._roads.partitions(dataset)

    async def drop_partitions(self, dataset: str, start: object, end: object) -> list[Partition]:
        """Drop the partitions that lie wholly inside ``[start, end)`` with all their points.

        The change log hears of it: rollups lose those points at the next refresh, but for what
        retention has frozen. Takes the strongest lock on the dataset for a moment.
        """
        return await self._roads.drop_partitions(dataset, start, end)

    async def set_compress_after(self, dataset: str, age: str) -> str:
        """Have :meth:`compress` take points older than ``age`` (``30d``); empty: none by itself."""
        return await self._roads.set_compress_after(dataset, age)

    async def set_retention(self, dataset: str, retain: Retention) -> Retention:
        """Have the retention job keep rows, blocks and rollups for so long, and no longer."""
        return await self._roads.set_retention(dataset, retain)

    async def frozen_before(self, dataset: str) -> datetime | None:
        """Return the mark of retention, None where there is none: points before may be gone."""
        mark = (await self._roads.directory.entry(dataset)).frozen_before
        return None if mark is None else to_datetime(mark)

    async def describe(self, dataset: str) -> DatasetStats:
        """Return the server's figures of a dataset: series, rows, bytes, what is unfollowed."""
        return await self._roads.describe(dataset)

    async def token(self) -> str:
        """Return what stands for all that was written here: for :func:`toolkit.after` elsewhere."""
        return str(await self._roads.token())

    def stats(self) -> dict[str, float]:
        """Return counters of this store: reads by strategy, rows, times, and its pool's."""
        return self._roads.stats()
