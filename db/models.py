"""Define the tables, in the vocabulary of docs/glossary.md.

Rules that must always hold are constraints here, so that no caller can break them:
a pair is unique whichever way round it is asked for, a live judgment is unique per (pair, person, repeat),
a skip carries a reason, an enum column holds only its values.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UtcDateTime(TypeDecorator[datetime]):
    """A time zone aware UTC time on every backend; SQLite alone would give naive ones back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is not None and value.tzinfo is None:
            raise ValueError(f"naive time {value!r}; pass datetime.now(UTC)")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_now() -> datetime:
    """The present time, aware, UTC."""
    return datetime.now(UTC)


class Split(enum.StrEnum):
    """Part of the data that a source belongs to; drawn once, at import, from its group."""

    train = "train"
    val = "val"
    test = "test"


class Choice(enum.StrEnum):
    """One person's answer to a pair; of a task's answers the skip alone."""

    a = "a"
    b = "b"
    tie = "tie"
    skip = "skip"


class Asked(enum.StrEnum):
    """How a person was asked: about two candidates, or for the best, the best and the worst, or an order of more."""

    pair = "pair"
    best = "best"
    best_worst = "best_worst"
    order = "order"


class Side(enum.StrEnum):
    """One candidate of a pair."""

    a = "a"
    b = "b"


class Role(enum.StrEnum):
    """An annotator judges and sees their own progress; an admin sees everything."""

    annotator = "annotator"
    admin = "admin"


class Origin(enum.StrEnum):
    """Maker of a label: people's judgments, or a fitted labeler."""

    human = "human"
    svm = "svm"


class Picked(enum.StrEnum):
    """Reason why a pair was shown. Only pairs picked at random measure accuracy: the others are not a fair sample."""

    random = "random"
    uncertain = "uncertain"
    disagreement = "disagreement"
    diverse = "diverse"
    leftover = "leftover"
    """Not picked at random: a leftover of active selection, opened by hand, or awaited by a training."""
    information = "information"


class RunState(enum.StrEnum):
    """State of a run; `lost` is a run whose process died without a word."""

    queued = "queued"
    running = "running"
    stopping = "stopping"
    stopped = "stopped"
    finished = "finished"
    failed = "failed"
    lost = "lost"


def text_enum(kind: type[enum.StrEnum]) -> Enum:
    """Stored as text with a CHECK, so that both backends refuse an unknown value."""
    return Enum(kind, native_enum=False, create_constraint=True, length=16, name=kind.__name__.lower())


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        datetime: UtcDateTime,
        float: Double,
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[dict[str, str]]: JSON,
        list[int]: JSON,
    }


