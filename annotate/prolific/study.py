"""Write Prolific's side of a study from the study's own settings, and read Prolific's states.

Source: docs.prolific.com/api-reference/studies (create a draft study, the study object) and submissions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from urllib.parse import urlsplit

from annotate.prolific.calls import JSON
from annotate.studies.money import show_amount
from annotate.studies.panels import make_link
from annotate.studies.settings import StudySettings, describe_information, load_study_settings
from db.errors import UserError
from db.studies import Outcome, Study
from runs.listen import is_loopback

CODE_TYPES: Mapping[Outcome, str] = {
    Outcome.done: "COMPLETED",
    Outcome.screened_out: "FIXED_SCREENOUT",
    Outcome.no_consent: "NO_CONSENT",
    Outcome.blocked: "FAILED_ATTENTION_CHECK",
    Outcome.timed_out: "OTHER",
    Outcome.over_quota: "OTHER",
    Outcome.returned: "OTHER",
}
RETURN_REASONS: Mapping[Outcome, str] = {
    Outcome.screened_out: "Your device or window does not fit this study.",
    Outcome.no_consent: "Withdrew consent",
    Outcome.timed_out: "The time for this study was over.",
    Outcome.over_quota: "All places of this study are taken.",
    Outcome.returned: "Didn't finish the study",
}
"""What Prolific tells a participant whom it asks to return."""
ENDS: Mapping[str, Outcome | None] = {
    "RESERVED": None,
    "ACTIVE": None,
    "AWAITING REVIEW": None,
    "APPROVED": None,
    "PARTIALLY APPROVED": None,
    "REJECTED": None,
    "RETURNED": Outcome.returned,
    "TIMED-OUT": Outcome.timed_out,
    "SCREENED OUT": Outcome.screened_out,
}
"""State of a submission -> how our participant's way ends by it; None: it goes on, or ended here already."""
FREES = ("RETURNED", "TIMED-OUT")
"""States after which Prolific gives the place to somebody else, also where the participant was done here."""
MIN_SCREEN_OUT_CENTS: Mapping[str, int] = {"GBP": 10, "USD": 14}


def write_study(study: Study, address: str) -> JSON:
    """The body that makes a draft of this study at Prolific.

    Args:
        address: of the app, as participants reach it.
    Raises:
        UserError: the study is not Prolific's, nobody outside reaches the address, there is no code for who is done,
            two endings have one code, or the pay cannot be.
    """
    settings = load_study_settings(study)
    _check(study, settings, address)
    body: JSON = {
        "name": settings.title,
        "internal_name": study.name,
        "description": settings.prolific.description or describe_information(settings),
        "external_study_url": make_link("prolific", address.rstrip("/"), study.link),
        "prolific_id_option": "url_parameters",
        "completion_codes": list_codes(settings),
        "total_available_places": settings.places,
        "estimated_completion_time": math.ceil(settings.minutes_expected),
        "maximum_allowed_time": math.ceil(settings.minutes_limit),
        "reward": settings.pay_cents,
        "device_compatibility": list(settings.prolific.devices),
        "filters": list(settings.prolific.filters),
    }
    return body | ({"project": settings.prolific.project} if settings.prolific.project else {})


def list_codes(settings: StudySettings) -> list[JSON]:
    """The completion codes, each with what Prolific does upon it; endings without a code have none."""
    return [
        {
            "code": ending.code,
            "code_type": _code_type(settings, outcome),
            "actor": "participant",
            "actions": [_write_action(settings, outcome)],
        }
        for outcome, ending in sorted(settings.endings.items(), key=lambda item: list(Outcome).index(item[0]))
        if ending.code
    ]


def _pays_screen_out(settings: StudySettings) -> bool:
    return bool(settings.screen_out_cents and settings.prolific.screen_out_slots)


def _code_type(settings: StudySettings, outcome: Outcome) -> str:
    if outcome is Outcome.screened_out and not _pays_screen_out(settings):
        return "INCOMPATIBLE_DEVICE"
    return CODE_TYPES[outcome]


def _write_action(settings: StudySettings, outcome: Outcome) -> JSON:
    if outcome is Outcome.done and settings.prolific.approve == "at once":
        return {"action": "AUTOMATICALLY_APPROVE"}
    if outcome in (Outcome.done, Outcome.blocked):  # who worked and was stopped is decided on by a person
        return {"action": "MANUALLY_REVIEW"}
    if outcome is Outcome.screened_out and _pays_screen_out(settings):
        return {
            "action": "FIXED_SCREEN_OUT_PAYMENT",
            "fixed_screen_out_reward": settings.screen_out_cents,
            "slots": settings.prolific.screen_out_slots,
        }
    return {"action": "REQUEST_RETURN", "return_reason": RETURN_REASONS[outcome]}


def most_paid_cents(settings: StudySettings) -> int:
    """What Prolific pays participants at most by itself: all places, and all paid screen-outs. Without its fee."""
    screened = settings.screen_out_cents * settings.prolific.screen_out_slots if _pays_screen_out(settings) else 0
    return settings.pay_cents * settings.places + screened


def describe_cost(settings: StudySettings) -> str:
    """'50 × 1.50 = 75.00 GBP, without Prolific's fee'."""
    said = f"{settings.places} × {show_amount(settings.pay_cents)}"
    if _pays_screen_out(settings):
        said += f" + up to {settings.prolific.screen_out_slots} × {show_amount(settings.screen_out_cents)} screened out"
    return f"{said} = {show_amount(most_paid_cents(settings))} {settings.currency}, without Prolific's fee"


def _check(study: Study, settings: StudySettings, address: str) -> None:
    """Refuse what Prolific would, in words that say what to change; raises UserError."""
    if settings.panel != "prolific":
        raise UserError(f"Study {study.name!r} is of the panel {settings.panel!r}; set panel to 'prolific'.")
    parts = urlsplit(address)
    if parts.scheme != "https" or not parts.hostname or is_loopback(parts.hostname):
        raise UserError(f"Participants open {address!r} from outside: give --base-url https://… as they reach the app.")
    codes = [ending.code for ending in settings.endings.values() if ending.code]
    if len(set(codes)) < len(codes):
        raise UserError(f"Study {study.name!r} has one code for two endings; Prolific wants each to have its own.")
    done = settings.endings.get(Outcome.done)
    if done is None or not done.code:
        raise UserError(f"Study {study.name!r} has no code for who is done; set endings.done.code.")
    if settings.pay_cents <= 0:
        raise UserError(f"Study {study.name!r} pays nothing; set pay_cents.")
    _check_screen_out(study, settings)


def _check_screen_out(study: Study, settings: StudySettings) -> None:
    if not _pays_screen_out(settings):
        return
    least = MIN_SCREEN_OUT_CENTS.get(settings.currency, 0)
    if not least <= settings.screen_out_cents < settings.pay_cents:
        raise UserError(
            f"Study {study.name!r} pays {show_amount(settings.screen_out_cents)} to who is screened out; Prolific "
            f"takes {show_amount(least)} or more, and less than the {show_amount(settings.pay_cents)} of who is done."
        )


def normalise_state(given: str) -> str | None:
    """The state in the one spelling, 'TIMED-OUT' of 'timed_out' and 'Timed out'; None for one that is not known."""
    words = given.upper().replace("_", " ").replace("-", " ").split()
    known = {state.replace("-", " "): state for state in ENDS}
    return known.get(" ".join(words))
