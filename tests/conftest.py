"""Fixtures shared by all tests: a fresh database, small photos made on the spot, the shared faces where they are."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from db.session import Database
from tests.making import ROOT, address_of, open_fresh, write_photo
from tests.watching import LIMIT_SECONDS, wait_until

SHARED_FACES = ROOT.parent / "shared" / "faces"


def pytest_configure() -> None:
    """Let tests signal themselves and what they start, also where `nohup make test &` has these ignored."""
    for number, action in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, action)


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every collection of garbage: a million objects that stay."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Let torch take one thread in each test, whatever the one before took.

    So sums are of the same parts here and in the processes that tests start, bit for bit; and two threads for each of
    more processes than cores wait for each other: a training of 16 seconds took 225.
    """
    use_one_thread()
    yield
    use_one_thread()  # for fixtures of a module, which come before those of a test


def use_one_thread() -> None:
    """To one, where torch is loaded: loading it takes seconds."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An empty data folder."""
    return tmp_path / "data"


@pytest.fixture
def database(data: Path) -> Iterator[Database]:
    """A fresh, migrated SQLite database in the data folder."""
    opened = open_fresh(data)
    yield opened
    opened.close()


@pytest.fixture
def shared_faces() -> Path:
    """The folder of real faces; the test is skipped where it is absent."""
    if not SHARED_FACES.is_dir():
        pytest.skip("needs ../shared/faces, which is not beside this checkout")
    return SHARED_FACES


@pytest.fixture
def make_photo() -> Callable[..., Path]:
    """`write_photo`, for tests that make their own layout."""
    return write_photo


@pytest.fixture
def restored_folder(tmp_path: Path) -> Path:
    """Restorers' outputs as they write them: 4 photos, lq and hq, 3 methods of which one lacks a photo."""
    folder = tmp_path / "restored"
    for number in range(4):
        stem = f"face{number}"
        write_photo(folder / "lq" / f"{stem}.png", number)
        write_photo(folder / "hq" / f"{stem}.png", 100 + number)
        for place, method in enumerate(("bicubic", "gfpgan", "codeformer")):
            if not (method == "codeformer" and number == 3):
                write_photo(folder / method / f"{stem}.png", 1000 * (place + 1) + number)
        (folder / "lq" / f"{stem}.txt").write_text(f"portrait number {number}\n", encoding="utf-8")
    return folder


class Server:
    """app.py as a person starts it; can be killed and started again on the same port."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self.options = options
        self.port = 0
        self.printed = ""
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """What a person opens: without --auth it holds the token."""
        return self.url if "--auth" in self.options else address_of(self.data, self.url)

    def start(self) -> None:
        command = [sys.executable, "app.py", "--data", str(self.data), "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # printed when the pages are built, just before serving
        assert "ready at" in line, f"the server said {line!r}"
        self.printed = line.partition("ready at ")[2].split()[0]
        self.port = int(str(urlsplit(self.printed).port))
        wait_until(self.answers)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/static/icon.svg", timeout=LIMIT_SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(LIMIT_SECONDS)


@pytest.fixture
def serve_process(data: Path) -> Iterator[Callable[..., Server]]:
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
