"""Mark the pairs and tasks whose answers a training waits for, so that they are shown first."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLES = ("pair", "task")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("awaited", sa.Boolean(), server_default=sa.false(), nullable=False))
        op.create_index(
            f"ix_{table}_awaited",
            table,
            ["shuffle_key"],
            sqlite_where=sa.text("awaited = 1"),
            postgresql_where=sa.text("awaited"),
        )


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"ix_{table}_awaited", table)
        op.execute(f"ALTER TABLE {table} DROP COLUMN awaited")
