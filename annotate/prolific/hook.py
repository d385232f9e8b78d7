"""Subscribe to Prolific's webhooks of a workspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from annotate.prolific.calls import (
    confirm_subscription,
    create_secret,
    list_event_types,
    list_subscriptions,
    subscribe,
)
from annotate.prolific.client import Answer, send
from annotate.prolific.webhook import SECRET_VARIABLE, STUDY_CHANGED, SUBMISSION_CHANGED, read_secret
from db.errors import UserError

PATH = "/hooks/prolific"
Say = Callable[[str], None]
EVENT_TYPES = (SUBMISSION_CHANGED, STUDY_CHANGED)


def run_hook(workspace: str, address: str, say: Say, *, new_secret: bool, dry_run: bool) -> None:
    """Subscribe to what tells of submissions and studies, where it is not subscribed to yet.

    The new secret is printed for the server's environment and kept nowhere else.

    Raises:
        UserError: no workspace or address, an event that Prolific no longer has, no secret, or what it refuses.
    """
    target = check_target(workspace, address)
    if not new_secret and not read_secret():
        raise UserError(f"{SECRET_VARIABLE} is not set: make a secret with --new-secret, or set the workspace's.")
    if dry_run:
        calls = [list_event_types(), *([create_secret(workspace)] if new_secret else []), list_subscriptions(workspace)]
        for call in (*calls, *(subscribe(workspace, event_type, target) for event_type in EVENT_TYPES)):
            say(call.describe())
        say("and POST hooks/subscriptions/ID/ with the secret of each answer, which confirms it")
        return
    offered = {str(one.get("event_type")) for one in _results(send(list_event_types()))}
    missing = [event_type for event_type in EVENT_TYPES if event_type not in offered]
    if missing:
        raise UserError(f"Prolific has no webhooks of {', '.join(missing)} any more; it has {', '.join(offered)}.")
    if new_secret:
        value = send(create_secret(workspace)).text("value")
        say(f"Set this in the server's environment and start it again:\n{SECRET_VARIABLE}={value}")
    there = _results(send(list_subscriptions(workspace)))
    for event_type in EVENT_TYPES:
        same = [one for one in there if one.get("event_type") == event_type and one.get("target_url") == target]
        if any(one.get("is_enabled") for one in same):
            say(f"{event_type}: subscribed already")
        else:
            _subscribe(workspace, event_type, target)
            say(f"{event_type}: subscribed, {target}")


def check_target(workspace: str, address: str) -> str:
    """Where webhooks go.

    Raises:
        UserError: there is no workspace, or the address is not https.
    """
    if not workspace:
        raise UserError("prolific hook needs --workspace ID, which stands in the address of its page at Prolific.")
    if urlsplit(address).scheme != "https" or not urlsplit(address).hostname:
        raise UserError(
            f"Prolific sends webhooks to https addresses alone: give --base-url https://…, not {address!r}."
        )
    return address.rstrip("/") + PATH


def _subscribe(workspace: str, event_type: str, target: str) -> None:
    """Subscribe, and confirm by the secret in the answer's header; the id is the answer's, or its newest result's."""
    answer = send(subscribe(workspace, event_type, target))
    made = [one for one in _results(answer) if one.get("event_type") == event_type and one.get("target_url") == target]
    number = str(made[-1]["id"]) if made else answer.text("id")
    secret = answer.headers.get("X-Hook-Secret", "")
    if not secret:
        raise UserError("Prolific's answer lacks X-Hook-Secret, by which a subscription is confirmed; its API changed.")
    send(confirm_subscription(number, secret))


def _results(answer: Answer) -> list[dict[str, Any]]:
    found = answer.body.get("results") if isinstance(answer.body, dict) else answer.body
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
