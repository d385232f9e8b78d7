"""A program that answers in a person's place: what it can see, how fast it gets on, and what the report says of it."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update
from starlette.testclient import TestClient

from annotate.judging.pace import BURST_ANSWERS, SECONDS_AN_ANSWER
from annotate.judging.pairs import make_pairs
from annotate.report.rank import load_judgments, select_votes
from annotate.report.screening import describe_people
from db.models import Judgment, Lease, Pair, utc_now
from db.project import load_settings, save_settings
from db.session import Database
from tests.making import MakeClient, add_face, add_photos, make_event, undo_event

CLAIM_SECONDS = 7.3


@pytest.fixture
def many_pairs(database: Database, data: Any, tmp_path: Any) -> None:
    """60 photos with 5 methods each, so 600 pairs, of which some are gold and some are repeated; few files."""
    with database.write() as session:
        save_settings(session, {"repeat_share": 0.2, "repeat_gap": 5, "gold_share": 0.1})
        images = add_photos(session, data, tmp_path, range(10))
        for number in range(60):
            shown = [images[(number + place) % 10] for place in range(6)]
            add_face(session, f"face{number}", ["m0", "m1", "m2", "m3", "m4"], *shown)
        make_pairs(session, load_settings(session))
        session.execute(update(Pair).where(Pair.id % 20 == 0).values(gold_answer="a"))


def claim(showing: str) -> dict[str, Any]:
    return make_event(showing, seconds=CLAIM_SECONDS)


def answer_on(client: TestClient, shown: list[dict[str, Any]], most: int) -> tuple[int, Any]:
    """Answer as fast as the server takes it, five pairs ahead: (answers stored, the response that stopped it)."""
    ahead: list[dict[str, Any]] = []
    stored = 0
    for _ in range(most + 1):
        events = [claim(ahead.pop(0)["showing"])] if ahead else []
        holding = [pair["showing"] for pair in ahead]
        response = client.post("/api/label", json={"events": events, "want": 5 - len(ahead), "holding": holding})
        if response.status_code != 200:
            return stored, response
        stored += len(events)
        assert all(result["status"] == "stored" for result in response.json()["results"])
        ahead += response.json()["pairs"]
        shown += response.json()["pairs"]
    return stored, None


def test_six_hundred_answers_at_once_are_held_up_and_flagged(
    many_pairs: None, client: MakeClient, database: Database
) -> None:
    ben, shown = client("ben"), list[dict[str, Any]]()
    stored, response = answer_on(ben, shown, 600)
    assert response is not None, "600 answers went through"
    assert BURST_ANSWERS <= stored < BURST_ANSWERS + 100
    assert response.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 5
    assert "faster than anybody can look" in response.text
    assert ben.post("/api/label", json={"want": 1}).status_code == 200, "pairs are shown all the same"
    assert client("ada").post("/api/label", json={"events": [claim("x")]}).status_code == 200, "others go on"
    with database.read() as session:
        assert session.scalar(select(func.count(Judgment.id))) == stored
        judgments = load_judgments(session)
    assert judgments["server_seconds"].notna().all()
    assert judgments["server_seconds"].sum() < stored * SECONDS_AN_ANSWER, "what passed, not what is claimed"
    (flags,) = describe_people(judgments, select_votes(judgments))["flags"]
    assert re.search(rf"claims more time than passed: \d+ of {stored} answers", flags)


def test_nothing_but_the_pixels_tells_a_repeat_or_a_gold_pair(
    many_pairs: None, client: MakeClient, database: Database
) -> None:
    ben, shown = client("ben"), list[dict[str, Any]]()
    answer_on(ben, shown, 100)
    with database.read() as session:
        made = session.scalars(select(Judgment).order_by(Judgment.id)).all()
        assert sum(row.repeat_no for row in made) >= 5
        assert sum(row.pair.gold_answer is not None for row in made) >= 3
    addresses = [pair[which]["url"] for pair in shown for which in ("left", "right", "lq")]
    assert len(set(addresses)) == len(addresses), "every image of every showing has an address of its own"
    assert len({len(address) for address in addresses}) == 1
    assert len({len(pair["showing"]) for pair in shown}) == 1
    by_content = defaultdict(set)
    headers = set()
    for address in addresses[:90]:
        served = ben.get(address)
        assert served.headers["cache-control"] == "private, max-age=31536000, immutable"
        headers.add(tuple(sorted(name for name in served.headers)))
        by_content[hashlib.sha256(served.content).hexdigest()].add(address)
    assert max(map(len, by_content.values())) > 5, "the same files"
    (names,) = headers
    assert not {"etag", "last-modified", "content-disposition"} & set(names)
    again = ben.get("/api/history?limit=200").json()
    assert {entry[side]["url"] for entry in again for side in ("left", "right")} <= set(addresses), "cached still"


def test_progress_counts_every_answer_alike(many_pairs: None, ben: TestClient, database: Database) -> None:
    """Else the counts of all would tell, answer by answer, which pairs were repeats or gold."""
    (pair,) = ben.post("/api/label", json={"want": 1}).json()["pairs"]
    seen = []
    for _ in range(40):
        body = {"events": [claim(pair["showing"])], "want": 1}
        (pair,) = ben.post("/api/label", json=body).json()["pairs"]
        progress = ben.get("/api/progress").json()
        seen.append((progress["mine"]["done"], progress["all"]["done"], progress["all"]["wanted"]))
    assert all(
        (after[0] - before[0], after[1] - before[1], after[2] - before[2]) == (1, 1, 0)
        for before, after in pairwise(seen)
    )
    with database.read() as session:
        assert session.scalar(select(func.count(Judgment.id)).where(Judgment.repeat_no == 1))


def test_answers_that_waited_for_a_network_come_through_whole_and_unflagged(
    many_pairs: None, ben: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[frozenset[str], str] = {}  # one showing a pair, which its addresses tell whichever stands left
    for _ in range(30):
        for pair in ben.post("/api/label", json={"want": 8}).json()["pairs"]:
            found[frozenset((pair["left"]["url"], pair["right"]["url"]))] = pair["showing"]
        with database.write() as session:
            session.execute(delete(Lease))  # they ran out
    first, *events = [claim(showing) for showing in found.values()]
    assert len(events) > BURST_ANSWERS
    ben.post("/api/label", json={"events": [first]})
    later = utc_now() + timedelta(hours=1)
    monkeypatch.setattr("ui.label.routes.utc_now", lambda: later)
    results = ben.post("/api/label", json={"events": events}).json()["results"]
    assert {result["status"] for result in results} == {"stored"}
    waiting = ben.post("/api/label", json={"events": events})
    assert waiting.status_code == 429, "then the next ones wait"
    assert int(waiting.headers["retry-after"]) <= len(events) * SECONDS_AN_ANSWER
    with database.read() as session:
        judgments = load_judgments(session)
    assert len(judgments) == len(found)
    assert judgments["server_seconds"][1:-1].to_list() == [CLAIM_SECONDS] * (len(events) - 1)
    (row,) = describe_people(judgments, select_votes(judgments)).to_dict("records")
    assert (row["timed"], row["overclaimed_share"]) == (len(events), 0.0), "of the first nobody knows when it was given"


def test_a_reason_added_later_keeps_the_time_of_its_answer_and_takes_none_from_the_next(
    many_pairs: None, ben: TestClient, database: Database
) -> None:
    first, second = ben.post("/api/label", json={"want": 2}).json()["pairs"]
    answer = claim(first["showing"])
    ben.post("/api/label", json={"events": [answer]})
    with database.write() as session:
        session.execute(update(Judgment).values(server_seconds=5.5))
    with_reason = {**answer, "id": str(uuid.uuid4()), "reasons": ["eyes"], "replaces": answer["id"]}
    for _ in range(2):
        ben.post("/api/label", json={"events": [with_reason, claim(second["showing"])]})
    undo = undo_event(with_reason["id"])
    result = ben.post("/api/label", json={"events": [undo]}).json()["results"][0]
    ben.post("/api/label", json={"events": [claim(result["pair"]["showing"])]})
    with database.read() as session:
        rows = session.scalars(select(Judgment).order_by(Judgment.id)).all()
        assert [row.server_seconds for row in rows[:2]] == [5.5, 5.5]
        assert len(rows) == 4
        assert all(row.server_seconds is not None and 0 < row.server_seconds < 5 for row in rows[2:])
