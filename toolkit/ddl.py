"""The DDL of a dataset: pure text, so that a migration can print it as well as run it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from toolkit.dataset import Column, Dataset, State
from toolkit.retaining import Retention

STORED = {
    "float": "double precision",
    "int": "bigint",
    "decimal": "bigint",
    "bool": "boolean",
    "category": "text",
    "time": "timestamptz",
}
LOG_CELL = "7 days"  # a change-log row never crosses a cell: a read knows how far back to look
ROLLUP_PARTITION = "1y"


def ident(*parts: str) -> str:
    """Quote a name, or the parts of a qualified one.

    >>> ident("toolkit", 'a"b')
    '"toolkit"."a""b"'
    """
    return ".".join('"' + p.replace('"', '""') + '"' for p in parts)


def literal(text: str) -> str:
    """Quote text as a SQL string, whatever standard_conforming_strings says.

    >>> literal("it's")
    "'it''s'"
    """
    quoted = text.replace("'", "''")
    return f"E'{quoted}'".replace("\\", "\\\\") if "\\" in text else f"'{quoted}'"


def create_dataset(dataset: Dataset, schema: str, *, blocks: bool = True) -> Iterator[str]:
    """Yield the statements that make a dataset: catalog row, rows, blocks, change log, rollups."""
    points, log = ident(schema, dataset.name), ident(schema, f"{dataset.name}_log")
    yield _check_owner(schema)
    yield (
        f"INSERT INTO {ident(schema, 'dataset')} (name, spec)\n"
        f"VALUES ({literal(dataset.name)}, {literal(json.dumps(dataset.to_mapping()))}::jsonb)"
    )
    yield _points_table(dataset, points)
    if blocks:
        yield from _blocks_table(dataset, schema)
    for number, index in enumerate(dataset.indexes, 1):
        columns = ", ".join(ident(c) for c in index.columns)
        where = f" WHERE {index.where}" if index.where else ""
        yield f"CREATE INDEX {ident(f'{dataset.name}_x{number}')} ON {points} ({columns}){where}"
    yield (
        f"CREATE TABLE {log} (\n"
        "    series_id integer NOT NULL,\n"
        "    lo timestamptz NOT NULL,\n"
        "    hi timestamptz NOT NULL,\n"
        "    xid xid8 NOT NULL DEFAULT pg_current_xact_id()\n"
        ") WITH (autovacuum_vacuum_insert_scale_factor = 0.02)"
    )
    yield (
        f"CREATE INDEX {ident(f'{dataset.name}_log_series')} ON {log} "
        "(series_id, lo) INCLUDE (hi, xid)"
    )
    yield f"CREATE INDEX {ident(f'{dataset.name}_log_xid')} ON {log} (xid)"
    if dataset.changelog == "trigger":
        yield _trigger_function(dataset, schema, guards=blocks)
        yield _truncate_function(dataset, schema)
        for function in (changed_function(dataset.name), truncated_function(dataset.name)):
            # they run with their owner's rights: nobody else may hang them on a table of theirs
            yield f"REVOKE EXECUTE ON FUNCTION {ident(schema, function)}() FROM PUBLIC"
        for event in ("INSERT", "UPDATE", "DELETE"):
            yield create_trigger(dataset, schema, dataset.name, event)
    for step in dataset.ladder:
        yield _rollup_table(dataset, schema, step)
        yield (
            f"INSERT INTO {ident(schema, 'rollup')} (dataset_id, step, relation, width)\n"
            f"SELECT id, {literal(step)}, {literal(f'{dataset.name}_{step}')}, "
            f"interval '{_seconds(dataset, step)} seconds'\n"
            f"FROM {ident(schema, 'dataset')} WHERE name = {literal(dataset.name)}"
        )


def drop_dataset(dataset: Dataset, schema: str) -> Iterator[str]:
    """Yield the statements that remove a dataset with all its data: the reverse of creating it."""
    for step in reversed(dataset.ladder):
        yield f"DROP TABLE {ident(schema, f'{dataset.name}_{step}')}"
    yield f"DROP TABLE IF EXISTS {ident(schema, blocks_table(dataset.name))}"
    yield f"DROP TABLE {ident(schema, dataset.name)}"
    yield f"DROP TABLE {ident(schema, f'{dataset.name}_log')}"
    if dataset.changelog == "trigger":
        yield f"DROP FUNCTION {ident(schema, changed_function(dataset.name))}()"
        yield f"DROP FUNCTION {ident(schema, truncated_function(dataset.name))}()"
    catalog = ident(schema, "dataset")
    of_it = f"(SELECT id FROM {catalog} WHERE name = {literal(dataset.name)})"
    yield f"DELETE FROM {ident(schema, 'series')} WHERE dataset_id = {of_it}"
    yield f"DELETE FROM {ident(schema, 'rollup')} WHERE dataset_id = {of_it}"
    yield f"DELETE FROM {catalog} WHERE name = {literal(dataset.name)}"


def add_blocks(dataset: Dataset, schema: str) -> Iterator[str]:
    """Yield what gives blocks to a dataset of before there were any; nothing changes where it has.

    The function that logs changes is made anew: moving points into blocks is none.
    """
    yield from _blocks_table(dataset, schema)
    if dataset.changelog == "trigger":
        made = _trigger_function(dataset, schema)
        yield made.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)


def guard_writes(dataset: Dataset, schema: str, *, guards: bool = True) -> Iterator[str]:
    """Yield what has the function that logs changes refuse those of before ``frozen_before``."""
    if dataset.changelog == "trigger":
        made = _trigger_function(dataset, schema, guards=guards)
        yield made.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)


def set_compress_after(dataset: str, schema: str, age: str) -> Iterator[str]:
    """Yield the statement that sets from what age on points are compressed; empty: from none."""
    yield _set(dataset, schema, {"compress_after": age})


def set_retention(dataset: str, schema: str, retain: Retention) -> Iterator[str]:
    """Yield the statement that sets how long a dataset is kept."""
    yield _set(dataset, schema, {"retain": retain.to_mapping()})


def set_fields(dataset: Dataset, schema: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the statement that declares some fields of a dataset as they are now."""
    declared = dataset.to_mapping()
    yield _set(dataset.name, schema, {n: declared.get(n, {}) for n in names})


