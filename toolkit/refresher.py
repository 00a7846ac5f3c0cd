"""The road of a refresh: rollups follow the change log, whole buckets at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from math import inf
from typing import Any

from psycopg.sql import SQL, Composed, Identifier, Literal

from toolkit.catalog import Entry, Rollup
from toolkit.ddl import ROLLUP_PARTITION
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, OUT_OF_RANGE, Driver, Params, Rows, Transaction
from toolkit.errors import CorruptBlock, DatabaseError, SchemaError
from toolkit.merging import Run, run_here
from toolkit.recount import recount
from toolkit.statements import NOTHING, compose, filled, name, part
from toolkit.strategy.states import merged_state, state_of_points
from toolkit.timegrid import EARLIEST, LATEST, to_datetime

_log = logging.getLogger("toolkit.refresher")

SLICE = timedelta(days=400)
"""The time ranges one transaction recomputes, added up over series."""
HEAD = timedelta(days=7)
"""The newest changes, which come first where there is much to follow."""
LOOKED_AT = 100_000
"""Change-log rows that are looked at to say what there is to do: more is "at least"."""
_LONG = 3  # slices that are much
_GRACE_S = 5.0  # once the time is over, for slices that find nothing to do: no headway, little cost

# the state of a level's passes: over all changes, and over the newest, which goes before
_ALL, _NEWEST = "rollup", "rollup_head"
# the bounds of a slice that is all there is
_WHOLE = {
    "after_series": 0,
    **dict.fromkeys(("after_lo", "since", "low"), to_datetime(EARLIEST)),
    "last_series": 2**31 - 1,
    **dict.fromkeys(("last_lo", "high"), to_datetime(LATEST)),
}


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What a refresh did to one rollup, in buckets."""

    step: str
    computed: int = 0
    written: int = 0
    removed: int = 0


@dataclass(frozen=True, slots=True)
class LevelWork:
    """What of one rollup has to be refreshed: changed ranges of how many series and buckets.

    ``log_rows`` of the change log say so, of which the first 100,000 are looked at;
    ``statement`` recomputes a slice of it, and has the bounds of all of it in their places.
    """

    step: str
    log_rows: int
    series: int
    ranges: int
    buckets: int
    is_under_way: bool
    statement: str


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """What a refresh did; ``pruned`` counts change-log rows that nobody needs any more.

    Rows stay for some minutes after every rollup has followed them: caches follow them, too.
    ``damaged`` are blocks that buckets could not be counted of: what changed there stays in the
    change log, and is for the refresh after their repair. ``is_cut``: its time was over before
    all was done; the next one goes on.
    """

    dataset: str
    levels: tuple[LevelReport, ...]
    pruned: int
    seconds: float
    damaged: tuple[CorruptBlock, ...] = ()
    is_cut: bool = False


Progress = Callable[[str, int], None]
"""Called with a step and the buckets computed so far."""


