"""Checks of indexes: what nobody uses, what is there twice, what is broken, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from toolkit.errors import counted
from toolkit_maintenance.doctor.check import Answers, Check, found, unknown
from toolkit_maintenance.doctor.finding import Finding, Thing, listed
from toolkit_maintenance.doctor.index import (
    Index,
    built,
    completed,
    drop,
    indexes_of,
    mended,
    own_tables,
    reordered,
)
from toolkit_maintenance.doctor.tables import tables_of


def _thing(index: Index, **figures: Any) -> Thing:
    return Thing(index.root, index.name, index.bytes, {"bytes": index.bytes, **figures})


# -- used by nobody -----------------------------------------------------------------------------


def judge_unused(answers: Answers) -> Finding:
    """Unused is what no node has used, in any partition, for as long as statistics must be old.

    When an index was made PostgreSQL does not say: the doctor's own snapshots do.
    """
    check, limits = "index-unused", answers.limits
    candidates = [i for i in indexes_of(answers) if not i.is_kept and not i.is_unique]
    candidates = [i for i in candidates if i.bytes >= limits.unused_bytes and not i.building]
    used: set[str] = set()
    for node, facts in answers.facts.items():
        for index in indexes_of(answers, node):
            since = index.scanned_at
            is_long_ago = since is not None and (
                (facts.now - since).total_seconds() >= limits.statistics_age
            )
            if index.scans and not is_long_ago:
                used.add(index.name)
    unused = [i for i in candidates if i.name not in used]
    well = "each index that could go is used" if candidates else "there is none that could go"
    if not unused:
        return found(check, [], "", well=well)
    names = listed([i.name for i in unused])
    days = limits.statistics_age / 86_400
    if answers.lost:
        lost = ", ".join(f"{n} ({why})" for n, why in answers.lost.items())
        return unknown(
            check, f"{names}: not used, but who knows on {lost}; ask again when it is up"
        )
    strangers = [row[0] for row in answers["senders"]]
    if answers.of_primary.is_standby or (strangers and answers.settings.topology is None):
        others = f"replicas ({', '.join(strangers)})" if strangers else "the primary"
        return unknown(
            check, f"{names}: not used here, but who knows on {others}: give them as [[shards]]"
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
    for kept, spare in _pairs(indexes_of(answers)):
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
    indexes = indexes_of(answers)
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
    for index in indexes_of(answers):
        if index.building:
            unsure.append(index.name)
            continue
        if index.is_partitioned and index.broken == (index.name,):
            wholes.append(index)
            things.append(_thing(index, unattached=index.unattached))
            fixes += completed(answers, index)
            continue
        for broken in index.broken:
            things.append(Thing(index.root, broken, index.bytes, {"bytes": index.bytes}))
            fixes.append(mended(answers.schema, index, broken))
    if unsure and not things:
        return unknown(
            "index-invalid",
            f"{listed(unsure)}: not valid, and perhaps being built: somebody builds, or vacuums, "
            "on that table; ask again when that has ended",
        )
    names = listed([t.name for t in things])
    lacks = "; ".join(
        f"{i.name} lacks a part in {counted(i.unattached, 'partitions')}" for i in wholes
    )
    reason = f"{names}: kept up by each write and used by no read: a build was interrupted"
    return found(
        "index-invalid",
        things,
        reason + (f"; {lacks}" if lacks else ""),
        well="every index is valid",
        fix=fixes,
    )


def judge_missing(answers: Answers) -> Finding:
    """Foreign keys without an index, and large tables that are read from end to end."""
    limits, things, fixes, said = answers.limits, [], [], []
    for table, root, constraint, columns, size, is_partitioned in answers["unindexed_keys"]:
        if size < limits.unindexed_bytes or table in own_tables(answers.schema):
            continue
        things.append(Thing(root, table, size, {"constraint": constraint, "bytes": size}))
        index = f"{constraint[:59]}_idx"
        fixes += built(answers, index, table, root, columns, is_partitioned=is_partitioned)
        said.append(f"{table} ({', '.join(columns)}) refers to another table")
    for root, table, scans, scanned, fetched in _reads(answers):
        each = scanned / scans if scans else 0
        if scans >= limits.scans and each >= limits.scanned_rows and scanned > 10 * fetched:
            things.append(Thing(root, table, scanned, {"scans": scans, "rows": scanned}))
            said.append(f"{table} was read from end to end {scans:,} times, {each:,.0f} rows each")
    return found(
        "index-missing",
        things,
        f"{listed(said)}; slow-queries shows who may be reading",
        well="no large table is read from end to end again and again, and foreign keys are indexed",
        fix=fixes,
    )


def _reads(answers: Answers) -> Iterator[tuple[str, str, int, int, int]]:
    """Yield each table with what all nodes together have read of it: scans, their rows, others."""
    sums: dict[tuple[str, str], tuple[int, int, int]] = {}
    for node in answers.facts:
        for t in tables_of(answers, node):
            scans, scanned, fetched = sums.get((t.root, t.name), (0, 0, 0))
            sums[t.root, t.name] = scans + t.scans, scanned + t.scanned, fetched + t.fetched
    for (root, table), counts in sums.items():
        yield root, table, *counts


def judge_time_in_middle(answers: Answers) -> Finding:
    """A time that is neither an index's first key nor its last.

    Reads ask for a range of time, and what comes after a range narrows nothing down. A
    constraint's index is not meant: its order is not only for reading.
    """
    things, fixes = [], []
    for index in indexes_of(answers):
        if index.method != "btree" or index.is_kept or index.is_unique or not index.is_plain:
            continue
        middle = [n for n, is_time in enumerate(index.times[:-1]) if is_time and n > 0]
        if not middle:
            continue
        place = middle[0]
        keys = [k for k in index.keys if k is not None]
        ordered = [*keys[:place], *keys[place + 1 :], keys[place]]
        things.append(_thing(index, key=", ".join(keys), better=", ".join(ordered)))
        fixes += reordered(answers, index, ordered)
    names = listed([f"{t.name} ({t.figures['key']})" for t in things])
    return found(
        "index-time-in-middle",
        things,
        f"{names}: the keys after the time narrow no range of time down; the time goes last",
        well="no index has a time between its other keys",
        fix=fixes,
    )


CHECKS = (
    Check(
        "index-unused",
        "indexes that no node has used",
        ("indexes", "known_indexes", "senders"),
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
        ("indexes", "tables"),
        judge_time_in_middle,
    ),
)
