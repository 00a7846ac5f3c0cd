"""The road of an audit: rollups are counted anew from the points, and held to what is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg.sql import SQL, Composed, Identifier

from toolkit import changes
from toolkit.catalog import Entry, Rollup, Series
from toolkit.cold import points_of_one
from toolkit.cutting import together
from toolkit.dataset import State
from toolkit.ddl import blocks_table
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, Driver, Params, Transaction
from toolkit.drivers.inside import InsideDriver
from toolkit.errors import CorruptBlock
from toolkit.merging import Run, run_here
from toolkit.partitions import NativePartitioning, Partition
from toolkit.recount import arrays_of, counted, cuts, stored_params
from toolkit.reduce import Table, bucket_points
from toolkit.refresher import Refresher
from toolkit.statements import NOTHING, compose, filled, name, part
from toolkit.strategy.compose import points_statement
from toolkit.strategy.params import blocks_params, log_start, range_params
from toolkit.timegrid import LATEST, Span, iso, to_datetime, to_us
from toolkit.watching import Watch, watched

if TYPE_CHECKING:
    from toolkit.roads import Roads

_POINTS = 1 << 20  # at once, of a series whose step is known; else a partition
_SAID = 1_000  # buckets that a report names
_ROUNDING = 1e-9  # of a sum's absolute values: machines add in different orders


@dataclass(frozen=True, slots=True)
class WrongBucket:
    """A stored bucket that is not what its points make; ``problem``: wrong, missing or extra."""

    series: str
    step: str
    start: int
    problem: str

    def __str__(self) -> str:
        return f"{self.series!r}, {self.step} at {iso(self.start)}: {self.problem}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was counted anew, and what was not as it is stored.

    ``buckets`` of all levels were counted of ``points``. Of ``wrong`` ones ``named`` has the
    first 1,000; ``repaired`` says whether they were. ``unread`` are blocks whose buckets could
    not be counted. ``is_cut``: its time was over before all was looked at.
    """

    dataset: str
    points: int = 0
    buckets: int = 0
    wrong: int = 0
    named: tuple[WrongBucket, ...] = ()
    repaired: bool = False
    unread: tuple[CorruptBlock, ...] = ()
    seconds: float = 0.0
    is_cut: bool = False


Progress = Callable[[AuditReport], None]
"""Called with what was found so far."""


