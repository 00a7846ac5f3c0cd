"""The partitions job: makes partitions ahead of time, and says where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from psycopg.sql import SQL, Literal

from toolkit.dataset import Dataset
from toolkit.ddl import blocks_table
from toolkit.statements import compose, name
from toolkit.timegrid import Grid, Span, Step, iso, to_datetime, to_us
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Job, Skip


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield what finishes interrupted detaches, and what makes partitions that are missing."""
    for dataset in ground.datasets():
        for table in (dataset.name, blocks_table(dataset.name)):
            yield from _detaching(ground, table)
        yield from _ahead(ground, dataset)


JOB = Job("partitions", "make partitions ahead of time, and finish interrupted detaches", plan)


def _detaching(ground: Ground, table: str) -> Iterator[Act]:
    parent = ground.table(table)
    params = {"parent": parent.as_string(None)}
    for partition, size in ground.direct.fetch(compose("partition/list_detaching"), params):
        part = ground.table(partition)
        statement = compose("partition/finalize_detach", parent=parent, partition=part)
        what = f"finish the detaching of {partition} from {table}"

        def do(what: str = what, statement: bytes = statement) -> Counts:
            ground.ddl(what, [statement], together=False)
            return {"detaches_finished": 1}

        lock = f"SHARE UPDATE EXCLUSIVE on {table}, ACCESS EXCLUSIVE on {partition}"
        yield Act(what, texts([statement]), lock, do, size)


def _ahead(ground: Ground, dataset: Dataset) -> Iterator[Act | Skip]:
    there = [p.span for p in ground.store.partitions(dataset.name)]
    grid, present = Grid(Step.parse(dataset.partition)), to_us(ground.now)
    wanted, start = [], grid.floor_one(present)
    for _ in range(ground.options.ahead + 1):
        end = int(grid.edges(Span(start, start + 1))[1])
        wanted.append(Span(start, end))
        start = end
    missing = [s for s in wanted if s not in there]
    for span in missing:
        low, high = to_datetime(span.start), to_datetime(span.end)
        statement = SQL("SELECT {}({}, {}, {})").format(
            name(ground.schema, "ensure_partitions"),
            Literal(dataset.name),
            Literal(low.isoformat()),
            Literal(high.isoformat()),
        )
        text = statement.as_bytes(None)
        what = f"make the partition {span} of {dataset.name}"
        lock = f"SHARE UPDATE EXCLUSIVE on {dataset.name}, for a moment"
        yield Act(what, texts([text]), lock, partial(_make, ground, what, text))
    for before, after in pairwise(sorted([*there, *missing])):
        if before.end < after.start:
            why = f"no partition from {iso(before.end)} to {iso(after.start)}"
            yield Skip(dataset.name, why, is_warning=True)


def _make(ground: Ground, what: str, statement: bytes) -> Counts:
    ground.ddl(what, [statement])
    return {"partitions_made": 1}