class Project(Base):
    """The one project of this database: its settings as `db.project.ProjectSettings` writes them."""

    __tablename__ = "project"
    __table_args__ = (CheckConstraint("id = 1", name="single_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    settings: Mapped[dict[str, Any]]
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class Question(Base):
    """One version of what people read before they answer; `id` is its number. A row is never changed.

    Words that come back are their old version again: the key is made of them (`db.project.question_key`).
    """

    __tablename__ = "question"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(16), unique=True)
    """The version's name outside this database."""
    title: Mapped[str]
    question: Mapped[str]
    guidelines: Mapped[str]
    reasons: Mapped[list[str]]
    skip_reasons: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    """Time when these words were first shown."""


class Image(Base):
    """One image file of the data folder, stored once under its SHA-256."""

    __tablename__ = "image"
    __table_args__ = (
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
        CheckConstraint("width_px > 0 AND height_px > 0", name="has_pixels"),
        Index("ix_image_original_sha256", "original_sha256"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    suffix: Mapped[str] = mapped_column(String(8))
    """File name suffix and so the format: .png, .jpg or .webp."""
    width_px: Mapped[int]
    height_px: Mapped[int]
    size_bytes: Mapped[int]
    original_sha256: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the imported file where it had to be converted (see `conversion`); None where stored as it came."""
    conversion: Mapped[str | None]
    """Reason why the stored file is not the imported one, such as 'EXIF orientation 6 applied'."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Source(Base):
    """One photo to restore."""

    __tablename__ = "source"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """The file stem, or the name that the manifest gives."""
    group: Mapped[str] = mapped_column("group_key")
    """The person in the photo where known, else the source's own key; the split keeps a group together."""
    split: Mapped[Split] = mapped_column(text_enum(Split))
    caption: Mapped[str | None]
    lq_image_id: Mapped[int | None] = mapped_column(ForeignKey("image.id"))
    hq_image_id: Mapped[int | None] = mapped_column(ForeignKey("image.id"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    lq: Mapped[Image | None] = relationship(foreign_keys=[lq_image_id])
    hq: Mapped[Image | None] = relationship(foreign_keys=[hq_image_id])


class Method(Base):
    """Maker of a restored image: a restorer and its settings, or a run's weights."""

    __tablename__ = "method"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Candidate(Base):
    """One restored image of a source by a method and seed."""

    __tablename__ = "candidate"
    __table_args__ = (
        UniqueConstraint("source_id", "method_id", "seed"),
        Index("ix_candidate_image_id", "image_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    source_id: Mapped[int] = mapped_column(ForeignKey("source.id"))
    method_id: Mapped[int] = mapped_column(ForeignKey("method.id"), index=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"))
    seed: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    source: Mapped[Source] = relationship()
    method: Mapped[Method] = relationship()
    image: Mapped[Image] = relationship()


class MetricValue(Base):
    """One metric of one image, against one reference where the metric takes one."""

    __tablename__ = "metric_value"
    __table_args__ = (UniqueConstraint("image_id", "metric", "version", "reference"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"))
    metric: Mapped[str]
    version: Mapped[str]
    reference: Mapped[str] = mapped_column(default="")
    """SHA-256 of the reference image; empty for a metric that takes none."""
    value: Mapped[float | None]
    """Oriented so that higher is better; None where measuring failed."""
    raw_value: Mapped[float | None]
    failure: Mapped[str | None]


class Pair(Base):
    """Two candidates of one source, unordered and unique.

    `a` is the candidate with the smaller key (`db.records.candidate_key`), a hash: the order is the same in every
    database and says nothing about the method.
    """

    __tablename__ = "pair"
    __table_args__ = (
        CheckConstraint("a_id <> b_id", name="two_candidates"),
        CheckConstraint("judgment_count >= 0", name="count_not_negative"),
        CheckConstraint("gold_answer IN ('a', 'b', 'tie')", name="gold_answer_known"),
        Index("ix_pair_queue", "queue_level", "shuffle_key"),
        Index("ix_pair_reserve", "reserved", "queue_level", "shuffle_key"),
        Index("ix_pair_gold", "gold_answer", "shuffle_key"),
        Index("ix_pair_awaited", "shuffle_key", sqlite_where=text("awaited = 1"), postgresql_where=text("awaited")),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(32), unique=True)
    """`db.records.pair_key` of the two candidates: the pair's name outside this database."""
    source_id: Mapped[int] = mapped_column(ForeignKey("source.id"), index=True)
    a_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"), index=True)
    b_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"), index=True)
    shuffle_key: Mapped[int]
    """Random order of showing, 0 … 2^31 − 1, from the pair's key."""
    reserved: Mapped[bool] = mapped_column(default=True, server_default=true())
    """Shown by random picks only, never by an active order: `db.pairs.is_reserved` of its key and split."""
    awaited: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Shown before all others, since a training waits for the answer; it decides how many it wants."""
    judgments_wanted: Mapped[int] = mapped_column(default=1)
    judgment_count: Mapped[int] = mapped_column(default=0)
    """Live judgments that are not repeats, kept by annotate.judging.judgments in the transaction that adds or
    supersedes one."""
    gold_answer: Mapped[str | None] = mapped_column(String(8))
    """Known answer of a gold pair; such a pair is shown once to everyone and is not in the queue."""
    queue_level: Mapped[int | None] = mapped_column(
        Computed(
            "CASE WHEN gold_answer IS NULL AND judgment_count < judgments_wanted THEN judgment_count END",
            persisted=True,
        )
    )
    """judgment_count while the pair still wants judgments, else NULL: an indexed look-up whatever the table's size."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    source: Mapped[Source] = relationship()
    a: Mapped[Candidate] = relationship(foreign_keys=[a_id])
    b: Mapped[Candidate] = relationship(foreign_keys=[b_id])


class Task(Base):
    """Three to six candidates of one source that are judged at once; asked about as a pair is, which is a task of two.

    Its candidates bear the letters a … f by their keys (`db.records.candidate_key`), as a and b of a pair.
    """

    __tablename__ = "task"
    __table_args__ = (
        CheckConstraint("size BETWEEN 3 AND 6", name="size_3_to_6"),
        CheckConstraint("judgment_count >= 0", name="count_not_negative"),
        Index("ix_task_queue", "queue_level", "shuffle_key"),
        Index("ix_task_reserve", "reserved", "queue_level", "shuffle_key"),
        Index("ix_task_gold", "gold_ranking", "shuffle_key"),
        Index("ix_task_awaited", "shuffle_key", sqlite_where=text("awaited = 1"), postgresql_where=text("awaited")),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(32), unique=True)
    """`db.records.task_key` of the candidates: the task's name outside this database."""
    source_id: Mapped[int] = mapped_column(ForeignKey("source.id"), index=True)
    size: Mapped[int]
    """Number of its candidates."""
    shuffle_key: Mapped[int]
    reserved: Mapped[bool] = mapped_column(default=True, server_default=true())
    awaited: Mapped[bool] = mapped_column(default=False, server_default=false())
    judgments_wanted: Mapped[int] = mapped_column(default=1)
    judgment_count: Mapped[int] = mapped_column(default=0)
    """Live judgments that are not repeats, and `shuffle_key`, `reserved`, `awaited`, `judgments_wanted`, as of a
    pair."""
    gold_ranking: Mapped[str | None] = mapped_column(String(16))
    """Known answer of a gold task (`metrics.rankings`), such as 'c>?'; shown once to everyone, not in the queue."""
    queue_level: Mapped[int | None] = mapped_column(
        Computed(
            "CASE WHEN gold_ranking IS NULL AND judgment_count < judgments_wanted THEN judgment_count END",
            persisted=True,
        )
    )
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    source: Mapped[Source] = relationship()
    candidates: Mapped[list[TaskCandidate]] = relationship(order_by="TaskCandidate.letter")


class TaskCandidate(Base):
    """A candidate of a task under its letter."""

    __tablename__ = "task_candidate"
    __table_args__ = (
        UniqueConstraint("task_id", "candidate_id"),
        CheckConstraint("letter IN ('a', 'b', 'c', 'd', 'e', 'f')", name="letter_known"),
    )

    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), primary_key=True)
    letter: Mapped[str] = mapped_column(String(1), primary_key=True)
    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"), index=True)

    candidate: Mapped[Candidate] = relationship()


class Person(Base):
    """Person who judges or administers."""

    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    public_id: Mapped[str] = mapped_column(String(32), unique=True)
    """Random name under which this person's judgments are exported."""
    role: Mapped[Role] = mapped_column(text_enum(Role))
    simulated: Mapped[bool] = mapped_column(default=False)
    """A program, not a person; marked wherever its judgments count."""
    password_hash: Mapped[str | None]
    link_hash: Mapped[str | None] = mapped_column(unique=True)
    """SHA-256 of the personal link's token."""
    link_expires_at: Mapped[datetime | None]
    """From when on the link lets nobody in; None for never."""
    link_once: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether the link is gone once somebody has entered by it."""
    session_version: Mapped[int] = mapped_column(default=0, server_default="0")
    """Counts up when all sessions of this person end; a session's cookie holds the number that it was begun with."""
    guidelines_seen_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


def _of_pair_or_task() -> tuple[CheckConstraint, ...]:
    """Rules of a lease and of a judgment: it is of a pair or of a task, and knows how that stood on the screen."""
    return (
        CheckConstraint("(pair_id IS NULL) <> (task_id IS NULL)", name="pair_or_task"),
        CheckConstraint("(shown_left IS NULL) = (pair_id IS NULL)", name="side_of_pair"),
        CheckConstraint("(places IS NULL) = (task_id IS NULL)", name="places_of_task"),
        CheckConstraint("(asked = 'pair') = (task_id IS NULL)", name="asked_pair"),
    )


class Lease(Base):
    """A pair or task held for one person while they look at it; it blocks a slot until it expires."""

    __tablename__ = "lease"
    __table_args__ = (
        UniqueConstraint("pair_id", "person_id"),
        UniqueConstraint("task_id", "person_id"),
        *_of_pair_or_task(),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    pair_id: Mapped[int | None] = mapped_column(ForeignKey("pair.id"))
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    repeat_no: Mapped[int] = mapped_column(default=0)
    shown_left: Mapped[Side | None] = mapped_column(text_enum(Side))
    places: Mapped[str | None] = mapped_column(String(6))
    """Letters of a task's candidates in the order in which they stand on the screen."""
    asked: Mapped[Asked] = mapped_column(text_enum(Asked), default=Asked.pair, server_default="pair")
    picked: Mapped[Picked] = mapped_column(text_enum(Picked), default=Picked.random, server_default="random")
    leased_at: Mapped[datetime | None] = mapped_column(default=utc_now)
    """Time when the pair was handed out; None after an undo, and of leases of before version 0005 of the tables."""
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Presence(Base):
    """What the server knows of a person at work; see `annotate.judging.presence`. Nothing is lost with the table."""

    __tablename__ = "presence"

    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True, autoincrement=False)
    heard_at: Mapped[datetime]
    """Time of the latest request of one of their labelling pages."""
    answered_at: Mapped[datetime | None]
    paid_until: Mapped[datetime | None]
    pages: Mapped[dict[str, Any]]
    """Pages that are open, by their random ids."""


class Shortlist(Base):
    """The pairs and tasks that an active order shows next, best first; written anew by every fit of the labeler.

    Rows once written are replaced, never only removed: that there are any says that active orders have been at work.
    """

    __tablename__ = "shortlist"
    __table_args__ = (
        CheckConstraint("picked NOT IN ('random', 'leftover')", name="active_order"),
        CheckConstraint("place >= 0", name="place_not_negative"),
        CheckConstraint("(pair_id IS NULL) <> (task_id IS NULL)", name="pair_or_task"),
        Index("ix_shortlist_pair_id", "pair_id"),
        Index("ix_shortlist_task_id", "task_id"),
    )

    picked: Mapped[Picked] = mapped_column(text_enum(Picked), primary_key=True)
    """The order that this row belongs to."""
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """0 for the one to be shown first, of pairs and tasks together."""
    pair_id: Mapped[int | None] = mapped_column(ForeignKey("pair.id"))
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))


class Judgment(Base):
    """One person's answer to one pair or task, a row each.

    Only `superseded_at` and `discarded_at` are written after the row was added.
    """

    __tablename__ = "judgment"
    __table_args__ = (
        Index(
            "uq_judgment_live",
            "pair_id",
            "person_id",
            "repeat_no",
            unique=True,
            sqlite_where=text("superseded_at IS NULL"),
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index(
            "uq_judgment_live_of_task",
            "task_id",
            "person_id",
            "repeat_no",
            unique=True,
            sqlite_where=text("superseded_at IS NULL"),
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index("ix_judgment_person_id_id", "person_id", "id"),
        *_of_pair_or_task(),
        CheckConstraint("(choice IS NULL) = (ranking IS NOT NULL)", name="choice_or_ranking"),
        CheckConstraint("pair_id IS NULL OR choice IS NOT NULL", name="pair_has_choice"),
        CheckConstraint("task_id IS NULL OR choice IS NULL OR choice = 'skip'", name="task_ranked_or_skip"),
        CheckConstraint("choice IS NOT NULL OR skip_reason IS NULL", name="ranking_has_no_skip_reason"),
        CheckConstraint("(choice = 'skip') = (skip_reason IS NOT NULL)", name="skip_has_reason"),
        CheckConstraint("seconds >= 0", name="seconds_not_negative"),
        CheckConstraint("server_seconds >= 0", name="server_seconds_not_negative"),
        CheckConstraint("repeat_no >= 0", name="repeat_not_negative"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    uuid: Mapped[str] = mapped_column(String(36), unique=True)
    """Made by the page: sending the same judgment twice stores it once."""
    pair_id: Mapped[int | None] = mapped_column(ForeignKey("pair.id"))
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    question_id: Mapped[int | None] = mapped_column(ForeignKey("question.id"))
    """Question that the page asked; None where it was not recorded."""
    repeat_no: Mapped[int] = mapped_column(default=0)
    """0 for the first showing to this person, 1 for the marked repeat with sides swapped or places changed."""
    choice: Mapped[Choice | None] = mapped_column(text_enum(Choice))
    """None where the answer is a ranking."""
    ranking: Mapped[str | None] = mapped_column(String(16))
    """The answer to a task, such as 'c>?' or 'c>a=d>b' (`metrics.rankings`); its pairs are derived, not stored."""
    asked: Mapped[Asked] = mapped_column(text_enum(Asked), default=Asked.pair, server_default="pair")
    skip_reason: Mapped[str | None]
    reasons: Mapped[list[str]] = mapped_column(default=list)
    shown_left: Mapped[Side | None] = mapped_column(text_enum(Side))
    places: Mapped[str | None] = mapped_column(String(6))
    """Letters of a task's candidates in the order in which they stood on the screen."""
    picked: Mapped[Picked] = mapped_column(text_enum(Picked), default=Picked.random, server_default="random")
    """Reason why this pair was shown; random for repeats and gold pairs, which make no label."""
    view_mode: Mapped[str] = mapped_column(default="fit")
    """View modes that were used, joined by '+'."""
    seconds: Mapped[float]
    """Time the pair was visible before the answer, as the page claims."""
    server_seconds: Mapped[float | None]
    """The same as the server's clock saw it (`annotate.judging.pace.Stopwatch`); None where it saw nothing."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    superseded_at: Mapped[datetime | None]
    discarded_at: Mapped[datetime | None]
    """Time when an admin took this person's answers out (`annotate.judging.discard`); it is `superseded_at` where it
    stood."""

    pair: Mapped[Pair | None] = relationship()
    task: Mapped[Task | None] = relationship()
    person: Mapped[Person] = relationship()
    question: Mapped[Question | None] = relationship()


class Label(Base):
    """A pair's resolved preference. A changed label is a new row; the old one gains `superseded_at`."""

    __tablename__ = "label"
    __table_args__ = (
        Index(
            "uq_label_live",
            "pair_id",
            "origin",
            unique=True,
            sqlite_where=text("superseded_at IS NULL"),
            postgresql_where=text("superseded_at IS NULL"),
        ),
        CheckConstraint("p_a >= 0 AND p_a <= 1", name="p_a_is_probability"),
        CheckConstraint("weight >= 0", name="weight_not_negative"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    pair_id: Mapped[int] = mapped_column(ForeignKey("pair.id"))
    origin: Mapped[Origin] = mapped_column(text_enum(Origin))
    made_by: Mapped[str]
    """Way it was made: 'majority', 'dawid-skene', 'imported:hpdv2', or the labeler that made it."""
    p_a: Mapped[float]
    """Probability that a is better; a tie is one half."""
    weight: Mapped[float] = mapped_column(default=1.0)
    agreement: Mapped[float | None]
    """Share of the judgments behind this label that chose its most frequent answer; None without judgments."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    superseded_at: Mapped[datetime | None]

    pair: Mapped[Pair] = relationship()
    judgments: Mapped[list[Judgment]] = relationship(secondary="label_judgment", order_by="Judgment.id")


class LabelJudgment(Base):
    """Link between a label and a judgment it was made of."""

    __tablename__ = "label_judgment"

    label_id: Mapped[int] = mapped_column(ForeignKey("label.id"), primary_key=True)
    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgment.id"), primary_key=True, index=True)


class Run(Base):
    """A long job: what was asked, where it stands, where its folder lies."""

    __tablename__ = "run"
    __table_args__ = (Index("ix_run_state", "state"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """The command without its options, such as 'annotate import'."""
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)
    arguments: Mapped[list[str]] = mapped_column(default=list, server_default=text("'[]'"))
    """Arguments after `kind` on the command line, without --data, --db and --run."""
    inputs: Mapped[list[dict[str, str]] | None]
    """What it is made from: {"option", "kind", "value"}, paths absolute; None where the command did not record it."""
    outputs: Mapped[list[dict[str, str]] | None]
    """What it writes: {"option", "value"}; None as above."""
    cwd: Mapped[str | None]
    """The folder that relative paths among the arguments start from; None where the command is not known."""
    device: Mapped[str | None]
    """Device that it computes on and queues for: 'cpu', 'cuda:0', 'cuda:0,cuda:1'; None needs no queue."""
    after: Mapped[list[int]] = mapped_column(default=list, server_default=text("'[]'"))
    """Runs that have to be finished before this one starts."""
    launcher: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=text("'{}'"))
    """{} plain; {"processes": 2, "machines": 1} by accelerate; {"slurm": {…}} by submitit, with the job's id."""
    state: Mapped[RunState] = mapped_column(text_enum(RunState), default=RunState.queued)
    error: Mapped[str | None]
    """The last error line of a failed run."""
    host: Mapped[str | None]
    """Name of the machine that its process is on; None before there is one."""
    pid: Mapped[int | None]
    pid_started: Mapped[float | None]
    """Start time of the process, seconds since the epoch: a reused pid has another one."""
    code_version: Mapped[str]
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
