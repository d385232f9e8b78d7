"""The server as a browser meets it: who gets in, what is shown, which bytes are served."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from itsdangerous import URLSafeSerializer
from sqlalchemy import select, update
from starlette.testclient import TestClient

from annotate.judging.people import add_person, disable_person, get_person, make_link_token, set_password
from annotate.labeler.active import replace_shortlists
from db.errors import UserError
from db.images import image_path
from db.models import Candidate, Choice, Image, Judgment, Lease, Pair, Picked, Role, Side, utc_now
from db.project import save_settings
from db.session import Database
from tests.making import (
    PASSWORD,
    SECRET_METHODS,
    MakeClient,
    address_of,
    fetch,
    get_settings,
    make_app_without_pages,
    make_event,
    make_project,
    open_client,
    routes_of,
    undo_event,
)
from ui.context import Context
from ui.gate.access import load_secret
from ui.gate.sign_in import check_someone_can_sign_in
from ui.gate.throttle import FAILURES_PER_ADDRESS, REFUSAL_SECONDS


@pytest.fixture
def project(people: None, database: Database, data: Path, tmp_path: Path) -> None:
    """Three sources with three methods each, their pairs, and two people: ada (admin) and ben (annotator)."""
    with database.write() as session:
        make_project(session, data, tmp_path, 3)


@pytest.fixture
def client(project: None, client: MakeClient) -> MakeClient:
    """Makes clients of one app of the project, signed in as the named person."""
    return client


@pytest.fixture
def paged_client(project: None, paged_client: MakeClient) -> MakeClient:
    """As `client`, with the Gradio pages."""
    return paged_client


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/label", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def judge(pair: dict[str, Any], choice: str, **more: Any) -> dict[str, Any]:
    return make_event(pair["showing"], choice, **more)


OPEN = ("/sign-in", "/favicon.ico", "/enter/{token}", "/study/{link}", "/api/sign-in-info")


def paths_of(app: Any) -> set[str]:
    """Addresses of all GET routes of the app that are not open to everybody."""
    paths = {path for method, path in routes_of(app) if method == "GET"}
    return {path.replace("{name}", "0" * 64) for path in paths - set(OPEN)}


ADMIN_ADDRESSES = (
    "/admin/",
    "/admin/people",
    "/admin/export",
    "/admin/config",
    "/admin/gradio_api/info",
    "/admin/gradio_api/file=/etc/passwd",
    "/admin/gradio_api/startup-events",
)


def test_anonymous_reaches_sign_in_and_nothing_else(paged_client: MakeClient) -> None:
    anonymous = paged_client()
    paths = paths_of(anonymous.app)
    assert {"/", "/api/session", "/api/progress", "/api/history"} < paths
    for path in [*paths, *ADMIN_ADDRESSES]:
        answer = anonymous.get(path)
        refused = answer.status_code == 401 or answer.headers.get("location", "").startswith("/sign-in?next=")
        assert refused, f"{path}: {answer.status_code}"
    for path in ("/api/label", "/api/guidelines-seen", "/admin/gradio_api/upload", "/admin/gradio_api/queue/join"):
        assert anonymous.post(path, json={}).status_code == 401, path
    assert anonymous.get("/sign-in").status_code == 200


def test_annotator_labels_and_nothing_else(paged_client: MakeClient) -> None:
    ben = paged_client("ben")
    assert ben.get("/").status_code == 200
    assert ben.get("/api/session").json()["person"]["role"] == "annotator"
    for path in ADMIN_ADDRESSES:
        assert ben.get(path).status_code == 403, path
    for path in ("/admin/gradio_api/upload", "/admin/gradio_api/queue/join", "/admin/gradio_api/call/on_add"):
        assert ben.post(path, json={}).status_code == 403, path


def test_admin_opens_every_page(paged_client: MakeClient) -> None:
    ada = paged_client("ada")
    for path in ("/admin/", "/admin/project", "/admin/people", "/admin/report", "/admin/export"):
        assert ada.get(path).status_code == 200, path


def test_annotator_loads_only_images_named_to_them(client: MakeClient, data: Path) -> None:
    ben, ada = client("ben"), client("ada")
    pair = ask(ben, want=1)["pairs"][0]
    mine = pair["left"]["url"]
    content = ben.get(mine).content
    sha256 = hashlib.sha256(content).hexdigest()
    assert (data / "images" / sha256[:2] / f"{sha256}.png").read_bytes() == content
    forged = [mine[:-1], mine[:-6] + ("A" if mine[-6] != "A" else "B") + mine[-5:], "/img/", "/img/AAAA", "/img/é"]
    for address in (f"/img/{sha256}", *forged):
        assert ben.get(address).status_code in (403, 404), address
    assert ada.get(f"/img/{sha256}").status_code == 200
    assert ada.get(mine).status_code == 403, "made for ben"
    # A link that ben passes on does not open for somebody else without a session of his.
    assert client().get(mine).status_code == 401


def test_served_bytes_are_the_stored_file(ben: TestClient, data: Path) -> None:
    for pair in ask(ben, want=4)["pairs"]:
        for which in ("left", "right", "lq", "hq"):
            answer = ben.get(pair[which]["url"])
            sha256 = hashlib.sha256(answer.content).hexdigest()
            assert answer.content == image_path(data, sha256, ".png").read_bytes()
            assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
            assert answer.headers["content-type"] == "image/png"
            assert "content-disposition" not in answer.headers


@pytest.mark.parametrize(
    "address",
    [
        "/img/../facereward.db",
        "/img/%2e%2e/secret.key",
        "/img/..%2fsecret.key",
        "/static/../access.py",
        "/static/%2e%2e/access.py",
    ],
)
def test_no_request_leaves_its_folder(paged_client: MakeClient, address: str) -> None:
    answer = paged_client("ada").get(address)
    assert answer.status_code in (403, 404)
    assert b"SQLite" not in answer.content
    assert b"import" not in answer.content


def test_gradio_file_route_stays_inside_the_data_folder(paged_client: MakeClient, data: Path) -> None:
    ada = paged_client("ada")
    for path in ("/etc/passwd", str(data / "secret.key"), str(data / "facereward.db"), f"{data}/runs/../secret.key"):
        assert ada.get(f"/admin/gradio_api/file={path}").status_code in (403, 404), path


def test_no_answer_names_a_method(ben: TestClient) -> None:
    answer = ask(ben, want=8)
    ask(ben, events=[judge(answer["pairs"][0], "left")])
    texts = [json.dumps(answer), ben.get("/").text, ben.get("/api/session").text, ben.get("/api/history").text]
    for text in texts:
        assert not any(name in text for name in SECRET_METHODS)


def test_judgment_is_stored_as_displayed(ben: TestClient, database: Database) -> None:
    pair = ask(ben, want=1)["pairs"][0]
    event = judge(pair, "left", reasons=["eyes"], view_mode="fit+1:1")
    assert ask(ben, events=[event])["results"] == [{"id": event["id"], "status": "stored", "error": None, "pair": None}]
    with database.read() as session:
        row = session.scalars(select(Judgment)).one()
        shown = row.pair.a if row.shown_left is Side.a else row.pair.b
        assert shown.image.sha256 == hashlib.sha256(ben.get(pair["left"]["url"]).content).hexdigest()
        assert row.choice.value == row.shown_left.value
        assert (row.reasons, row.view_mode, row.seconds, row.person.name) == (["eyes"], "fit+1:1", 1.5, "ben")
        assert row.pair.judgment_count == 1


def test_why_a_pair_was_shown_comes_back_with_the_answer_also_when_its_lease_is_gone(
    client: MakeClient, database: Database
) -> None:
    with database.write() as session:
        save_settings(session, {"order": "uncertain", "random_share": 0.05})
        session.execute(update(Pair).values(reserved=False))
        replace_shortlists(session, {Picked.uncertain: list(session.scalars(select(Pair.id)))})
    ben = client("ben")
    pairs = ask(ben, want=5)["pairs"]
    assert not any(picked.value in json.dumps(pairs) for picked in Picked), "not in clear words"
    with database.write() as session:
        told = dict(sorted((lease.pair_id, lease.picked) for lease in session.scalars(select(Lease))))
        assert Picked.uncertain in told.values()
        for lease in session.scalars(select(Lease)):
            session.delete(lease)
    events = [judge(pair, "left") for pair in pairs]
    ask(ben, events=events)
    undo = undo_event(events[0]["id"])
    assert ask(ben, events=[undo])["results"][0]["pair"] == pairs[0], "the same showing, signature and all"
    assert {row.pair_id: row.picked for row in fetch(database, select(Judgment))} == told


def test_answers_to_the_readable_tokens_of_before_are_taken(client: MakeClient, database: Database, data: Path) -> None:
    """A page that is open across the update, or had no network since, still has them."""
    readable = URLSafeSerializer(load_secret(data), salt="showing")
    ben = client("ben")
    with database.read() as session:
        person, (first, second, third, *_) = get_person(session, "ben").id, session.scalars(select(Pair.id)).all()
    tokens = [[person, first, 0, "b"], [person, second, 0, "b", "u"], [person, third, 1, "a", "r", "v1"]]
    events = [judge({"showing": readable.dumps(token)}, "left") for token in tokens]
    assert {result["status"] for result in ask(ben, events=events)["results"]} == {"stored"}
    somebody_elses, payload = readable.dumps([person + 1, first, 0, "b"]), readable.dumps(tokens[0]).rpartition(".")[0]
    forged = f"{payload}.{readable.dumps(tokens[1]).rpartition('.')[2]}"  # another token's signature
    for token, why in ((somebody_elses, "another person"), (forged, "does not belong")):
        assert why in ask(ben, events=[judge({"showing": token}, "left")])["results"][0]["error"]
    with database.read() as session:
        rows = session.scalars(select(Judgment).order_by(Judgment.id)).all()
        assert [(row.pair_id, row.choice, row.picked, row.repeat_no) for row in rows] == [
            (first, Choice.b, Picked.random, 0),
            (second, Choice.b, Picked.uncertain, 0),
            (third, Choice.a, Picked.random, 1),
        ]


def asked_of(database: Database) -> list[str | None]:
    """The question that each judgment answered, in their order."""
    with database.read() as session:
        return [
            row.question.question if row.question else None for row in session.scalars(select(Judgment).order_by("id"))
        ]


def test_an_answer_is_stored_with_the_question_that_its_page_showed(client: MakeClient, database: Database) -> None:
    ben, old = client("ben"), get_settings(database).question
    project = ben.get("/api/session").json()["project"]
    first, second, third, fourth = ask(ben, want=4, question=project["version"])["pairs"]
    with database.write() as session:
        save_settings(session, {"question": "Which is sharper?", "reasons": ["edges"], "guidelines": "**Look.**"})
    answer = ask(ben, events=[judge(first, "left", question=project["version"])], question=project["version"])
    new = answer["project"]
    assert (new["question"], new["reasons"]) == ("Which is sharper?", ["edges"])
    assert "<strong>Look.</strong>" in new["guidelines_html"]
    assert new == ben.get("/api/session").json()["project"]
    later = judge(second, "left", question=new["version"])
    assert ask(ben, events=[later], question=new["version"])["project"] is None
    ask(ben, events=[judge(third, "left"), judge(fourth, "left", question="never heard of")])
    assert asked_of(database) == [old, "Which is sharper?", old, None], "without a version, the one it was given with"
    history = ben.get("/api/history").json()
    assert [entry["asked"] for entry in history] == [None, old, None, old]


def test_reasons_and_view_modes_are_those_that_pages_offer_or_offered(ben: TestClient, database: Database) -> None:
    first, second = ask(ben, want=2)["pairs"]
    for more in (
        {"reasons": ["=cmd()"]},
        {"reasons": ["eyes", "eyes"]},
        {"view_mode": "<img src=x>"},
        {"view_mode": "fit+"},
        {"view_mode": "review"},
    ):
        (result,) = ask(ben, events=[judge(first, "left", **more)])["results"]
        assert result["status"] == "refused", more
        assert str(next(iter(more.values())))[:8] in result["error"]
    with database.write() as session:
        save_settings(session, {"reasons": ["edges"]})
    events = [
        judge(first, "left", reasons=["eyes"], view_mode="zoom+1:1+truth"),
        judge(second, "left", reasons=["edges"]),
    ]
    results = ask(ben, events=[*events, events[0]])["results"]
    assert [result["status"] for result in results] == ["stored"] * 3


def test_guidelines_are_shown_again_once_they_have_changed(ben: TestClient, database: Database) -> None:

    def seen() -> bool:
        return bool(ben.get("/api/session").json()["guidelines_seen"])

    assert not seen()
    ben.post("/api/guidelines-seen")
    assert seen()
    with database.write() as session:
        save_settings(session, {"lease_seconds": 60})
    assert seen()
    with database.write() as session:
        save_settings(session, {"guidelines": "Look at the eyes."})
    assert not seen()
    ben.post("/api/guidelines-seen")
    assert seen()


def test_no_json_is_ever_cached(paged_client: MakeClient) -> None:
    ada = paged_client("ada")
    paths = [path for path in paths_of(ada.app) if path.startswith("/api/") and "{" not in path]
    for path in [*paths, "/api/sign-in-info", "/api/nothing", "/admin/config", "/admin/gradio_api/info"]:
        answer = ada.get(path)
        assert answer.headers["content-type"].startswith("application/json"), path
        assert answer.headers["cache-control"] == "no-store", path
    assert paged_client().get("/api/session").headers["cache-control"] == "no-store", "a refusal"
    assert ada.post("/api/label", json={"want": 99}).headers["cache-control"] == "no-store", "an unfit request"


def test_sending_again_stores_once_and_undo_shows_the_pair_again(ben: TestClient, database: Database) -> None:
    pair = ask(ben, want=1)["pairs"][0]
    event = judge(pair, "right")
    for _ in range(3):
        assert ask(ben, events=[event])["results"][0]["status"] == "stored"
    undo = undo_event(event["id"])
    first = ask(ben, events=[undo])["results"][0]
    second = ask(ben, events=[undo])["results"][0]
    assert first["pair"] == second["pair"] == pair
    with database.read() as session:
        row = session.scalars(select(Judgment)).one()
        assert row.superseded_at is not None
        assert row.pair.judgment_count == 0


def test_one_refused_event_does_not_hold_up_the_others(ben: TestClient, database: Database) -> None:
    first, second = ask(ben, want=2)["pairs"]
    events = [judge(first, "skip"), judge({"showing": "forged"}, "left"), judge(second, "skip", skip_reason="both bad")]
    results = ask(ben, events=events)["results"]
    assert [result["status"] for result in results] == ["refused", "refused", "stored"]
    assert "needs a reason" in results[0]["error"]
    with database.read() as session:
        row = session.scalars(select(Judgment)).one()
        assert (row.choice, row.skip_reason) == (Choice.skip, "both bad")


EVENT_FAULTS: list[Any] = [
    {"type": "delete"},
    {"type": "\ud83d"},
    {"type": 7},
    {"id": "\ud83d"},
    {"id": "\0" * 36},
    {"id": "x" * 100_000},
    {"id": None},
    {"id": {"a": 1}},
    {"choice": "best"},
    {"choice": "skip", "skip_reason": "half a smile: \ud83d"},
    {"choice": "skip", "skip_reason": "\ude00"},
    {"choice": "skip", "skip_reason": "a\0b"},
    {"choice": "skip", "skip_reason": "x" * 1_000_000},
    {"choice": "skip", "skip_reason": ["both bad"]},
    {"reasons": "eyes"},
    {"reasons": ["\ud800"]},
    {"reasons": [None]},
    {"reasons": [str(number) for number in range(10)]},
    {"seconds": -1},
    {"seconds": math.nan},
    {"seconds": math.inf},
    {"seconds": "\ud800"},
    {"view_mode": "\0"},
    {"showing": "\ud800"},
    {"showing": "\0"},
    {"showing": 12},
    {"replaces": "\ud800"},
    {"\ud800": 1},
    {"more": 1},
    "no event",
    None,
    [],
    12,
    math.nan,
]


def test_each_event_that_cannot_be_taken_is_refused_alone(ben: TestClient, database: Database) -> None:
    first, second, third = ask(ben, want=3)["pairs"]
    bad = [{**judge(second, "left"), **fault} if isinstance(fault, dict) else fault for fault in EVENT_FAULTS]
    good = [judge(first, "left"), judge(third, "tie")]
    # Not httpx's own encoder, which refuses halves of characters and NaN; a browser sends the former.
    sent = json.dumps({"events": [good[0], *bad, good[1]], "want": 1})
    answer = ben.post("/api/label", content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    before, *between, after = answer.json()["results"]
    assert (before["status"], after["status"]) == ("stored", "stored")
    for fault, result in zip(EVENT_FAULTS, between, strict=True):
        assert result["status"] == "refused", ascii(fault)[:100]
        assert 0 < len(result["error"]) < 500
        assert result["error"].isprintable()
    assert set(fetch(database, select(Judgment.uuid))) == {event["id"] for event in good}


def test_an_undo_that_cannot_be_taken_is_refused_alone(ben: TestClient) -> None:
    (pair,) = ask(ben, want=1)["pairs"]
    undo = undo_event("\0")
    results = ask(ben, events=[undo, undo | {"judgment": str(uuid.uuid4())}, judge(pair, "left")])["results"]
    assert [result["status"] for result in results] == ["refused", "refused", "stored"]


def test_two_pages_of_one_person_show_other_pairs_and_are_told_so(ben: TestClient) -> None:
    first = ask(ben, want=4, page="one")
    second = ask(ben, want=4, page="two")
    assert (first["own_pages"], second["own_pages"]) == (0, 1)
    assert {pair["showing"] for pair in first["pairs"]} & {pair["showing"] for pair in second["pairs"]} == set()
    holding = [pair["showing"] for pair in first["pairs"]]
    assert ask(ben, page="one", holding=holding, want=1)["own_pages"] == 1
    rest = ask(ben, page="two", holding=[pair["showing"] for pair in second["pairs"]], want=1)
    assert (rest["done"], rest["in_own_pages"], rest["with_others"]) == (True, 5, 0)


def test_a_page_that_was_silent_gives_way_to_the_one_that_has_its_pair_now(
    ben: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair,) = ask(ben, want=1, page="one")["pairs"]
    monkeypatch.setattr("ui.label.open_pages.LIVE_SECONDS", -1.0)
    assert ask(ben, want=1, page="two")["pairs"] == [pair]
    monkeypatch.undo()
    ask(ben, page="two", holding=[pair["showing"]])
    late = ask(ben, want=1, page="one", holding=[pair["showing"]])
    assert late["gone"] == [pair["showing"]]
    assert late["pairs"][0] != pair
    # Answered in both after all: the first answer stands, and the second one is not lost without a word.
    here, there = judge(pair, "left"), judge(pair, "right")
    assert ask(ben, page="two", events=[here])["results"][0]["status"] == "stored"
    (result,) = ask(ben, page="one", events=[there])["results"]
    assert result["status"] == "refused"
    assert "in another tab" in result["error"]


def test_the_last_pairs_are_said_to_be_with_others_and_come_back_when_they_go(
    client: MakeClient, database: Database
) -> None:
    ada, ben = client("ada"), client("ben")
    held = [pair["showing"] for pair in ask(ada, want=8, page="hers")["pairs"]]
    left = ask(ben, want=8, page="his")
    assert (len(left["pairs"]), left["done"], left["with_others"]) == (1, True, 8)
    events = [judge(left["pairs"][0], "tie")]
    assert ask(ben, want=1, page="his", events=events)["with_others"] == 8
    assert ask(ada, page="hers", holding=held, leaving=True) == {"results": []}
    with database.write() as session:
        ends = [lease.expires_at for lease in session.scalars(select(Lease))]
        assert max(ends) - utc_now() < timedelta(seconds=11), "a reload within these finds its own pairs again"
        session.execute(update(Lease).values(expires_at=utc_now() - timedelta(seconds=1)))
    assert len(ask(ben, want=8, page="his")["pairs"]) == 8


def test_a_page_that_comes_back_at_once_finds_its_own_pairs(ben: TestClient) -> None:
    before = ask(ben, want=4, page="one")["pairs"]
    ask(ben, page="one", holding=[pair["showing"] for pair in before], leaving=True)
    after = ask(ben, want=4, page="two")
    assert (after["pairs"], after["own_pages"]) == (before, 0)


def test_a_showing_belongs_to_its_person(client: MakeClient, database: Database) -> None:
    pair = ask(client("ben"), want=1)["pairs"][0]
    result = ask(client("ada"), events=[judge(pair, "left")])["results"][0]
    assert result["status"] == "refused"
    assert "another person" in result["error"]
    assert fetch(database, select(Judgment)) == []


def test_malformed_requests_are_refused_whole_whatever_they_hold(ben: TestClient, database: Database) -> None:
    bodies: list[Any] = [
        {"want": 100},
        {"want": -1},
        {"unknown": 1},
        {"want": "\ud800"},
        {"\ud800": 1},
        {"want": math.nan},
        {"person": "x" * 100_000},
        {"events": "\0"},
        {"holding": [["\udfff"]]},
        [[[]]],
    ]
    for body in bodies:
        answer = ben.post("/api/label", content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body
        assert len(answer.json()["error"]) < 500
    assert fetch(database, select(Judgment)) == []


@pytest.mark.parametrize("content", ["", "abc", "ab" * 31, "ab" * 33, "zz" * 32, "é" * 64])
def test_a_damaged_key_is_one_line(database: Database, data: Path, content: str) -> None:
    (data / "secret.key").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"secret\.key is not a key of 32 bytes"):
        make_app_without_pages(Context(database=database, data=data))
    (data / "secret.key").unlink()
    make_app_without_pages(Context(database=database, data=data))
    assert stat.S_IMODE((data / "secret.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_a_new_key_is_on_the_disk_before_it_signs_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    really = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        really(handle)

    monkeypatch.setattr("os.fsync", fsync)
    key = load_secret(tmp_path)
    assert [Path(name).parent == tmp_path or Path(name) == tmp_path for name in synced] == [True, True]
    assert synced[-1] == str(tmp_path), "the folder, in which the name is"
    assert load_secret(tmp_path) == key
    assert len(synced) == 2


def test_requests_from_another_site_are_refused(ben: TestClient) -> None:
    assert ben.post("/api/label", json={"want": 1}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert ben.post("/api/label", json={"want": 1}, headers={"Origin": "http://testserver"}).status_code == 200


def test_without_auth_only_localhost_names_are_answered(project: None, database: Database, data: Path) -> None:
    app = make_app_without_pages(Context(database=database, data=data))
    assert TestClient(app, base_url="http://rebound.example").get(address_of(data, "")).status_code == 403
    local = open_client(app, data)
    assert local.post("/sign-in", data={"name": "new person"}).headers["location"] == "/"
    assert local.get("/api/session").json()["person"] | {"id": ""} == {"name": "new person", "role": "admin", "id": ""}


def test_a_new_name_like_somebody_elses_is_asked_for_once(project: None, database: Database, data: Path) -> None:
    local = open_client(make_app_without_pages(Context(database=database, data=data)), data)
    asked = local.post("/sign-in", data={"name": "Ada", "next": "/x"}).headers["location"]
    assert asked == "/sign-in?new=Ada&alike=ada&next=%2Fx"
    assert local.get("/api/session").status_code == 401
    asked = local.post("/sign-in", data={"name": "A-da"}).headers["location"]
    assert asked == "/sign-in?new=A-da&alike=ada&next=&free=yes"
    assert local.post("/sign-in", data={"name": "A-da", "new": "yes"}).headers["location"] == "/"
    assert local.get("/api/session").json()["person"]["name"] == "A-da"
    # "Ada" cannot be begun beside "ada", even when it is said to be new.
    assert local.post("/sign-in", data={"name": "Ada", "new": "yes"}).headers["location"] == "/"
    assert local.get("/api/session").json()["person"]["name"] == "ada"
    for name in ("\0", "x" * 10_000):
        assert "cannot%20be%20a%20name" in local.post("/sign-in", data={"name": name}).headers["location"]


def test_wrong_password_is_refused_and_guessing_is_slowed(client: MakeClient) -> None:
    guesser = client()
    for _ in range(5):
        location = guesser.post("/sign-in", data={"name": "ada", "password": "wrong"}).headers["location"]
        assert location.startswith("/sign-in?error=Wrong%20name%20or%20password")
    for name in ("ada", "ADA"):
        location = guesser.post("/sign-in", data={"name": name, "password": PASSWORD}).headers["location"]
        assert "Too%20many%20attempts" in location
    assert guesser.get("/api/session").status_code == 401


def test_a_name_has_one_budget_however_it_is_written(client: MakeClient) -> None:
    for name in ("ada", "ada ", " ada", "Ada", "ａｄａ"):  # the last in full-width letters
        client().post("/sign-in", data={"name": name, "password": "wrong"})
    location = client().post("/sign-in", data={"name": "ADA", "password": "wrong"}).headers["location"]
    assert "Too%20many%20attempts" in location


def test_a_browser_that_a_name_is_known_to_is_not_locked_out_by_strangers(client: MakeClient) -> None:
    own = client("ada")
    own.post("/sign-out")
    for _ in range(8):
        client().post("/sign-in", data={"name": "ada", "password": "wrong"})
    assert own.post("/sign-in", data={"name": "ada", "password": PASSWORD}).headers["location"] == "/"
    for _ in range(5):
        own.post("/sign-in", data={"name": "ada", "password": "wrong"})
    location = own.post("/sign-in", data={"name": "ada", "password": PASSWORD}).headers["location"]
    assert "Too%20many%20attempts" in location, "it has a budget of its own, no more"


def test_one_address_cannot_try_many_names(client: MakeClient) -> None:
    for number in range(FAILURES_PER_ADDRESS):
        client().post("/sign-in", data={"name": f"name {number}", "password": "wrong"})
    location = client().post("/sign-in", data={"name": "another", "password": "wrong"}).headers["location"]
    assert "Too%20many%20attempts" in location


def test_who_tries_on_though_refused_waits_for_each_answer_without_a_thread(
    client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else 40 connections that are refused at once, again and again, take a core from the people who judge."""
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("ui.gate.sign_in.anyio.sleep", note)
    guesser = client("ada")
    for _ in range(5):
        guesser.post("/sign-in", data={"name": "ben", "password": "wrong"})
    assert waits == []
    guesser.post("/sign-in", data={"name": "ben", "password": PASSWORD})
    guesser.post("/sign-in", data={"name": "x" * 100, "password": "wrong"})
    assert waits == [REFUSAL_SECONDS] * 2


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("name", "path", "size_bytes"),
    [(None, "/sign-in", 20_000), ("ben", "/api/label", 3_000_000), ("ben", "/sign-out", 20_000)],
)
def test_a_body_is_limited_by_its_path(
    client: MakeClient, name: str | None, path: str, size_bytes: int, *, announced: bool
) -> None:
    def stream() -> Iterator[bytes]:
        yield from (b"x" * 10_000 for _ in range(size_bytes // 10_000))

    headers = {"Content-Type": "application/json" if path.startswith("/api") else "multipart/form-data; boundary=b"}
    body: bytes | Iterator[bytes] = b"x" * size_bytes if announced else stream()
    answer = client(name).post(path, content=body, headers=headers)
    assert answer.status_code == (413 if announced or path != "/sign-out" else 303), "what reads no body need not"


def test_only_admins_can_send_large_bodies(paged_client: MakeClient) -> None:
    for name, status in ((None, 401), ("ben", 403)):
        answer = paged_client(name).post(
            "/admin/gradio_api/upload", content=b"x" * 10, headers={"Content-Length": "9999999"}
        )
        assert answer.status_code == status


def test_personal_link_signs_in_until_renewed_or_disabled(client: MakeClient, database: Database) -> None:

    with database.write() as session:
        old = make_link_token(get_person(session, "ben"))
    holder = client()
    assert holder.get(f"/enter/{old}").headers["location"] == "/"
    assert holder.get("/api/session").json()["person"]["name"] == "ben"
    with database.write() as session:
        new = make_link_token(get_person(session, "ben"))
    assert "error" in client().get(f"/enter/{old}").headers["location"]
    with database.write() as session:
        disable_person(session, "ben")
    assert "error" in client().get(f"/enter/{new}").headers["location"]
    assert holder.get("/api/session").status_code == 401


def test_sign_in_leads_only_to_pages_of_ours(client: MakeClient) -> None:
    for target, expected in (
        ("/admin/", "/admin/"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil", "/"),
    ):
        answer = client().post("/sign-in", data={"name": "ada", "password": PASSWORD, "next": target})
        assert answer.headers["location"] == expected


def test_sign_out_ends_the_session(ben: TestClient) -> None:
    assert ben.post("/sign-out").headers["location"] == "/sign-in"
    assert ben.get("/api/session").status_code == 401


def test_guidelines_pictures_open_for_annotators(client: MakeClient, database: Database) -> None:
    with database.write() as session:
        sha256 = session.scalars(select(Image.sha256)).first()
        text = f"Look **here**: ![example](/img/{sha256}) <script>alert(1)</script>"
        save_settings(session, {"guidelines": text})
    ben = client("ben")
    html = ben.get("/api/session").json()["project"]["guidelines_html"]
    assert "<strong>here</strong>" in html
    assert "<script>" not in html
    address = html.partition('src="')[2].partition('"')[0]
    assert ben.get(address).status_code == 200


def test_auth_needs_an_admin_who_can_enter(database: Database, data: Path) -> None:
    context = Context(database=database, data=data, auth=True)
    with pytest.raises(UserError, match="people add NAME --role admin"):
        check_someone_can_sign_in(context)
    with database.write() as session:
        set_password(add_person(session, "ada", Role.admin), PASSWORD)
    check_someone_can_sign_in(context)


def test_progress_and_history_are_ones_own(client: MakeClient) -> None:
    ben, ada = client("ben"), client("ada")
    pair = ask(ben, want=1)["pairs"][0]
    ask(ben, events=[judge(pair, "tie")])
    assert ben.get("/api/progress").json()["mine"]["done"] == 1
    assert ada.get("/api/progress").json()["mine"]["done"] == 0
    history = ben.get("/api/history").json()
    assert [entry["choice"] for entry in history] == ["tie"]
    assert history[0]["left"]["url"] == pair["left"]["url"]
    assert ada.get("/api/history").json() == []


def view_addresses(pair: dict[str, Any]) -> list[str]:
    return [pair[side]["url"] for side in ("left", "right", "lq", "hq")]


@pytest.mark.parametrize("damage", ["missing", "cut", "another picture"])
def test_a_damaged_image_is_never_served_and_its_pairs_are_shown_to_nobody(
    client: MakeClient, ben: TestClient, database: Database, data: Path, damage: str
) -> None:
    with database.read() as session:
        candidate = session.scalars(select(Candidate)).first()
        assert candidate is not None
        image = candidate.image
        other = session.scalars(select(Image).where(Image.id != image.id)).first()
        assert other is not None
        bad = set(session.scalars(select(Pair.id).where((Pair.a_id == candidate.id) | (Pair.b_id == candidate.id))))
    path = image_path(data, image.sha256, image.suffix)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-10])
    else:  # of the same size: known only when it was looked at
        path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
        ada = client("ada")
        assert ada.get(f"/img/{image.sha256}").status_code == 410
        assert "import" in ada.get(f"/img/{image.sha256}").json()["detail"]
    answer = ask(ben, want=8, page="p")
    assert (len(answer["pairs"]), answer["done"], answer["damaged"]) == (9 - len(bad), True, len(bad))
    for pair in answer["pairs"]:
        for address in view_addresses(pair):
            assert ben.get(address).status_code == 200
    assert bad.isdisjoint(fetch(database, select(Lease.pair_id)))
    path.write_bytes(whole)
    assert ask(ben, want=8, page="p", holding=[pair["showing"] for pair in answer["pairs"]])["damaged"] == 0
    assert client("ada").get(f"/img/{image.sha256}").content == whole


def test_what_an_earlier_version_stored_with_metadata_is_served_without(
    client: MakeClient, database: Database, data: Path
) -> None:
    with database.write() as session:
        image = session.scalars(select(Image)).first()
        assert image is not None
        plain = image_path(data, image.sha256, image.suffix).read_bytes()
        content = plain + b"Jane Doe"
        image.sha256, image.size_bytes = hashlib.sha256(content).hexdigest(), len(content)
        path = image_path(data, image.sha256, image.suffix)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        name = image.sha256
    for _ in range(2):
        assert client("ada").get(f"/img/{name}").content == plain
