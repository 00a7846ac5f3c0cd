"""The newest points or bars of each series, without looking at old partitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit import cold
from toolkit.catalog import Entry
from toolkit.columns import Columns
from toolkit.directory import Directory
from toolkit.drivers import Driver
from toolkit.errors import QueryError, SchemaError
from toolkit.partitions import Partitioning
from toolkit.query import Query
from toolkit.reader import Reader
from toolkit.reduce import Table, stack
from toolkit.shape import to_table
from toolkit.strategy import Plan, compose
from toolkit.strategy.packing import packing_of_points
from toolkit.strategy.params import blocks_params, range_params
from toolkit.timegrid import EARLIEST, LATEST, Grid, Instants, Span

_WINDOWS = (1, 8, 64)  # partitions looked at, counted back from the newest, before all of them
_MOST_GROUPS = 64  # statements of a read of bars, if each is enough


class Newest:
    """The road of ``latest``; holds no state of its own."""

    def __init__(
        self, driver: Driver, directory: Directory, partitioning: Partitioning, reader: Reader
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._partitioning = partitioning
        self._reader = reader

    async def latest(self, query: Query, n: int) -> Columns:
        """Return the newest ``n`` points of each series, or bars where the query has a step.

        Windows widen backwards from the newest partition: a series that is still being written
        costs ``n`` index entries however long its past is.
        """
        try:
            return await self._latest(query, n)
        except SchemaError:  # what we remember is gone: look again, and ask once more
            self._directory.catalog.forget()
        return await self._latest(query, n)

    async def _latest(self, query: Query, n: int) -> Columns:
        entry = await self._directory.entry(query.asked.dataset)
        if query.asked.series is None:
            found = await self._directory.list_series(entry, query.asked.labels)
        else:
            found = await self._directory.series(entry, query.asked.series)
        names, ids = tuple(s.name for s in found), [s.id for s in found]
        columns = query.asked.columns or entry.dataset.names
        if query.asked.grid is not None:
            return await self._bars(query, entry, names, ids, n)
        for column in columns:
            entry.dataset.column(column)
        table = await self._points(entry, names, ids, n, columns)
        dataset = entry.dataset
        plan = Plan(
            "direct",
            f"the newest {n} of {len(ids):,} series, from the newest partition backwards",
            query.span,
            tuple(columns),
            sources={"points": len(table)},
            node=self._driver.node,
        )
        return Columns(
            names,
            table.series,
            table.ts,
            {c: table.values[c] for c in columns},
            {c: dataset.column(c).type for c in columns},
            {c: table.categories[c] for c in columns if c in table.categories},
            table.values.get("seq"),
            plan,
        )

    async def _points(
        self,
        entry: Entry,
        names: Sequence[str],
        ids: Sequence[int],
        n: int,
        columns: Sequence[str],
    ) -> Table:
        found: list[Table] = []
        code_of = {i: code for code, i in enumerate(ids)}
        left = dict(zip(ids, names, strict=True))
        for low in await self._window_starts(entry):
            if not left:
                break
            span = Span(low, LATEST)
            table = await self._window(entry, left, span, n, tuple(columns))
            counts = np.bincount(table.series, minlength=len(left))
            is_done = (counts >= n) | (low == EARLIEST)
            codes = np.array([code_of[i] for i in left], np.int32)
            table = table.take(is_done[table.series])
            found.append(replace(table, series=codes[table.series]))
            left = {
                i: name for (i, name), done in zip(left.items(), is_done, strict=True) if not done
            }
        table = (
            stack(found) if found else await self._window(entry, {}, Span(0, 0), n, tuple(columns))
        )
        silent = {ids[code]: names[code] for code in table.silent(len(ids))}
        if silent or not ids:
            await self._directory.confirm(entry, silent)
        return table.take(np.argsort(table.series, kind="stable"))

    async def _window(
        self, entry: Entry, names: Mapping[int, str], span: Span, n: int, columns: tuple[str, ...]
    ) -> Table:
        """Return the newest ``n`` points of each series in a range, oldest first."""
        if not entry.is_cold(span):
            statement = compose.points_statement(
                entry, columns, source="many", has_limit=True, descending=True
            )
            params = {
                "ids": list(names),
                **range_params(span),
                **blocks_params(entry, span),
                "limit": n,
            }
            rows = await self._driver.fetch(statement, params)
            if not any(row[-1] for row in rows):
                packing = packing_of_points(entry, columns)
                table = to_table(packing, rows, {i: code for code, i in enumerate(names)})
                # newest first from the server, oldest first in an answer
                return table.take(np.lexsort((np.arange(len(table))[::-1], table.series)))
        return await cold.newest(self._reader.fetcher, entry, names, span, n, columns)

    async def _window_starts(self, entry: Entry) -> list[int]:
        partitions = await self._partitioning.ranges(entry)
        starts = [partitions[-k].span.start for k in _WINDOWS if k < len(partitions)]
        return [*starts, EARLIEST]

    async def _bars(
        self, query: Query, entry: Entry, names: tuple[str, ...], ids: Sequence[int], n: int
    ) -> Columns:
        assert query.asked.grid is not None
        last = await self._points(entry, names, ids, 1, ())
        if not len(last):
            return await self._reader.read(replace(query, span=Span(0, 0)))
        newest = query.asked.grid.floor(last.ts)
        parts = await self._partitioning.ranges(entry)
        is_whole = parts and entry.frozen_before is None
        floor = parts[0].span.start if is_whole else EARLIEST
        # one series that is fine enough allows the step, as in a read of all of them
        steps = [s.step or 0 for s in await self._directory.series(entry, names)]
        may_be_finer = min(steps) <= query.asked.grid.step.approximate_us
        answers: list[Columns] = []
        for rows in _neighbours(newest, n * query.asked.grid.step.approximate_us):
            group = tuple(names[last.series[row]] for row in sorted(rows))
            ends = newest[rows]
            span = Span(int(ends.min()), int(ends.max()))
            answers += await self._bars_of(query, group, span, n, floor, may_be_finer)
        return _joined(answers, names, n)

    async def _bars_of(
        self,
        query: Query,
        names: tuple[str, ...],
        newest: Span,
        n: int,
        floor: int,
        may_be_finer: bool,
    ) -> list[Columns]:
        """Return at least ``n`` bars of each series, where there are; ``newest`` spans the last."""
        assert query.asked.grid is not None
        end = int(query.asked.grid.edges(Span(newest.end, newest.end + 1))[-1])
        reach, found = n, []
        while names:
            start = max(floor, _back(query.asked.grid, newest.start, reach))
            mine = _of(query, names, Span(start, min(end, LATEST)))
            answer = await self._reader.ask(mine, may_be_finer=may_be_finer)
            counts = np.bincount(answer.series, minlength=len(names))
            is_done = (counts >= n) | (start <= floor)
            found.append(answer.select(is_done[answer.series]))
            names = tuple(name for name, done in zip(names, is_done, strict=True) if not done)
            reach *= 8
        return found


def _of(query: Query, names: tuple[str, ...], span: Span) -> Query:
    asked = replace(query.asked, series=names, labels=None)
    return Query(asked, span, query.timeout, is_cached=False)


def _neighbours(newest: Instants, apart: int) -> list[Any]:
    """Return the rows in groups, newest first, each ``apart`` from its first to its last.

    Where that makes many groups they are wider: a group is at least one statement.

    >>> [rows.tolist() for rows in _neighbours(np.array([50, 9, 49]), 10)]
    [[0, 2], [1]]
    """
    order = np.argsort(-newest, kind="stable")
    while True:
        groups: list[list[int]] = []
        first = 0
        for row in order.tolist():
            if not groups or first - newest[row] > apart:
                groups.append([])
                first = newest[row]
            groups[-1].append(row)
        if len(groups) <= _MOST_GROUPS:
            return [np.array(rows) for rows in groups]
        apart *= 2


def _joined(answers: Sequence[Columns], names: tuple[str, ...], n: int) -> Columns:
    """Return the last ``n`` rows of each series of all answers, in the order of ``names``."""
    first = answers[0]
    if len(answers) == 1 and first.names == names:
        return first.select(_last_n(first.series, n))
    nothing = first.select(slice(0))
    nothing.names = names
    united = Columns.concat([nothing, *answers])
    order = np.lexsort((united.ts, united.series))
    joined = united.select(order)
    plans = [a.plan for a in answers if len(a) and isinstance(a.plan, Plan)]
    if plans:
        sources: dict[str, int] = {}
        for plan in plans:
            for kind, rows in plan.sources.items():
                sources[kind] = sources.get(kind, 0) + rows
        starts, ends = [p.span.start for p in plans], [p.span.end for p in plans]
        joined.plan = replace(plans[0], span=Span(min(starts), max(ends)), sources=sources)
    return joined.select(_last_n(joined.series, n))


def _back(grid: Grid, us: int, buckets: int) -> int:
    """Return the start of a bucket at least ``buckets`` - 1 before that of ``us``."""
    start = us - (buckets - 1) * grid.step.approximate_us
    return grid.floor_one(max(start, EARLIEST)) if start > EARLIEST else EARLIEST


def _last_n(series: Any, n: int) -> Any:
    """Return a mask of the last ``n`` rows of each series."""
    size = len(series)
    mask = np.zeros(size, bool)
    if size:
        ends = np.append(np.flatnonzero(series[1:] != series[:-1]) + 1, size)
        starts = np.append(0, ends[:-1])
        for start, end in zip(starts, ends, strict=True):
            mask[max(start, end - n) : end] = True
    return mask


def check_count(n: object) -> None:
    """Raise QueryError for what is no number of points."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n < 2**31:
        raise QueryError(f"n: {n!r} is not a whole number of at least 1 and at most 2,147,483,647")
