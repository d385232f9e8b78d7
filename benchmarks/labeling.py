"""Time labelling with 100,000 pairs or tasks of four and 4 to 100 people: `python -m benchmarks.labeling`.

Real PNG images, app.py in a process of its own, http clients as annotators, headless Chromium as one of them. A key
press is timed from its event to the frame after all next images are in the page; a swap of two empty boxes is timed
the same way for comparison. Prints one table; exits with 1 where a target is missed. `--people`, `--while` and `--soak`
measure many people alone, without a browser (see `benchmarks.label_load`), `--tasks` the page that asks for the best of
four alone.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import update

from annotate.judging.people import add_person
from benchmarks.label_load import (
    CLIENTS,
    DISTURBANCES,
    Row,
    add_people,
    origin_of,
    read_memory_mib,
    soak,
    start_server,
    time_people,
)
from benchmarks.pair_queue import CANDIDATES, PAIRS_OF_A_SOURCE, fill_pairs
from db.images import add_image, probe_bytes
from db.models import Person, Role, utc_now
from db.project import save_settings
from db.session import Database, open_database
from metrics.rankings import LETTERS

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PEOPLE = ["ada", "ben", "cleo", "dan"]
PAIR_KEYS, TASK_KEYS = ("ArrowLeft", "ArrowRight", "ArrowDown"), ("1", "2", "3", "4", "ArrowDown")
TASK_SIZE = 4
SKIPPED = 3
"""First measurements of each series that do not count: caches and the browser's compiler are cold."""
WATCH = """
window.paints = [];
document.addEventListener("facereward:painted", (event) => window.paints.push(event.detail));
document.addEventListener("keydown", (event) => {
  if (event.key !== "F9") return;
  const box = window.noop ??= document.body.appendChild(document.createElement("div"));
  box.replaceChildren(document.createElement("i"), document.createElement("i"));
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => window.paints.push({ keyTime: event.timeStamp, paintedTime: performance.now() });
    channel.port2.postMessage(null);
  });
});
"""


def make_images(count: int) -> list[bytes]:
    """Crops of a public-domain portrait, 512 x 512, with a little noise: PNG files of about 400 kB."""
    from PIL import Image as PilImage
    from skimage.data import astronaut

    rng = np.random.default_rng(0)
    photo = PilImage.fromarray(astronaut())  # type: ignore[no-untyped-call]
    files = []
    for _ in range(count):
        size = int(rng.integers(300, 512))
        left, top = rng.integers(0, 512 - size + 1, 2)
        crop = photo.resize((512, 512), box=(left, top, left + size, top + size))
        noisy = np.asarray(crop) + rng.normal(0, 1.5, (512, 512, 3))
        stream = io.BytesIO()
        PilImage.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    return files


def make_project(data: Path, pairs: int, images: int) -> float:
    """Fill the data folder; returns the images' mean size in kB."""
    files = make_images(images)
    database = open_database(data)
    with database.write() as session:
        rows = [add_image(session, data, probe_bytes(content, "photo"), content) for content in files]
        for name in PEOPLE:
            add_person(session, name, Role.admin).guidelines_seen_at = utc_now()
    fill_pairs(database, pairs, [row.id for row in rows])
    database.close()
    return statistics.mean(map(len, files)) / 1000


