"""The address that people open: what links, cookies, hosts and origins follow from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from annotate.judging.people import add_person
from app import main
from db.errors import UserError
from db.models import Role
from db.session import Database
from tests.making import PASSWORD
from ui.address import read_base_url
from ui.context import Context
from ui.server import make_app


@pytest.fixture
def serve(database: Database, data: Path) -> Callable[..., Callable[..., TestClient]]:
    """An app with --auth at a base URL; gives what makes browsers that reach it by a host, as a proxy would."""
    with database.write() as session:
        add_person(session, "ada", Role.admin, PASSWORD)

    def start(url: str) -> Callable[..., TestClient]:
        base_url, root_path = read_base_url(url, "")
        app = make_app(Context(database=database, data=data, auth=True, base_url=base_url, root_path=root_path))

        def make(host: str, **headers: str) -> TestClient:
            return TestClient(app, base_url=f"http://{host}", headers=headers, follow_redirects=False)

        return make

    return start


def cookies_of(client: TestClient, path: str) -> list[str]:
    answer = client.post(path, data={"name": "ada", "password": PASSWORD})
    assert answer.status_code == 303, answer.text
    return answer.headers.get_list("set-cookie")


def test_behind_https_cookies_are_secure_and_of_this_host(serve: Callable[..., Callable[..., TestClient]]) -> None:
    make = serve("https://label.example.org")
    for host in ("label.example.org", "127.0.0.1:7860"):  # with the Host passed on, and without
        cookies = cookies_of(make(host), "/sign-in")
        assert len(cookies) == 2
        for cookie in cookies:
            assert cookie.startswith("__Host-facereward")
            assert {"secure", "httponly", "samesite=lax", "path=/"} <= set(cookie.lower().split("; "))
    signed_in = make("label.example.org", Cookie="; ".join(cookie.partition(";")[0] for cookie in cookies))
    assert signed_in.get("/api/session").json()["person"]["name"] == "ada"
    assert signed_in.get("/admin/config").json()["root"] == "https://label.example.org/admin"


def test_below_a_path_and_without_https(serve: Callable[..., Callable[..., TestClient]]) -> None:
    cookies = cookies_of(serve("https://example.org/label/")("example.org"), "/label/sign-in")
    assert all(cookie.startswith("__Secure-facereward") for cookie in cookies)
    assert all({"secure", "path=/label"} <= set(cookie.lower().split("; ")) for cookie in cookies)
    cookies = cookies_of(serve("http://lab.local:8000")("lab.local:8000"), "/sign-in")
    assert all(cookie.startswith("facereward") and "secure" not in cookie.lower() for cookie in cookies)


def test_a_proxy_that_tells_of_https_is_enough_for_secure_cookies(database: Database, data: Path) -> None:
    with database.write() as session:
        add_person(session, "ada", Role.admin, PASSWORD)
    app = make_app(Context(database=database, data=data, auth=True))
    told = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "label.example.org"}
    client = TestClient(app, base_url="http://127.0.0.1:7860", headers=told, follow_redirects=False)
    assert all("; Secure" in cookie for cookie in cookies_of(client, "/sign-in"))


def test_other_hosts_and_origins_are_refused(serve: Callable[..., Callable[..., TestClient]]) -> None:
    make = serve("https://label.example.org")
    for host in ("label.example.org", "LABEL.example.org:443", "127.0.0.1:7860", "localhost", "[::1]:7860"):
        assert make(host).get("/sign-in").status_code == 200, host
    for host in ("evil.example", "label.example.org:8443", "label.example.org.evil.example", "203.0.113.7"):
        answer = make("127.0.0.1").get("/sign-in", headers={"Host": host})
        assert (answer.status_code, "--base-url" in answer.text) == (403, True), host
    assert make("127.0.0.1").get("/sign-in", headers={"Host": "x@127.0.0.1"}).status_code == 400
    # What a client tells a proxy, which passes it on, is not believed.
    told = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    for origin, status in (
        ("https://label.example.org", 303),
        ("https://label.example.org:443", 303),
        ("http://label.example.org", 403),
        ("https://evil.example", 403),
        ("http://127.0.0.1", 403),
        ("null", 403),
        ("https://[", 400),
    ):
        client = make("127.0.0.1:7860", Origin=origin, **told)
        answer = client.post("/sign-in", data={"name": "ada", "password": PASSWORD})
        assert answer.status_code == status, origin


@pytest.mark.parametrize(
    ("url", "root_path", "expected"),
    [
        ("https://label.example.org", "", ("https://label.example.org", "")),
        ("https://Label.Example.org:443/", "", ("https://label.example.org", "")),
        ("http://[2001:db8::1]:8000/a/b/", "/a/b", ("http://[2001:db8::1]:8000", "/a/b")),
        ("", "/label/", ("None", "/label")),
    ],
)
def test_base_urls(url: str, root_path: str, expected: tuple[str, str]) -> None:
    base_url, path = read_base_url(url, root_path)
    assert (str(base_url), path) == expected


@pytest.mark.parametrize(
    ("url", "root_path"),
    [
        *(
            (url, "")
            for url in ("label.example.org", "ftp://x", "https://", "https://a:b", "https://me@x", "https://x?y")
        ),
        *((url, "") for url in ("https://x/#y", "https://x/admin", "https://x/a b", "https://x y", "https://[x")),
        ("https://x/label", "/other"),
        ("https://x", "/label"),
    ],
)
def test_a_base_url_that_cannot_work_is_refused(url: str, root_path: str) -> None:
    with pytest.raises(UserError, match="--base-url"):
        read_base_url(url, root_path)


def test_a_base_url_is_for_others_and_so_needs_sign_in(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(data), "--base-url", "https://label.example.org"]) == 2
    assert "--auth" in capsys.readouterr().err
    assert not data.exists()
