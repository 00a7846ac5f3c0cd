"""What a schema consists of, as PostgreSQL's own catalog describes it: to compare two of them."""

from __future__ import annotations

import psycopg

_PARTS = {
    "relations": """
        SELECT c.relname, c.relkind, c.relispartition, c.reloptions, c.relacl::text,
               pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid),
               obj_description(c.oid, 'pg_class')
        FROM pg_class AS c WHERE c.relnamespace = %(schema)s ORDER BY 1""",
    "columns": """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attidentity, a.attstorage, pg_get_expr(d.adbin, d.adrelid),
               col_description(c.oid, a.attnum)
        FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = %(schema)s AND c.relkind IN ('r', 'p') ORDER BY 1, 2""",
    "indexes": """
        SELECT c.relname, i.indisvalid, pg_get_indexdef(c.oid)
        FROM pg_class AS c JOIN pg_index AS i ON i.indexrelid = c.oid
        WHERE c.relnamespace = %(schema)s ORDER BY 1""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = %(schema)s ORDER BY 1, 2""",
    "functions": """
        SELECT proname, proacl::text, pg_get_functiondef(oid), obj_description(oid, 'pg_proc')
        FROM pg_proc WHERE pronamespace = %(schema)s ORDER BY 1""",
    "triggers": """
        SELECT c.relname, t.tgname, t.tgenabled, pg_get_triggerdef(t.oid)
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = %(schema)s AND NOT t.tgisinternal ORDER BY 1, 2""",
}
_SYSTEM = (
    "pg_attrdef",
    "pg_attribute",
    "pg_class",
    "pg_constraint",
    "pg_depend",
    "pg_description",
    "pg_index",
    "pg_inherits",
    "pg_namespace",
    "pg_partitioned_table",
    "pg_proc",
    "pg_sequence",
    "pg_trigger",
    "pg_type",
)


def describe(dsn: str, schema: str = "toolkit") -> dict[str, list[tuple[object, ...]]]:
    """Return every object of a schema, by kind; equal for schemas that are the same."""
    with psycopg.connect(dsn) as connection:
        name = '"' + schema.replace('"', '""') + '"'
        oid = connection.execute("SELECT %s::regnamespace::oid", [name]).fetchone()[0]
        return {
            part: connection.execute(query, {"schema": oid}).fetchall()
            for part, query in _PARTS.items()
        }


def count_everything(dsn: str) -> dict[str, int]:
    """Return how many rows each system catalog has: what is left behind anywhere shows up."""
    with psycopg.connect(dsn) as connection:
        return {
            # a temporary schema comes with the first temporary table and stays
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in _SYSTEM
        }


def rows(dsn: str, query: str, *params: object) -> list[tuple[object, ...]]:
    """Run one statement in a transaction of its own and return its rows, if it has any."""
    with psycopg.connect(dsn) as connection:
        cursor = connection.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []


def value(dsn: str, query: str, *params: object) -> object:
    """Return the one value that a statement answers."""
    return rows(dsn, query, *params)[0][0]
