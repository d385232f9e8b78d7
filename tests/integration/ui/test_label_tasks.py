"""Tasks of several candidates over HTTP: what a page is shown, what it may answer, and what of it is stored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from db.images import image_path
from db.models import Asked, Candidate, Choice, Judgment, Lease, Picked, Task, TaskCandidate
from db.project import save_settings
from db.session import Database
from tests.making import SIX_METHODS, MakeClient, fetch, make_event, make_project, undo_event

FACES = 3


@pytest.fixture
def ask_best(people: None, database: Database, data: Path, tmp_path: Path) -> None:
    """Three photos with a task of four candidates each."""
    with database.write() as session:
        make_project(session, data, tmp_path, FACES, SIX_METHODS[:4], task_size=4)


@pytest.fixture
def ben(ask_best: None, client: MakeClient) -> TestClient:
    return client("ben")


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/label", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def asking(database: Database, asked: str) -> None:
    with database.write() as session:
        save_settings(session, {"asked": asked})


def test_a_task_is_shown_by_its_places_and_names_nothing(ben: TestClient, database: Database) -> None:
    shown = ask(ben, want=5)
    assert (len(shown["pairs"]), shown["done"]) == (FACES, True), "of the pairs none is asked"
    for view in shown["pairs"]:
        assert set(view) == {"showing", "asked", "images", "lq", "hq"}
        assert (view["asked"], len(view["images"])) == ("best", 4)
        addresses = [image["url"] for image in (*view["images"], view["lq"], view["hq"])]
        assert len(set(addresses)) == 6
        assert {ben.get(address).status_code for address in addresses} == {200}
    assert "secret" not in str(shown)
    assert shown["pairs"] == ask(ben, want=5)["pairs"], "the same again, to the same addresses"
    leases = fetch(database, select(Lease))
    assert {lease.asked for lease in leases} == {Asked.best}


@pytest.mark.parametrize(
    ("asked", "tiers", "worst", "expected"),
    [
        ("best", [[2]], [], "{2}>?"),
        ("best", [[3, 1, 0, 2]], [], "a=b=c=d"),
        ("best_worst", [[1]], [[3]], "{1}>?>{3}"),
        ("order", [[3], [1], [0], [2]], [], "{3}>{1}>{0}>{2}"),
        ("order", [[3], [1]], [], "{3}>{1}>?"),
        ("order", [[3], [1], [0]], [], "{3}>{1}>{0}>{2}"),
    ],
)
def test_an_answer_by_places_is_stored_as_a_ranking_of_letters(
    ben: TestClient, database: Database, asked: str, tiers: list[list[int]], worst: list[list[int]], expected: str
) -> None:
    asking(database, asked)
    (view,) = ask(ben, want=1)["pairs"]
    event = make_event(view["showing"], "ranked", tiers=tiers, worst=worst, view_mode="fit+input")
    reply = ask(ben, events=[event])
    assert reply["results"][0]["status"] == "stored", reply
    (row,) = fetch(database, select(Judgment))
    assert row.places is not None
    assert row.ranking == expected.format(*row.places)
    assert (row.choice, row.pair_id, row.asked, row.view_mode) == (None, None, Asked(asked), "fit+input")
    with database.read() as session:
        images = {
            one.letter: one.candidate.image.sha256
            for one in session.scalars(select(TaskCandidate).where(TaskCandidate.task_id == row.task_id))
        }
    served = [hashlib.sha256(ben.get(image["url"]).content).hexdigest() for image in view["images"]]
    assert served == [images[letter] for letter in row.places], (
        "what stood in each place is the candidate of its letter"
    )
    (entry,) = ben.get("/api/history").json()
    assert (entry["choice"], entry["images"], entry["worst"]) == ("ranked", view["images"], worst)
    known = {place for tier in (*entry["tiers"], *entry["worst"]) for place in tier}
    assert entry["tiers"][0] == sorted(tiers[0])
    assert sorted([*known, *entry["rest"]]) == [0, 1, 2, 3]
    assert ben.get("/api/progress").json()["mine"]["done"] == 1


FAULTS: list[dict[str, Any]] = [
    {"choice": "left"},
    {"choice": "tie"},
    {"choice": "left", "tiers": [[0]]},
    {"choice": "skip", "skip_reason": "both bad", "tiers": [[0]]},
    {"choice": "skip"},
    {"tiers": []},
    {"tiers": [[]]},
    {"tiers": [[4]]},
    {"tiers": [[6]]},
    {"tiers": [[-1]]},
    {"tiers": [[0, 0]]},
    {"tiers": [[0], [0]]},
    {"tiers": [[0]], "worst": [[0]]},
    {"tiers": [], "worst": [[0]]},
    {"tiers": [[0], [1]]},
    {"tiers": [[0]], "worst": [[1]]},
    {"tiers": [[True]]},
    {"tiers": [["0"]]},
    {"tiers": [[0.0]]},
    {"tiers": [[None]]},
    {"tiers": "abcd"},
    {"tiers": [[0]] * 7},
    {"tiers": [[0]], "places": "abcd"},
    {"tiers": [[0]], "skip_reason": "both bad"},
    {"tiers": [[0]], "ranking": "a>?"},
]


def test_what_does_not_answer_a_task_is_refused_with_a_sentence_and_nothing_is_stored(
    ben: TestClient, database: Database
) -> None:
    (view,) = ask(ben, want=1)["pairs"]
    events = [
        make_event(view["showing"], "ranked", **{"tiers": [[0]], **fault}) for fault in FAULTS if "choice" not in fault
    ]
    events += [make_event(view["showing"], **fault) for fault in FAULTS if "choice" in fault]
    assert len(events) == len(FAULTS)
    for event, result in zip(events, ask(ben, events=events)["results"], strict=True):
        assert result["status"] == "refused", event
        assert 20 < len(result["error"]) < 500, event
    assert fetch(database, select(Judgment)) == []
    skipped = make_event(view["showing"], "skip", skip_reason="both bad")
    assert ask(ben, events=[skipped])["results"][0]["status"] == "stored"
    (row,) = fetch(database, select(Judgment))
    assert (row.choice, row.ranking, row.skip_reason) == (Choice.skip, None, "both bad")
    (entry,) = ben.get("/api/history").json()
    assert (entry["choice"], entry["tiers"], len(entry["images"])) == ("skip", [], 4)


def test_tiers_do_not_answer_a_pair(ben: TestClient, database: Database) -> None:
    with database.write() as session:
        save_settings(session, {"task_size": 2})
    (view,) = ask(ben, want=1)["pairs"]
    events = [
        make_event(view["showing"], "ranked", tiers=[[0]]),
        make_event(view["showing"], "ranked"),
        make_event(view["showing"], "left", tiers=[[0]]),
        make_event(view["showing"], "left", worst=[[1]]),
    ]
    results = ask(ben, events=events)["results"]
    assert [result["status"] for result in results] == ["refused"] * 4
    assert "does not answer a pair" in results[0]["error"]
    assert fetch(database, select(Judgment)) == []


def test_undo_brings_the_same_places_back_once(ben: TestClient, database: Database) -> None:
    (view,) = ask(ben, want=1)["pairs"]
    event = make_event(view["showing"], "ranked", tiers=[[2]])
    ask(ben, events=[event, event])
    assert len(fetch(database, select(Judgment))) == 1
    undo = undo_event(event["id"])
    for sent in (undo, undo, undo_event(event["id"])):
        (result,) = ask(ben, events=[sent])["results"]
        assert result["pair"] == view
    assert fetch(database, select(Task.judgment_count).where(Task.judgment_count > 0)) == []
    again = make_event(view["showing"], "ranked", tiers=[[1]])
    reason = {**again, "id": make_event("")["id"], "reasons": ["eyes"], "replaces": again["id"]}
    ask(ben, events=[again, reason])
    live = fetch(database, select(Judgment).where(Judgment.superseded_at.is_(None)))
    assert [(row.reasons, row.ranking) for row in live] == [(["eyes"], f"{live[0].places[1]}>?")]
    late = ask(ben, events=[make_event(view["showing"], "ranked", tiers=[[0]])])["results"][0]
    assert "in another tab" in late["error"]


def test_two_pages_of_one_person_show_other_tasks(ben: TestClient) -> None:
    first, second = ask(ben, want=2, page="one"), ask(ben, want=2, page="two")
    assert [len(reply["pairs"]) for reply in (first, second)] == [2, 1]
    assert (second["in_own_pages"], second["own_pages"]) == (2, 1)
    held = [view["showing"] for view in first["pairs"]]
    assert ask(ben, page="two", holding=held)["gone"] == held
    assert ask(ben, page="one", holding=held, leaving=True) == {"results": []}
    assert len(ask(ben, page="one-again", want=2)["pairs"]) == 2


def test_tasks_with_a_damaged_image_are_passed_over(ben: TestClient, database: Database, data: Path) -> None:
    with database.read() as session:
        candidate = session.scalars(select(Candidate)).first()
        assert candidate is not None
        bad = set(session.scalars(select(TaskCandidate.task_id).where(TaskCandidate.candidate_id == candidate.id)))
        path = image_path(data, candidate.image.sha256, candidate.image.suffix)
    path.unlink()
    reply = ask(ben, want=5, page="p")
    assert (len(reply["pairs"]), reply["damaged"], reply["done"]) == (FACES - len(bad), len(bad), True)
    assert bad.isdisjoint(fetch(database, select(Lease.task_id)))


def test_a_page_holds_pairs_and_tasks_and_each_takes_its_own_answers(ben: TestClient, database: Database) -> None:
    views = []
    for size in (4, 2, 4, 2):  # as a project mixes them, but in a known order
        with database.write() as session:
            save_settings(session, {"task_size": size})
        reply = ask(ben, want=1, page="p", holding=[view["showing"] for view in views])
        views += reply["pairs"]
    assert ["images" in view for view in views] == [True, False, True, False]
    crossed = [make_event(views[0]["showing"], "left"), make_event(views[1]["showing"], "ranked", tiers=[[1]])]
    results = ask(ben, page="p", events=[*crossed, *map(answer, views)])["results"]
    assert [result["status"] for result in results] == ["refused"] * 2 + ["stored"] * 4
    rows = fetch(database, select(Judgment).order_by(Judgment.id))
    assert [row.asked for row in rows] == [Asked.best, Asked.pair] * 2
    assert {row.picked for row in rows} == {Picked.random}
    history = ben.get("/api/history").json()
    assert ["images" in entry for entry in history] == [False, True] * 2
    assert [entry["choice"] for entry in history] == ["right", "ranked"] * 2


def answer(view: dict[str, Any]) -> dict[str, Any]:
    if "images" not in view:
        return make_event(view["showing"], "right")
    tiers, worst = [[0]], [[1]] if view["asked"] == "best_worst" else []
    return make_event(view["showing"], "ranked", tiers=tiers, worst=worst)


def test_progress_counts_what_the_project_asks_about(ben: TestClient, database: Database) -> None:
    (view,) = ask(ben, want=1)["pairs"]
    ask(ben, events=[answer(view)])
    whole = ben.get("/api/progress").json()["all"]
    assert (whole["done"], whole["wanted"]) == (1, sum(fetch(database, select(Task.judgments_wanted))))
