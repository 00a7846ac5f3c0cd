"""SQLAlchemy tables for everything in the schema, so that autogenerate has what to compare with."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, INTERVAL, JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import TypeEngine, UserDefinedType

from toolkit.dataset import Dataset
from toolkit.ddl import block_columns, blocks_table


class Xid8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id."""

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


class PgSnapshot(UserDefinedType[str]):
    """PostgreSQL's snapshot: which transactions are visible."""

    def get_col_spec(self, **_: object) -> str:
        return "pg_snapshot"


ischema_names.setdefault("xid8", Xid8)
ischema_names.setdefault("pg_snapshot", PgSnapshot)

_TYPES: dict[str, TypeEngine[Any]] = {
    "float": Double(),
    "int": BigInteger(),
    "decimal": BigInteger(),
    "bool": Boolean(),
    "category": Text(),
    "time": TIMESTAMP(timezone=True),
}


def catalog_tables(metadata: MetaData) -> None:
    """Add the catalog's tables to ``metadata``."""
    stamp = TIMESTAMP(timezone=True)
    Table(
        "dataset",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("name", Text, nullable=False, unique=True),
        Column("spec", JSONB, nullable=False),
        Column("created_at", stamp, nullable=False, server_default=text("now()")),
        Column(
            "prune_to",
            PgSnapshot,
            comment="the change log may lose what this snapshot sees; "
            "prune_next follows it after a while",
        ),
        Column("prune_next", PgSnapshot),
        Column("prune_next_at", stamp),
        Column(
            "pruned_to",
            Xid8,
            comment="the youngest transaction whose row the change log has lost",
        ),
        Column(
            "cold_to",
            stamp,
            comment="blocks hold points before this time only; NULL where there are none",
        ),
        Column(
            "frozen_before",
            stamp,
            comment="points before this time may be gone: rollups stand for them, "
            "and nothing is written there",
        ),
        comment="families of series with the same columns; spec is the declaration",
    )
    dataset_id = f"{metadata.schema}.dataset.id"
    series = Table(
        "series",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("dataset_id", Integer, ForeignKey(dataset_id), nullable=False),
        Column("name", Text, nullable=False),
        Column("labels", JSONB, nullable=False, server_default=text("'{}'")),
        Column(
            "step",
            INTERVAL,
            comment="distance between neighbouring points where it is regular, else NULL",
        ),
        Column("created_at", stamp, nullable=False, server_default=text("now()")),
        UniqueConstraint("dataset_id", "name"),
    )
    Index("series_labels", series.c.labels, postgresql_using="gin")
    Table(
        "rollup",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("dataset_id", Integer, ForeignKey(dataset_id), nullable=False),
        Column("step", Text, nullable=False),
        Column("relation", Text, nullable=False),
        Column("width", INTERVAL, nullable=False),
        Column(
            "cursor",
            PgSnapshot,
            nullable=False,
            server_default=text("'1:1:'"),
            comment="what of the change log this rollup has followed: "
            "the rows visible in this snapshot",
        ),
        Column("sysid", BigInteger),
        Column(
            "pass_to",
            PgSnapshot,
            comment="where an unfinished refresh is going; it goes on after (pass_series, pass_lo)",
        ),
        Column("pass_series", Integer),
        Column("pass_lo", stamp),
        Column("refreshed_at", stamp),
        Column(
            "gone_before",
            stamp,
            comment="buckets before this time are gone, too; NULL where none is",
        ),
        UniqueConstraint("dataset_id", "step"),
    )
    runs = Table(
        "job_run",
        metadata,
        Column("id", BigInteger, primary_key=True),
        Column("job", Text, nullable=False),
        Column("started_at", stamp, nullable=False, server_default=text("clock_timestamp()")),
        Column("ended_at", stamp),
        Column("status", Text, nullable=False, server_default=text("'running'")),
        Column("pid", Integer, nullable=False, server_default=text("pg_backend_pid()")),
        Column("targets", ARRAY(Text), nullable=False, server_default=text("'{}'")),
        Column("counts", JSONB, nullable=False, server_default=text("'{}'")),
        Column("said", ARRAY(Text), nullable=False, server_default=text("'{}'")),
        comment="runs of maintenance jobs: what each did (counts) and what it could not do (said)",
    )
    Index("job_run_job", runs.c.job, runs.c.started_at)
    Table(
        "doctor_snapshot",
        metadata,
        Column("id", BigInteger, primary_key=True),
        Column("taken_at", stamp, nullable=False, server_default=text("clock_timestamp()")),
        Column("counted_since", stamp),
        Column("statements", JSONB, nullable=False),
        Column("indexes", ARRAY(Text), nullable=False),
        comment="what toolkit doctor compares with: calls and milliseconds of statements by their "
        "id, and which indexes there were",
    )
    _upkeep_tables(metadata)


