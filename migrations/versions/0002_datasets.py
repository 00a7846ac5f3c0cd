"""The datasets that ship: candles, trades, metrics."""

from __future__ import annotations

from alembic import context, op

from toolkit.dataset import SHIPPED
from toolkit.operations import CreateDataset, DropDataset

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    for dataset in SHIPPED:
        op.invoke(CreateDataset(dataset, schema))


def downgrade() -> None:
    schema = context.config.attributes["schema"]
    for dataset in reversed(SHIPPED):
        op.invoke(DropDataset(dataset, schema))
