"""Job runs: what maintenance did, when, and how it ended."""

from __future__ import annotations

from alembic import context, op

from toolkit.operations import execute

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JOB_RUN = """
CREATE TABLE "{schema}".job_run (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT job_run_pkey PRIMARY KEY,
    job text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    status text NOT NULL DEFAULT 'running' CONSTRAINT job_run_status_is_known
        CHECK (status IN ('running', 'done', 'nothing', 'cut', 'skipped', 'failed', 'killed')),
    pid integer NOT NULL DEFAULT pg_backend_pid(),
    targets text[] NOT NULL DEFAULT '{{}}',
    counts jsonb NOT NULL DEFAULT '{{}}',
    said text[] NOT NULL DEFAULT '{{}}'
);
COMMENT ON TABLE "{schema}".job_run IS
    'runs of maintenance jobs: what each did (counts) and what it could not do (said)';
CREATE INDEX job_run_job ON "{schema}".job_run (job, started_at);
"""


def upgrade() -> None:
    _run(JOB_RUN)


def downgrade() -> None:
    _run('DROP TABLE "{schema}".job_run')


def _run(text: str) -> None:
    schema = context.config.attributes["schema"]
    execute(op, text.format(schema=schema.replace('"', '""')).strip().rstrip(";"))
