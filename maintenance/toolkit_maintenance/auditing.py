"""The audit job: counts rollups anew, from points and blocks, and repairs what is not as stored."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from psycopg.sql import Composed

from toolkit.dataset import Dataset
from toolkit.errors import DatabaseError
from toolkit.statements import compose, part
from toolkit.strategy.params import range_params
from toolkit.timegrid import EARLIEST, LATEST, Span, to_us
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts, Job, Skip
from toolkit_maintenance.looked import Piece, look, pieces


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield a recount of each part of a dataset that was not recounted for long."""
    for dataset in ground.datasets():
        if not dataset.ladder:
            continue
        there = [p.span for p in ground.store.partitions(dataset.name)]
        # buckets before the mark of retention stand for points that are gone
        mark = ground.store.frozen_before(dataset.name)
        after = Span(EARLIEST if mark is None else to_us(mark), LATEST)
        parts, gaps = _tiles(there)
        gaps = [gap for gap in gaps if _has_buckets(ground, dataset, gap.clip(after))]
        for piece in pieces(ground, "audit", dataset, parts, gaps):
            name, _, *span = piece.asked()
            sql = ground.store.audit_statements(name, *span)
            lock = f"ROW SHARE on rollup: a refresh of {dataset.name} waits for a part of a series"
            yield from look(ground, "audit", piece, sql, lock, partial(_recount, ground, piece))


JOB = Job("audit", "count rollups anew from their points, and repair them", plan)


def _tiles(there: list[Span]) -> tuple[list[Span], list[Span]]:
    """Return the parts, and the gaps between them, where no points can be, but buckets may.

    >>> [[s.width for s in some] for some in _tiles([Span(EARLIEST, 5), Span(7, LATEST - 9)])]
    [[2208988800000005, 4102444799999984], [2, 9]]
    """
    parts, gaps, end = [], [], EARLIEST
    for span in sorted(there, key=lambda s: s.start):
        span = span.clip(Span(end, LATEST))
        gaps += [Span(end, span.start)] if span.start > end else []
        parts += [span] if not span.is_empty else []
        end = max(end, span.end)
    return parts, gaps + ([Span(end, LATEST)] if end < LATEST else [])


def _has_buckets(ground: Ground, dataset: Dataset, span: Span) -> bool:
    if span.is_empty:
        return False
    each = [ground.table(f"{dataset.name}_{step}") for step in dataset.ladder]
    statement = compose(
        "refresh/has_any_bucket",
        series=ground.table("series"),
        dataset=ground.table("dataset"),
        has_buckets=Composed([part("refresh/has_buckets", relation=r) for r in each]),
    )
    params = {"dataset": dataset.name, **range_params(span)}
    is_held: bool = ground.direct.fetch(statement, params, timeout=ground.timeout)[0][0]
    return is_held


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
