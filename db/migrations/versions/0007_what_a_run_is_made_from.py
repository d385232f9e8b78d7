"""Record what a run is made from and what it writes."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # NULL: started by a version that recorded neither; what it was made from is guessed from its settings.
    op.add_column("run", sa.Column("inputs", sa.JSON(), nullable=True))
    op.add_column("run", sa.Column("outputs", sa.JSON(), nullable=True))


def downgrade() -> None:
    for column in ("outputs", "inputs"):
        op.execute(f"ALTER TABLE run DROP COLUMN {column}")
