"""Give studies with strangers their tables."""

import sqlalchemy as sa
from alembic import op

import db.models

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MOMENT = db.models.UtcDateTime(timezone=True)
STATES = ("draft", "open", "paused", "closed")
STAGES = ("information", "screen", "training", "qualification", "task", "ended")
OUTCOMES = ("done", "screened_out", "no_consent", "timed_out", "over_quota", "returned", "blocked")
KINDS = ("base", "bonus", "screen_out")
TABLES = ("webhook_seen", "study_pair", "study_event", "payment", "panel_entry", "participant", "study")


def words(name: str, *values: str) -> sa.Enum:
    """Text that is one of these, by a rule of the table."""
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)


def upgrade() -> None:
    op.create_table(
        "study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("link", sa.String(length=32), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("strata", sa.JSON(), nullable=False),
        sa.Column("state", words("studystate", *STATES), nullable=False),
        sa.Column("panel_study", sa.String(length=64), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("opened_at", MOMENT, nullable=True),
        sa.Column("closed_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("link", name=op.f("uq_study_link")),
        sa.UniqueConstraint("name", name=op.f("uq_study_name")),
        sa.UniqueConstraint("panel_study", name=op.f("uq_study_panel_study")),
    )
    op.create_table(
        "webhook_seen",
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_webhook_seen")),
    )
    op.create_table(
        "participant",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("stage", words("stage", *STAGES), nullable=False),
        sa.Column("outcome", words("outcome", *OUTCOMES), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("consent_hash", sa.String(length=64), nullable=True),
        sa.Column("consent_at", MOMENT, nullable=True),
        sa.Column("screen", sa.JSON(), nullable=True),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.Column("active_seconds", sa.Double(), nullable=False),
        sa.Column("warned_at", MOMENT, nullable=True),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.CheckConstraint("(stage = 'ended') = (outcome IS NOT NULL)", name=op.f("ck_participant_outcome_at_the_end")),
        sa.CheckConstraint("active_seconds >= 0", name=op.f("ck_participant_active_seconds_not_negative")),
        sa.CheckConstraint("answers >= 0", name=op.f("ck_participant_answers_not_negative")),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_participant_person_id_person")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_participant_study_id_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_participant")),
        sa.UniqueConstraint("person_id", name=op.f("uq_participant_person_id")),
    )
    op.create_index("ix_participant_study_stage", "participant", ["study_id", "stage"])
    op.create_table(
        "panel_entry",
        sa.Column("participant_id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("panel_person", sa.String(length=128), nullable=False),
        sa.Column("submission", sa.String(length=128), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participant.id"], name=op.f("fk_panel_entry_participant_id_participant")
        ),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_panel_entry_study_id_study")),
        sa.PrimaryKeyConstraint("participant_id", name=op.f("pk_panel_entry")),
        sa.UniqueConstraint("study_id", "panel_person", name=op.f("uq_panel_entry_study_id_panel_person")),
    )
    op.create_index("ix_panel_entry_panel_person", "panel_entry", ["panel_person"])
    op.create_index("ix_panel_entry_submission", "panel_entry", ["submission"])
    op.create_table(
        "payment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("participant_id", sa.Integer(), nullable=False),
        sa.Column("kind", words("paymentkind", *KINDS), nullable=False),
        sa.Column("cents", sa.Integer(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("paid_at", MOMENT, nullable=True),
        sa.Column("reference", sa.String(length=128), nullable=True),
        sa.CheckConstraint("cents > 0", name=op.f("ck_payment_cents_positive")),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participant.id"], name=op.f("fk_payment_participant_id_participant")
        ),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_payment_study_id_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payment")),
        sa.UniqueConstraint("participant_id", "kind", "reason", name=op.f("uq_payment_participant_id_kind_reason")),
    )
    op.create_index("ix_payment_study_id", "payment", ["study_id"])
    op.create_table(
        "study_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("participant_id", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participant.id"], name=op.f("fk_study_event_participant_id_participant")
        ),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_study_event_study_id_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study_event")),
    )
    op.create_index("ix_study_event_participant_id", "study_event", ["participant_id"])
    op.create_index("ix_study_event_study_id_id", "study_event", ["study_id", "id"])
    op.create_table(
        "study_pair",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=False),
        sa.Column("stratum", sa.String(length=200), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("shuffle_key", sa.Integer(), nullable=False),
        sa.CheckConstraint("done >= 0", name=op.f("ck_study_pair_done_not_negative")),
        sa.CheckConstraint("wanted >= 0", name=op.f("ck_study_pair_wanted_not_negative")),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name=op.f("fk_study_pair_pair_id_pair")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_study_pair_study_id_study")),
        sa.PrimaryKeyConstraint("study_id", "pair_id", name=op.f("pk_study_pair")),
    )
    op.create_index("ix_study_pair_pair_id", "study_pair", ["pair_id"])
    op.create_index("ix_study_pair_queue", "study_pair", ["study_id", "stratum", "done", "shuffle_key"])


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
