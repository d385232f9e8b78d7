"""Two real processes on one address and one PostgreSQL database: who answers what, and what a kill leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from sqlalchemy import select

from annotate.judging.people import add_person
from annotate.judging.presence import load_presence, store_presence
from app import main
from db.models import Judgment, Presence, Role, utc_now
from db.session import Database, open_database
from tests.making import PASSWORD, ROOT, add_pairs, fetch, make_event
from tests.watching import LIMIT_SECONDS, wait_until


class App:
    """The app of two workers; each is also reached by its own socket, as the other one reaches it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.log = folder / "log.txt"
        self.sockets = Path(tempfile.mkdtemp(prefix="fr-"))  # a socket's path is short
        environment = {**os.environ, "FACEREWARD_DB": url, "TMPDIR": str(self.sockets), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "app.py", "--data", str(folder / "data"), "--port", "0", "--auth", "--workers", "2"]
        with open(self.log, "w") as stream:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "ready at" in line, self.log.read_text()
        self.url = line.partition("ready at ")[2].split()[0]

    def browser(self, worker: int, name: str | None = None) -> httpx.Client:
        """A browser that one worker serves."""
        (folder,) = self.sockets.glob("facereward-*")
        transport = httpx.HTTPTransport(uds=str(folder / str(worker)))
        client = httpx.Client(base_url="http://localhost", transport=transport, timeout=LIMIT_SECONDS)
        if name is not None:
            assert client.post("/sign-in", data={"name": name, "password": PASSWORD}).headers["location"] == "/"
        return client

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=LIMIT_SECONDS).raise_for_status().text

    def workers(self) -> list[psutil.Process]:
        """The first one first."""
        return sorted(psutil.Process(self.process.pid).children(), key=lambda one: one.create_time())


@pytest.fixture(scope="module")
def url(postgres_server: Path) -> Iterator[str]:
    """URL of a PostgreSQL database of this module's own."""
    with psycopg.connect(host=str(postgres_server), user="postgres", dbname="postgres", autocommit=True) as admin:
        admin.execute("CREATE DATABASE workers")
        yield f"postgresql+psycopg://postgres@/workers?host={postgres_server}"
        admin.execute("DROP DATABASE workers WITH (FORCE)")


@pytest.fixture(scope="module")
def shared(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Database]]:
    """The running app, and its database with pairs, ada (admin) and ben (annotator)."""
    folder = tmp_path_factory.mktemp("workers")
    database = open_database(folder / "data", url)
    with database.write() as session:
        add_person(session, "ada", Role.admin, PASSWORD)
        add_person(session, "ben", Role.annotator, PASSWORD)
        add_pairs(session, 8, ["one", "two", "three"], files=folder / "data", judgments_per_pair=2)
    app = App(folder, url)
    yield app, database
    app.process.kill()  # in vain, where the last test has ended it
    database.close()


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/label", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_tabs_at_two_workers_share_what_is_known_of_a_person(shared: tuple[App, Database]) -> None:
    app, database = shared
    tabs = [app.browser(worker, "ben") for worker in (0, 1)]
    first, second = (ask(tab, page=f"tab {place}", want=4) for place, tab in enumerate(tabs))
    assert (first["own_pages"], second["own_pages"]) == (0, 1)
    showings = [pair["showing"] for answer in (first, second) for pair in answer["pairs"]]
    assert len(set(showings)) == 8, "no pair stands in two tabs"
    # One answer to both workers at the same moment, as of a page that got no answer and sends again.
    event = make_event(showings[0], "left")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda tab: ask(tab, page="tab 0", events=[event]), tabs))
    assert [answer["results"][0]["status"] for answer in both] == ["stored", "stored"]
    assert fetch(database, select(Judgment.uuid)) == [event["id"]]
    # Nor may a person run ahead at one worker of what they spent at the other.
    with database.write() as session:
        known, _ = load_presence(session, session.scalars(select(Presence.person_id)).one())
        assert known.pace.answered_at is not None
        known.pace.paid_until = utc_now() + timedelta(minutes=5)
        store_presence(session, known, utc_now())
    for tab in tabs:
        body = {"page": "tab 1", "events": [make_event(showings[4], "left")]}
        assert tab.post("/api/label", json=body).status_code == 429


