"""Let a program judge pairs as the labelling page asks them, marked as simulated, to try out what follows.

It sees what no person has, the ground truth, and says nothing about what people like.
"""

from __future__ import annotations

import random
from collections.abc import Callable
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
from db.images import image_path
from db.models import Candidate, Choice, Image, Pair, Person, Source, utc_now
from db.project import load_settings
from db.session import Database
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
    """Refuse a project in which a photo with pairs has no ground truth to compare with.

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
    """Answer so many pairs, or all that want an answer if they are fewer; (answers, how many of them by lot).

    Args:
        noise: share of wrong answers: twice as many are drawn by lot, of which half agree with its score.
        tell: is told after each answer how many there are.
    """
    rng, by_lot = random.Random(seed), 0
    for done in range(count):
        with database.write() as session:
            lease = next_pair(session, person_id, load_settings(session), rng, utc_now() + LEASE)
            if lease is None:
                return done, by_lot
            pair = session.get_one(Pair, lease.pair_id)
            a, b = score(session, pair.a_id), score(session, pair.b_id)
            choice = Choice.tie if abs(a - b) < TIE else Choice.a if a > b else Choice.b
            if rng.random() < 2 * noise:
                choice = rng.choice([Choice.a, Choice.b])
                by_lot += 1
            uuid = str(UUID(int=rng.getrandbits(128), version=4))
            seconds = round(rng.lognormvariate(0.7, 0.5), 2)  # some two seconds, as people take
            answer = Answer(uuid, pair.id, lease.repeat_no, lease.shown_left, choice, seconds, picked=lease.picked)
            record_judgment(session, person_id, answer)
        tell(done + 1)
    return count, by_lot


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
        picture = PilImage.fromarray(read_rgb(image_path(self.data, image.sha256, image.suffix)))
        return np.asarray(picture.convert("L").resize((SEEN_PX, SEEN_PX), PilImage.Resampling.BOX))