def fill_tasks(database: Database, tasks: int) -> None:
    """So many tasks of four of the ten candidates of a source, all wanting one judgment; the project asks for these."""
    rng = random.Random(0)
    now = "2026-01-01 00:00:00"
    sources = -(-tasks // PAIRS_OF_A_SOURCE)
    rows, members = [], []
    for number in range(tasks):
        key = f"{rng.getrandbits(128):032x}"
        rows.append((number + 1, key, number % sources, TASK_SIZE, rng.randrange(2**31), True, 1, 0, now))
        chosen = sorted(rng.sample(range(CANDIDATES), TASK_SIZE))
        members += [
            (number + 1, letter, number % sources * CANDIDATES + one)
            for letter, one in zip(LETTERS, chosen, strict=False)
        ]
    columns = "id, key, source_id, size, shuffle_key, reserved, judgments_wanted, judgment_count, created_at"
    with database.write() as session:
        connection = session.connection().connection.driver_connection
        assert connection is not None
        connection.executemany(f"INSERT INTO task ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany("INSERT INTO task_candidate (task_id, letter, candidate_id) VALUES (?, ?, ?)", members)
        save_settings(session, {"task_size": TASK_SIZE})
        # The settings are stored for the first time, and with them a question that nobody has read the guidelines of.
        session.execute(update(Person).values(guidelines_seen_at=utc_now()))


def sign_in(url: str, name: str) -> dict[str, str]:
    """The cookies of a person who opened the address and signed in."""
    with httpx.Client() as client:
        client.get(url)
        client.post(f"{origin_of(url)}/sign-in", data={"name": name})
        return dict(client.cookies)


@dataclass
class Annotator:
    """A page without a screen: four pairs ahead, one answer a request."""

    url: str
    name: str
    pause_seconds: float = 0.0
    times_ms: list[float] = field(default_factory=list)

    def run(self, answers: int, stop: threading.Event) -> None:
        """Answer so often, or until stopped."""
        rng = random.Random(self.name)
        held: list[dict[str, Any]] = []
        connection = http.client.HTTPConnection(origin_of(self.url).removeprefix("http://"))
        cookie = "; ".join(f"{key}={value}" for key, value in sign_in(self.url, self.name).items())
        headers = {"Content-Type": "application/json", "Cookie": cookie}
        for number in range(answers + 1):
            if stop.wait(self.pause_seconds * rng.uniform(0.5, 1.5)):
                return
            events = []
            if number:
                view = held.pop(0)
                choice: dict[str, Any] = {"choice": rng.choice(["left", "right", "tie"])}
                if "images" in view:
                    choice = {"choice": "ranked", "tiers": [[rng.randrange(len(view["images"]))]]}
                events = [{"type": "judge", "id": str(uuid4()), "showing": view["showing"], "seconds": 1.0, **choice}]
            holding = [view["showing"] for view in held]
            body = json.dumps({"events": events, "want": 5 - len(held), "holding": holding})
            start = time.perf_counter()
            connection.request("POST", "/api/label", body, headers)
            response = connection.getresponse()
            reply = json.loads(response.read())
            while response.status == 429:  # further ahead of annotate.judging.pace than anybody who looks
                time.sleep(int(response.headers["Retry-After"]))
                start = time.perf_counter()
                connection.request("POST", "/api/label", body, headers)
                response = connection.getresponse()
                reply = json.loads(response.read())
            if number > SKIPPED:
                self.times_ms.append(1000 * (time.perf_counter() - start))
            held += reply["pairs"]


def run_annotators(url: str, names: list[str], answers: int, pause_seconds: float) -> list[float]:
    """Milliseconds of every submit + next of these people at once."""
    annotators = [Annotator(url, name, pause_seconds) for name in names]
    threads = [threading.Thread(target=one.run, args=(answers, threading.Event())) for one in annotators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value for one in annotators for value in one.times_ms]


def open_page(browser: Browser, url: str, name: str) -> Page:
    """A page of its own profile, signed in, that notes every paint; its first pair is painted."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.add_cookies([{"name": key, "value": value, "url": url} for key, value in sign_in(url, name).items()])
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(origin_of(url))
    page.wait_for_function("() => window.paints.length > 0")
    return page


def time_keys(page: Page, keys: list[str], pause_seconds: float) -> list[float]:
    """Milliseconds from each key's event to its paint."""
    times = []
    for key in keys:
        time.sleep(pause_seconds)
        seen = page.evaluate("window.paints.length")
        page.keyboard.press(key)
        page.wait_for_function("(seen) => window.paints.length > seen", arg=seen)
        times.append(page.evaluate("window.paints.at(-1).paintedTime - window.paints.at(-1).keyTime"))
    return times[SKIPPED:]


def time_browser(url: str, keys: int, choices: tuple[str, ...], shown: str, targets: tuple[int, int]) -> list[Row]:
    """Paint times in Chromium: one person there, the three others each answering once per second.

    Args:
        choices: keys that answer.
        shown: what one key brings, such as "both next images"; `targets` are its median and p95 in ms.
    """
    stop = threading.Event()
    others = [threading.Thread(target=Annotator(url, name, 1.0).run, args=(10**6, stop)) for name in PEOPLE[1:]]
    for thread in others:
        thread.start()
    answers = [random.Random(number).choice(choices) for number in range(keys + SKIPPED)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        first = []
        for _ in range(5):
            page = open_page(browser, url, PEOPLE[0])
            first.append(page.evaluate("window.paints[0].paintedTime"))
            page.context.close()
        page = open_page(browser, url, PEOPLE[0])
        floor = time_keys(page, ["F9"] * len(answers), 0.2)
        local = time_keys(page, answers, 0.3)
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        speed = 20e6 / 8
        conditions = {"offline": False, "latency": 40, "downloadThroughput": speed, "uploadThroughput": speed}
        network.send("Network.emulateNetworkConditions", conditions)
        slow = time_keys(page, answers, 1.0)
        browser.close()
    stop.set()
    for thread in others:
        thread.join()
    return [
        Row("a swap of two empty boxes, key to painted (the floor)", floor),
        Row(f"key press to {shown} painted, local", local, *targets),
        Row("the same over 40 ms, 20 Mbit/s, one answer per second", slow, *targets),
        Row("the first painted after opening the page, nothing cached", first, p95_target=2000),
    ]


def main() -> int:
    """Measure, print the table; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs in the database, and tasks")
    parser.add_argument("--tasks", action="store_true", help="only the page of tasks")
    parser.add_argument("--images", type=int, default=300, help="different images")
    parser.add_argument("--keys", type=int, default=60, help="key presses in each series")
    parser.add_argument("--answers", type=int, default=200, help="answers of each http client")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of each number of people")
    parser.add_argument("--people", action="store_true", help="only 4, 20, 50 and 100 people at once, no browser")
    parser.add_argument("--while", dest="beside", choices=[name for name in DISTURBANCES if name != "nothing"])
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="50 people for so long, and the memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="facereward-labeling-") as folder:
        data = Path(folder) / "data"
        mean_kb = make_project(data, args.pairs, args.images)
        print(f"{args.pairs:,} pairs, {args.images} PNG images of 512 x 512, {mean_kb:.0f} kB on average", flush=True)
        rows: list[Row] = []
        torch = False
        if not (args.people or args.beside or args.soak or args.tasks):
            rows, torch = time_pages(data, args.keys, args.answers)
        if args.tasks:
            rows += time_tasks(data, args.pairs, args.keys)
            return report(rows)
        links = add_people(data, max(CLIENTS) + 1)
        process, url, _ = start_server(data, "--auth")
        try:
            if args.soak:
                rows += soak(url, process.pid, links, args.soak)
            else:
                rows += time_people(data, url, process.pid, links, args.seconds, args.beside)
        finally:
            process.terminate()
            process.wait()
    if not (args.people or args.beside or args.soak):
        print(f"torch in the server's process: {'yes' if torch else 'no'} (target: no)")
    return max(report(rows), int(torch))


def report(rows: list[Row]) -> int:
    """Print the table; 1 where a target is missed."""
    print(f"{'':<58} {'median':>9} {'p95':>9} {'':<4} {'target':>10}")
    for row in rows:
        print(row)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, this benchmark's own work included")
    return int(any(row.missed() for row in rows))


def time_tasks(data: Path, tasks: int, keys: int) -> list[Row]:
    """The rows of a project that asks for the best of four; the project stays one."""
    database = open_database(data)
    fill_tasks(database, tasks)
    database.close()
    process, url, _ = start_server(data)
    try:
        paced = run_annotators(url, PEOPLE, 50, 0.5)
        return [
            Row("of tasks: submit + next, four people, each two answers per second", paced, p95_target=15),
            *time_browser(url, keys, TASK_KEYS, "the four next images", (50, 70)),
        ]
    finally:
        process.terminate()
        process.wait()


def time_pages(data: Path, keys: int, answers: int) -> tuple[list[Row], bool]:
    """(the rows of four people, a browser and the start; whether the server loaded torch)."""
    process, url, ready_ms = start_server(data)
    try:
        paced = run_annotators(url, PEOPLE, answers // 4, 0.5)
        burst = run_annotators(url, PEOPLE, answers, 0.0)
        alone = run_annotators(url, PEOPLE[:1], answers, 0.0)
        rows = [
            Row("submit + next, four people, each two answers per second", paced, p95_target=15),
            Row("submit + next, four clients without a pause", burst),
            Row("submit + next, one client without a pause", alone),
            *time_browser(url, keys, PAIR_KEYS, "both next images", (35, 50)),
            Row("server ready after its start", [ready_ms], p95_target=6000),
            Row("server's memory (PSS) after all this", [read_memory_mib(process.pid)], p95_target=250, unit="MiB"),
        ]
        return rows, "torch" in Path(f"/proc/{process.pid}/maps").read_text()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