def test_the_admin_pages_of_the_first_worker_are_reached_through_the_other(shared: tuple[App, Database]) -> None:
    app, _ = shared
    ada, ben = app.browser(1, "ada"), app.browser(1, "ben")
    assert ben.get("/admin/").status_code == 403
    assert ada.get("/admin").headers["location"] == "/admin/"
    page = ada.get("/admin/")
    assert (page.status_code, "gradio" in page.text) == (200, True)
    assert page.headers.get_list("date") == [page.headers["date"]]
    config = ada.get("/admin/config").json()
    upload = ada.post("/admin/gradio_api/upload", files={"files": ("a.txt", b"x" * 300_000)})
    assert (upload.status_code, upload.json()[0].endswith("a.txt")) == (200, True)
    # A call of Gradio's: joined in one request, and its result streamed by another.
    function = next(one for one in config["dependencies"] if not one["inputs"] and one["targets"][0][1] == "load")
    call = {"data": [], "fn_index": function["id"], "session_hash": "abc", "trigger_id": None, "event_data": None}
    joined = ada.post("/admin/gradio_api/queue/join", json=call)
    assert joined.status_code == 200, joined.text
    with ada.stream("GET", "/admin/gradio_api/queue/data", params={"session_hash": "abc"}) as stream:
        messages = "".join(stream.iter_text())
    assert '"msg":"process_completed"' in messages.replace(" ", "")


def test_counts_are_of_both_workers_and_for_this_machine_alone(shared: tuple[App, Database]) -> None:
    app, _ = shared
    before = app.metrics()
    for worker in (0, 1):
        assert app.browser(worker).get("/healthz").json() == {"status": "ok"}
    text = app.metrics()
    for worker in (0, 1):
        line = re.compile(rf'worker="{worker}",method="GET",route="/healthz",status="200"}} (\d+)')
        seen = [int(found.group(1)) if (found := line.search(page)) else 0 for page in (before, text)]
        assert seen[1] == seen[0] + 1
    assert "facereward_database_up 1" in text
    stored = map(int, re.findall(r'label_events_total\{worker="\d",outcome="stored"\} (\d+)', text))
    assert sum(stored) >= 2
    assert re.search(r"facereward_people_active 1\n", text)
    for headers in ({"X-Forwarded-For": "203.0.113.7"}, {"Host": "label.example.org"}):
        assert httpx.get(f"{app.url}/metrics", headers=headers).status_code == 403


def test_a_worker_that_is_killed_is_started_again_and_all_end_together(shared: tuple[App, Database]) -> None:
    app, _ = shared
    ada = app.browser(1, "ada")
    first, second = app.workers()
    first.kill()  # the one of the admin pages and the background work
    with httpx.Client(base_url=app.url) as others:
        assert others.get("/api/sign-in-info").status_code == 200, "the other one takes over"
    answers: list[int] = []  # whoever asks meanwhile waits for the first to be back, or is told to come again
    wait_until(lambda: answers.append(ada.get("/admin/").status_code) or answers[-1] == 200)
    assert set(answers) <= {200, 503}
    assert "worker 0 of 2 ended (SIGKILL); it is started again" in app.log.read_text()
    assert second.pid in [one.pid for one in app.workers()]
    workers = app.workers()
    assert len(workers) == 2
    app.process.send_signal(signal.SIGTERM)
    assert app.process.wait(LIMIT_SECONDS) == 0
    wait_until(lambda: not any(one.is_running() for one in workers))
    assert not list(app.sockets.glob("facereward-*"))


def test_several_workers_need_postgresql(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--workers", "2"], ["--workers", "0"], ["--workers", "2", "--db", f"sqlite:///{data}/x.db"]):
        assert main(["--data", str(data), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "PostgreSQL" in line
    assert not data.exists()
