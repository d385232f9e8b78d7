"""Time many people on the labelling page, alone and beside what disturbs them; see `benchmarks.labeling`.

Each person is a thread with a connection of its own: an answer in two seconds on average, then the new pair's images,
one after the other. The server is app.py with --auth in a process of its own; people come in by personal links.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import psutil
from PIL import Image as PilImage

from annotate.judging.people import add_person, make_link_token
from db.models import Role, utc_now
from db.session import open_database

ROOT = Path(__file__).resolve().parents[1]
PAUSE_SECONDS = 2.0
AHEAD = 4
"""Pairs that a page holds besides the one that is looked at."""
CLIENTS = (4, 20, 50, 100)
P95_MS = 60
"""Limit of submit + next for 50 people; twice that beside a disturbance."""
COST_MS = 6
"""Processor time of the server for one submit + next."""
PASSWORD_CONNECTIONS = 40
FLOOD_CONNECTIONS = 8
IMPORT_IMAGES = 100_000
IDLE_SECONDS = 10.0
SOAK_STEP_SECONDS = 30.0
MEMORY_CHANGE = 0.05


@dataclass
class Row:
    """One line of the table; times in ms."""

    what: str
    values: list[float]
    median_target: float | None = None
    p95_target: float | None = None
    unit: str = "ms"

    def missed(self) -> bool:
        """Whether a target is exceeded."""
        over = [(self.median_target, statistics.median(self.values)), (self.p95_target, compute_p95(self.values))]
        return any(target is not None and value > target for target, value in over)

    def __str__(self) -> str:
        targets = "/".join("–" if target is None else f"{target:g}" for target in (self.median_target, self.p95_target))
        verdict = "" if targets == "–/–" else "missed" if self.missed() else "met"
        numbers = f"{statistics.median(self.values):9.1f} {compute_p95(self.values):9.1f}"
        return f"{self.what:<58} {numbers} {self.unit:<4} {targets:>10}  {verdict:<6} n={len(self.values)}"


def compute_p95(values: list[float]) -> float:
    """The value that 95 % do not exceed."""
    return float(np.percentile(values, 95))


def start_server(data: Path, *options: str) -> tuple[subprocess.Popen[str], str, float]:
    """(the process, its address, milliseconds from its start to its first answer)."""
    start = time.perf_counter()
    command = [sys.executable, "app.py", "--data", str(data), "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if "ready at" not in line:
        raise SystemExit(f"the server did not start: {line!r}")
    url = line.partition("ready at ")[2].split()[0]
    while True:
        try:
            httpx.get(f"{origin_of(url)}/static/icon.svg").raise_for_status()
            return process, url, 1000 * (time.perf_counter() - start)
        except httpx.TransportError:
            time.sleep(0.02)


def origin_of(url: str) -> str:
    """A server's address without the token that app.py prints with it."""
    return url.partition("/?")[0]


def read_memory_mib(pid: int) -> float:
    """Proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def add_people(data: Path, count: int) -> list[str]:
    """So many annotators and an admin; gives the annotators' personal links."""
    database = open_database(data)
    with database.write() as session:
        make_link_token(add_person(session, "boss", Role.admin))
        people = [add_person(session, f"person {number}") for number in range(count)]
        for person in people:
            person.guidelines_seen_at = utc_now()
        links = [f"/enter/{make_link_token(person)}" for person in people]
    database.close()
    return links


def enter(url: str, link: str) -> str:
    """The cookies of who follows a personal link, as a header's value."""
    with httpx.Client() as client:
        client.get(f"{origin_of(url)}{link}")
        return "; ".join(f"{key}={value}" for key, value in client.cookies.items())


@dataclass
class Times:
    """Times that the people of one measurement saw."""

    label_ms: list[float] = field(default_factory=list)
    """Submit and next, those alone that brought an answer."""
    image_ms: list[float] = field(default_factory=list)
    refused: int = 0
    """Answers of another status than 200."""
    cost_ms: float = 0.0
    """Processor time of the server for each submit + next, its images and all else that it did included."""


