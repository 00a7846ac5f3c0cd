"""The retention job: drops what is older than a policy allows, and nothing that is needed still."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial

from psycopg.sql import Literal

from toolkit.dataset import Dataset
from toolkit.ddl import blocks_table
from toolkit.errors import Busy, DatabaseError
from toolkit.retaining import age_us
from toolkit.statements import compose, name
from toolkit.timegrid import Span, iso, to_datetime, to_us
from toolkit_maintenance import dropping
from toolkit_maintenance.archive import archive, path_of
from toolkit_maintenance.dropping import Table
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Job, Skip


@dataclass(frozen=True, slots=True)
class _Part:
    """What lies in one time range: a partition of rows, one of blocks, or both."""

    span: Span
    rows: Table | None = None
    blocks: Table | None = None
    has_rows: bool = False
    has_blocks: bool = False


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield what finishes a run that was cut, then what is past: points first, then rollups."""
    for dataset in ground.datasets():
        relations = [f"{dataset.name}_{step}" for step in dataset.ladder]
        for parent in (dataset.name, blocks_table(dataset.name), *relations):
            is_due = partial(_is_due, ground, dataset, parent)
            yield from dropping.leftovers(ground, dataset, parent, is_due)
        if dataset.retain.of_points:
            mark = yield from _points(ground, dataset)
            if mark is not None and dataset.retain.rollups:
                yield from _rollups(ground, dataset, mark)


JOB = Job("retention", "drop points and rollups that are past their age", plan)


def _points(ground: Ground, dataset: Dataset) -> Generator[Act | Skip, None, int | None]:
    """Yield the freezing of what is past, and its dropping; return the mark there is then."""
    dataset_id, frozen = _frozen(ground, dataset)
    due = []
    for part in _parts(ground, dataset):
        found = _due(dataset, part, to_us(ground.now))
        if isinstance(found, Skip):
            yield found
        elif found:
            due.append((part.span, found))
    if not due:
        return frozen
    # a mark is an edge of every rollup: what ends inside a bucket of one waits
    edge = max(span.end for span, _ in due)
    mark = dataset.grids[-1].floor_one(edge) if dataset.grids else edge
    if frozen is None or mark > frozen:
        if refusal := _refusal(ground, dataset, dataset_id, mark):
            yield Skip(f"{dataset.name} before {iso(mark)}", refusal)
            mark = frozen if frozen is not None else -(2**62)
        else:
            yield _freezing(ground, dataset, dataset_id, mark)
    else:
        mark = frozen
    for span, tables in due:
        if span.end <= mark:
            yield _dropping(ground, dataset, span, tables)
    return mark


def _parts(ground: Ground, dataset: Dataset) -> list[_Part]:
    """Return the ranges that are past some age of points, oldest first."""
    ages = [age_us(a) for a in (dataset.retain.rows, dataset.retain.blocks) if a]
    edge = to_us(ground.now) - min(ages)
    parts: dict[Span, _Part] = {}
    for kind, parent in (("rows", dataset.name), ("blocks", blocks_table(dataset.name))):
        for table in dropping.tables(ground, parent):
            if table.span.end <= edge and not table.is_pending:
                holds = compose("blocks/holds_rows", partition=ground.table(table.name))
                found = {kind: table, f"has_{kind}": ground.direct.fetch(holds)[0][0]}
                part = parts.get(table.span, _Part(table.span))
                parts[table.span] = replace(part, **found)
    return sorted(parts.values(), key=lambda p: p.span.start)


def _due(dataset: Dataset, part: _Part, now: int) -> tuple[Table, ...] | Skip:
    """Return the tables of a range that may go; rows and blocks each by their own age."""
    retain = dataset.retain

    def is_past(age: str) -> bool:
        return bool(age) and part.span.end <= now - age_us(age)

    both = tuple(t for t in (part.rows, part.blocks) if t is not None)
    if part.has_blocks:
        if not is_past(retain.blocks):
            return ()
        # late points wait in rows for their blocks: with them they go, unless rows live longer
        stays = part.has_rows and not is_past(retain.rows)
        return tuple(t for t in both if not (stays and t is part.rows))
    if not part.has_rows:
        waits = dataset.compress_after and not is_past(retain.blocks)  # for points that come late
        return () if waits else both
    if not is_past(retain.rows):
        return ()
    if dataset.compress_after:
        why = "its points are past their age in rows, and not in blocks yet; run: toolkit compress"
        return Skip(f"{dataset.name} {part.span}", why)
    return both


def _is_due(ground: Ground, dataset: Dataset, parent: str, table: str, end: int) -> bool:
    """Whether a table that was detached, of a time up to ``end``, is past its age still."""
    retain = dataset.retain
    edge = to_us(ground.now) - end
    if parent == blocks_table(dataset.name):
        ages = [retain.blocks]
    elif parent != dataset.name:
        ages = [retain.of_rollup(parent.removeprefix(f"{dataset.name}_"))]
    elif _holds(ground, table):
        ages = [retain.rows, *([retain.blocks] if dataset.compress_after else [])]
    else:
        return 0 < retain.of_points <= edge
    return all(age and age_us(age) <= edge for age in ages)


def _holds(ground: Ground, table: str) -> bool:
    holds = compose("blocks/holds_rows", partition=ground.table(table))
    is_held: bool = ground.direct.fetch(holds)[0][0]
    return is_held


