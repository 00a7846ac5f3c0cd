"""Retention: a mark before which points may be gone, and rollups stand for them."""

from __future__ import annotations

from collections.abc import Iterator

from alembic import context, op

from toolkit.dataset import SHIPPED, Dataset
from toolkit.ddl import guard_writes, ident, literal
from toolkit.operations import execute

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MARKS = """
ALTER TABLE "{schema}".dataset ADD COLUMN frozen_before timestamptz;
COMMENT ON COLUMN "{schema}".dataset.frozen_before IS
    'points before this time may be gone: rollups stand for them, and nothing is written there';
ALTER TABLE "{schema}".rollup ADD COLUMN gone_before timestamptz;
COMMENT ON COLUMN "{schema}".rollup.gone_before IS
    'buckets before this time are gone, too; NULL where none is';
"""

# as in 0003, and: no partition before the mark
ENSURE_PARTITIONS = """
CREATE OR REPLACE FUNCTION "{schema}".ensure_partitions(
    dataset text, wanted_from timestamptz, wanted_to timestamptz
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $ensure$
DECLARE
    declared jsonb;{mark}
BEGIN
    SELECT d.spec{into} FROM "{schema}".dataset AS d WHERE d.name = {nothing}
        regexp_replace(dataset, '_blocks$', '');
    IF declared IS NULL THEN
        RAISE EXCEPTION 'no dataset %', quote_literal(dataset) USING ERRCODE = 'undefined_object';
    END IF;
    IF NOT has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        format('%I.%I', {schema_text}, dataset), 'INSERT') THEN
        RAISE EXCEPTION 'adding partitions to % needs the right to INSERT there', dataset
            USING ERRCODE = 'insufficient_privilege';
    END IF;{refusal}
    RETURN "{schema}".add_partitions_v1(
        dataset, declared ->> 'partition', {wanted_from}, wanted_to,
        CASE WHEN declared ->> 'changelog' = 'trigger' AND dataset !~ '_blocks$'
             THEN dataset || '_changed_v1' END);
END
$ensure$;
COMMENT ON FUNCTION "{schema}".ensure_partitions(text, timestamptz, timestamptz) IS
    {says};
"""

GUARDED = {
    "mark": "\n    mark timestamptz;",
    "into": ", d.frozen_before INTO declared, mark",
    "refusal": """
    IF dataset ~ '_blocks$' THEN
        mark := NULL;  -- points that are left there may become blocks still
    ELSIF wanted_to <= mark THEN
        RAISE EXCEPTION 'no partition of % is made before %: retention has dropped what was '
            'there, and rollups stand for it; write from then on', dataset, mark
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;""",
    "wanted_from": "greatest(wanted_from, mark)",
    "says": "'adds the partitions a dataset, or its table of blocks, lacks in [from, to), '\n"
    "    'none of rows before dataset.frozen_before; returns how many'",
}
UNGUARDED = {
    "mark": "",
    "into": " INTO declared",
    "refusal": "",
    "wanted_from": "wanted_from",
    "says": "'adds the partitions a dataset, or its table of blocks, lacks in [from, to); "
    "returns how many'",
}

# without the mark a refresh would count buckets of points that are gone
REFUSE = """
DO $refuse$
BEGIN
    IF EXISTS (SELECT FROM "{schema}".dataset WHERE frozen_before IS NOT NULL) THEN
        RAISE EXCEPTION 'retention has dropped points that rollups stand for, which revision 0004 '
            'does not know: there is no way back but a backup of before'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$refuse$
"""


def upgrade() -> None:
    _run(MARKS)
    _run(ENSURE_PARTITIONS, **GUARDED)
    for dataset in _datasets():
        for statement in guard_writes(dataset, _schema()):
            execute(op, statement)


def downgrade() -> None:
    _run(REFUSE)
    for dataset in _datasets():
        for statement in guard_writes(dataset, _schema(), guards=False):
            execute(op, statement)
    _run(ENSURE_PARTITIONS, **UNGUARDED)
    _run('ALTER TABLE "{schema}".rollup DROP COLUMN gone_before')
    _run('ALTER TABLE "{schema}".dataset DROP COLUMN frozen_before')


def _datasets() -> Iterator[Dataset]:
    """Yield the datasets of the catalog; those that ship where there is none to look into."""
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
    parts["nothing"] = ""  # the line of 0003 ends with a space, and going back leads to it
    filled = text.format(schema=schema.replace('"', '""'), schema_text=literal(schema), **parts)
    execute(op, filled.strip().rstrip(";"))
