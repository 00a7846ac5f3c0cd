"""What upkeep remembers: what was looked at, what is asked often, what was refreshed first."""

from __future__ import annotations

from alembic import context, op

from toolkit.operations import execute

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE "{schema}".looked_at (
    job text NOT NULL,
    dataset_id integer NOT NULL CONSTRAINT looked_at_dataset_id_fkey
        REFERENCES "{schema}".dataset (id) ON DELETE CASCADE,
    start timestamptz NOT NULL,
    series_to integer,
    at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT looked_at_pkey PRIMARY KEY (job, dataset_id, start)
);
COMMENT ON TABLE "{schema}".looked_at IS
    'when jobs that look at everything have looked at the part of a dataset that begins at start; '
    'where series_to is set, at the series up to that one only';

CREATE TABLE "{schema}".popularity (
    series_id integer NOT NULL CONSTRAINT popularity_series_id_fkey
        REFERENCES "{schema}".series (id) ON DELETE CASCADE,
    step text NOT NULL,
    reads double precision NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    width interval NOT NULL,
    behind interval NOT NULL,
    CONSTRAINT popularity_pkey PRIMARY KEY (series_id, step)
);
COMMENT ON TABLE "{schema}".popularity IS
    'how often series are read at a step (empty: points), halved every day; the last such read '
    'was of a range so wide that ended so long before then';

CREATE TABLE "{schema}".rollup_head (
    id integer NOT NULL CONSTRAINT rollup_head_pkey PRIMARY KEY
        CONSTRAINT rollup_head_id_fkey REFERENCES "{schema}".rollup (id) ON DELETE CASCADE,
    dataset_id integer NOT NULL CONSTRAINT rollup_head_dataset_id_fkey
        REFERENCES "{schema}".dataset (id) ON DELETE CASCADE,
    since timestamptz NOT NULL,
    cursor pg_snapshot NOT NULL,
    pass_to pg_snapshot,
    pass_series integer,
    pass_lo timestamptz
);
COMMENT ON TABLE "{schema}".rollup_head IS
    'of changes at or after since a rollup has followed those visible in cursor, too: '
    'where there is much to follow, the newest comes first';
"""


def upgrade() -> None:
    _run(TABLES)


def downgrade() -> None:
    for table in ("rollup_head", "popularity", "looked_at"):
        _run(f'DROP TABLE "{{schema}}".{table}')


def _run(text: str) -> None:
    schema = context.config.attributes["schema"]
    execute(op, text.format(schema=schema.replace('"', '""')).strip().rstrip(";"))
