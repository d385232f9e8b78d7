"""Define the tables of studies: how strangers come in, how far each is, what they are paid.

Who a participant is to the panel that sent them stands in `panel_entry` alone: that table can be emptied, for one
person or for all, and every answer, event and payment stays.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.models import Base, Person, text_enum, utc_now


class StudyState(enum.StrEnum):
    """Whether a study lets people in: `open` alone does; a closed one is not opened again."""

    draft = "draft"
    open = "open"
    paused = "paused"
    closed = "closed"


class Stage(enum.StrEnum):
    """How far a participant is, in this order."""

    information = "information"
    screen = "screen"
    training = "training"
    qualification = "qualification"
    task = "task"
    ended = "ended"


class Outcome(enum.StrEnum):
    """How a participant's way ended; each has its own code or address."""

    done = "done"
    screened_out = "screened_out"
    no_consent = "no_consent"
    timed_out = "timed_out"
    over_quota = "over_quota"
    returned = "returned"
    """Gave the place back, here or at the panel."""
    blocked = "blocked"
    """Stopped by the study's quality rules or by an admin."""


class PaymentKind(enum.StrEnum):
    """What a payment is for."""

    base = "base"
    bonus = "bonus"
    screen_out = "screen_out"


class Study(Base):
    """A way for strangers to judge: its link, its settings as `annotate.studies.settings.StudySettings` writes them."""

    __tablename__ = "study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    link: Mapped[str] = mapped_column(String(32), unique=True)
    """Random last part of its public address."""
    settings: Mapped[dict[str, Any]]
    strata: Mapped[list[str]]
    """Of its pairs; each participant is asked about all of them equally often, as far as that goes."""
    state: Mapped[StudyState] = mapped_column(text_enum(StudyState), default=StudyState.draft)
    panel_study: Mapped[str | None] = mapped_column(String(64), unique=True)
    """Id of the study at the panel, where it was made there."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    opened_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]


class StudyPair(Base):
    """A pair that a study asks about, and how often; drawn when the study is made."""

    __tablename__ = "study_pair"
    __table_args__ = (
        CheckConstraint("done >= 0", name="done_not_negative"),
        CheckConstraint("wanted >= 0", name="wanted_not_negative"),
        Index("ix_study_pair_queue", "study_id", "stratum", "done", "shuffle_key"),
        Index("ix_study_pair_pair_id", "pair_id"),
    )

    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), primary_key=True)
    pair_id: Mapped[int] = mapped_column(ForeignKey("pair.id"), primary_key=True)
    stratum: Mapped[str] = mapped_column(String(200))
    """Its two methods and its split, as the study's quotas name them."""
    wanted: Mapped[int]
    """Answers wanted of this study's participants; 0 for a pair that its training shows."""
    done: Mapped[int] = mapped_column(default=0)
    """Live answers of them that are no repeats, kept in the transaction that adds or supersedes one."""
    shuffle_key: Mapped[int]


class Participant(Base):
    """One stranger's way through a study; their answers are those of the person `person_id`."""

    __tablename__ = "participant"
    __table_args__ = (
        CheckConstraint("(stage = 'ended') = (outcome IS NOT NULL)", name="outcome_at_the_end"),
        CheckConstraint("active_seconds >= 0", name="active_seconds_not_negative"),
        CheckConstraint("answers >= 0", name="answers_not_negative"),
        Index("ix_participant_study_stage", "study_id", "stage"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), unique=True)
    stage: Mapped[Stage] = mapped_column(text_enum(Stage), default=Stage.information)
    outcome: Mapped[Outcome | None] = mapped_column(text_enum(Outcome))
    reason: Mapped[str | None]
    """Why it ended so, in a sentence."""
    consent_hash: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the information and consent that this participant agreed to."""
    consent_at: Mapped[datetime | None]
    screen: Mapped[dict[str, Any] | None]
    """What the screen check saw: window in CSS px, device-pixel ratio, zoom."""
    answers: Mapped[int] = mapped_column(default=0)
    """Live answers to pairs of the study; gold pairs and repeats do not count."""
    active_seconds: Mapped[float] = mapped_column(default=0.0)
    """Time at work: what lies between two requests counts up to the study's idle limit."""
    warned_at: Mapped[datetime | None]
    seen_at: Mapped[datetime] = mapped_column(default=utc_now)
    """Time of the latest request."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    ended_at: Mapped[datetime | None]

    study: Mapped[Study] = relationship()
    person: Mapped[Person] = relationship()


class PanelEntry(Base):
    """Who a participant is to the panel that sent them."""

    __tablename__ = "panel_entry"
    __table_args__ = (
        UniqueConstraint("study_id", "panel_person"),
        Index("ix_panel_entry_submission", "submission"),
        Index("ix_panel_entry_panel_person", "panel_person"),
    )

    participant_id: Mapped[int] = mapped_column(ForeignKey("participant.id"), primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    panel_person: Mapped[str] = mapped_column(String(128))
    """The panel's id of the person, such as Prolific's PROLIFIC_PID."""
    submission: Mapped[str | None] = mapped_column(String(128))
    """The panel's id of this person's place in the study, such as Prolific's SESSION_ID."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class StudyEvent(Base):
    """Something that happened in a study, with its reason; never the panel's id of a person."""

    __tablename__ = "study_event"
    __table_args__ = (Index("ix_study_event_study_id_id", "study_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    participant_id: Mapped[int | None] = mapped_column(ForeignKey("participant.id"), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Payment(Base):
    """A line of a study's ledger: what a participant is owed or was paid."""

    __tablename__ = "payment"
    __table_args__ = (
        UniqueConstraint("participant_id", "kind", "reason"),
        CheckConstraint("cents > 0", name="cents_positive"),
        Index("ix_payment_study_id", "study_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    participant_id: Mapped[int] = mapped_column(ForeignKey("participant.id"))
    kind: Mapped[PaymentKind] = mapped_column(text_enum(PaymentKind))
    cents: Mapped[int]
    """In the hundredth part of the currency."""
    currency: Mapped[str] = mapped_column(String(3))
    reason: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    paid_at: Mapped[datetime | None]
    reference: Mapped[str | None] = mapped_column(String(128))
    """The panel's id of the payment."""


class WebhookSeen(Base):
    """A webhook that was taken, so that the same one again has no effect."""

    __tablename__ = "webhook_seen"

    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    received_at: Mapped[datetime] = mapped_column(default=utc_now)
