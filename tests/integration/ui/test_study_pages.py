"""What a study's participant meets: who is let in, each step in its turn, each ending, and nothing of anybody else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from annotate.judging.people import add_person
from annotate.studies.create import create_study, get_study, set_state
from annotate.studies.settings import StudySettings
from db.models import Judgment, Pair, Person, Role, Side
from db.session import Database
from db.studies import Outcome, PanelEntry, Participant, Stage, StudyEvent, StudyState
from tests.making import (
    PASSWORD,
    SECRET_METHODS,
    count_rows,
    fetch,
    make_app_without_pages,
    make_clients,
    make_event,
    make_project,
    open_fresh,
)
from ui.context import Context
from ui.studies.views import name_side, side_shown_left

GOLD = 4
"""So many of the pairs have a known answer, which is a tie."""
WHO = {"PROLIFIC_PID": "5f0c1d2e3b4a596877665544", "STUDY_ID": "s1", "SESSION_ID": "sub1"}
SCREEN = {"width_px": 1280, "height_px": 720, "device_pixel_ratio": 1.0, "zoom": None, "fields_seen": None}
CODES = {outcome: {"code": f"C-{outcome.value}"} for outcome in Outcome}


class Studies:
    """A server with --auth, its database, and browsers that come by a study's link."""

    def __init__(self, folder: Path, database: Database, photos: int = 10) -> None:
        self.data = folder / "data"
        self.database = database
        with self.database.write() as session:
            make_project(session, self.data, folder, photos, SECRET_METHODS)
            add_person(session, "ada", Role.admin, PASSWORD)
            first = select(Pair.id).order_by(Pair.id).limit(GOLD)
            session.execute(update(Pair).where(Pair.id.in_(first)).values(gold_answer="tie"))
        self.app = make_app_without_pages(Context(database=self.database, data=self.data, auth=True))
        self.client = make_clients(self.app)

    def make(self, name: str, state: StudyState = StudyState.open, **settings: Any) -> str:
        """The path of a new study's link: Prolific's, two answers, no steps between but those of the settings."""
        given = {"panel": "prolific", "answers": 2, "gold_share": 0, "repeat_share": 0, "endings": CODES, **settings}
        with self.database.write() as session:
            study = create_study(session, name, StudySettings.model_validate(given))
            for one in (StudyState.open, state) if state is not StudyState.draft else ():
                set_state(session, study, one)
            return f"/study/{study.link}"

    def come(self, link: str, browser: TestClient | None = None, **who: str) -> TestClient:
        """A browser after its arrival."""
        browser = browser or self.client()
        answer = browser.get(link, params={**WHO, **who})
        assert (answer.status_code, answer.headers["location"]) == (303, "/study"), answer.text
        return browser

    def gold_key(self) -> str:
        return str(fetch(self.database, select(Pair.key).where(Pair.gold_answer.is_not(None)).limit(1))[0])


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studies]:
    folder = tmp_path_factory.mktemp("studies")
    made = Studies(folder, open_fresh(folder / "data"))
    yield made
    made.database.close()


def test_two_tabs_that_open_at_once_are_one_participant(any_database: Database, tmp_path: Path) -> None:
    studies = Studies(tmp_path, any_database, photos=3)
    link = studies.make("at once")
    with ThreadPoolExecutor(6) as pool:
        browsers = list(pool.map(lambda _: studies.come(link), range(6)))
    assert count_rows(any_database, Participant, PanelEntry) == [1, 1]
    said = [browser.post("/api/study/consent", json={"agreed": True}).status_code for browser in browsers[:3]]
    assert said == [200, 409, 409], "agreed to once"
    step(browsers[0], "screen", **SCREEN)
    step(browsers[1], "begin")
    for browser in browsers[:2]:
        answer_one(browser)
    assert {state_of(browser)["outcome"] for browser in browsers} == {"done"}
    events = fetch(any_database, select(StudyEvent.kind).order_by(StudyEvent.id))
    assert events == ["created", "open", "arrived", "consented", "screen", "ended"]


