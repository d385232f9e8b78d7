"""Mix in gold pairs and tasks, whose answer is known, to check who is paying attention.

A CSV or JSONL file with the columns `source`, `method_a`, `method_b`, `answer` (a: method_a is better, b, or tie) and,
where a method made several images of a source, `seed_a`, `seed_b`. Or, of a task of three to six images, `source`,
`methods` (names between semicolons), `answer` (a ranking of them by the letters a … f in that order, such as `b>?`: the
second is the best) and perhaps `seeds`. Who contradicts the ranking is wrong, see `metrics.rankings.contradicts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.pairs import same_picture
from annotate.judging.tasks import MIN_TASK
from dataset.tables import Row, parse_seed, read_table
from db.errors import UserError
from db.models import Candidate, Method, Pair, Source, Task
from db.pairs import Row as CandidateRow
from db.pairs import compute_shuffle_key, insert_tasks, is_reserved, wanted_judgments
from db.project import ProjectSettings, load_settings
from db.records import candidate_key, pair_key, task_key
from metrics.rankings import LETTERS, MAX_SIZE, read_ranking, rename_letters
from runs.image_folders import name_forms

COLUMNS = ("source", "method_a", "method_b", "answer", "seed_a", "seed_b", "methods", "seeds")
ANSWERS = {"a": "b", "b": "a", "tie": "tie"}
"""Each answer, and what it is when the pair is turned round."""


@dataclass
class GoldReport:
    """Result of `import_gold`; counts of gold pairs and tasks."""

    added: int = 0
    """Not there before."""
    marked: int = 0
    """There without a known answer."""
    existing: int = 0


def import_gold(session: Session, path: Path, pixels: Mapping[int, str] | None = None) -> GoldReport:
    """Add the gold pairs and tasks of a file, or mark those there are as gold.

    Args:
        pixels: `annotate.ingest.equal_pixels.hash_candidates`; without it only the same file is known to look the same.
    Raises:
        UserError: not such a file, no such source, method or candidate, an image against itself, two images that show
            the same, an unknown answer, or another known answer than the one that is stored; the message names the
            line.
    """
    report, settings = GoldReport(), load_settings(session)
    for line, row in read_table(path, COLUMNS, required=("source", "answer")):
        try:
            add = _add_gold_task if row.get("methods") else _add_gold_pair
            add(session, settings, row, report, pixels or {})
        except UserError as error:
            raise UserError(f"{path.name}, line {line}: {error}") from error
    if not report.added + report.marked + report.existing:
        raise UserError(f"{path} has no rows.")
    return report


def _add_gold_pair(
    session: Session, settings: ProjectSettings, row: Row, report: GoldReport, pixels: Mapping[int, str]
) -> None:
    given = row["answer"].lower()
    if given not in ANSWERS:
        raise UserError(f"answer {row['answer']!r} is not one of {', '.join(ANSWERS)}.")
    for name in ("method_a", "method_b"):
        if not row.get(name):
            raise UserError(f"{name} is empty: a gold pair has method_a and method_b, a gold task has methods.")
    source = _find_source(session, row["source"])
    first = _find_candidate(session, source, row["method_a"], parse_seed(row.get("seed_a", "")))
    second = _find_candidate(session, source, row["method_b"], parse_seed(row.get("seed_b", "")))
    if first is second:
        raise UserError("both sides are the same restored image.")
    if same_picture(first.image_id, second.image_id, pixels):
        raise UserError("both images have the same pixels, so that there is nothing to see; leave the pair out.")
    keys = [candidate_key(source.key, candidate.method.name, candidate.seed) for candidate in (first, second)]
    key, first_is_a = pair_key(*keys)
    answer = given if first_is_a else ANSWERS[given]
    pair = session.scalar(select(Pair).where(Pair.key == key))
    if pair is None:
        a, b = (first, second) if first_is_a else (second, first)
        pair = Pair(
            key=key,
            source_id=source.id,
            a_id=a.id,
            b_id=b.id,
            shuffle_key=compute_shuffle_key(key, settings.seed),
            reserved=is_reserved(key, source.split),
            judgments_wanted=wanted_judgments(source.split, settings),
            gold_answer=answer,
        )
        session.add(pair)
        report.added += 1
    elif pair.gold_answer is None:
        pair.gold_answer = answer
        report.marked += 1
    elif pair.gold_answer == answer:
        report.existing += 1
    else:
        raise UserError("this pair is already stored with another known answer.")
    session.flush()


def _add_gold_task(
    session: Session, settings: ProjectSettings, row: Row, report: GoldReport, pixels: Mapping[int, str]
) -> None:
    source = _find_source(session, row["source"])
    names = [name.strip() for name in row["methods"].split(";")]
    seeds = (
        [parse_seed(seed.strip()) for seed in row.get("seeds", "").split(";")] if row.get("seeds") else [0] * len(names)
    )
    if len(seeds) != len(names) or not MIN_TASK <= len(names) <= MAX_SIZE:
        raise UserError(f"{len(names)} methods and {len(seeds)} seeds: a task has {MIN_TASK} to {MAX_SIZE} of each.")
    found = [_find_candidate(session, source, name, seed) for name, seed in zip(names, seeds, strict=True)]
    for first, second in itertools.combinations(found, 2):
        if first is second or same_picture(first.image_id, second.image_id, pixels):
            raise UserError("two of the images are the same or have the same pixels; leave one out.")
    rows = [
        CandidateRow(
            one.id,
            candidate_key(source.key, one.method.name, one.seed),
            one.method.name,
            one.image_id,
            source.split,
        )
        for one in found
    ]
    by_key = sorted(rows, key=lambda one: one.key)
    new_letter = {LETTERS[at]: LETTERS[by_key.index(one)] for at, one in enumerate(rows)}
    try:
        read_ranking(row["answer"], len(rows))
    except ValueError as error:
        raise UserError(f"answer: {error}.") from error
    answer = rename_letters(row["answer"], new_letter)
    task = session.scalar(select(Task).where(Task.key == task_key(one.key for one in rows)))
    if task is None:
        insert_tasks(session, settings, [(source.id, by_key)])
        task = session.scalars(select(Task).where(Task.key == task_key(one.key for one in rows))).one()
        report.added += 1
    elif task.gold_ranking is None:
        report.marked += 1
    elif task.gold_ranking == answer:
        report.existing += 1
    else:
        raise UserError("this task is already stored with another known answer.")
    task.gold_ranking = answer
    session.flush()


def _find_source(session: Session, name: str) -> Source:
    source = session.scalar(select(Source).where(Source.key.in_(name_forms(name))))
    if source is None:
        raise UserError(f"there is no source called {name!r}; import the photos first.")
    return source


def _find_candidate(session: Session, source: Source, method: str, seed: int) -> Candidate:
    candidate = session.scalar(
        select(Candidate)
        .join(Method, Method.id == Candidate.method_id)
        .where(Candidate.source_id == source.id, Method.name.in_(name_forms(method)), Candidate.seed == seed)
    )
    if candidate is None:
        raise UserError(f"source {source.key!r} has no image by method {method!r}, seed {seed}.")
    return candidate
