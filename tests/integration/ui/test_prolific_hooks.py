"""Prolific's webhooks reach the app without a session; each counts once and each bonus is paid once, also at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from annotate.prolific.pay import pay_all_bonuses, read_ledger
from annotate.prolific.webhook import take
from annotate.studies.panels import Arrived
from annotate.studies.settings import StudySettings
from annotate.studies.way import arrive
from db.errors import UserError
from db.session import Database
from db.studies import Outcome, Participant, Payment, PaymentKind, Stage, Study, StudyEvent
from tests.making import add_open_study, make_app_without_pages, open_fresh
from tests.prolific_stand_in import ProlificStandIn, Webhook, serve_stand_in
from ui.context import Context

RETURNED = {"event_type": "submission.status.change", "resource_id": "sub1", "participant_id": "p1"}


def add_participant(database: Database) -> None:
    """Somebody at work in a study."""
    settings = StudySettings(panel="prolific", endings={"done": {"code": "C1"}})
    with database.write() as session:
        study = add_open_study(session, settings)
        arrive(session, study, Arrived("p1", "sub1")).stage = Stage.task


def outcome_of(database: Database) -> Outcome | None:
    with database.read() as session:
        return session.query(Participant).one().outcome


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Database]]:
    """Somebody who never signed in, and the database of the app."""
    data: Path = tmp_path_factory.mktemp("hooks") / "data"
    database = open_fresh(data)
    add_participant(database)
    app = make_app_without_pages(Context(database=database, data=data, auth=True))
    yield TestClient(app, base_url="http://testserver", follow_redirects=False), database
    database.close()


def test_a_signed_webhook_counts_once_and_all_others_are_refused(stranger, monkeypatch):
    client, database = stranger
    api = ProlificStandIn()

    def deliver(webhook: Webhook, **headers: str) -> tuple[int, object]:
        answer = client.post("/hooks/prolific", content=webhook.body, headers={**webhook.headers, **headers})
        return answer.status_code, answer.json().get("changed")

    webhook = api.sign({**RETURNED, "status": "RETURNED"}, "e1")
    assert deliver(webhook)[0] == 401  # the server knows no secret
    monkeypatch.setenv("PROLIFIC_WEBHOOK_SECRET", api.secret)
    assert deliver(webhook, **{"X-Prolific-Request-Signature": "forged"})[0] == 401
    assert deliver(Webhook(webhook.headers, webhook.body.replace(b"p1", b"p2")))[0] == 401
    assert deliver(Webhook({}, webhook.body))[0] == 401
    assert deliver(api.sign({**RETURNED, "status": "RETURNED"}, "e1", sent=1_700_000_000))[0] == 401
    assert outcome_of(database) is None
    assert deliver(webhook) == (200, True)
    assert outcome_of(database) is Outcome.returned
    assert deliver(webhook) == (200, False)
    assert deliver(api.sign({"resource_id": "sub1"}))[0] == 400
    assert client.get("/hooks/prolific").status_code == 405
    long = api.sign({**RETURNED, "status": "x" * 2**16})
    assert client.post("/hooks/prolific", content=long.body, headers=long.headers).status_code == 413


def test_one_event_that_comes_eight_times_at_once_counts_once(any_database: Database):
    add_participant(any_database)
    with any_database.write() as session:
        session.query(Study).one().panel_study = "prolific1"
    webhook = ProlificStandIn().sign({"event_type": "study.status.change", "resource_id": "prolific1"}, "e1")
    changed: list[bool] = []

    def deliver() -> None:
        with any_database.write() as session:
            changed.append(take(session, webhook.headers, webhook.body))

    run_at_once(8, deliver)
    assert sorted(changed) == [False] * 7 + [True]
    with any_database.read() as session:
        assert session.query(StudyEvent).filter_by(kind="prolific").count() == 1


def test_two_commands_at_once_pay_a_bonus_once(any_database: Database, monkeypatch):
    add_participant(any_database)
    with any_database.write() as session:
        study, participant = session.query(Study).one(), session.query(Participant).one()
        ids = {"study_id": study.id, "participant_id": participant.id}
        session.add(Payment(**ids, kind=PaymentKind.bonus, cents=50, currency="GBP", reason="care"))
    refused: list[str] = []
    with serve_stand_in() as api:
        monkeypatch.setenv("PROLIFIC_API", api.address)
        monkeypatch.setenv("PROLIFIC_TOKEN", api.token)
        api.submissions["sub1"] = {"id": "sub1", "study_id": "s1", "bonus_payments": [], "reward_paid": 0}
        with any_database.read() as session:
            owed = read_ledger(session, study, PaymentKind.bonus, "GBP").owed

        def pay() -> None:
            try:
                pay_all_bonuses(any_database, "s1", owed, lambda _: None)
            except UserError as error:
                refused.append(str(error))

        run_at_once(4, pay)
        assert api.paid_cents() == 50
    assert len(refused) == 3
    assert "Another command" in refused[0]
    with any_database.read() as session:
        assert session.query(Payment).one().paid_at is not None


def run_at_once(count: int, act: Callable[[], None]) -> None:
    ready = threading.Barrier(count)

    def begin() -> None:
        ready.wait()
        act()

    threads = [threading.Thread(target=begin) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
