"""Our own dataset folder back into a database.

The folder is read and checked whole, then all rows are added in one transaction. What is there already stays; what is
there with other content refuses the import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from annotate.pairs import compute_shuffle_key, wanted_judgments
from annotate.project import ProjectSettings, load_settings
from db.errors import UserError
from db.images import Probe, add_image, probe_image
from db.models import (
    Candidate,
    Choice,
    Image,
    Judgment,
    Label,
    LabelJudgment,
    MetricValue,
    Origin,
    Pair,
    Person,
    Role,
    Side,
    Source,
    Split,
)
from db.records import (
    add_candidate,
    add_method,
    add_metric_value,
    add_source,
    candidate_key,
    pair_key,
)
from db.session import Database

Sha256 = Field(pattern="^[0-9a-f]{64}$")
Model = TypeVar("Model", bound=BaseModel)


class PairRow(BaseModel):
    """A line of `pairs.jsonl`."""

    model_config = ConfigDict(extra="forbid")

    pair: str = Field(pattern="^[0-9a-f]{32}$")
    source: str = Field(min_length=1)
    split: Split
    group: str = Field(min_length=1)
    caption: str | None
    image_a: str
    image_b: str
    lq: str | None
    hq: str | None
    sha256_a: str = Sha256
    sha256_b: str = Sha256
    sha256_lq: str | None = Sha256
    sha256_hq: str | None = Sha256
    method_a: str = Field(min_length=1)
    method_b: str = Field(min_length=1)
    seed_a: int
    seed_b: int
    p_a: float = Field(ge=0, le=1)
    tie: bool
    origin: Origin
    made_by: str
    weight: float = Field(ge=0)
    agreement: float | None = Field(ge=0, le=1)
    judgments: list[str]


class JudgmentRow(BaseModel):
    """A line of `judgments.jsonl`."""

    model_config = ConfigDict(extra="forbid")

    uuid: str = Field(max_length=36)
    pair: str
    person: str = Field(min_length=1, max_length=32)
    simulated: bool
    choice: Choice
    skip_reason: str | None
    reasons: list[str]
    shown_left: Side
    view_mode: str
    seconds: float = Field(ge=0)
    repeat_no: int = Field(ge=0)
    created_at: datetime
    superseded_at: datetime | None


def import_dataset(database: Database, data: Path, path: Path) -> dict[str, int]:
    """Read a dataset folder of ours back, with its judgments, labels and scores.

    Returns:
        counts of what was added.
    Raises:
        UserError: a file is missing or not what its SHA-256 says, a line is malformed, or the database holds the same
            source, candidate, judgment or label with other content.
    """
    pairs = list(_read_lines(path / "pairs.jsonl", PairRow))
    judgments = list(_read_lines(path / "judgments.jsonl", JudgmentRow))
    scores = _read_scores(path / "scores.parquet")
    _check_references(path, pairs, judgments)
    files = {
        name: sha256
        for row in pairs
        for name, sha256 in (
            (row.image_a, row.sha256_a),
            (row.image_b, row.sha256_b),
            (row.lq, row.sha256_lq),
            (row.hq, row.sha256_hq),
        )
        if name is not None and sha256 is not None
    }
    probes = {name: _probe_exactly(path, name, sha256) for name, sha256 in sorted(files.items())}
    with database.write() as session:
        before = count_rows(session)
        images = {name: add_image(session, data, probe, path / name) for name, probe in probes.items()}
        settings = load_settings(session)
        made = {(row.pair, row.origin): (_add_pair(session, row, images, settings), row) for row in pairs}
        pair_ids = {key: pair.id for (key, _), (pair, _) in made.items()}
        numbers = _add_judgments(session, judgments, pair_ids)
        for pair, row in made.values():
            _add_label(session, pair, row, numbers)
        _recount(session, pair_ids.values())
        _add_scores(session, scores, {image.sha256: image for image in images.values()})
        session.flush()
        after = count_rows(session)
    return {name: after[name] - before[name] for name in after}


def _read_lines(path: Path, model: type[Model]) -> Iterator[Model]:
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield model.model_validate_json(line)
                except ValidationError as error:
                    raise UserError(f"{path}, line {number}: {first_fault(error)}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a dataset folder has pairs.jsonl, judgments.jsonl and images/.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def first_fault(error: ValidationError) -> str:
    """What is wrong with a row, in one line."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where + ': ' if where else ''}{fault['msg']}"


def _check_references(path: Path, pairs: list[PairRow], judgments: list[JudgmentRow]) -> None:
    """Every judgment is of a pair in the folder, every label's judgments are there, every pair's key is its own."""
    keys, uuids = {row.pair for row in pairs}, {row.uuid for row in judgments}
    for row in pairs:
        key, first_is_a = pair_key(
            candidate_key(row.source, row.method_a, row.seed_a), candidate_key(row.source, row.method_b, row.seed_b)
        )
        if key != row.pair or not first_is_a:
            raise UserError(f"{path}/pairs.jsonl: pair {row.pair} is not the pair of its source, methods and seeds.")
        if not uuids.issuperset(row.judgments):
            raise UserError(f"{path}: pair {row.pair} names judgments that judgments.jsonl does not have.")
    for judgment in judgments:
        if judgment.pair not in keys:
            raise UserError(f"{path}: judgment {judgment.uuid} is of pair {judgment.pair}, which pairs.jsonl lacks.")


