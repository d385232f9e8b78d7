"""Put into words how a participant's way ended, with the code or address that their panel wants."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from annotate.studies.panels import PANELS, Arrived
from annotate.studies.settings import StudySettings, load_study_settings
from annotate.studies.way import describe_end, fill_ending
from db.studies import Outcome, Participant

WORDS: dict[Outcome, tuple[str, str]] = {
    Outcome.done: ("You are done. Thank you!", "All your answers are stored."),
    Outcome.screened_out: (
        "Thank you for trying",
        "This study cannot go on for you: the window, the screen or the first answers were not what it needs.",
    ),
    Outcome.no_consent: ("You did not agree", "So nothing was asked of you, and no answers of yours are kept."),
    Outcome.timed_out: (
        "The time is over",
        "This study has to be finished within a time, which has passed. Your place goes to somebody else; your "
        "answers so far are kept.",
    ),
    Outcome.over_quota: (
        "All places are taken",
        "Others were faster, so nothing is left to judge in this study. Thank you for coming.",
    ),
    Outcome.returned: ("You gave your place back", "Your answers so far are kept. Thank you for your time."),
    Outcome.blocked: (
        "This study has ended for you",
        "Your part was stopped. If answers did not fit pairs whose answer is known, you were warned before.",
    ),
}
"""Outcome -> heading, and what it means."""
GOES_BACK_ALONE = ("prolific",)
"""Panels to which the page goes back by itself."""


def view_ending(session: Session, participant: Participant) -> dict[str, Any]:
    """What an ended participant's page shows."""
    assert participant.outcome is not None, "only of who has ended"
    settings = load_study_settings(participant.study)
    code, address = describe_end(session, participant)
    return _view(settings, participant.outcome, code, address)


def view_turned_away(settings: StudySettings, arrived: Arrived) -> dict[str, Any]:
    """What somebody is shown who comes after the study was closed: the panel wants to know that they may go."""
    code, address = fill_ending(settings, Outcome.over_quota, arrived)
    return _view(settings, Outcome.over_quota, code, address)


def _view(settings: StudySettings, outcome: Outcome, code: str, address: str) -> dict[str, Any]:
    title, words = WORDS[outcome]
    return {
        "title": title,
        "words": words,
        "code": code,
        "address": address,
        "back_to": PANELS[settings.panel].title if settings.panel != "plain" else urlsplit(address).netloc,
        "automatic": bool(address) and settings.panel in GOES_BACK_ALONE,
    }
