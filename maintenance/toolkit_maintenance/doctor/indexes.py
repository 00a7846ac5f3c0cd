"""Checks of indexes: what nobody uses, what is there twice, what is broken, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import combinations
from typing import Any

from psycopg.sql import SQL, Composable
from sqlalchemy import MetaData

from toolkit.dataset import Dataset
from toolkit.statements import commas, name
from toolkit.tables import catalog_tables, dataset_tables
from toolkit_maintenance.doctor.check import Answers, Check, found, settled, unknown
from toolkit_maintenance.doctor.finding import Finding, Thing, listed
from toolkit_maintenance.doctor.tables import tables_of

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """An index that is no part of another: with all its parts where its table has partitions.

    ``root`` is the topmost table over it. ``keys`` are columns, None where it is an expression;
    ``likeness`` is what else makes it what it is: operator classes, order, collations.
    """

    name: str
    table: str
    root: str
    is_partitioned: bool
    method: str
    is_unique: bool
    is_kept: bool  # a constraint's, or what replication goes by
    keys: tuple[str | None, ...]
    included: tuple[str, ...]
    times: tuple[bool, ...]
    likeness: tuple[str, ...]
    rest: str  # its expressions and its predicate
    definition: str
    parts: int
    bytes: int
    scans: int
    scanned_at: datetime | None
    broken: tuple[str, ...]  # it, or parts of it, that are not valid
    building: int
    unattached: int  # partitions that lack a part

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Index:
        return cls(*settled(row))

    @property
    def is_plain(self) -> bool:
        return not self.rest and None not in self.keys


def drop(schema: str, index: Index) -> str:
    """Return the statement that drops an index; of a partitioned table CONCURRENTLY is refused."""
    text = "DROP INDEX {}" if index.is_partitioned else "DROP INDEX CONCURRENTLY {}"
    return SQL(text).format(name(schema, index.name)).as_string(None)


def _indexes(answers: Answers, node: str | None = None) -> list[Index]:
    """Return a node's indexes; the toolkit's own count as kept, whoever reads by them."""
    own = _own(answers.schema, answers.datasets)
    found = [Index.from_row(r) for r in answers.rows["indexes"][node or answers.primary]]
    return [replace(i, is_kept=True) if i.name in own else i for i in found]


@lru_cache(maxsize=8)
def _own(schema: str, datasets: tuple[Dataset, ...]) -> frozenset[str]:
    """Return the names of the indexes that belong to the schema, whatever a dataset declares."""
    metadata = MetaData(schema=schema)
    catalog_tables(metadata)
    for dataset in datasets:
        dataset_tables(metadata, replace(dataset, indexes=()))
    tables = metadata.tables.values()
    return frozenset(str(index.name) for table in tables for index in table.indexes)


def _thing(index: Index, **figures: Any) -> Thing:
    return Thing(index.root, index.name, index.bytes, {"bytes": index.bytes, **figures})


# -- used by nobody -----------------------------------------------------------------------------


def judge_unused(answers: Answers) -> Finding:
    """Unused is what no node has used, in any partition, for as long as statistics must be old.

    When an index was made PostgreSQL does not say: the doctor's own snapshots do.
    """
    check, limits = "index-unused", answers.limits
    candidates = [i for i in _indexes(answers) if not i.is_kept and not i.is_unique]
    candidates = [i for i in candidates if i.bytes >= limits.unused_bytes and not i.building]
    used: set[str] = set()
    for node, facts in answers.facts.items():
        for index in _indexes(answers, node):
            since = index.scanned_at
            is_long_ago = since is not None and (
                (facts.now - since).total_seconds() >= limits.statistics_age
            )
            if index.scans and not is_long_ago:
                used.add(index.name)
    unused = [i for i in candidates if i.name not in used]
    well = f"each of {len(candidates)} indexes that could go is used"
    if not unused:
        return found(check, [], "", well=well)
    names = listed([i.name for i in unused])
    days = limits.statistics_age / 86_400
    if answers.lost:
        lost = ", ".join(f"{n} ({why})" for n, why in answers.lost.items())
        return unknown(
            check, f"{names}: not used, but who knows on {lost}; ask again when it is up"
        )
    young = [
        n
        for n, f in answers.facts.items()
        if f.counted_s is not None and f.counted_s < limits.statistics_age
    ]
    if young:
        said = f"{names}: not used, but the statistics of {', '.join(young)} are younger than"
        return unknown(check, f"{said} {days:g} days; ask again then")
    known = {row[0] for row in answers["known_indexes"]}
    sure = [i for i in unused if i.name in known]
    if not sure:
        return unknown(
            check,
            f"{names}: not used, but not known to be {days:g} days old: toolkit doctor --snapshot "
            "once a day (maintain's cleanup does) makes that known",
        )
    nodes = f" on any of {len(answers.facts)} nodes" if len(answers.facts) > 1 else ""
    reason = f"{listed([i.name for i in sure])}: not used for {days:g} days{nodes}, and each write "
    return found(
        check,
        [_thing(i, parts=i.parts) for i in sure],
        f"{reason}keeps it up; reports that run once a year may need it",
        well=well,
        fix=[drop(answers.schema, i) for i in sure],
        evidence={"bytes": sum(i.bytes for i in sure), "nodes": list(answers.facts)},
    )


# -- there twice --------------------------------------------------------------------------------


def judge_duplicate(answers: Answers) -> Finding:
    """Two indexes of a table that are the same but for their names; the better one stays."""
    things, fixes = [], []
    for kept, spare in _pairs(_indexes(answers)):
        if _is_same(kept, spare) and not spare.is_kept:
            things.append(_thing(spare, like=kept.name))
            fixes.append(drop(answers.schema, spare))
    names = listed([f"{t.name} is {t.figures['like']}" for t in things])
    return found(
        "index-duplicate",
        things,
        f"the same index twice: {names}; each write keeps both up",
        well="no index is there twice",
        fix=dict.fromkeys(fixes),
    )


def judge_overlapping(answers: Answers) -> Finding:
    """An index whose keys another one begins with, and which holds all its columns."""
    things, fixes = [], []
    indexes = _indexes(answers)
    same = {s.name for k, s in _pairs(indexes) if _is_same(k, s) and not s.is_kept}
    gone: set[str] = set()
    for one, other in _pairs(indexes):
        for long, short in ((one, other), (other, one)):
            if {long.name, short.name} & same or short.name in gone:
                continue
            if _covers(long, short) and not (short.is_kept or short.is_unique):
                gone.add(short.name)
                things.append(_thing(short, covered_by=long.name))
                fixes.append(drop(answers.schema, short))
    names = listed([f"{t.name} by {t.figures['covered_by']}" for t in things])
    return found(
        "index-overlapping",
        things,
        f"what it finds another index finds as well: {names}",
        well="no index begins another",
        fix=fixes,
    )


def _pairs(indexes: Sequence[Index]) -> Iterator[tuple[Index, Index]]:
    """Yield pairs of one table, first the one to keep: a constraint's, a unique one, the older."""
    by_table: dict[str, list[Index]] = {}
    for index in indexes:
        if not index.broken:
            by_table.setdefault(index.table, []).append(index)
    for group in by_table.values():
        group.sort(key=lambda i: (not i.is_kept, not i.is_unique))
        yield from combinations(group, 2)