def _probe_exactly(path: Path, name: str, sha256: str) -> Probe:
    """Probe a file of the folder that must have this SHA-256 and need no conversion."""
    file = inside(path, name)
    probe = probe_image(file)
    if probe.sha256 != sha256:
        raise UserError(f"{file} is not the file that the dataset names: its SHA-256 is {probe.sha256}, not {sha256}.")
    return Probe(probe.sha256, probe.suffix, probe.width_px, probe.height_px, probe.size_bytes)


def inside(folder: Path, name: str) -> Path:
    """A file that a dataset names, which must lie in its folder."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise UserError(f"{name!r} lies outside {folder}; only files of the dataset itself are read.")
    return file


def _add_pair(session: Session, row: PairRow, images: dict[str, Image], settings: ProjectSettings) -> Pair:
    source = add_source(
        session,
        row.source,
        row.split,
        group=row.group,
        caption=row.caption,
        lq=images[row.lq] if row.lq else None,
        hq=images[row.hq] if row.hq else None,
    )
    if source.split is not row.split:
        raise UserError(
            f"source {row.source!r} is stored in the {source.split} split, here in {row.split}: a split never changes."
        )
    sides = ((row.method_a, row.image_a, row.seed_a), (row.method_b, row.image_b, row.seed_b))
    a, b = (add_candidate(session, source, add_method(session, name), images[file], seed) for name, file, seed in sides)
    return find_or_add_pair(session, row.pair, source.id, a, b, row.split, settings)


def find_or_add_pair(
    session: Session, key: str, source_id: int, a: Candidate, b: Candidate, split: Split, settings: ProjectSettings
) -> Pair:
    """The pair of that key, added where it is new."""
    pair = session.scalar(select(Pair).where(Pair.key == key))
    if pair is None:
        pair = Pair(
            key=key,
            source_id=source_id,
            a_id=a.id,
            b_id=b.id,
            shuffle_key=compute_shuffle_key(key, settings.seed),
            judgments_wanted=wanted_judgments(split, settings),
        )
        session.add(pair)
        session.flush()
    return pair


def _add_judgments(session: Session, rows: list[JudgmentRow], pair_ids: dict[str, int]) -> dict[str, int]:
    """uuid to judgment id, of those there already too."""
    numbers: dict[str, int] = {}
    people: dict[str, Person] = {}
    for row in rows:
        person = people.get(row.person) or _find_or_add_person(session, row)
        people[row.person] = person
        known = session.scalar(select(Judgment).where(Judgment.uuid == row.uuid))
        if known is None:
            values = row.model_dump(exclude={"pair", "person", "simulated"})
            known = Judgment(pair_id=pair_ids[row.pair], person_id=person.id, **values)
            session.add(known)
            session.flush()
        elif (known.pair_id, known.person_id, known.choice) != (pair_ids[row.pair], person.id, row.choice):
            raise UserError(f"Judgment {row.uuid} is stored already with another answer, pair or person.")
        numbers[row.uuid] = known.id
    return numbers


def _find_or_add_person(session: Session, row: JudgmentRow) -> Person:
    person = session.scalar(select(Person).where(Person.public_id == row.person))
    if person is None:
        person = Person(
            name=f"imported-{row.person}", public_id=row.person, role=Role.annotator, simulated=row.simulated
        )
        session.add(person)
        session.flush()
    return person


def _add_label(session: Session, pair: Pair, row: PairRow, numbers: dict[str, int]) -> None:
    live = session.scalar(
        select(Label).where(Label.pair_id == pair.id, Label.origin == row.origin, Label.superseded_at.is_(None))
    )
    if live is not None:
        if (live.p_a, live.made_by) != (row.p_a, row.made_by):
            raise UserError(
                f"Pair {row.pair} has the {row.origin} label p_a = {live.p_a} by {live.made_by} already, here "
                f"{row.p_a} by {row.made_by}; import into an empty data folder."
            )
        return
    label = Label(
        pair_id=pair.id,
        origin=row.origin,
        made_by=row.made_by,
        p_a=row.p_a,
        weight=row.weight,
        agreement=row.agreement,
    )
    session.add(label)
    session.flush()
    session.add_all(LabelJudgment(label_id=label.id, judgment_id=numbers[uuid]) for uuid in row.judgments)


def _recount(session: Session, pair_ids: Iterable[int]) -> None:
    """Set each pair's number of live judgments that are no repeats."""
    live = (
        select(func.count())
        .select_from(Judgment)
        .where(Judgment.pair_id == Pair.id, Judgment.superseded_at.is_(None), Judgment.repeat_no == 0)
        .scalar_subquery()
    )
    numbers = sorted(set(pair_ids))
    session.flush()
    for start in range(0, len(numbers), 500):
        chosen = numbers[start : start + 500]
        session.execute(
            update(Pair)
            .where(Pair.id.in_(chosen))
            .values(judgment_count=live)
            .execution_options(synchronize_session=False)
        )


def _read_scores(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no Parquet file: {error}") from error
    return rows


def _add_scores(session: Session, scores: list[dict[str, Any]], images: dict[str, Image]) -> None:
    for score in scores:
        sha256 = score.pop("sha256")
        if sha256 not in images:
            raise UserError(f"scores.parquet has values of the image {sha256}, which no pair shows.")
        add_metric_value(session, images[sha256], **score)


def count_rows(session: Session) -> dict[str, int]:
    """Rows of each table that an import adds to."""
    tables = {
        "sources": Source,
        "candidates": Candidate,
        "images": Image,
        "pairs": Pair,
        "judgments": Judgment,
        "labels": Label,
        "people": Person,
        "scores": MetricValue,
    }
    return {name: session.scalar(select(func.count()).select_from(table)) or 0 for name, table in tables.items()}
