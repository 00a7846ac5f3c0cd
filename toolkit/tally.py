"""What a compression has to do and has done, counted by several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock

from toolkit.catalog import Series
from toolkit.drivers import Driver
from toolkit.errors import CorruptBlock
from toolkit.partitions import Partition
from toolkit.timegrid import Span

_TURN = 0.002  # seconds between two looks


@dataclass(frozen=True, slots=True)
class PackReport:
    """What a compression did, or (a dry run) would do.

    ``points`` moved from rows to ``blocks``, whose bytes are ``block_bytes``; ``row_bytes`` are
    those of the partitions' rows and indexes that were given back. ``waiting`` counts series, each
    once a partition, of which a rollup has yet to follow changes there, ``busy`` spans that
    somebody else held: both are for the next run. In a dry run ``row_bytes`` and ``block_bytes``
    are expected: from the partitions' mean, free space included, and from ``sampled`` points that
    were encoded. ``seconds`` are those of all of the call, the refresh before it too.
    """

    dataset: str
    points: int = 0
    spans: int = 0
    blocks: int = 0
    block_bytes: int = 0
    row_bytes: int = 0
    waiting: int = 0
    busy: int = 0
    sampled: int = 0
    seconds: float = 0.0


Progress = Callable[[PackReport, int], None]
"""Called with what was done so far, and the points there are to move in all."""


@dataclass(slots=True)
class Task:
    """One series in one partition, as far as its time is closed; ``points`` are those found."""

    series: Series
    region: Span
    is_closed: bool
    points: int = 0


@dataclass(slots=True)
class Share:
    """One partition, and how many of its tasks are not done."""

    partition: Partition
    tasks: list[Task]
    left: int


@dataclass(slots=True)
class Tally:
    """What several workers have done, of about so many points."""

    report: PackReport
    total: int
    on_progress: Progress
    found: list[tuple[Series, Span]] = field(default_factory=list)
    damaged: list[CorruptBlock] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    flights: set[object] = field(default_factory=set)

    def add(self, **counts: int) -> None:
        with self.lock:
            values = {k: getattr(self.report, k) + v for k, v in counts.items()}
            report = self.report = replace(self.report, **values)
        self.on_progress(report, max(self.total, report.points))

    def is_done(self, share: Share) -> bool:
        """Say that one more of the tasks is done, and whether that was the last."""
        with self.lock:
            share.left -= 1
            return not share.left

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Let others know that a snapshot is held."""
        me = object()
        with self.lock:
            self.flights.add(me)
        try:
            yield
        finally:
            with self.lock:
                self.flights.remove(me)

    async def landed(self, driver: Driver) -> None:
        """Wait until none of the snapshots is held that are held now."""
        with self.lock:
            before = set(self.flights)
        while before:
            await driver.pause(_TURN)
            with self.lock:
                before &= self.flights
