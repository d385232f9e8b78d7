"""Ask people about the images of a training step, and wait for their answers.

What the step made becomes candidates of the project's own photos, and pairs or tasks of them that the Label page shows
before all others. A step that is discarded and taken anew finds its images and their answers: nobody is asked twice.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from sqlalchemy import or_, select
from torch import Tensor

from db.errors import UserError
from db.images import probe_bytes, write_image
from db.models import Judgment, Person
from db.project import load_settings, question_key
from db.session import Database, open_database
from metrics.rankings import LETTERS, RANKING_OF_CHOICE, derive_pairs
from refl.faces.photo_files import encode_png, map_in_threads
from refl.tune.judge_names import PEOPLE
from refl.tune.monitor import to_bytes
from refl.tune.people_questions import Group, Made, Questions, add_groups, ask, has_simulated, let_go, let_others_go
from runs.options import Place
from runs.store import RunStopped
from training.processes import agree_on_largest, broadcast, gather_places

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
UNDECIDED = 0.5
WON = {"a": 1.0, "tie": UNDECIDED, "b": 0.0}
"""What an answer to a pair is worth to its first."""

Wins = dict[tuple[int, int], list[float]]
"""(id of an image, id of another) -> what each answer about the two is worth to the first."""


class StoppedWaiting(RunStopped):
    """A signal came while people were waited for: nothing of the step is done, and its state is that of before."""


@dataclass(frozen=True)
class Step:
    """Where the training stands whose images are asked about."""

    accelerator: Accelerator
    training: str
    number: int
    stop_asked: Callable[[], int]


@dataclass
class PeopleJudge:
    """People's answers to a step's images: the share of the others of its group that an image was better than."""

    database: Database
    data: Path
    run: int | None
    answers: int
    """Wanted of each pair or task."""
    version: str
    poll_seconds: float = POLL_SECONDS
    simulated: bool = False
    """Whether an answer to this training was a program's, in what was done before it was continued too."""
    metrics: tuple[str, ...] = ()
    step: Step | None = None

    @property
    def name(self) -> str:
        """'people', or 'people-simulated' once a program has answered."""
        return f"{PEOPLE}-simulated" if self.simulated else PEOPLE

    def begin_step(self, accelerator: Accelerator, training: str, number: int, stop_asked: Callable[[], int]) -> None:
        """Say where the training stands, before each step's one call of `score`.

        Args:
            training: its name, the same whenever it is continued, such as that of its folder.
            number: of the step.
            stop_asked: see `training.stopping.stop_at_next_step`.
        """
        self.step = Step(accelerator, training, number, stop_asked)

    def score(
        self,
        images: Tensor,
        lq: Tensor,  # noqa: ARG002
        hq: Tensor,  # noqa: ARG002
        captions: Sequence[str | None],  # noqa: ARG002
        names: Sequence[str],
    ) -> Tensor:
        """As of `refl.tune.judges.Judge`, in [0, 1]; 0.5 where people say nothing. Waits for people's answers.

        A collective: each process calls it once a step, with the images that it has, none too.

        Raises:
            StoppedWaiting: a signal came to one of the processes.
            UserError: a face is none of the project's train split, or a group is too large to be shown at once.
        """
        step = self.step
        assert step is not None, "begin_step comes first"
        accelerator = step.accelerator
        mine = list(group_images(images, names))
        everybody: list[list[Made]] = gather_places(accelerator, [(accelerator.process_index, mine)])
        shown: tuple[list[Group], Questions] | None = None
        if accelerator.is_main_process:
            shown = self._show(step, [made for process in everybody for made in process])
        rewards, self.simulated = self._wait(step, shown)
        before = sum(len(made.pngs) for process in everybody[: accelerator.process_index] for made in process)
        return torch.tensor(rewards[before : before + len(images)], dtype=torch.float32)

    def _show(self, step: Step, made: Sequence[Made]) -> tuple[list[Group], Questions]:
        probes = [[probe_bytes(png, one.face) for png in one.pngs] for one in made]
        files = [item for one, own in zip(made, probes, strict=True) for item in zip(own, one.pngs, strict=True)]
        for _ in map_in_threads(lambda item: write_image(self.data, *item), files):
            pass  # the files first, so that the database is not held while they are written
        name = f"{step.training}@step-{step.number + 1:06}"
        with self.database.write() as session:
            groups = add_groups(session, self.data, name, made, probes, self.run)
            let_others_go(session, step.training, groups)
            self.simulated = self.simulated or has_simulated(session, step.training)
            return groups, ask(session, groups, self.answers)

    def _wait(self, step: Step, shown: tuple[list[Group], Questions] | None) -> tuple[list[float], bool]:
        """(a reward of each image of all processes, whether a program answered), once there are enough answers.

        Args:
            shown: on the main process.
        """
        told = -1
        while True:
            found: tuple[list[float], bool] | None = None
            if shown:
                groups, questions = shown
                wins, done, simulated = self._read(questions)
                total = len(questions.pairs) + len(questions.tasks)
                if done == total:
                    self._end(questions)
                    found = compute_shares(groups, wins), simulated or self.simulated
                elif done != told:
                    log.info("step %s: waiting for people: %s of %s tasks answered", step.number + 1, done, total)
                    told = done
            if (found := broadcast(step.accelerator, found)) is not None:
                return found
            if stop := agree_on_largest(step.accelerator, step.stop_asked()):
                if shown:
                    self._end(shown[1])
                    log.info("stopped while people were asked; the same command goes on with their answers")
                raise StoppedWaiting(128 + stop)
            time.sleep(self.poll_seconds)

    def _read(self, questions: Questions) -> tuple[Wins, int, bool]:
        """(what the answers say, how many pairs and tasks have enough of them, whether any is a program's)."""
        of_these = or_(Judgment.pair_id.in_(questions.pairs), Judgment.task_id.in_(questions.tasks))
        statement = (
            select(Judgment.pair_id, Judgment.task_id, Judgment.choice, Judgment.ranking, Person.simulated)
            .join(Person, Person.id == Judgment.person_id)
            .where(of_these, Judgment.superseded_at.is_(None), Judgment.repeat_no == 0)
            .order_by(Judgment.id)
        )
        with self.database.read() as session:
            answers = session.execute(statement).all()
        wins: Wins = {}
        for one in answers:
            images = questions.tasks[one.task_id] if one.pair_id is None else questions.pairs[one.pair_id]
            count_wins(wins, images, one.ranking or RANKING_OF_CHOICE.get(str(one.choice)))
        counts = Counter((one.pair_id, one.task_id) for one in answers)
        done = sum(count >= self.answers for count in counts.values())
        return wins, done, any(one.simulated for one in answers)

    def _end(self, questions: Questions) -> None:
        with self.database.write() as session:
            let_go(session, questions.pairs, questions.tasks)


