"""The refresh job: brings rollups up to now."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.dataset import Dataset
from toolkit.errors import DatabaseError, counted
from toolkit.refresher import LOOKED_AT, LevelWork
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts, Job, Skip


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield a refresh of each dataset that has changed, those with the least to do first.

    What its time does not suffice for is yielded again: the next run goes on with it.
    """
    found = [(d, ground.store.pending(d.name)) for d in ground.datasets()]
    for dataset, levels in sorted(found, key=lambda f: sum(level.log_rows for level in f[1])):
        if any(level.log_rows or level.is_under_way for level in levels):
            done = Done()
            while not done.is_all:
                yield _act(ground, dataset, levels, done)
                if ground.is_dry:
                    break
        yield from prune(ground, dataset)


JOB = Job("refresh", "bring rollups up to now", plan)


class Done:
    """Whether an act came to its end, or its time was over before."""

    is_all = False


def prune(ground: Ground, dataset: Dataset) -> Iterator[Act]:
    """Yield what removes change-log rows that nobody needs any more."""
    count = ground.store.count_prunable(dataset.name)
    if count:
        yield Act(
            f"cut the change log of {dataset.name}",
            ground.store.prune_statements(dataset.name),
            f"ROW EXCLUSIVE on {dataset.name}_log",
            lambda: {"log_rows_removed": ground.store.prune(dataset.name)},
            why=f"every rollup has followed {counted(count, 'rows')}",
        )


def _act(ground: Ground, dataset: Dataset, levels: tuple[LevelWork, ...], done: Done) -> Act:
    def do() -> Counts:
        done.is_all = True  # also where it fails: it is not tried for ever
        report = ground.store.refresh(
            dataset.name,
            lambda step, n: ground.say(f"refresh {dataset.name} {step}: {n:,} buckets"),
            max_runtime=ground.left,
        )
        if report.damaged:  # all others are done; these are told until they are repaired
            count = len(report.damaged)
            raise DatabaseError(
                f"{counted(count, 'blocks', 'are')} damaged: "
                "what changed over it waits for its repair; "
                + "; ".join(map(str, report.damaged[:10]))
            )
        done.is_all = not report.is_cut
        return {
            "buckets_computed": sum(level.computed for level in report.levels),
            "buckets_written": sum(level.written for level in report.levels),
            "buckets_removed": sum(level.removed for level in report.levels),
            "log_rows_removed": report.pruned,
        }

    why = "; ".join(
        f"{level.step}: {'at least ' if level.log_rows >= LOOKED_AT else ''}"
        f"{counted(level.buckets, 'buckets')} (ranges: {level.ranges:,}, "
        f"series: {level.series:,}) in about {counted(level.slices, 'slices')}"
        for level in levels
        if level.log_rows or level.is_under_way
    )
    return Act(
        f"refresh {dataset.name}",
        ground.store.refresh_statements(dataset.name),
        f"ROW EXCLUSIVE on the rollups of {dataset.name}, a slice at a time",
        do,
        why=why,
    )
