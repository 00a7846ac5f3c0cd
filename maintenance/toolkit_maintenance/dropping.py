"""Dropping partitions beside readers and writers: marked, detached, told of, dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from psycopg.sql import SQL, Literal

from toolkit.dataset import Dataset
from toolkit.ddl import blocks_table
from toolkit.drivers import Rows
from toolkit.errors import Busy, DatabaseError
from toolkit.partitions import Partition
from toolkit.statements import Part, compose
from toolkit.timegrid import Span, iso, to_datetime, to_us
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Skip

_MARK = "retention drops this table, of before {}; a run that was cut is finished by the next"
"""The comment of what is being dropped: an orphan without it is somebody else's."""
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", r"(\S+)"))


Stuck = dict[str, str]
"""The tables whose partition could not be detached in this run, by which: no other can be, then."""


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


def waiting(tables: Iterable[Table], stuck: Stuck) -> str:
    """Return why partitions cannot be detached in this run; empty: they can.

    A table takes one detach at a time, and who is in the way of one is in that of the next.
    """
    for table in tables:
        if (first := stuck.get(table.parent)) is not None:
            return f"{first} has to be detached from {table.parent} first; the next run goes on"
    return ""


def finishing(
    ground: Ground, parent: str, partition: str, size: int, stuck: Stuck | None = None
) -> Act:
    """Return what finishes a detach that somebody began; where it cannot it notes that."""
    what = f"finish the detaching of {partition} from {parent}"
    statement = _finalize(ground, parent, partition)

    def do() -> Counts:
        try:
            ground.ddl(what, [statement], together=False)
        except Busy:
            if stuck is not None:
                stuck[parent] = partition
            raise
        return {"detaches_finished": 1}

    lock = f"SHARE UPDATE EXCLUSIVE on {parent}, ACCESS EXCLUSIVE on {partition}"
    why = "somebody began to detach it and was interrupted: it can be neither used nor dropped"
    return Act(what, texts([statement]), lock, do, size, why)


def orphans(ground: Ground, parents: list[str]) -> Rows:
    """Return (name, parent, bytes, comment) of tables called as partitions, which are none."""
    params = {"schema": ground.schema, "parents": parents}
    return ground.direct.fetch(compose("partition/list_orphans"), params)


def leftovers(
    ground: Ground,
    dataset: Dataset,
    parent: str,
    is_due: Callable[[str, int], bool],
    stuck: Stuck,
) -> Iterator[Act | Skip]:
    """Yield what finishes the dropping that a run began and was kept from.

    ``is_due`` tells of a table, and the end of its time, whether it is to be dropped still.
    """
    for table in tables(ground, parent):
        if table.is_pending:
            yield finishing(ground, parent, table.name, table.bytes, stuck)
    for orphan, _, size, comment in orphans(ground, [parent]):
        marked = _MARKED.fullmatch(comment or "")
        if marked is None:
            continue
        if not is_due(orphan, to_us(datetime.fromisoformat(marked[1]))):
            why = (
                "it was detached to be dropped, and the policy of now keeps it; "
                f"ALTER TABLE {parent} ATTACH PARTITION it, or drop it"
            )
            yield Skip(orphan, why, is_warning=True)
            continue
        what = f"drop {orphan}, which was detached from {parent} before"

        def drop_it(orphan: str = orphan) -> Counts:
            _drop_detached(ground, dataset, parent, orphan)
            return {"tables_dropped": 1}

        sql = _last(ground, dataset, parent, orphan)
        yield Act(what, sql, f"ACCESS EXCLUSIVE on {orphan}", drop_it, size)


def statements(ground: Ground, dataset: Dataset, table: Table) -> tuple[str, ...]:
    """Return what dropping a partition runs."""
    first = [_mark(ground, table), _detach(ground, table)]
    return (*texts(first), *_last(ground, dataset, table.parent, table.name))


def drop(ground: Ground, dataset: Dataset, table: Table, stuck: Stuck) -> None:
    """Drop a partition; cut at any statement, :func:`leftovers` and this finish it.

    Where it cannot be detached that is noted for its table's other partitions.
    """
    what = f"drop {table.name}"
    ground.ddl(what, [_mark(ground, table)])
    try:
        _take_out(ground, table, what)
    except (Busy, DatabaseError) as error:
        if isinstance(error, Busy):
            stuck[table.parent] = table.name
        if not _is_pending(ground, table):  # what is half out goes with the next run
            with suppress(Busy, DatabaseError):
                ground.ddl(what, [_comment(ground, table, SQL("NULL"))])
        raise
    _drop_detached(ground, dataset, table.parent, table.name)


def _take_out(ground: Ground, table: Table, what: str) -> None:
    for left in range(ground.patience.tries - 1, -1, -1):
        try:
            # its first lock may have to be waited for again; what comes then is finished below
            once = replace(ground.patience, tries=1)
            ground.direct.patiently([_detach(ground, table)], what, once, together=False)
            return
        except Busy:
            if _is_pending(ground, table):
                finish = _finalize(ground, table.parent, table.name)
                ground.ddl(what, [finish], together=False)
                return
            if not left:
                raise


def _is_pending(ground: Ground, table: Table) -> bool:
    return any(t.name == table.name and t.is_pending for t in tables(ground, table.parent))


def _drop_detached(ground: Ground, dataset: Dataset, parent: str, table: str) -> None:
    log = _log(ground, dataset, parent, table)
    # told of once it is out of sight, before it is gone
    ground.direct.execute(log, _cells(dataset), timeout=ground.timeout)
    gone = compose("partition/drop_partition", partition=ground.table(table))
    ground.ddl(f"drop {table}", [gone])


def _last(ground: Ground, dataset: Dataset, parent: str, table: str) -> tuple[str, ...]:
    gone = compose("partition/drop_partition", partition=ground.table(table))
    log = _log(ground, dataset, parent, table)
    return (*texts([log], _cells(dataset)), *texts([gone]))


def _cells(dataset: Dataset) -> dict[str, object]:
    """Return the cells of the change log, as ``_log`` takes them."""
    grid = dataset.log_step
    assert grid.width is not None
    width = timedelta(microseconds=grid.width)
    return {"width": width, "origin": to_datetime(grid.origin)}


def _log(ground: Ground, dataset: Dataset, parent: str, table: str) -> bytes:
    """Return what tells the change log, and so caches, of points or a rollup's buckets that go."""
    is_blocks = parent == blocks_table(dataset.name)
    log = ground.table(f"{dataset.name}_log")
    how = "partition/log_blocks" if is_blocks else "retention/log_rows"
    return compose(how, log=log, partition=ground.table(table))


def _mark(ground: Ground, table: Table) -> bytes:
    return _comment(ground, table, Literal(_MARK.format(iso(table.span.end))))


def _comment(ground: Ground, table: Table, comment: Part) -> bytes:
    return compose("retention/mark_table", partition=ground.table(table.name), mark=comment)


def _detach(ground: Ground, table: Table) -> bytes:
    parent, part = ground.table(table.parent), ground.table(table.name)
    return compose("retention/detach_partition", parent=parent, partition=part)


def _finalize(ground: Ground, parent: str, partition: str) -> bytes:
    tables = {"parent": ground.table(parent), "partition": ground.table(partition)}
    return compose("partition/finalize_detach", **tables)
