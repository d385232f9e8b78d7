"""Fixtures shared by all tests: a fresh database, small photos made on the spot, the shared faces where they are."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image as PilImage
from sqlalchemy.orm import Session

from db.images import image_path
from db.models import Candidate, Image, Method, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database, open_database

ROOT = Path(__file__).resolve().parents[1]
TWO_PROCESSES = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
)
"""After python, before a command, with ACCELERATE_USE_CPU=true in the environment: accelerate's own --cpu starts one
process, whatever the number."""
SHARED_FACES = ROOT.parent / "shared" / "faces"
READY_SECONDS = 60


def pytest_configure() -> None:
    """Let tests signal themselves and what they start, also where `nohup make test &` has these ignored."""
    for number, action in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, action)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An empty data folder."""
    return tmp_path / "data"


@pytest.fixture
def database(data: Path) -> Iterator[Database]:
    """A fresh, migrated SQLite database in the data folder."""
    opened = open_database(data)
    yield opened
    opened.close()


@pytest.fixture
def shared_faces() -> Path:
    """The folder of real faces; the test is skipped where it is absent."""
    if not SHARED_FACES.is_dir():
        pytest.skip("needs ../shared/faces, which is not beside this checkout")
    return SHARED_FACES


def write_photo(path: Path, seed: int, size_px: tuple[int, int] = (24, 32)) -> Path:
    """A small colourful image file, different for each seed; the suffix gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size_px[1], size_px[0], 3), dtype=np.uint8)
    PilImage.fromarray(pixels).save(path)
    return path


@pytest.fixture
def make_photo() -> Callable[..., Path]:
    """`write_photo`, for tests that make their own layout."""
    return write_photo


def write_small_image(data: Path, colours: bytes) -> str:
    """A PNG of 8 by 8 pixels in a data folder's images, its first pixels of these colours; its SHA-256."""
    written = io.BytesIO()
    PilImage.frombytes("RGB", (8, 8), colours.ljust(8 * 8 * 3, b"\0")).save(written, "png")
    sha256 = hashlib.sha256(written.getvalue()).hexdigest()
    path = image_path(data, sha256, ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written.getvalue())
    return sha256


AddCandidates = Callable[..., list[Candidate]]


@pytest.fixture
def add_candidates() -> AddCandidates:
    """`add_candidates(session, "face1", ["m1", "m2"])`: rows of a source's candidates, their images without files.

    With `files`, a data folder, they have some, so that a server shows their pairs.

    Methods whose names begin alike up to an '=' give the same image, such as "copy=1" and "copy=2".
    """

    def add(
        session: Session, source_key: str, methods: list[str], split: Split = Split.train, files: Path | None = None
    ) -> list[Candidate]:
        source = add_source(session, source_key, split)
        candidates = []
        for name in methods:
            method: Method = add_method(session, name)
            sha256, size_bytes = hashlib.sha256(f"{source_key}/{name.partition('=')[0]}".encode()).hexdigest(), 1
            if files is not None:
                sha256 = write_small_image(files, bytes.fromhex(sha256))
                size_bytes = image_path(files, sha256, ".png").stat().st_size
            image = session.query(Image).filter_by(sha256=sha256).one_or_none()
            if image is None:
                image = Image(sha256=sha256, suffix=".png", width_px=8, height_px=8, size_bytes=size_bytes)
                session.add(image)
                session.flush()
            candidates.append(add_candidate(session, source, method, image))
        return candidates

    return add


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


def address_of(data: Path, url: str) -> str:
    """The address of a data folder's app without --auth, as a person opens it: with the token that signs a page in."""
    from ui.gate.access import load_secret  # here: most tests need no app
    from ui.gate.address_token import AddressToken

    return AddressToken(load_secret(data)).put_into(url)


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
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/static/icon.svg").status_code == 200:
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
