"""Build the requests to Prolific, so that a dry run shows the very ones that would be sent.

Source: docs.prolific.com/api-reference (studies, submissions, bonuses, webhooks). Prolific takes the reward of a study
in hundredths of its currency, but bonuses and the pay of who is screened out by a call in whole units ("1.50", 0.14).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from annotate.studies.money import show_amount
from db.errors import UserError

JSON = dict[str, Any]
StudyAction = Literal["PUBLISH", "PAUSE", "START", "STOP"]
PROLIFIC_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")
PAGE_SIZE = 100
MAX_BONUSES = 200
"""Participants of one bulk payment."""


@dataclass(frozen=True)
class Call:
    """One request."""

    method: Literal["GET", "POST"]
    path: str
    """Below the API's address, with its query."""
    body: JSON | None = None
    repeatable: bool = False
    """Whether sending it again changes nothing that the first time did not, so that it is sent again where no answer
    came."""

    def describe(self) -> str:
        """The request as a dry run prints it: method and path, then the body as JSON."""
        head = f"{self.method} {self.path}"
        return head if self.body is None else f"{head}\n{json.dumps(self.body, indent=2, ensure_ascii=False)}"


def create_study(body: Mapping[str, Any]) -> Call:
    """Make a draft, which nobody sees."""
    return Call("POST", "studies/", dict(body))


def read_study(study: str) -> Call:
    """Ask for a study."""
    return Call("GET", f"studies/{check_id(study)}/", repeatable=True)


def move_study(study: str, action: StudyAction) -> Call:
    """Publish a draft, pause, start again or stop for good."""
    return Call("POST", f"studies/{check_id(study)}/transition/", {"action": action})


def list_submissions(study: str, page: int) -> Call:
    """Ask for one page of a study's submissions; the first is 1."""
    return Call("GET", f"submissions/?study={check_id(study)}&page={page}&page_size={PAGE_SIZE}", repeatable=True)


def read_submission(submission: str) -> Call:
    """Ask for a submission, its `bonus_payments` in hundredths among it."""
    return Call("GET", f"submissions/{check_id(submission)}/", repeatable=True)


def approve(submission: str) -> Call:
    """Approve a submission, upon which its reward is paid; asked for again it is ignored, as documented."""
    return Call("POST", f"submissions/{check_id(submission)}/transition/", {"action": "APPROVE"}, repeatable=True)


def request_return(submission: str, reasons: Sequence[str]) -> Call:
    """Ask a participant to give their submission back; each time it is sent they get a message."""
    body = {"request_return_reasons": list(reasons)}
    return Call("POST", f"submissions/{check_id(submission)}/request-return/", body)


def screen_out(study: str, submissions: Sequence[str], cents: int, *, increase_places: bool = True) -> Call:
    """Screen active submissions out and pay each.

    Args:
        cents: for each, in hundredths; sent as units, whose two digits a float holds exactly as printed.
        increase_places: whether others may take their places.
    """
    body: JSON = {
        "submission_ids": [check_id(submission) for submission in submissions],
        "bonus_per_submission": cents / 100,
        "increase_places": increase_places,
    }
    return Call("POST", f"studies/{check_id(study)}/screen-out-submissions/", body)


def set_up_bonuses(study: str, cents: Mapping[str, int]) -> Call:
    """Prepare a bulk payment, by submission; nothing is paid yet."""
    lines = "\n".join(f"{check_id(submission)},{show_amount(amount)}" for submission, amount in cents.items())
    return Call("POST", "submissions/bonus-payments/", {"study_id": check_id(study), "csv_bonuses": lines})


def pay_bonuses(bulk: str) -> Call:
    """Pay a bulk payment. Sent twice it pays twice."""
    return Call("POST", f"bulk-bonus-payments/{check_id(bulk)}/pay/")


def list_event_types() -> Call:
    """Ask for what webhooks can tell of."""
    return Call("GET", "hooks/event-types/", repeatable=True)


def create_secret(workspace: str) -> Call:
    """Make the secret that webhooks are signed with; the workspace's old one no longer counts."""
    return Call("POST", "hooks/secrets/", {"workspace_id": check_id(workspace)})


def list_subscriptions(workspace: str) -> Call:
    """Ask for the workspace's webhooks."""
    return Call("GET", f"hooks/subscriptions/?workspace_id={check_id(workspace)}", repeatable=True)


def subscribe(workspace: str, event_type: str, address: str) -> Call:
    """Ask for webhooks of one type."""
    body = {"workspace_id": check_id(workspace), "event_type": event_type, "target_url": address}
    return Call("POST", "hooks/subscriptions/", body)


def confirm_subscription(subscription: str, secret: str) -> Call:
    """Confirm a subscription by the secret that came with it, which is not the one that webhooks are signed with."""
    return Call("POST", f"hooks/subscriptions/{check_id(subscription)}/", {"secret": secret})


def check_id(given: str) -> str:
    """An id of Prolific that can stand in a path.

    Raises:
        UserError: it holds anything else, such as a placeholder or another path.
    """
    if not PROLIFIC_ID.fullmatch(given):
        raise UserError(f"{given[:80]!r} is no id of Prolific: letters and digits are meant.")
    return given
