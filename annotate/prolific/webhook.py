"""Take Prolific's webhooks: only those that it signed, no older than minutes, each once.

Source: docs.prolific.com/api-reference/webhooks (receiving, verifying, idempotency, event order). The signature is the
base64 of HMAC-SHA256, by the workspace's secret, over the time in the header and the body as it came.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from annotate.prolific.places import EVENT_KIND, carry_over, find_by_submission
from annotate.prolific.study import normalise_state
from db.errors import UserError
from db.models import utc_now
from db.studies import Study, StudyEvent, WebhookSeen

SECRET_VARIABLE = "PROLIFIC_WEBHOOK_SECRET"
SIGNATURE_HEADER = "X-Prolific-Request-Signature"
TIME_HEADER = "X-Prolific-Request-Timestamp"
EVENT_HEADER = "X-Event-ID"
MAX_AGE = timedelta(minutes=5)
SUBMISSION_CHANGED = "submission.status.change"
STUDY_CHANGED = "study.status.change"
MAX_SHOWN = 64


class ForgedError(UserError):
    """A webhook that is not taken: Prolific did not sign it, or not just now."""


@dataclass(frozen=True)
class Event:
    """What a webhook tells."""

    event_type: str
    resource: str
    """Id of the submission or study."""
    status: str


def read_secret() -> str:
    """The secret that webhooks are signed with; empty where none was set."""
    return os.environ.get(SECRET_VARIABLE, "").strip()


def sign(secret: str, sent: str, body: bytes) -> str:
    """The signature of a webhook.

    Args:
        sent: Unix time in seconds, as the header has it.
        body: as it was sent; JSON written anew would have another signature.
    """
    digest = hmac.new(secret.encode(), sent.encode("utf-8", "surrogateescape") + body, hashlib.sha256).digest()
    return base64.b64encode(digest).decode("ascii")


def check(secret: str, headers: Mapping[str, str], body: bytes, now: datetime | None = None) -> None:
    """Refuse what Prolific did not sign, or signed more than MAX_AGE from now.

    Args:
        secret: empty where none was set: then nothing is taken.
        headers: of the request, found in any letter case.
    Raises:
        ForgedError: for each of these.
    """
    given, sent = headers.get(SIGNATURE_HEADER, ""), headers.get(TIME_HEADER, "")
    if not secret:
        raise ForgedError(f"Webhooks are not set up here: {SECRET_VARIABLE} is not in the server's environment.")
    if not given or not sent:
        raise ForgedError(f"A webhook of Prolific has the headers {SIGNATURE_HEADER} and {TIME_HEADER}.")
    expected = sign(secret, sent, body)
    if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogateescape")):
        raise ForgedError("The signature is not Prolific's.")
    try:
        age = (now or datetime.now(UTC)) - datetime.fromtimestamp(float(sent), UTC)
    except (ValueError, OverflowError, OSError):
        raise ForgedError(f"{TIME_HEADER} is no time.") from None
    if abs(age) > MAX_AGE:
        raise ForgedError(f"This webhook was sent more than {MAX_AGE.seconds // 60} minutes from now.")


def read_event(body: bytes) -> Event:
    """What a webhook's body tells.

    Raises:
        UserError: it is no JSON object, or lacks its type.
    """
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UserError("The body of this webhook is no JSON.") from error
    if not isinstance(told, dict) or not isinstance(told.get("event_type"), str):
        raise UserError("The body of this webhook names no event_type.")
    return Event(told["event_type"], str(told.get("resource_id", "")), str(told.get("status", "")))


def take(session: Session, headers: Mapping[str, str], body: bytes) -> bool:
    """Carry a checked webhook over, once.

    The id of an event stays the same when Prolific sends it again, but is not signed; so the signed bytes count too,
    lest a stranger send them again under another id.

    Returns:
        Whether anything changed; False for one that was seen, that no participant here has to do with, or that
        changes nothing.
    Raises:
        UserError: as `read_event`.
    """
    event = read_event(body)
    signed = hashlib.sha256(headers.get(TIME_HEADER, "").encode("utf-8", "surrogateescape") + body).hexdigest()
    given = headers.get(EVENT_HEADER, "").encode("utf-8", "surrogateescape")
    keys = [f"signed:{signed}"] + ([f"event:{hashlib.sha256(given).hexdigest()}"] if given else [])
    if not all([_is_new(session, key) for key in keys]):  # noqa: C419, each is to be remembered
        return False
    if event.event_type == STUDY_CHANGED:
        return _note_study(session, event)
    state = normalise_state(event.status)
    participant = find_by_submission(session, event.resource) if event.event_type == SUBMISSION_CHANGED else None
    return participant is not None and state is not None and carry_over(session, participant, state)


def _is_new(session: Session, key: str) -> bool:
    """Remember a key; False where it was there. Two requests at the same moment are one after the other here."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    remember = insert(WebhookSeen).values(key=key, received_at=utc_now()).on_conflict_do_nothing()
    # What is returned, and not the number of rows: that is -1 where the driver does not tell it.
    return session.scalar(remember.returning(WebhookSeen.key)) is not None


def _note_study(session: Session, event: Event) -> bool:
    """Note in which state Prolific has a study; who is in it here goes on, so ours stays as it is."""
    study_id = session.scalar(select(Study.id).where(Study.panel_study == event.resource))
    if study_id is not None:
        detail = {"study": event.status[:MAX_SHOWN]}
        session.add(StudyEvent(study_id=study_id, participant_id=None, kind=EVENT_KIND, detail=detail))
    return study_id is not None
