"""Measure the cost of watching runs: `python -m benchmarks.watching`.

A temporary project of 1,000 runs of 60 progress lines each, one of them with 100,000 lines of ten values and still
growing. Every request of the Runs page is asked as the browser does: first, again when nothing changed, and again after
a line was appended. Prints milliseconds (the median of what is asked often) and bytes; the server is in this process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from annotate.judging.people import add_person
from db.models import Role, Run, RunState, utc_now
from db.session import Database, open_database
from runs.store import run_folder
from ui.context import Context
from ui.gate.access import load_secret
from ui.gate.address_token import AddressToken
from ui.server import make_app

NAMES = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("gradient_norm", "learning_rate", "logit_scale", "pairs_per_second", "gpu_gib"),
)
KINDS = ("reward train", "refl train", "annotate measure", "refl restore")
SHORT_LINES = 60
REPEATS = 20


def write_lines(file: Path, first: int, count: int, total: int, rng: random.Random) -> None:
    """Append so many progress lines."""
    with open(file, "a", encoding="utf-8") as stream:
        for step in range(first, first + count):
            values = {name: rng.random() for name in NAMES}
            stream.write(json.dumps({"time": 1e9 + step, "done": step, "total": total, **values}) + "\n")


def fill(database: Database, data: Path, runs: int, points: int) -> int:
    """So many runs, the last one live with so many lines; returns its id."""
    rng = random.Random(0)
    with database.write() as session:
        add_person(session, "ada", Role.admin)
        for number in range(runs):
            live = number == runs - 1
            config = {"train": {f"setting_{n}": n for n in range(40)}, "out": str(data / "rewards" / str(number))}
            state = RunState.running if live else RunState.finished
            # A run of another host is never looked for here.
            run = Run(kind=KINDS[number % 4], config=config, state=state, code_version="1", host="elsewhere", pid=1)
            run.started_at = utc_now()
            session.add(run)
            session.flush()
            folder = run_folder(data, run.id)
            folder.mkdir(parents=True)
            write_lines(folder / "progress.jsonl", 1, points if live else SHORT_LINES, 10 * points, rng)
        return run.id


def measure(client: TestClient, path: str, **more: Any) -> tuple[float, int]:
    """(milliseconds, bytes of the body) of one GET request."""
    began = time.perf_counter()
    answer = client.get(path, **more)
    milliseconds = 1_000 * (time.perf_counter() - began)
    assert answer.status_code in (200, 304), answer.text
    return milliseconds, len(answer.content)


def main(argv: list[str] | None = None) -> int:
    """Fill a project, ask, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--points", type=int, default=100_000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        database = open_database(data)
        try:
            number = fill(database, data, args.runs, args.points)
            watch(database, data, number, args.points)
        finally:
            database.close()
    return 0


def watch(database: Database, data: Path, number: int, points: int) -> None:
    """Ask for everything that the page asks for."""
    client = TestClient(make_app(Context(database=database, data=data)), base_url="http://127.0.0.1")
    client.get(AddressToken(load_secret(data)).put_into(""))
    client.post("/sign-in", data={"name": "ada"})
    rng = random.Random(1)
    file = run_folder(data, number) / "progress.jsonl"
    print(f"{'request':<28}{'first':>16}{'nothing new':>18}{'a new line':>18}")
    paths = {"table, 50 newest": "/api/runs", f"run of {points:,} lines": f"/api/runs/{number}"}
    for name, path in paths.items():
        first = measure(client, path)
        same, grown = [], []
        for turn in range(REPEATS):
            tag = client.get(path).headers["etag"]
            same.append(measure(client, path, headers={"If-None-Match": tag}))
            write_lines(file, points + 1 + turn, 1, 10 * points, rng)
            grown.append(measure(client, path, headers={"If-None-Match": tag}))
        print_row(name, first, same, grown)
    series = f"/api/runs/{number}/series"
    first = measure(client, series)
    same, grown = [], []
    for turn in range(REPEATS):
        since = client.get(series).json()["version"]
        same.append(measure(client, series, params={"since": since}))
        write_lines(file, points + 1_000 + turn, 1, 10 * points, rng)
        grown.append(measure(client, series, params={"since": since}))
    print_row("its series", first, same, grown)
    whole = [measure(client, series) for _ in range(REPEATS)]
    print(f"{'its series, another browser':<28}{show(whole)}")
    lineage = [measure(client, "/api/lineage") for _ in range(REPEATS)]
    print(f"{'lineage':<28}{show(lineage)}")


def print_row(name: str, first: tuple[float, int], *others: list[tuple[float, int]]) -> None:
    """A line of the table."""
    print(f"{name:<28}{show([first])}{''.join(f'  {show(some)}' for some in others)}")


def show(measured: list[tuple[float, int]]) -> str:
    """Median milliseconds and bytes."""
    milliseconds, size = (statistics.median(column) for column in zip(*measured, strict=True))
    return f"{milliseconds:>7.1f} ms {size / 1_000:>3.0f} kB".rjust(16)


if __name__ == "__main__":
    sys.exit(main())
