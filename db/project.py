"""Read and change the project's settings: its question and guidelines, how often pairs are judged, the split."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from db.errors import UserError, first_fault
from db.models import Pair, Project, Question, Source, Split, Task, utc_now

GUIDELINES = """\
Both pictures are restorations of the same low-quality photo. **Choose the one you would rather keep as the portrait
of this person.**

- A face that looks like a *real* person of this photo beats one that is only sharper.
- Look at the eyes, the teeth, the hairline and the skin. Zoom in where you are not sure.
- Hold the input beside them: who invents a different person loses.
- No visible difference that matters: **tie**. You cannot judge at all: **skip**, with the reason.
"""


def _refuse_twice(words: list[str]) -> list[str]:
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} given twice")
    return words


Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Words = Annotated[list[Word], AfterValidator(_refuse_twice)]


class ProjectSettings(BaseModel):
    """One project a database. Every field is a flag of `python -m annotate project` and a field of the Project page."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field("Restored faces", min_length=1, max_length=80, description="Name shown above the pairs")
    question: str = Field(
        "Which restoration is better?", min_length=1, max_length=200, description="Question above the pair"
    )
    guidelines: str = Field(
        GUIDELINES, max_length=50_000, description="Markdown shown before the first judgment and in help"
    )
    reasons: Words = Field(
        ["identity", "eyes", "skin", "teeth", "hair", "artefacts"],
        max_length=9,
        description="Optional reasons after a choice, on the number keys 1 to 9",
    )
    skip_reasons: Words = Field(
        ["both bad", "not a face", "identical"], max_length=8, description="Offered when a pair is skipped"
    )
    task_size: int = Field(2, ge=2, le=6, description="Candidates shown at once, 2 (a pair) to 6")
    asked: Literal["best", "best_worst", "order"] = Field(
        "best", description="What is asked of three candidates and more: the best, the best and the worst, or an order"
    )
    mixed_share: float = Field(
        0.0, ge=0, le=0.5, description="Share of showings that ask in another way, to measure which tells more a second"
    )
    judgments_per_pair: int = Field(1, ge=1, le=100, description="Judgments wanted for a train or val pair or task")
    judgments_per_test_pair: int = Field(
        3, ge=1, le=100, description="Judgments wanted for a test pair or task (the human ceiling)"
    )
    repeat_share: float = Field(
        0.05, ge=0, le=0.5, description="Share of showings that repeat an own pair, sides swapped"
    )
    repeat_gap: int = Field(10, ge=1, le=10_000, description="Judgments between a pair and its repeat, at least")
    gold_share: float = Field(
        0.05, ge=0, le=0.5, description="Share of showings that are gold pairs, where there are any"
    )
    lease_seconds: int = Field(
        300, ge=10, le=86_400, description="Seconds that a shown pair is reserved for its person"
    )
    order: Literal["random", "uncertain", "disagreement", "spread", "diverse", "information", "mixed"] = Field(
        "random",
        description="Pairs to show first: any, those where the labeler is unsure, those where labelers fitted on "
        "parts of the photos disagree, those where a stored reward's members do (spread), little judged photos and "
        "methods, what tells most of the methods' ranking, or uncertain, disagreement and diverse by chance",
    )
    random_share: float = Field(
        0.2, ge=0.05, le=1, description="Share of random pairs in an active order; accuracy is measured on them"
    )
    refit_after: int = Field(
        50, ge=0, le=1_000_000, description="New judgments between fits of the labeler of an active order; 0: never"
    )
    data_licence: str = Field(
        "not stated", min_length=1, max_length=200, description="Licence of the project's photos, for cards and runs"
    )
    consent_to_publish: bool = Field(
        False,
        description="The people on the photos and those who judged agreed that photos and answers are published; "
        "without it no dataset of this project is pushed",
    )
    commercial: bool = Field(False, description="Refuse what forbids commercial use: code, weights and photos")
    val_share: float = Field(0.1, ge=0, lt=0.5, description="Share of groups in the val split")
    test_share: float = Field(0.1, ge=0, lt=0.5, description="Share of groups in the test split")
    seed: int = Field(0, ge=0, description="Seed of the split and of the order of pairs")


STORED = select(Project.settings).where(Project.id == 1)
OF_KEY = select(Question).where(Question.key == bindparam("key"))
FIXED_AFTER_IMPORT = ("val_share", "test_share", "seed")
ASKED = ("title", "question", "guidelines", "reasons", "skip_reasons")
"""Texts that people read before they answer. Whenever one of these changes, the question has a new version."""


def load_settings(session: Session) -> ProjectSettings:
    """The stored settings, the defaults before any were stored."""
    return read_settings(session.connection().scalar(STORED))  # the session's own way takes three times as long


def read_settings(stored: dict[str, Any] | None) -> ProjectSettings:
    """The settings of the project's column."""
    return ProjectSettings() if stored is None else ProjectSettings.model_validate(stored)


def question_key(words_of: BaseModel) -> str:
    """The version of what is asked: 16 hex digits, the same in every database where the words (ASKED) are the same."""
    words = json.dumps({name: getattr(words_of, name) for name in ASKED}, sort_keys=True)
    return hashlib.sha256(words.encode("ascii")).hexdigest()[:16]


def store_question(session: Session, settings: ProjectSettings) -> Question:
    """Keep the words of these settings as a version, and return it; what is there already stays as it is."""
    key = question_key(settings)
    question = session.scalar(OF_KEY, {"key": key})
    if question is None:
        question = Question(key=key, **settings.model_dump(include=set(ASKED)))
        session.add(question)
        session.flush()
    return question


def save_settings(session: Session, changes: dict[str, object]) -> ProjectSettings:
    """Change some settings and return all; what was asked before stays known to the judgments that answered it.

    Raises:
        UserError: an unknown field, a value out of range, or a change of the split when sources are stored.
    """
    current = load_settings(session)
    try:
        settings = ProjectSettings.model_validate({**current.model_dump(), **changes})
    except ValidationError as error:
        raise UserError(first_fault(error)) from error
    for name in FIXED_AFTER_IMPORT:
        if getattr(settings, name) != getattr(current, name) and session.scalar(select(Source.id).limit(1)) is not None:
            raise UserError(
                f"{name} cannot change once photos are imported: the split is drawn once. Start a new data folder."
            )
    row = session.get(Project, 1)
    if row is None:
        session.add(Project(id=1, settings=settings.model_dump()))
    else:
        row.settings, row.updated_at = settings.model_dump(), utc_now()
    session.flush()
    store_question(session, settings)
    for is_test, wanted in ((True, settings.judgments_per_test_pair), (False, settings.judgments_per_pair)):
        in_split = Source.split == Split.test if is_test else Source.split != Split.test
        for table in (Pair, Task):
            session.execute(
                update(table)
                .where(
                    table.source_id.in_(select(Source.id).where(in_split)),
                    table.judgments_wanted > 0,  # of one that was set aside none are (annotate.ingest.equal_pixels)
                    table.judgments_wanted != wanted,
                    table.awaited.is_(False),  # what a training waits for has its own number
                )
                .values(judgments_wanted=wanted)
            )
    return settings
