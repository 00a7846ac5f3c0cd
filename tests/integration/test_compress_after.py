"""The age from which on a dataset's points are compressed: declared, migrated, set by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fix_compressing import rows_of
from fix_servers import Database

from toolkit import migrate
from toolkit.cli.proposing import declaration_of
from toolkit.dataset import METRICS, Dataset
from toolkit.errors import QueryError, SchemaError, UnknownName


def test_a_dataset_says_what_is_old(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    with pytest.raises(QueryError, match="'metrics' has no compress_after; give end"):
        store.compress("metrics")
    now = datetime.now(UTC)
    ts = [now - timedelta(days=d) for d in (90, 80, 70, 10, 5)]
    store.write("metrics", {"ts": ts, "value": [1.0, 2.0, 3.0, 4.0, 5.0]}, series="A")
    with migrate.connected(database.dsn) as connection:
        with Operations.context(MigrationContext.configure(connection)) as op:
            op.set_compress_after("metrics", "30d")  # type: ignore[attr-defined]  # ours
        connection.commit()
    assert store.compress("metrics").points == 3
    assert rows_of(sql, "metrics") == 2
    known = {d.name: d for d in store.datasets()}
    assert known["metrics"] == replace(METRICS, compress_after="30d")
    assert Dataset.from_mapping(known["metrics"].to_mapping()) == known["metrics"]
    assert 'compress_after="30d"' in declaration_of(known["metrics"])
    with (
        migrate.connected(database.dsn) as connection,
        Operations.context(MigrationContext.configure(connection)) as op,
        pytest.raises(Exception, match="there is no dataset nosuch"),
    ):
        op.set_compress_after("nosuch", "30d")  # type: ignore[attr-defined]  # ours


def test_an_age_is_set_by_hand_as_a_migration_sets_it(
    store: Any, database: Database, sql: psycopg.Connection
) -> None:
    for age in ("30d", ""):
        with migrate.connected(database.dsn) as connection:
            with Operations.context(MigrationContext.configure(connection)) as op:
                op.set_compress_after("metrics", age)  # type: ignore[attr-defined]  # ours
            connection.commit()
        text = "SELECT spec::text FROM dataset WHERE name = 'metrics'"
        (by_migration,) = sql.execute(text).fetchall()
        assert store.set_compress_after("metrics", "7d") == "7d"
        assert {d.name: d for d in store.datasets()}["metrics"].compress_after == "7d"
        assert store.set_compress_after("metrics", age) == age
        assert sql.execute(text).fetchall() == [by_migration]
    with pytest.raises(QueryError, match="unknown step 'soon'"):
        store.set_compress_after("metrics", "soon")
    with pytest.raises(UnknownName, match="did you mean 'metrics'"):
        store.set_compress_after("metric", "7d")


@pytest.mark.parametrize("age", ["30", "30 days", "0d", "-1d", "200y"])
def test_an_age_is_a_step(age: str) -> None:
    with pytest.raises(SchemaError, match=r"dataset 'metrics': compress_after: .*step"):
        replace(METRICS, compress_after=age)
