"""Fifty people of a panel at once, of whom many leave, dawdle, guess or come twice: no slot is lost or judged twice."""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from annotate.prolific.command import ProlificOptions, run_prolific
from annotate.studies.create import create_study, get_study, set_state
from annotate.studies.forget import find_left, forget_all
from annotate.studies.money import list_payments, mark_paid, note_owed, top_up, write_ledger
from annotate.studies.settings import read_study_settings
from db.models import Choice, Judgment, Lease, Pair, utc_now
from db.session import Database, open_database
from db.studies import Outcome, PanelEntry, Participant, PaymentKind, Stage, StudyPair, StudyState
from runs.options import Place
from tests.making import SECRET_METHODS, make_app_without_pages, make_clients, make_event, make_project
from tests.prolific_stand_in import ProlificStandIn, serve_stand_in
from ui.context import Context

PEOPLE, ANSWERS, PER_PAIR = 50, 5, 2
CODES = {outcome.value: {"code": f"C{number}"} for number, outcome in enumerate(Outcome)}
SCREEN = {"width_px": 1280, "height_px": 720, "device_pixel_ratio": 1.0, "zoom": None, "fields_seen": None}
WAYS = ("works", "leaves", "reloads", "returns there", "two tabs", "dawdles", "fails gold", "comes twice", "no consent")


class Crowd:
    """The app, the panel, and what each participant does."""

    def __init__(self, database: Database, data: Path, api: ProlificStandIn, panel_study: str) -> None:
        self.database, self.api, self.panel_study = database, api, panel_study
        self.visit = make_clients(make_app_without_pages(Context(database=database, data=data, auth=True)))
        self.acknowledged: list[str] = []

    def run(self, number: int) -> None:
        """One participant's whole way."""
        way, rng = WAYS[number % len(WAYS)], random.Random(number)
        joined = self.api.join(self.panel_study, f"panel-person-{number:02d}")
        self.deliver()
        browser = self.come(joined["address"])
        if way == "comes twice":
            browser = self.come(joined["address"])
        self.step(browser, "consent", agreed=way != "no consent")
        if way != "no consent":
            self.step(browser, "screen", **SCREEN)
        self.work(browser, way, joined["id"], rng)
        told = browser.get("/api/study").json()
        returned = self.api.submissions[joined["id"]]["status"] == "RETURNED"
        if told["stage"] == "ended" and told["ending"]["code"] and not returned:
            self.api.submit(joined["id"], told["ending"]["code"])
        self.deliver()

    def come(self, address: str) -> TestClient:
        browser = self.visit()
        parts = urlsplit(address)
        answer = browser.get(f"{parts.path}?{parts.query}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/study"), answer.text
        return browser

    def step(self, browser: TestClient, name: str, **body: Any) -> None:
        answer = browser.post(f"/api/study/{name}", json=body)
        assert answer.status_code in (200, 400, 409), answer.text  # over quota: this step is no more

    def deliver(self) -> None:
        """Send the panel's webhooks, each twice: nothing comes of the second."""
        for webhook in self.api.take_webhooks():
            for again in (False, True):
                told = self.visit().post("/hooks/prolific", content=webhook.body, headers=webhook.headers)
                assert told.status_code == 200, told.text
                assert not (again and told.json()["changed"]), webhook

    def work(self, browser: TestClient, way: str, submission: str, rng: random.Random) -> None:
        pages = itertools.cycle(["one", "two"] if way == "two tabs" else ["one"])
        for turn in range(30):
            if way == "leaves" and turn == 2:
                self.step(browser, "leave")
            if way == "returns there" and turn == 2:
                self.api.end(submission, "RETURNED")
                self.deliver()
            if way == "dawdles" and turn == 2:
                self.make_late(submission)
            page = next(pages)
            shown = self.ask(browser, page, want=2)
            if shown.get("study") is None or shown["study"]["stage"] == "ended":
                return
            if not shown["pairs"] or (way == "reloads" and turn % 2):  # those that it held come again
                continue
            first = shown["pairs"][0]["showing"]
            choice = rng.choice(["left", "right"]) if way == "fails gold" else "tie"  # which is right of each
            event = make_event(first, choice)
            answer = self.ask(browser, page, want=0, events=[event], holding=[first])
            again = self.ask(browser, page, want=0, events=[event])  # the page did not hear the answer
            assert again["results"][0]["status"] == answer["results"][0]["status"] or again["study"]["stage"] == "ended"
            if answer["results"][0]["status"] == "stored":
                self.acknowledged.append(event["id"])

    def ask(self, browser: TestClient, page: str, **body: Any) -> dict[str, Any]:
        answer = browser.post("/api/label", json={"page": page, **body})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def make_late(self, submission: str) -> None:
        with self.database.write() as session:
            session.execute(
                update(Participant)
                .where(Participant.id.in_(select(PanelEntry.participant_id).where(PanelEntry.submission == submission)))
                .values(created_at=utc_now() - timedelta(hours=2))
            )


