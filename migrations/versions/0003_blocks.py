"""Blocks: compressed points, in a table beside the rows of each dataset."""

from __future__ import annotations

from collections.abc import Iterator

from alembic import context, op

from toolkit.dataset import SHIPPED, Dataset
from toolkit.ddl import add_blocks, blocks_table, ident, literal
from toolkit.operations import execute

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLD_TO = """
ALTER TABLE "{schema}".dataset ADD COLUMN cold_to timestamptz;
COMMENT ON COLUMN "{schema}".dataset.cold_to IS
    'blocks hold points before this time only; NULL where there are none';
"""

ENSURE_PARTITIONS = """
CREATE OR REPLACE FUNCTION "{schema}".ensure_partitions(
    dataset text, wanted_from timestamptz, wanted_to timestamptz
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $ensure$
DECLARE
    declared jsonb;
BEGIN
    SELECT d.spec INTO declared FROM "{schema}".dataset AS d WHERE d.name = {owner};
    IF declared IS NULL THEN
        RAISE EXCEPTION 'no dataset %', quote_literal(dataset) USING ERRCODE = 'undefined_object';
    END IF;
    IF NOT has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        format('%I.%I', {schema_text}, dataset), 'INSERT') THEN
        RAISE EXCEPTION 'adding partitions to % needs the right to INSERT there', dataset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN "{schema}".add_partitions_v1(
        dataset, declared ->> 'partition', wanted_from, wanted_to,
        {log});
END
$ensure$;
COMMENT ON FUNCTION "{schema}".ensure_partitions(text, timestamptz, timestamptz) IS
    {says};
"""

WITH_BLOCKS = {
    "owner": "\n        regexp_replace(dataset, '_blocks$', '')",
    "log": """CASE WHEN declared ->> 'changelog' = 'trigger' AND dataset !~ '_blocks$'
             THEN dataset || '_changed_v1' END""",
    "says": "'adds the partitions a dataset, or its table of blocks, lacks in [from, to); "
    "returns how many'",
}
ROWS_ONLY = {
    "owner": "dataset",
    "log": "CASE declared ->> 'changelog' WHEN 'trigger' THEN dataset || '_changed_v1' END",
    "says": "'adds the partitions a dataset lacks in [from, to); returns how many'",
}

# what is compressed cannot be lost by going back
REFUSE = """
DO $refuse$
BEGIN
    IF EXISTS (SELECT FROM {blocks}) THEN
        RAISE EXCEPTION 'points of {name} lie in blocks, which revision 0002 does not know; '
            'run: toolkit decompress {name}' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$refuse$
"""


def upgrade() -> None:
    _run(COLD_TO)
    _run(ENSURE_PARTITIONS, **WITH_BLOCKS)
    for dataset in _datasets():
        for statement in add_blocks(dataset, _schema()):
            execute(op, statement)


def downgrade() -> None:
    for dataset in _datasets():
        blocks = ident(_schema(), blocks_table(dataset.name))
        _run(REFUSE, blocks=blocks, name=dataset.name)
        _run("DROP TABLE {blocks}", blocks=blocks)
    _run(ENSURE_PARTITIONS, **ROWS_ONLY)
    _run('ALTER TABLE "{schema}".dataset DROP COLUMN cold_to')


def _datasets() -> Iterator[Dataset]:
    """Yield the datasets of the catalog; those that ship where there is none to look into.

    A dataset of a service is not in the SQL of ``migrate sql``: migrate those with a connection.
    """
    if context.is_offline_mode():
        yield from SHIPPED
        return
    table = ident(_schema(), "dataset")
    found = op.get_bind().exec_driver_sql(f"SELECT spec FROM {table} ORDER BY id")  # noqa: S608
    yield from (Dataset.from_mapping(spec) for (spec,) in found.all())


def _schema() -> str:
    schema: str = context.config.attributes["schema"]
    return schema


def _run(text: str, **parts: str) -> None:
    schema = _schema()
    filled = text.format(schema=schema.replace('"', '""'), schema_text=literal(schema), **parts)
    execute(op, filled.strip().rstrip(";"))
