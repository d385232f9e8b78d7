"""A blocked writer, a hung PostgreSQL, a folder that cannot be written, values that cannot be stored."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import text
from sqlalchemy.event import listen
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

import db.postgres
import ui.gate.turns
from db.errors import UnavailableError, UserError
from db.project import save_settings
from db.session import Database, check_writable, open_database
from db.waiting import patience_seconds, wait_at_most
from tests.making import add_pairs, make_app_without_pages, make_event, open_client, routes_of
from ui.context import Context
from ui.gate.turns import READERS, WRITERS, OwnTurnLostError, TurnLostError, Turns
from ui.server import make_app

PATIENCE = 0.3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui.gate.turns, "PATIENCE_SECONDS", PATIENCE)


@contextlib.contextmanager
def write_lock(data: Path) -> Iterator[None]:
    """Another process that writes into the SQLite database, and does not end."""
    other = sqlite3.connect(data / "facereward.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextlib.contextmanager
def frozen(url: str) -> Iterator[None]:
    """A PostgreSQL whose processes all stand still."""
    folder = Path(url.partition("?host=")[2])
    postmaster = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    found = subprocess.run(["pgrep", "-P", str(postmaster)], capture_output=True, text=True, check=False).stdout
    processes = [postmaster, *map(int, found.split())]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@pytest.fixture
def project(any_database: Database, data: Path) -> None:
    with any_database.write() as session:
        add_pairs(session, 3, files=data)


@pytest.fixture
def visit(project: None, any_database: Database, data: Path) -> Callable[[], TestClient]:
    """Makes clients of one app, signed in by name."""
    app = make_app_without_pages(Context(database=any_database, data=data))
    return lambda: open_client(app, data, "ada")


@contextlib.contextmanager
def hanging(url: str | None, data: Path) -> Iterator[None]:
    with write_lock(data) if url is None else frozen(url):
        yield


def test_writes_get_a_503_and_all_else_its_answer(
    visit: Callable[[], TestClient], impatient: None, database_url: str | None, data: Path, caplog: Any
) -> None:
    ada = visit()
    showing = ada.post("/api/label", json={"want": 1}).json()["pairs"][0]["showing"]
    body = {"events": [make_event(showing, "tie")]}
    with hanging(database_url, data):
        caplog.clear()
        answer = ada.post("/api/label", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "try again" in answer.json()["error"]
        said = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [(record.name, record.exc_info) for record in said] == [("ui.gate.turns", None)]
        assert "\n" not in said[0].getMessage()
        assert ada.get("/static/label/label.js").status_code == 200
        if database_url is None:
            assert ada.get("/api/session").status_code == 200
            assert ada.get("/api/progress").status_code == 200
        else:
            assert ada.get("/api/session").status_code == 503
    for _ in range(3):  # each connection that was cut is noticed once at most
        answer = ada.post("/api/label", json=body)
        if answer.status_code == 200:
            break
    assert answer.json()["results"][0]["status"] == "stored"


def test_who_waits_for_a_turn_of_this_process_waits_as_shortly(database: Database) -> None:
    inside, end = threading.Event(), threading.Event()

    def hold() -> None:
        with database.write():
            inside.set()
            end.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    with wait_at_most(0.05), pytest.raises(UnavailableError, match="have been writing"), database.write():
        pass
    end.set()
    holder.join()
    with wait_at_most(0.05), database.write():
        pass


def test_only_requests_are_impatient(any_database: Database) -> None:
    with any_database.write() as session:
        session.execute(text("SELECT 1"))
        assert patience_seconds() is None
    with wait_at_most(0.5):
        assert patience_seconds() == 0.5
    assert patience_seconds() is None


def test_a_statement_that_takes_too_long_is_given_up_and_dropped_by_the_server(postgres_url: str, data: Path) -> None:
    database = open_database(data, postgres_url)
    with (
        wait_at_most(0.2),
        pytest.raises(OperationalError, match=r"no answer within 0\.2 seconds"),
        database.read() as session,
    ):
        session.execute(text("SELECT pg_sleep(600)"))
    with database.read() as session:
        sleeping = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND state = 'active'")
        for _ in range(100):
            if session.scalar(sleeping) == 0:
                break
            time.sleep(0.05)
        assert session.scalar(sleeping) == 0
        assert session.scalar(text("SHOW lock_timeout")) == "30s"
    database.close()


def test_a_database_that_does_not_answer_is_refused_in_time(
    postgres_url: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(db.postgres.OPTIONS, "connect_timeout", 2)
    with frozen(postgres_url), pytest.raises(UserError, match="Cannot open the database"):
        open_database(data, postgres_url)


def test_requests_never_take_all_threads() -> None:
    async def count() -> float:
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    assert run_apart(count) > WRITERS + READERS


def test_one_person_takes_one_place_in_the_queue(impatient: None) -> None:
    """A hundred requests of one person wait behind each other, and others pass."""
    order: list[str] = []

    async def request(turns: Turns, who: str) -> None:
        async with turns.take(who):
            order.append(who)
            await anyio.sleep(0.001)

    async def run() -> None:
        turns = Turns(1, 1)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(request, turns, "flood")
            await anyio.sleep(0)
            for name in ("ada", "ben"):
                group.start_soon(request, turns, name)
        assert turns._own == turns._inside == {}

    run_apart(run)
    assert {order.index("ada"), order.index("ben")} <= {1, 2, 3}


def test_a_turn_that_does_not_come_is_said_to_whom_it_belongs(impatient: None) -> None:
    async def run() -> None:
        turns = Turns(1, 1)
        async with turns.take("ada"):
            with pytest.raises(OwnTurnLostError):
                async with turns.take("ada"):
                    pass
            for who in ("ben", None):
                with pytest.raises(TurnLostError) as caught:
                    async with turns.take(who):
                        pass
                assert not isinstance(caught.value, OwnTurnLostError)
        async with turns.take("ben"):
            pass

    run_apart(run)


def run_apart(function: Callable[[], Any]) -> Any:
    """Run a coroutine in a thread of its own: playwright's tests leave their event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(anyio.run, function).result()


