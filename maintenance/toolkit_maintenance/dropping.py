"""Dropping partitions beside readers and writers: marked, detached, told of, dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from psycopg.sql import Literal

from toolkit.dataset import Dataset
from toolkit.ddl import blocks_table
from toolkit.drivers import Params
from toolkit.errors import Busy
from toolkit.partitions import Partition
from toolkit.statements import compose, name
from toolkit.timegrid import Span, to_datetime
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts

MARK = "retention drops this table; a run that was cut is finished by the next"
"""The comment of what is being dropped: an orphan without it is somebody else's."""


@dataclass(frozen=True, slots=True)
class Table:
    """A partition of ``parent``; ``is_pending``: somebody began to detach it."""

    name: str
    parent: str
    span: Span
    bytes: int
    is_pending: bool

    @property
    def lock(self) -> str:
        """What dropping it locks: nothing that readers and writers of the parent wait for."""
        return f"SHARE UPDATE EXCLUSIVE on {self.parent}, ACCESS EXCLUSIVE on {self.name}"


def tables(ground: Ground, parent: str) -> list[Table]:
    """Return the partitions of a table, oldest first."""
    params = {"parent": ground.table(parent).as_string(None)}
    found = []
    for row in ground.direct.fetch(compose("retention/list_tables"), params):
        span = Partition.from_row((row[0], row[1], row[2], 0)).span
        found.append(Table(row[0], parent, span, row[2], row[3]))
    return sorted(found, key=lambda t: t.span.start)


def leftovers(ground: Ground, dataset: Dataset, parent: str) -> Iterator[Act]:
    """Yield what finishes the dropping that a run began and was kept from."""
    for table in tables(ground, parent):
        if table.is_pending:
            what = f"finish the detaching of {table.name} from {parent}"
            finish = _finalize(ground, table)

            def finalize(what: str = what, finish: bytes = finish) -> Counts:
                ground.ddl(what, [finish], together=False)
                return {"detaches_finished": 1}

            yield Act(what, texts([finish]), table.lock, finalize, table.bytes)
    params = {"schema": name(ground.schema).as_string(None), "parent": parent, "mark": MARK}
    for orphan, size in ground.direct.fetch(compose("retention/list_orphans"), params):
        what = f"drop {orphan}, which was detached from {parent} before"

        def drop_it(orphan: str = orphan) -> Counts:
            _drop_detached(ground, dataset, parent, orphan)
            return {"tables_dropped": 1}

        sql = texts(_last(ground, dataset, parent, orphan))
        yield Act(what, sql, f"ACCESS EXCLUSIVE on {orphan}", drop_it, size)


def statements(ground: Ground, dataset: Dataset, table: Table) -> tuple[str, ...]:
    """Return what dropping a partition runs."""
    first = [_mark(ground, table), _detach(ground, table)]
    return texts([*first, *_last(ground, dataset, table.parent, table.name)])


def drop(ground: Ground, dataset: Dataset, table: Table) -> None:
    """Drop a partition; cut at any statement, :func:`leftovers` and this finish it."""
    what = f"drop {table.name}"
    ground.ddl(what, [_mark(ground, table)])
    for left in range(ground.patience.tries - 1, -1, -1):
        try:
            # its first lock may have to be waited for again; what comes then is finished below
            once = replace(ground.patience, tries=1)
            ground.direct.patiently([_detach(ground, table)], what, once, together=False)
            break
        except Busy:
            if _is_pending(ground, table):
                ground.ddl(what, [_finalize(ground, table)], together=False)
                break
            if not left:
                raise
    _drop_detached(ground, dataset, table.parent, table.name)


def _is_pending(ground: Ground, table: Table) -> bool:
    return any(t.name == table.name and t.is_pending for t in tables(ground, table.parent))


def _drop_detached(ground: Ground, dataset: Dataset, parent: str, table: str) -> None:
    log = _log(ground, dataset, parent, table)
    if log is not None:  # told of once it is out of sight, before it is gone
        grid = dataset.log_step
        assert grid.width is not None
        width = timedelta(microseconds=grid.width)
        params: Params = {"width": width, "origin": to_datetime(grid.origin)}
        ground.direct.execute(log, params, timeout=ground.timeout)
    gone = compose("partition/drop_partition", partition=ground.table(table))
    ground.ddl(f"drop {table}", [gone])


def _last(ground: Ground, dataset: Dataset, parent: str, table: str) -> list[bytes]:
    log = _log(ground, dataset, parent, table)
    gone = compose("partition/drop_partition", partition=ground.table(table))
    return [gone] if log is None else [log, gone]


def _log(ground: Ground, dataset: Dataset, parent: str, table: str) -> bytes | None:
    """Return what tells the change log of points that go; None of a rollup's buckets."""
    how = {dataset.name: "retention/log_rows", blocks_table(dataset.name): "partition/log_blocks"}
    if parent not in how:
        return None
    log = ground.table(f"{dataset.name}_log")
    return compose(how[parent], log=log, partition=ground.table(table))


def _mark(ground: Ground, table: Table) -> bytes:
    part = ground.table(table.name)
    return compose("retention/mark_table", partition=part, mark=Literal(MARK))


def _detach(ground: Ground, table: Table) -> bytes:
    parent, part = ground.table(table.parent), ground.table(table.name)
    return compose("retention/detach_partition", parent=parent, partition=part)


def _finalize(ground: Ground, table: Table) -> bytes:
    parent, part = ground.table(table.parent), ground.table(table.name)
    return compose("partition/finalize_detach", parent=parent, partition=part)
