"""Export labels as a dataset folder: JSON lines, `scores.parquet`, `images/`, a card and checksums.

Every foreign format (`dataset.formats`) is a function of the same rows. The same database and options give the same
bytes: rows are sorted by keys that are the same in every database, and no clock is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Row as Record
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from annotate.ingest.image_files import batches
from annotate.judging.labels import resolve_labels
from annotate.judging.people import get_person
from annotate.report.screening import RULE, find_flagged
from dataset.card import write_card
from dataset.card_configs import Config
from dataset.files import (
    CONSENT_FILE,
    HASH_FIELDS,
    IMAGE_FIELDS,
    Row,
    copy_images,
    find_damaged,
    list_images,
    write_checksums,
    write_jsonl,
    write_scores,
)
from dataset.options import ExportOptions
from db.errors import UserError
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
    Question,
    Source,
    Task,
    TaskCandidate,
)
from db.project import load_settings
from db.records import SIMULATED, count_discarded
from db.session import Database
from licences.terms import NOT_STATED, Licensed, is_commercial, sort_strictest
from runs.files import check_new_folder, write_folder_whole
from runs.licences import LABELER, of_project, read_recorded, refuse_non_commercial, write_recorded
from runs.store import run_folder

MAX_NAMED = 10
CONSENT = '{"consent_to_publish": true}\n'
"""Of `CONSENT_FILE`; no clock, so that the same project gives the same bytes."""


def export_dataset(
    database: Database,
    data: Path,
    out: Path,
    options: ExportOptions,
    progress: Callable[[int, int], None] | None = None,
    add_licences: Callable[[list[Licensed]], list[Licensed]] = sort_strictest,
) -> dict[str, Any]:
    """Resolve the labels, then write the dataset to `out`, whole or not at all.

    Args:
        progress: called with (images copied, total).
        add_licences: called with the licences of what the labels were made of; gives those that the dataset keeps.
    Returns:
        counts: rows, rows by split, rows dropped by each filter, judgments and discarded answers, images; what the
        format left out; and `screened`: who was left out by which rule, where that was asked for.
    Raises:
        UserError: `out` is there and not empty or cannot be written, no label fits, a named method or person does not
            exist, or an image file is missing or damaged and `skip_bad` does not leave it out; no file is written then.
    """
    check_new_folder(out)
    # One transaction, so that the rows are of the labels made here and not of another export's with other people.
    with database.write() as session:
        _check_names(session, options)
        screened: dict[str, str] = {}
        if options.exclude_flagged:
            screened = find_flagged(session, people=options.people, include_simulated=options.include_simulated)
            left_out = [*options.exclude_people, *(name for name in screened if name not in options.exclude_people)]
            options = options.model_copy(update={"exclude_people": left_out})
        settings = load_settings(session)
        photos = settings.data_licence
        if options.licence == "unknown" and photos != NOT_STATED:
            options = options.model_copy(update={"licence": photos})
        if options.resolve != "keep":
            resolve_labels(
                session,
                options.resolve,
                exclude_people=_left_out(session, options),
                include_simulated=options.include_simulated,
            )
        rows, dropped = load_rows(session, options)
        if not rows:
            told = ", ".join(f"{count} by {name}" for name, count in dropped.items() if count) or "there is none"
            raise UserError(f"No label to export ({told}). Judge some pairs first, or widen the filters.")
    rows = _without_damaged(rows, data, options, dropped)
    with database.read() as session:
        tasks = load_tasks(session, rows)
        judgments = load_judgments(session, rows, options)
        questions = load_questions(session, judgments)
        scores = load_scores(session, rows, tasks)
        shown_options = _without_names(session, options)
        answers, people = count_discarded(session, include_simulated=options.include_simulated)
        public = {get_person(session, name).public_id: why for name, why in screened.items()}
        made_from = add_licences(list_licences(session, rows, data))
    if is_commercial():
        refuse_non_commercial(made_from)
    return write_dataset(
        *(out, rows, judgments, questions, scores, data, options, dropped, shown_options, progress, made_from),
        tasks=tasks,
        discarded={"answers": answers, "people": people},
        screened={"rule": RULE, "people": dict(sorted(public.items()))} if options.exclude_flagged else None,
        consent=settings.consent_to_publish,
    )


def _without_damaged(rows: list[Row], data: Path, options: ExportOptions, dropped: dict[str, int]) -> list[Row]:
    """The rows all of whose images are whole; counts the others as dropped.

    Raises:
        UserError: an image is damaged and `skip_bad` is not set, or no row is left.
    """
    damaged = find_damaged(data, list_images(rows))
    kept = [row for row in rows if not any(row[name] in damaged for name in IMAGE_FIELDS)]
    dropped["damaged images"] = len(rows) - len(kept)
    if damaged and not (options.skip_bad and kept):
        lines = [f"{len(damaged):,} images of {dropped['damaged images']:,} of the {len(rows):,} pairs are damaged:"]
        lines += [f"  {why}" for why in list(damaged.values())[:MAX_NAMED]]
        lines += [f"  and {len(damaged) - MAX_NAMED:,} more"] if len(damaged) > MAX_NAMED else []
        remedy = "`python -m annotate check` names all, with what depends on them"
        lines.append(f"{remedy}." if options.skip_bad else f"{remedy}; --skip-bad leaves those pairs out.")
        raise UserError("\n".join(lines))
    return kept


def write_dataset(
    out: Path,
    rows: list[Row],
    judgments: list[Row],
    questions: list[Row],
    scores: list[tuple[Any, ...]],
    data: Path,
    options: ExportOptions,
    dropped: dict[str, int],
    shown_options: dict[str, Any],
    progress: Callable[[int, int], None] | None = None,
    made_from: Sequence[Licensed] = (),
    tasks: Sequence[Row] = (),
    discarded: dict[str, int] | None = None,
    screened: dict[str, Any] | None = None,
    consent: bool = False,
) -> dict[str, Any]:
    """Write the files of `options.format`, the card and the checksums to `out`, whole or not at all.

    Args:
        dropped: labels left out, by filter.
        shown_options: as the card may tell them.
        made_from: licences, for the card and `licences.json`.
        tasks: the sets of several candidates that judgments are of.
        discarded: answers that an admin took out, and the people whose they were; None for none.
        screened: `rule`, and `people`: why each was left out by it, by random name; None where none was to be.
        consent: whether the people of the project agreed to publication; noted for `annotate push`.
    Returns:
        counts, as `export_dataset`.
    Raises:
        UserError: `out` cannot be written, the format can say none of the rows, or an image is missing or damaged.
    """
    with write_folder_whole(out) as folder:
        extra, configs = _write(folder, rows, judgments, tasks, questions, scores, data, options, progress)
        counts = _count(rows, judgments, dropped) | extra | {"discarded": discarded or {"answers": 0, "people": 0}}
        counts |= {"screened": screened} if screened else {}
        card = write_card(rows, judgments, questions, counts, shown_options, configs, made_from)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_recorded(folder, made_from)
        if consent:
            (folder / CONSENT_FILE).write_text(CONSENT, encoding="utf-8")
        write_checksums(folder)
    return counts


def list_licences(session: Session, rows: Sequence[Row], data: Path) -> list[Licensed]:
    """The licences of the photos, of the restorers of their images, and of the labelers: what their runs recorded."""
    methods = {row[side] for row in rows for side in ("method_a", "method_b")}
    made = select(Method.name, Method.run_id).where(Method.run_id.is_not(None))
    runs = {int(run) for name, run in session.execute(made) if name in methods and run is not None}
    runs |= {int(found[1]) for row in rows if (found := LABELER.match(row["made_by"]))}
    return [
        *of_project(session),
        *(one for run in sorted(runs) for one in read_recorded(run_folder(data, run))),
    ]


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
    kept = {name.strip() for name in options.people} - {name.strip() for name in options.exclude_people}
    return [name for name in session.scalars(select(Person.name).order_by(Person.name)) if name not in kept]


def _counted_people(session: Session, options: ExportOptions) -> set[int]:
    """Ids of those whose judgments count: the people asked for, and simulated annotators only where asked for."""
    left_out = {name.strip() for name in _left_out(session, options)}
    return {
        number
        for number, name, simulated in session.execute(select(Person.id, Person.name, Person.simulated))
        if name not in left_out and (options.include_simulated or not simulated)
    }


def _without_names(session: Session, options: ExportOptions) -> dict[str, Any]:
    """The options as they may be published: people under the random names that the dataset gives them."""
    public = {person.name: person.public_id for person in session.scalars(select(Person))}
    shown = options.model_dump(mode="json")
    return shown | {
        field: sorted(public[name.strip()] for name in shown[field]) for field in ("people", "exclude_people")
    }


def load_rows(session: Session, options: ExportOptions) -> tuple[list[Row], dict[str, int]]:
    """(rows of pairs.jsonl in their final order, how many live labels each filter dropped).

    Of a pair with a human and an SVM label the human one is taken. A human label counts only where all the judgments
    that it was made of are by people who count; with `people` named, one made of no judgments (an imported one) does
    not. An SVM label is chosen by `origin`, and one that was learnt from simulated annotators only with them.
    """
    traces = _load_traces(session)
    counted = _counted_people(session, options)
    labels = list(_select_labels(session))
    foreign = {
        label.id
        for label in labels
        if any(trace.person_id not in counted for trace in traces.get(label.id, []))
        or (label.origin is Origin.svm and label.made_by.endswith(SIMULATED) and not options.include_simulated)
        or (options.people and label.origin is Origin.human and label.id not in traces)
    }
    human = {label.pair_id for label in labels if label.origin is Origin.human and label.id not in foreign}
    rows: list[Row] = []
    dropped = dict.fromkeys(("people", "origin", "splits", "methods", "min_agreement", "ties"), 0)
    for label in labels:
        reason = "people" if label.id in foreign else _why_dropped(label, human, options)
        if reason:
            dropped[reason] += 1
        else:
            behind = traces.get(label.id, [])
            tasks = sorted({trace.task for trace in behind if trace.task})
            rows.append(_to_row(label) | {"judgments": [trace.uuid for trace in behind], "tasks": tasks})
    rows.sort(key=lambda row: (row["source"], row["pair"]))
    return rows, dropped


def _why_dropped(label: Record[Any], human: Collection[int], options: ExportOptions) -> str:
    """The filter that leaves a label out; empty where none does."""
    second = label.origin is Origin.svm and options.origin == "both" and label.pair_id in human
    if second or options.origin not in ("both", label.origin.value):
        return "origin"
    if options.splits and label.split not in options.splits:
        return "splits"
    if options.methods and not {label.method_a, label.method_b} <= set(options.methods):
        return "methods"
    if label.agreement is not None and label.agreement < options.min_agreement:
        return "min_agreement"
    return "ties" if options.ties == "drop" and label.p_a == 0.5 else ""


def _select_labels(session: Session) -> Iterable[Record[Any]]:
    """Every live label with all that its row shows; columns, not objects, for there may be hundreds of thousands."""
    a, b, method_a, method_b = aliased(Candidate), aliased(Candidate), aliased(Method), aliased(Method)
    image_a, image_b, lq, hq = aliased(Image), aliased(Image), aliased(Image), aliased(Image)
    files = zip(("image_a", "image_b", "lq", "hq"), (image_a, image_b, lq, hq), strict=True)
    statement = (
        select(
            *(Label.id, Label.pair_id, Label.p_a, Label.origin, Label.made_by, Label.weight, Label.agreement),
            *(Pair.key.label("pair"), Source.key.label("source"), Source.split, Source.group, Source.caption),
            *(a.seed.label("seed_a"), b.seed.label("seed_b")),
            *(method_a.name.label("method_a"), method_b.name.label("method_b")),
            *(column.label(f"{name}_{of}") for name, image in files for of, column in _file_columns(image)),
        )
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
        .where(Label.superseded_at.is_(None))
    )
    return session.execute(statement)


def _file_columns(image: type[Image]) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("sha256", image.sha256), ("suffix", image.suffix)


def _to_row(label: Record[Any]) -> Row:
    """A row of pairs.jsonl but for its judgments."""
    hashes = [getattr(label, f"{name}_sha256") for name in IMAGE_FIELDS]
    suffixes = [getattr(label, f"{name}_suffix") for name in IMAGE_FIELDS]
    paths = [f"images/{sha256}{suffix}" if sha256 else None for sha256, suffix in zip(hashes, suffixes, strict=True)]
    return {
        "pair": label.pair,
        "source": label.source,
        "split": label.split.value,
        "group": label.group,
        "caption": label.caption,
        **dict(zip(IMAGE_FIELDS, paths, strict=True)),
        **dict(zip(HASH_FIELDS, hashes, strict=True)),
        "method_a": label.method_a,
        "method_b": label.method_b,
        "seed_a": label.seed_a,
        "seed_b": label.seed_b,
        "p_a": label.p_a,
        "tie": label.p_a == 0.5,
        "origin": label.origin.value,
        "made_by": label.made_by,
        "weight": label.weight,
        "agreement": label.agreement,
    }


class _Trace(NamedTuple):
    """A judgment behind a label."""

    created_at: datetime
    uuid: str
    person_id: int
    task: str | None
    """Key of the task that it answered; None of a pair."""


def _load_traces(session: Session) -> dict[int, list[_Trace]]:
    """The judgments behind each live label, oldest first."""
    traces: dict[int, list[_Trace]] = {}
    statement = (
        select(LabelJudgment.label_id, Judgment.created_at, Judgment.uuid, Judgment.person_id, Task.key)
        .join(Judgment, Judgment.id == LabelJudgment.judgment_id)
        .outerjoin(Task, Task.id == Judgment.task_id)
        .join(Label, Label.id == LabelJudgment.label_id)
        .where(Label.superseded_at.is_(None))
    )
    for label_id, created_at, uuid, person_id, task in session.execute(statement):
        traces.setdefault(label_id, []).append(_Trace(created_at, uuid, person_id, task))
    for judgments in traces.values():
        judgments.sort(key=lambda trace: trace[:2])  # here, since databases disagree on the order of text
    return traces


def load_tasks(session: Session, rows: list[Row]) -> list[Row]:
    """Rows of tasks.jsonl by source and key: the tasks that these labels came of, with all of their candidates."""
    found: dict[str, Row] = {}
    for keys in batches(sorted({task for row in rows for task in row["tasks"]})):
        statement = (
            select(Task.key, Source.key, Method.name, Candidate.seed, Image.sha256, Image.suffix)
            .join(Source, Source.id == Task.source_id)
            .join(TaskCandidate, TaskCandidate.task_id == Task.id)
            .join(Candidate, Candidate.id == TaskCandidate.candidate_id)
            .join(Method, Method.id == Candidate.method_id)
            .join(Image, Image.id == Candidate.image_id)
            .where(Task.key.in_(keys))
            .order_by(TaskCandidate.letter)
        )
        for task, source, method, seed, sha256, suffix in session.execute(statement):
            row = found.setdefault(task, {"task": task, "source": source, "candidates": []})
            image = f"images/{sha256}{suffix}"
            row["candidates"].append({"method": method, "seed": seed, "image": image, "sha256": sha256})
    return sorted(found.values(), key=lambda row: (row["source"], row["task"]))


def load_judgments(session: Session, rows: list[Row], options: ExportOptions) -> list[Row]:
    """Rows of judgments.jsonl, oldest first: every judgment of the exported pairs and tasks by people who count.

    That is more than the labels were made of: also what was taken back since, skips, repeats and gold answers. What
    an admin discarded is not among them.
    """
    counted = _counted_people(session, options)
    found: list[Row] = []
    tasks = sorted({task for row in rows for task in row["tasks"]})
    named = [(Pair.key, keys) for keys in batches(row["pair"] for row in rows)]
    named += [(Task.key, keys) for keys in batches(tasks)]
    for column, keys in named:
        statement = (
            select(
                *(Judgment, Pair.key, Task.key, func.coalesce(Pair.gold_answer, Task.gold_ranking)),
                *(Person.public_id, Person.simulated, Question.key),
            )
            .outerjoin(Pair, Pair.id == Judgment.pair_id)
            .outerjoin(Task, Task.id == Judgment.task_id)
            .join(Person, Person.id == Judgment.person_id)
            .outerjoin(Question, Question.id == Judgment.question_id)
            .where(column.in_(keys), Judgment.discarded_at.is_(None))
        )
        found += [
            {
                "uuid": judgment.uuid,
                "pair": pair,
                "task": task,
                "person": public_id,
                "simulated": simulated,
                "choice": judgment.choice.value if judgment.choice else None,
                "ranking": judgment.ranking,
                "asked": judgment.asked.value,
                "skip_reason": judgment.skip_reason,
                "reasons": judgment.reasons,
                "shown_left": judgment.shown_left.value if judgment.shown_left else None,
                "places": judgment.places,
                "picked": judgment.picked.value,
                "view_mode": judgment.view_mode,
                "seconds": judgment.seconds,
                "server_seconds": judgment.server_seconds,
                "created_at": judgment.created_at.isoformat(),
                "superseded_at": judgment.superseded_at.isoformat() if judgment.superseded_at else None,
                "repeat_no": judgment.repeat_no,
                "gold": gold,
                "question_version": question,
            }
            for judgment, pair, task, gold, public_id, simulated, question in session.execute(statement)
            if judgment.person_id in counted
        ]
    return sorted(found, key=lambda row: (row["created_at"], row["uuid"]))


def load_questions(session: Session, judgments: list[Row]) -> list[Row]:
    """Rows of questions.jsonl, oldest first: the versions of the question that these judgments answered."""
    keys = {row["question_version"] for row in judgments}
    found = [
        {
            "question_version": question.key,
            "title": question.title,
            "question": question.question,
            "guidelines": question.guidelines,
            "reasons": question.reasons,
            "skip_reasons": question.skip_reasons,
            "created_at": question.created_at.isoformat(),
        }
        for question in session.scalars(select(Question))
        if question.key in keys
    ]
    return sorted(found, key=lambda row: (row["created_at"], row["question_version"]))


def load_scores(session: Session, rows: list[Row], tasks: list[Row]) -> list[tuple[Any, ...]]:
    """All stored metric values of the exported images, sorted: `dataset_files.SCORE_COLUMNS`."""
    value = MetricValue
    columns = (value.metric, value.version, value.reference, value.value, value.raw_value, value.failure)
    found: list[tuple[Any, ...]] = []
    wanted = {row[name] for row in rows for name in HASH_FIELDS if row[name]}
    wanted |= {one["sha256"] for task in tasks for one in task["candidates"]}
    for hashes in batches(sorted(wanted)):
        statement = select(Image.sha256, *columns).join(Image, Image.id == value.image_id)
        found += [tuple(row) for row in session.execute(statement.where(Image.sha256.in_(hashes)))]
    return sorted(found, key=lambda row: row[:4])


def _write(
    folder: Path,
    rows: list[Row],
    judgments: list[Row],
    tasks: Sequence[Row],
    questions: list[Row],
    scores: list[tuple[Any, ...]],
    data: Path,
    options: ExportOptions,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, int], list[Config]]:
    """Write the files of the format but the card; returns what the format counts, and what the card tells of them."""
    from dataset.formats import our_configs, with_rows, write_format  # it needs annotate.exchange.export

    if options.format != "jsonl":
        return write_format(folder, rows, judgments, tasks, data, options)
    write_jsonl(folder / "pairs.jsonl", rows)
    write_jsonl(folder / "judgments.jsonl", judgments)
    write_jsonl(folder / "questions.jsonl", questions)
    if tasks:
        write_jsonl(folder / "tasks.jsonl", tasks)
    write_scores(folder / "scores.parquet", scores)
    of_tasks = (one["image"] for task in tasks for one in task["candidates"])
    shown = [*rows, *(dict.fromkeys(IMAGE_FIELDS) | {"image_a": image} for image in of_tasks)]
    return {"images": copy_images(folder, shown, data, progress)}, with_rows(our_configs(".jsonl"), judgments)


def _count(rows: list[Row], judgments: list[Row], dropped: dict[str, int]) -> dict[str, Any]:
    return {
        "rows": len(rows),
        "splits": _tally(row["split"] for row in rows),
        "origins": _tally(row["origin"] for row in rows),
        "made_by": _tally(row["made_by"] for row in rows),
        "methods": _tally(row[side] for row in rows for side in ("method_a", "method_b")),
        "ties": sum(row["tie"] for row in rows),
        "judgments": len(judgments),
        "people": len({row["person"] for row in judgments if not row["simulated"]}),
        "simulated_annotators": len({row["person"] for row in judgments if row["simulated"]}),
        "dropped": dropped,
    }


def _tally(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
