"""Read a dataset folder of ours as checked rows: all of it, or an error at the first fault."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, Field, StringConstraints, ValidationError, model_validator

from dataset import labelled
from dataset.fields import STRICT, Key, Name, QuestionKey, Seed, Sha256, Text, Uuid
from dataset.files import SCORE_COLUMNS
from dataset.tasks import TaskRow
from db.errors import UserError, first_fault
from db.images import MEDIA_TYPE_OF_SUFFIX
from db.models import Asked, Choice, Picked, Side, Split
from db.project import question_key
from db.records import MAX_SEED, candidate_key, pair_key
from metrics.rankings import LETTERS, read_ranking

DATA_FILES = ("pairs.jsonl", "judgments.jsonl", "scores.parquet")
Model = TypeVar("Model", bound=BaseModel)


class PairLine(BaseModel):
    """A line of `pairs.jsonl`, as training reads it: any names of pairs and image files will do."""

    model_config = STRICT

    pair: Name
    source: Name
    split: Split
    group: Name
    caption: Text | None
    image_a: Name
    image_b: Name
    lq: str | None
    hq: str | None
    sha256_a: Sha256
    sha256_b: Sha256
    sha256_lq: Sha256 | None
    sha256_hq: Sha256 | None
    method_a: Name
    method_b: Name
    seed_a: int
    seed_b: int
    p_a: float = Field(ge=0, le=1)
    tie: bool
    origin: labelled.Origin
    made_by: Name
    weight: float = Field(ge=0)
    agreement: float | None = Field(ge=0, le=1)
    judgments: list[str]
    tasks: list[str] = []
    """Keys of the tasks of several candidates that its judgments answered; none of answers about this pair alone."""

    @model_validator(mode="after")
    def _check_tie(self) -> Self:
        if self.tie != (self.p_a == 0.5):
            raise ValueError(f"tie is {self.tie}, but p_a is {self.p_a}")
        return self


class PairRow(PairLine):
    """The same, as a project takes it back: names and files are what `annotate export` makes of them."""

    pair: Key
    seed_a: Seed
    seed_b: Seed
    judgments: list[Uuid]
    tasks: list[Key] = []

    def files(self) -> Iterator[tuple[str, str]]:
        """(file name, SHA-256) of each image."""
        names = (self.image_a, self.image_b, self.lq, self.hq)
        hashes = (self.sha256_a, self.sha256_b, self.sha256_lq, self.sha256_hq)
        return ((name, sha256) for name, sha256 in zip(names, hashes, strict=True) if name is not None and sha256)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.origin == "constructed":
            raise ValueError(
                "a constructed pair, which nobody judged: give the dataset that it was constructed from instead"
            )
        for name, sha256 in self.files():
            if name not in {f"images/{sha256}{suffix}" for suffix in MEDIA_TYPE_OF_SUFFIX}:
                raise ValueError(f"{name!r} is not 'images/', its SHA-256 {sha256}, and .png, .jpg or .webp")
        if (self.lq is None, self.hq is None) != (self.sha256_lq is None, self.sha256_hq is None):
            raise ValueError("lq and sha256_lq, hq and sha256_hq are null together")
        key_a = candidate_key(self.source, self.method_a, self.seed_a)
        if pair_key(key_a, candidate_key(self.source, self.method_b, self.seed_b)) != (self.pair, True):
            raise ValueError(f"{self.pair} is not the pair of its source, methods and seeds")
        return self


class JudgmentRow(BaseModel):
    """A line of `judgments.jsonl`: of a pair with a choice, or of a task with a ranking of its candidates."""

    model_config = STRICT

    uuid: Uuid
    pair: Key | None = None
    task: Key | None = None
    person: Annotated[Name, StringConstraints(max_length=32)]
    simulated: bool
    choice: Choice | None = None
    ranking: str | None = None
    asked: Asked = Asked.pair
    skip_reason: Text | None
    reasons: list[Text]
    shown_left: Side | None = None
    places: str | None = None
    picked: Picked = Picked.random
    view_mode: Text
    seconds: float = Field(ge=0)
    server_seconds: float | None = Field(None, ge=0)
    created_at: AwareDatetime
    superseded_at: AwareDatetime | None
    repeat_no: int = Field(ge=0, le=MAX_SEED)
    gold: str | None
    """The known answer: a, b or tie of a pair, a ranking of a task."""
    question_version: QuestionKey | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.choice is Choice.skip) != (self.skip_reason is not None):
            raise ValueError(
                f"choice is {self.choice}, skip_reason is {self.skip_reason!r}: a skip has one, others none"
            )
        if (self.pair is None) == (self.task is None):
            raise ValueError("it is of a pair or of a task, of one of them")
        if self.pair is not None:
            if self.choice is None or self.shown_left is None or self.ranking or self.places:
                raise ValueError("of a pair it has choice and shown_left, and neither ranking nor places")
            if self.asked is not Asked.pair or self.gold not in (None, "a", "b", "tie"):
                raise ValueError("of a pair asked is 'pair', and gold is a, b, tie or null")
        elif self.shown_left or self.asked is Asked.pair or not self.places:
            raise ValueError("of a task it has places, no shown_left, and asked is best, best_worst or order")
        elif (self.choice is None) == (self.ranking is None) or self.choice not in (None, Choice.skip):
            raise ValueError("of a task it has a ranking, or the choice skip")
        else:
            size = len(self.places)
            if sorted(self.places) != list(LETTERS[:size]):
                raise ValueError(f"places are the letters {LETTERS[:size]}, each once, not {self.places!r}")
            for ranking in (self.ranking, self.gold):
                if ranking is not None:
                    read_ranking(ranking, size)
        return self


class QuestionRow(BaseModel):
    """A line of `questions.jsonl`: one version of what people were asked."""

    model_config = STRICT

    question_version: QuestionKey
    title: Name
    question: Name
    guidelines: Text
    reasons: list[Name]
    skip_reasons: list[Name]
    created_at: AwareDatetime

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.question_version != question_key(self):
            raise ValueError(f"{self.question_version} is not the version of these words")
        return self


class ScoreRow(BaseModel):
    """A row of `scores.parquet`: one metric of one image."""

    model_config = STRICT

    sha256: Sha256
    metric: Name
    version: Text
    reference: Text
    value: float | None
    raw_value: float | None
    failure: Text | None


@dataclass(frozen=True)
class Dataset:
    """All rows of a dataset folder; whatever one of them names is among them."""

    pairs: list[PairRow]
    judgments: list[JudgmentRow]
    questions: list[QuestionRow]
    scores: list[ScoreRow]
    tasks: list[TaskRow] = field(default_factory=list)


def read_dataset(path: Path) -> Dataset:
    """Read and check the rows of a dataset folder; its images are left to the caller.

    Raises:
        UserError: a file is missing, damaged or changed, a row is malformed (with its line), or rows contradict each
            other.
    """
    dataset = Dataset(
        pairs=list(_read_lines(path / "pairs.jsonl", PairRow)),
        judgments=list(_read_lines(path / "judgments.jsonl", JudgmentRow)),
        questions=_read_if_there(path / "questions.jsonl", QuestionRow),
        scores=list(_read_scores(path / "scores.parquet")),
        tasks=_read_if_there(path / "tasks.jsonl", TaskRow),
    )
    _check_pairs(path / "pairs.jsonl", dataset.pairs)
    _check_tasks(path / "tasks.jsonl", dataset)
    _check_judgments(path / "judgments.jsonl", dataset)
    _check_scores(path / "scores.parquet", dataset)
    _check_sums(path)
    return dataset


def _read_lines(path: Path, model: type[Model]) -> Iterator[Model]:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:  # an editor of Windows may have put a mark first
            for number, line in enumerate(stream, 1):
                try:
                    yield model.model_validate_json(line)
                except ValidationError as error:
                    raise UserError(f"{path}, line {number}: {first_fault(error)}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a dataset folder has {', '.join(DATA_FILES)} and images/.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_if_there(path: Path, model: type[Model]) -> list[Model]:
    """The rows of a file that is not in every folder: from before questions had versions, or without tasks."""
    return list(_read_lines(path, model)) if path.exists() else []


def _read_scores(path: Path) -> Iterator[ScoreRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.names != list(SCORE_COLUMNS):
                raise UserError(f"{path} has the columns {', '.join(file.schema_arrow.names)}, not {SCORE_COLUMNS}.")
            rows: list[dict[str, Any]] = file.read().to_pylist()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a dataset folder has {', '.join(DATA_FILES)} and images/.") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from error
    for number, row in enumerate(rows, 1):
        try:
            yield ScoreRow.model_validate(row)
        except ValidationError as error:
            raise UserError(f"{path}, row {number}: {first_fault(error)}") from error


def _check_pairs(path: Path, pairs: list[PairRow]) -> None:
    """No label twice; a source, and a candidate, is the same in all rows."""
    labels: set[tuple[str, str]] = set()
    sources: dict[str, tuple[object, ...]] = {}
    candidates: dict[tuple[str, str, int], str] = {}
    for number, row in enumerate(pairs, 1):
        where = f"{path}, line {number}"
        if (row.pair, row.origin) in labels:
            raise UserError(f"{where}: a second {row.origin} label of pair {row.pair}.")
        labels.add((row.pair, row.origin))
        told = (row.split, row.group, row.caption, row.sha256_lq, row.sha256_hq)
        if sources.setdefault(row.source, told) != told:
            raise UserError(f"{where}: source {row.source!r} has another split, group, caption, lq or hq further up.")
        for method, seed, sha256 in (
            (row.method_a, row.seed_a, row.sha256_a),
            (row.method_b, row.seed_b, row.sha256_b),
        ):
            if candidates.setdefault((row.source, method, seed), sha256) != sha256:
                raise UserError(f"{where}: method {method!r} has another image of {row.source!r} further up.")


def _check_tasks(path: Path, dataset: Dataset) -> None:
    """Every task is there once, of a source of the dataset, and shows the images that the pairs show."""
    sources = {row.source for row in dataset.pairs}
    candidates = {
        (row.source, method, seed): sha256
        for row in dataset.pairs
        for method, seed, sha256 in (
            (row.method_a, row.seed_a, row.sha256_a),
            (row.method_b, row.seed_b, row.sha256_b),
        )
    }
    seen: set[str] = set()
    for number, row in enumerate(dataset.tasks, 1):
        where = f"{path}, line {number}"
        if row.task in seen:
            raise UserError(f"{where}: task {row.task} is there twice.")
        seen.add(row.task)
        if row.source not in sources:
            raise UserError(f"{where}: task {row.task} is of source {row.source!r}, which pairs.jsonl lacks.")
        for one in row.candidates:
            if candidates.setdefault((row.source, one.method, one.seed), one.sha256) != one.sha256:
                raise UserError(f"{where}: method {one.method!r} has another image of {row.source!r} elsewhere.")
            if one.image not in {f"images/{one.sha256}{suffix}" for suffix in MEDIA_TYPE_OF_SUFFIX}:
                raise UserError(f"{where}: {one.image!r} is not 'images/', its SHA-256, and .png, .jpg or .webp.")


def _check_judgments(path: Path, dataset: Dataset) -> None:
    """Every judgment is there once and of a pair or task of the dataset, and every label's judgments are there."""
    pairs = {row.pair for row in dataset.pairs}
    tasks = {row.task: row for row in dataset.tasks}
    told: dict[str, Collection[str]] = {}
    task_of: dict[str, str | None] = {}
    live: set[tuple[str | None, str, int]] = set()
    people: dict[str, bool] = {}
    gold: dict[str | None, str | None] = {}
    questions = {row.question_version for row in dataset.questions} | {None}
    for number, row in enumerate(dataset.judgments, 1):
        of = row.pair or row.task
        showing = (of, row.person, row.repeat_no)
        fault = ""
        if row.pair is not None and row.pair not in pairs:
            fault = f"is of pair {row.pair}, which pairs.jsonl lacks"
        elif row.task is not None and row.task not in tasks:
            fault = f"is of task {row.task}, which tasks.jsonl lacks"
        elif row.task is not None and len(tasks[row.task].candidates) != len(row.places or ""):
            fault = f"has {len(row.places or '')} places for {len(tasks[row.task].candidates)} candidates"
        elif row.uuid in told:
            fault = "is there twice"
        elif row.superseded_at is None and showing in live:
            fault = "is the second live one of its person, pair and repeat_no"
        elif row.question_version not in questions:
            fault = f"answers the question {row.question_version}, which questions.jsonl lacks"
        elif people.setdefault(row.person, row.simulated) != row.simulated:
            fault = f"is of {row.person}, who is both simulated and not"
        elif gold.setdefault(of, row.gold) != row.gold:
            fault = f"has another known answer of {'pair' if row.pair else 'task'} {of} than a judgment further up"
        if fault:
            raise UserError(f"{path}, line {number}: judgment {row.uuid} {fault}.")
        task_of[row.uuid] = row.task
        told[row.uuid] = [row.pair] if row.pair else tasks[row.task or ""].pairs(row.ranking) if row.ranking else ()
        live |= {showing} if row.superseded_at is None else set()
    for number, pair in enumerate(dataset.pairs, 1):
        if any(pair.pair not in told.get(uuid, ()) for uuid in pair.judgments):
            raise UserError(
                f"{path.with_name('pairs.jsonl')}, line {number}: pair {pair.pair} names judgments that are not "
                "its own in judgments.jsonl."
            )
        if pair.tasks != sorted({task for uuid in pair.judgments if (task := task_of[uuid])}):
            raise UserError(
                f"{path.with_name('pairs.jsonl')}, line {number}: pair {pair.pair} names other tasks than its "
                "judgments answered."
            )


