"""The audit job: counts rollups anew, from points and blocks, and repairs what is not as stored."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from toolkit.errors import DatabaseError
from toolkit.timegrid import EARLIEST, LATEST, Span
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts, Job, Skip
from toolkit_maintenance.looked import Piece, look, pieces


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield a recount of each part of a dataset that was not recounted for long."""
    for dataset in ground.datasets():
        if not dataset.ladder:
            continue
        there = [p.span for p in ground.store.partitions(dataset.name)]
        for piece in pieces(ground, "audit", dataset, _tiles(there)):
            name, _, *span = piece.asked()
            sql = ground.store.audit_statements(name, *span)
            lock = f"ROW SHARE on rollup: a refresh of {dataset.name} waits for a part of a series"
            yield from look(ground, "audit", piece, sql, lock, partial(_recount, ground, piece))


JOB = Job("audit", "count rollups anew from their points, and repair them", plan)


def _tiles(there: list[Span]) -> list[Span]:
    """Return the parts with the gaps between them: where no points can be are no buckets, too.

    >>> [str(s.width) for s in _tiles([Span(0, 5), Span(7, 9)])][1:-1]
    ['5', '2', '2']
    """
    edges = sorted({EARLIEST, LATEST} | {e for s in there for e in (s.start, s.end)})
    edges = [e for e in edges if EARLIEST <= e <= LATEST]
    return [Span(a, b) for a, b in pairwise(edges)]


def _recount(ground: Ground, piece: Piece, names: tuple[str, ...]) -> tuple[Counts, bool]:
    report = ground.store.audit(*piece.asked(names), max_runtime=ground.left)
    for wrong in report.named[:20]:
        ground.say(f"{piece.dataset.name}: {wrong}; repaired")
    if report.unread:
        raise DatabaseError("; ".join(map(str, report.unread[:10])))
    counts = {
        "points_read": report.points,
        "buckets_counted": report.buckets,
        "buckets_repaired": report.wrong,
    }
    return counts, report.is_cut