def load_people_judge(place: Place, answers: int) -> PeopleJudge:
    """Ask the people of the project that is there for so many answers to each pair or task.

    Raises:
        UserError: its database cannot be opened, or fewer than one answer is asked for.
    """
    if answers < 1:
        raise UserError(f"{answers} answers of people: give 1 or more.")
    database = open_database(place.data, place.db)
    with database.read() as session:
        version = f"question {question_key(load_settings(session))}, {answers} answers"
    return PeopleJudge(database, place.data, place.run, answers, version)


def group_images(images: Tensor, names: Sequence[str]) -> Iterator[Made]:
    """The images of each face, that stand next to one another."""
    pngs = list(map_in_threads(encode_png, to_bytes(images)))
    for face, own in itertools.groupby(zip(names, pngs, strict=True), key=lambda item: item[0]):
        yield Made(face, [png for _, png in own])


def count_wins(wins: Wins, images: Sequence[int], ranking: str | None) -> None:
    """Add what one answer says of each two of these images; nothing, as a half, where it does not tell.

    Args:
        images: ids in the order of the ranking's letters.
        ranking: see `metrics.rankings`; None for a skip.
    """
    told = {(x, y): choice for x, y, choice in derive_pairs(ranking, len(images))} if ranking else {}
    for (x, first), (y, second) in itertools.combinations(zip(LETTERS, images, strict=False), 2):
        worth = WON[told.get((x, y), "tie")]
        wins.setdefault((first, second), []).append(worth)
        wins.setdefault((second, first), []).append(1.0 - worth)


def compute_shares(groups: Sequence[Group], wins: Wins) -> list[float]:
    """For each image the mean over the others of its group of what the answers are worth to it; equal ones tie."""
    shares: list[float] = []
    for group in groups:
        images = [row.image_id for row in group.rows]
        worth: npt.NDArray[np.float64] = np.full((len(images), len(images)), UNDECIDED)
        for (i, first), (j, second) in itertools.permutations(enumerate(images), 2):
            if first != second:
                worth[i, j] = np.mean(wins[first, second])
        others = max(1, len(images) - 1)
        shares += ((worth.sum(axis=1) - UNDECIDED) / others if len(images) > 1 else worth[:, 0]).tolist()
    return shares
