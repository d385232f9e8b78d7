"""The server is killed in the middle of a burst of judgments, again and again: what it acknowledged is there, once."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import func, select

from annotate.judging.tasks import make_tasks
from db.models import Judgment, Pair, Task
from db.project import save_settings
from tests.conftest import Server
from tests.making import add_pairs, fetch, make_event
from tests.watching import LIMIT_SECONDS

CLIENTS = 4
AHEAD = 4
METHODS = [f"m{number}" for number in range(8)]


class Burst:
    """One person's page without a screen: answers as fast as the server takes them, sends again what got no answer."""

    def __init__(self, server: Server, name: str, task_size: int) -> None:
        self.task_size = task_size
        self.http = httpx.Client(base_url=server.url, timeout=LIMIT_SECONDS)
        assert self.http.get(server.address).status_code == 303
        assert self.http.post("/sign-in", data={"name": name}).status_code == 303
        self.rng = random.Random(name)
        self.showing: list[str] = []
        self.unacknowledged: list[dict[str, object]] = []
        self.acknowledged: list[str] = []
        self.sent_again = 0

    def run(self, stop: threading.Event) -> None:
        answered = time.monotonic()
        while not stop.is_set() or self.unacknowledged:
            if self.showing and not self.unacknowledged:
                self.unacknowledged = [self.judge(self.showing.pop(0))]
            body = {"events": self.unacknowledged, "want": AHEAD - len(self.showing), "holding": self.showing}
            try:
                answer = self.http.post("/api/label", json=body)
            except httpx.TransportError:
                if time.monotonic() - answered > LIMIT_SECONDS:
                    raise
                self.sent_again += bool(self.unacknowledged)
                time.sleep(0.05)
                continue
            answered = time.monotonic()
            assert answer.status_code == 200, answer.text
            results = answer.json()["results"]
            assert [result["status"] for result in results] == ["stored"] * len(self.unacknowledged), results
            self.acknowledged += [result["id"] for result in results]
            self.unacknowledged = []
            self.showing += [pair["showing"] for pair in answer.json()["pairs"]]
            assert self.showing, "the test has too few pairs for this burst"

    def judge(self, showing: str) -> dict[str, object]:
        if self.task_size > 2:
            return make_event(showing, "ranked", tiers=[[self.rng.randrange(self.task_size)]], seconds=0.2)
        return make_event(showing, self.rng.choice(["left", "right", "tie"]), seconds=0.2)


@pytest.fixture
def task_size(request, database, data):
    """3,360 pairs, or tasks of four, that want three judgments each: more than the bursts can use up."""
    with database.write() as session:
        added = add_pairs(session, 120, METHODS, files=data, judgments_per_pair=3, repeat_share=0.1)
        if request.param > 2:
            settings = save_settings(session, {"task_size": request.param})
            added = make_tasks(session, settings, request.param, per_source=28).added
        assert added == 120 * 28
    return request.param


def stored_uuids(database):
    return Counter(fetch(database, select(Judgment.uuid)))


@pytest.mark.parametrize(
    ("task_size", "rounds"),
    [(2, 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((4, 1), (2, 20), (4, 20)))],
    indirect=["task_size"],
)
def test_every_acknowledged_judgment_is_there_once(database, serve_process, task_size, rounds):
    server = serve_process()
    clients = [Burst(server, f"client {number}", task_size) for number in range(CLIENTS)]
    stop, rng = threading.Event(), random.Random(rounds)
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client.run, stop) for client in clients]
        try:
            for number in itertools.count(1):
                before = sum(len(client.acknowledged) for client in clients)
                while sum(len(client.acknowledged) for client in clients) < before + 20:
                    assert not any(client.done() for client in running)
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.2))
                server.kill()
                acknowledged = [uuid for client in clients for uuid in list(client.acknowledged)]
                stored = stored_uuids(database)
                assert set(acknowledged) <= set(stored), "acknowledged and lost"
                assert set(stored.values()) == {1}
                if number == rounds:
                    break
                server.start()
            stop.set()  # what has no answer yet is sent to the last server still
            server.start()
        finally:
            stop.set()
        for client in running:
            client.result(LIMIT_SECONDS)
    assert sum(client.sent_again for client in clients) >= rounds, "the kills came between the requests"
    check_the_end(database, clients)


def check_the_end(database, clients):
    """After all was sent again: nothing missing, nothing twice, nothing superseded by its own copy, counts right."""
    acknowledged = Counter(uuid for client in clients for uuid in client.acknowledged)
    assert stored_uuids(database) == acknowledged
    assert set(acknowledged.values()) == {1}
    with database.read() as session:
        showing = (Judgment.pair_id, Judgment.task_id, Judgment.person_id, Judgment.repeat_no)
        rows = session.execute(select(*showing)).all()
        assert len(rows) == len(set(rows)), "one showing was judged twice"
        assert session.scalar(select(func.count()).where(Judgment.superseded_at.is_not(None))) == 0
        live = Counter((pair_id, task_id) for pair_id, task_id, _, repeat_no in rows if repeat_no == 0)
        counts = {(pair.id, None): pair.judgment_count for pair in session.scalars(select(Pair))}
        counts |= {(None, task.id): task.judgment_count for task in session.scalars(select(Task))}
        counts = {of: count for of, count in counts.items() if count}
        assert counts == live
        assert all((of_task is None) is (clients[0].task_size == 2) for _, of_task in counts)
        assert max(counts.values()) <= 3