def _set(dataset: str, schema: str, fields: Mapping[str, object]) -> str:
    return f"""DO $set$
BEGIN
    UPDATE {ident(schema, "dataset")}
    SET spec = spec || {literal(json.dumps(fields))}::jsonb
    WHERE name = {literal(dataset)};
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no dataset % in schema %', {literal(dataset)}, {literal(schema)};
    END IF;
END
$set$"""


def blocks_table(dataset: str) -> str:
    """Name the table that holds a dataset's blocks."""
    return f"{dataset}_blocks"


def changed_function(dataset: str) -> str:
    """Name the function that logs changes; its version lets old and new run side by side."""
    return f"{dataset}_changed_v1"


def truncated_function(dataset: str) -> str:
    """Name the function that logs what a TRUNCATE removes."""
    return f"{dataset}_truncated_v1"


def create_trigger(dataset: Dataset, schema: str, table: str, event: str) -> str:
    """Return the statement trigger that logs ``event`` on the parent or a partition."""
    tables = {
        "INSERT": "REFERENCING NEW TABLE AS new_rows",
        "UPDATE": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
        "DELETE": "REFERENCING OLD TABLE AS old_rows",
    }
    return (
        f"CREATE TRIGGER {ident(f'log_{event.lower()}')} AFTER {event} "
        f"ON {ident(schema, table)}\n{tables[event]} FOR EACH STATEMENT\n"
        f"EXECUTE FUNCTION {ident(schema, changed_function(dataset.name))}()"
    )


