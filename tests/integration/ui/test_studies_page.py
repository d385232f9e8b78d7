"""What admins read of a study and do to it, on both databases; nobody else reaches any of it."""

from __future__ import annotations

import io
import random
import zipfile

import pytest
from sqlalchemy import select, text
from starlette.testclient import TestClient

from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from annotate.studies.create import create_study, set_state
from annotate.studies.settings import read_study_settings
from annotate.studies.way import end, leave
from db.models import Judgment, Pair, Role, Split
from db.project import ProjectSettings
from db.session import Database
from db.studies import Outcome, PanelEntry, Participant, Stage, StudyState
from tests.making import PASSWORD, MakeClient, add_candidates, fetch, make_app_without_pages, make_clients
from tests.unit.annotate.studies.conftest import come, look, reply
from ui.context import Context

IDS = [f"5f0c0ffee0c0ffee0c0ffee{number}" for number in range(3)]
SETTINGS = {"panel": "prolific", "endings": {"done": {"code": "DONE1"}}, "pay_cents": 10, "hourly_cents": 900}


@pytest.fixture
def clients(any_database: Database, data) -> MakeClient:
    """Clients of an app with a study: number 1 is done, 2 at work, 3 left."""
    rng = random.Random(1)
    with any_database.write() as session:
        add_person(session, "ada", Role.admin, PASSWORD)
        add_person(session, "ben", Role.annotator, PASSWORD)
        for number in range(8):
            add_candidates(session, f"face{number}", ["m0", "m1"], Split.test)
        make_pairs(session, ProjectSettings())
        for pair in session.scalars(select(Pair).order_by(Pair.key).limit(2)):
            pair.gold_answer = "a"
        session.flush()
        given = {**SETTINGS, "answers": 4, "places": 5, "gold_share": 0.3, "repeat_share": 0.3}
        study = create_study(session, "faces/June", read_study_settings(given))
        set_state(session, study, StudyState.open)
        first, second, third = (come(session, study, person) for person in IDS)
        while (lease := look(session, first, rng)) is not None:
            reply(session, first, lease)
        end(session, first, Outcome.done, "Gave all answers.")
        first.active_seconds = 60
        look(session, second, rng)
        leave(session, third)
    return make_clients(make_app_without_pages(Context(database=any_database, data=data, auth=True)))


def test_an_admin_alone_watches_moves_and_forgets(clients: MakeClient, any_database: Database) -> None:
    refuse_all_others(clients)
    ada: TestClient = clients("ada")
    assert ada.get("/api/studies").json() == {"studies": [{"id": 1, "name": "faces/June", "state": "open"}]}
    answer = ada.get("/api/studies/1")
    said = answer.json()
    assert (said["flow"]["arrived"], said["flow"]["at work"], said["flow"]["done"]) == (3, 1, 1)
    assert said["places_left"] == 3
    assert said["link"].startswith("http://testserver/study/")
    assert said["pay"]["owed_cents"] == 10, "the ledger is written as the page looks"
    assert said["pay"]["below"] == [[1, 5]], "15 cents are a minute's share of 9.00 an hour"
    assert said["quality"]["gold"]["of"] + said["quality"]["repeats"]["of"] > 0
    assert not any(person in answer.text for person in IDS)
    assert ada.get("/api/studies/1", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    assert "10" in ada.get("/api/studies/1/files/ledger.csv").text
    packed = zipfile.ZipFile(io.BytesIO(ada.get("/api/studies/1/files/export.zip").content))
    assert packed.namelist() == [f"{name}.csv" for name in ("participants", "events", "answers", "results")]
    assert not any(person.encode() in packed.read(name) for person in IDS for name in packed.namelist())
    assert ada.post("/api/studies/1/state", json={"state": "paused"}).json() == {"state": "paused"}
    assert ada.post("/api/studies/1/state", json={"state": "draft"}).status_code == 400
    ada.post("/api/studies/1/state", json={"state": "closed"})
    refused = ada.post("/api/studies/1/state", json={"state": "open"})
    assert (refused.status_code, "is closed" in refused.text) == (409, True)
    said = ada.post("/api/studies/1/forget", json={"number": 2, "answers": True}).json()["said"]
    assert said.startswith("1 panel id deleted, and looked for in every table of the database: none is left.")
    left = fetch(any_database, select(PanelEntry.panel_person).order_by(PanelEntry.participant_id))
    assert left == [IDS[0], IDS[2]]
    assert fetch(any_database, select(Participant.stage).where(Participant.id == 2)) == [Stage.ended]
    assert ada.post("/api/studies/1/forget", json={"number": 9}).status_code == 409
    assert ada.get("/api/studies/7").status_code == ada.get("/api/studies/7/files/ledger.csv").status_code == 404
    with any_database.write() as session:
        detail = f'{{"who": "{IDS[0]}"}}'
        session.execute(text("UPDATE study_event SET detail = :detail WHERE id = 1"), {"detail": detail})
    assert "still in study_event.detail." in ada.post("/api/studies/1/forget", json={"number": 1}).json()["said"]
    assert len(fetch(any_database, select(Judgment.id).where(Judgment.superseded_at.is_(None)))) >= 4


def refuse_all_others(clients: MakeClient) -> None:
    """An annotator and who is not signed in are refused by every route."""
    for name, expected in (("ben", 403), (None, 401)):
        other = clients(name)
        for path in ("", "/1", "/1/files/ledger.csv", "/1/files/bonuses.csv", "/1/files/export.zip"):
            assert other.get(f"/api/studies{path}").status_code == expected, path
        for path, body in (("state", {"state": "closed"}), ("forget", {"number": 1})):
            assert other.post(f"/api/studies/1/{path}", json=body).status_code == expected, path
