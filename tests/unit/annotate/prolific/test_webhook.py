"""A webhook is taken where Prolific signed it, just now, and the first time; then the place and the pairs are free."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from annotate.prolific.webhook import ForgedError, check, sign, take
from db.errors import UserError
from db.models import Lease, utc_now
from db.studies import Outcome, PaymentKind, Stage, StudyEvent, WebhookSeen
from tests.making import add_pairs, count_rows, dump_rows
from tests.prolific_stand_in import Webhook

NOW = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)
BODY = b'{"resource_id":"s1","event_type":"submission.status.change","participant_id":"p1","status":"RETURNED"}'
SENT = "1795942800"
SIGNATURE = "/SPCArahgPwqc+uigTfHCUEtg0LIxYe4pkJ1aIA3xVs="
"""By `openssl dgst -sha256 -hmac hush` over SENT and BODY, in base64."""
HEADERS = {"X-Prolific-Request-Signature": SIGNATURE, "X-Prolific-Request-Timestamp": SENT}


def test_a_signature_is_the_one_that_openssl_computes():
    assert datetime.fromtimestamp(int(SENT), UTC) == NOW
    assert sign("hush", SENT, BODY) == SIGNATURE
    check("hush", HEADERS, BODY, NOW + timedelta(minutes=5))


@pytest.mark.parametrize(
    ("secret", "changes", "body", "minutes", "said"),
    [
        ("", {}, BODY, 0, "not set up"),
        ("hush", {"X-Prolific-Request-Signature": ""}, BODY, 0, "has the headers"),
        ("hush", {"X-Prolific-Request-Timestamp": ""}, BODY, 0, "has the headers"),
        ("other", {}, BODY, 0, "not Prolific's"),
        ("hush", {}, BODY + b" ", 0, "not Prolific's"),
        ("hush", {"X-Prolific-Request-Timestamp": "1795942801"}, BODY, 0, "not Prolific's"),
        ("hush", {"X-Prolific-Request-Signature": "ÿ" * 44}, BODY, 0, "not Prolific's"),
        ("hush", {}, BODY, 5.1, "more than 5 minutes"),
        ("hush", {}, BODY, -5.1, "more than 5 minutes"),
    ],
)
def test_what_prolific_did_not_just_sign_is_refused(secret, changes, body, minutes, said):
    with pytest.raises(ForgedError, match=said):
        check(secret, HEADERS | changes, body, NOW + timedelta(minutes=minutes))


@pytest.mark.parametrize("sent", ["soon", "nan", "1e400", "-1e15"])
def test_a_signed_time_that_is_none_is_refused(sent):
    headers = {"X-Prolific-Request-Signature": sign("hush", sent, BODY), "X-Prolific-Request-Timestamp": sent}
    with pytest.raises(ForgedError):
        check("hush", headers, BODY, NOW)


@pytest.fixture
def deliver(ours):
    def send(webhook: Webhook) -> bool:
        check("first-secret", webhook.headers, webhook.body)
        with ours.database.write() as session:
            return take(session, webhook.headers, webhook.body)

    return send


@pytest.fixture
def working(ours):
    """Somebody at work, with a pair leased: (submission, participant's number)."""
    ours.publish()
    submission, number = ours.arrive("p1")
    with ours.database.write() as session:
        add_pairs(session, 2)
        person = ours.participant(number).person_id
        lease = Lease(pair_id=1, person_id=person, shown_left="a", expires_at=utc_now() + timedelta(hours=1))
        session.add(lease)
    ours.api.take_webhooks()
    return submission, number


@pytest.mark.parametrize(("state", "outcome"), [("RETURNED", Outcome.returned), ("TIMED-OUT", Outcome.timed_out)])
def test_who_gives_the_place_back_ends_and_gives_the_pairs_back(ours, deliver, working, state, outcome):
    submission, number = working
    ours.api.end(submission, state)
    (webhook,) = ours.api.take_webhooks()
    assert deliver(webhook)
    person = ours.participant(number)
    assert (person.stage, person.outcome) == (Stage.ended, outcome)
    assert person.ended_at is not None
    assert count_rows(ours.database, Lease) == [0]


def test_the_same_event_again_is_without_effect(ours, deliver, working):
    submission, _ = working
    ours.api.end(submission, "RETURNED")
    (webhook,) = ours.api.take_webhooks()
    assert deliver(webhook)
    before = dump_rows(ours.database)
    assert not deliver(webhook)
    later = ours.api.sign(json.loads(webhook.body), webhook.headers["X-Event-ID"], sent=utc_now().timestamp() + 60)
    assert not deliver(later)  # Prolific sends it again: another time and signature, the same event
    renamed = Webhook({**webhook.headers, "X-Event-ID": "another"}, webhook.body)
    assert not deliver(renamed)  # a stranger sends the signed bytes again: the event's id is not signed
    assert {name: rows for name, rows in dump_rows(ours.database).items() if name != "webhook_seen"} == {
        name: rows for name, rows in before.items() if name != "webhook_seen"
    }


def test_a_place_given_back_after_the_end_is_free_and_the_answers_stay(ours, deliver):
    ours.publish()
    submission, number = ours.arrive("p1", Outcome.done)
    ours.api.end(submission, "RETURNED")
    for webhook in ours.api.take_webhooks():
        deliver(webhook)
    person = ours.participant(number)
    assert (person.stage, person.outcome) == (Stage.ended, Outcome.returned)
    assert "Was done" in str(person.reason)


@pytest.mark.parametrize("ended", [Outcome.no_consent, Outcome.screened_out, Outcome.blocked])
def test_other_endings_stay_what_they_were(ours, deliver, ended):
    ours.publish()
    submission, number = ours.arrive("p1", ended)
    ours.api.end(submission, "RETURNED")
    for webhook in ours.api.take_webhooks():
        deliver(webhook)
    assert ours.participant(number).outcome is ended


def test_events_may_come_in_any_order(ours, deliver, working):
    submission, number = working
    ours.api.submit(submission, "?")
    ours.api.end(submission, "RETURNED")
    for webhook in reversed(ours.api.take_webhooks()):
        deliver(webhook)
    assert ours.participant(number).outcome is Outcome.returned


def tell(ours, submission: str, state: str) -> Webhook:
    return ours.api.sign({"event_type": "submission.status.change", "resource_id": submission, "status": state})


@pytest.mark.parametrize("noted", [True, False])
def test_what_prolific_pays_by_itself_is_in_the_ledger_once(ours, deliver, noted):
    ours.publish()
    done, _ = ours.arrive("p1", Outcome.done)
    screened, _ = ours.arrive("p2", Outcome.screened_out)
    ours.give_bonus(1, 50)
    if noted:
        ours.owe(1, PaymentKind.base, 150, "Finished")
        ours.owe(2, PaymentKind.screen_out, 14, "Screened out")
    for _ in range(2):
        deliver(tell(ours, done, "APPROVED"))
        deliver(tell(ours, screened, "SCREENED OUT"))
    assert sorted(ours.paid()) == [(1, "base", 150, True), (1, "bonus", 50, False), (2, "screen_out", 14, True)]


def test_who_returns_after_the_end_is_owed_no_pay(ours, deliver):
    ours.publish()
    submission, number = ours.arrive("p1", Outcome.done)
    ours.owe(number, PaymentKind.base, 150, "Finished")
    deliver(tell(ours, submission, "RETURNED"))
    assert ours.paid() == []
    assert ours.participant(number).outcome is Outcome.returned


def test_who_is_approved_after_a_time_out_at_prolific_is_done_again(ours, deliver):
    ours.publish()
    submission, number = ours.arrive("p1", Outcome.done)
    deliver(tell(ours, submission, "TIMED-OUT"))
    assert ours.participant(number).outcome is Outcome.timed_out
    deliver(tell(ours, submission, "APPROVED"))
    assert ours.participant(number).outcome is Outcome.done
    assert ours.paid() == [(1, "base", 150, True)]


def test_other_peoples_submissions_and_unknown_events_change_nothing(ours, deliver):
    for told in (
        {"event_type": "submission.status.change", "resource_id": "stranger", "status": "RETURNED"},
        {"event_type": "submission.status.change", "resource_id": "stranger", "status": "NEW STATE"},
        {"event_type": "study.has_high_return_rate", "resource_id": "x"},
        {"event_type": "study.status.change", "resource_id": "x", "status": "ACTIVE"},
    ):
        assert not deliver(ours.api.sign(told))
    assert count_rows(ours.database, StudyEvent, WebhookSeen) == [0, 8]


def test_a_studys_own_state_at_prolific_is_noted(ours, deliver):
    ours.publish()
    (webhook,) = ours.api.take_webhooks()
    assert deliver(webhook)
    with ours.database.read() as session:
        assert session.scalars(select(StudyEvent.detail)).all() == [{"study": "ACTIVE"}]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"{}", b'{"event_type": 3}'])
def test_a_signed_body_that_cannot_be_read_is_said(database, body):
    with database.write() as session, pytest.raises(UserError, match="body of this webhook"):
        take(session, {}, body)


def test_no_events_row_holds_an_id_of_prolific(ours, deliver, working):
    submission, _ = working
    ours.api.end(submission, "RETURNED")
    for webhook in ours.api.take_webhooks():
        deliver(webhook)
    rows = dump_rows(ours.database)
    kept = str({name: values for name, values in rows.items() if name != "panel_entry"})
    assert submission not in kept
    assert "'p1'" not in kept