def _check_owner(schema: str) -> str:
    # ensure_partitions works with the rights of its owner: it must have those of the tables' owner
    function = f"{ident(schema)}.add_partitions_v1(text, text, timestamptz, timestamptz, text)"
    return f"""DO $check$
DECLARE
    maker oid := (SELECT proowner FROM pg_proc WHERE oid = to_regprocedure({literal(function)}));
BEGIN
    IF maker IS NULL THEN
        RAISE EXCEPTION 'schema % is not migrated; run: toolkit migrate up', {literal(schema)};
    ELSIF NOT pg_has_role(maker, current_user, 'USAGE') THEN
        RAISE EXCEPTION 'a dataset must be created as role %, which owns the functions of '
            'schema %; SET ROLE to it before, RESET ROLE after', maker::regrole, {literal(schema)};
    END IF;
END
$check$"""


def _points_table(dataset: Dataset, points: str) -> str:
    seq = ["    seq bigint NOT NULL DEFAULT 0"] if dataset.has_seq else []
    key = ", ".join(ident(k) for k in dataset.key)
    covered = ", ".join(ident(c) for c in dataset.covered)
    lines = [
        "    series_id integer NOT NULL",
        "    ts timestamptz NOT NULL CONSTRAINT ts_is_finite CHECK (isfinite(ts))",
        *seq,
        *(f"    {_value_column(c)}" for c in dataset.columns),
        f"    CONSTRAINT {ident(f'{dataset.name}_pkey')} PRIMARY KEY ({key}) INCLUDE ({covered})",
    ]
    body = ",\n".join(lines)
    return f"CREATE TABLE {points} (\n{body}\n) PARTITION BY RANGE (ts)"


def _blocks_table(dataset: Dataset, schema: str) -> Iterator[str]:
    """Yield what makes the table of blocks: a header, and each column's bytes by itself."""
    blocks, stored = ident(schema, blocks_table(dataset.name)), block_columns(dataset)
    lines = [
        "    series_id integer NOT NULL",
        "    lo timestamptz NOT NULL",
        "    hi timestamptz NOT NULL",
        "    _rows integer NOT NULL",
        "    _first timestamptz NOT NULL",
        "    _last timestamptz NOT NULL",
        "    _header bytea NOT NULL",
        *(f"    {ident(c)} bytea NOT NULL" for c in stored),
        f"    CONSTRAINT {ident(f'{dataset.name}_blocks_pkey')} PRIMARY KEY (series_id, lo)",
        "    CONSTRAINT span_holds_points CHECK (lo <= _first AND _first <= _last AND _last < hi)",
    ]
    body = ",\n".join(lines)
    yield f"CREATE TABLE IF NOT EXISTS {blocks} (\n{body}\n) PARTITION BY RANGE (lo)"
    # what is compressed already is stored as it is, and read without being unpacked twice
    external = ", ".join(f"ALTER {ident(c)} SET STORAGE EXTERNAL" for c in ("_header", *stored))
    yield f"ALTER TABLE {blocks} {external}"


def block_columns(dataset: Dataset) -> tuple[str, ...]:
    """Return the columns of a block: the time, seq where the key has it, and the values."""
    return ("ts", *dataset.key[2:], *dataset.names)


def _value_column(column: Column) -> str:
    # answers say NULL with a value in the band, so that value itself cannot be stored
    name = ident(column.name)
    check = {
        "float": f" CONSTRAINT {ident(f'{column.name}_is_not_nan')} CHECK ({name} <> 'NaN')",
        "int": f" CONSTRAINT {ident(f'{column.name}_in_range')} "
        f"CHECK ({name} > '-9223372036854775808'::bigint)",
        "category": f" CONSTRAINT {ident(f'{column.name}_fits')} CHECK (length({name}) <= 500)",
    }
    base = "int" if column.base == "decimal" else column.base
    return f"{name} {STORED[column.base]}{check.get(base, '')}"


