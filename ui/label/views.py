"""Show a page its pairs, tasks and own answers: addresses of images, and nothing that tells a method or a repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, joinedload

from db.models import Candidate, Choice, Image, Judgment, Lease, Pair, Side, Source, Task, TaskCandidate
from db.project import load_settings, question_key
from metrics.rankings import LETTERS, read_ranking
from ui.gate.access import Visitor
from ui.label.showings import Showings, Shown, name_shown
from ui.label.stored_images import StoredImage

Images = Mapping[Shown, Sequence[StoredImage | None]]
"""Of a pair or task the images of its candidates by their letters, then lq and hq."""


def _parts_of(image: type[Image]) -> list[InstrumentedAttribute[Any]]:
    return [getattr(image, name) for name in StoredImage._fields]


_A, _B = aliased(Candidate), aliased(Candidate)
_IMAGE_A, _IMAGE_B, _LQ, _HQ = (aliased(Image) for _ in range(4))
IMAGES_OF_PAIRS = (
    select(Pair.id, *(part for image in (_IMAGE_A, _IMAGE_B, _LQ, _HQ) for part in _parts_of(image)))
    .join(_A, _A.id == Pair.a_id)
    .join(_B, _B.id == Pair.b_id)
    .join(_IMAGE_A, _IMAGE_A.id == _A.image_id)
    .join(_IMAGE_B, _IMAGE_B.id == _B.image_id)
    .join(Source, Source.id == Pair.source_id)
    .outerjoin(_LQ, _LQ.id == Source.lq_image_id)
    .outerjoin(_HQ, _HQ.id == Source.hq_image_id)
    .where(Pair.id.in_(bindparam("ids", expanding=True)))
)
"""Built once, as the next one, for it is asked with every answer and takes longer to build than to run."""
IMAGES_OF_TASKS = (
    select(Task.id, *(part for image in (_IMAGE_A, _LQ, _HQ) for part in _parts_of(image)))
    .join(TaskCandidate, TaskCandidate.task_id == Task.id)
    .join(_A, _A.id == TaskCandidate.candidate_id)
    .join(_IMAGE_A, _IMAGE_A.id == _A.image_id)
    .join(Source, Source.id == Task.source_id)
    .outerjoin(_LQ, _LQ.id == Source.lq_image_id)
    .outerjoin(_HQ, _HQ.id == Source.hq_image_id)
    .where(Task.id.in_(bindparam("ids", expanding=True)))
    .order_by(TaskCandidate.task_id, TaskCandidate.letter)
)
"""A row a candidate."""


def load_images(session: Session, rows: Sequence[Lease | Judgment]) -> Images:
    """Facts of all images of these pairs and tasks."""
    shown = [name_shown(row) for row in rows]
    pairs, tasks = ([number for kind, number in shown if kind == wanted] for wanted in ("pair", "task"))
    found: dict[Shown, Sequence[StoredImage | None]] = {}
    run = session.connection()
    if pairs:
        for number, *parts in run.execute(IMAGES_OF_PAIRS, {"ids": pairs}):
            found["pair", number] = _read_images(parts)
    if tasks:
        for number, *parts in run.execute(IMAGES_OF_TASKS, {"ids": tasks}):
            before = found.get(("task", number), ())[:-2]
            found["task", number] = [*before, *_read_images(parts)]
    return found


def _read_images(row: list[Any]) -> list[StoredImage | None]:
    size = len(StoredImage._fields)
    cuts = [row[start : start + size] for start in range(0, len(row), size)]
    return [None if cut[0] is None else StoredImage(*cut) for cut in cuts]


def view_shown(
    showings: Showings, visitor: Visitor, leases: Sequence[Lease], images: Images, question: str
) -> list[dict[str, Any]]:
    """Describe each leased pair and task to the page, with the token that its answer brings back.

    Args:
        images: of these, and perhaps of others.
        question: key of the present version of the question.
    """
    return [
        {
            "showing": showings.seal(visitor, lease, question),
            **({} if lease.task_id is None else {"asked": lease.asked.value}),
            **_view_images(showings, visitor, lease, images),
        }
        for lease in leases
    ]


def _view_images(showings: Showings, visitor: Visitor, row: Lease | Judgment, images: Images) -> dict[str, Any]:
    """The images as they stand, or stood, on the screen: left and right of a pair, all in their order of a task."""
    *candidates, lq, hq = (_view_image(showings, visitor, image, row) for image in images[name_shown(row)])
    around = {"lq": lq, "hq": hq}
    if row.places is not None:
        return {"images": [candidates[LETTERS.index(letter)] for letter in row.places], **around}
    left, right = candidates if row.shown_left == Side.a else reversed(candidates)
    return {"left": left, "right": right, **around}


def _view_image(
    showings: Showings, visitor: Visitor, image: StoredImage | None, row: Lease | Judgment
) -> dict[str, Any] | None:
    if image is None:
        return None
    url = showings.image_address(visitor, image.sha256, image.suffix, row)
    return {"url": url, "width": image.width_px, "height": image.height_px}


def own_history(session: Session, showings: Showings, visitor: Visitor, limit: int) -> list[dict[str, Any]]:
    """A person's own live judgments, newest first, as they saw the pairs and tasks."""
    present = question_key(load_settings(session))
    judgments = session.scalars(
        select(Judgment)
        .options(joinedload(Judgment.question))
        .where(Judgment.person_id == visitor.person_id, Judgment.superseded_at.is_(None))
        .order_by(Judgment.id.desc())
        .limit(limit)
    ).all()
    images = load_images(session, judgments)
    entries = []
    for judgment in judgments:
        question = judgment.question
        seen = _view_answer_to_pair(judgment) if judgment.task_id is None else _view_answer_to_task(judgment)
        entries.append(
            {
                "judgment": judgment.uuid,
                "skip_reason": judgment.skip_reason,
                "reasons": judgment.reasons,
                **_view_images(showings, visitor, judgment, images),
                **seen,
                "created_at": _iso(judgment.created_at),
                "asked": question.question if question and question.key != present else None,
                "can_undo": True,
            }
        )
    return entries


def _view_answer_to_pair(judgment: Judgment) -> dict[str, Any]:
    choice = judgment.choice
    if choice not in (Choice.a, Choice.b):
        return {"choice": choice}
    return {"choice": "left" if judgment.shown_left is not None and choice == judgment.shown_left.value else "right"}


def _view_answer_to_task(judgment: Judgment) -> dict[str, Any]:
    """The answer by places on the screen; `rest` are those that were not told apart."""
    if judgment.ranking is None or judgment.places is None:
        return {"choice": judgment.choice, "tiers": [], "rest": [], "worst": []}
    tiers, rest, worst = read_ranking(judgment.ranking, len(judgment.places))
    places = judgment.places.index
    return {
        "choice": "ranked",
        "tiers": [sorted(map(places, tier)) for tier in tiers],
        "rest": sorted(map(places, rest)),
        "worst": [sorted(map(places, tier)) for tier in worst],
    }


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
