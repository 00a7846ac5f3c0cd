"""The vacuum job: what needs it is vacuumed, frozen or analyzed, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from toolkit.drivers.direct import described
from toolkit.errors import counted
from toolkit.statements import compose, raw
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Job, Skip
from toolkit_maintenance.tables import (
    NO_RIGHT,
    Table,
    alone_on,
    is_closed,
    list_tables,
    meant,
    role,
    taken,
)

AGE, DEAD, VISIBLE, STATISTICS, FREEZE = range(5)  # worst first
_FEW = 8  # pages that few notice
_AGAIN = timedelta(hours=1)  # what nobody wrote to is not vacuumed in vain more often
_TAILS = (8, 80)  # pages at a table's end that say whether it was frozen; some may be empty


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """One reason to look after a table: its kind, how far beyond its limit (negative), in words."""

    kind: int
    excess: float
    why: str


def needs(table: Table) -> list[Need]:
    """Return what a table needs, the worst first; freezing apart, which takes a look at it."""
    found = []
    for age, what in ((table.age, "transactions"), (table.multixact_age, "multixacts")):
        if age.is_over:
            said = f"its oldest row is {age.value:,.0f} {what} old, of {age.limit:,.0f}"
            found.append(Need(AGE, -age.ratio, said))
    for dead, where in ((table.dead, ""), (table.toast_dead, " in its TOAST")):
        if dead.is_over:
            said = f"{dead.value:,.0f} dead rows{where}, of {dead.limit:,.0f}"
            found.append(Need(DEAD, -dead.ratio, said))
    hidden = min(table.pages, max(table.pages - table.visible, _lost(table)))
    is_written = table.vacuumed_at is None or table.inserted > 0 or table.dead.value > 0
    few = _FEW + table.pages * 0.02 if is_written else 128 + table.pages * 0.05
    if hidden > few:
        said = f"{hidden:,} of {table.pages:,} pages are not all-visible"
        found.append(Need(VISIBLE, -hidden / max(table.pages, 1), said))
    if table.changed.is_over or (table.analyzed_at is None and table.pages > 0):
        said = f"{counted(round(table.changed.value), 'rows')} changed since the last analyze"
        said = said if table.analyzed_at else "never analyzed"
        found.append(Need(STATISTICS, -table.changed.ratio, said))
    return sorted(found)


def _lost(table: Table) -> int:
    """Return how many pages lost their mark by updates and deletes, where these are many."""
    return int(table.dead.value) if table.dead.value > 50 + table.pages * 0.1 else 0


def is_in_vain(table: Table, now: datetime) -> bool:
    """Return whether it was vacuumed just now and nobody has written since."""
    is_written = table.inserted > 0 or table.changed.value > 0
    return not is_written and table.vacuumed_at is not None and now - table.vacuumed_at < _AGAIN


def parent_needs(parent: Table, partitions: Iterable[Table], now: datetime) -> list[Need]:
    """Return why a parent's statistics are stale: nobody but us counts what it holds together."""
    filled = [p for p in partitions if p.pages]
    if not filled:
        return []
    if parent.analyzed_at is None:
        return [Need(STATISTICS, -1.0, "never analyzed; autovacuum leaves parents alone")]
    live = sum(p.live or p.rows for p in filled)
    shift = abs(live - parent.rows)
    limit = 50 + 0.1 * parent.rows
    if shift > limit:
        said = f"holds {counted(round(live), 'rows')}, {parent.rows:,.0f} when it was last analyzed"
        return [Need(STATISTICS, -shift / limit, said)]
    since = parent.analyzed_at.timestamp()
    for partition in filled:
        if partition.span and since < partition.span.start / 1e6 <= now.timestamp():
            return [Need(STATISTICS, -1.0, f"{partition.name} began after it was last analyzed")]
    return []


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield a vacuum or an analyze of each table that needs one, the worst first; parents last."""
    if not ground.direct.fetch(compose("vacuum/go_gently"))[0][2]:
        yield Skip("vacuum", "track_counts is off: who wrote what is not counted; turn it on")
    tables = list_tables(ground)
    wanted = meant(ground, tables)
    queue: list[tuple[Need, Table]] = []
    denied: Counter[str] = Counter()
    for table in tables:
        if table.name not in wanted or table.is_parent:
            continue
        found = _needs(ground, table)
        if found and not table.is_ours:
            denied[table.group] += 1
        elif found:
            queue.append((found[0], table))
    for _, table in sorted(queue, key=lambda q: q[0]):
        for now in list_tables(ground, table.oid):  # others may have done it meanwhile
            if again := _needs(ground, now):
                yield _act(ground, now, again)
    tables = list_tables(ground)  # what partitions hold is known now
    for parent in tables:
        if parent.name not in wanted or not parent.is_parent:
            continue
        found = parent_needs(parent, [t for t in tables if t.parent == parent.name], ground.now)
        found = found or _forced(ground, STATISTICS)
        if found and not parent.is_ours:
            denied[parent.name] += 1
        elif found:
            yield _act(ground, parent, found)
    for group, count in denied.items():
        what = f"vacuum {group}" + (f" ({count} of its tables)" if count > 1 else "")
        yield Skip(what, NO_RIGHT.format(role(ground)))


JOB = Job("vacuum", "vacuum, freeze and analyze what needs it", plan)


def _needs(ground: Ground, table: Table) -> list[Need]:
    found = needs(table)
    if (
        table.is_ours
        and table.pages
        and is_closed(table.span, ground.now)
        and _is_unfrozen(ground, table)
    ):
        found.append(Need(FREEZE, 0.0, "its time is past and it is not frozen"))
    return found or _forced(ground, VISIBLE)


def _forced(ground: Ground, kind: int) -> list[Need]:
    return [Need(kind, 0.0, "asked for")] if ground.is_forced and ground.targets else []


def _is_unfrozen(ground: Ground, table: Table) -> bool:
    if table.inserted or table.dead.value:
        return True
    if table.frozen is not None:
        return table.frozen < table.visible or not table.visible
    has_unfrozen = compose("vacuum/has_unfrozen", table=ground.table(table.name))
    for pages in _TAILS:
        tail = f"({max(table.pages - pages, 0)},0)"
        (row,) = ground.direct.fetch(has_unfrozen, {"table": table.oid, "tail": tail})
        if row[0]:
            return bool(row[1])
    return False


def _act(ground: Ground, table: Table, found: list[Need]) -> Act | Skip:
    kinds = {need.kind for need in found}
    why = "; ".join(need.why for need in found)
    only_counts = kinds == {STATISTICS}
    what = f"{'analyze' if only_counts else 'vacuum'} {table.name}"
    if not only_counts and not ground.is_forced and is_in_vain(table, ground.now):
        holder = _holder(ground, table, is_freezing=FREEZE in kinds)
        if holder is not None:
            said = f"{why}; it was vacuumed just now, and an old snapshot still sees them: {holder}"
            return Skip(what, said, is_warning=AGE not in kinds)
    if (skip := taken(ground, table.oid, what)) is not None:
        return skip
    name = ground.table(table.name)
    if only_counts:
        is_only = table.is_parent and ground.direct.version >= 180000
        only = raw("ONLY " if is_only else "")
        statement = compose("vacuum/analyze_table", only=only, table=name)
        counts = {"tables_analyzed": 1}
    else:
        is_frozen = bool(kinds & {AGE, FREEZE}) or is_closed(table.span, ground.now)
        options = ", FREEZE, INDEX_CLEANUP ON" if is_frozen else ""
        options += ", ANALYZE" if _is_counted(table) else ""
        statement = compose("vacuum/vacuum_table", options=raw(options), table=name)
        counts = {"tables_vacuumed": 1} | ({"tables_frozen": 1} if is_frozen else {})
    do = partial(_do, ground, table, what, statement, counts)
    lock = f"SHARE UPDATE EXCLUSIVE on {table.name}"
    return Act(what, texts([statement]), lock, do, table.bytes, why)


def _is_counted(table: Table) -> bool:
    """Return whether there is anything new to count; then it is known whether somebody writes."""
    return table.changed.value > 0 or table.analyzed_at is None


def _do(ground: Ground, table: Table, what: str, statement: bytes, counts: Counts) -> Counts | Skip:
    return alone_on(ground, table.oid, what, [statement], counts)


def _holder(ground: Ground, table: Table, *, is_freezing: bool) -> str | None:
    """Return who keeps a vacuum from doing more than the last one did; None: nobody.

    What is older than all that is not frozen keeps it all from being frozen, whoever vacuumed
    before: autovacuum does not freeze what is young. Other vacuums it keeps from what they are
    for where it began before the last one. Who may not be seen is taken for one where we froze.
    """
    assert table.vacuumed_at is not None
    params = {"table": table.oid}
    for *who, began, is_older in ground.direct.fetch(compose("vacuum/find_horizon"), params):
        if is_older is None:
            is_held = not is_freezing or table.vacuumed_at == table.vacuumed_by_hand_at
        elif is_freezing:
            is_held = is_older
        else:
            is_held = began is None or began <= table.vacuumed_at
        if is_held:
            return who[0] or described(who[1:])
    return None
