"""Find what depends on a damaged image: what it shows, who judged it, what was made of that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from annotate.ingest.image_files import batches
from db.images import image_path
from db.models import Candidate, Image, Judgment, Label, Method, MetricValue, Pair, Run, Source, Task, TaskCandidate
from runs.file_cache import read_json
from runs.lineage import ancestors, make_nodes
from runs.store import artifact_of, run_folder


@dataclass
class Damage:
    """A damaged image of the data folder, and what depends on it."""

    sha256: str
    file: str
    why: str
    shows: list[str] = field(default_factory=list)
    """Role of the image and its photo: "lq of 'face1'", "'gfpgan' of 'face1', seed 0"."""
    pairs: int = 0
    tasks: int = 0
    judgments: int = 0
    """Live ones."""
    labels: int = 0
    """Live ones."""
    values: int = 0
    """Metric values and rewards of it, or against it."""
    made: list[str] = field(default_factory=list)
    """Labelers and datasets that it is in, and what was made of them: 'run 7 (annotate export): …/dataset'."""

    def describe(self) -> list[str]:
        """In lines, the file first."""
        counts = [
            f"{count:,} {name if count == 1 else f'{name}s'}"
            for name, count in (
                ("pair", self.pairs),
                ("task", self.tasks),
                ("judgment", self.judgments),
                ("label", self.labels),
                ("value", self.values),
            )
            if count
        ]
        lines = [f"damaged: {self.file}: {self.why}"]
        lines += [f"  is {', '.join(self.shows)}"] if self.shows else []
        lines += [f"  in {', '.join(counts)}"] if counts else []
        return lines + [f"  in {one}" for one in self.made]


def describe_damage(session: Session, data: Path, damaged: Sequence[tuple[str, str]]) -> list[Damage]:
    """List everything that depends on each of these images.

    Args:
        damaged: (SHA-256, why).
    """
    runs = session.scalars(select(Run).order_by(Run.id)).all() if damaged else []
    nodes = make_nodes(runs, data)
    texts = {run.id: _read_made(data, run) for run in runs if run.kind in ("annotate export", "annotate fit")}
    found = []
    for sha256, why in damaged:
        image = session.scalars(select(Image).where(Image.sha256 == sha256)).one()
        one = Damage(sha256, image_path(Path(), sha256, image.suffix).as_posix(), why)
        keys = _describe_use(session, image, one)
        first = {f"run-{run_id}" for run_id, text in texts.items() if not text.isdisjoint((sha256, *keys))}
        for node in nodes.values():
            if node.id in first or first.intersection(parent.id for parent in ancestors(node, nodes)):
                one.made.append(f"run {node.run} ({node.kind})" + (f": {node.path}" if node.path else ""))
        found.append(one)
    return found


def _describe_use(session: Session, image: Image, one: Damage) -> list[str]:
    """Fill in what the rows say; returns the keys of the pairs that show the image as a candidate."""
    lq = session.scalars(select(Source.key).where(Source.lq_image_id == image.id).order_by(Source.key))
    one.shows += [f"lq of {key!r}" for key in lq]
    hq = session.scalars(select(Source.key).where(Source.hq_image_id == image.id).order_by(Source.key))
    one.shows += [f"hq of {key!r}" for key in hq]
    candidates = session.execute(
        select(Candidate.id, Method.name, Source.key, Candidate.seed)
        .join(Method, Method.id == Candidate.method_id)
        .join(Source, Source.id == Candidate.source_id)
        .where(Candidate.image_id == image.id)
        .order_by(Source.key, Method.name, Candidate.seed)
    ).all()
    one.shows += [f"{name!r} of {key!r}, seed {seed}" for _, name, key, seed in candidates]
    own = [number for number, *_ in candidates]
    beside = select(Source.id).where(or_(Source.lq_image_id == image.id, Source.hq_image_id == image.id))
    shown = or_(Pair.a_id.in_(own), Pair.b_id.in_(own), Pair.source_id.in_(beside))
    in_tasks = select(TaskCandidate.task_id).where(TaskCandidate.candidate_id.in_(own))
    shown_in_task = or_(Task.id.in_(in_tasks), Task.source_id.in_(beside))
    one.pairs, one.tasks = _count(session, Pair, shown), _count(session, Task, shown_in_task)
    of_pairs, of_tasks = select(Pair.id).where(shown), select(Task.id).where(shown_in_task)
    about = or_(Judgment.pair_id.in_(of_pairs), Judgment.task_id.in_(of_tasks))
    one.judgments = _count(session, Judgment, about, Judgment.superseded_at.is_(None))
    one.labels = _count(session, Label, Label.pair_id.in_(of_pairs), Label.superseded_at.is_(None))
    one.values = _count(
        session, MetricValue, or_(MetricValue.image_id == image.id, MetricValue.reference == image.sha256)
    )
    return [
        key
        for batch in batches(own)
        for key in session.scalars(select(Pair.key).where(or_(Pair.a_id.in_(batch), Pair.b_id.in_(batch))))
    ]


def _count(session: Session, table: Any, *conditions: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0


def _read_made(data: Path, run: Run) -> set[str]:
    """The pairs that a labeler was trained on, by key; the images of a dataset by SHA-256, as far as its files say."""
    if run.kind == "annotate fit":
        told = read_json(run_folder(data, run.id) / "labeler.json").get("provenance") or {}
        return {str(row[0]) for row in told.get("trained_on") or ()}
    folder = artifact_of(data, run)
    if folder is None or not folder.is_dir():
        return set()
    return _hashes_of_sums(folder / "SHA256SUMS") | _hashes_of_tables(folder)


def _hashes_of_sums(path: Path) -> set[str]:
    """Of every file of a dataset: formats that copy the images copy them byte for byte."""
    try:
        return {line[:64] for line in path.read_text(encoding="utf-8").splitlines()}
    except (OSError, ValueError):
        return set()


def _hashes_of_tables(folder: Path) -> set[str]:
    """The pairs of a dataset, by key, of those formats whose tables name them."""
    found: set[str] = set()
    for path in [*folder.glob("pairs.jsonl"), *folder.glob("*/pairs.jsonl")]:
        try:
            with open(path, encoding="utf-8") as stream:
                found.update(str(json.loads(line).get("pair")) for line in stream)
        except (OSError, ValueError, AttributeError):
            continue
    for path in folder.rglob("*.parquet"):
        found |= _texts_of_parquet(path)
    return found


def _texts_of_parquet(path: Path) -> set[str]:
    """The texts of a table's columns that name a pair or an image by its SHA-256."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        columns = [one.name for one in schema if pa.types.is_string(one.type) and one.name != "caption"]
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException):
        return set()
    return {str(text) for column in table.columns for text in column.unique().to_pylist()}
