"""The cleanup job: removes what has expired or was left behind, and tells of slots nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from psycopg.sql import Literal

from toolkit.dataset import Dataset
from toolkit.ddl import blocks_table
from toolkit.errors import counted
from toolkit.statements import Part, compose
from toolkit.timegrid import EARLIEST, Step, to_us
from toolkit_maintenance.doctor.snapshots import snapshots
from toolkit_maintenance.dropping import orphans
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Job, Skip
from toolkit_maintenance.looked import place_of_gap
from toolkit_maintenance.refresh import prune
from toolkit_maintenance.slots import Slot
from toolkit_maintenance.tables import list_tables

_FADED = 0.01  # reads a day: what is asked less often is not popular


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield the removal of old records, followed change log and empty tables left behind."""
    if not ground.targets:
        yield from _removals(ground)
        yield from snapshots(ground)
        yield from _slots(ground)
    for dataset in ground.datasets():
        yield from prune(ground, dataset)
        yield from _looked(ground, dataset)
    yield from _orphans(ground)


JOB = Job("cleanup", "remove expired records and what was left behind", plan)


def _removals(ground: Ground) -> Iterator[Act]:
    keep = timedelta(microseconds=Step.parse(ground.options.keep_runs).approximate_us)
    removals: tuple[tuple[str, str, str, dict[str, Part]], ...] = (
        (
            "jobs/forget_runs",
            "jobs/count_old_runs",
            f"forget runs of jobs older than {ground.options.keep_runs}",
            {"runs": ground.table("job_run"), "before": Literal(ground.now - keep)},
        ),
        (
            "jobs/forget_popularity",
            "jobs/count_faded",
            "forget what is hardly read any more",
            {"popularity": ground.table("popularity"), "least": Literal(_FADED)},
        ),
    )
    for file, counting, what, parts in removals:
        count = ground.direct.fetch(compose(counting, **parts))[0][0]
        if count:
            statement = compose(file, **parts)
            label = f"{file.rpartition('_')[2]}_forgotten"

            def do(statement: bytes = statement, label: str = label) -> Counts:
                return {label: ground.direct.execute(statement)}

            table = "job_run" if "runs" in parts else "popularity"
            yield Act(
                what,
                texts([statement]),
                f"ROW EXCLUSIVE on {table}",
                do,
                why=counted(count, "rows"),
            )


def _looked(ground: Ground, dataset: Dataset) -> Iterator[Act]:
    """Yield the removal of what jobs noted of partitions that have gone since."""
    tables = {"looked": ground.table("looked_at"), "dataset": ground.table("dataset")}
    listing = compose("jobs/list_looked_starts", **tables)
    noted = {row[0] for row in ground.direct.fetch(listing, {"dataset": dataset.name})}
    if not noted:
        return
    parents = (dataset.name, blocks_table(dataset.name))
    spans = [t.span for t in list_tables(ground) if t.parent in parents and t.span is not None]
    edges = {span.start for span in spans}
    edges |= {place_of_gap(e) for e in {EARLIEST, *(span.end for span in spans)} - edges}
    gone = sorted(start for start in noted if to_us(start) not in edges)
    if gone:
        parts = {"of": Literal(dataset.name), "starts": Literal(gone)}
        statement = compose("jobs/forget_looked", **tables, **parts)

        def do() -> Counts:
            return {"looked_forgotten": ground.direct.execute(statement)}

        what = f"forget what was looked at in partitions of {dataset.name} that have gone"
        why = counted(len(gone), "partitions")
        yield Act(what, texts([statement]), "ROW EXCLUSIVE on looked_at", do, why=why)


def _orphans(ground: Ground) -> Iterator[Act | Skip]:
    """Yield tables that are called as partitions and are none: in the way of those to be made.

    Empty ones go; where there are points somebody has to say what becomes of them.
    """
    for dataset in ground.datasets():
        parents = [dataset.name, blocks_table(dataset.name)]
        parents += [f"{dataset.name}_{step}" for step in dataset.ladder]
        for table, parent, size, _ in orphans(ground, parents):
            part = ground.table(table)
            if ground.direct.fetch(compose("blocks/holds_rows", partition=part))[0][0]:
                why = (
                    f"holds rows ({size:,} bytes) and is no partition of {parent}, so that nobody "
                    f"reads them; ALTER TABLE {parent} ATTACH PARTITION it, or drop it"
                )
                yield Skip(table, why, is_warning=True)
                continue
            text = Literal(part.as_string(None))
            statement = compose("partition/drop_empty", table=part, text=text)
            what = f"drop the empty table {table}, which is no partition of {parent}"

            def do(what: str = what, statement: bytes = statement) -> Counts:
                ground.ddl(what, [statement])
                return {"tables_dropped": 1}

            yield Act(what, texts([statement]), f"ACCESS EXCLUSIVE on {table}", do, size)


def _slots(ground: Ground) -> Iterator[Skip]:
    """Yield the replication slots that nobody reads from; none is ever dropped."""
    slots = [Slot.from_row(row) for row in ground.direct.fetch(compose("doctor/list_slots"))]
    for slot in sorted((s for s in slots if s.is_idle), key=lambda s: (-s.kept, s.name)):
        if slot.is_lost:
            why = f"the server has cut off this {slot.kind} slot; who used it starts anew"
        else:
            held = f"{slot.kept:,} bytes of WAL"
            why = f"nobody reads from this {slot.kind} slot, which holds {held} back"
        yield Skip(f"slot {slot.name}", f"{why}; where that is for good: {slot.drop}", True)
