"""The recompress job: folds points that were written over blocks into them."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.timegrid import LATEST
from toolkit_maintenance.compress import moves
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Job, Skip


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield each partition that has rows in the spans of its blocks."""
    for dataset in ground.datasets():
        yield from moves(ground, dataset, LATEST, only_late=True)


JOB = Job("recompress", "fold late points into their blocks", plan)
