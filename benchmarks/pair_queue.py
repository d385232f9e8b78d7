"""Time next_pair and record_judgment as the pair table grows: `python -m benchmarks.pair_queue`.

Rows are written straight into a temporary SQLite database; then one answer and one new pair are timed inside a write
session, with three other pairs held ahead, as a page does; at random, and in an active order. Prints medians and their
ratio to the smallest table.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from sqlalchemy import select

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.pairs import SHUFFLE_RANGE, is_reserved, lease_pairs
from annotate.judging.people import add_person
from annotate.labeler.active import SHORTLIST_LENGTH, replace_shortlists
from db.models import Choice, Image, Pair, Picked, Side, Split
from db.project import ProjectSettings
from db.session import Database, open_database

CANDIDATES = 10
PAIRS_OF_A_SOURCE = CANDIDATES * (CANDIDATES - 1) // 2
PEOPLE = 5
AHEAD = 3
LIMIT = 2.0
LISTED = "id IN (SELECT pair_id FROM shortlist) AND judgment_count = 0"


def fill_pairs(database: Database, pairs: int, image_ids: list[int]) -> None:
    """So many pairs of ten candidates per source, all wanting one judgment; the images take turns."""
    rng = random.Random(0)
    now = "2026-01-01 00:00:00"
    sources = -(-pairs // PAIRS_OF_A_SOURCE)
    sides = [(first, second) for first in range(CANDIDATES) for second in range(first)]

    def pair_row(number: int) -> tuple[object, ...]:
        source, place = divmod(number, PAIRS_OF_A_SOURCE)
        a, b = (source * CANDIDATES + side for side in sides[place])
        key = f"{rng.getrandbits(128):032x}"
        reserved = is_reserved(key, Split.train)
        return number + 1, key, source, a, b, rng.randrange(SHUFFLE_RANGE), reserved, 1, 0, now

    tables: list[tuple[str, Iterable[tuple[object, ...]]]] = [
        ("method (id, name, settings, created_at)", ((n, f"m{n}", "{}", now) for n in range(CANDIDATES))),
        (
            "source (id, key, group_key, split, lq_image_id, created_at)",
            ((n, f"s{n}", f"s{n}", "train", image_ids[n % len(image_ids)], now) for n in range(sources)),
        ),
        (
            "candidate (id, source_id, method_id, image_id, seed, created_at)",
            (
                (n, n // CANDIDATES, n % CANDIDATES, image_ids[n % len(image_ids)], 0, now)
                for n in range(sources * CANDIDATES)
            ),
        ),
        (
            "pair (id, key, source_id, a_id, b_id, shuffle_key, reserved, judgments_wanted, judgment_count, "
            "created_at)",
            map(pair_row, range(pairs)),
        ),
    ]
    with database.write() as session:
        connection = session.connection().connection.driver_connection
        assert connection is not None
        for table, rows in tables:
            marks = ", ".join("?" * (table.count(",") + 1))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def judge_pairs(database: Database, condition: str, people: list[int], wanted: int) -> None:
    """Have people judge, in turn, every pair that fits, and let each pair want so many judgments."""
    whose = " ".join(f"WHEN {place} THEN {person}" for place, person in enumerate(people))
    with database.write() as session:
        run = session.connection().exec_driver_sql
        run(
            "INSERT INTO judgment (uuid, pair_id, person_id, repeat_no, choice, reasons, shown_left, view_mode, "
            f"seconds, created_at) SELECT lower(hex(randomblob(18))), id, CASE id % {len(people)} {whose} END, "
            f"0, 'a', '[]', 'a', 'fit', 1.0, created_at FROM pair WHERE {condition}"
        )
        run(f"UPDATE pair SET judgment_count = judgment_count + 1 WHERE {condition}")
        run(f"UPDATE pair SET judgments_wanted = {wanted}")


def list_pairs(database: Database) -> None:
    """A full shortlist of pairs that nobody judged, where there are any."""
    with database.write() as session:
        free = select(Pair.id).where(Pair.reserved.is_(False), Pair.queue_level == 0).limit(SHORTLIST_LENGTH)
        replace_shortlists(session, {Picked.uncertain: list(session.scalars(free))})


def time_labelling(
    database: Database, people: list[int], rounds: int, settings: ProjectSettings
) -> tuple[float, float]:
    """(record_judgment, lease_pairs) median milliseconds, people taking turns, each holding pairs ahead."""
    rng = random.Random(1)
    showing: dict[int, list[tuple[int | None, int, Side | None]]] = {person: [] for person in people}
    record_ms, next_ms = [], []
    for turn in range(rounds * len(people)):
        person = people[turn % len(people)]
        ahead = showing[person]
        with database.write() as session:
            start = time.perf_counter()
            if ahead:
                pair_id, repeat_no, side = ahead.pop(0)
                record_judgment(session, person, Answer(str(uuid4()), pair_id, repeat_no, side, Choice.a, 1.0))
            middle = time.perf_counter()
            holding = [pair_id for pair_id, _, _ in ahead if pair_id is not None]
            leases = lease_pairs(session, person, settings, rng, count=AHEAD + 1 - len(ahead), holding=holding)
            end = time.perf_counter()
            showing[person] = ahead + [(lease.pair_id, lease.repeat_no, lease.shown_left) for lease in leases]
        if turn >= 3 * len(people):  # the first turns fill the page and compile the statements
            record_ms.append(1000 * (middle - start))
            next_ms.append(1000 * (end - middle))
    return statistics.median(record_ms), statistics.median(next_ms)


def main() -> int:
    """Print the table; exit 1 where something grew beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="pairs")
    parser.add_argument("--rounds", type=int, default=200, help="answers per person in each measurement")
    args = parser.parse_args()
    smallest: dict[str, tuple[float, float]] = {}
    worst = 0.0
    print(f"{'pairs':>9}  {'state':<34} {'record ms':>9} {'ratio':>6} {'next ms':>9} {'ratio':>6}")
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix="facereward-queue-") as folder:
            database = open_database(Path(folder))
            with database.write() as session:
                image = Image(sha256=64 * "0", suffix=".png", width_px=8, height_px=8, size_bytes=1)
                session.add_all([image, *(add_person(session, f"person {number}") for number in range(PEOPLE))])
            fill_pairs(database, size, [image.id])
            everyone = list(range(1, PEOPLE))
            at_random, uncertain = ProjectSettings(), ProjectSettings(order="uncertain")
            steps = [
                ("fresh, one person", None, [1], at_random),
                ("half judged, one person", ("id % 2 = 0 AND judgment_count = 0", everyone, 1), [1], at_random),
                ("half judged, four people", None, everyone, at_random),
                ("half judged, four, uncertain first", None, everyone, uncertain),
                ("the same, reserve used up", ("reserved AND judgment_count = 0", everyone, 1), everyone, uncertain),
                ("the same, list used up too", (LISTED, everyone, 1), everyone, uncertain),
                ("all judged once of three, four", ("judgment_count = 0", everyone, 3), everyone, at_random),
                ("all judged once of three, a new one", None, [PEOPLE], at_random),
                ("the same, uncertain first", None, [PEOPLE], uncertain),
            ]
            for state, judging, people, settings in steps:
                if judging:
                    judge_pairs(database, *judging)
                if state == "half judged, four, uncertain first":
                    list_pairs(database)
                found = time_labelling(database, people, args.rounds, settings)
                ratios = [now / first for now, first in zip(found, smallest.setdefault(state, found), strict=True)]
                worst = max(worst, *ratios)
                print(f"{size:>9,}  {state:<34} {found[0]:9.2f} {ratios[0]:6.2f} {found[1]:9.2f} {ratios[1]:6.2f}")
            database.close()
    print(f"largest ratio {worst:.2f} (target: {LIMIT:.0f} or less)")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
