"""Mix in gold pairs, whose answer is known, to check who is paying attention.

A CSV or JSONL file with the columns `source`, `method_a`, `method_b`, `answer` (a: method_a is better, b, or tie) and,
where a method made several images of a source, `seed_a`, `seed_b`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.pairs import compute_shuffle_key, is_reserved, same_picture, wanted_judgments
from dataset.tables import Row, parse_seed, read_table
from db.errors import UserError
from db.models import Candidate, Method, Pair, Source
from db.project import ProjectSettings, load_settings
from db.records import candidate_key, pair_key
from runs.image_folders import name_forms

COLUMNS = ("source", "method_a", "method_b", "answer", "seed_a", "seed_b")
ANSWERS = {"a": "b", "b": "a", "tie": "tie"}
"""Each answer, and what it is when the pair is turned round."""


@dataclass
class GoldReport:
    """Result of `import_gold`; counts of gold pairs."""

    added: int = 0
    """Pairs that were not there before."""
    marked: int = 0
    """Pairs that were there without a known answer."""
    existing: int = 0


def import_gold(session: Session, path: Path, pixels: Mapping[int, str] | None = None) -> GoldReport:
    """Add the gold pairs of a file, or mark the pairs there are as gold.

    Args:
        pixels: `annotate.ingest.equal_pixels.hash_candidates`; without it only the same file is known to look the same.
    Raises:
        UserError: not such a file, no such source, method or candidate, a method against itself, two images that show
            the same, an unknown answer, or another known answer than the one that is stored; the message names the
            line.
    """
    report, settings = GoldReport(), load_settings(session)
    for line, row in read_table(path, COLUMNS, required=COLUMNS[:4]):
        try:
            _add_gold_pair(session, settings, row, report, pixels or {})
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
    source = session.scalar(select(Source).where(Source.key.in_(name_forms(row["source"]))))
    if source is None:
        raise UserError(f"there is no source called {row['source']!r}; import the photos first.")
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


def _find_candidate(session: Session, source: Source, method: str, seed: int) -> Candidate:
    candidate = session.scalar(
        select(Candidate)
        .join(Method, Method.id == Candidate.method_id)
        .where(Candidate.source_id == source.id, Method.name.in_(name_forms(method)), Candidate.seed == seed)
    )
    if candidate is None:
        raise UserError(f"source {source.key!r} has no image by method {method!r}, seed {seed}.")
    return candidate
