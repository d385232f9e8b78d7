"""Make pairs and tasks of a training step's images, which people are asked about before all others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from db.errors import UserError
from db.images import Probe, add_image
from db.models import Candidate, Image, Judgment, Method, Pair, Person, Source, Split, Task, TaskCandidate
from db.pairs import Row, insert_new_pairs, insert_tasks, pair_row
from db.project import load_settings
from db.records import add_candidate, add_method, candidate_key, task_key
from metrics.rankings import MAX_SIZE


@dataclass(frozen=True)
class Made:
    """The images of one face in one step, encoded as PNG."""

    face: str
    pngs: list[bytes]


@dataclass(frozen=True)
class Group:
    """The same in the database."""

    source_id: int
    rows: list[Row]
    """One for each image, in order; the same image may come twice."""


@dataclass(frozen=True)
class Questions:
    """The pairs and tasks of a step by their id, each with the ids of its images in the order of its letters."""

    pairs: dict[int, list[int]] = field(default_factory=dict)
    tasks: dict[int, list[int]] = field(default_factory=dict)


def add_groups(
    session: Session, data: Path, name: str, made: Sequence[Made], probes: Sequence[Sequence[Probe]], run: int | None
) -> list[Group]:
    """Add a step's images as candidates; those that are there stay.

    Args:
        name: of their method, see `find_method`.
        probes: of each group's images, in order.
    Raises:
        UserError: a face is none of the project's train split.
    """
    sources = [find_source(session, one.face) for one in made]
    seeds = list(number_images(made))
    wanted = {
        (source.id, seed): probe.sha256
        for source, own, found in zip(sources, seeds, probes, strict=True)
        for seed, probe in zip(own, found, strict=True)
    }
    method = find_method(session, name, wanted, run)
    groups = []
    for one, source, own, found in zip(made, sources, seeds, probes, strict=True):
        rows = []
        for png, seed, probe in zip(one.pngs, own, found, strict=True):
            image = add_image(session, data, probe, png)
            candidate = add_candidate(session, source, method, image, seed)
            key = candidate_key(source.key, method.name, seed)
            rows.append(Row(candidate.id, key, method.name, image.id, source.split))
        groups.append(Group(source.id, rows))
    return groups


def number_images(made: Sequence[Made]) -> Iterator[range]:
    """The seeds of each group's images: their place in it, counted on where a face comes in several groups."""
    used: Counter[str] = Counter()
    for one in made:
        first = used[one.face]
        used[one.face] += len(one.pngs)
        yield range(first, used[one.face])


def find_source(session: Session, face: str) -> Source:
    """The project's photo of that name.

    Raises:
        UserError: it has none, or holds it out of training.
    """
    source = session.scalar(select(Source).where(Source.key == face))
    if source is None:
        raise UserError(f"The project has no photo {face!r}, so that nobody can be asked about it. Leave --faces out.")
    if source.split is not Split.train:
        raise UserError(f"{face!r} is of the split {source.split.value}: people are asked about photos of train alone.")
    return source


def find_method(session: Session, name: str, wanted: Mapping[tuple[int, int], str], run: int | None) -> Method:
    """The method of that name, added where it is new: 'tiny-paper-3f2a@step-000120'.

    A step that is taken anew makes the same images on the same machine. Where it made others, they are asked about
    under a name of their own, with -2 and so on behind it.

    Args:
        wanted: (source id, seed) -> SHA-256 of the image.
    """
    attempt, numbered = 1, name
    while (method := session.scalar(select(Method).where(Method.name == numbered))) is not None:
        statement = (
            select(Candidate.source_id, Candidate.seed, Image.sha256)
            .join(Image, Image.id == Candidate.image_id)
            .where(Candidate.method_id == method.id)
        )
        if all(wanted.get((source, seed)) == sha256 for source, seed, sha256 in session.execute(statement)):
            return method
        attempt += 1
        numbered = f"{name}-{attempt}"
    return add_method(session, numbered, {"asked_by": name}, run)


def let_others_go(session: Session, training: str, groups: Sequence[Group]) -> None:
    """Show what a training asked about in its other steps before others no longer: a kill left it so."""
    others = _select_asked(training).where(Method.name.not_in({row.method for group in groups for row in group.rows}))
    pairs = select(Pair.id).where(Pair.awaited, Pair.a_id.in_(others))
    members = select(TaskCandidate.task_id).where(TaskCandidate.candidate_id.in_(others))
    tasks = select(Task.id).where(Task.awaited, Task.id.in_(members))
    let_go(session, session.scalars(pairs).all(), session.scalars(tasks).all())


def has_simulated(session: Session, training: str) -> bool:
    """Whether a program has answered about any image of a training."""
    asked = _select_asked(training)
    pairs = select(Pair.id).where(Pair.a_id.in_(asked))
    tasks = select(TaskCandidate.task_id).where(TaskCandidate.candidate_id.in_(asked))
    answers = (
        select(Judgment.id)
        .join(Person, Person.id == Judgment.person_id)
        .where(Person.simulated, or_(Judgment.pair_id.in_(pairs), Judgment.task_id.in_(tasks)))
    )
    return session.scalar(answers.limit(1)) is not None


def _select_asked(training: str) -> Select[int]:
    """The ids of the candidates that a training made."""
    of_it = Method.name.startswith(f"{training}@step-", autoescape=True)
    return select(Candidate.id).join(Method, Method.id == Candidate.method_id).where(of_it)


def ask(session: Session, groups: Sequence[Group], answers: int) -> Questions:
    """Make the pairs, or in a project of tasks the task, of each group's different images, shown before all others.

    Args:
        answers: wanted of each.
    Raises:
        UserError: a group has too many different images to be shown at once.
    """
    settings, questions = load_settings(session), Questions()
    asked = {"awaited": True, "judgments_wanted": answers, "reserved": False}
    for group in groups:
        rows = list({row.image_id: row for row in reversed(group.rows)}.values())
        image_of = {row.candidate_id: row.image_id for row in rows}
        if settings.task_size == 2 or len(rows) == 2:
            new = [pair_row(group.source_id, *two, settings) for two in itertools.combinations(rows, 2)]
            insert_new_pairs(session, new)
            pairs = Pair.key.in_([row["key"] for row in new])
            session.execute(update(Pair).where(pairs).values(asked))
            for pair_id, a, b in session.execute(select(Pair.id, Pair.a_id, Pair.b_id).where(pairs)):
                questions.pairs[pair_id] = [image_of[a], image_of[b]]
        elif len(rows) > MAX_SIZE:
            raise UserError(
                f"A group of {len(rows)} images: at most {MAX_SIZE} are shown at once. Make the groups smaller, or ask "
                "about pairs: python -m annotate project set task_size=2."
            )
        elif len(rows) > 2:
            task = Task.key == task_key(row.key for row in rows)
            if session.scalar(select(Task.id).where(task)) is None:
                insert_tasks(session, settings, [(group.source_id, rows)])
            session.execute(update(Task).where(task).values(asked))
            of_task = select(TaskCandidate).join(Task).where(task).order_by(TaskCandidate.letter)
            for one in session.scalars(of_task):
                questions.tasks.setdefault(one.task_id, []).append(image_of[one.candidate_id])
    return questions


def let_go(session: Session, pairs: Collection[int], tasks: Collection[int]) -> None:
    """Show these before others no longer."""
    session.execute(update(Pair).where(Pair.id.in_(pairs)).values(awaited=False))
    session.execute(update(Task).where(Task.id.in_(tasks)).values(awaited=False))
