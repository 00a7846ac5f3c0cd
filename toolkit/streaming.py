"""The road of a stream: an answer in pieces, all of one snapshot, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from toolkit import cold
from toolkit.catalog import Entry, Series
from toolkit.columns import Columns
from toolkit.directory import Directory
from toolkit.drivers import Driver, Transaction
from toolkit.drivers.inside import InsideDriver
from toolkit.errors import QueryError, SchemaError
from toolkit.merging import Run, run_here
from toolkit.options import Limits, Prices
from toolkit.query import Query
from toolkit.reader import Reader
from toolkit.statements import compose as compose_file
from toolkit.strategy import compose
from toolkit.strategy.packing import packing_of_points
from toolkit.strategy.params import blocks_params, range_params, where_params
from toolkit.timegrid import Grid, Span, to_datetime
from toolkit.work import Found, point_columns, with_time_left


class Streamer:
    """Streams of one store; holds no state of its own."""

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        limits: Limits,
        prices: Prices,
        run: Run = run_here,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._limits = limits
        self._prices = prices
        self._run = run

    async def begin(
        self, query: Query, rows: int
    ) -> tuple[Columns | None, AsyncGenerator[Columns]]:
        """Return the first piece, and what yields the others: from then on it has its node."""
        pieces = self.stream(query, rows)
        return await anext(pieces, None), pieces

    async def stream(self, query: Query, rows: int) -> AsyncGenerator[Columns]:
        """Yield the answer in pieces of at most ``rows`` rows, series after series."""
        started = time.perf_counter()
        try:
            entry, found = await self._found(query)
            # a stream may run for long: asked before, once, and not series by series
            left = with_time_left(query, started).timeout
            await self._directory.confirm(entry, {s.id: s.name for s in found}, timeout=left)
        except SchemaError:
            self._directory.catalog.forget()
            _, found = await self._found(with_time_left(query, started))
        async with self._driver.transaction(
            repeatable=True, read_only=True, timeout=query.timeout
        ) as transaction:
            await transaction.fetch(compose_file("read/prepare_stream"))
            inside = InsideDriver(self._driver, transaction)
            directory = self._directory.inside(inside)
            await directory.load()  # until when there are blocks, as this snapshot sees it
            reader = Reader(inside, directory, self._limits, prices=self._prices, run=self._run)
            for series in found:
                asked = replace(query.asked, series=(series.name,), labels=None)
                mine = replace(query, asked=asked, timeout=None)  # the transaction has it: for each
                if query.asked.grid is None:
                    pieces = self._points(transaction, reader, mine, rows)
                else:
                    pieces = self._bars(reader, mine, rows)
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece

    async def _found(self, query: Query) -> tuple[Entry, list[Series]]:
        started = time.perf_counter()
        entry = await self._directory.entry(query.asked.dataset, timeout=query.timeout)
        left = with_time_left(query, started).timeout
        if query.asked.series is None:
            labels = query.asked.labels
            return entry, await self._directory.list_series(entry, labels, timeout=left)
        return entry, await self._directory.series(entry, query.asked.series, timeout=left)

    async def _points(
        self, transaction: Transaction, reader: Reader, query: Query, rows: int
    ) -> AsyncGenerator[Columns]:
        """Go on after the last key of the piece before: any density, any gap."""
        work = await reader.prepare(query)
        entry = work.entry
        if entry.is_cold(query.span):
            async with aclosing(cold.pieces(reader.fetcher, work, rows)) as pieces:
                async for found in pieces:
                    yield await reader.finish(work, found)
            return
        columns = point_columns(query, entry.dataset, work.plan)
        packing = packing_of_points(entry, columns)
        params: dict[str, object] = {
            **work.targets.params,
            **where_params(query.asked.where, entry),
            **range_params(query.span),
            **blocks_params(entry, query.span),
            "limit": rows,
        }
        while True:
            statement = compose.points_statement(
                entry,
                columns,
                source="one",
                where=query.asked.where,
                has_limit=True,
                after="after_ts" in params,
            )
            answer = await transaction.fetch(statement, params)
            table, names = await reader.fetcher.table(work, answer, packing)
            if len(table):
                yield await reader.finish(work, Found(table, names, {"points": len(table)}))
            if len(table) < rows:
                return
            # the last key as start too: the planner leaves out the partitions before it
            params["after_ts"] = params["start"] = to_datetime(int(table.ts[-1]))
            if entry.dataset.has_seq:
                params["after_seq"] = int(table.values["seq"][-1])

    async def _bars(self, reader: Reader, query: Query, rows: int) -> AsyncGenerator[Columns]:
        """Go on after the window before; over a gap, at the next point."""
        assert query.asked.grid is not None
        work = await reader.prepare(query)
        if work.plan.strategy == "direct":
            work = replace(work, plan=replace(work.plan, strategy="aggregated"))
        # the series may have points in a small part of the range only
        extent = (await reader.density(query, work.entry, work.targets, cap=1)).extent
        while not extent.is_empty:
            window = Span(extent.start, _window_end(query.asked.grid, extent, rows))
            piece = await reader.answer(replace(work, query=replace(query, span=window)))
            if len(piece):
                yield piece
            extent = Span(window.end, extent.end)
            if not len(piece) and not extent.is_empty:
                rest = replace(query, span=extent)
                extent = (await reader.density(rest, work.entry, work.targets, cap=1)).extent


def check_stream(query: Query, rows: int) -> None:
    """Raise QueryError for what cannot come in pieces."""
    if rows < 1:
        raise QueryError(f"rows: {rows!r} is not at least 1")
    for name in ("limit", "points", "group_by"):
        if getattr(query.asked, name) is not None:
            raise QueryError(f"stream: {name} is for read; a stream yields everything")
    if query.asked.descending or query.asked.is_auto:
        raise QueryError("stream: oldest first, native or with a given step")


def _window_end(grid: Grid, extent: Span, buckets: int) -> int:
    """Return where the first ``buckets`` buckets of a range end, at most its own end.

    >>> from toolkit.timegrid import Step
    >>> _window_end(Grid(Step.parse("1s")), Span(500_000, 10**15), 3)
    3000000
    """
    if grid.width is not None:
        return min(grid.floor_one(extent.start) + buckets * grid.width, extent.end)
    edges = grid.edges(extent)
    return min(int(edges[min(buckets, len(edges) - 1)]), extent.end)
