"""When an attempt's driver began to work, and its last sign of life."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("claimed", sa.Double(), nullable=True))
    op.add_column("attempts", sa.Column("renewed", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "renewed")
    op.drop_column("attempts", "claimed")
