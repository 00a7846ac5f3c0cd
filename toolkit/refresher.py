"""The road of a refresh: rollups follow the change log, whole buckets at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from math import ceil, inf

from toolkit.catalog import Entry, Rollup
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, OUT_OF_RANGE, Driver, Params, Rows, Transaction
from toolkit.errors import CorruptBlock, DatabaseError, SchemaError
from toolkit.merging import Run, run_here
from toolkit.passes import Pass, pruning, text, year_params
from toolkit.recount import recount
from toolkit.statements import filled

_log = logging.getLogger("toolkit.refresher")

SLICE = timedelta(days=400)
"""The time ranges one transaction recomputes, added up over series."""
HEAD = timedelta(days=7)
"""The newest changes, which come first where there is much to follow."""
LOOKED_AT = 100_000
"""Change-log rows that are looked at to say what there is to do: more is "at least"."""
_LONG = 3  # slices that are much
_SCANNED = 20_000  # change-log rows of a slice, at most
_GRACE_S = 5.0  # once the time is over, for slices that find nothing to do: no headway, little cost


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

    ``log_rows`` of the change log say so, of which the first 100,000 are looked at; they take
    about so many ``slices``, a transaction each.
    """

    step: str
    log_rows: int
    series: int
    ranges: int
    buckets: int
    is_under_way: bool
    slices: int


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
        for each in await self._passes(entry):
            rollup, begin = each.rollup, _begin(each, sysid)
            report = levels.get(rollup.id, LevelReport(str(rollup.grid.step)))
            levels[rollup.id], is_cut = await self._level(
                each, begin, damaged, report, on_progress, until
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
        for rollup in entry.rollups:
            params = {**Pass(entry, rollup, None).params, "most": LOOKED_AT}
            *row, changed = (await self._driver.fetch(text(entry, "count_changed"), params))[0]
            slices = max(ceil(changed / SLICE), ceil(row[0] / _SCANNED), 1)
            found.append(LevelWork(*[str(rollup.grid.step), *row, slices]))
        return tuple(found)

    async def statements(self, dataset: str) -> tuple[str, ...]:
        """Return what :meth:`refresh` sends to change or lock something, of all slices one.

        What only the run knows is $1, $2 and so on.
        """
        entry = await self._directory.confirmed(dataset)
        sysid = await self._directory.identify()
        found = []
        if sysid is not None:
            lock, params = text(entry, "lock_rollup"), {"dataset_id": entry.id, "sysid": sysid}
            found += ["BEGIN", *(filled(lock, {"rollup": r.id}) for r in entry.rollups)]
            if any(not r.is_trusted for r in entry.rollups):
                found.append(filled(text(entry, "adopt_log"), params))
            found.append("COMMIT")
        for each in await self._passes(entry):
            found += each.statements(_begin(each, sysid), SLICE)
        return (*found, *self._pruning(entry))

    async def prune_statements(self, dataset: str) -> tuple[str, ...]:
        """Return what :meth:`prune` sends."""
        return self._pruning(await self._directory.confirmed(dataset))

    async def count_prunable(self, dataset: str) -> int:
        """Return how many change-log rows nobody needs any more, if it is time to remove them."""
        entry = await self._directory.confirmed(dataset)
        params: Params = {"dataset_id": entry.id, "keep": self._keep}
        count: int = (await self._driver.fetch(text(entry, "count_prunable"), params))[0][0]
        return count

    async def prune(self, dataset: str) -> int:
        """Remove change-log rows that nobody needs any more; return how many."""
        return await self._prune(await self._directory.confirmed(dataset))

    async def _passes(self, entry: Entry) -> list[Pass]:
        """Return the passes of a refresh, in order."""
        levels = list(zip(entry.rollups, (None, *entry.rollups), strict=False))
        orders = [True, False] if await self._is_long(entry) else [False]
        return [Pass(entry, *level, is_newest) for is_newest in orders for level in levels]

    async def _level(
        self,
        each: Pass,
        begin: Params,
        damaged: dict[str, CorruptBlock],
        report: LevelReport,
        on_progress: Progress,
        until: float,
    ) -> tuple[LevelReport, bool]:
        """Refresh one level; return what was done, and whether its time was over before."""
        resumed = True
        while resumed:  # first what somebody left unfinished, then a pass to now
            async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
                begun = await transaction.execute(each.begin, begin)
                if not begun and not await self._can_begin(transaction, each):
                    break
            resumed = not begun
            while True:
                step = await self._slice(each, damaged)
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

    async def _can_begin(self, transaction: Transaction, each: Pass) -> bool:
        """Return whether a pass can be begun: over the newest, only behind the finer level's."""
        if not each.is_newest or each.finer is None:
            return True
        params = {"rollup": each.finer.id}
        return bool(await transaction.fetch(text(each.entry, "lock_head"), params))

    async def _locked(self, transaction: Transaction, entry: Entry, rollup: Rollup) -> Rows:
        """Hold a level's state, and return it."""
        rows = await transaction.fetch(text(entry, "lock_rollup"), {"rollup": rollup.id})
        if not rows:
            raise SchemaError(
                f"{entry.schema}.rollup has no row of {rollup.relation} any more (id {rollup.id}): "
                "it was dropped meanwhile, or its row was deleted by hand; run: toolkit check"
            )
        return rows

    async def _slice(
        self, each: Pass, damaged: dict[str, CorruptBlock]
    ) -> tuple[int, int, int] | None:
        """Do one transaction's share of a pass; None when the pass has ended."""
        entry, params = each.entry, {**each.params, "most": SLICE}
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            rows = await self._locked(transaction, entry, each.rollup)
            if each.is_newest:  # with the level's own state held: one refresher a level
                rows = await transaction.fetch(text(entry, "lock_head"), params)
            if not rows or rows[0][0] is None:
                return None
            params |= {"after_series": rows[0][1], "after_lo": rows[0][2]}
            if each.is_newest:
                params["since"] = rows[0][3]
            await transaction.fetch(text(entry, "prepare_slice"))
            found = await transaction.fetch(each.next_slice, params)
            if not found:
                await transaction.execute(each.end, params)
                return None
            last_series, last_lo, low, high, years = found[0]
            params |= {"last_series": last_series, "last_lo": last_lo, "low": low, "high": high}
            done = (0, 0, 0)
            if low is not None:
                for year in years:
                    await transaction.fetch(each.make_room, year_params(each.rollup, year))
                rows = await self._recomputed(transaction, each, params)
                done = (rows[0][0], rows[0][1], rows[0][2])
                if rows[0][3]:
                    more = await self._recounted(transaction, each, params, damaged)
                    done = (done[0] + more[0], done[1] + more[1], done[2] + more[2])
            await transaction.execute(each.advance, params)
            return done

    async def _recomputed(self, transaction: Transaction, each: Pass, params: Params) -> Rows:
        # one value too large to be added up must not stop the refresh for ever: then as numeric,
        # and where the finer rollup has an integer sum that is none, from the points
        for source, is_total in ((each.finer, False), (each.finer, True)):
            try:
                async with transaction.savepoint():
                    statement = each.recompute(source, is_total=is_total)
                    return await transaction.fetch(statement, params)
            except DatabaseError as error:
                if error.sqlstate != OUT_OF_RANGE or (is_total and source is None):
                    raise
                _log.warning("%s: %s; added up as numeric", each.rollup.relation, error)
        return await transaction.fetch(each.recompute(None, is_total=True), params)

    async def _recounted(
        self,
        transaction: Transaction,
        each: Pass,
        params: Params,
        damaged: dict[str, CorruptBlock],
    ) -> tuple[int, int, int]:
        """Count what the database cannot: buckets of which blocks hold points."""
        changed = [(r[0], r[1]) for r in await transaction.fetch(each.plan_cold, params)]
        return await recount(
            self._driver,
            self._directory,
            transaction,
            each.entry,
            each.rollup,
            changed,
            self._run,
            damaged,
        )

    async def _adopt(self, entry: Entry, sysid: int | None) -> None:
        if sysid is None:
            return
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            known = set()
            for rollup in entry.rollups:
                known.add((await self._locked(transaction, entry, rollup))[0][3])
            if known - {None, sysid}:
                params: Params = {"dataset_id": entry.id, "sysid": sysid}
                await transaction.execute(text(entry, "adopt_log"), params)

    async def _prune(self, entry: Entry) -> int:
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            (plan, params), (cut, _) = pruning(entry, self._keep)
            await transaction.execute(plan, params)
            pruned: int = (await transaction.fetch(cut, params))[0][0]
            return pruned

    def _pruning(self, entry: Entry) -> tuple[str, ...]:
        return ("BEGIN", *(filled(*one) for one in pruning(entry, self._keep)), "COMMIT")

    async def _is_long(self, entry: Entry) -> bool:
        """Return whether there is so much to follow that the newest should not wait for it all."""
        if not entry.rollups:
            return False
        params = {"rollup": entry.rollups[0].id, "most": SLICE * _LONG}
        rows = await self._driver.fetch(text(entry, "is_long"), params)
        return bool(rows[0][0])


def _begin(each: Pass, sysid: int | None) -> Params:
    finer = each.finer.id if each.finer else None
    return {"rollup": each.rollup.id, "finer": finer, "sysid": sysid, "head": HEAD}
