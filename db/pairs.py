"""Add pairs and tasks of candidates to what people are asked about."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from db.models import Pair, Split, Task, TaskCandidate, utc_now
from db.project import ProjectSettings
from db.records import pair_key, task_key

SHUFFLE_RANGE = 2**31
RESERVED_LAST_DIGITS = "012"
PAGE_KEYS = 500


@dataclass(frozen=True)
class Row:
    """A candidate as it is paired."""

    candidate_id: int
    key: str
    method: str
    image_id: int
    split: Split


def pair_row(source_id: int, first: Row, second: Row, settings: ProjectSettings) -> dict[str, object]:
    """The values of a new pair's row."""
    key, first_is_a = pair_key(first.key, second.key)
    a, b = (first, second) if first_is_a else (second, first)
    return {
        "key": key,
        "source_id": source_id,
        "a_id": a.candidate_id,
        "b_id": b.candidate_id,
        "shuffle_key": compute_shuffle_key(key, settings.seed),
        "reserved": is_reserved(key, first.split),
        "judgments_wanted": wanted_judgments(first.split, settings),
        "judgment_count": 0,
        "created_at": utc_now(),
    }


def task_row(source_id: int, task: Sequence[Row], settings: ProjectSettings) -> dict[str, object]:
    """The values of a new task's row."""
    key, split = task_key(row.key for row in task), task[0].split
    return {
        "key": key,
        "source_id": source_id,
        "size": len(task),
        "shuffle_key": compute_shuffle_key(key, settings.seed),
        "reserved": is_reserved(key, split),
        "judgments_wanted": wanted_judgments(split, settings),
        "judgment_count": 0,
        "created_at": utc_now(),
    }


def compute_shuffle_key(key: str, seed: int) -> int:
    """Place of a pair in the random order of showing: 0 … 2^31 − 1, fixed by its key and the project's seed."""
    return random.Random(f"{seed}\n{key}").randrange(SHUFFLE_RANGE)


def is_reserved(key: str, split: Split) -> bool:
    """Whether a pair is shown by random picks only.

    By the pair's key, a hash: the same in every database, and independent of the pair's place in the shuffled order.
    """
    return split is not Split.train or key[-1] in RESERVED_LAST_DIGITS


def wanted_judgments(split: Split, settings: ProjectSettings) -> int:
    """Return the number of judgments that a pair of that split takes."""
    return settings.judgments_per_test_pair if split is Split.test else settings.judgments_per_pair


def insert_new_pairs(session: Session, batch: Sequence[dict[str, object]]) -> int:
    """Add those of these rows whose pairs are not there; returns how many."""
    present: set[str] = set()
    for start in range(0, len(batch), PAGE_KEYS):
        chunk = batch[start : start + PAGE_KEYS]
        present.update(session.scalars(select(Pair.key).where(Pair.key.in_([row["key"] for row in chunk]))))
    new = [row for row in batch if row["key"] not in present]
    if new:
        session.execute(insert(Pair), new)
    return len(new)


def insert_tasks(session: Session, settings: ProjectSettings, tasks: Sequence[tuple[int, list[Row]]]) -> int:
    """Add new tasks, each of a source's id and its candidates, and those of their pairs that are not there.

    Returns:
        the number of pairs added.
    """
    if not tasks:
        return 0
    ordered = [(source_id, sorted(task, key=lambda row: row.key)) for source_id, task in tasks]
    rows = [task_row(source_id, task, settings) for source_id, task in ordered]
    numbers = session.scalars(insert(Task).returning(Task.id, sort_by_parameter_order=True), rows).all()
    session.execute(
        insert(TaskCandidate),
        [
            {"task_id": number, "letter": letter, "candidate_id": row.candidate_id}
            for number, (_, task) in zip(numbers, ordered, strict=True)
            for letter, row in zip(ascii_lowercase, task, strict=False)
        ],
    )
    of_tasks = {
        str(made["key"]): made
        for source_id, task in ordered
        for first, second in itertools.combinations(task, 2)
        for made in [pair_row(source_id, first, second, settings)]
    }
    return insert_new_pairs(session, list(of_tasks.values()))
