"""A real server process with real images, and headless Chromium looking at it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from annotate.pairs import make_pairs
from annotate.project import load_settings, save_settings
from db.images import add_image, probe_image
from db.models import Split
from db.records import add_candidate, add_method, add_source
from db.session import Database

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY_SECONDS = 60
METHODS = ("bicubic-secret", "gfpgan-secret", "codeformer-secret")


class Server:
    """app.py as a person starts it; can be killed and started again on the same port."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self.options = options
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "app.py", "--data", str(self.data), "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # printed when the pages are built, just before serving
        assert "ready at" in line, f"the server said {line!r}"
        self.port = int(line.split(" (")[0].strip().rsplit(":", 1)[1])
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/sign-in").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=20)


@pytest.fixture
def fill(database: Database, data: Path, make_photo: Callable[..., Path], tmp_path: Path) -> Callable[..., None]:
    """Fills the database: sources with lq, hq and three methods' candidates, three pairs each."""

    def fill(sources: int, size_px: tuple[int, int] = (96, 96), **settings: object) -> None:
        with database.write() as session:
            save_settings(session, {"repeat_share": 0, "gold_share": 0, **settings})
            for number in range(sources):
                images = [make_photo(tmp_path / f"{number}-{at}.png", 10 * number + at, size_px) for at in range(5)]
                lq, hq, *restored = [add_image(session, data, probe_image(path), path) for path in images]
                source = add_source(session, f"face{number}", Split.train, lq=lq, hq=hq)
                for name, image in zip(METHODS, restored, strict=True):
                    add_candidate(session, source, add_method(session, name), image)
            make_pairs(session, load_settings(session))

    return fill


@pytest.fixture
def serve(data: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's data folder and stops them at its end."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        server = Server(data, *options)
        servers.append(server)
        server.start()
        return server

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


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages in browser contexts of their own; a page's uncaught errors fail the test."""
    contexts = []
    errors: list[str] = []

    def open_page(**options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **options})  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def sign_in() -> Callable[[Page, Server, str], None]:
    """Signs a page in by name, passes the guidelines, waits for the first pair."""

    def sign_in(page: Page, server: Server, name: str) -> None:
        page.goto(server.url)
        page.get_by_label("Name").fill(name)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Start labelling").click()
        page.locator("#stage[data-state=shown]").wait_for()

    return sign_in