class Refresher:
    """Refreshes of one store; several may run at once, on any number of machines.

    Each transaction holds its rollup's state row: one refresher a level at a time, and what one
    leaves unfinished, killed or not, the next one goes on with.
    """

    def __init__(
        self,
        driver: Driver,
        directory: Directory,
        keep_log: float = 300.0,
        run: Run = run_here,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._keep = timedelta(seconds=keep_log)
        self._run = run

    async def refresh(
        self,
        dataset: str,
        on_progress: Progress = lambda step, buckets: None,
        max_runtime: float | None = None,
    ) -> RefreshReport:
        """Bring every rollup of ``dataset`` up to now, finest first.

        Changes committed after it began are left for the next one. Cost: the points of the
        changed buckets are read once; each coarser level reads the one below it. Where there is
        much to follow the newest changes come first, on every level. After ``max_runtime``
        seconds it begins no other slice, but does one: the next one goes on.
        """
        started = time.perf_counter()
        until = inf if max_runtime is None else started + max_runtime
        entry = await self._directory.confirmed(dataset)
        sysid = await self._directory.identify()
        await self._adopt(entry, sysid)
        levels, damaged = dict[int, LevelReport](), dict[str, CorruptBlock]()
        is_cut = False
        passes = [_NEWEST, _ALL] if await self._is_long(entry) else [_ALL]
        for state, place in product(passes, range(len(entry.rollups))):
            rollup, finer = entry.rollups[place], entry.rollups[place - 1] if place else None
            begin = {"finer": finer.id if finer else None, "sysid": sysid, "head": HEAD}
            report = levels.get(rollup.id, LevelReport(str(rollup.grid.step)))
            levels[rollup.id], is_cut = await self._level(
                entry, rollup, finer, state, begin, damaged, report, on_progress, until
            )
            if is_cut:
                break
        pruned = await self._prune(entry)
        if any(not r.is_trusted for r in entry.rollups):
            await self._directory.load()
        seconds = time.perf_counter() - started
        found = tuple(damaged.values())
        return RefreshReport(dataset, tuple(levels.values()), pruned, seconds, found, is_cut)

    async def look(self, dataset: str) -> tuple[LevelWork, ...]:
        """Return what a refresh would have to do, level by level; changes nothing."""
        entry = await self._directory.confirmed(dataset)
        found = []
        for finer, rollup in zip((None, *entry.rollups), entry.rollups, strict=False):
            params = {"rollup": rollup.id, **_widths(rollup), "most": LOOKED_AT}
            row = (await self._driver.fetch(self._text(entry, "count_changed"), params))[0]
            statement = filled(self._recompute(entry, rollup, finer, False), {**params, **_WHOLE})
            found.append(LevelWork(*[str(rollup.grid.step), *row, statement]))
        return tuple(found)

    async def count_prunable(self, dataset: str) -> int:
        """Return how many change-log rows nobody needs any more, if it is time to remove them."""
        entry = await self._directory.confirmed(dataset)
        params: Params = {"dataset_id": entry.id, "keep": self._keep}
        count: int = (await self._driver.fetch(self._text(entry, "count_prunable"), params))[0][0]
        return count

    async def prune(self, dataset: str) -> int:
        """Remove change-log rows that nobody needs any more; return how many."""
        return await self._prune(await self._directory.confirmed(dataset))

    async def _level(
        self,
        entry: Entry,
        rollup: Rollup,
        finer: Rollup | None,
        state: str,
        begin: Params,
        damaged: dict[str, CorruptBlock],
        report: LevelReport,
        on_progress: Progress,
        until: float,
    ) -> tuple[LevelReport, bool]:
        """Refresh one level; return what was done, and whether its time was over before."""
        statement = self._text(entry, "begin_head" if state == _NEWEST else "begin_pass")
        resumed = True
        while resumed:  # first what somebody left unfinished, then a pass to now
            async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
                begun = await transaction.execute(statement, {**begin, "rollup": rollup.id})
                if not begun and not await self._can_begin(transaction, entry, finer, state):
                    break
            resumed = not begun
            while True:
                step = await self._slice(entry, rollup, finer, state, damaged)
                if step is None:
                    break
                report = LevelReport(
                    report.step,
                    report.computed + step[0],
                    report.written + step[1],
                    report.removed + step[2],
                )
                on_progress(report.step, report.computed)
                if time.perf_counter() >= until + (0.0 if any(step) else _GRACE_S):
                    return report, True
        return report, False

    async def _can_begin(
        self, transaction: Transaction, entry: Entry, finer: Rollup | None, state: str
    ) -> bool:
        """Return whether a pass can be begun: over the newest, only behind the finer level's."""
        if state == _ALL or finer is None:
            return True
        return bool(await transaction.fetch(self._text(entry, "lock_head"), {"rollup": finer.id}))

    async def _locked(self, transaction: Transaction, entry: Entry, rollup: Rollup) -> Rows:
        """Hold a level's state, and return it."""
        rows = await transaction.fetch(self._text(entry, "lock_rollup"), {"rollup": rollup.id})
        if not rows:
            raise SchemaError(
                f"{entry.schema}.rollup has no row of {rollup.relation} any more (id {rollup.id}): "
                "it was dropped meanwhile, or its row was deleted by hand; run: toolkit check"
            )
        return rows

    async def _slice(
        self,
        entry: Entry,
        rollup: Rollup,
        finer: Rollup | None,
        state: str,
        damaged: dict[str, CorruptBlock],
    ) -> tuple[int, int, int] | None:
        """Do one transaction's share of a pass; None when the pass has ended."""
        params: dict[str, Any] = {"rollup": rollup.id, **_widths(rollup), "most": SLICE}
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            rows = await self._locked(transaction, entry, rollup)
            if state == _NEWEST:  # with the level's own state held: one refresher a level
                rows = await transaction.fetch(self._text(entry, "lock_head"), params)
            if not rows or rows[0][0] is None:
                return None
            since = rows[0][3] if state == _NEWEST else to_datetime(EARLIEST)
            params |= {"after_series": rows[0][1], "after_lo": rows[0][2], "since": since}
            await transaction.fetch(self._text(entry, "prepare_slice"))
            found = await transaction.fetch(self._text(entry, "next_slice", state), params)
            if not found:
                end = "end_head" if state == _NEWEST else "end_pass"
                await transaction.execute(self._text(entry, end), params)
                return None
            last_series, last_lo, low, high, years = found[0]
            params |= {"last_series": last_series, "last_lo": last_lo, "low": low, "high": high}
            done = (0, 0, 0)
            if low is not None:
                for year in years:
                    await self._ensure_year(transaction, entry, rollup, year)
                rows = await self._recomputed(transaction, entry, rollup, finer, state, params)
                done = (rows[0][0], rows[0][1], rows[0][2])
                if rows[0][3]:
                    more = await self._recounted(transaction, entry, rollup, state, params, damaged)
                    done = (done[0] + more[0], done[1] + more[1], done[2] + more[2])
            await transaction.execute(self._text(entry, "advance_pass", state), params)
            return done

    async def _recomputed(
        self,
        transaction: Transaction,
        entry: Entry,
        rollup: Rollup,
        finer: Rollup | None,
        state: str,
        params: Params,
    ) -> Rows:
        # one value too large to be added up must not stop the refresh for ever: then as numeric,
        # and where the finer rollup has an integer sum that is none, from the points
        for source, is_total in ((finer, False), (finer, True)):
            try:
                async with transaction.savepoint():
                    statement = self._recompute(entry, rollup, source, is_total, state)
                    return await transaction.fetch(statement, params)
            except DatabaseError as error:
                if error.sqlstate != OUT_OF_RANGE or (is_total and source is None):
                    raise
                _log.warning("%s: %s; added up as numeric", rollup.relation, error)
        return await transaction.fetch(self._recompute(entry, rollup, None, True, state), params)

    async def _recounted(
        self,
        transaction: Transaction,
        entry: Entry,
        rollup: Rollup,
        state: str,
        params: Params,
        damaged: dict[str, CorruptBlock],
    ) -> tuple[int, int, int]:
        """Count what the database cannot: buckets of which blocks hold points."""
        cold = _cold(entry, before=True)
        statement = compose("refresh/plan_cold", changed=_changed(entry, state), cold=cold)
        changed = [(r[0], r[1]) for r in await transaction.fetch(statement, params)]
        return await recount(
            self._driver, self._directory, transaction, entry, rollup, changed, self._run, damaged
        )

    async def _ensure_year(
        self, transaction: Transaction, entry: Entry, rollup: Rollup, year: int
    ) -> None:
        statement = compose(
            "partition/add_rollup_partition",
            add_partitions=name(entry.schema, "add_partitions_v1"),
        )
        params: Params = {
            "relation": rollup.relation,
            "every": ROLLUP_PARTITION,
            "low": datetime(year, 1, 1, tzinfo=UTC),
            "high": datetime(year, 1, 2, tzinfo=UTC),
        }
        await transaction.fetch(statement, params)

    async def _adopt(self, entry: Entry, sysid: int | None) -> None:
        if sysid is None:
            return
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            known = set()
            for rollup in entry.rollups:
                known.add((await self._locked(transaction, entry, rollup))[0][3])
            if known - {None, sysid}:
                params: Params = {"dataset_id": entry.id, "sysid": sysid}
                await transaction.execute(self._text(entry, "adopt_log"), params)

    async def _prune(self, entry: Entry) -> int:
        params: Params = {"dataset_id": entry.id, "keep": self._keep}
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            await transaction.execute(self._text(entry, "plan_prune"), params)
            pruned: int = (await transaction.fetch(self._text(entry, "prune_log"), params))[0][0]
            return pruned

    async def _is_long(self, entry: Entry) -> bool:
        """Return whether there is so much to follow that the newest should not wait for it all."""
        if not entry.rollups:
            return False
        params = {"rollup": entry.rollups[0].id, "most": SLICE * _LONG}
        rows = await self._driver.fetch(self._text(entry, "is_long"), params)
        return bool(rows[0][0])

    def _text(self, entry: Entry, statement: str, state: str = _ALL) -> bytes:
        def make() -> bytes:
            tables = {
                "rollup": name(entry.schema, state),
                "head": name(entry.schema, _NEWEST),
                "log": name(entry.schema, f"{entry.dataset.name}_log"),
                "dataset": name(entry.schema, "dataset"),
            }
            return compose(f"refresh/{statement}", **tables)

        text: bytes = entry.once(("refresh", statement, state), make)
        return text

    def _recompute(
        self,
        entry: Entry,
        rollup: Rollup,
        finer: Rollup | None,
        is_total: bool,
        state: str = _ALL,
    ) -> bytes:
        def make() -> bytes:
            dataset = entry.dataset
            columns = [Identifier(s.name) for s in dataset.states]
            if finer is None:
                states = [state_of_points(s, dataset, is_total=is_total) for s in dataset.states]
                source = dataset.name
            else:
                states = [merged_state(s, is_total=is_total) for s in dataset.states]
                source = finer.relation

            def each(before: str) -> Composed:
                return Composed([SQL(", ") + Identifier(before, s.name) for s in dataset.states])

            return compose(
                "refresh/recompute_slice",
                changed=_changed(entry, state),
                relation=name(entry.schema, rollup.relation),
                source=name(entry.schema, source),
                states=Composed([SQL(", ") + s for s in states]),
                columns=Composed([SQL(", ") + c for c in columns]),
                fresh_columns=each("f"),
                assignments=SQL(", ").join(SQL("{0} = excluded.{0}").format(c) for c in columns),
                old_columns=SQL(", ").join(Identifier("g", s.name) for s in dataset.states),
                new_columns=SQL(", ").join(SQL("excluded.{}").format(c) for c in columns),
                # finer buckets are all there, whatever holds their points
                hot=NOTHING if finer else SQL(" * {}").format(_cold(entry, before=False)),
                is_cold=SQL("false") if finer else _has_cold(entry),
            )

        key = ("recompute", rollup.relation, finer is None, is_total, state)
        text: bytes = entry.once(key, make)
        return text


def _widths(rollup: Rollup) -> dict[str, Any]:
    grid = rollup.grid
    assert grid.width is not None
    return {"width": timedelta(microseconds=grid.width), "origin": to_datetime(grid.origin)}


def _changed(entry: Entry, state: str) -> Composed:
    tables = {"log": f"{entry.dataset.name}_log", "rollup": state, "dataset": "dataset"}
    return part("refresh/list_changed", **{k: name(entry.schema, v) for k, v in tables.items()})


def _cold(entry: Entry, *, before: bool) -> Composed:
    """Return the whole buckets of which blocks may hold points, or all the others."""
    edge = SQL(
        "(SELECT date_bin(%(width)s, d.cold_to + %(width)s - interval '1 microsecond', %(origin)s) "
        "FROM {} AS d WHERE d.id = {})"
    ).format(name(entry.schema, "dataset"), Literal(entry.id))
    if before:
        return SQL(
            "CASE WHEN {e} IS NULL THEN '{{}}' ELSE tstzmultirange(tstzrange(NULL, {e})) END"
        ).format(e=edge)
    return SQL("tstzmultirange(tstzrange({}, NULL))").format(edge)


def _has_cold(entry: Entry) -> Composed:
    return SQL("EXISTS (SELECT FROM work AS w WHERE w.ranges && {})").format(
        _cold(entry, before=True)
    )