def step(browser: TestClient, name: str, **body: Any) -> dict[str, Any]:
    answer = browser.post(f"/api/study/{name}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def begin(browser: TestClient) -> dict[str, Any]:
    step(browser, "consent", agreed=True)
    step(browser, "screen", **SCREEN)
    return step(browser, "begin")


def answer_one(browser: TestClient, choice: str = "left") -> dict[str, Any]:
    """Ask for a pair and answer it; what the server said to the answer."""
    shown = browser.post("/api/label", json={"want": 1}).json()
    if not shown["pairs"]:
        return dict(shown)
    event = make_event(shown["pairs"][0]["showing"], choice)
    return dict(browser.post("/api/label", json={"events": [event]}).json())


def state_of(browser: TestClient) -> dict[str, Any]:
    return dict(browser.get("/api/study").json())


def test_the_panels_id_is_read_once_and_shown_nowhere(studies: Studies) -> None:
    link = studies.make("arrival")
    browser = studies.client()
    answer = browser.get(link, params=WHO)
    assert answer.headers["location"] == "/study"
    assert answer.headers["referrer-policy"] == "no-referrer"
    seen = answer.headers["set-cookie"] + browser.get("/study").text + browser.get("/api/study").text
    assert not [value for value in WHO.values() if value in seen and value != "s1"]
    assert fetch(studies.database, select(PanelEntry.submission).where(PanelEntry.panel_person == WHO["PROLIFIC_PID"]))


def test_the_same_person_is_recognised_in_another_browser_and_by_the_bare_address(studies: Studies) -> None:
    link = studies.make("again")
    before = count_rows(studies.database, Participant)
    browser = studies.come(link)
    step(browser, "consent", agreed=True)
    other = studies.come(link)
    assert state_of(other)["stage"] == "screen"
    assert browser.get(link).headers["location"] == "/study", "of the address alone, the cookie says who it is"
    assert count_rows(studies.database, Participant)[0] == before[0] + 1
    studies.come(link, browser, PROLIFIC_PID="another")
    assert state_of(browser)["stage"] == "information", "somebody else at the same machine"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Dest": "document", "Sec-Purpose": "prefetch;prerender"}, 403),
        ({"User-Agent": "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)"}, 403),
        ({"User-Agent": "Mozilla/5.0 (Linux; CUBOT X30)", "Sec-Fetch-Dest": "document"}, 303),
    ],
)
def test_only_a_person_who_opens_the_link_takes_a_place(studies: Studies, headers: dict[str, str], status: int) -> None:
    link = studies.make(f"previews {headers}"[:40] + str(len(str(headers))))
    before = count_rows(studies.database, Participant, Person)
    assert studies.client().head(link, params=WHO).status_code == 405
    assert studies.client().get(link, params=WHO, headers=headers).status_code == status
    added = int(status == 303)
    assert count_rows(studies.database, Participant, Person) == [number + added for number in before]


def test_who_cannot_come_is_told_why(studies: Studies) -> None:
    told = {}
    for state in (StudyState.draft, StudyState.paused, StudyState.closed):
        told[state] = studies.client().get(studies.make(f"state {state}", state), params=WHO)
        assert told[state].status_code == 200
    assert "has not begun" in told[StudyState.draft].text
    assert "come again later" in told[StudyState.paused].text
    assert "C-over_quota" not in told[StudyState.paused].text
    assert "https://app.prolific.com/submissions/complete?cc=C-over_quota" in told[StudyState.closed].text
    link = studies.make("told")
    assert studies.client().get("/study/nothing", params=WHO).status_code == 404
    lacking = studies.client().get(link)
    assert (lacking.status_code, "PROLIFIC_PID" in lacking.text) == (400, True)
    hostile = studies.client().get(link, params={**WHO, "PROLIFIC_PID": "{{<script>alert(1)</script>}}"})
    assert hostile.status_code == 400
    assert "<script>alert" not in hostile.text
    assert count_rows(studies.database, Participant) == count_rows(studies.database, PanelEntry)


def test_an_admins_session_is_not_lost_to_a_studys_link(studies: Studies) -> None:
    ada = studies.client("ada")
    for path in (studies.make("mine"), "/study"):
        told = ada.get(path, params=WHO)
        assert "signed in here as “ada”" in told.text
        assert "private window" in told.text
    assert ada.get("/api/session").json()["person"]["name"] == "ada"
    assert ada.get("/api/study").status_code == 404
    nobody = studies.client().get("/study")
    assert (nobody.status_code, "blocks cookies" in nobody.text) == (401, True)


