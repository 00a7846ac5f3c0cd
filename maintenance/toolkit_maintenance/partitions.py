"""The partitions job: makes partitions ahead of time, and says where one is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from psycopg.sql import SQL, Literal

from toolkit.dataset import Dataset
from toolkit.ddl import ROLLUP_PARTITION, blocks_table
from toolkit.errors import DatabaseError, counted
from toolkit.partitions import Partition
from toolkit.statements import Part, compose, name
from toolkit.timegrid import Grid, Span, Step, iso, to_datetime, to_us
from toolkit_maintenance import dropping
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Job, Skip


@dataclass(slots=True)
class _Table:
    """A partitioned table: its partitions' spans, and those (name, bytes) half detached."""

    name: str
    spans: set[Span] = field(default_factory=set)
    detaching: list[tuple[str, int]] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield what finishes interrupted detaches, and what makes partitions that are missing."""
    datasets = ground.datasets()
    tables = _tables(ground, datasets)
    for dataset in datasets:
        points = tables[dataset.name]
        rollups = [tables[f"{dataset.name}_{step}"] for step in dataset.ladder]
        for table in (points, tables[blocks_table(dataset.name)], *rollups):
            yield from (Skip(table.name, why, is_warning=True) for why in table.strange)
            for partition, size in table.detaching:
                yield dropping.finishing(ground, table.name, partition, size)
        wanted = _ahead(ground, dataset)
        yield from _made(ground, points, wanted, _ensure)
        years = _cover(ROLLUP_PARTITION, Span(wanted[0].start, wanted[-1].end))
        for table in rollups:
            yield from _made(ground, table, years, _add)
        for before, after in pairwise(sorted({*points.spans, *wanted})):
            if before.end < after.start:
                why = f"no partition from {iso(before.end)} to {iso(after.start)}"
                yield Skip(dataset.name, why, is_warning=True)


JOB = Job("partitions", "make partitions ahead of time, and finish interrupted detaches", plan)


def _tables(ground: Ground, datasets: list[Dataset]) -> dict[str, _Table]:
    names = [
        table
        for d in datasets
        for table in (d.name, blocks_table(d.name), *(f"{d.name}_{step}" for step in d.ladder))
    ]
    found = {table: _Table(table) for table in names}
    params = {"schema": name(ground.schema).as_string(None), "parents": names}
    rows = ground.direct.fetch(compose("partition/list_bounds"), params)
    for parent, partition, bound, is_detaching, size in rows:
        table = found[parent]
        if is_detaching:
            table.detaching.append((partition, size))
        elif bound is not None:
            try:
                table.spans.add(Partition.from_row((partition, bound, 0, 0)).span)
            except DatabaseError as error:
                table.strange.append(f"{partition}: {error}")
    return found


def _ahead(ground: Ground, dataset: Dataset) -> list[Span]:
    """Return the spans that there shall be: the present one, and those after it."""
    present = to_us(ground.now)
    spans = _cover(dataset.partition, Span(present, present + 1))
    for _ in range(ground.options.ahead):
        end = spans[-1].end
        spans += _cover(dataset.partition, Span(end, end + 1))
    return spans


def _cover(every: str, span: Span) -> list[Span]:
    """Return the partitions of a step that a span lies in.

    >>> [str(s) for s in _cover("1y", Span(0, 1))]
    ['[1970-01-01T00:00Z, 1971-01-01T00:00Z)']
    """
    edges = [int(e) for e in Grid(Step.parse(every)).edges(span)]
    return [Span(low, high) for low, high in pairwise(edges)]


def _made(
    ground: Ground, table: _Table, wanted: list[Span], call: Callable[[Ground, str, Span], bytes]
) -> Iterator[Act]:
    """Yield what makes the missing ones of some spans: an act for those that follow each other."""
    runs: list[list[Span]] = []
    for span in wanted:
        if span in table.spans:
            continue
        if runs and runs[-1][-1].end == span.start:
            runs[-1].append(span)
        else:
            runs.append([span])
    for run in runs:
        whole = Span(run[0].start, run[-1].end)
        count = counted(len(run), "partitions")
        what = f"make {count} of {table.name} for {whole}"
        begin = compose("partition/begin_adding", parent=ground.table(table.name))
        statements = [begin, call(ground, table.name, whole)]
        do = partial(_do, ground, what, statements, {"partitions_made": len(run)})
        why = "or the first to write there waits for it to be made"
        lock = f"SHARE UPDATE EXCLUSIVE on {table.name}"
        yield Act(what, ("BEGIN", *texts(statements), "COMMIT"), lock, do, why=why)


def _ensure(ground: Ground, dataset: str, span: Span) -> bytes:
    return _call(ground, "ensure_partitions", Literal(dataset), *_bounds(span))


def _add(ground: Ground, relation: str, span: Span) -> bytes:
    given = (Literal(relation), Literal(ROLLUP_PARTITION), *_bounds(span), SQL("NULL"))
    return _call(ground, "add_partitions_v1", *given)


def _bounds(span: Span) -> tuple[Part, Part]:
    low, high = (to_datetime(at).isoformat() for at in (span.start, span.end))
    return Literal(low), Literal(high)


def _call(ground: Ground, function: str, *given: Part) -> bytes:
    called = SQL("SELECT {}({})").format(name(ground.schema, function), SQL(", ").join(given))
    return called.as_bytes(None)


def _do(ground: Ground, what: str, statements: list[bytes], counts: Counts) -> Counts:
    ground.ddl(what, statements)
    return counts