@dataclass
class Client:
    """One person's page without a screen."""

    url: str
    cookie: str
    times: Times
    seed: int
    with_images: bool = True
    pause_seconds: float = PAUSE_SECONDS

    def run(self, stop: threading.Event) -> None:
        """Answer, and look at the new pair, until stopped."""
        rng = random.Random(self.seed)
        page, showings = str(uuid4()), list[str]()
        connection = http.client.HTTPConnection(origin_of(self.url).removeprefix("http://"))
        stop.wait(self.pause_seconds * rng.random())  # they did not come all at once
        while not stop.wait(self.pause_seconds * rng.uniform(0.5, 1.5)):
            events = []
            if len(showings) > AHEAD:
                answer = {"id": str(uuid4()), "showing": showings[0], "choice": rng.choice(["left", "right", "tie"])}
                events = [{"type": "judge", "seconds": 1.0, **answer}]
            held = showings[len(events) :]
            body = {"events": events, "want": AHEAD + 1 - len(held), "holding": held, "page": page}
            status, milliseconds, content = self._ask(connection, "POST", "/api/label", json.dumps(body))
            if status != 200:
                self.times.refused += 1
                continue
            if events:
                self.times.label_ms.append(milliseconds)
            pairs: list[dict[str, Any]] = json.loads(content)["pairs"]
            showings = held + [pair["showing"] for pair in pairs]
            addresses = [pair[side]["url"] for pair in pairs for side in ("left", "right", "lq") if pair[side]]
            for address in addresses if self.with_images else ():
                status, milliseconds, _ = self._ask(connection, "GET", address)
                self.times.image_ms.append(milliseconds)
                self.times.refused += status != 200

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None
    ) -> tuple[int, float, bytes]:
        """(status, milliseconds until the last byte, content)."""
        start = time.perf_counter()
        connection.request(method, path, body, {"Content-Type": "application/json", "Cookie": self.cookie})
        response = connection.getresponse()
        content = response.read()
        return response.status, 1000 * (time.perf_counter() - start), content


def measure(
    url: str, pid: int, cookies: list[str], seconds: float, *, with_images: bool = True, pause: float = PAUSE_SECONDS
) -> Times:
    """Let these people judge for so long; the first fifth, in which their pages fill, does not count."""
    times, stop = Times(), threading.Event()
    clients = [Client(url, cookie, times, seed, with_images, pause) for seed, cookie in enumerate(cookies)]
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 5)
    skipped, before = len(times.label_ms), _processor_ms(pid)
    time.sleep(seconds * 4 / 5)
    counted = times.label_ms[skipped:]
    times.cost_ms = (_processor_ms(pid) - before) / max(len(counted), 1)
    stop.set()
    for thread in threads:
        thread.join()
    times.label_ms = counted
    return times


def _processor_ms(pid: int) -> float:
    spent = psutil.Process(pid).cpu_times()
    return 1000 * float(spent.user + spent.system)


@contextmanager
def nothing(url: str, data: Path, link: str) -> Iterator[None]:  # noqa: ARG001
    """No disturbance."""
    yield


@contextmanager
def passwords(url: str, data: Path, link: str) -> Iterator[None]:  # noqa: ARG001
    """Connections that post wrong passwords, each again as soon as it is answered."""

    def guess(number: int, stop: threading.Event) -> None:
        connection = http.client.HTTPConnection(origin_of(url).removeprefix("http://"))
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        while not stop.is_set():
            connection.request("POST", "/sign-in", f"name=person+{number}&password=wrong{uuid4()}", headers)
            connection.getresponse().read()

    with _in_threads(PASSWORD_CONNECTIONS, guess):
        yield


@contextmanager
def flood(url: str, data: Path, link: str) -> Iterator[None]:  # noqa: ARG001
    """One annotator with several connections, who answers and asks without a pause."""
    cookie = enter(url, link)
    with _in_threads(
        FLOOD_CONNECTIONS, lambda number, stop: Client(url, cookie, Times(), number, False, 0.0).run(stop)
    ):
        yield