def test_each_step_in_its_turn_and_no_other(studies: Studies) -> None:
    training = [{"pair": studies.gold_key(), "explanation": f"Because of <b>{number}</b>."} for number in range(2)]
    link = studies.make("steps", training=training[:1], qualification=1, qualification_right=0, information="# <i>")
    browser = studies.come(link)
    shown = state_of(browser)
    assert shown["steps"] == ["information", "screen", "training", "qualification", "task"]
    assert "&lt;i&gt;" in shown["information"]["html"]
    assert browser.get("/").headers["location"] == "/study", "the task comes later"
    for name, body in {"screen": SCREEN, "training": {"place": 0, "answer": "tie"}, "begin": {}}.items():
        assert browser.post(f"/api/study/{name}", json=body).status_code == 409
    assert browser.post("/api/label", json={"want": 1}).json()["pairs"] == []

    step(browser, "consent", agreed=True)
    assert browser.post("/api/study/consent", json={"agreed": False}).status_code == 409, "the second tab is late"
    small = step(browser, "screen", **{**SCREEN, "width_px": 390})
    assert small["stage"] == "screen"
    assert "390 × 720" in small["faults"][0]
    trained = step(browser, "screen", **SCREEN)["training"]
    for side in ("left", "right"):
        assert browser.get(trained[side]).headers["content-type"] == "image/png"
        assert studies.come(link, PROLIFIC_PID=side).get(trained[side]).status_code == 403, "not their image"
    assert browser.post("/api/study/begin", json={}).status_code == 409
    assert browser.post("/api/study/training", json={"place": 1, "answer": "tie"}).status_code == 409
    said = step(browser, "training", place=0, answer="left")
    assert said == {"right": False, "answer": "tie", "explanation": "Because of <b>0</b>."}
    assert state_of(browser)["training"] is None
    assert step(browser, "begin")["stage"] == "qualification"
    page = browser.get("/")
    assert page.status_code == 200
    assert "/admin" not in page.text
    session = browser.get("/api/session").json()
    assert session["study"] == {"stage": "qualification", "answers": 0, "wanted": 2, "warned": False}
    assert answer_one(browser)["study"]["stage"] == "task"


def test_half_of_all_people_see_either_candidate_of_a_training_pair_left() -> None:
    people = [Participant(person=Person(public_id=f"p{number}")) for number in range(200)]
    left = [side_shown_left(person, 0) for person in people]
    assert 70 < left.count(Side.a) < 130
    assert left == [side_shown_left(person, 0) for person in people], "the same after a reload"
    assert left != [side_shown_left(person, 1) for person in people]


@pytest.mark.parametrize(("answer", "left", "of"), [("left", "a", "a"), ("right", "a", "b"), ("left", "b", "b")])
def test_an_answer_by_its_side_is_one_to_the_candidate_there(answer: str, left: str, of: str) -> None:
    assert name_side(answer, Side(left)) == of
    assert name_side(of, Side(left)) == answer
    assert name_side("tie", Side(left)) == "tie"


def end_done(studies: Studies, browser: TestClient) -> None:
    begin(browser)
    for _ in range(2):
        answer_one(browser)


def end_screened_out(studies: Studies, browser: TestClient) -> None:
    step(browser, "consent", agreed=True)
    step(browser, "screen", **{**SCREEN, "height_px": 100}, give_up=True)


def end_no_consent(studies: Studies, browser: TestClient) -> None:
    step(browser, "consent", agreed=False)


def end_timed_out(studies: Studies, browser: TestClient) -> None:
    with studies.database.write() as session:
        study = get_study(session, "ends timed_out")
        for participant in session.scalars(select(Participant).where(Participant.study_id == study.id)):
            participant.created_at -= timedelta(hours=2)


def end_over_quota(studies: Studies, browser: TestClient) -> None:
    pass  # the only place was another's when this one came


def end_returned(studies: Studies, browser: TestClient) -> None:
    begin(browser)
    browser.post("/api/label", json={"want": 2})
    step(browser, "leave")
    step(browser, "leave")


def end_blocked(studies: Studies, browser: TestClient) -> None:
    begin(browser)
    warned = False
    for _ in range(40):
        study = answer_one(browser)["study"]
        warned = warned or study["warned"]
        if study["stage"] == "ended":
            break
    assert warned


SETTINGS: dict[Outcome, dict[str, Any]] = {
    Outcome.over_quota: {"places": 1},
    Outcome.blocked: {"answers": 20, "gold_share": 0.5, "warn_after_wrong": 1, "stop_after_wrong": 2},
}


