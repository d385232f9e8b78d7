"""A real server with real images, and headless Chromium looking at it."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import select

from db.models import Judgment
from db.project import save_settings
from db.session import Database
from runs.listen import open_listener
from tests.making import (
    SECRET_METHODS,
    SIX_METHODS,
    address_of,
    fetch,
    make_app_without_pages,
    make_project,
    open_fresh,
)
from tests.watching import LIMIT_SECONDS
from ui.context import Context
from ui.server import make_app

DATABASE = "facereward.db"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 1000 * LIMIT_SECONDS
expect.set_options(timeout=WAIT_MS)


class ThreadedServer:
    """The app behind a real port, in a thread of the tests: ready in a second, where a process takes four."""

    def __init__(self, app: FastAPI, context: Context) -> None:
        listener = open_listener("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.address = self.url if context.auth else address_of(context.data, self.url)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:  # until then nobody listens
            self.thread.join(timeout=0.02)
            assert self.thread.is_alive(), "the server ended at once"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(LIMIT_SECONDS)


@pytest.fixture
def rows(database: Database) -> Callable[[], list[Judgment]]:
    """Reads all judgments, oldest first."""

    def rows() -> list[Judgment]:
        return fetch(database, select(Judgment).order_by(Judgment.id))

    return rows


@pytest.fixture(scope="session")
def made_projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folders of filled projects, which tests copy: making one takes a second, most of it for its photos."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def fill(database: Database, data: Path, made_projects: Path) -> Callable[..., None]:
    """Fills the fresh database: sources with lq, hq and three methods' candidates, three pairs each.

    With `of`, three to six, they have so many candidates, which are one task.
    """

    def fill(sources: int, size_px: tuple[int, int] = (96, 96), of: int = 0, **settings: object) -> None:
        filled = made_projects / f"{sources}-{size_px[0]}x{size_px[1]}-{of}"
        if not filled.exists():
            made = open_fresh(filled)
            with made.write() as session:
                methods = SIX_METHODS[:of] if of else SECRET_METHODS
                task_size = {"task_size": of} if of else {}
                make_project(session, filled, made_projects, sources, methods, size_px=size_px, **task_size)
            made.close()
        shutil.copytree(filled / "images", data / "images")
        with closing(sqlite3.connect(filled / DATABASE)) as source, closing(sqlite3.connect(data / DATABASE)) as target:
            source.backup(target)
        if settings:
            with database.write() as session:
                save_settings(session, settings)

    return fill


@pytest.fixture
def serve(database: Database, data: Path) -> Iterator[Callable[..., ThreadedServer]]:
    """Starts a server of the test's database and stops it at the end.

    Without `admin_pages` the Gradio pages are left out: they take a second of the processor to build, and the tests of
    the labelling page open none of them.
    """
    servers: list[ThreadedServer] = []

    def start(*, admin_pages: bool = False, auth: bool = False) -> ThreadedServer:
        context = Context(database=database, data=data, auth=auth)
        app = make_app(context) if admin_pages else make_app_without_pages(context)
        servers.append(ThreadedServer(app, context))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium: Debian's, or Playwright's own where that was installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("needs Chromium; tests/install_system_packages.sh installs it")
        launched = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield launched
        launched.close()


def is_foreign(url: str) -> bool:
    """Whether an address leads to another machine."""
    return urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).hostname != "127.0.0.1"


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages in browser contexts of their own.

    A page's uncaught errors fail the test, and what its content policy refused, and requests to other machines.
    """
    contexts = []
    errors: list[str] = []

    def open_page(**options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **options})  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
        page.on("request", lambda request: errors.append(request.url) if is_foreign(request.url) else None)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def sign_in(page: Page, server: Any, name: str) -> None:
    """Sign a page in by name, pass the guidelines, wait for the first pair."""
    page.goto(server.address)
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Start labelling").click()
    page.locator("#stage[data-state=shown]").wait_for()


def enter(page: Page, server: Any, name: str, path: str = "/") -> None:
    """Open a page as one who has signed in and read the guidelines: a third of the work of `sign_in`."""
    browser = page.context.request  # whose cookies are the page's
    browser.get(server.address)
    for route, form in (("/sign-in", {"name": name}), ("/api/guidelines-seen", {})):
        assert browser.post(server.url + route, form=form, headers={"Origin": server.url}).ok
    page.goto(server.url + path)
    if path == "/":
        page.locator("#stage[data-state=shown]").wait_for()


@pytest.fixture
def label_page(serve: Any, open_page: Any) -> Callable[..., Page]:
    """Opens a page of a server of its own, signed in as ada; a script given runs before the page's own."""

    def open_label_page(script: str = "", **options: object) -> Page:
        page: Page = open_page(**options)
        page.add_init_script(script)
        enter(page, serve(), "ada")
        return page

    return open_label_page


@pytest.fixture
def page(fill: Any, label_page: Any) -> Page:
    """The page of a signed-in person, its first of 36 pairs painted and the next ones fetched."""
    fill(12)
    opened: Page = label_page()
    opened.wait_for_timeout(500)
    return opened


def answer(page: Page, key: str) -> None:
    """Press a key, and wait until the next pair is painted and the answer is stored."""
    painted = "new Promise((done) => document.addEventListener('facereward:painted', done, { once: true }))"
    page.evaluate(f"window.nextPaint = {painted}; undefined")
    page.keyboard.press(key)
    page.evaluate("window.nextPaint.then(() => true)")
    expect(page.locator("#saved")).to_have_text("saved")