def _rollup_table(dataset: Dataset, schema: str, step: str) -> str:
    name = f"{dataset.name}_{step}"
    states = ",\n".join(f"    {_state_column(s)}" for s in dataset.states)
    covered = ", ".join(ident(s.name) for s in dataset.states[:28])
    include = f" INCLUDE ({covered})" if covered else ""
    return (
        f"CREATE TABLE {ident(schema, name)} (\n"
        "    series_id integer NOT NULL,\n"
        "    ts timestamptz NOT NULL,\n"
        f"{states}{',' if states else ''}\n"
        f"    CONSTRAINT {ident(f'{name}_pkey')} PRIMARY KEY (series_id, ts){include}\n"
        ") PARTITION BY RANGE (ts)"
    )


def _state_column(state: State) -> str:
    return f"{ident(state.name)} {STORED[state.type.partition('(')[0]]}"


def _seconds(dataset: Dataset, step: str) -> int:
    grid = next(g for g in dataset.grids if str(g.step) == step)
    assert grid.width is not None
    return grid.width // 1_000_000


def _log_runs(dataset: Dataset, schema: str, rows: str) -> str:
    """Return the statement that logs ``rows`` as contiguous runs of the finest ladder step."""
    grid = dataset.log_step
    assert grid.width is not None
    cell = f"interval '{grid.width // 1_000_000} seconds'"
    origin = "timestamptz '1970-01-05 00:00:00+00'" if grid.origin else "timestamptz 'epoch'"
    log = ident(schema, f"{dataset.name}_log")
    return f"""INSERT INTO {log} (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + {cell}
        FROM (SELECT series_id, b, date_bin(interval '{LOG_CELL}', b, timestamptz 'epoch') AS cell,
                     b - {cell} * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin({cell}, ts, {origin}) AS b
                    FROM {rows}) AS touched) AS numbered
        GROUP BY series_id, cell, run"""


def _trigger_function(dataset: Dataset, schema: str, *, guards: bool = False) -> str:
    both = "(SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u"

    def logged(rows: str) -> str:
        runs = _log_runs(dataset, schema, rows)
        if not guards:
            return runs
        return f"""WITH logged AS (
        {runs}
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged"""

    return f"""CREATE FUNCTION {ident(schema, changed_function(dataset.name))}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
{"DECLARE low timestamptz; mark timestamptz; " if guards else ""}BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        {logged("new_rows")};
    ELSIF TG_OP = 'DELETE' THEN
        {logged("old_rows")};
    ELSE
        {logged(both)};
    END IF;{_guard(dataset, schema) if guards else ""}
    RETURN NULL;
END
$changed$"""


def _guard(dataset: Dataset, schema: str) -> str:
    # a statement of its own: its snapshot is of after the log was locked by the one that logged;
    # where all statements have the transaction's, a mark that has moved since ends it with 40001
    catalog, it = ident(schema, "dataset"), literal(dataset.name)
    return f"""
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        PERFORM FROM {catalog} AS d WHERE d.name = {it} FOR SHARE;
    END IF;
    SELECT d.frozen_before INTO mark FROM {catalog} AS d WHERE d.name = {it};
    IF low < mark THEN
        RAISE EXCEPTION 'points of {dataset.name} before % are frozen: retention may have dropped '
            'some, and rollups stand for them; write and delete from then on', mark
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;"""


def _truncate_function(dataset: Dataset, schema: str) -> str:
    # on partitions only: TRUNCATE of the parent fires theirs
    return f"""CREATE FUNCTION {ident(schema, truncated_function(dataset.name))}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $truncated$
BEGIN
    -- it removes rows that an older snapshot does not see, and what is not seen is not logged
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'TRUNCATE of % needs a READ COMMITTED transaction', TG_TABLE_NAME
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    EXECUTE format($log$
        {_log_runs(dataset, schema, "%I.%I")}
    $log$, TG_TABLE_SCHEMA, TG_TABLE_NAME);
    RETURN NULL;
END
$truncated$"""