HUGE = (2**31, 2**63, -(2**63) - 1, 10**300)
NASTY_WORDS = ("a\0b", "x\udfff", "9" * 400, "../" * 20, "NaN")
NASTY_NUMBERS = (*HUGE, float("nan"), float("inf"), float("-inf"), -1, 1.5)
NASTY_BODIES = (*NASTY_NUMBERS, *NASTY_WORDS, None, [], [[]], {"\ud800": "\0"})
FIELDS = {
    "/api/label": ("want", "events", "holding", "person", "page", "question", "leaving"),
    "/api/train/check": ("kind", "values", "inputs", "after", "processes", "device"),
    "/api/train/start": ("kind", "values", "inputs", "after", "processes", "device"),
    "/api/train/round": ("round", "values"),
}
QUERIES = itertools.cycle(("limit", "before", "state", "kind", "from", "points", "since", "bytes", "t", "next"))
BAD_HOSTS = ("[", "[::1", "]", "[zz]", "a b", "a@b", "localhost:99999", "localhost:x", "\xff", "http://localhost", "/")


def check(answer: Any, what: object) -> None:
    assert answer.status_code < 500, (what, answer.status_code, answer.text[:300])


def test_nothing_that_is_sent_is_a_fault_of_the_server(visit: Callable[[], TestClient]) -> None:
    ada = visit()
    routes = sorted(
        routes_of(ada.app) - {("POST", "/sign-out"), ("POST", "/sign-out/everywhere"), ("POST", "/sign-in")}
    )
    bodies, words = itertools.cycle(NASTY_BODIES), itertools.cycle((*HUGE, *NASTY_WORDS))
    for method, path in routes:
        before, brace, rest = path.partition("{")
        for _ in range(len(HUGE) + len(NASTY_WORDS) if brace else 1):
            word = quote(str(next(words)).encode("utf-8", "surrogatepass"), safe="") if brace else ""
            address = before + word + rest.partition("}")[2]
            if method == "GET":
                check(ada.get(address), (path, word))
                name = next(QUERIES)
                value = quote(str(next(words)).encode("utf-8", "surrogatepass"), safe="")
                check(ada.get(f"{address}?{name}={value}"), (path, name, value))
        for name in FIELDS.get(path, ()):
            for body in (next(bodies), next(bodies), next(bodies)):
                content = {"kind": "annotate fit", "round": 1, name: body}
                if path == "/api/label":
                    content = {name: body}
                check(ada.post(path, content=json.dumps(content)), (path, content))
    for run_id in (2**63, 10**30):
        answer = ada.get(f"/api/runs/{run_id}")
        assert answer.status_code == 400, answer.text
        assert "run_id" in answer.json()["error"]
    for content in (b'{"want": NaN}', b'{"want": 1e999}', b'{"page": "\\u0000", "want": "\\ud800"}', b"{", b"\xff"):
        answer = ada.post("/api/label", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, (content, answer.text)


def test_a_host_that_is_none_is_refused(data: Path) -> None:
    database = open_database(data)
    ada = TestClient(make_app(Context(database=database, data=data, auth=True)), base_url="http://localhost")
    for header, host in itertools.product(("host", "x-forwarded-host"), BAD_HOSTS):
        for path in ("/", "/sign-in", "/static/label/label.js", "/admin/"):
            answer = ada.get(path, headers=[(header.encode(), host.encode("latin-1"))])
            assert answer.status_code == 400, (header, path, answer.text)
            assert "is not a host name" in answer.json()["error"]
    for origin in ("http://[", "http://[zz]", "\xff"):
        answer = ada.post("/sign-in", headers=[(b"origin", origin.encode("latin-1"))])
        assert answer.status_code in (400, 403), origin
    for host in ("127.0.0.1:7860", "[::1]:7860", "localhost"):
        assert ada.get("/sign-in", headers={"host": host}).status_code == 200
    database.close()


def test_a_folder_that_cannot_be_written_is_refused_at_start(database: Database, data: Path) -> None:
    with pytest.raises(UserError, match=r"The data folder /sys/kernel cannot be written \(.+\)"):
        check_writable(database, Path("/sys/kernel"))
    before = sorted(data.iterdir())
    check_writable(database, data)
    assert sorted(data.iterdir()) == before


def test_a_database_that_can_only_be_read_is_refused_at_start(any_database: Database, data: Path) -> None:
    """Root may write any file, so that the database says it itself here."""
    is_sqlite = any_database.engine.dialect.name == "sqlite"
    with any_database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=1" if is_sqlite else "SET default_transaction_read_only = on")
        connection.commit()
    with pytest.raises(UserError, match=r"cannot be written: .*read-?only"):
        check_writable(any_database, data)


def test_a_full_disk_is_refused_at_start(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(UserError, match="No space left on device"):
        check_writable(database, data)


def test_an_answer_and_the_next_pair_cost_few_statements(
    visit: Callable[[], TestClient], any_database: Database
) -> None:
    with any_database.write() as session:  # a repeat or a gold pair, which come by chance, costs more
        save_settings(session, {"repeat_share": 0, "gold_share": 0})
    ada = visit()
    holding = [pair["showing"] for pair in ada.post("/api/label", json={"want": 2}).json()["pairs"]]
    body = {"events": [make_event(holding[0], "tie")], "want": 1, "holding": holding[1:]}
    statements: list[str] = []
    listen(any_database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    answer = ada.post("/api/label", json=body).json()
    assert (answer["results"][0]["status"], len(answer["pairs"])) == ("stored", 1)
    # How many walks through the queue it takes is by chance. SQLite begins twice; PostgreSQL locks the person, and
    # looks again at the pair that it locked. One reads and one writes the pace and pages, which processes share.
    fixed = [statement for statement in statements if "ORDER BY pair.shuffle_key" not in statement]
    assert len(fixed) <= 15, "\n".join(fixed)
