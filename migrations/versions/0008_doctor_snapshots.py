"""Snapshots of the doctor: what statements took, to tell which have become slower."""

from __future__ import annotations

from alembic import context, op

from toolkit.operations import execute

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SNAPSHOT = """
CREATE TABLE "{schema}".doctor_snapshot (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT doctor_snapshot_pkey PRIMARY KEY,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    counted_since timestamptz,
    statements jsonb NOT NULL,
    indexes text[] NOT NULL
);
COMMENT ON TABLE "{schema}".doctor_snapshot IS
    'what toolkit doctor compares with: calls and milliseconds of statements by their id, and '
    'which indexes there were';
"""


def upgrade() -> None:
    _run(SNAPSHOT)


def downgrade() -> None:
    _run('DROP TABLE "{schema}".doctor_snapshot')


def _run(text: str) -> None:
    schema = context.config.attributes["schema"]
    execute(op, text.format(schema=schema.replace('"', '""')).strip().rstrip(";"))