def _check_scores(path: Path, dataset: Dataset) -> None:
    """Every value is there once and of an image of the dataset."""
    images = {sha256 for row in dataset.pairs for _, sha256 in row.files()}
    images |= {one.sha256 for row in dataset.tasks for one in row.candidates}
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(dataset.scores, 1):
        key = (row.sha256, row.metric, row.version, row.reference)
        if row.sha256 not in images:
            raise UserError(f"{path}, row {number}: a value of the image {row.sha256}, which no pair or task shows.")
        if key in seen:
            raise UserError(f"{path}, row {number}: a second value of {row.metric} {row.version} of {row.sha256}.")
        seen.add(key)


def _check_sums(path: Path) -> None:
    """The files of rows are those that SHA256SUMS names; the card may be edited, and rows name their images' hashes."""
    sums = path / "SHA256SUMS"
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return  # rows that were changed on purpose: without the list there is nothing that they should be
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{sums} cannot be read: {error}") from error
    listed = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    for name in (*DATA_FILES, *({"questions.jsonl", "tasks.jsonl"} & listed.keys())):
        with open(path / name, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if listed.get(name) != found:
            raise UserError(
                f"{path / name} is not the file that SHA256SUMS names: its SHA-256 is {found}, not {listed.get(name)}. "
                "Take the dataset from where it came again; if it was changed on purpose, remove SHA256SUMS."
            )
