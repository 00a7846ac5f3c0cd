"""All that a store does, once: the coroutines that both colours run over their own driver."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit import shelved
from toolkit.admitting import Gate
from toolkit.backfill import Backfiller, BackfillReport
from toolkit.cached import Cache
from toolkit.catalog import Catalog, Series
from toolkit.cluster import Cluster, position_of
from toolkit.columns import Columns
from toolkit.config import Settings
from toolkit.counters import Counters
from toolkit.dataset import Dataset
from toolkit.directory import Directory
from toolkit.drivers import Driver
from toolkit.drivers.decoding import DecodePool
from toolkit.eraser import Eraser
from toolkit.errors import CorruptBlock, QueryError, SchemaError, may_be_stored
from toolkit.exporting import PIECE, ExportReport, ParquetFile, described, export
from toolkit.inspection import DatasetStats, describe
from toolkit.intake import Intake, WriteReport
from toolkit.newest import check_count
from toolkit.packer import Packer, old_before
from toolkit.partitions import NativePartitioning, Partition
from toolkit.popularity import Popularity
from toolkit.primary import PrimaryDriver
from toolkit.query import Query, build_query, ends_of
from toolkit.reader import Explanation
from toolkit.reading import Readings
from toolkit.refresher import Progress, Refresher, RefreshReport
from toolkit.retaining import Retention
from toolkit.shared import Shared
from toolkit.shelved import LevelShared, ShelfReport
from toolkit.strategy import Plan
from toolkit.streaming import check_stream
from toolkit.tally import PackReport
from toolkit.tally import Progress as PackProgress
from toolkit.timegrid import EARLIEST, LATEST, Span, Step
from toolkit.together import grouped, question_of
from toolkit.tracing import Tracing
from toolkit.verifier import Progress as VerifyProgress
from toolkit.verifier import Verifier, VerifyReport
from toolkit.watching import Watch, watched
from toolkit.work import Work, types_of, with_time_left
from toolkit.writer import Writer
from toolkit_routing import Token

if TYPE_CHECKING:
    from toolkit.drivers.shelf import Shelf

T = TypeVar("T")


class Roads:
    """The operations of a store: reads over one node or several, all else over the primary."""

    def __init__(
        self,
        driver: Driver,
        settings: Settings,
        shelf: Shelf | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.driver, self.cluster, self.settings = driver, cluster, settings
        self.counters = Counters()
        self.directory = Directory(
            driver, Catalog(), settings.schema, allow_newer_schema=settings.allow_newer_schema
        )
        self.partitioning = NativePartitioning(driver, self.directory)
        self.cache, self.popularity = None, None
        if settings.cache.memory:
            # who looks for changes does not wait for a primary: a read goes on without the cache
            following = PrimaryDriver(cluster, wait=0.0) if cluster is not None else driver
            self.cache = Cache(following, settings.cache, shelf, has_replicas=cluster is not None)
            self.popularity = Popularity(following, settings.schema)
        directory, partitioning, threads = self.directory, self.partitioning, settings.decode
        parallel, plausible = settings.parallel, settings.plausible
        self.decoders = DecodePool(threads.least, threads.most or None, threads.idle)
        run = self.decoders.run
        self.gate = Gate(driver, settings.admission)
        self.watch = Watch(self.counters, settings.slow, Tracing(settings, cluster))
        self.readings = Readings(driver, directory, settings, self.cache, run, cluster)
        self.reader = self.readings.home.reader
        self.writer = Writer(driver, directory, partitioning, plausible, run)
        self.backfiller = Backfiller(driver, directory, partitioning, plausible, parallel, run)
        self.eraser, self.verifier = Eraser(driver, directory, run), Verifier(driver, directory)
        self.refresher = Refresher(driver, directory, settings.cache.keep_log, run)
        self.packer = Packer(driver, directory, partitioning, parallel, run)

    async def read(self, query: Query, counts: bool = True) -> Columns:
        columns, size = self.reader.held(query), 0
        if columns is None:
            started = time.perf_counter()

            def read() -> Coroutine[Any, Any, Columns]:
                left = with_time_left(query, started)
                return self.readings.ask(left, lambda on, asked: on.reader.read(asked))

            with self.watch.over("read", query) as call:
                async with self.gate.turn(query):
                    call.outcome = columns = await self._twice(read)
            size = columns.nbytes
        assert isinstance(columns.plan, Plan)
        self.counters.add_read(columns.plan, len(columns), query.asked.dataset, size)
        if self.popularity is not None and counts:
            self.popularity.count(query, columns.plan)
        return columns

    async def read_many(self, questions: Iterable[Mapping[str, Any]]) -> list[Columns]:
        queries = [question_of(q, n) for n, q in enumerate(questions)]
        groups = grouped(queries)
        found: dict[int, Columns] = {}
        jobs = [partial(self.read, group.query) for group in groups]
        for group, columns in zip(groups, await self.driver.gather(jobs), strict=True):
            found |= group.parts(columns)
        return [found[place] for place in range(len(queries))]

    async def _twice(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask, and where what we remember turns out to be gone, look again and ask once more."""
        try:
            return await ask()
        except SchemaError:
            self.directory.catalog.forget()
        return await ask()

    async def explain(self, query: Query, analyze: bool) -> Explanation:
        def ask() -> Coroutine[Any, Any, Explanation]:
            return self.readings.ask(query, lambda on, q: on.reader.explain(q, analyze=analyze))

        async with self.gate.turn(query):
            return await self._twice(ask)

    async def latest(self, query: Query, n: int) -> Columns:
        check_count(n)
        started = time.perf_counter()
        with self.watch.over("latest", query) as call:
            async with self.gate.turn(query):
                columns = await self.readings.ask(query, lambda on, q: on.newest.latest(q, n))
            call.outcome = columns
        assert isinstance(columns.plan, Plan)
        columns.plan = replace(columns.plan, elapsed_ms=(time.perf_counter() - started) * 1000)
        self.counters.add(latest=1)
        return columns

    async def stream(self, query: Query, rows: int) -> AsyncGenerator[Columns]:
        check_stream(query, rows)
        self.counters.add(streams=1)
        # closed here, not by the garbage collector: a stream left early gives its connection back
        with self.watch.over("stream", query):
            async with self.gate.turn(query):  # its beginning: it may go on for hours
                begun = self.readings.ask(query, lambda on, q: on.streamer.begin(q, rows), "bulk")
                first, rest = await begun
        async with aclosing(rest) as pieces:
            if first is not None:
                self.counters.add(rows_returned=len(first))
                yield first
            async for piece in pieces:
                self.counters.add(rows_returned=len(piece))
                yield piece

    async def export(
        self,
        query: Query,
        path: str | os.PathLike[str],
        overwrite: bool,
        on_progress: Callable[[ExportReport], None],
    ) -> ExportReport:
        def prepare() -> Coroutine[Any, Any, Work]:
            return self.readings.ask(query, lambda on, asked: on.reader.prepare(asked))

        work = await self._twice(prepare)
        dataset, wanted = work.entry.dataset, set(work.targets.names)
        found = await self.series(dataset.name, query.asked.labels)
        labels = {s.name: s.labels for s in found if s.labels and s.name in wanted}
        source = await self.readings.look_up(lambda names: names.source(dataset.name))
        file = ParquetFile(
            path,
            types_of(work.plan, dataset),
            described(query, dataset, labels, source),
            has_seq=dataset.has_seq and query.asked.grid is None,
            overwrite=overwrite,
        )
        return await export(self.driver, self.stream(query, PIECE), file, on_progress)

    async def write(
        self,
        dataset: str,
        frame: object,
        intake: Intake,
        mode: str,
        on_chunk: Callable[[WriteReport], None],
    ) -> WriteReport:
        with self.watch.over("write", dataset) as call:
            async with self._changing(dataset):
                report = await self.writer.write(dataset, frame, intake, mode, on_chunk)
            call.outcome = report
        self.counters.add(writes=1, **_counted(report))
        return report

    async def backfill(
        self,
        dataset: str,
        frames: object,
        intake: Intake,
        policy: str,
        on_chunk: Callable[[BackfillReport], None],
    ) -> BackfillReport:
        with self.watch.over("backfill", dataset):
            async with self._changing(dataset):
                report = await self.backfiller.backfill(dataset, frames, intake, policy, on_chunk)
        self.counters.add(backfills=1, **_counted(report))
        return report

    @asynccontextmanager
    async def _changing(self, dataset: str) -> AsyncIterator[None]:
        """Drop from the cache what the block changes, also if it fails: it may have half-way."""
        before = self.directory.catalog.entry(dataset)
        try:
            async with self._noting():
                yield
        finally:
            # another thread may have made the catalog forget it meanwhile
            entry = self.directory.catalog.entry(dataset) or before
            if self.cache is not None and entry is not None:
                await self.cache.wrote(entry)

    @asynccontextmanager
    async def _noting(self) -> AsyncIterator[None]:
        """Note where the log is after what the block writes, also if it fails."""
        is_stored = True
        try:
            yield
        except BaseException as error:
            is_stored = may_be_stored(error)
            raise
        finally:
            if self.cluster is not None:
                await self.readings.written.wrote(may_be_stored=is_stored)

    async def delete(self, dataset: str, series: Any, start: object, end: object) -> int:
        query = build_query(dataset, series, start, end)
        if query.asked.series is None:
            raise QueryError("delete: name the series; to empty a dataset, drop its partitions")
        with self.watch.over("delete", query):
            async with self._changing(dataset):
                count = await self.eraser.delete(dataset, query.asked.series, query.span)
        self.counters.add(deletes=1, rows_deleted=count)
        return count

    async def refresh(
        self, dataset: str, on_progress: Progress, max_runtime: float | None
    ) -> RefreshReport:
        with self.watch.over("refresh", dataset):
            report = await self.refresher.refresh(dataset, on_progress, max_runtime)
        self.reader.fetcher.seen.forget()
        self.counters.add(refreshes=1)
        return report

    @watched
    async def compress(
        self,
        dataset: str,
        series: Any,
        start: object,
        end: object,
        is_dry: bool,
        only_late: bool,
        is_gentle: bool,
        on_progress: PackProgress,
    ) -> PackReport:
        started = time.perf_counter()
        if end is None and not only_late:
            end = await old_before(self.directory, dataset)
        query = build_query(dataset, series, *ends_of(start, end))
        damaged: tuple[CorruptBlock, ...] = ()
        if not is_dry:  # what a rollup has yet to follow would have to wait
            damaged = (await self.refresher.refresh(dataset)).damaged
        report = await self.packer.compress(
            dataset,
            query.asked.series,
            query.span,
            only_late=only_late,
            is_dry=is_dry,
            is_gentle=is_gentle,
            on_progress=on_progress,
        )
        await self.directory.load()
        for error in damaged:  # told as the packer tells it: when all others are done
            is_meant = query.asked.series is None or error.series in query.asked.series
            if is_meant and not error.span.clip(query.span).is_empty:
                raise error
        return replace(report, seconds=time.perf_counter() - started)

    @watched
    async def decompress(
        self,
        dataset: str,
        series: Any,
        start: object,
        end: object,
        is_dry: bool,
        on_progress: PackProgress,
    ) -> PackReport:
        query = build_query(dataset, series, *ends_of(start, end))
        names, span = query.asked.series, query.span
        return await self.packer.decompress(
            dataset, names, span, is_dry=is_dry, on_progress=on_progress
        )

    @watched
    async def verify(
        self, dataset: str, series: Any, start: object, end: object, on_progress: VerifyProgress
    ) -> VerifyReport:
        query = build_query(dataset, series, *ends_of(start, end))
        return await self.verifier.verify(dataset, query.asked.series, query.span, on_progress)

    async def datasets(self) -> tuple[Dataset, ...]:
        entries = await self.readings.look_up(lambda names: names.load())
        return tuple(entry.dataset for entry in entries)

    async def series(self, dataset: str, labels: Mapping[str, str] | None) -> tuple[Series, ...]:
        async def ask(names: Directory) -> list[Series]:
            return await names.list_series(await names.entry(dataset), labels)

        return tuple(await self._twice(lambda: self.readings.look_up(ask)))

    @watched
    async def label(
        self, dataset: str, series: str, labels: Mapping[str, str | None]
    ) -> dict[str, str]:
        async def ask() -> dict[str, str]:
            entry = await self.directory.entry(dataset)
            return await self.directory.set_labels(entry, series, labels)

        async with self._noting():
            return await self._twice(ask)

    async def partitions(self, dataset: str) -> list[Partition]:
        entry = await self.directory.entry(dataset)
        return await self.partitioning.described(entry)

    @watched
    async def set_compress_after(self, dataset: str, age: str) -> str:
        async with self._noting():
            step = str(Step.parse(age)) if age else ""
            return (await self.directory.declare(dataset, compress_after=step)).compress_after

    @watched
    async def set_retention(self, dataset: str, retain: Retention) -> Retention:
        async with self._noting():
            return (await self.directory.declare(dataset, retain=retain)).retain

    @watched
    async def drop_partitions(self, dataset: str, start: object, end: object) -> list[Partition]:
        entry = await self.directory.entry(dataset)
        async with self._changing(dataset):
            return await self.partitioning.drop(entry, Span.between(start, end))

    async def describe(self, dataset: str) -> DatasetStats:
        return await describe(self.driver, await self.directory.confirmed(dataset))

    async def close(self) -> None:
        await self.driver.close()
        self.decoders.close()
        if self.cache is not None and self.cache.shared is not None:
            await self.cache.shared.close()

    async def forget(self, dataset: str, pattern: str | None, start: object, end: object) -> int:
        entry = await self.directory.entry(dataset)
        if self.cache is None:
            return 0
        span, wanted = Span.between(*ends_of(start, end)), None
        if pattern is not None or span.start > EARLIEST or span.end < LATEST:
            found = await self.directory.list_series(entry)
            wanted = [s.id for s in found if pattern is None or _is_meant(s.name, pattern)]
        return await self.cache.forget(entry, wanted, span)

    async def describe_shared(self, seconds: float) -> ShelfReport:
        entries = await self.directory.load()
        return await shelved.report(self.driver, self._shared(), entries, seconds)

    async def peek_shared(
        self, dataset: str, series: str, start: object, end: object
    ) -> tuple[LevelShared, ...]:
        entry, shared = await self.directory.entry(dataset), self._shared()
        (one,) = await self.directory.series(entry, [series])
        return await shelved.peek(self.driver, shared, entry, one, Span.between(start, end))

    def _shared(self) -> Shared:
        self.settings.cache.check_shared()
        assert self.cache is not None
        assert self.cache.shared is not None
        return self.cache.shared

    def stats(self) -> dict[str, float]:
        kept = self.cache.stats() if self.cache is not None else {}
        source = self.cluster if self.cluster is not None else self.driver
        known = {**self.counters.shown(), **kept, **self.decoders.stats(), **source.stats()}
        return known | self.gate.stats()

    async def token(self) -> Token:
        """Return what a reader elsewhere must have seen to see what was written here."""
        if self.cluster is None:
            return Token({"main": await position_of(self.driver)})
        return Token({self.cluster.shard.name: await self.readings.written.own()})


def _counted(report: WriteReport) -> dict[str, int]:
    return {f"rows_{n}": getattr(report, n) for n in ("inserted", "updated", "unchanged")}


def _is_meant(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