@pytest.mark.parametrize("outcome", Outcome)
def test_each_ending_has_its_words_code_and_address_and_is_the_last(studies: Studies, outcome: Outcome) -> None:
    link = studies.make(f"ends {outcome}", **SETTINGS.get(outcome, {}))
    if outcome is Outcome.over_quota:
        studies.come(link, PROLIFIC_PID="first")
    browser = studies.come(link)
    globals()[f"end_{outcome}"](studies, browser)
    shown = state_of(browser)
    assert (shown["stage"], shown["outcome"]) == ("ended", outcome)
    ending = shown["ending"]
    assert ending["code"] == f"C-{outcome}"
    assert ending["address"] == f"https://app.prolific.com/submissions/complete?cc=C-{outcome}"
    assert (ending["back_to"], ending["automatic"]) == ("Prolific", True)
    assert state_of(studies.come(link))["ending"] == ending, "who comes again sees it again"

    # Nothing goes on after it.
    count = select(func.count()).select_from(Judgment)
    before = fetch(studies.database, count)
    assert browser.get("/").headers["location"] == "/study"
    for name, body in {"consent": {"agreed": True}, "screen": SCREEN, "begin": {}}.items():
        assert browser.post(f"/api/study/{name}", json=body).status_code == 409
    shown_after = browser.post("/api/label", json={"want": 1}).json()
    assert (shown_after["pairs"], shown_after["study"]["stage"]) == ([], "ended")
    assert state_of(browser)["outcome"] == outcome
    assert fetch(studies.database, count) == before


def test_an_ended_participant_cannot_answer_a_pair_that_was_shown_before(studies: Studies) -> None:
    browser = studies.come(studies.make("late"))
    begin(browser)
    showing = browser.post("/api/label", json={"want": 1}).json()["pairs"][0]["showing"]
    step(browser, "leave")
    (result,) = browser.post("/api/label", json={"events": [make_event(showing)]}).json()["results"]
    assert (result["status"], "has ended" in result["error"]) == ("refused", True)


def test_a_link_of_ones_own_ends_without_a_code_and_knows_the_browser(studies: Studies) -> None:
    link = studies.make("plain", panel="plain", endings={})
    browser = studies.client()
    browser.get(link)
    before = count_rows(studies.database, Participant)
    browser.get(link)
    assert count_rows(studies.database, Participant) == before
    end_done(studies, browser)
    ending = state_of(browser)["ending"]
    assert (ending["code"], ending["address"], ending["automatic"]) == ("", "", False)
    own = {"panel": "plain", "endings": {"done": {"code": "X", "address": "https://lab.example.org/back?c={code}"}}}
    browser = studies.client()
    browser.get(studies.make("own address", **own))
    end_done(studies, browser)
    ending = state_of(browser)["ending"]
    assert (ending["address"], ending["back_to"]) == ("https://lab.example.org/back?c=X", "lab.example.org")


def test_a_participant_is_told_of_nobody_else(studies: Studies) -> None:
    link = studies.make("others", answers=25)
    first, second = studies.come(link, PROLIFIC_PID="first"), studies.come(link, PROLIFIC_PID="second")
    for browser in (first, second):
        begin(browser)
    answer_one(first)
    assert second.get("/api/history").json() == []
    assert second.get("/api/progress").json()["all"] is None
    person = second.get("/api/session").json()["person"]
    assert (person["name"], person["role"]) == ("", "annotator")
    for path in (
        "/admin/",
        "/api/runs",
        "/api/overview",
        "/api/train",
        "/api/lineage",
        "/api/studies",
        "/api/studies/1",
    ):
        assert second.get(path).status_code == 403
    shown = first.post("/api/label", json={"want": 1}).json()
    (pair,) = shown["pairs"]
    assert first.get(pair["left"]["url"]).status_code == 200
    assert second.get(pair["left"]["url"]).status_code == 403
    (result,) = second.post("/api/label", json={"events": [make_event(pair["showing"])]}).json()["results"]
    assert result["status"] == "refused"


def test_the_number_of_answers_tells_no_gold_pair_from_the_others(studies: Studies) -> None:
    """It is shown in steps: else an answer that leaves it as it is was one to a gold pair or a repeat."""
    browser = studies.come(studies.make("steps of five", answers=25))
    begin(browser)
    seen = [answer_one(browser)["study"]["answers"] for _ in range(6)]
    assert seen == [0, 0, 0, 0, 5, 5]


def test_events_hold_no_id_of_the_panel(studies: Studies) -> None:
    events = fetch(studies.database, select(StudyEvent))
    assert len(events) > 20
    assert not [event for event in events if WHO["PROLIFIC_PID"] in str(event.detail)]
    assert fetch(studies.database, select(Participant).where(Participant.stage == Stage.ended))