def _frozen(ground: Ground, dataset: Dataset) -> tuple[int, int | None]:
    row = ground.direct.fetch(
        compose("retention/find_mark", dataset=ground.table("dataset")), {"dataset": dataset.name}
    )[0]
    return row[0], to_us(row[1]) if row[1] is not None else None


def _refusal(ground: Ground, dataset: Dataset, dataset_id: int, mark: int) -> str:
    """Return why points before a mark may not go yet; empty: they may."""
    if not dataset.ladder:
        return ""
    parts = {key: ground.table(key) for key in ("dataset", "rollup")}
    statement = compose(
        "retention/look_at_changes", log=ground.table(f"{dataset.name}_log"), **parts
    )
    params = {"dataset_id": dataset_id, "before": to_datetime(mark)}
    unfollowed, systems = ground.direct.fetch(statement, params)[0]
    if unfollowed:
        return (
            f"{unfollowed:,} changes of before are not in the rollups yet; "
            f"run: toolkit refresh {dataset.name}"
        )
    try:
        here = ground.direct.fetch(compose("session/identify_server"))[0][0]
    except DatabaseError:  # not told: then nobody was told it before
        return ""
    if any(s not in (None, here) for s in systems or ()):
        return (
            f"the database was restored since its rollups were; run: toolkit refresh {dataset.name}"
        )
    return ""


def _freezing(ground: Ground, dataset: Dataset, dataset_id: int, mark: int) -> Act:
    what = f"freeze {dataset.name} before {iso(mark)}"
    parts = {key: ground.table(key) for key in ("dataset", "rollup")}
    log = ground.table(f"{dataset.name}_log")
    statements = [
        compose("retention/lock_changes", points=ground.table(dataset.name), log=log),
        compose(
            "retention/freeze_points",
            log=log,
            dataset_id=Literal(dataset_id),
            mark=Literal(to_datetime(mark).isoformat()),
            **parts,
        ),
    ]

    def do() -> Counts:
        ground.ddl(what, statements)
        _check_frozen(ground, dataset, mark)
        return {"marks_moved": 1}

    lock = f"SHARE on {dataset.name} and {dataset.name}_log, for a moment"
    return Act(what, texts(statements), lock, do, why="rollups stand for what is dropped")


def _check_frozen(ground: Ground, dataset: Dataset, end: int) -> None:
    _, frozen = _frozen(ground, dataset)
    if frozen is None or frozen < end:
        raise Busy(
            f"{dataset.name} is not frozen before {iso(end)}: something was written there that the "
            "rollups have not followed yet; nothing was dropped, the next run tries again"
        )


def _dropping(ground: Ground, dataset: Dataset, span: Span, tables: tuple[Table, ...]) -> Act:
    names = " and ".join(t.name for t in tables)
    is_kept = bool(ground.options.retain_export)
    path = path_of(ground, dataset, tables[0].name) if is_kept else None
    what = f"drop {names}, {span}" + (f", once its points are in {path}" if path else "")
    of = {t.parent: t.name for t in tables}

    def do() -> Counts:
        _check_frozen(ground, dataset, span.end)
        counts = {"tables_dropped": len(tables)}
        if path is not None:
            rows, blocks = of.get(dataset.name), of.get(blocks_table(dataset.name))
            counts["points_exported"] = archive(ground, dataset, span, path, rows, blocks)
        for table in tables:
            dropping.drop(ground, dataset, table)
        return counts

    sql = tuple(s for t in tables for s in dropping.statements(ground, dataset, t))
    lock = "; ".join(t.lock for t in tables)
    kept = dataset.retain.rows if tables[0].parent == dataset.name else dataset.retain.blocks
    why = f"kept for {kept or dataset.retain.blocks}"
    return Act(what, sql, lock, do, sum(t.bytes for t in tables), why)


def _rollups(ground: Ground, dataset: Dataset, mark: int) -> Iterator[Act]:
    """Yield the dropping of rollups that are past their age, each once its points are frozen."""
    statement = compose(
        "retention/list_rollups", **{k: ground.table(k) for k in ("dataset", "rollup")}
    )
    for rollup_id, step, relation in ground.direct.fetch(statement, {"dataset": dataset.name}):
        age = dataset.retain.of_rollup(step)
        if not age:
            continue
        edge = min(to_us(ground.now) - age_us(age), mark)
        for table in dropping.tables(ground, relation):
            if table.span.end <= edge and not table.is_pending:
                yield _forgetting(ground, dataset, rollup_id, table, age)


def _forgetting(ground: Ground, dataset: Dataset, rollup_id: int, table: Table, age: str) -> Act:
    note = compose(
        "retention/let_buckets_go",
        rollup=name(ground.schema, "rollup"),
        rollup_id=Literal(rollup_id),
        mark=Literal(to_datetime(table.span.end).isoformat()),
    )
    what = f"drop {table.name}, {table.span}"

    def do() -> Counts:
        _check_frozen(ground, dataset, table.span.end)
        ground.ddl(what, [note])
        dropping.drop(ground, dataset, table)
        return {"tables_dropped": 1}

    sql = (*texts([note]), *dropping.statements(ground, dataset, table))
    return Act(what, sql, table.lock, do, table.bytes, f"kept for {age}")