def _is_same(kept: Index, spare: Index) -> bool:
    is_like = (kept.method, kept.keys, kept.likeness, kept.rest) == (
        spare.method,
        spare.keys,
        spare.likeness,
        spare.rest,
    )
    holds = set(spare.included) <= set(kept.included)
    return is_like and holds and (kept.is_unique or not spare.is_unique)


def _covers(long: Index, short: Index) -> bool:
    if (long.method, short.method) != ("btree", "btree") or not (long.is_plain and short.is_plain):
        return False
    n = len(short.keys)
    is_prefix = long.keys[:n] == short.keys and long.likeness[:n] == short.likeness
    holds = set(short.included) <= {*long.keys, *long.included}
    return is_prefix and holds and len(long.keys) > n


# -- broken, missing, in the wrong order --------------------------------------------------------


def judge_invalid(answers: Answers) -> Finding:
    """What an interrupted build has left behind; one that is under way looks the same."""
    things, fixes, wholes, unsure = [], [], [], []
    for index in _indexes(answers):
        if index.building:
            unsure.append(index.name)
            continue
        if index.is_partitioned and index.broken == (index.name,):
            wholes.append(index)
            things.append(_thing(index, unattached=index.unattached))
            fixes += _completed(answers, index)
            continue
        for broken in index.broken:
            things.append(Thing(index.root, broken, index.bytes, {"bytes": index.bytes}))
            fixes.append(_mended(answers.schema, index, broken))
    if unsure and not things:
        return unknown(
            "index-invalid",
            f"{listed(unsure)}: not valid, and perhaps being built: somebody builds, or vacuums, "
            "on that table; ask again when that has ended",
        )
    names = listed([t.name for t in things])
    lacks = "; ".join(f"{i.name} lacks a part in {i.unattached:,} partitions" for i in wholes)
    reason = f"{names}: kept up by each write and used by no read: a build was interrupted"
    return found(
        "index-invalid",
        things,
        reason + (f"; {lacks}" if lacks else ""),
        well="every index is valid",
        fix=fixes,
    )


