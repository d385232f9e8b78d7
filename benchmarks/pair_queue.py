"""Time next_pair and record_judgment as the tables of pairs and tasks grow: `python -m benchmarks.pair_queue`.

Rows are written straight into a temporary SQLite database; then one answer and one new pair are timed inside a write
session, with three others held ahead, as a page does; at random, and in an active order. There are as many tasks of
four as pairs. Prints medians and their ratio to the smallest table.
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
from typing import Literal
from uuid import uuid4

from sqlalchemy import select

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.pairs import lease_pairs
from annotate.judging.people import add_person
from annotate.labeler.active import SHORTLIST_LENGTH, replace_shortlists
from db.models import Choice, Image, Lease, Pair, Picked, Split
from db.pairs import SHUFFLE_RANGE, is_reserved
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


def fill_tasks(database: Database, tasks: int) -> None:
    """So many tasks of four of the candidates that `fill_pairs` made, all wanting one judgment."""
    rng = random.Random(1)
    now = "2026-01-01 00:00:00"
    rows, members = [], []
    for number in range(1, tasks + 1):
        source = (number - 1) // PAIRS_OF_A_SOURCE
        key, shuffle_key = f"{rng.getrandbits(128):032x}", rng.randrange(SHUFFLE_RANGE)
        rows.append((number, key, source, 4, shuffle_key, is_reserved(key, Split.train), 1, 0, now))
        chosen = sorted(rng.sample(range(CANDIDATES), 4))
        members += [(number, letter, source * CANDIDATES + at) for letter, at in zip("abcd", chosen, strict=True)]
    with database.write() as session:
        connection = session.connection().connection.driver_connection
        assert connection is not None
        connection.executemany(
            "INSERT INTO task (id, key, source_id, size, shuffle_key, reserved, judgments_wanted, judgment_count, "
            "created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        connection.executemany("INSERT INTO task_candidate (task_id, letter, candidate_id) VALUES (?, ?, ?)", members)


def judge_pairs(
    database: Database, condition: str, people: list[int], wanted: int, *, table: Literal["pair", "task"] = "pair"
) -> None:
    """Have people judge, in turn, every pair (or task) that fits, and let each want so many judgments."""
    of_kind = {
        "pair": ("pair_id, choice, shown_left", "'a', 'a'"),
        "task": ("task_id, ranking, places, asked", "'a>?', 'abcd', 'best'"),
    }
    columns, values = of_kind[table]
    whose = " ".join(f"WHEN {place} THEN {person}" for place, person in enumerate(people))
    with database.write() as session:
        run = session.connection().exec_driver_sql
        run("DELETE FROM lease")  # else a person could judge here what their page still shows
        run(
            f"INSERT INTO judgment (uuid, person_id, repeat_no, reasons, view_mode, seconds, created_at, {columns}) "
            f"SELECT lower(hex(randomblob(18))), CASE id % {len(people)} {whose} END, 0, '[]', 'fit', 1.0, created_at, "
            f"id, {values} FROM {table} WHERE {condition}"
        )
        run(f"UPDATE {table} SET judgment_count = judgment_count + 1 WHERE {condition}")
        run(f"UPDATE {table} SET judgments_wanted = {wanted}")


def list_pairs(database: Database) -> None:
    """A full shortlist of pairs that nobody judged, where there are any."""
    with database.write() as session:
        free = select(Pair.id).where(Pair.reserved.is_(False), Pair.queue_level == 0).limit(SHORTLIST_LENGTH)
        replace_shortlists(session, {Picked.uncertain: list(session.scalars(free))})


def time_labelling(
    database: Database, people: list[int], rounds: int, settings: ProjectSettings
) -> tuple[float, float]:
    """(record_judgment, lease_pairs) median milliseconds, people taking turns, each holding some ahead."""
    rng = random.Random(1)
    showing: dict[int, list[Answer]] = {person: [] for person in people}
    record_ms, next_ms = [], []
    for turn in range(rounds * len(people)):
        person = people[turn % len(people)]
        ahead = showing[person]
        with database.write() as session:
            start = time.perf_counter()
            if ahead:
                record_judgment(session, person, ahead.pop(0))
            middle = time.perf_counter()
            leases = lease_pairs(
                session,
                person,
                settings,
                rng,
                count=AHEAD + 1 - len(ahead),
                holding=[answer.pair_id for answer in ahead if answer.pair_id is not None],
                holding_tasks=[answer.task_id for answer in ahead if answer.task_id is not None],
            )
            end = time.perf_counter()
            showing[person] = ahead + [answer_lease(lease) for lease in leases]
        if turn >= 3 * len(people):  # the first turns fill the page and compile the statements
            record_ms.append(1000 * (middle - start))
            next_ms.append(1000 * (end - middle))
    return statistics.median(record_ms), statistics.median(next_ms)


def answer_lease(lease: Lease) -> Answer:
    """What a person says of what they see: that a is the better one, or the best."""
    return Answer(
        str(uuid4()),
        lease.pair_id,
        lease.repeat_no,
        lease.shown_left,
        Choice.a if lease.task_id is None else None,
        1.0,
        task_id=lease.task_id,
        ranking=None if lease.task_id is None else "a>?",
        places=lease.places,
        asked=lease.asked,
    )


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
            of_four = ProjectSettings(task_size=4)
            task_steps = [
                ("tasks, fresh, one person", None, [1], of_four),
                ("tasks, half judged, one person", ("id % 2 = 0 AND judgment_count = 0", everyone, 1), [1], of_four),
                ("tasks, half judged, four people", None, everyone, of_four),
                ("tasks, all judged once of three", ("judgment_count = 0", everyone, 3), everyone, of_four),
            ]
            fill_tasks(database, size)
            for state, judging, people, settings in steps + task_steps:
                if judging:
                    judge_pairs(database, *judging, table="task" if settings is of_four else "pair")
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