class Auditor:
    """Audits of one store; beside readers, writers and refreshes, on any number of machines.

    While a part of a series is looked at, its rollups' state rows are held: a refresh of the
    dataset waits for that long.
    """

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        refresher: Refresher,
        watch: Watch,
        run: Run = run_here,
    ) -> None:
        self.watch = watch
        self._driver = driver
        self._directory = directory
        self._refresher = refresher
        self._partitioning = NativePartitioning(driver, directory)
        self._run = run

    @watched
    async def audit(
        self,
        dataset: str,
        names: tuple[str, ...] | None,
        span: Span,
        repair: bool,
        max_runtime: float | None,
        on_progress: Progress,
    ) -> AuditReport:
        """Look at the buckets that ``span`` touches, a part of a series after the other.

        Not at those before the mark of retention: they stand for points that are gone.
        """
        started = time.perf_counter()
        until = inf if max_runtime is None else started + max_runtime
        entry = await self._directory.confirmed(dataset)
        if not all(r.is_trusted for r in entry.rollups):  # their cursors mean nothing yet
            await self._refresher.refresh(dataset)
            entry = await self._directory.confirmed(dataset)
        if entry.frozen_before is not None:
            span = span.clip(Span(entry.frozen_before, LATEST))
        ids = None
        if names is not None:
            ids = [s.id for s in await self._directory.series(entry, names)]
        report = AuditReport(dataset)
        for piece, has_points in await self._pieces(entry, span):
            for series in await self._series(entry, ids, piece):
                for some in _parts(entry, series, piece) if has_points else (piece,):
                    if time.perf_counter() >= until:
                        report = replace(report, is_cut=True)
                        return await self._ended(report, repair, started, until)
                    report = await self._part(entry, series, some, repair, report)
                    on_progress(report)
        return await self._ended(report, repair, started, until)

    async def statements(self, dataset: str, span: Span) -> tuple[str, ...]:
        """Return what :meth:`audit` does with a part of a series, as it is sent.

        Which series it is and what was counted of its points are $1, $2 and so on.
        """
        entry = await self._directory.confirmed(dataset)
        params = {**range_params(span), **blocks_params(entry, span)}
        lock = compose("refresh/lock_rollup", rollup=name(entry.schema, "rollup"))
        points = points_statement(entry, entry.dataset.names, source="one", is_cold=True)
        return (
            "BEGIN",
            *(filled(lock, {"rollup": rollup.id}) for rollup in entry.rollups),
            filled(points, params),
            filled(*_mark(entry)),
            *(filled(_comparing(entry, rollup), params) for rollup in entry.rollups),
            "COMMIT",
        )

    async def _ended(
        self, report: AuditReport, repair: bool, started: float, until: float
    ) -> AuditReport:
        if report.wrong and repair:  # what was logged is followed, as every change is
            left = None if until == inf else max(0.0, until - time.perf_counter())
            refreshed = await self._refresher.refresh(report.dataset, max_runtime=left)
            report = replace(report, repaired=not refreshed.is_cut)  # else by the next refresh
        return replace(report, seconds=time.perf_counter() - started)

    async def _pieces(self, entry: Entry, span: Span) -> list[tuple[Span, bool]]:
        """Return the range cut at partitions, as whole buckets, and where there may be points.

        Where there is no partition a rollup may have buckets that it should not.
        """
        if not entry.rollups or span.is_empty:
            return []
        grid = entry.rollups[-1].grid
        blocks = name(entry.schema, blocks_table(entry.dataset.name)).as_string(None)
        rows = await self._driver.fetch(compose("partition/list_partitions"), {"parent": blocks})
        there = [Partition.from_row((r[0], r[1], r[2], r[3])).span for r in rows]
        there += [p.span for p in await self._partitioning.ranges(entry)]
        low, high = grid.floor_one(span.start), grid.ceil_one(span.end)
        edges = {low, high} | {grid.floor_one(e) for s in there for e in (s.start, s.end)}
        inside = np.array(sorted(e for e in edges if low <= e <= high), np.int64)
        found = Span(low, high).cut(inside)
        return [(s, any(not s.clip(p).is_empty for p in there)) for s in found if not s.is_empty]

    async def _series(self, entry: Entry, ids: list[int] | None, span: Span) -> list[Series]:
        """Return the series that have points, blocks or buckets in a range."""
        params = {**range_params(span), **blocks_params(entry, span)}
        params |= {"ids": ids, "dataset_id": entry.id}
        rows = await self._driver.fetch(self._text(entry, "list_audited"), params)
        found = await self._directory.series_by_id(entry, [row[0] for row in rows])
        return list(found.values())

    async def _part(
        self, entry: Entry, series: Series, span: Span, repair: bool, report: AuditReport
    ) -> AuditReport:
        """Look at one part of a series, and log what of it is wrong as changed."""
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            # held, so that buckets are those of the cursors; what is written after the points
            # were read is in the log when that is asked, at last
            for rollup in entry.rollups:
                lock = compose("refresh/lock_rollup", rollup=name(entry.schema, "rollup"))
                await transaction.fetch(lock, {"rollup": rollup.id})
            inside = InsideDriver(self._driver, transaction)
            try:
                points = await points_of_one(inside, entry, series, span, self._run)
            except CorruptBlock as error:
                return replace(report, unread=(*report.unread, error))
            # asked for after the points: what was dropped meanwhile lies before it
            mark = (await transaction.fetch(*_mark(entry)))[0][1]
            if mark is not None:
                span = span.clip(Span(to_us(mark), LATEST))
                points = points.take(points.ts >= span.start)
            if span.is_empty:
                return report
            wrong: list[WrongBucket] = []
            spans: list[Span] = []
            buckets = 0
            for rollup in entry.rollups:
                how = (entry, rollup, points)
                fresh, sizes = await self._driver.compute(_counted, *how)
                buckets += len(fresh)
                found = await self._differing(
                    transaction, entry, rollup, series, span, fresh, sizes
                )
                if found:
                    found = await self._followed(transaction, entry, rollup, series, span, found)
                width = rollup.grid.width or 0
                step = str(rollup.grid.step)
                wrong += [WrongBucket(series.name, step, ts, what) for ts, what in found]
                spans += [Span(ts, ts + width) for ts, _ in found]
            if repair:
                for one in together(sorted(spans, key=lambda s: s.start), 0):
                    batch = changes.at(entry, series, changes.within(entry, one))
                    await changes.log(transaction, entry, batch, np.array([series.id], np.int32))
        return replace(
            report,
            points=report.points + len(points),
            buckets=report.buckets + buckets,
            wrong=report.wrong + len(wrong),
            named=(*report.named, *wrong)[:_SAID],
        )

    async def _differing(
        self,
        transaction: Transaction,
        entry: Entry,
        rollup: Rollup,
        series: Series,
        span: Span,
        fresh: Table,
        sizes: Table,
    ) -> list[tuple[int, str]]:
        statement = entry.once(("compare", rollup.relation), lambda: _comparing(entry, rollup))
        found: list[tuple[int, str]] = []
        for low, high in cuts(span, fresh):
            rows = slice(*np.searchsorted(fresh.ts, (low, high)).tolist())
            mine, slack = fresh.take(rows), sizes.take(rows)
            params: dict[str, Any] = {"id": series.id, **range_params(Span(low, high))}
            params["ts"] = [to_datetime(t) for t in mine.ts.tolist()]
            params |= stored_params(entry, mine)
            for number, state in _float_sums(entry):
                params[f"t{number}"] = (np.abs(slack.values[state.name]) * _ROUNDING).tolist()
            found += [(to_us(ts), what) for ts, what in await transaction.fetch(statement, params)]
        return found

    async def _followed(
        self,
        transaction: Transaction,
        entry: Entry,
        rollup: Rollup,
        series: Series,
        span: Span,
        found: Sequence[tuple[int, str]],
    ) -> list[tuple[int, str]]:
        """Return those of the buckets that a refresh has followed to the last change."""
        params = {"rollup": rollup.id, "id": series.id, **range_params(span)}
        params["log_start"] = log_start(span)
        rows = await transaction.fetch(self._text(entry, "list_unfollowed"), params)
        waiting = [(to_us(lo), to_us(hi)) for lo, hi in rows]
        width = rollup.grid.width or 0
        return [
            (ts, what)
            for ts, what in found
            if not any(lo < ts + width and ts < hi for lo, hi in waiting)
        ]

    def _text(self, entry: Entry, statement: str) -> bytes:
        def make() -> bytes:
            schema, dataset = entry.schema, entry.dataset.name
            each = [
                part("refresh/has_buckets", relation=name(schema, r.relation))
                for r in entry.rollups
            ]
            return compose(
                f"refresh/{statement}",
                rollup=name(schema, "rollup"),
                log=name(schema, f"{dataset}_log"),
                series=name(schema, "series"),
                points=name(schema, dataset),
                blocks=name(schema, blocks_table(dataset)),
                has_buckets=Composed(each),
            )

        text: bytes = entry.once(("audit", statement), make)
        return text


