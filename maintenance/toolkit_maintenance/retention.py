"""The retention job: drops what is older than a policy allows, and nothing that is needed still."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from psycopg.sql import Literal

from toolkit.dataset import Dataset
from toolkit.ddl import blocks_table
from toolkit.errors import Busy, DatabaseError, counted
from toolkit.retaining import age_us
from toolkit.statements import compose, name
from toolkit.timegrid import LATEST, Span, iso, to_datetime, to_us
from toolkit_maintenance import dropping
from toolkit_maintenance.archive import archive, path_of
from toolkit_maintenance.dropping import Stuck, Table
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

    @property
    def is_empty(self) -> bool:
        return not (self.has_rows or self.has_blocks)

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(t for t in (self.rows, self.blocks) if t is not None)


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield what finishes a run that was cut, then what is past: points first, then rollups."""
    stuck: Stuck = {}
    for dataset in ground.datasets():
        relations = [f"{dataset.name}_{step}" for step in dataset.ladder]
        for parent in (dataset.name, blocks_table(dataset.name), *relations):
            is_due = partial(_is_due, ground, dataset, parent)
            yield from dropping.leftovers(ground, dataset, parent, is_due, stuck)
        if dataset.retain.of_points:
            mark = yield from _points(ground, dataset, stuck)
            if mark is not None and dataset.retain.rollups:
                yield from _rollups(ground, dataset, mark, stuck)


JOB = Job("retention", "drop points and rollups that are past their age", plan)


def _points(
    ground: Ground, dataset: Dataset, stuck: Stuck
) -> Generator[Act | Skip, None, int | None]:
    """Yield the freezing of what is past, and its dropping; return the mark there is then."""
    dataset_id, frozen = _frozen(ground, dataset)
    due, kept = [], LATEST
    for part in _parts(ground, dataset):
        found = _due(dataset, part, to_us(ground.now))
        if found is True:
            due.append(part)
            continue
        if isinstance(found, Skip):
            yield found
        if not part.is_empty and (frozen is None or part.span.end > frozen):
            kept = min(kept, part.span.start)
    # no further than what is kept; and for points only: what is empty may be written to
    edges = [p.span.end for p in due if not p.is_empty and p.span.end <= kept]
    mark = frozen
    if edges:
        # a mark is an edge of every rollup: what ends inside a bucket of one waits
        edge = dataset.grids[-1].floor_one(max(edges)) if dataset.grids else max(edges)
        if frozen is None or edge > frozen:
            refusal, since = _look(ground, dataset, dataset_id, edge)
            if refusal:
                yield Skip(f"{dataset.name} before {iso(edge)}", refusal)
            else:
                yield _freezing(ground, dataset, dataset_id, edge, since)
                mark = edge
    for part in due:
        if mark is not None and part.span.end <= mark:
            yield _dropping(ground, dataset, part, stuck)
        elif part.span.end > kept and not part.is_empty:
            why = f"is past its age, and waits for older points that are kept, from {iso(kept)} on"
            yield Skip(f"{dataset.name} {part.span}", why, is_warning=True)
    return mark


def _parts(ground: Ground, dataset: Dataset) -> list[_Part]:
    """Return the ranges that there are tables of, oldest first."""
    ages = [age_us(a) for a in (dataset.retain.rows, dataset.retain.blocks) if a]
    edge = to_us(ground.now) - min(ages)
    parts: dict[Span, _Part] = {}
    for kind, parent in (("rows", dataset.name), ("blocks", blocks_table(dataset.name))):
        for table in dropping.tables(ground, parent):
            if not table.is_pending:
                # what is past no age stays, empty or not
                has_points = table.span.end > edge or _holds(ground, table.name)
                found: dict[str, Any] = {kind: table, f"has_{kind}": has_points}
                part = parts.get(table.span, _Part(table.span))
                parts[table.span] = replace(part, **found)
    return sorted(parts.values(), key=lambda p: p.span.start)


def _due(dataset: Dataset, part: _Part, now: int) -> bool | Skip:
    """Whether a range may go: all points in it are past their age, in rows and in blocks."""
    retain, what = dataset.retain, f"{dataset.name} {part.span}"

    def is_past(age: str) -> bool:
        return bool(age) and part.span.end <= now - age_us(age)

    if part.is_empty:
        return part.span.end <= now - retain.of_points
    if part.has_blocks:
        if not is_past(retain.blocks):
            return False
        if part.has_rows and not is_past(retain.rows):
            why = "its blocks are past their age, and late points in rows are not; "
            return Skip(what, f"{why}run: toolkit compress")
        return True
    if not is_past(retain.rows):
        return False
    if dataset.compress_after:
        why = "its points are past their age in rows, and not in blocks yet; run: toolkit compress"
        return Skip(what, why)
    return True


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


def _looked_at(ground: Ground, part: _Part) -> _Part:
    rows, blocks = (t is not None and _holds(ground, t.name) for t in (part.rows, part.blocks))
    return replace(part, has_rows=rows, has_blocks=blocks)


