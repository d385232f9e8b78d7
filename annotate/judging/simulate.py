"""Let a program judge pairs and tasks as the labelling page asks them, marked as simulated, to try out what follows.

It sees what no person has, the ground truth, and says nothing about what people like.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.pairs import next_pair
from annotate.judging.people import add_person, find_person
from db.errors import UserError
from db.images import fetch_image
from db.models import Asked, Candidate, Choice, Image, Lease, Pair, Person, Source, Task, utc_now
from db.project import load_settings
from db.session import Database
from metrics.rankings import write_ranking
from pixels.read import read_rgb

ANNOTATOR = "simulated annotator"
SEEN_PX = 128
"""Side of the grey picture that it looks at: as from a distance."""
TIE = 0.002
"""A smaller difference of its scores than this is a tie."""
LEASE = timedelta(minutes=5)

Score = Callable[[Session, int], float]
"""(session, candidate id) -> how good it finds that restored image; higher is better."""


def get_annotator(session: Session, name: str = ANNOTATOR) -> Person:
    """The simulated annotator of that name, added where there is none.

    Raises:
        UserError: a real person has that name.
    """
    person = find_person(session, name) or add_person(session, name, simulated=True)
    if not person.simulated:
        raise UserError(f"{person.name!r} is a person; give the simulated annotator another name.")
    return person


def check_ground_truth(session: Session) -> None:
    """Refuse a project in which a photo with pairs, which a task has too, has no ground truth to compare with.

    Raises:
        UserError: one or more have none.
    """
    with_pairs = select(func.count(Source.id.distinct())).join(Pair, Pair.source_id == Source.id)
    lacking = session.scalar(with_pairs.where(Source.hq_image_id.is_(None))) or 0
    if lacking:
        raise UserError(
            f"{lacking:,} photos with pairs have no ground truth (hq), which the simulated annotator judges by. "
            "Import them with an hq/ folder."
        )


def judge_pairs(
    database: Database,
    person_id: int,
    score: Score,
    *,
    count: int,
    noise: float,
    seed: int,
    tell: Callable[[int], None] = lambda _done: None,
) -> tuple[int, int]:
    """Answer so many pairs or tasks, or all that want it if they are fewer; (answers, how many of them by lot).

    Args:
        noise: share of wrong answers: of a pair twice as many are drawn by lot, of which half agree with its score; of
            a task so many more as answers to it could be right by chance.
        tell: is told after each answer how many there are.
    """
    rng, by_lot = random.Random(seed), 0
    for done in range(count):
        with database.write() as session:
            lease = next_pair(session, person_id, load_settings(session), rng, utc_now() + LEASE)
            if lease is None:
                return done, by_lot
            choice, ranking, drawn = _choose(session, lease, score, noise, rng)
            by_lot += drawn
            uuid = str(UUID(int=rng.getrandbits(128), version=4))
            seconds = rng.lognormvariate(0.7, 0.5)  # some two, as people take; and as many for any two more to look at
            answer = Answer(
                uuid,
                lease.pair_id,
                lease.repeat_no,
                lease.shown_left,
                choice,
                round(seconds * len(lease.places or "ab") / 2, 2),
                picked=lease.picked,
                task_id=lease.task_id,
                ranking=ranking,
                places=lease.places,
                asked=lease.asked,
            )
            record_judgment(session, person_id, answer)
        tell(done + 1)
    return count, by_lot


def _choose(
    session: Session, lease: Lease, score: Score, noise: float, rng: random.Random
) -> tuple[Choice | None, str | None, bool]:
    """(choice of a pair, ranking of a task, whether it was drawn by lot)."""
    if lease.task_id is None:
        pair = session.get_one(Pair, lease.pair_id)
        a, b = score(session, pair.a_id), score(session, pair.b_id)
        choice = Choice.tie if abs(a - b) < TIE else Choice.a if a > b else Choice.b
        drawn = rng.random() < 2 * noise
        return rng.choice([Choice.a, Choice.b]) if drawn else choice, None, drawn
    task = session.get_one(Task, lease.task_id)
    scores = {one.letter: score(session, one.candidate_id) for one in task.candidates}
    return None, *answer_scores(scores, lease.asked, noise, rng)


def answer_scores(scores: Mapping[str, float], asked: Asked, noise: float, rng: random.Random) -> tuple[str, bool]:
    """(the answer of somebody with these scores who is wrong in a share `noise` of answers, whether drawn by lot)."""
    size = len(scores)
    answers = {Asked.best: size, Asked.best_worst: size * (size - 1)}.get(asked, math.factorial(size))
    drawn = rng.random() < noise / (1 - 1 / answers)
    if drawn:
        scores = {letter: float(place) for place, letter in enumerate(rng.sample(sorted(scores), size))}
    return rank_scores(scores, asked), drawn


def rank_scores(scores: Mapping[str, float], asked: Asked) -> str:
    """What somebody with these scores says when asked so; neighbours less than TIE apart are tied.

    Args:
        scores: by letter of a task; higher is better.
    """
    best_first = sorted(scores, key=lambda letter: -scores[letter])
    tiers = [best_first[0]]
    for above, letter in itertools.pairwise(best_first):
        if scores[above] - scores[letter] < TIE:
            tiers[-1] += letter
        else:
            tiers.append(letter)
    if len(tiers) == 1 or asked is Asked.order:
        return write_ranking(tiers, len(scores))
    worst = tiers[-1:] if asked is Asked.best_worst else []
    return write_ranking(tiers[:1], len(scores), worst)


class SimilarityScore:
    """Likeness to the ground truth: SSIM of small grey pictures, in [-1, 1]."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.known: dict[int, float] = {}

    def __call__(self, session: Session, candidate_id: int) -> float:
        """The candidate's score, computed once.

        Raises:
            UserError: an image cannot be read.
        """
        if candidate_id not in self.known:
            from skimage.metrics import structural_similarity  # here: it loads scipy, which other commands need not

            candidate = session.get_one(Candidate, candidate_id)
            truth = session.get_one(Image, candidate.source.hq_image_id)
            restored, original = (self._look_at(image) for image in (candidate.image, truth))
            ssim: float = structural_similarity(restored, original, data_range=255)  # type: ignore[no-untyped-call]
            self.known[candidate_id] = float(ssim)
        return self.known[candidate_id]

    def _look_at(self, image: Image) -> npt.NDArray[np.uint8]:
        picture = PilImage.fromarray(read_rgb(fetch_image(self.data, image.sha256, image.suffix)))
        return np.asarray(picture.convert("L").resize((SEEN_PX, SEEN_PX), PilImage.Resampling.BOX))