def _upkeep_tables(metadata: MetaData) -> None:
    """Add what upkeep remembers of datasets, series and rollups."""
    stamp = TIMESTAMP(timezone=True)
    catalog = {
        n: metadata.tables[f"{metadata.schema}.{n}"].c.id for n in ("dataset", "series", "rollup")
    }

    def key(of: str, column: str, **options: Any) -> Column[int]:
        foreign = ForeignKey(catalog[of], ondelete="CASCADE")
        return Column(column, Integer, foreign, primary_key=True, autoincrement=False, **options)

    Table(
        "looked_at",
        metadata,
        Column("job", Text, primary_key=True),
        key("dataset", "dataset_id"),
        Column("start", stamp, primary_key=True),
        Column("series_to", Integer),
        Column("at", stamp, nullable=False, server_default=text("now()")),
        comment="when jobs that look at everything have looked at the part of a dataset that "
        "begins at start; where series_to is set, at the series up to that one only",
    )
    Table(
        "popularity",
        metadata,
        key("series", "series_id"),
        Column("step", Text, primary_key=True),
        Column("reads", Double, nullable=False),
        Column("at", stamp, nullable=False, server_default=text("now()")),
        Column("width", INTERVAL, nullable=False),
        Column("behind", INTERVAL, nullable=False),
        comment="how often series are read at a step (empty: points), halved every day; the last "
        "such read was of a range so wide that ended so long before then",
    )
    Table(
        "rollup_head",
        metadata,
        key("rollup", "id"),
        Column(
            "dataset_id",
            Integer,
            ForeignKey(catalog["dataset"], ondelete="CASCADE"),
            nullable=False,
        ),
        Column("since", stamp, nullable=False),
        Column("cursor", PgSnapshot, nullable=False),
        Column("pass_to", PgSnapshot),
        Column("pass_series", Integer),
        Column("pass_lo", stamp),
        comment="of changes at or after since a rollup has followed those visible in cursor, too: "
        "where there is much to follow, the newest comes first",
    )


def dataset_tables(metadata: MetaData, dataset: Dataset) -> None:
    """Add a dataset's tables to ``metadata``: its rows, its change log and its rollups."""
    stamp = TIMESTAMP(timezone=True)
    seq = [Column("seq", BigInteger, primary_key=True)] if dataset.has_seq else []
    points = Table(
        dataset.name,
        metadata,
        Column("series_id", Integer, primary_key=True, autoincrement=False),
        Column("ts", stamp, primary_key=True),
        *seq,
        *(Column(c.name, _TYPES[c.base]) for c in dataset.columns),
    )
    for number, index in enumerate(dataset.indexes, 1):
        where = text(index.where) if index.where else None
        Index(
            f"{dataset.name}_x{number}",
            *(points.c[c] for c in index.columns),
            postgresql_where=where,
        )
    Table(
        blocks_table(dataset.name),
        metadata,
        Column("series_id", Integer, primary_key=True, autoincrement=False),
        Column("lo", stamp, primary_key=True),
        Column("hi", stamp, nullable=False),
        Column("_rows", Integer, nullable=False),
        Column("_first", stamp, nullable=False),
        Column("_last", stamp, nullable=False),
        Column("_header", BYTEA, nullable=False),
        *(Column(c, BYTEA, nullable=False) for c in block_columns(dataset)),
    )
    log = Table(
        f"{dataset.name}_log",
        metadata,
        Column("series_id", Integer, nullable=False),
        Column("lo", stamp, nullable=False),
        Column("hi", stamp, nullable=False),
        Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    )
    Index(
        f"{dataset.name}_log_series",
        log.c.series_id,
        log.c.lo,
        postgresql_include=["hi", "xid"],
    )
    Index(f"{dataset.name}_log_xid", log.c.xid)
    for step in dataset.ladder:
        Table(
            f"{dataset.name}_{step}",
            metadata,
            Column("series_id", Integer, primary_key=True, autoincrement=False),
            Column("ts", stamp, primary_key=True),
            *(Column(s.name, _TYPES[s.type.partition("(")[0]]) for s in dataset.states),
        )


def metadata_of(connection: Connection, schema: str) -> MetaData:
    """Return the tables the schema should have: the catalog's, and those of its datasets."""
    metadata = MetaData(schema=schema)
    catalog_tables(metadata)
    if inspect(connection).has_table("dataset", schema=schema):
        specs = connection.execute(select(metadata.tables[f"{schema}.dataset"].c.spec))
        for spec in specs.scalars():
            dataset_tables(metadata, Dataset.from_mapping(spec))
    return metadata
