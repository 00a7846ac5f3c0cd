"""Alembic's entry: one schema, its own version table there, one transaction a migration."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection

import toolkit.operations as operations
from toolkit.catalog import VERSION_TABLE

config = context.config
SCHEMA: str = config.attributes.get("schema") or context.get_x_argument(as_dictionary=True).get(
    "schema", "toolkit"
)
config.attributes["schema"] = SCHEMA  # migrations read it there


def include_name(name: str | None, type_: str, parents: Any) -> bool:
    """Look at the toolkit's schema only."""
    return name == SCHEMA if type_ == "schema" else True


def configure(connection: Connection | None) -> None:
    options: dict[str, Any] = {
        "version_table": VERSION_TABLE,
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_name": include_name,
        "include_object": operations.include_object,
        "transaction_per_migration": True,
        "compare_server_default": False,
    }
    if connection is None:
        context.configure(dialect_name="postgresql", as_sql=True, **options)
        return
    from toolkit.tables import metadata_of

    metadata = metadata_of(connection, SCHEMA)
    connection.commit()  # in a transaction of ours Alembic would begin and commit none of its own
    context.configure(connection=connection, target_metadata=metadata, **options)


if context.is_offline_mode():
    configure(None)
    with context.begin_transaction():
        context.run_migrations()
elif (given := config.attributes.get("connection")) is not None:
    configure(given)
    with context.begin_transaction():
        context.run_migrations()
else:
    from toolkit.migrate import connected
    from toolkit.opening import primary_of, resolve

    with connected(primary_of(resolve())) as connection:
        configure(connection)
        with context.begin_transaction():
            context.run_migrations()
