"""Record why a pair was shown: picked, the reserve for random picks, shortlists."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PICKED = ("random", "uncertain", "disagreement", "diverse", "leftover")


def upgrade() -> None:
    # In plain SQL: Alembic adds a CHECK to SQLite by copying the table, which foreign keys that point to it forbid.
    words = ", ".join(f"'{word}'" for word in PICKED)
    for table in ("lease", "judgment"):
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN picked VARCHAR(16) DEFAULT 'random' NOT NULL "
            f"CONSTRAINT ck_{table}_picked CHECK (picked IN ({words}))"
        )
    op.add_column("pair", sa.Column("reserved", sa.Boolean(), server_default=sa.true(), nullable=False))
    # As db.pairs.is_reserved.
    op.execute(
        "UPDATE pair SET reserved = (substr(key, 32, 1) IN ('0', '1', '2') "
        "OR source_id IN (SELECT id FROM source WHERE split <> 'train'))"
    )
    op.create_index("ix_pair_reserve", "pair", ["reserved", "queue_level", "shuffle_key"])
    op.create_table(
        "shortlist",
        sa.Column(
            "picked",
            sa.Enum(*PICKED, name="picked", native_enum=False, create_constraint=True, length=16),
            nullable=False,
        ),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=False),
        sa.CheckConstraint("picked NOT IN ('random', 'leftover')", name=op.f("ck_shortlist_active_order")),
        sa.CheckConstraint("place >= 0", name=op.f("ck_shortlist_place_not_negative")),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name=op.f("fk_shortlist_pair_id_pair")),
        sa.PrimaryKeyConstraint("picked", "place", name=op.f("pk_shortlist")),
    )
    op.create_index("ix_shortlist_pair_id", "shortlist", ["pair_id"])


def downgrade() -> None:
    op.drop_table("shortlist")
    op.drop_index("ix_pair_reserve", "pair")
    for table, column in (("pair", "reserved"), ("judgment", "picked"), ("lease", "picked")):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
