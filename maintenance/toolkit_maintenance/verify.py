"""The verify job: reads and decodes every block, a part of a dataset after the other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from toolkit.errors import DatabaseError, Stopped, counted
from toolkit.verifier import VerifyReport
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts, Job, Skip
from toolkit_maintenance.looked import Piece, look, pieces


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield the blocks that were not read for long, those of some series in a partition at once."""
    for dataset in ground.datasets():
        there = [p.span for p in ground.store.partitions(dataset.name) if p.blocks]
        for piece in pieces(ground, "verify", dataset, there):
            sql = ground.store.verify_statements(*piece.asked())
            lock = f"ACCESS SHARE on {dataset.name}_blocks"
            yield from look(ground, "verify", piece, sql, lock, partial(_read, ground, piece))


JOB = Job("verify", "read every block", plan)


def _read(ground: Ground, piece: Piece, names: tuple[str, ...]) -> tuple[Counts, bool]:
    report, is_cut = VerifyReport(piece.dataset.name), False

    def on_progress(so_far: VerifyReport, total: int) -> None:
        nonlocal report
        report = so_far
        ground.say(f"verify {piece}: {so_far.blocks:,} of {total:,} blocks")
        if ground.left is not None and ground.left <= 0 and so_far.blocks < total:
            raise Stopped

    try:
        report = ground.store.verify(*piece.asked(names), on_progress=on_progress)
    except Stopped:
        is_cut = True
    if report.damaged:
        said = "; ".join(
            f"{d.series!r} {d.span}: {', '.join(d.problems)}; {d.remedy}"
            for d in report.damaged[:5]
        )
        count = len(report.damaged)
        raise DatabaseError(f"{counted(count, 'damaged blocks')}: {said}")
    return {"blocks_read": report.blocks, "points_decoded": report.points}, is_cut
