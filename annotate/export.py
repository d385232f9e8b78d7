"""Labels to a dataset folder: `pairs.jsonl`, `judgments.jsonl`, `scores.parquet`, `images/`, a card and checksums.

Every foreign format (`annotate.formats`) is a function of the same rows. The same database and options give the same
bytes: rows are sorted by keys that are the same in every database, and no clock is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from annotate.card import write_card
from annotate.judgments import resolve_labels
from annotate.people import get_person
from db.errors import UserError
from db.images import image_path
from db.models import (
    Candidate,
    Image,
    Judgment,
    Label,
    LabelJudgment,
    Method,
    MetricValue,
    Origin,
    Pair,
    Person,
    Source,
    Split,
)
from db.session import Database

Format = Literal["jsonl", "parquet", "hpdv2", "imagereward", "pickapic", "diffusion-dpo", "trl", "imagefolder"]
Row = dict[str, Any]
QUERY_BATCH = 500
SCORE_COLUMNS = ("sha256", "metric", "version", "reference", "value", "raw_value", "failure")


class ExportOptions(BaseModel):
    """Every field is a flag of `python -m annotate export` and a field of the Export page."""

    model_config = ConfigDict(extra="forbid")

    format: Format = Field("jsonl", description="jsonl is our own dataset folder, which import reads back")
    name: str = Field("face-preferences", min_length=1, max_length=100, description="Name on the dataset card")
    licence: str = Field("unknown", min_length=1, max_length=100, description="Licence on the dataset card")
    resolve: Literal["majority", "dawid-skene", "keep"] = Field(
        "majority", description="How judgments become labels; keep takes the stored labels as they are"
    )
    ties: Literal["keep", "drop", "soft"] = Field(
        "keep", description="Ties as ties, left out, or all labels as probabilities, where the format can say it"
    )
    origin: Literal["human", "svm", "both"] = Field("both", description="Whose labels; with both, a human one wins")
    min_agreement: float = Field(0.0, ge=0, le=1, description="Share of judgments for a pair's most frequent answer")
    splits: list[Split] = Field([], description="Only these splits; none named takes all")
    methods: list[str] = Field([], description="Only pairs whose two methods are among these; none named takes all")
    people: list[str] = Field([], description="Only judgments of these people; none named takes all")
    exclude_people: list[str] = Field([], description="No judgments of these people")
    include_simulated: bool = Field(False, description="Count simulated annotators too; the labels then say so")
    prompt: str = Field(
        "a high-quality photo of a face", min_length=1, description="Prompt where a photo has no caption"
    )


def export_dataset(
    database: Database,
    data: Path,
    out: Path,
    options: ExportOptions,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Resolve the labels, then write the dataset to `out`, whole or not at all.

    Args:
        progress: told (images copied, images in all).
    Returns:
        counts: rows, rows by split, rows dropped by each filter, judgments, images; and what the format left out.
    Raises:
        UserError: `out` is there and not empty, no label fits, or a named method or person does not exist.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new folder with --out, or remove it.")
    with database.write() as session:
        _check_names(session, options)
        if options.resolve != "keep":
            resolve_labels(
                session,
                options.resolve,
                exclude_people=_left_out(session, options),
                include_simulated=options.include_simulated,
            )
    with database.read() as session:
        rows, dropped = load_rows(session, options)
        if not rows:
            told = ", ".join(f"{count} by {name}" for name, count in dropped.items() if count) or "there is none"
            raise UserError(f"No label to export ({told}). Judge some pairs first, or widen the filters.")
        judgments = load_judgments(session, rows)
        scores = load_scores(session, rows)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        extra = _write(partial, rows, judgments, scores, data, options, progress)
        counts = _count(rows, judgments, dropped) | extra
        card = write_card(rows, judgments, counts, options.name, options.licence, options.model_dump(mode="json"))
        (partial / "README.md").write_text(card, encoding="utf-8")
        _write_checksums(partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return counts


def _check_names(session: Session, options: ExportOptions) -> None:
    for name in (*options.people, *options.exclude_people):
        get_person(session, name)
    known = set(session.scalars(select(Method.name)))
    for name in options.methods:
        if name not in known:
            raise UserError(f"There is no method called {name!r}. Known: {', '.join(sorted(known)) or 'none yet'}.")


def _left_out(session: Session, options: ExportOptions) -> list[str]:
    """Names of those whose judgments do not count."""
    if not options.people:
        return options.exclude_people
    kept = set(options.people) - set(options.exclude_people)
    return [name for name in session.scalars(select(Person.name).order_by(Person.name)) if name not in kept]


def load_rows(session: Session, options: ExportOptions) -> tuple[list[Row], dict[str, int]]:
    """(rows of pairs.jsonl in their final order, how many labels each filter dropped)."""
    rows: list[Row] = []
    dropped = dict.fromkeys(("origin", "splits", "methods", "min_agreement", "ties"), 0)
    human = set(
        session.scalars(select(Label.pair_id).where(Label.superseded_at.is_(None), Label.origin == Origin.human))
    )
    traces = _load_traces(session)
    for label, row in _all_rows(session):
        reason = _why_dropped(label, row, human, options)
        if reason:
            dropped[reason] += 1
            continue
        rows.append(row | {"judgments": traces.get(label.id, [])})
    rows.sort(key=lambda row: (row["source"], row["pair"]))
    return rows, dropped


def _why_dropped(label: Label, row: Row, human: set[int], options: ExportOptions) -> str:
    """The filter that leaves a label out; empty where none does."""
    second = label.origin is Origin.svm and options.origin == "both" and label.pair_id in human
    if second or options.origin not in ("both", label.origin.value):
        return "origin"
    if options.splits and row["split"] not in options.splits:
        return "splits"
    if options.methods and not {row["method_a"], row["method_b"]} <= set(options.methods):
        return "methods"
    if label.agreement is not None and label.agreement < options.min_agreement:
        return "min_agreement"
    return "ties" if options.ties == "drop" and row["tie"] else ""


def _all_rows(session: Session) -> Iterable[tuple[Label, Row]]:
    """Every live label with its row."""
    a, b, method_a, method_b = aliased(Candidate), aliased(Candidate), aliased(Method), aliased(Method)
    image_a, image_b, lq, hq = aliased(Image), aliased(Image), aliased(Image), aliased(Image)
    statement = (
        select(Label, Pair, Source, a.seed, b.seed, method_a.name, method_b.name, image_a, image_b, lq, hq)
        .join(Pair, Pair.id == Label.pair_id)
        .join(Source, Source.id == Pair.source_id)
        .join(a, a.id == Pair.a_id)
        .join(b, b.id == Pair.b_id)
        .join(method_a, method_a.id == a.method_id)
        .join(method_b, method_b.id == b.method_id)
        .join(image_a, image_a.id == a.image_id)
        .join(image_b, image_b.id == b.image_id)
        .outerjoin(lq, lq.id == Source.lq_image_id)
        .outerjoin(hq, hq.id == Source.hq_image_id)
        .where(Label.superseded_at.is_(None), Pair.gold_answer.is_(None))
    )
    for label, pair, source, seed_a, seed_b, name_a, name_b, *images in session.execute(statement):
        paths = [f"images/{image.sha256}{image.suffix}" if image else None for image in images]
        hashes = [image.sha256 if image else None for image in images]
        yield (
            label,
            {
                "pair": pair.key,
                "source": source.key,
                "split": source.split.value,
                "group": source.group,
                "caption": source.caption,
                **dict(zip(("image_a", "image_b", "lq", "hq"), paths, strict=True)),
                **dict(zip(("sha256_a", "sha256_b", "sha256_lq", "sha256_hq"), hashes, strict=True)),
                "method_a": name_a,
                "method_b": name_b,
                "seed_a": seed_a,
                "seed_b": seed_b,
                "p_a": label.p_a,
                "tie": label.p_a == 0.5,
                "origin": label.origin.value,
                "made_by": label.made_by,
                "weight": label.weight,
                "agreement": label.agreement,
            },
        )


def _load_traces(session: Session) -> dict[int, list[str]]:
    """The uuids of the judgments behind each live label, oldest first."""
    traces: dict[int, list[str]] = {}
    statement = (
        select(LabelJudgment.label_id, Judgment.uuid)
        .join(Judgment, Judgment.id == LabelJudgment.judgment_id)
        .join(Label, Label.id == LabelJudgment.label_id)
        .where(Label.superseded_at.is_(None))
        .order_by(Judgment.created_at, Judgment.uuid)
    )
    for label_id, uuid in session.execute(statement):
        traces.setdefault(label_id, []).append(uuid)
    return traces


def load_judgments(session: Session, rows: list[Row]) -> list[Row]:
    """Rows of judgments.jsonl: all judgments of the exported pairs, also superseded ones and repeats, oldest first."""
    found: list[Row] = []
    for keys in _batches([row["pair"] for row in rows]):
        statement = (
            select(Judgment, Pair.key, Person.public_id, Person.simulated)
            .join(Pair, Pair.id == Judgment.pair_id)
            .join(Person, Person.id == Judgment.person_id)
            .where(Pair.key.in_(keys))
        )
        found += [
            {
                "uuid": judgment.uuid,
                "pair": key,
                "person": public_id,
                "simulated": simulated,
                "choice": judgment.choice.value,
                "skip_reason": judgment.skip_reason,
                "reasons": judgment.reasons,
                "shown_left": judgment.shown_left.value,
                "view_mode": judgment.view_mode,
                "seconds": judgment.seconds,
                "repeat_no": judgment.repeat_no,
                "created_at": judgment.created_at.isoformat(),
                "superseded_at": judgment.superseded_at.isoformat() if judgment.superseded_at else None,
            }
            for judgment, key, public_id, simulated in session.execute(statement)
        ]
    return sorted(found, key=lambda row: (row["created_at"], row["uuid"]))


def load_scores(session: Session, rows: list[Row]) -> list[tuple[Any, ...]]:
    """All stored metric values of the exported images, sorted: SCORE_COLUMNS."""
    found = []
    for hashes in _batches(sorted(_image_hashes(rows))):
        statement = (
            select(
                Image.sha256,
                MetricValue.metric,
                MetricValue.version,
                MetricValue.reference,
                MetricValue.value,
                MetricValue.raw_value,
                MetricValue.failure,
            )
            .join(Image, Image.id == MetricValue.image_id)
            .where(Image.sha256.in_(hashes))
        )
        found += [tuple(row) for row in session.execute(statement)]
    return sorted(found, key=lambda row: row[:4])


def _batches(values: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(values), QUERY_BATCH):
        yield values[start : start + QUERY_BATCH]


def _image_hashes(rows: list[Row]) -> set[str]:
    names = ("sha256_a", "sha256_b", "sha256_lq", "sha256_hq")
    return {row[name] for row in rows for name in names if row[name]}


def _write(
    folder: Path,
    rows: list[Row],
    judgments: list[Row],
    scores: list[tuple[Any, ...]],
    data: Path,
    options: ExportOptions,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Write the files of the format but the card; returns what the format counts."""
    if options.format != "jsonl":
        from annotate.formats import write_format  # pyarrow and datasets are slow to import

        return write_format(folder, rows, judgments, data, options)
    write_jsonl(folder / "pairs.jsonl", rows)
    write_jsonl(folder / "judgments.jsonl", judgments)
    _write_scores(folder / "scores.parquet", scores)
    return {"images": copy_images(folder, rows, data, progress)}


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, UTF-8, fields in the order given."""
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_scores(path: Path, scores: list[tuple[Any, ...]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.string(), pa.string(), pa.string(), pa.string(), pa.float64(), pa.float64(), pa.string()]
    schema = pa.schema(list(zip(SCORE_COLUMNS, types, strict=True)))
    columns = list(zip(*scores, strict=True)) or [()] * len(types)
    pq.write_table(pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], schema=schema), path)


def copy_images(folder: Path, rows: list[Row], data: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Copy the rows' image files, byte for byte, to `images/`; returns how many.

    Copies, not hard links: whoever edits a file of the dataset must not change the stored one.
    """
    names = ("image_a", "image_b", "lq", "hq")
    wanted = sorted({row[name] for row in rows for name in names if row[name]})
    (folder / "images").mkdir()
    for done, name in enumerate(wanted):
        if progress:
            progress(done, len(wanted))
        sha256, suffix = os.path.splitext(Path(name).name)
        shutil.copyfile(image_path(data, sha256, suffix), folder / name)
    return len(wanted)


def _count(rows: list[Row], judgments: list[Row], dropped: dict[str, int]) -> dict[str, Any]:
    return {
        "rows": len(rows),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "origins": dict(sorted(Counter(row["origin"] for row in rows).items())),
        "made_by": dict(sorted(Counter(row["made_by"] for row in rows).items())),
        "ties": sum(row["tie"] for row in rows),
        "judgments": len(judgments),
        "people": len({row["person"] for row in judgments if not row["simulated"]}),
        "simulated_annotators": len({row["person"] for row in judgments if row["simulated"]}),
        "dropped": dropped,
    }


def _write_checksums(folder: Path) -> None:
    """`SHA256SUMS` of all files, as `sha256sum --check` reads it."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as stream:
            lines.append(
                f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n"
            )
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
