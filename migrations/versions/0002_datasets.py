"""The datasets that ship: candles, trades, metrics."""

from __future__ import annotations

from alembic import context, op

from toolkit.dataset import SHIPPED
from toolkit.ddl import create_dataset, drop_dataset
from toolkit.operations import execute

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    for dataset in SHIPPED:
        for statement in create_dataset(dataset, schema, blocks=False):
            execute(op, statement)


def downgrade() -> None:
    schema = context.config.attributes["schema"]
    for dataset in reversed(SHIPPED):
        for statement in drop_dataset(dataset, schema):
            execute(op, statement)