def _mark(entry: Entry) -> tuple[bytes, Params]:
    dataset = name(entry.schema, "dataset")
    return compose("retention/find_mark", dataset=dataset), {"dataset": entry.dataset.name}


def auditor_of(roads: Roads) -> Auditor:
    """Return what audits a store."""
    run = roads.decoders.run
    return Auditor(roads.driver, roads.directory, roads.refresher, roads.watch, run)


def _parts(entry: Entry, series: Series, piece: Span) -> Iterator[Span]:
    """Yield a piece in parts of a bounded number of points, of whole buckets of every level."""
    grid = entry.rollups[-1].grid
    width = max(series.step * _POINTS if series.step else piece.width, grid.width or 0)
    start = piece.start
    while start < piece.end:
        end = min(grid.floor_one(start + width), piece.end)
        yield Span(start, end)
        start = end


def _counted(entry: Entry, rollup: Rollup, points: Table) -> tuple[Table, Table]:
    """Return a rollup's buckets, and the same of absolute values: how large its sums' terms are."""
    sizes = {
        n: np.abs(v) if v.dtype.kind == "f" and n not in points.categories else v
        for n, v in points.values.items()
    }
    states = [state for _, state in _float_sums(entry)]
    with np.errstate(all="ignore"):
        slack = bucket_points(replace(points, values=sizes), states, entry.dataset, rollup.grid)
        return counted(entry, rollup, points), slack


def _float_sums(entry: Entry) -> list[tuple[int, State]]:
    kinds = ("sum", "pv", "v")
    states = enumerate(entry.dataset.states)
    return [(n, s) for n, s in states if s.kind in kinds and s.type == "float"]


def _comparing(entry: Entry, rollup: Rollup) -> bytes:
    sums = dict(_float_sums(entry))
    names = [s.name for s in entry.dataset.states]
    slack = {number: f"{names[number]}, at most" for number in sums}  # no column is called that
    arrays: list[Any] = [*arrays_of(entry), *(SQL(f"%(t{n})s::float8[]") for n in sums)]
    columns = [Identifier(n) for n in (*names, *slack.values())]
    differs = [
        SQL("(g.{0} IS DISTINCT FROM f.{0}{1})").format(
            Identifier(n),
            SQL(" AND NOT coalesce(abs(g.{0} - f.{0}) <= f.{1}, false)").format(
                Identifier(n), Identifier(slack[number])
            )
            if number in sums
            else NOTHING,
        )
        for number, n in enumerate(names)
    ]
    return compose(
        "refresh/compare_buckets",
        relation=name(entry.schema, rollup.relation),
        arrays=SQL(", ").join(arrays),
        columns=SQL("").join(SQL(", {}").format(c) for c in columns),
        differs=SQL(" OR ").join(differs),
    )