def _mended(schema: str, index: Index, broken: str) -> str:
    is_left = index.name == broken and not index.is_kept
    text = "DROP INDEX CONCURRENTLY {}" if is_left else "REINDEX INDEX CONCURRENTLY {}"
    return SQL(text).format(name(schema, broken)).as_string(None)


def _completed(answers: Answers, index: Index) -> list[str]:
    """Return what gives each partition the part it lacks, without a long lock, and attaches it.

    The last statement that is attached makes the whole index valid.
    """
    whole = name(answers.schema, index.name)
    fixes = []
    for parent, partition, definition in answers["unattached"]:
        if parent != index.name:
            continue
        part = f"{partition}_{index.name}"[:63]
        build = SQL("CREATE INDEX CONCURRENTLY {} ON {} {}").format(
            name(part), name(answers.schema, partition), SQL(definition)
        )
        attach = SQL("ALTER INDEX {} ATTACH PARTITION {}").format(whole, name(answers.schema, part))
        fixes += [build.as_string(None), attach.as_string(None)]
    return fixes


def judge_missing(answers: Answers) -> Finding:
    """Foreign keys without an index, and large tables that are read from end to end."""
    limits, things, fixes, said = answers.limits, [], [], []
    for table, root, constraint, columns, size in answers["unindexed_keys"]:
        things.append(Thing(root, table, size, {"constraint": constraint, "bytes": size}))
        parts: list[Composable] = [name(c) for c in columns]
        statement = SQL("CREATE INDEX CONCURRENTLY ON {} ({})").format(
            name(answers.schema, table), commas(parts)
        )
        fixes.append(statement.as_string(None))
        said.append(f"{table} ({', '.join(columns)}) refers to another table")
    for table in tables_of(answers):
        each = table.scanned / table.scans if table.scans else 0
        is_read = table.scans >= limits.scans and each >= limits.scanned_rows
        if is_read and table.scanned > 10 * table.fetched:
            figures = {"scans": table.scans, "rows": table.scanned}
            things.append(Thing(table.root, table.name, table.scanned, figures))
            said.append(
                f"{table.name} was read from end to end {table.scans:,} times, "
                f"{each:,.0f} rows each"
            )
    return found(
        "index-missing",
        things,
        f"{listed(said)}; toolkit doctor --only slow-queries shows who may be reading",
        well="no large table is read from end to end again and again, and foreign keys are indexed",
        fix=fixes,
    )


def judge_time_in_middle(answers: Answers) -> Finding:
    """A time that is neither an index's first key nor its last.

    Reads ask for a range of time, and what comes after a range narrows nothing down. A
    constraint's index is not meant: its order is not only for reading.
    """
    things, fixes = [], []
    for index in _indexes(answers):
        if index.method != "btree" or index.is_kept or index.is_unique or not index.is_plain:
            continue
        middle = [n for n, is_time in enumerate(index.times[:-1]) if is_time and n > 0]
        if not middle:
            continue
        place = middle[0]
        keys = [k for k in index.keys if k is not None]
        ordered = [*keys[:place], *keys[place + 1 :], keys[place]]
        things.append(_thing(index, key=", ".join(keys), better=", ".join(ordered)))
        fixes += _reordered(answers.schema, index, ordered)
    names = listed([f"{t.name} ({t.figures['key']})" for t in things])
    return found(
        "index-time-in-middle",
        things,
        f"{names}: the keys after the time narrow no range of time down; the time goes last",
        well="no index has a time between its other keys",
        fix=fixes,
    )


def _reordered(schema: str, index: Index, keys: Sequence[str]) -> list[str]:
    parts: list[Composable] = [name(k) for k in keys]
    covered: list[Composable] = [name(c) for c in index.included]
    rest = SQL(" INCLUDE ({})").format(commas(covered)) if covered else SQL("")
    how = SQL("") if index.is_partitioned else SQL("CONCURRENTLY ")
    made = SQL("CREATE INDEX {}{} ON {} ({}){}").format(
        how, name(f"{index.name[:58]}_last"), name(schema, index.table), commas(parts), rest
    )
    return [made.as_string(None), drop(schema, index)]


CHECKS = (
    Check(
        "index-unused",
        "indexes that no node has used",
        ("indexes", "known_indexes"),
        judge_unused,
    ),
    Check("index-duplicate", "indexes that are there twice", ("indexes",), judge_duplicate),
    Check("index-overlapping", "indexes that begin others", ("indexes",), judge_overlapping),
    Check(
        "index-invalid",
        "indexes that a build has left unfinished",
        ("indexes", "unattached"),
        judge_invalid,
    ),
    Check(
        "index-missing",
        "foreign keys without one, large tables read from end to end",
        ("tables", "unindexed_keys"),
        judge_missing,
    ),
    Check(
        "index-time-in-middle",
        "a time between the other keys of an index",
        ("indexes",),
        judge_time_in_middle,
    ),
)
