"""The service as a person starts it: its numbers, hostile requests between honest ones, and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image as PilImage

import reward.serve.protocol
from db.errors import UserError
from reward.__main__ import main
from reward.model.checkpoint import build_model, save_model
from reward.model.config import ModelConfig
from reward.score.scorer import Scorer
from reward.serve.client import RemoteReward
from reward.serve.server import make_app, make_server
from runs.listen import open_listener
from tests.doc_blocks import read_blocks
from tests.making import ROOT
from tests.unit.reward.conftest import ARCHITECTURE
from tests.unit.reward.serve.conftest import BAD, LIMITS, draw_faces
from tests.watching import LIMIT_SECONDS, wait_until

torch = pytest.importorskip("torch")

TOKEN = "a-token-of-these-tests"
FINE_HERE = {"too large", "images that unpack to much", "a bomb that says so", "an endless caption"}
FINE_HERE |= {"too many images", "an array of too many"}
"""Wrong by the limits of the other tests, which are below what the command line can be told."""
GARBAGE = (
    b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 50,
    b"",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /version\r\n\r\n",
    b"\r\n" * 1_000,
    b"POST /score HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000,
    b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer " + TOKEN.encode()
    + b"\r\nContent-Type: application/x-npz\r\n\r\n5\r\nhello\r\nnonsense",
    b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\nAuthorization: Bearer " + TOKEN.encode()
    + b"\r\nContent-Type: application/json\r\n\r\n{",
)  # fmt: skip
"""What is no HTTP, or ends in the middle of a request."""


class Served(NamedTuple):
    """A process that serves a checkpoint."""

    url: str
    checkpoint: Path
    process: subprocess.Popen[str]


def start(checkpoint: Path, *options: str) -> Served:
    """Serve it on a free port."""
    command = [sys.executable, "-m", "reward", "serve", "--reward", str(checkpoint), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "is ready at http://127.0.0.1:" in line, line
    return Served(line.partition("is ready at ")[2].split()[0], checkpoint, process)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The small model, in requests of at most 40 pixels a side, three at a time; SIGTERM ends it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "small.json").write_text(json.dumps(ARCHITECTURE))
    (folder / "token").write_text(TOKEN)
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=str(folder / "small.json"),
        image_size_px=32,
        unlocked_image_groups=3,
        unlocked_text_blocks=1,
        text_mode="fixed",
    )
    save_model(build_model(config), folder / "small")
    found = start(
        folder / "small", "--token-file", str(folder / "token"), "--batch-size", "3", "--max-images", "200",
        "--max-side-px", "40", "--max-body-mib", "1",
    )  # fmt: skip
    yield found
    found.process.terminate()
    found.process.communicate(timeout=LIMIT_SECONDS)
    assert found.process.returncode == 0


def test_rewards_are_those_of_reward_score_bit_for_bit(served: Served, tmp_path: Path) -> None:
    faces = draw_faces(7)
    torch.set_num_threads(1)  # as there: sums are of other parts otherwise
    (tmp_path / "faces").mkdir()
    for number, face in enumerate(faces):
        PilImage.fromarray(face).save(tmp_path / "faces" / f"{number}.png")
    words = ("score", tmp_path / "faces", "--scorer", served.checkpoint, "--device", "cpu", "--batch-size", 3)
    assert main([*map(str, words), "--out", str(tmp_path / "rewards.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rewards.jsonl").read_text().splitlines()]
    wanted = {Path(row["image"]).name: row["value"] for row in rows}
    remote = RemoteReward(served.url, TOKEN)
    found = remote.score(faces)
    assert np.array_equal(found, np.float32([wanted[f"{number}.png"] for number in range(7)]))
    assert len(set(found.tolist())) == 7
    about = remote.describe()
    assert (about.name, about.version) == ("small", rows[0]["version"])
    with pytest.raises(UserError, match="refuses the token"):
        RemoteReward(served.url, "another-token").describe()


def test_the_examples_of_the_docs_are_answered(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREWARD_REWARD_TOKEN", TOKEN)
    blocks = read_blocks(ROOT / "docs" / "reward.md")
    (program,) = [block.text for block in blocks if block.language == "python"]
    ours: dict[str, Callable[..., list[float]]] = {}
    exec(program, ours)
    faces = draw_faces(2)
    wanted = RemoteReward(served.url).score(faces)
    assert np.array_equal(np.float32(ours["score"](served.url, faces)), wanted)
    assert np.array_equal(np.float32(ours["score"](served.url, faces, faces, ["a", None])), wanted)
    if shutil.which("curl"):
        (asked,) = [block.text for block in blocks if "curl" in block.text]
        PilImage.fromarray(faces[0]).save(tmp_path / "face.png")
        asked = asked.replace("http://127.0.0.1:8790", served.url)
        done = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["rewards"] == pytest.approx([wanted[0]], abs=1e-6)


def send_garbage(served: Served, garbage: bytes) -> None:
    """Connect, send, and leave."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), LIMIT_SECONDS) as connection:
        try:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the server has had enough
            pass


