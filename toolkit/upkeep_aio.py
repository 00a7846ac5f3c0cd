"""What keeps a store in order and is no everyday call: audit and warming, for the asyncio store."""

from __future__ import annotations

from collections.abc import Iterable

from toolkit.auditor import AuditReport, auditor_of
from toolkit.auditor import Progress as AuditProgress
from toolkit.columns import Columns
from toolkit.query import build_query, ends_of
from toolkit.refresher import LevelWork
from toolkit.roads import Roads
from toolkit.warming import Popular, WarmReport, popular, warm, warm_one


class AsyncUpkeep:
    """The calls of :class:`toolkit.upkeep.Upkeep`, awaited."""

    _roads: Roads

    async def pending(self, dataset: str) -> tuple[LevelWork, ...]:
        """Return what a refresh would have to do, level by level, finest first."""
        return await self._roads.refresher.look(dataset)

    async def count_prunable(self, dataset: str) -> int:
        """Return how many change-log rows everybody has followed, where some may go now."""
        return await self._roads.refresher.count_prunable(dataset)

    async def prune(self, dataset: str) -> int:
        """Remove change-log rows that nobody needs any more, as refresh does; return how many."""
        return await self._roads.refresher.prune(dataset)

    async def popular(self, dataset: str | None = None, *, most: int = 200) -> list[Popular]:
        """Return what stores have been asked for most often, the most popular first."""
        return await popular(self._roads, dataset, most)

    async def refresh_statements(self, dataset: str) -> tuple[str, ...]:
        """Return what a refresh sends to change or lock something, of all slices one.

        What only the run knows, where a slice begins and ends, is $1, $2 and so on.
        """
        return await self._roads.refresher.statements(dataset)

    async def prune_statements(self, dataset: str) -> tuple[str, ...]:
        """Return what :meth:`prune` sends."""
        return await self._roads.refresher.prune_statements(dataset)

    async def move_statements(self, dataset: str, start: object, end: object) -> tuple[str, ...]:
        """Return what moves points of ``[start, end)`` to blocks, as it is sent.

        What only a move knows, a series and its blocks, is $1, $2 and so on.
        """
        span = build_query(dataset, None, *ends_of(start, end)).span
        return await self._roads.packer.statements(dataset, span)

    async def audit_statements(self, dataset: str, start: object, end: object) -> tuple[str, ...]:
        """Return what an audit does with a part of a series, as it is sent.

        Which series, and what was counted of its points, is $1, $2 and so on.
        """
        span = build_query(dataset, None, *ends_of(start, end)).span
        return await auditor_of(self._roads).statements(dataset, span)

    async def verify_statements(
        self, dataset: str, series: str | Iterable[str] | None, start: object, end: object
    ) -> tuple[str, ...]:
        """Return what a verify reads, as it is sent; of each partition the first page."""
        query = build_query(dataset, series, *ends_of(start, end))
        names, verifier = query.asked.series, self._roads.verifier
        return await verifier.statements(dataset, names, query.span)

    async def audit(
        self,
        dataset: str,
        series: str | Iterable[str] | None = None,
        start: object = None,
        end: object = None,
        *,
        repair: bool = True,
        max_runtime: float | None = None,
        on_progress: AuditProgress = lambda report: None,
    ) -> AuditReport:
        """Count rollups anew, from points and blocks, and say which buckets are not as stored.

        These are repaired (not without ``repair``): logged as changed, and refreshed. What a
        refresh has yet to follow is not looked at. Reads all points of ``[start, end)`` once,
        a part of a series at a time; after ``max_runtime`` seconds it stops after a part.
        """
        query = build_query(dataset, series, *ends_of(start, end))
        names, auditor = query.asked.series, auditor_of(self._roads)
        return await auditor.audit(dataset, names, query.span, repair, max_runtime, on_progress)

    async def warm(
        self,
        dataset: str | None = None,
        *,
        most: int = 200,
        max_runtime: float | None = None,
    ) -> WarmReport:
        """Read what stores were asked for most often, so that this one remembers it.

        For a service that starts: of all datasets or of one, at most so many series and steps,
        the most popular first, and for at most ``max_runtime`` seconds. Where nothing was
        counted yet, or this store remembers nothing, nothing is read.
        """
        return await warm(self._roads, dataset, most, max_runtime)

    async def warm_one(self, one: Popular) -> Columns:
        """Read one of :meth:`popular`, so that the caches hold it; it does not count as asked."""
        return await warm_one(self._roads, one)
