"""Time what the Overview page asks for as the project grows: `python -m benchmarks.overview [--pairs N]`.

Rows are written straight into temporary SQLite databases: sources of ten candidates, 45 pairs each, fifteen metric
values an image, seven pairs of ten judged by twenty people, the others labelled. Prints medians and the ratio to the
smallest project.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from annotate.judging.people import add_person
from benchmarks.autolabel import fill_values
from benchmarks.pair_queue import PAIRS_OF_A_SOURCE, fill_pairs, judge_pairs
from db.models import Image
from db.session import open_database
from ui.overview.routes import describe_overview

LIMIT_MS = 50.0
LABEL = (
    "INSERT INTO label (pair_id, origin, made_by, p_a, weight, created_at) "
    "SELECT id, 'svm', 'svm-1-benchmark', 0.9, 1, created_at FROM pair WHERE judgment_count = 0"
)


def time_overview(pairs: int, rounds: int) -> float:
    """Median milliseconds of a page's question in a project of so many pairs."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        database = open_database(data)
        with database.write() as session:
            image = Image(sha256="0" * 64, suffix=".png", width_px=8, height_px=8, size_bytes=1)
            session.add(image)
            session.flush()
            image_id = image.id
            people = [add_person(session, f"person {number}").id for number in range(20)]
        fill_pairs(database, pairs, [image_id])
        fill_values(database, -(-pairs // PAIRS_OF_A_SOURCE), np.random.default_rng(0))
        judge_pairs(database, "id % 10 < 7", people, 1)
        with database.write() as session:
            session.connection().exec_driver_sql(LABEL)
        taken = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            with database.read() as session:
                describe_overview(session, data)
            taken.append(1e3 * (time.perf_counter() - start))
        database.close()
        return statistics.median(taken[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print("| pairs | overview, ms | ratio |\n|---|---|---|")
    first = None
    for pairs in (1_000, args.pairs):
        taken = time_overview(pairs, args.rounds)
        first = first or taken
        print(f"| {pairs:,} | {taken:.1f} | {taken / first:.1f} |", flush=True)
    return 0 if taken <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