def storm(served: Served, requests: int, threads: int = 6) -> None:
    """So many requests from several threads, of which every fourth is honest and answered with its numbers."""
    bad = [one for name, one in BAD.items() if name not in FINE_HERE]
    faces = draw_faces(3)
    wanted = RemoteReward(served.url, TOKEN).score(faces)

    def ask(thread: int) -> None:
        remote = RemoteReward(served.url, TOKEN)
        with httpx.Client(base_url=served.url, timeout=LIMIT_SECONDS) as client:
            for number in range(thread, requests, threads):
                if number % 4 == 0:
                    assert np.array_equal(remote.score(faces), wanted)
                elif number % 40 == 1:
                    send_garbage(served, GARBAGE[number // 40 % len(GARBAGE)])
                else:
                    kind, body, _, _ = bad[number % len(bad)]
                    token = "wrong" if number % 7 == 0 else TOKEN
                    headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
                    answer = client.post("/score", content=body, headers=headers)
                    assert 400 <= answer.status_code < 500, (kind, body[:200], answer.text)
                    assert list(answer.json()) == ["error"]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, range(threads)))
    assert served.process.poll() is None


def test_hostile_requests_between_honest_ones_are_survived(served: Served) -> None:
    for garbage in GARBAGE:
        send_garbage(served, garbage)
    storm(served, 360)
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


@pytest.mark.slow
def test_ten_thousand_requests_are_survived_in_the_same_memory(served: Served) -> None:
    process = psutil.Process(served.process.pid)
    storm(served, 1_000)
    before, files = process.memory_info().rss, process.num_fds()
    storm(served, 10_000)
    assert process.memory_info().rss < before + 50 * 2**20
    assert process.num_fds() < files + 20


@pytest.fixture
def impatient(make_scorer: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Host and port of a server that waits a fifth of a second for headers, in a thread of this process."""
    monkeypatch.setattr(reward.serve.protocol, "HEADER_SECONDS", 0.2)
    app, listener = make_app(make_scorer(), LIMITS, 3), open_listener("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    wait_until(lambda: server.started)
    yield listener.getsockname()
    server.should_exit = True
    thread.join()
    app.state.desk.thread.shutdown()


@pytest.mark.parametrize(
    "beginning",
    [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\nHost:"],
    ids=["nothing", "half a line", "half a second request"],
)
def test_headers_that_do_not_come_are_not_waited_for(impatient: tuple[str, int], beginning: bytes) -> None:
    with socket.create_connection(impatient, 20) as connection:
        first, _, second = beginning.partition(b"\r\n\r\n")
        connection.sendall(first + (b"\r\n\r\n" if second else b""))
        if second:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.sendall(second)
        assert connection.recv(4096) == b"", "it is closed, long before anything else would do so"
    assert httpx.get(f"http://{impatient[0]}:{impatient[1]}/health").status_code == 200


def test_connections_without_end_are_not_kept(impatient: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward.serve.protocol, "HEADER_SECONDS", 60.0)
    monkeypatch.setattr(reward.serve.protocol, "MAX_CONNECTIONS", 5)
    kept = [socket.create_connection(impatient, 20) for _ in range(5)]
    with socket.create_connection(impatient, 20) as sixth:
        assert sixth.recv(1) == b""
    for connection in kept:
        connection.close()
    url = f"http://{impatient[0]}:{impatient[1]}"
    assert RemoteReward(url).score(draw_faces(2)).shape == (2,)


def test_a_signal_ends_it_after_what_it_is_scoring(served: Served) -> None:
    """The last of these tests: it ends the server of all."""
    faces, process = np.repeat(draw_faces(1), 200, axis=0), psutil.Process(served.process.pid)
    before = process.cpu_times().user
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(RemoteReward(served.url, TOKEN).score, faces)
        wait_until(lambda: process.cpu_times().user > before + 0.05, 0.005)
        assert not asked.done()
        served.process.send_signal(signal.SIGINT)
        said, _ = served.process.communicate(timeout=LIMIT_SECONDS)
        assert len(asked.result()) == 200
    assert (served.process.returncode, said) == (0, "stopped\n"), "nothing else was said all the time"
