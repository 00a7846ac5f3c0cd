"""The refresh job: brings rollups up to now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from toolkit.errors import CorruptBlock, ToolkitError
from toolkit.refresher import RefreshReport
from toolkit.store import Store

log = logging.getLogger(__name__)

Progress = Callable[[str, str, int], None]
"""Called with a dataset, a step and the buckets computed so far."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did, in buckets of all levels; ``refreshed`` has it by dataset and level.

    ``failed`` has the datasets that could not be refreshed, and why.
    """

    refreshed: tuple[RefreshReport, ...] = ()
    failed: Mapping[str, ToolkitError] = field(default_factory=dict)

    @property
    def computed(self) -> int:
        return sum(level.computed for r in self.refreshed for level in r.levels)

    @property
    def written(self) -> int:
        return sum(level.written for r in self.refreshed for level in r.levels)

    @property
    def removed(self) -> int:
        return sum(level.removed for r in self.refreshed for level in r.levels)

    @property
    def pruned(self) -> int:
        """Change-log rows that nobody needs any more."""
        return sum(r.pruned for r in self.refreshed)

    @property
    def damaged(self) -> tuple[CorruptBlock, ...]:
        """Blocks that buckets could not be counted of."""
        return tuple(error for r in self.refreshed for error in r.damaged)

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.refreshed)


def run(
    store: Store,
    datasets: Iterable[str] | None = None,
    *,
    on_progress: Progress = lambda dataset, step, buckets: None,
) -> Report:
    """Refresh the rollups of ``datasets`` (all of them by default), one after the other.

    Idempotent, and safe beside other runs: each transaction holds its rollup's state row, and
    what a killed run leaves unfinished the next one goes on with. A dataset that fails does not
    keep the others from being refreshed.
    """
    names = [d.name for d in store.datasets()] if datasets is None else list(datasets)
    reports: list[RefreshReport] = []
    failed: dict[str, ToolkitError] = {}
    for name in names:

        def progress(step: str, buckets: int, name: str = name) -> None:
            on_progress(name, step, buckets)

        try:
            report = store.refresh(name, progress)
        except ToolkitError as error:
            log.warning("dataset %s could not be refreshed: %s", name, error)
            failed[name] = error
        else:
            reports.append(report)
            for damaged in report.damaged:
                log.warning("passed over: %s", damaged)
    return Report(tuple(reports), failed)
