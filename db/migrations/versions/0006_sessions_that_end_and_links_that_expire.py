"""End sessions everywhere at once, and let personal links expire or be used once."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # 0 is what a cookie without a version counts as: who is signed in stays so.
    op.add_column("person", sa.Column("session_version", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("person", sa.Column("link_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("person", sa.Column("link_once", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    for column in ("link_once", "link_expires_at", "session_version"):
        op.execute(f"ALTER TABLE person DROP COLUMN {column}")
