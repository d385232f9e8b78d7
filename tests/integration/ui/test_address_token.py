"""Without --auth the app opens by the address that the terminal prints, and through no proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from annotate.judging.people import add_person, make_link_token
from db.session import Database, open_database
from tests.making import MakeClient, address_of
from tests.watching import LIMIT_SECONDS
from ui.context import Context
from ui.server import make_app

HTML = {"Accept": "text/html"}
PROXIES = [
    ("Forwarded", "for=203.0.113.7"),
    ("X-Forwarded-For", "203.0.113.7"),
    ("X-Forwarded-Host", "127.0.0.1:7860"),
    ("X-Forwarded-Proto", "https"),
    ("X-FORWARDED-PREFIX", "/label"),
    ("X-Real-IP", "203.0.113.7"),
    ("Via", "1.1 proxy"),
    ("CF-Connecting-IP", "203.0.113.7"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the one app of these tests."""
    return tmp_path_factory.mktemp("address") / "data"


@pytest.fixture(scope="module")
def database_of_app(folder: Path) -> Iterator[Database]:
    database = open_database(folder)
    yield database
    database.close()


@pytest.fixture(scope="module")
def app(folder: Path, database_of_app: Database) -> FastAPI:
    """The app without --auth; nobody's judgment is in it, so that its tests may share it."""
    return make_app(Context(database=database_of_app, data=folder))


@pytest.fixture
def make_client(app: FastAPI) -> Callable[..., TestClient]:
    """Browsers without cookies."""

    def make(host: str = "127.0.0.1:7860") -> TestClient:
        return TestClient(app, base_url=f"http://{host}", follow_redirects=False)

    return make


@pytest.fixture
def opened(make_client: MakeClient, folder: Path) -> TestClient:
    """A browser that opened the printed address."""
    client = make_client()
    client.get(address_of(folder, ""))
    return client


def test_whoever_lacks_the_token_reaches_nothing(make_client: MakeClient, folder: Path) -> None:
    other = make_client()
    token = address_of(folder, "").partition("token=")[2]
    for path in ("/", "/sign-in", "/api/sign-in-info", "/api/session", "/admin/", "/img/x", "/nothing"):
        for query in ("", "?token=", f"?token={token[:-1]}", f"?token={token}x", "?token=%ff", "?t=" + token):
            answer = other.get(path + query)
            assert (answer.status_code, "terminal" in answer.text) == (401, True), path + query
            assert token not in answer.text
    for path in ("/sign-in", f"/sign-in?token={token}", "/api/label", "/sign-out", "/admin/gradio_api/upload"):
        assert other.post(path, data={"name": "mallory"}).status_code == 401, path
    page = other.get("/", headers=HTML)
    assert (page.status_code, page.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert "app.py prints in the terminal" in page.text
    assert "MESSAGE" not in page.text
    assert other.get("/static/common/style.css").status_code == 200
    assert other.cookies == {}


def test_a_personal_link_needs_no_token_and_gives_no_more_than_its_person_may(
    make_client: MakeClient, database_of_app: Database
) -> None:
    with database_of_app.write() as session:
        link = make_link_token(add_person(session, "ben"))
    ben = make_client()
    assert ben.get(f"/enter/{link}").headers["location"] == "/"
    assert ben.get("/api/session").json()["person"]["role"] == "annotator"
    assert ben.get("/admin/").status_code == 403
    assert ben.post("/sign-in", data={"name": "mallory"}).status_code == 401, "a name of one's choice is an admin's"
    ben.post("/sign-out")
    assert ben.get("/").status_code == 401


def test_the_token_becomes_a_cookie_and_leaves_the_address(make_client: MakeClient, folder: Path) -> None:
    client, token = make_client(), address_of(folder, "").partition("token=")[2]
    answer = client.get(f"/admin/runs?token={token}&state=a%26b&state=c")
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/runs?state=a%26b&state=c")
    cookie = answer.headers["set-cookie"]
    assert re.search(r"httponly", cookie, re.I)
    assert re.search(r"samesite=lax", cookie, re.I)
    assert token not in cookie, "a cookie's thief does not have the address"
    assert client.post("/sign-in", data={"name": "ada"}).headers["location"] == "/"
    assert client.get("/api/session").json()["person"]["role"] == "admin"
    client.post("/sign-out")
    assert client.get("/sign-in").status_code == 200, "signing out does not close the app"
    # A bookmark with the token of an older key is no matter to a browser that is known.
    assert client.get("/?token=old").headers["location"] == "/"


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "/%5Cevil.example", "///evil.example"])
def test_the_exchange_leads_nowhere_else(opened: TestClient, path: str) -> None:
    answer = opened.get(f"http://127.0.0.1:7860{path}?token=any")
    assert not re.match(r"[/\\]{2}|\w+:", answer.headers["location"]), answer.headers["location"]


@pytest.mark.parametrize(("name", "value"), PROXIES)
def test_what_came_through_a_proxy_is_refused(opened: TestClient, folder: Path, name: str, value: str) -> None:
    for path in ("/", address_of(folder, ""), "/sign-in", "/static/common/style.css", "/api/session"):
        answer = opened.get(path, headers={name: value})
        assert answer.status_code == 403, path
        assert "--auth" in answer.text
        assert name.lower() in answer.text
    assert opened.post("/sign-in", data={"name": "mallory"}, headers={name: value}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:1234", "127.0.0.2:81"])
def test_a_tunnel_from_another_port_works(make_client: MakeClient, folder: Path, host: str) -> None:
    client = make_client(host)
    assert client.get(address_of(folder, "")).status_code == 303
    origin = {"Origin": f"http://{host}"}
    assert client.post("/sign-in", data={"name": "ada"}, headers=origin).headers["location"] == "/"


def test_two_apps_of_one_machine_do_not_sign_each_others_people_out(
    make_client: MakeClient, opened: TestClient, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    second = open_database(other)
    try:
        client = TestClient(make_app(Context(database=second, data=other)), base_url="http://127.0.0.1:7861")
        client.cookies = opened.cookies  # they know no port
        assert client.get("/sign-in").status_code == 401
        client.get(address_of(other, ""))
        opened.cookies = client.cookies
        assert (client.get("/sign-in").status_code, opened.get("/sign-in").status_code) == (200, 200)
    finally:
        second.close()


def test_a_page_that_is_open_goes_on_after_a_restart(serve_process: Any) -> None:
    server = serve_process()
    assert server.printed == server.address
    with httpx.Client(base_url=server.url, timeout=LIMIT_SECONDS) as browser:
        browser.get(server.printed)
        browser.post("/sign-in", data={"name": "ada"})
        server.kill()
        server.start()
        assert browser.post("/api/label", json={"want": 1}).status_code == 200
        assert server.printed == server.address, "a bookmark of the address works still"
    assert httpx.get(f"{server.url}/api/session", timeout=LIMIT_SECONDS).status_code == 401
