"""Record the server's time of a judgment, and whose answers were discarded."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = (("lease", "leased_at"), ("judgment", "server_seconds"), ("judgment", "discarded_at"))


def upgrade() -> None:
    # Nobody knows when the leases of now were given: they keep NULL, as do the judgments.
    op.add_column("lease", sa.Column("leased_at", sa.DateTime(timezone=True)))
    # In plain SQL: Alembic adds a check to SQLite by copying the table.
    number = sa.Double().compile(dialect=op.get_bind().dialect)
    op.execute(
        f"ALTER TABLE judgment ADD COLUMN server_seconds {number} "
        "CONSTRAINT ck_judgment_server_seconds_not_negative CHECK (server_seconds >= 0)"
    )
    op.add_column("judgment", sa.Column("discarded_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    # What was discarded stays superseded, so that it counts nowhere.
    for table, column in COLUMNS:
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
