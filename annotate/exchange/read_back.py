"""Read a dataset folder of ours back into a database.

The folder is read and checked whole, then all rows are added in one transaction. What is there already stays; what is
there with other content refuses the import.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from annotate.ingest.image_files import (
    CheckedFiles,
    NewImages,
    batches,
    check_files,
    open_pool,
    remove_unused,
    select_new,
    store_file,
    store_files,
)
from dataset.read import Dataset, JudgmentRow, PairRow, QuestionRow, ScoreRow, read_dataset
from db.errors import UserError
from db.models import (
    Candidate,
    Image,
    Judgment,
    Label,
    LabelJudgment,
    MetricValue,
    Origin,
    Pair,
    Person,
    Question,
    Role,
    Source,
    Task,
    TaskCandidate,
)
from db.pairs import compute_shuffle_key, is_reserved, wanted_judgments
from db.project import ProjectSettings, load_settings
from db.records import add_method, add_source
from db.session import Database
from metrics.rankings import LETTERS

Item = TypeVar("Item")
JUDGMENT_FIELDS = (
    "choice",
    "ranking",
    "asked",
    "skip_reason",
    "reasons",
    "shown_left",
    "places",
    "picked",
    "view_mode",
    "seconds",
    "created_at",
    "superseded_at",
    "repeat_no",
)


def import_dataset(database: Database, data: Path, path: Path) -> dict[str, int]:
    """Read a dataset folder of ours back, with its judgments, labels and scores.

    People come as annotators called 'imported-' and their public id; they cannot sign in until an admin lets them.

    Returns:
        counts of what was added.
    Raises:
        UserError: a file is missing or not what its SHA-256 says, a row is malformed, or the database holds the same
            source, candidate, judgment, label or score with other content.
    """
    dataset = read_dataset(path)
    wanted = dict(file for row in dataset.pairs for file in row.files())
    wanted |= {one.image: one.sha256 for row in dataset.tasks for one in row.candidates}
    files = check_images(path, wanted)
    for name, sha256 in wanted.items():
        probe = files[name]
        is_it = (probe.original_sha256 or probe.sha256) == sha256
        if is_it and not probe.same_pixels:
            raise UserError(
                f"{path / name} is seen differently by browsers and metrics ({probe.conversion}): an earlier version "
                "exported it. Mend the project that it came from with `python -m annotate check --mend`, "
                "measure and export again."
            )
        # Metadata in it, which earlier versions exported, is taken out when it is stored: it is the same picture still.
        if not is_it or (probe.conversion is None and probe.suffix != os.path.splitext(name)[1]):
            raise UserError(
                f"{path / name} is not the file that the dataset names: its SHA-256 is "
                f"{probe.original_sha256 or probe.sha256}, its format {probe.suffix}."
            )
    return add_dataset(database, data, path, files, dataset)


def check_images(root: Path, names: Iterable[str]) -> CheckedFiles:
    """Read and decode all image files of a dataset, which must lie in its folder.

    Raises:
        UserError: one lies outside, is missing or unfit.
    """
    distinct = sorted(set(names))
    for name in distinct:
        if not (root / name).resolve().is_relative_to(root.resolve()):
            raise UserError(f"{name!r} lies outside {root}; only files of the dataset itself are read.")
    with open_pool(None, len(distinct)) as pool:
        files, unfit = check_files(pool, root, distinct, lambda _: None)
    for name, why in sorted(unfit.items()):
        raise UserError(f"{root / name}: {why}")
    return files


def add_dataset(database: Database, data: Path, root: Path, files: CheckedFiles, dataset: Dataset) -> dict[str, int]:
    """Add the image files, then all rows in one transaction.

    Args:
        files: every image of the dataset, relative to `root`; rows find theirs by SHA-256.
    Returns:
        counts of what was added.
    Raises:
        UserError: the database holds the same source, candidate, judgment, label or score with other content.
    """
    new: NewImages = {}
    try:
        new = select_new(database, data, files)
        with open_pool(None, len(new)) as pool:
            store_files(pool, data, root, new, lambda _: None)
        with database.write() as session:
            before = _count_rows(session)
            _add_rows(session, data, root, files, dataset)
            session.flush()
            after = _count_rows(session)
    except BaseException as error:
        if new:
            remove_unused(database, data, new)
        if isinstance(error, IntegrityError):
            raise UserError("Another import added some of the same rows meanwhile; import again.") from error
        raise
    return {name: after[name] - before[name] for name in after}


def _add_rows(session: Session, data: Path, root: Path, files: CheckedFiles, dataset: Dataset) -> None:
    settings = load_settings(session)
    images = _add_images(session, data, root, files)
    sources = _add_sources(session, dataset.pairs, images)
    candidates = _add_candidates(session, dataset, sources, images)
    gold = {row.pair or row.task or "": row.gold for row in dataset.judgments}
    pairs = _add_pairs(session, dataset.pairs, candidates, gold, settings)
    questions = _add_questions(session, dataset.questions)
    tasks = _add_tasks(session, dataset, candidates, gold, settings)
    judgments = _add_judgments(session, dataset.judgments, pairs, tasks, questions)
    _add_labels(session, dataset.pairs, pairs, judgments)
    _add_scores(session, dataset.scores, images)
    _recount(session, Pair, Judgment.pair_id, pairs.values())
    _recount(session, Task, Judgment.task_id, tasks.values())


def _find(
    session: Session, column: InstrumentedAttribute[Any], values: Iterable[Any], entity: type[Item]
) -> list[Item]:
    """The stored rows whose column has one of these values."""
    return [
        item
        for batch in batches(sorted(set(values)))
        for item in session.scalars(select(entity).where(column.in_(batch)))
    ]


def _add_new(session: Session, items: Iterable[Any]) -> None:
    session.add_all(items)
    session.flush()


def _add_images(session: Session, data: Path, root: Path, files: CheckedFiles) -> dict[str, Image]:
    """SHA-256, also that of a file that is stored otherwise, to image."""
    hashes = {value for probe in files.values() for value in (probe.sha256, probe.original_sha256) if value is not None}
    images = {image.sha256: image for image in _find(session, Image.sha256, hashes, Image)}
    added = []
    for name, probe in files.items():
        # One that an earlier version stored with its metadata is the image too.
        image = images.get(probe.original_sha256 or probe.sha256) or images.get(probe.sha256)
        if image is None:
            # A file that lay there without a row may be that of a failed import, and gone since.
            store_file(data, root / name, probe)
            image = Image(
                sha256=probe.sha256,
                suffix=probe.suffix,
                width_px=probe.width_px,
                height_px=probe.height_px,
                size_bytes=probe.size_bytes,
                original_sha256=probe.original_sha256,
                conversion=probe.conversion,
            )
            added.append(image)
        images[probe.sha256] = images[probe.original_sha256 or probe.sha256] = image
    _add_new(session, added)
    return images


def _add_sources(session: Session, rows: Sequence[PairRow], images: dict[str, Image]) -> dict[str, Source]:
    """Source key to source."""
    sources = {source.key: source for source in _find(session, Source.key, (row.source for row in rows), Source)}
    stored = set(sources)
    for key, row in {row.source: row for row in rows}.items():
        lq = images[row.sha256_lq] if row.sha256_lq else None
        hq = images[row.sha256_hq] if row.sha256_hq else None
        if key not in stored:
            sources[key] = Source(
                key=key,
                group=row.group,
                split=row.split,
                caption=row.caption,
                lq_image_id=lq.id if lq else None,
                hq_image_id=hq.id if hq else None,
            )
            continue
        stored_split = sources[key].split
        if stored_split is not row.split:
            raise UserError(
                f"source {key!r} is stored in the {stored_split} split, here in {row.split}: a split never changes."
            )
        told = (row.group, row.caption, lq and lq.id, hq and hq.id)
        there = sources[key]
        if told != (there.group, there.caption, there.lq_image_id, there.hq_image_id):
            # Completes it, or raises where it differs.
            add_source(session, key, row.split, group=row.group, caption=row.caption, lq=lq, hq=hq)
    _add_new(session, sources.values())
    return sources


Slot = tuple[int, int, int]
"""Source id, method id, seed."""


def _add_candidates(
    session: Session, dataset: Dataset, sources: dict[str, Source], images: dict[str, Image]
) -> dict[tuple[str, str, int], Candidate]:
    """(source key, method, seed) to candidate."""
    wanted = {(row.source, row.method_a, row.seed_a): images[row.sha256_a] for row in dataset.pairs}
    wanted |= {(row.source, row.method_b, row.seed_b): images[row.sha256_b] for row in dataset.pairs}
    wanted |= {
        (row.source, one.method, one.seed): images[one.sha256] for row in dataset.tasks for one in row.candidates
    }
    methods = {name: add_method(session, name).id for name in sorted({method for _, method, _ in wanted})}
    source_ids = [source.id for source in sources.values()]
    stored: dict[Slot, Candidate] = {
        (candidate.source_id, candidate.method_id, candidate.seed): candidate
        for candidate in _find(session, Candidate.source_id, source_ids, Candidate)
    }
    found = {}
    for (key, method, seed), image in wanted.items():
        slot = (sources[key].id, methods[method], seed)
        candidate = stored.get(slot)
        if candidate is None:
            candidate = Candidate(source_id=slot[0], method_id=slot[1], seed=seed, image_id=image.id)
        elif candidate.image_id != image.id:
            raise UserError(f"source {key!r} is already stored with another image by method {method!r}, seed {seed}.")
        found[(key, method, seed)] = candidate
    _add_new(session, found.values())
    return found


def _add_pairs(
    session: Session,
    rows: Sequence[PairRow],
    candidates: dict[tuple[str, str, int], Candidate],
    gold: dict[str, str | None],
    settings: ProjectSettings,
) -> dict[str, Pair]:
    """Pair key to pair.

    Args:
        gold: the known answer, or None, of the pairs whose judgments tell it.
    """
    pairs = {pair.key: pair for pair in _find(session, Pair.key, (row.pair for row in rows), Pair)}
    for row in rows:
        pair = pairs.get(row.pair)
        if pair is None:
            a = candidates[(row.source, row.method_a, row.seed_a)]
            pairs[row.pair] = Pair(
                key=row.pair,
                source_id=a.source_id,
                a_id=a.id,
                b_id=candidates[(row.source, row.method_b, row.seed_b)].id,
                shuffle_key=compute_shuffle_key(row.pair, settings.seed),
                reserved=is_reserved(row.pair, row.split),
                judgments_wanted=wanted_judgments(row.split, settings),
                gold_answer=gold.get(row.pair),
            )
        elif pair.gold_answer != gold.get(row.pair, pair.gold_answer):
            raise UserError(
                f"Pair {row.pair} has the known answer {pair.gold_answer} here, {gold[row.pair]} in the dataset."
            )
    _add_new(session, pairs.values())
    return pairs


def _add_tasks(
    session: Session,
    dataset: Dataset,
    candidates: dict[tuple[str, str, int], Candidate],
    gold: dict[str, str | None],
    settings: ProjectSettings,
) -> dict[str, Task]:
    """Task key to task; the split is that of its source."""
    splits = {row.source: row.split for row in dataset.pairs}
    tasks = {task.key: task for task in _find(session, Task.key, (row.task for row in dataset.tasks), Task)}
    for row in dataset.tasks:
        task = tasks.get(row.task)
        if task is None:
            members = [candidates[(row.source, one.method, one.seed)] for one in row.candidates]
            tasks[row.task] = Task(
                key=row.task,
                source_id=members[0].source_id,
                size=len(members),
                shuffle_key=compute_shuffle_key(row.task, settings.seed),
                reserved=is_reserved(row.task, splits[row.source]),
                judgments_wanted=wanted_judgments(splits[row.source], settings),
                gold_ranking=gold.get(row.task),
                candidates=[
                    TaskCandidate(letter=letter, candidate_id=one.id)
                    for letter, one in zip(LETTERS, members, strict=False)
                ],
            )
        elif task.gold_ranking != gold.get(row.task, task.gold_ranking):
            raise UserError(
                f"Task {row.task} has the known answer {task.gold_ranking} here, {gold[row.task]} in the dataset."
            )
    _add_new(session, tasks.values())
    return tasks


def _add_questions(session: Session, rows: Sequence[QuestionRow]) -> dict[str, Question]:
    """Key to version of the question; the present question of this database stays what it is."""
    questions = {
        item.key: item for item in _find(session, Question.key, (row.question_version for row in rows), Question)
    }
    for row in rows:
        if row.question_version not in questions:
            words = row.model_dump(exclude={"question_version"})
            questions[row.question_version] = Question(key=row.question_version, **words)
    _add_new(session, questions.values())
    return questions


def _add_judgments(
    session: Session,
    rows: Sequence[JudgmentRow],
    pairs: dict[str, Pair],
    tasks: dict[str, Task],
    questions: dict[str, Question],
) -> dict[str, Judgment]:
    """uuid to judgment."""
    people = _add_people(session, rows)
    judgments = {item.uuid: item for item in _find(session, Judgment.uuid, (row.uuid for row in rows), Judgment)}
    live = {
        (item.pair_id, item.task_id, item.person_id, item.repeat_no)
        for item in [
            *_find(session, Judgment.pair_id, (pairs[row.pair].id for row in rows if row.pair), Judgment),
            *_find(session, Judgment.task_id, (tasks[row.task].id for row in rows if row.task), Judgment),
        ]
        if item.superseded_at is None
    }
    for row in rows:
        values = {name: getattr(row, name) for name in JUDGMENT_FIELDS}
        values["pair_id"] = pairs[row.pair].id if row.pair else None
        values["task_id"] = tasks[row.task].id if row.task else None
        values["person_id"] = people[row.person].id
        showing = (values["pair_id"], values["task_id"], values["person_id"], row.repeat_no)
        question = questions[row.question_version].id if row.question_version else None
        stored = judgments.get(row.uuid)
        if stored is None:
            if row.superseded_at is None and showing in live:
                what = f"pair {row.pair}" if row.pair else f"task {row.task}"
                raise UserError(f"{row.person} has judged {what} anew here since judgment {row.uuid}.")
            judgments[row.uuid] = Judgment(
                uuid=row.uuid, question_id=question, server_seconds=row.server_seconds, **values
            )
            continue
        # A folder or database of before there were versions, or the server's seconds, has none.
        later = {"question_id": question, "server_seconds": row.server_seconds}
        values |= {name: value for name, value in later.items() if None not in (value, getattr(stored, name))}
        if differing := [name for name, value in values.items() if getattr(stored, name) != value]:
            raise UserError(f"Judgment {row.uuid} is stored already with another {', '.join(differing)}.")
    _add_new(session, judgments.values())
    return judgments


def _add_people(session: Session, rows: Sequence[JudgmentRow]) -> dict[str, Person]:
    """Public id to person."""
    people = {person.public_id: person for person in _find(session, Person.public_id, (r.person for r in rows), Person)}
    for row in rows:
        person = people.get(row.person)
        if person is None:
            name = f"imported-{row.person}"
            if session.scalar(select(Person.id).where(Person.name == name)) is not None:
                raise UserError(f"There is another person called {name!r} here; that name is wanted for {row.person}.")
            people[row.person] = Person(name=name, public_id=row.person, role=Role.annotator, simulated=row.simulated)
        elif person.simulated != row.simulated:
            raise UserError(
                f"{person.name} ({row.person}) is {'' if person.simulated else 'not '}simulated here, but "
                f"{'' if row.simulated else 'not '}in the dataset."
            )
    _add_new(session, people.values())
    return people


def _add_labels(
    session: Session, rows: Sequence[PairRow], pairs: dict[str, Pair], judgments: dict[str, Judgment]
) -> None:
    live = {
        (label.pair_id, label.origin): label
        for label in _find(session, Label.pair_id, (pair.id for pair in pairs.values()), Label)
        if label.superseded_at is None
    }
    new: list[tuple[Label, list[str]]] = []
    for row in rows:
        values = {"p_a": row.p_a, "made_by": row.made_by, "weight": row.weight, "agreement": row.agreement}
        pair_id = pairs[row.pair].id
        origin = Origin(row.origin)
        stored = live.get((pair_id, origin))
        if stored is None:
            new.append((Label(pair_id=pair_id, origin=origin, **values), row.judgments))
        elif any(getattr(stored, name) != value for name, value in values.items()):
            raise UserError(
                f"Pair {row.pair} has the {row.origin} label p_a = {stored.p_a} by {stored.made_by} already, here "
                f"{row.p_a} by {row.made_by}; import into an empty data folder."
            )
    _add_new(session, (label for label, _ in new))
    traces = ((label, judgments[uuid]) for label, uuids in new for uuid in uuids)
    _add_new(session, (LabelJudgment(label_id=label.id, judgment_id=judgment.id) for label, judgment in traces))


def _add_scores(session: Session, rows: Sequence[ScoreRow], images: dict[str, Image]) -> None:
    image_ids = {images[row.sha256].id for row in rows}
    stored = {
        (value.image_id, value.metric, value.version, value.reference): value
        for value in _find(session, MetricValue.image_id, image_ids, MetricValue)
    }
    new = []
    for row in rows:
        image_id = images[row.sha256].id
        reference = images[row.reference].sha256 if row.reference in images else row.reference
        key = (image_id, row.metric, row.version, reference)
        value = stored.get(key)
        if value is None:
            told = row.model_dump(exclude={"sha256", "reference"})
            stored[key] = MetricValue(image_id=image_id, reference=reference, **told)
            new.append(stored[key])
        elif (value.value, value.raw_value, value.failure) != (row.value, row.raw_value, row.failure):
            raise UserError(
                f"The value of {row.metric} {row.version} of the image {row.sha256} is {value.value} here, {row.value} "
                "in the dataset; import into an empty data folder."
            )
    _add_new(session, new)


def _recount(
    session: Session,
    of: type[Pair] | type[Task],
    column: InstrumentedAttribute[int | None],
    items: Iterable[Pair | Task],
) -> None:
    """Set each pair's or task's number of live judgments that are not repeats."""
    live = (
        select(func.count())
        .select_from(Judgment)
        .where(column == of.id, Judgment.superseded_at.is_(None), Judgment.repeat_no == 0)
        .scalar_subquery()
    )
    for batch in batches(item.id for item in items):
        session.execute(
            update(of).where(of.id.in_(batch)).values(judgment_count=live).execution_options(synchronize_session=False)
        )


def _count_rows(session: Session) -> dict[str, int]:
    """Rows of each table that an import adds to."""
    tables = {
        "sources": Source,
        "candidates": Candidate,
        "images": Image,
        "pairs": Pair,
        "tasks": Task,
        "judgments": Judgment,
        "labels": Label,
        "people": Person,
        "scores": MetricValue,
    }
    return {name: session.scalar(select(func.count()).select_from(table)) or 0 for name, table in tables.items()}
