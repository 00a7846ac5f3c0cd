"""Indexes as the catalog has them, and the statements that drop, mend and make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from psycopg.sql import SQL, Composable
from sqlalchemy import MetaData

from toolkit.dataset import Dataset
from toolkit.statements import commas, name
from toolkit.tables import catalog_tables, dataset_tables
from toolkit_maintenance.doctor.check import Answers, settled
from toolkit_maintenance.doctor.tables import tables_of


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


def indexes_of(answers: Answers, node: str | None = None) -> list[Index]:
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


@lru_cache(maxsize=8)
def own_tables(schema: str) -> frozenset[str]:
    """Return the names of the catalog's tables, which stay small."""
    metadata = MetaData(schema=schema)
    catalog_tables(metadata)
    return frozenset(table.name for table in metadata.tables.values())


# -- statements -----------------------------------------------------------------------------------


_ALONE = "CREATE INDEX CONCURRENTLY {} ON {} {}"


def drop(schema: str, index: Index) -> str:
    """Return the statement that drops an index; of a partitioned table CONCURRENTLY is refused."""
    text = "DROP INDEX {}" if index.is_partitioned else "DROP INDEX CONCURRENTLY {}"
    return SQL(text).format(name(schema, index.name)).as_string(None)


def mended(schema: str, index: Index, broken: str) -> str:
    """Return what drops what a build left behind, or builds anew what belongs to something."""
    is_left = index.name == broken and not index.is_kept
    text = "DROP INDEX CONCURRENTLY {}" if is_left else "REINDEX INDEX CONCURRENTLY {}"
    return SQL(text).format(name(schema, broken)).as_string(None)


def completed(answers: Answers, index: Index) -> list[str]:
    """Return what gives each partition the part it lacks, without a long lock, and attaches it.

    The last statement that is attached makes the whole index valid.
    """
    whole, fixes = name(answers.schema, index.name), []
    for parent, partition, definition in answers["unattached"]:
        if parent == index.name:
            part = f"{partition}_{index.name}"[:63]
            fixes += _part(answers.schema, whole, partition, part, SQL(definition))
    return fixes


def reordered(answers: Answers, index: Index, keys: Sequence[str]) -> list[str]:
    """Return what puts one with its keys in another order in its place, without a long lock."""
    made = built(
        answers,
        f"{index.name[:58]}_last",
        index.table,
        index.root,
        keys,
        index.included,
        is_partitioned=index.is_partitioned,
    )
    return [*made, drop(answers.schema, index)]


def built(
    answers: Answers,
    index: str,
    table: str,
    root: str,
    keys: Sequence[str],
    included: Sequence[str] = (),
    *,
    is_partitioned: bool,
) -> list[str]:
    """Return what builds a new index without a long lock: of a partitioned table part by part."""
    parts: list[Composable] = [name(k) for k in keys]
    covered: list[Composable] = [name(c) for c in included]
    rest = SQL(" INCLUDE ({})").format(commas(covered)) if covered else SQL("")
    columns = SQL("USING btree ({}){}").format(commas(parts), rest)
    schema = answers.schema
    how = SQL("CREATE INDEX {} ON ONLY {} {}" if is_partitioned else _ALONE)
    fixes = [how.format(name(index), name(schema, table), columns).as_string(None)]
    if is_partitioned:
        for leaf in (t.name for t in tables_of(answers) if t.is_partition and t.root == root):
            fixes += _part(schema, name(schema, index), leaf, f"{leaf}_{index}"[:63], columns)
    return fixes


def _part(
    schema: str, whole: Composable, partition: str, part: str, definition: Composable
) -> list[str]:
    """Return what builds a part of a partitioned index without a long lock, and attaches it."""
    build = SQL(_ALONE).format(name(part), name(schema, partition), definition)
    attach = SQL("ALTER INDEX {} ATTACH PARTITION {}").format(whole, name(schema, part))
    return [build.as_string(None), attach.as_string(None)]