def _frozen(ground: Ground, dataset: Dataset) -> tuple[int, int | None]:
    row = ground.direct.fetch(
        compose("retention/find_mark", dataset=ground.table("dataset")), {"dataset": dataset.name}
    )[0]
    return row[0], to_us(row[1]) if row[1] is not None else None


def _look(ground: Ground, dataset: Dataset, dataset_id: int, mark: int) -> tuple[str, str]:
    """Return why points before a mark may not go yet; empty: they may, if nothing came since.

    The second is a transaction id: what was logged by older ones has been looked at.
    """
    parts = {key: ground.table(key) for key in ("dataset", "rollup")}
    statement = compose(
        "retention/look_at_changes", log=ground.table(f"{dataset.name}_log"), **parts
    )
    params = {"dataset_id": dataset_id, "before": to_datetime(mark)}
    unfollowed, systems, since = ground.direct.fetch(statement, params, timeout=ground.timeout)[0]
    if unfollowed:
        return (
            f"{counted(unfollowed, 'changes')} of before {'is' if unfollowed == 1 else 'are'} not "
            f"in the rollups yet; run: toolkit refresh {dataset.name}"
        ), since
    try:
        here = ground.direct.fetch(compose("session/identify_server"))[0][0]
    except DatabaseError:  # not told: then nobody was told it before
        return "", since
    if any(s not in (None, here) for s in systems or ()):
        return (
            f"the database was restored since its rollups were; run: toolkit refresh {dataset.name}"
        ), since
    return "", since


def _freezing(ground: Ground, dataset: Dataset, dataset_id: int, mark: int, since: str) -> Act:
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
            since=Literal(since),
            **parts,
        ),
    ]

    def do() -> Counts:
        ground.ddl(what, statements)
        _check_frozen(ground, dataset, mark)
        return {"marks_moved": 1}

    tables = f"{dataset.name} and {dataset.name}_log"
    lock = f"SHARE on {tables}, for a look at what was logged since this was planned"
    return Act(what, texts(statements), lock, do, why="rollups stand for what is dropped")


def _check_frozen(ground: Ground, dataset: Dataset, end: int) -> None:
    dataset_id, frozen = _frozen(ground, dataset)
    if frozen is None or frozen < end:
        why, _ = _look(ground, dataset, dataset_id, end)
        why = why or "what was to freeze it did not get to"
        raise Busy(
            f"{dataset.name} is not frozen before {iso(end)}: {why}; nothing was dropped, the next "
            "run tries again"
        )


def _dropping(ground: Ground, dataset: Dataset, part: _Part, stuck: Stuck) -> Act:
    span, tables = part.span, part.tables
    names = " and ".join(t.name for t in tables)
    is_kept = bool(ground.options.retain_export)
    path = path_of(ground, dataset, span) if is_kept else None
    what = f"drop {names}, {span}" + (f", once its points are in {path}" if path else "")

    def do() -> Counts | Skip:
        if why := dropping.waiting(tables, stuck):
            return Skip(what, why, is_warning=True, is_busy=True)
        _check_frozen(ground, dataset, span.end)
        if _due(dataset, _looked_at(ground, part), to_us(ground.now)) is not True:
            why = "points that are kept were written there before it was frozen"
            return Skip(f"{dataset.name} {span}", why, is_warning=True)
        counts = {"tables_dropped": len(tables)}
        if path is not None:
            rows, blocks = (t.name if t else None for t in (part.rows, part.blocks))
            counts["points_exported"] = archive(ground, dataset, span, path, rows, blocks)
        for table in tables:
            dropping.drop(ground, dataset, table, stuck)
        return counts

    sql = tuple(s for t in tables for s in dropping.statements(ground, dataset, t))
    lock = "; ".join(t.lock for t in tables)
    retain = dataset.retain
    age = retain.blocks if part.has_blocks else retain.rows
    why = "holds no points" if part.is_empty else f"kept for {age}"
    return Act(what, sql, lock, do, sum(t.bytes for t in tables), why)


def _rollups(ground: Ground, dataset: Dataset, mark: int, stuck: Stuck) -> Iterator[Act]:
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
                yield _forgetting(ground, dataset, rollup_id, table, age, stuck)


def _forgetting(
    ground: Ground, dataset: Dataset, rollup_id: int, table: Table, age: str, stuck: Stuck
) -> Act:
    note = compose(
        "retention/let_buckets_go",
        rollup=name(ground.schema, "rollup"),
        rollup_id=Literal(rollup_id),
        mark=Literal(to_datetime(table.span.end).isoformat()),
    )
    what = f"drop {table.name}, {table.span}"

    def do() -> Counts | Skip:
        if why := dropping.waiting([table], stuck):
            return Skip(what, why, is_warning=True, is_busy=True)
        _check_frozen(ground, dataset, table.span.end)
        ground.ddl(what, [note])
        dropping.drop(ground, dataset, table, stuck)
        return {"tables_dropped": 1}

    sql = (*texts([note]), *dropping.statements(ground, dataset, table))
    return Act(what, sql, table.lock, do, table.bytes, f"kept for {age}")
