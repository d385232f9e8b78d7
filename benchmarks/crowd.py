"""Let a crowd judge by HTTP and count what it lost: `python -m benchmarks.crowd [--db URL --workers 2 --people 500]`.

Each person is a task of one event loop with a connection of its own: an answer in two seconds on average, of which the
time from the request to the last byte counts (submit and next); what got no answer is sent again with the same uuid.
The app runs in processes of its own, with --auth; people come in by personal links. In the end every acknowledged
answer has to be in the database, once. `--kill` kills a worker by SIGKILL again and again meanwhile.

    python -m benchmarks.crowd                                                    # 50 people, SQLite, one process
    python -m benchmarks.crowd --db postgresql+psycopg://… --workers 2 --people 500 [--kill 3]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import uvloop
from PIL import Image as PilImage
from sqlalchemy import func, select

from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person, make_link_token
from db.errors import UserError
from db.images import add_image, probe_bytes
from db.models import Judgment, Role, Split, utc_now
from db.project import save_settings
from db.records import add_candidate, add_method, add_source
from db.session import Database, open_database

ROOT = Path(__file__).resolve().parents[1]
PAUSE_SECONDS = 2.0
AHEAD = 4
"""Pairs that a page holds besides the one that is looked at."""
METHODS = 8
PAIRS_OF_A_SOURCE = METHODS * (METHODS - 1) // 2
TARGETS_MS = {"sqlite": 50, "postgresql": 250}
"""Of the p95 of submit and next."""
AGAIN_SECONDS = 0.2


def fill(data: Path, url: str | None, people: int, answers: int) -> tuple[Database, list[str]]:
    """A project with about four times the pairs that so many answers need; (its database, the personal links)."""
    database = open_database(data, url)
    rng = np.random.default_rng(0)
    with database.write() as session:
        if session.scalar(select(func.count(Judgment.id))):
            raise SystemExit("the database is not empty; name an empty one with --db")
        settings = save_settings(session, {"judgments_per_pair": 3})
        images = []
        for _ in range(METHODS + 1):
            stream = io.BytesIO()
            PilImage.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, "PNG")
            images.append(add_image(session, data, probe_bytes(stream.getvalue(), "photo"), stream.getvalue()))
        methods = [add_method(session, f"method {number}") for number in range(METHODS)]
        for number in range(max(20, 4 * answers // 3 // PAIRS_OF_A_SOURCE)):
            source = add_source(session, f"face {number}", Split.train, lq=images[-1])
            for method, image in zip(methods, images, strict=False):
                add_candidate(session, source, method, image)
        pairs = make_pairs(session, settings).added
        make_link_token(add_person(session, "boss", Role.admin))
        crowd = [add_person(session, f"person {number}") for number in range(people)]
        for person in crowd:
            person.guidelines_seen_at = utc_now()
        links = [f"/enter/{make_link_token(person)}" for person in crowd]
    print(f"{people} people, {pairs:,} pairs that want 3 judgments each", flush=True)
    return database, links


@dataclass
class Seen:
    """What the crowd saw."""

    milliseconds: list[float] = field(default_factory=list)
    """Of the requests that brought an answer."""
    acknowledged: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    sent_again: int = 0
    counting: bool = False


class Person:
    """A page without a screen, on one connection that is opened again when it breaks."""

    def __init__(self, port: int, link: str, seen: Seen, seed: int) -> None:
        self.port, self.link, self.seen = port, link, seen
        self.rng = random.Random(seed)
        self.page, self.cookie = str(uuid4()), ""
        self.showings: list[str] = []
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def live(self, stop: asyncio.Event) -> None:
        """Come in, then answer until stopped; an answer that is under way is brought to its end."""
        await asyncio.sleep(PAUSE_SECONDS * self.rng.random())
        while not self.cookie:
            _, headers, _ = await self.ask("GET", self.link)
            self.cookie = "; ".join(value.split(";")[0] for name, value in headers if name == "set-cookie")
        events: list[dict[str, Any]] = []
        while not stop.is_set() or events:
            events = await self.answer(events)
            if not events:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), PAUSE_SECONDS * self.rng.uniform(0.5, 1.5))
        if self.streams is not None:
            self.streams[1].close()

    async def answer(self, again: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send what got no answer, or else a new one; what is to be sent again."""
        events = again
        if not events and len(self.showings) > AHEAD:
            choice = self.rng.choice(["left", "right", "tie"])
            shown = self.showings.pop(0)
            events = [{"type": "judge", "id": str(uuid4()), "showing": shown, "choice": choice, "seconds": 1.5}]
        want = AHEAD + 1 - len(self.showings)
        body = json.dumps({"events": events, "want": want, "holding": self.showings, "page": self.page}).encode()
        start = time.perf_counter()
        try:
            status, _, content = await self.ask("POST", "/api/label", body)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        if status != 200:
            self.seen.refused[str(status)] += 1
            self.seen.sent_again += bool(events)
            await asyncio.sleep(AGAIN_SECONDS * self.rng.uniform(0.5, 1.5))
            return events
        if events and self.seen.counting:
            self.seen.milliseconds.append(1000 * (time.perf_counter() - start))
        told = json.loads(content)
        for result in told["results"]:
            if result["status"] == "stored":
                self.seen.acknowledged.append(result["id"])
            else:
                self.seen.refused[result["error"]] += 1
        self.showings = [one for one in self.showings if one not in told["gone"]]
        self.showings += [pair["showing"] for pair in told["pairs"]]
        return []

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, list[tuple[str, str]], bytes]:
        """(status, headers, body) of an HTTP/1.1 request, by as little work as can be: the load shares the machine.

        Raises:
            OSError, asyncio.IncompleteReadError: the connection broke.
        """
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nCookie: {self.cookie}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = [line.partition(": ") for line in lines if line]
            headers = [(name.lower(), value) for name, _, value in pairs]
            told = dict(headers)
            content = await reader.readexactly(int(told.get("content-length", 0)))
        except (OSError, asyncio.IncompleteReadError):
            self.hang_up()
            raise
        if told.get("connection", "").lower() == "close":
            self.hang_up()
        return int(first.split()[1]), headers, content

    def hang_up(self) -> None:
        """Close the connection; the next request opens another."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


async def judge(port: int, server: int, links: list[str], seconds: float, kills: int) -> Seen:
    """Let them judge for so long; the first fifth does not count for the times, in which pages fill."""
    seen, stop = Seen(), asyncio.Event()
    people = [Person(port, link, seen, seed) for seed, link in enumerate(links)]
    tasks = [asyncio.create_task(person.live(stop)) for person in people]
    await asyncio.sleep(seconds / 5)
    seen.counting, spent = True, processor_seconds(server)
    for number in range(kills):
        await asyncio.sleep(seconds * 4 / 5 / (kills + 1))
        workers = sorted(psutil.Process(server).children(), key=lambda one: one.create_time())
        workers[number % len(workers)].send_signal(signal.SIGKILL)
        print(f"killed a worker after {len(seen.acknowledged):,} acknowledged answers", flush=True)
    await asyncio.sleep(seconds * 4 / 5 / (kills + 1))
    if not kills:
        each = 1000 * (processor_seconds(server) - spent) / max(1, len(seen.milliseconds))
        print(f"the app's processor time an answer: {each:.1f} ms, all else that it did included")
    stop.set()
    await asyncio.gather(*tasks)
    _, _, text = await Person(port, "", seen, 0).ask("GET", "/metrics")
    counts = re.findall(r'label_seconds_count\{worker="(\d+)"\} (\d+)', text.decode())
    shares = ", ".join(f"worker {number} {count}" for number, count in counts)
    print(f"requests to /api/label since each worker's start: {shares}")
    return seen


def processor_seconds(server: int) -> float:
    """Of the server and its workers."""
    own = psutil.Process(server)
    return sum(float(sum(one.cpu_times()[:2])) for one in [own, *own.children()])


def check(database: Database, seen: Seen) -> tuple[int, int]:
    """(acknowledged and not in the database, answers that are in it twice)."""
    with database.read() as session:
        stored = set(session.scalars(select(Judgment.uuid)))
        showing = (Judgment.person_id, Judgment.pair_id, Judgment.repeat_no)
        twice = select(func.count()).where(Judgment.superseded_at.is_(None)).group_by(*showing)
        duplicates = sum(count - 1 for count in session.scalars(twice))
    return len(set(seen.acknowledged) - stored), duplicates


def start_server(data: Path, url: str | None, workers: int) -> tuple[subprocess.Popen[str], int]:
    """(the process, its port)."""
    environment = {**os.environ, **({} if url is None else {"FACEREWARD_DB": url})}
    command = [sys.executable, "app.py", "--data", str(data), "--port", "0", "--auth", "--workers", str(workers)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if "ready at" not in line:
        raise SystemExit(f"the server did not start: {line!r}")
    return process, int(line.partition("ready at ")[2].split()[0].rpartition(":")[2])


def main() -> int:
    """Print the figures; exit status 1 where an answer was lost or doubled, or the target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", help="an empty PostgreSQL database; else a SQLite file of its own")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kill", type=int, default=0, metavar="TIMES")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        answers = int(args.people * args.seconds / PAUSE_SECONDS)
        try:
            database, links = fill(data, args.db, args.people, answers)
        except UserError as error:
            raise SystemExit(str(error)) from error
        process, port = start_server(data, args.db, args.workers)
        try:
            load = os.getloadavg()[0]
            seen = uvloop.run(judge(port, process.pid, links, args.seconds, args.kill))
        finally:
            process.terminate()
            process.wait()
        lost, duplicates = check(database, seen)
        target = TARGETS_MS[database.engine.dialect.name]
        database.close()
    p50, p95, p99 = np.percentile(seen.milliseconds, [50, 95, 99])
    print(f"load of the machine before and after (1 minute): {load:.1f}, {os.getloadavg()[0]:.1f}")
    print(f"submit and next, {len(seen.milliseconds):,} times: p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms")
    print(f"{len(seen.acknowledged):,} acknowledged, {lost} lost, {duplicates} twice, {seen.sent_again} sent again")
    for words, count in seen.refused.most_common(5):
        print(f"  {count} x {words}")
    missed = p95 > target and not args.kill
    print(f"p95 of {target} ms or less: {'missed' if missed else 'met' if not args.kill else 'not asked of this'}")
    return 1 if lost or duplicates or missed else 0


if __name__ == "__main__":
    sys.exit(main())
