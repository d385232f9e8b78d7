"""Describe a study: whom it lets in, what it asks, when it stops, what it pays."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from annotate.studies.panels import PANELS, PanelName
from annotate.studies.prolific_settings import ProlificSettings
from db.errors import UserError, first_fault
from db.studies import Outcome, Study

INFORMATION = """\
You will see two restorations of the same blurred photo of a face, side by side, and choose the better one.

- It takes about {minutes} minutes. You can stop at any time by closing the page.
- We keep your answers, the time each took and the size of your window. We do not ask for your name.
- The answers are used to measure and to train software that restores photos.
"""
CONSENT = "I have read this, I am 18 or older, and I agree to take part."
MAX_CENTS = 10_000_000


class TrainingPair(BaseModel):
    """A gold pair shown before the task, with the answer explained."""

    model_config = ConfigDict(extra="forbid")

    pair: str = Field(min_length=32, max_length=32, description="Key of the pair, which has a known answer")
    explanation: str = Field(min_length=1, max_length=2000, description="Why that answer is right, in plain words")


class Ending(BaseModel):
    """What a participant is given at the end."""

    model_config = ConfigDict(extra="forbid")

    code: Annotated[str, StringConstraints(strip_whitespace=True, max_length=64)] = Field(
        "", description="Completion code of the panel; without one the panel learns nothing of this end"
    )
    address: str = Field(
        "",
        max_length=500,
        pattern=r"^(https://\S+)?$",
        description="Address to go back to instead of the panel's own; {code}, {person} and {submission} in it are "
        "filled in",
    )


class StudySettings(BaseModel):
    """Settings of one study."""

    model_config = ConfigDict(extra="forbid")

    panel: PanelName = Field("plain", description="Where the participants come from")
    title: str = Field("Which restored face is better?", min_length=1, max_length=120, description="Name they read")
    information: str = Field(INFORMATION, min_length=1, max_length=20_000, description="Markdown before the consent")
    consent: str = Field(CONSENT, min_length=1, max_length=1000, description="Sentence that they agree to")

    places: int = Field(50, ge=1, le=100_000, description="Participants who may finish")
    answers: int = Field(50, ge=1, le=10_000, description="Answers of one participant, gold pairs and repeats aside")
    answers_per_pair: int = Field(3, ge=1, le=1000, description="Answers wanted for a pair from this study")
    pairs: int = Field(0, ge=0, description="Pairs drawn, the same number from each stratum as far as it goes; 0: all")
    answers_per_photo: int = Field(0, ge=0, description="Answers of one participant about one photo at most; 0: any")
    methods: list[str] = Field([], description="Only pairs of two of these methods; none named takes all")
    splits: list[Literal["train", "val", "test"]] = Field(
        ["train", "val", "test"], min_length=1, description="Only pairs of photos in these splits"
    )
    stratify: Literal["methods", "split", "both", "none"] = Field(
        "methods", description="What assignment is balanced over: the two methods of a pair, the photo's split, or both"
    )
    answers_per_stratum: int = Field(0, ge=0, description="Answers wanted of a stratum at most; 0: any number")

    min_width_px: int = Field(900, ge=0, le=10_000, description="Width of the window in CSS pixels at least")
    min_height_px: int = Field(500, ge=0, le=10_000, description="Height of the window in CSS pixels at least")
    min_device_pixel_ratio: float = Field(0, ge=0, le=5, description="Device pixels a CSS pixel at least")
    needs_zoom_100: bool = Field(True, description="Whether the browser's zoom must be 100 %")
    brightness_strip: bool = Field(False, description="Whether they count the grey fields of a strip that they can see")

    training: list[TrainingPair] = Field([], max_length=20, description="Gold pairs shown with their answers explained")
    qualification: int = Field(0, ge=0, le=50, description="Gold pairs asked before the task")
    qualification_right: int = Field(0, ge=0, le=50, description="Right answers among them that let in")

    gold_share: float = Field(0.08, ge=0, le=0.5, description="Share of showings that are gold pairs")
    repeat_share: float = Field(0.05, ge=0, le=0.5, description="Share of showings that repeat an own pair")
    warn_after_wrong: int = Field(2, ge=0, le=50, description="Wrong answers to gold pairs that bring a warning; 0: no")
    stop_after_wrong: int = Field(
        0, ge=0, le=50, description="Wrong answers to gold pairs that stop, after a warning; 0: nobody is stopped"
    )

    minutes_expected: float = Field(10, gt=0, le=600, description="Minutes that it takes, as the panel announces it")
    minutes_limit: float = Field(60, gt=0, le=10_080, description="Minutes from arrival after which a place is lost")
    idle_seconds: float = Field(60, ge=5, le=3600, description="Longest pause that counts as time at work")

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = Field("GBP", description="As GBP, USD, EUR")
    pay_cents: int = Field(0, ge=0, le=MAX_CENTS, description="Pay of who finishes, in hundredths")
    screen_out_cents: int = Field(0, ge=0, le=MAX_CENTS, description="Pay of who is screened out, in hundredths")
    hourly_cents: int = Field(0, ge=0, le=MAX_CENTS, description="Announced pay an hour, in hundredths; 0: none")
    endings: dict[Outcome, Ending] = Field({}, description="Code or address for each outcome")
    prolific: ProlificSettings = Field(ProlificSettings(), description="What only Prolific asks for")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.qualification_right > self.qualification:
            raise ValueError(
                f"qualification_right is {self.qualification_right} of {self.qualification} that are asked"
            )
        if self.stop_after_wrong and not 0 < self.warn_after_wrong < self.stop_after_wrong:
            raise ValueError("nobody is stopped unwarned: let warn_after_wrong be above 0 and below stop_after_wrong")
        if self.stop_after_wrong == 1:
            raise ValueError("one wrong answer may happen to anybody; let stop_after_wrong be 2 or more")
        done = self.endings.get(Outcome.done, Ending())
        if PANELS[self.panel].wants_code and not (done.code or done.address):
            raise ValueError(f"panel {self.panel!r} needs endings.done with a code or an address")
        return self


def load_study_settings(study: Study) -> StudySettings:
    """The settings of a study as stored."""
    return StudySettings.model_validate(study.settings)


def read_study_settings(given: object) -> StudySettings:
    """Settings from what a person wrote.

    Raises:
        UserError: an unknown name, or a value that cannot be; the message names it.
    """
    try:
        return StudySettings.model_validate(given)
    except ValidationError as error:
        raise UserError(first_fault(error)) from error


def read_settings_file(path: Path) -> StudySettings:
    """Settings from a TOML or JSON file.

    Raises:
        UserError: it cannot be read, or `read_study_settings`' reasons.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        given = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a study's settings: {error}") from error
    return read_study_settings(given)


def describe_information(settings: StudySettings) -> str:
    """The information as it is read, its {minutes} filled in."""
    return settings.information.replace("{minutes}", f"{settings.minutes_expected:g}")


def consent_hash(settings: StudySettings) -> str:
    """SHA-256 of what a participant reads and agrees to."""
    return hashlib.sha256(f"{describe_information(settings)}\n{settings.consent}".encode()).hexdigest()
