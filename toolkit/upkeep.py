"""What keeps a store in order: refresh, compress, verify, partitions; for the blocking store."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from toolkit.auditor import AuditReport, auditor_of
from toolkit.auditor import Progress as AuditProgress
from toolkit.columns import Columns
from toolkit.drivers import drive
from toolkit.inspection import DatasetStats
from toolkit.partitions import Partition
from toolkit.query import build_query, ends_of
from toolkit.refresher import LevelWork, Progress, RefreshReport
from toolkit.retaining import Retention
from toolkit.roads import Roads
from toolkit.shelved import LevelShared, ShelfReport
from toolkit.tally import PackReport
from toolkit.tally import Progress as PackProgress
from toolkit.timegrid import to_datetime
from toolkit.verifier import Progress as VerifyProgress
from toolkit.verifier import VerifyReport
from toolkit.warming import Popular, WarmReport, popular, warm, warm_one


class Upkeep:
    """The calls of a store that cron makes, and people who look after it."""

    _roads: Roads

    def refresh(
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
        return drive(self._roads.refresh(dataset, on_progress, max_runtime))

    def pending(self, dataset: str) -> tuple[LevelWork, ...]:
        """Return what a refresh would have to do, level by level, finest first."""
        return drive(self._roads.refresher.look(dataset))

    def count_prunable(self, dataset: str) -> int:
        """Return how many change-log rows everybody has followed, where some may go now."""
        return drive(self._roads.refresher.count_prunable(dataset))

    def prune(self, dataset: str) -> int:
        """Remove change-log rows that nobody needs any more, as refresh does; return how many."""
        return drive(self._roads.refresher.prune(dataset))

    def refresh_statements(self, dataset: str) -> tuple[str, ...]:
        """Return what a refresh sends to change or lock something, of all slices one.

        What only the run knows, where a slice begins and ends, is $1, $2 and so on.
        """
        return drive(self._roads.refresher.statements(dataset))

    def prune_statements(self, dataset: str) -> tuple[str, ...]:
        """Return what :meth:`prune` sends."""
        return drive(self._roads.refresher.prune_statements(dataset))

    def move_statements(self, dataset: str, start: object, end: object) -> tuple[str, ...]:
        """Return what moves points of ``[start, end)`` to blocks, as it is sent.

        What only a move knows, a series and its blocks, is $1, $2 and so on.
        """
        span = build_query(dataset, None, *ends_of(start, end)).span
        return drive(self._roads.packer.statements(dataset, span))

    def audit_statements(self, dataset: str, start: object, end: object) -> tuple[str, ...]:
        """Return what an audit does with a part of a series, as it is sent.

        Which series, and what was counted of its points, is $1, $2 and so on.
        """
        span = build_query(dataset, None, *ends_of(start, end)).span
        return drive(auditor_of(self._roads).statements(dataset, span))

    def verify_statements(
        self, dataset: str, series: str | Iterable[str] | None, start: object, end: object
    ) -> tuple[str, ...]:
        """Return what a verify reads, as it is sent; of each partition the first page."""
        query = build_query(dataset, series, *ends_of(start, end))
        names, verifier = query.asked.series, self._roads.verifier
        return drive(verifier.statements(dataset, names, query.span))

    def audit(
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
        return drive(auditor.audit(dataset, names, query.span, repair, max_runtime, on_progress))

    def popular(self, dataset: str | None = None, *, most: int = 200) -> list[Popular]:
        """Return what stores have been asked for most often, the most popular first."""
        return drive(popular(self._roads, dataset, most))

    def warm(
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
        return drive(warm(self._roads, dataset, most, max_runtime))

    def warm_one(self, one: Popular) -> Columns:
        """Read one of :meth:`popular`, so that the caches hold it; it does not count as asked."""
        return drive(warm_one(self._roads, one))

    def compress(
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
        return drive(
            self._roads.compress(dataset, series, start, end, dry_run, False, gently, on_progress)
        )

    def recompress(
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
        return drive(
            self._roads.compress(dataset, series, start, end, dry_run, True, False, on_progress)
        )

    def decompress(
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
        return drive(self._roads.decompress(dataset, series, start, end, dry_run, on_progress))

    def verify(
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
        return drive(self._roads.verify(dataset, series, start, end, on_progress))

    def forget(
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
        return drive(self._roads.forget(dataset, series, start, end))

    def describe_shared(self, seconds: float = 5.0) -> ShelfReport:
        """Say what of the datasets lies in ``cache.redis``, and how that server is set up.

        Looks at every key there, for at most so many seconds. Raises ConfigError where nothing
        is shared, Unavailable where Redis is out.
        """
        return drive(self._roads.describe_shared(seconds))

    def peek_shared(
        self, dataset: str, series: str, start: object, end: object
    ) -> tuple[LevelShared, ...]:
        """Say which spans of a series' range lie in ``cache.redis``, level by level."""
        return drive(self._roads.peek_shared(dataset, series, start, end))

    def partitions(self, dataset: str) -> list[Partition]:
        """Return the time ranges that a dataset is stored in, oldest first; counts its blocks."""
        return drive(self._roads.partitions(dataset))

    def drop_partitions(self, dataset: str, start: object, end: object) -> list[Partition]:
        """Drop the partitions that lie wholly inside ``[start, end)`` with all their points.

        The change log hears of it: rollups lose those points at the next refresh, but for what
        retention has frozen. Takes the strongest lock on the dataset for a moment.
        """
        return drive(self._roads.drop_partitions(dataset, start, end))

    def set_compress_after(self, dataset: str, age: str) -> str:
        """Have :meth:`compress` take points older than ``age`` (``30d``); empty: none by itself."""
        return drive(self._roads.set_compress_after(dataset, age))

    def set_retention(self, dataset: str, retain: Retention) -> Retention:
        """Have the retention job keep rows, blocks and rollups for so long, and no longer."""
        return drive(self._roads.set_retention(dataset, retain))

    def frozen_before(self, dataset: str) -> datetime | None:
        """Return the mark of retention, None where there is none: points before may be gone."""
        mark = drive(self._roads.directory.entry(dataset)).frozen_before
        return None if mark is None else to_datetime(mark)

    def describe(self, dataset: str) -> DatasetStats:
        """Return the server's figures of a dataset: series, rows, bytes, what is unfollowed."""
        return drive(self._roads.describe(dataset))