@contextmanager
def import_images(url: str, data: Path, link: str) -> Iterator[None]:  # noqa: ARG001
    """`python -m annotate import` of IMPORT_IMAGES small images into the same database."""
    folder = data.parent / "to-import"
    make_small_images(folder, IMPORT_IMAGES)
    command = [sys.executable, "-m", "annotate", "import", str(folder), "--data", str(data)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        done = process.poll() is not None
        print(f"the import {'ended within' if done else 'was still at work after'} {time.perf_counter() - start:.0f} s")
    finally:
        process.terminate()
        process.wait()


def make_small_images(folder: Path, count: int) -> None:
    """Folders of an lq and four methods with so many different PNG files of 32 x 32 pixels."""
    rng = np.random.default_rng(0)
    for place in range(count):
        source, kind = divmod(place, 5)
        path = folder / ("lq", "one", "two", "three", "four")[kind] / f"face{source:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PilImage.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path, compress_level=0)


@contextmanager
def _in_threads(count: int, work: Callable[[int, threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(number, stop)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


DISTURBANCES = {"nothing": nothing, "passwords": passwords, "import": import_images, "flood": flood}


def time_people(data: Path, url: str, pid: int, links: list[str], seconds: float, beside: str | None) -> list[Row]:
    """Submit and next for 4, 20, 50 and 100 people; or for 50, alone and then beside a disturbance."""
    flooder, *others = links
    cookies = [enter(url, link) for link in others]
    rows = []
    series = [(count, "nothing") for count in CLIENTS] if beside is None else [(50, "nothing"), (50, beside)]
    for count, disturbance in series:
        with DISTURBANCES[disturbance](url, data, flooder):
            times = measure(url, pid, cookies[:count], seconds)
        what = f"{count} people" + ("" if disturbance == "nothing" else f" while {disturbance}")
        target = None if count != 50 else P95_MS if disturbance == "nothing" else 2 * P95_MS
        rows.append(Row(f"submit + next, {what}, an answer in 2 s", times.label_ms, p95_target=target))
        rows.append(Row(f"  an image of theirs ({times.refused} requests refused)", times.image_ms))
        rows.append(Row("  the server's processor time an answer, images included", [times.cost_ms]))
    if beside is None:
        before = _processor_ms(pid)
        time.sleep(IDLE_SECONDS)
        idle_ms = (_processor_ms(pid) - before) / IDLE_SECONDS
        plain = measure(url, pid, cookies[:50], seconds, with_images=False)
        rows.append(Row("the server's processor time in a second without visitors", [idle_ms]))
        own_ms = plain.cost_ms - idle_ms * seconds * 4 / 5 / len(plain.label_ms)
        rows.append(Row("its processor time of a submit + next, without that", [own_ms], p95_target=COST_MS))
    return rows


def soak(url: str, pid: int, links: list[str], minutes: float) -> list[Row]:
    """Memory of the server while 50 people judge for so long; the first minute, in which it fills, does not count."""
    cookies = [enter(url, link) for link in links[:50]]
    kept: list[float] = []
    end = time.monotonic() + 60 * minutes

    def note() -> None:
        time.sleep(min(60.0, 30 * minutes))
        while time.monotonic() < end:
            kept.append(read_memory_mib(pid))
            print(f"{(end - time.monotonic()) / 60:5.1f} minutes left, memory (PSS) {kept[-1]:.1f} MiB", flush=True)
            time.sleep(SOAK_STEP_SECONDS)

    watcher = threading.Thread(target=note)
    watcher.start()
    times = measure(url, pid, cookies, 60 * minutes)
    watcher.join()
    quarter = max(1, len(kept) // 4)
    first, last = statistics.mean(kept[:quarter]), statistics.mean(kept[-quarter:])
    return [
        Row(f"submit + next over {minutes:g} minutes, 50 people", times.label_ms, p95_target=P95_MS),
        Row("memory (PSS) of the last quarter", kept[-quarter:], unit="MiB"),
        Row(
            "its change since the first",
            [100 * abs(last / first - 1)],
            p95_target=100 * MEMORY_CHANGE,
            unit="%",
        ),
    ]
