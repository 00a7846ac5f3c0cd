"""The compress job: moves points that are old by their dataset's policy from rows to blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from toolkit import reclaiming
from toolkit.dataset import Dataset
from toolkit.errors import CorruptBlock, SchemaError, Stopped, counted
from toolkit.partitions import Partition
from toolkit.statements import compose
from toolkit.tally import PackReport
from toolkit.timegrid import LATEST, Span, Step, to_datetime, to_us
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Job, Skip

_PAGE = 8_192


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield each partition of which points are older than ``compress_after`` and no blocks yet."""
    for dataset in ground.datasets():
        if dataset.compress_after:
            age = timedelta(microseconds=Step.parse(dataset.compress_after).approximate_us)
            yield from moves(ground, dataset, to_us(ground.now - age), only_late=False)
        elif ground.targets:
            yield Skip(
                dataset.name,
                "has no compress_after; set one: toolkit datasets set "
                f"{dataset.name} --compress-after 30d",
            )


JOB = Job("compress", "move old points to blocks", plan)


def moves(
    ground: Ground, dataset: Dataset, before: int, *, only_late: bool
) -> Iterator[Act | Skip]:
    """Yield each partition that has points to move, oldest first; what is cut once more."""
    refreshing: tuple[str, ...] = ()  # which goes before each; it is shown before the first
    for partition in ground.store.partitions(dataset.name):
        is_meant = partition.blocks if only_late else partition.span.start < before
        # without rows: no page but the first of its indexes, and of what holds long values
        if not is_meant or partition.bytes <= _PAGE * (2 + len(dataset.indexes)):
            continue
        start = to_datetime(partition.span.start)
        end = to_datetime(min(partition.span.end, before, LATEST))
        found, damage = PackReport(dataset.name), ""
        try:
            found = _report(ground, dataset, start, end, only_late=only_late, is_dry=True)
        except CorruptBlock as error:  # the act passes it over, does the others, and names it
            damage = str(error)
        except SchemaError:
            if is_there(ground, dataset, partition.span):
                raise
            continue
        # a run that was cut may have moved the last row, and not given back the space
        is_large = partition.bytes >= reclaiming.WORTH and partition.span.end <= before
        is_emptied = is_large and not found.points and not _holds_rows(ground, partition)
        if not (found.points or is_emptied or damage):
            continue
        why, (first, *others) = _shown(ground, dataset, partition, end, found, damage)
        if refreshing:
            sql = (f"-- after a refresh, as before the first partition\n{first}", *others)
        else:
            refreshing = ground.store.refresh_statements(dataset.name)
            sql = (*refreshing, f"-- after this refresh\n{first}", *others)
        done = [False]
        while not done[0]:
            yield _act(ground, dataset, partition, (start, end, only_late), found, sql, why, done)
            if ground.is_dry:
                break


def is_there(ground: Ground, dataset: Dataset, span: Span) -> bool:
    """Return whether nothing of a range was dropped meanwhile, as retention does beside others."""
    return span in {p.span for p in ground.store.partitions(dataset.name)}


def _holds_rows(ground: Ground, partition: Partition) -> bool:
    statement = compose("blocks/holds_rows", partition=ground.table(partition.name))
    return bool(ground.direct.fetch(statement)[0][0])


def _shown(
    ground: Ground,
    dataset: Dataset,
    partition: Partition,
    end: datetime,
    found: PackReport,
    damage: str,
) -> tuple[str, tuple[str, ...]]:
    """Return what speaks for moving points of a partition, and the statements that do it."""
    freeing: tuple[str, ...] = ()
    if partition.span.end <= to_us(end):
        vacuum, reindex = texts(reclaiming.statements(ground.schema, partition.name))
        freeing = (vacuum, f"-- where it is empty then\n{reindex}")
    if not (found.points or damage):
        return "it holds no rows any more, and its space was not given back", freeing
    spans = "1 span" if found.spans == 1 else f"{found.spans:,} spans, a transaction each"
    size = f"about {found.block_bytes:,} bytes as blocks"
    moving = ground.store.move_statements(dataset.name, to_datetime(partition.span.start), end)
    why = damage or f"{counted(found.points, 'points')} in {spans}; {size}"
    return why, (*moving, *freeing)


def _act(
    ground: Ground,
    dataset: Dataset,
    partition: Partition,
    what: tuple[datetime, datetime, bool],
    found: PackReport,
    sql: tuple[str, ...],
    why: str,
    done: list[bool],
) -> Act:
    start, end, only_late = what
    verb = "recompress" if only_late else "compress"

    def do() -> Counts | Skip:
        done[0] = True  # also where it fails: it is not tried for ever
        so_far = [PackReport(dataset.name)]

        def on_progress(report: PackReport, total: int) -> None:
            so_far[0] = report
            ground.say(f"{verb} {partition.name}: {report.points:,} of {found.points:,} points")
            if ground.left is not None and ground.left <= 0:
                raise Stopped

        try:
            report = _report(
                ground, dataset, start, end, only_late=only_late, on_progress=on_progress
            )
        except Stopped:  # each span is a transaction
            done[0] = False
            report = so_far[0]
        except SchemaError:
            if is_there(ground, dataset, partition.span):
                raise
            return Skip(f"{verb} {partition.name}", "it was dropped meanwhile")
        return {
            "points_moved": report.points,
            "blocks_made": report.blocks,
            "block_bytes": report.block_bytes,
            "row_bytes_freed": report.row_bytes,
            "spans_busy": report.busy,
            "series_waiting": report.waiting,
        }

    return Act(
        f"{verb} {partition.name}",
        sql,
        f"ROW EXCLUSIVE on {partition.name}; ACCESS EXCLUSIVE for a moment once it is empty",
        do,
        partition.bytes,
        why,
    )


def _report(
    ground: Ground,
    dataset: Dataset,
    start: datetime,
    end: datetime,
    *,
    only_late: bool,
    is_dry: bool = False,
    on_progress: Callable[[PackReport, int], None] = lambda report, total: None,
) -> PackReport:
    store = ground.store
    if only_late:
        return store.recompress(
            dataset.name, None, start, end, dry_run=is_dry, on_progress=on_progress
        )
    # gently: readers come first
    return store.compress(
        dataset.name, None, start, end, dry_run=is_dry, gently=True, on_progress=on_progress
    )
