"""Make tasks: three to six restored images of one photo that a person judges at once."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.pairs import candidates_by_source, check_method, same_picture
from db.errors import UserError
from db.models import Task, TaskCandidate
from db.pairs import Row, insert_tasks
from db.project import ProjectSettings
from metrics.rankings import MAX_SIZE

INSERT_BATCH = 2_000
MIN_TASK = 3


@dataclass
class TaskReport:
    """Result of `make_tasks`. Counts of tasks, but for those of pairs and sources."""

    added: int = 0
    existing: int = 0
    """Of this size, that were there."""
    pairs_added: int = 0
    """Pairs of two images of a new task that were not there before: a task's answer tells of them."""
    sources_with_tasks: int = 0
    sources_without_tasks: int = 0
    """Sources with fewer than three different images (or without the named method)."""
    smaller: int = 0
    """Sources with three images or more, but fewer different ones than asked for: their tasks have them all."""


@dataclass
class _Known:
    """Tasks that a source has already."""

    taken: set[frozenset[int]] = field(default_factory=set)
    """Candidate ids of each."""
    asked: list[frozenset[int]] = field(default_factory=list)
    """Of these the ones in the queue: neither gold nor set aside."""


def make_tasks(
    session: Session,
    settings: ProjectSettings,
    size: int,
    *,
    per_source: int | None = None,
    against: str | None = None,
    seed: int = 0,
    pixels: Mapping[int, str] | None = None,
) -> TaskReport:
    """Make tasks of each source's candidates, and their pairs; tasks that are there already stay as they are.

    Of a source every candidate is in about as many tasks as every other, and over the sources any two methods meet in
    about as many as any other two: a task is filled with the candidate that is in the fewest, among these with the one
    whose method has met the others least, else by lot. No two of the same pixels are in one task.

    Args:
        size: candidates of a task, 3 … 6; of a source with fewer different images all that it has, if three or more.
        per_source: so many tasks a source, as far as there are different ones; None: as many as show every candidate.
        against: a method of which every task is to have an image; None takes any.
        pixels: `annotate.ingest.equal_pixels.hash_candidates`; without it only the same file is known to look the same.
    Raises:
        UserError: no such method, a size out of range, or `per_source` below 1.
    """
    if not MIN_TASK <= size <= MAX_SIZE:
        raise UserError(f"A task of {size} images: give {MIN_TASK} to {MAX_SIZE}, or 2 for pairs.")
    if per_source is not None and per_source < 1:
        raise UserError(f"{per_source} tasks per source: give 1 or more.")
    check_method(session, against)
    report = TaskReport()
    known, met = _load_known(session), Counter[tuple[str, str]]()
    tasks: list[tuple[int, list[Row]]] = []
    for source_id, source_key, rows in candidates_by_source(session):
        looks = _number_looks(rows, pixels or {})
        of_source = min(size, len(set(looks.values())))
        if of_source < MIN_TASK or (against is not None and all(row.method != against for row in rows)):
            report.sources_without_tasks += 1
            continue
        report.sources_with_tasks += 1
        report.smaller += of_source < size
        cover = _Cover(rows, looks, of_source, against, met, random.Random(f"{seed}\n{source_key}"), known[source_id])
        report.existing += len(cover.tasks)
        new = list(cover.complete(per_source))
        report.added += len(new)
        tasks += [(source_id, task) for task in new]
        if len(tasks) >= INSERT_BATCH:
            report.pairs_added += insert_tasks(session, settings, tasks)
            tasks = []
    report.pairs_added += insert_tasks(session, settings, tasks)
    return report


def _load_known(session: Session) -> defaultdict[int, _Known]:
    """The tasks of each source, by its id."""
    statement = (
        select(Task.source_id, Task.id, Task.gold_ranking, Task.judgments_wanted, TaskCandidate.candidate_id)
        .join(TaskCandidate, TaskCandidate.task_id == Task.id)
        .order_by(Task.id, TaskCandidate.letter)
        .execution_options(yield_per=10_000)
    )
    known: defaultdict[int, _Known] = defaultdict(_Known)
    for (source_id, _, gold, wanted), group in itertools.groupby(session.execute(statement), key=lambda row: row[:4]):
        members = frozenset(row[4] for row in group)
        known[source_id].taken.add(members)
        if gold is None and wanted > 0:
            known[source_id].asked.append(members)
    return known


def _number_looks(rows: Sequence[Row], pixels: Mapping[int, str]) -> dict[int, int]:
    """For each candidate id the number of its look: the same for two that show the same picture."""
    firsts: list[Row] = []
    looks = {}
    for row in rows:
        same = (at for at, first in enumerate(firsts) if same_picture(first.image_id, row.image_id, pixels))
        looks[row.candidate_id] = next(same, len(firsts))
        if looks[row.candidate_id] == len(firsts):
            firsts.append(row)
    return looks


class _Cover:
    """The tasks of one source, and how often its candidates and their methods are in them."""

    def __init__(
        self,
        rows: Sequence[Row],
        looks: Mapping[int, int],
        size: int,
        against: str | None,
        met: Counter[tuple[str, str]],
        rng: random.Random,
        known: _Known,
    ) -> None:
        self.rows, self.looks, self.size, self.against = rows, looks, size, against
        self.met, self.rng, self.taken = met, rng, set(known.taken)
        self.used: Counter[int] = Counter()
        self.tasks: list[list[Row]] = []
        for members in known.asked:
            if len(members) == size:
                self._add([row for row in rows if row.candidate_id in members])

    def complete(self, count: int | None) -> Iterator[list[Row]]:
        """Yield new tasks until there are `count`, or (None) until every candidate is in one that can be."""
        while len(self.tasks) < count if count is not None else any(not self.used[r.candidate_id] for r in self.rows):
            task = self._draw()
            if task is None:
                return
            self._add(task)
            yield task

    def _add(self, task: list[Row]) -> None:
        self.tasks.append(task)
        self.taken.add(_ids(task))
        self.used.update(row.candidate_id for row in task)
        self.met.update(_meeting(first, second) for first, second in itertools.combinations(task, 2))

    def _draw(self) -> list[Row] | None:
        """A new task of those that are in the fewest; None where every one is there."""
        lot = {row.candidate_id: self.rng.random() for row in self.rows}
        task: list[Row] = []
        while len(task) < self.size:
            of = [row for row in self.rows if row.method == self.against] if self.against and not task else self.rows
            free = [row for row in of if self._fits(row, task)]
            task.append(
                min(
                    free,
                    key=lambda row: (
                        self.used[row.candidate_id],
                        sum(self.met[_meeting(row, other)] for other in task),
                        lot[row.candidate_id],
                    ),
                )
            )
        if _ids(task) not in self.taken:
            return task
        rare = sorted(self.rows, key=lambda row: (self.used[row.candidate_id], lot[row.candidate_id]))
        return next((list(other) for other in itertools.combinations(rare, self.size) if self._is_new(other)), None)

    def _fits(self, row: Row, task: Collection[Row]) -> bool:
        return self.looks[row.candidate_id] not in {self.looks[other.candidate_id] for other in task}

    def _is_new(self, task: Sequence[Row]) -> bool:
        return (
            _ids(task) not in self.taken
            and len({self.looks[row.candidate_id] for row in task}) == len(task)
            and (self.against is None or any(row.method == self.against for row in task))
        )


def _ids(task: Sequence[Row]) -> frozenset[int]:
    return frozenset(row.candidate_id for row in task)


def _meeting(first: Row, second: Row) -> tuple[str, str]:
    return min(first.method, second.method), max(first.method, second.method)
