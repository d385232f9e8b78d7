"""Record how a run is started: its arguments, device, the runs it waits for, the place of its process."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("arguments", sa.JSON(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("run", sa.Column("cwd", sa.String(), nullable=True))
    op.add_column("run", sa.Column("device", sa.String(), nullable=True))
    op.add_column("run", sa.Column("after", sa.JSON(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("run", sa.Column("launcher", sa.JSON(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("run", sa.Column("host", sa.String(), nullable=True))
    # From now on a queued run without a process waits to be started; before, nothing would ever have started it.
    op.execute(
        "UPDATE run SET state = 'lost', error = 'it was never started', ended_at = created_at "
        "WHERE state = 'queued' AND pid IS NULL"
    )


def downgrade() -> None:
    for column in ("host", "launcher", "after", "device", "cwd", "arguments"):
        op.execute(f"ALTER TABLE run DROP COLUMN {column}")
