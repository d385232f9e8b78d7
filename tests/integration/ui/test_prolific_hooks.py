"""Prolific's webhooks reach the app without a session, where they are signed; each counts once, also at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from annotate.prolific.webhook import take
from annotate.studies.panels import Arrived
from annotate.studies.settings import StudySettings
from annotate.studies.way import arrive
from db.session import Database
from db.studies import Outcome, Participant, Stage, Study, StudyState
from tests.making import make_app_without_pages, open_fresh
from tests.prolific_stand_in import ProlificStandIn, Webhook
from ui.context import Context

RETURNED = {"event_type": "submission.status.change", "resource_id": "sub1", "participant_id": "p1"}


def add_participant(database: Database) -> None:
    """Somebody at work in a study."""
    settings = StudySettings(panel="prolific", endings={"done": {"code": "C1"}})
    with database.write() as session:
        study = Study(name="faces", link="l1nk", settings=settings.model_dump(mode="json"), state=StudyState.open)
        study.strata = []
        session.add(study)
        session.flush()
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
    webhook = ProlificStandIn().sign({**RETURNED, "status": "TIMED-OUT"}, "e1")
    ready, changed = threading.Barrier(8), []

    def deliver() -> None:
        ready.wait()
        with any_database.write() as session:
            changed.append(take(session, webhook.headers, webhook.body))

    threads = [threading.Thread(target=deliver) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(changed) == [False] * 7 + [True]
    assert outcome_of(any_database) is Outcome.timed_out