@pytest.fixture
def crowd(postgres_url: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    database = open_database(data, postgres_url)
    given = {
        "panel": "prolific", "places": 30, "answers": ANSWERS, "answers_per_pair": PER_PAIR, "answers_per_stratum": 16,
        "answers_per_photo": 2, "endings": CODES, "qualification": 1, "qualification_right": 1, "gold_share": 0.2,
        "repeat_share": 0.1, "warn_after_wrong": 1, "stop_after_wrong": 2, "pay_cents": 97, "screen_out_cents": 13,
        "hourly_cents": 900, "currency": "GBP", "minutes_expected": 7, "prolific": {"screen_out_slots": 20},
    }  # fmt: skip
    with database.write() as session:
        make_project(session, data, tmp_path, 12, SECRET_METHODS)
        gold = session.scalars(select(Pair.id).order_by(Pair.id).limit(6)).all()
        session.execute(update(Pair).where(Pair.id.in_(gold)).values(gold_answer="tie"))
        set_state(session, create_study(session, "faces", read_study_settings(given)), StudyState.open)
    with serve_stand_in() as api:
        monkeypatch.setenv("PROLIFIC_API", api.address)
        monkeypatch.setenv("PROLIFIC_TOKEN", api.token)
        monkeypatch.setenv("PROLIFIC_WEBHOOK_SECRET", api.secret)

        def prolific(action: str, **options: Any) -> None:
            place = Place(data, postgres_url)
            run_prolific(ProlificOptions.model_validate({"action": action, "name": "faces", **options}), place)

        prolific("create", base_url="https://faces.example.org")
        prolific("publish")
        made = Crowd(database, data, api, next(iter(api.studies)))
        made.prolific = prolific  # type: ignore[attr-defined]
        yield made
    database.close()


def test_no_slot_is_lost_or_judged_twice_and_the_pay_sums_to_the_cent(
    crowd: Any, caplog: pytest.LogCaptureFixture, data: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    for client in ("httpx", "httpx2", "httpcore", "httpcore2"):  # the participants' browsers, and the panel
        caplog.set_level(logging.WARNING, logger=client)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(crowd.run, range(PEOPLE)))
    with crowd.database.write() as session:
        study = get_study(session, "faces")
        people = session.scalars(select(Participant).where(Participant.study_id == study.id)).all()
        assert len(people) == PEOPLE
        outcomes = Counter(one.outcome for one in people)
        assert {Outcome.done, Outcome.returned, Outcome.timed_out, Outcome.screened_out, Outcome.no_consent} <= set(
            outcomes
        ), outcomes
        assert outcomes[Outcome.done] <= 30
        check_quotas(session, study.id)
        stored = set(session.scalars(select(Judgment.uuid)))
        assert stored >= set(crowd.acknowledged)
        assert len(crowd.acknowledged) == len(set(crowd.acknowledged))
        ended = select(Participant.person_id).where(Participant.stage == Stage.ended)
        assert session.scalar(select(func.count(Lease.id)).where(Lease.person_id.in_(ended))) == 0
        note_owed(session, study)
        top_up(session, study)
        ledger = list_payments(session, study)
        owed = outcomes[Outcome.done] * 97
        assert sum(one.cents for one in ledger if one.kind is PaymentKind.base) == owed
        total = sum(one.cents for one in ledger)
        lines = [line.split(",") for line in write_ledger(session, study).splitlines()[1:]]
        assert sum(round(float(line[2]) * 100) for line in lines if line[0].isdecimal()) == total
    crowd.prolific("approve", participants=[])
    crowd.prolific("screen-out")
    crowd.prolific("bonus")
    assert crowd.api.paid_cents() == total
    with crowd.database.write() as session:
        study = get_study(session, "faces")
        mark_paid(session, study)
        for one in session.scalars(select(Participant).where(Participant.stage != Stage.ended)):
            one.stage, one.outcome = Stage.ended, Outcome.returned
        before = session.scalar(select(func.count(Judgment.id)))
        forgotten = forget_all(session, study)
        assert forgotten.entries == PEOPLE
        assert session.scalar(select(func.count(Judgment.id))) == before
    assert find_left(crowd.database, [*forgotten.ids, "panel-person-"]) == []
    assert "panel-person-" not in caplog.text
    assert crowd.api.token not in caplog.text
    held = [file for file in data.rglob("*") if file.is_file() and b"panel-person-" in file.read_bytes()]
    assert held == []


def check_quotas(session: Any, study_id: int) -> None:
    """Each pair's, stratum's, photo's and person's number of answers, counted anew from the judgments."""
    live = (
        select(
            Judgment.pair_id, Judgment.person_id, Pair.source_id, StudyPair.stratum, StudyPair.wanted, StudyPair.done
        )
        .join(StudyPair, StudyPair.pair_id == Judgment.pair_id)
        .join(Pair, Pair.id == Judgment.pair_id)
        .where(StudyPair.study_id == study_id, Judgment.repeat_no == 0, Judgment.superseded_at.is_(None))
    )
    rows = session.execute(live).all()
    assert rows
    by_pair = Counter(row.pair_id for row in rows)
    assert all(by_pair[row.pair_id] == row.done <= row.wanted for row in rows)
    assert max(Counter((row.pair_id, row.person_id) for row in rows).values()) == 1
    assert max(Counter((row.source_id, row.person_id) for row in rows).values()) <= 2
    assert max(Counter(row.stratum for row in rows).values()) <= 16
    of_people = Counter(row.person_id for row in rows)
    told = dict(session.execute(select(Participant.person_id, Participant.answers)).all())
    assert all(told[person] == number <= ANSWERS for person, number in of_people.items())
    skipped = select(func.count(Judgment.id)).where(Judgment.choice == Choice.skip)
    assert session.scalar(skipped) == 0
    done = session.scalar(select(func.sum(StudyPair.done)).where(StudyPair.study_id == study_id))
    wanted = session.scalar(select(func.sum(StudyPair.wanted)).where(StudyPair.study_id == study_id))
    assert done == len(rows)
    assert done == wanted, "no slot was lost"
