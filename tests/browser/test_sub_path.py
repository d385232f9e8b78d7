"""The app below a path of a proxy's, which takes the path off or leaves it; and text that is written from the right."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.cookiejar import DefaultCookiePolicy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from annotate.judging.people import add_person, make_link_token
from db.errors import UserError
from db.models import Judgment, Role
from db.project import save_settings
from db.session import Database
from tests.browser.conftest import ThreadedServer, sign_in
from tests.making import address_of, fetch
from tests.watching import LIMIT_SECONDS
from ui.address import check_root_path
from ui.context import Context
from ui.server import make_app

pytestmark = pytest.mark.browser

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}
QUESTION = "أي صورة أفضل؟"


class Proxy:
    """A reverse proxy of everything below /label, and of nothing else."""

    def __init__(self, upstream: str, *, strips: bool, headers: dict[str, str] | None = None) -> None:
        client = httpx.Client(base_url=upstream, timeout=LIMIT_SECONDS)
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # a proxy keeps nobody's cookies
        self.strayed: list[str] = []
        strayed = self.strayed

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                if not re.match(r"/label(/|$)", self.path):
                    strayed.append(self.path)
                    self.send_error(404)
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                sent = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
                path = self.path.removeprefix("/label") if strips else self.path
                request = client.build_request(self.command, path or "/", content=body, headers=sent | (headers or {}))
                with_stream = client.send(request, stream=True)
                self.send_response(with_stream.status_code)
                for name, value in with_stream.headers.multi_items():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                for part in with_stream.iter_bytes():  # event streams have no end
                    self.wfile.write(part)
                    self.wfile.flush()
                with_stream.close()

            do_GET = do_POST = do_HEAD = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = self.address = f"http://127.0.0.1:{self.server.server_port}/label"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def below(database: Database, data: Path) -> Iterator[Callable[..., Proxy]]:
    """Starts the app with --root-path /label and a proxy in front of it."""
    started: list[Any] = []

    def start(*, auth: bool = False, **options: Any) -> Proxy:
        context = Context(database=database, data=data, root_path=check_root_path("/label/"), auth=auth)
        server = ThreadedServer(make_app(context), context)
        proxy = Proxy(server.url, **options)
        proxy.address = proxy.url if auth else address_of(data, proxy.url)
        started.extend((proxy.server.shutdown, server.stop))
        return proxy

    yield start
    for stop in started:
        stop()


@pytest.mark.parametrize("strips", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_everything_works_below_a_path(
    fill: Any, below: Callable[..., Proxy], open_page: Any, database: Database, strips: bool
) -> None:
    fill(3)
    proxy, page = below(strips=strips), open_page()
    missing: list[str] = []
    page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    sign_in(page, proxy, "ada")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_have_text("saved")
    assert len(fetch(database, select(Judgment))) == 1
    cookies = {cookie["name"]: cookie["path"] for cookie in page.context.cookies()}
    assert ("facereward" in cookies, len(cookies), set(cookies.values())) == (True, 2, {"/label"})
    page.locator("header summary").click()
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Overview").click()
    page.wait_for_url("**/label/admin/")
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Data").click()
    page.wait_for_url("**/label/admin/data")
    picture = page.locator("img[src*='/img/']").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    for name, words in (("runs", "No runs yet"), ("train", "Next round"), ("models", "Models"), ("people", "ada")):
        page.goto(f"{proxy.url}/admin/{name}")
        expect(page.get_by_text(words).locator("visible=true").first).to_be_visible()
    page.get_by_role("textbox", name="Name").fill("ben")
    page.get_by_role("button", name="Add person").click()
    expect(page.locator("table.fr")).to_contain_text("ben")
    page.get_by_role("button", name="Make a new personal link").click()
    link = page.locator("textarea[disabled], input[disabled]")
    expect(link).to_have_value(re.compile(re.escape(f"{proxy.url}/enter/")))
    other = open_page()
    other.goto(link.input_value())
    other.wait_for_url("**/label/")
    other.get_by_role("button", name="Start labelling").click()
    other.get_by_role("button", name="Sign out").click()
    other.wait_for_url("**/label/sign-in")
    expect(other.get_by_text("app.py prints in the terminal")).to_be_visible()  # a link's person had no token
    assert missing == []  # from here on, pictures may still be asked for when the session has ended
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Label").click()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/label/sign-in")
    page.goto(f"{proxy.url}/")
    page.wait_for_url("**/label/sign-in?next=/label/")
    strayed = [path for path in proxy.strayed if path != "/favicon.ico"]  # which browsers ask for by themselves
    assert strayed == []


@pytest.mark.parametrize(("proto", "host"), [("https", "faces.example.org"), ("http", "faces.example.org:8080")])
@pytest.mark.parametrize("strips", [True, False])
def test_redirects_and_cookies_stay_below_the_path(
    below: Callable[..., Proxy], database: Database, strips: bool, proto: str, host: str
) -> None:
    told = {"X-Forwarded-Proto": proto, "X-Forwarded-Host": host}
    proxy = below(strips=strips, auth=True, headers=told)
    with database.write() as session:
        token = make_link_token(add_person(session, "ada", Role.admin))
    with httpx.Client(timeout=LIMIT_SECONDS) as client:
        for path in ("", "/", "/admin", "/api/session"):
            answer = client.get(proxy.url + path)
            there = answer.headers.get("location", "/label/sign-in?next=")
            assert there.startswith("/label/sign-in?next="), path
        assert client.get(f"{proxy.url}/sign-in").text.count('"/label/static/') == 5
        entered = client.get(f"{proxy.url}/enter/{token}")
        assert (entered.headers["location"], "path=/label;" in entered.headers["set-cookie"]) == ("/label/", True)
        # A browser sends it back where it speaks HTTPS to the proxy; this client speaks HTTP.
        assert ("; secure" in entered.headers["set-cookie"].lower()) == (proto == "https")
        client.headers["Cookie"] = entered.headers["set-cookie"].partition(";")[0]
        assert client.get(f"{proxy.url}/admin").headers["location"] == "/label/admin/"
        config = client.get(f"{proxy.url}/admin/config").json()
        assert config["root"] == f"{proto}://{host}/label/admin"
        own = {"Origin": f"{proto}://{host}"}
        assert client.post(f"{proxy.url}/api/label", json={}, headers=own).status_code == 200
        foreign = {"Origin": "https://elsewhere.example.org"}
        assert client.post(f"{proxy.url}/api/label", json={}, headers=foreign).status_code == 403
        bad = client.post(f"{proxy.url}/sign-in", data={"name": "ada", "password": "wrong"})
        assert bad.headers["location"].startswith("/label/sign-in?error=")


@pytest.mark.parametrize(
    ("asked", "led"),
    [("/label/admin/runs", "/label/admin/runs"), ("/other/app", "/label/"), ("//evil", "/label/"), ("", "/label/")],
)
def test_sign_in_leads_to_the_page_that_was_asked_for(below: Callable[..., Proxy], asked: str, led: str) -> None:
    proxy = below(strips=True)
    with httpx.Client(timeout=LIMIT_SECONDS) as client:
        client.get(proxy.address)
        answer = client.post(f"{proxy.url}/sign-in", data={"name": "ada", "next": asked})
    assert answer.headers["location"] == led


@pytest.mark.parametrize("path", ["label", "/a b", "/label?x", "/../x", "//evil", "/admin", "/static/x", "/api"])
def test_a_root_path_that_cannot_work_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="--root-path"):
        check_root_path(path)


def direction(page: Page, selector: str) -> str:
    found: str = page.locator(selector).first.evaluate("element => getComputedStyle(element).direction")
    return found


def test_text_from_the_right_is_laid_out_from_the_right(
    fill: Any, serve: Any, open_page: Any, database: Database
) -> None:
    fill(3, question=QUESTION, title="وجوه", reasons=["عيون", "skin"], guidelines="انظر إلى **العيون**.\n\n- then left")
    server, page = serve(admin_pages=True), open_page()
    with database.write() as session:
        add_person(session, "דנה", Role.annotator)
    sign_in(page, server, "ada")
    page.keyboard.press("ArrowLeft")
    assert [direction(page, place) for place in ("#question", "#title", "#guidelines-question")] == ["rtl"] * 3
    assert [direction(page, f"#reasons button:nth-of-type({n})") for n in (1, 2)] == ["rtl", "ltr"]
    assert [direction(page, f".guidelines {tag}") for tag in ("p", "li")] == ["rtl", "ltr"]
    page.keyboard.press("s")
    page.locator("#skip-text").fill("מטושטש")
    assert direction(page, "#skip-text") == "rtl"
    page.locator("#skip-send").click()
    expect(page.locator("#saved")).to_have_text("saved")
    with database.write() as session:
        save_settings(session, {"question": "Which?"})
    page.keyboard.press("y")
    page.locator("#history li").first.wait_for()
    assert direction(page, f"#history span:has-text('{QUESTION}')") == "ltr", "it begins with our words"
    page.goto(f"{server.url}/admin/people")
    page.locator("table.fr").wait_for()
    assert direction(page, "td:has-text('דנה')") == "rtl"
    page.goto(f"{server.url}/admin/project")
    field = page.get_by_role("textbox", name="Guidelines")
    expect(field).to_have_value(re.compile("انظر"))
    assert field.evaluate("element => getComputedStyle(element).unicodeBidi") == "plaintext"
