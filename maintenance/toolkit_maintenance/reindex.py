"""The reindex job: indexes that are much larger than they need to be are made anew."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial

from toolkit.drivers.direct import described
from toolkit.errors import counted
from toolkit.statements import compose, name
from toolkit_maintenance.bloat import DOUBT, JUDGED, WORTH, Index, Measure, list_indexes
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts, Job, Skip
from toolkit_maintenance.tables import (
    NO_RIGHT,
    alone_on,
    list_tables,
    meant,
    role,
    taken,
)


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield the removal of what is dead, then new indexes, those that gain most first."""
    ground.direct.execute(compose("vacuum/go_gently"))
    indexes = list_indexes(ground)
    wanted = meant(ground, list_tables(ground), [i.name for i in indexes])
    indexes = [i for i in indexes if wanted & {i.name, i.table, i.parent}]
    yield from _dead(ground, {i.table for i in indexes})
    yield from _invalid(ground, indexes)
    measure = Measure(ground)
    denied: Counter[str] = Counter()
    unknown: dict[tuple[str, str], list[Index]] = defaultdict(list)
    for index in sorted(indexes, key=_gain, reverse=True):
        if index.is_parent or _is_left(index):
            continue
        if ground.is_forced and ground.targets:
            yield _act(ground, index, "asked for")
            continue
        if not index.is_valid or index.bytes < WORTH or not _is_suspect(ground, index):
            continue
        if not index.is_ours:
            denied[index.table_parent or index.table] += 1
            continue
        if ground.left is not None and ground.left <= 0:  # which the runner says
            yield _act(ground, index, "estimated")
            return
        fresh = measure.fresh(index)
        if isinstance(fresh, str):
            unknown[index.table_parent or index.table, fresh].append(index)
        elif index.bytes - fresh >= WORTH and fresh < index.bytes * index.limit(ground.now):
            yield _act(ground, index, _why(index, fresh))
    for group, count in denied.items():
        what = f"reindex {group}" + (f" ({count} of its indexes)" if count > 1 else "")
        yield Skip(what, NO_RIGHT.format(role(ground)))
    for (group, why), (index, *others) in unknown.items():
        more = f" and {len(others)} more of {group}" if others else ""
        yield Skip(f"reindex {index.name}{more}", why, is_warning=index.method not in JUDGED)


JOB = Job("reindex", "make indexes anew that are much larger than they need to be", plan)


def _gain(index: Index) -> int:
    """How many bytes may be gained; what has no estimate is looked at by its size."""
    return index.bytes - (index.estimate or 0)


def _is_suspect(ground: Ground, index: Index) -> bool:
    if index.estimate is None:
        return True
    return index.estimate < index.bytes * (index.limit(ground.now) + DOUBT)


def _why(index: Index, fresh: int) -> str:
    return (
        f"{_mb(index.bytes)}, {_mb(fresh)} made anew; needs as much of the disk meanwhile, "
        "and again as much where it sorts"
    )


def _mb(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MB"


def _act(ground: Ground, index: Index, why: str) -> Act | Skip:
    what = f"reindex {index.name}"
    if (skip := taken(ground, index.table_oid, what) or _waits(ground, what)) is not None:
        return skip
    statement = compose("reindex/remake_index", index=ground.table(index.name))
    do = partial(_remake, ground, index, what, statement)
    lock = f"SHARE UPDATE EXCLUSIVE on {index.table}"
    return Act(what, texts([statement]), lock, do, index.bytes, why)


def _waits(ground: Ground, what: str) -> Skip | None:
    """Return why it would wait: it ends no sooner than who began before it and is seen here."""
    rows = ground.direct.fetch(compose("vacuum/find_horizon"), {"table": None})
    if not rows or rows[0][1] is None or rows[0][6] < ground.options.lock_timeout:
        return None
    said = f"passed over: it would wait for an old transaction: {described(rows[0][1:8])}"
    return Skip(what, said, is_warning=True, is_busy=True)


def _remake(ground: Ground, index: Index, what: str, statement: bytes) -> Counts | Skip:
    # it waits for transactions, and nobody for it: as long as other DDL in all its tries
    waits = ground.options.lock_timeout * ground.options.tries
    counts = {"indexes_remade": 1}
    came = alone_on(ground, index.table_oid, what, [statement], counts, waits=waits)
    if isinstance(came, Skip):
        for act in _dead(ground, {index.table}):  # what it left, if nobody is in the way of that
            if isinstance(act, Act):
                act.do()
    return came


def _dead(ground: Ground, tables: set[str]) -> Iterator[Act | Skip]:
    params = {"schema": ground.schema, "table": None}
    found = ground.direct.fetch(compose("reindex/list_dead_indexes"), params)
    for schema, index, size, table_oid, table, is_ours in found:
        if table not in tables:
            continue
        what = f"drop {index}"
        statement = compose("reindex/drop_index", index=name(schema, index))
        if not is_ours:
            why = f"an interrupted build has left it behind; {statement.decode()}, as a superuser"
            yield Skip(what, why, is_warning=True)
            continue
        counts = {"dead_indexes_dropped": 1}
        do = partial(alone_on, ground, table_oid, what, [statement], counts)
        why = "an interrupted REINDEX CONCURRENTLY has left it behind"
        lock = f"SHARE UPDATE EXCLUSIVE on {table}"
        yield Act(what, texts([statement]), lock, do, size, why)


def _invalid(ground: Ground, indexes: list[Index]) -> Iterator[Skip]:
    """Say which indexes answer nothing, and are none of ours to remove."""
    for index in indexes:
        what = f"index {index.name} of {index.table}"
        if index.is_valid:
            continue
        if index.is_parent:
            why = (
                f"is invalid: none is attached to it in {counted(index.unattached, 'partitions')}; "
                "CREATE INDEX CONCURRENTLY on each, then ALTER INDEX … ATTACH PARTITION"
            )
            yield Skip(what, why, is_warning=True)
        elif not _is_left(index) and not ground.direct.holders(index.table_oid):
            why = (
                "is invalid: an interrupted CREATE INDEX CONCURRENTLY left it; DROP INDEX "
                f"CONCURRENTLY removes it, toolkit reindex {index.name} --force makes it whole"
            )
            yield Skip(what, why, is_warning=True)


def _is_left(index: Index) -> bool:
    return not index.is_valid and ("_ccnew" in index.name or "_ccold" in index.name)
