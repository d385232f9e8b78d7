"""Choose the pair that a participant of a study sees next, so that no quota is ever exceeded.

A slot of a pair is free while it wants more answers than it has and others look at it for. The strata come in turn:
first the one that this participant has answered least of.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, exists, func, select, union_all
from sqlalchemy.orm import Session, aliased

from annotate.judging.judgments import OF_UUID, Answer
from annotate.judging.pairs import Turn, make_lease, pick_gold, pick_repeat
from annotate.judging.queue import ASKER, BESIDES, INSERT_LEASE, PAIR_QUEUE
from annotate.studies.settings import StudySettings
from db.errors import UserError
from db.models import Judgment, Lease, Pair, Picked
from db.pairs import SHUFFLE_RANGE
from db.project import ProjectSettings
from db.records import insert_row
from db.studies import Participant, Stage, Study, StudyPair

STUDY = bindparam("study", type_=StudyPair.study_id.type)
_held = aliased(Lease)
_holder = aliased(Participant)
OTHERS_HOLD = (
    select(func.count(_held.id))
    .join(_holder, _holder.person_id == _held.person_id)
    .where(
        _held.pair_id == StudyPair.pair_id,
        _held.repeat_no == 0,
        _holder.study_id == StudyPair.study_id,
        _held.person_id != ASKER,
    )
    .scalar_subquery()
)
"""Slots of a pair that other participants of the study look at."""
FREE = StudyPair.wanted - StudyPair.done - OTHERS_HOLD > 0
NEW_TO_ASKER = (
    ~exists().where(
        Judgment.pair_id == StudyPair.pair_id, Judgment.person_id == ASKER, Judgment.superseded_at.is_(None)
    ),
    ~exists().where(Lease.pair_id == StudyPair.pair_id, Lease.person_id == ASKER),
    StudyPair.pair_id.not_in(BESIDES),
)
STANDS = (Judgment.repeat_no == 0, Judgment.superseded_at.is_(None))
_taken = union_all(
    select(Judgment.pair_id).where(Judgment.person_id == ASKER, *STANDS),
    select(Lease.pair_id).where(Lease.person_id == ASKER, Lease.repeat_no == 0),
).subquery()
"""Pairs that the asker answered or looks at."""
_asked, _other = aliased(Pair), aliased(Pair)
SEEN_OF_PHOTO = (
    select(func.count(_taken.c.pair_id))
    .join(_other, _other.id == _taken.c.pair_id)
    .where(_other.source_id == _asked.source_id, _other.gold_answer.is_(None))
    .correlate(_asked)
    .scalar_subquery()
)
"""How many of them are of a pair's photo."""
OF_STRATUM = (StudyPair.study_id == STUDY, StudyPair.stratum == bindparam("stratum"))
NEXT_LEVEL = select(func.min(StudyPair.done)).where(
    *OF_STRATUM, StudyPair.done > bindparam("above"), StudyPair.done < StudyPair.wanted
)
OF_LEVEL = (*OF_STRATUM, StudyPair.done == bindparam("level"), FREE, *NEW_TO_ASKER)
OWN_OF_STRATA = (
    select(StudyPair.stratum, func.count())
    .join(_taken, _taken.c.pair_id == StudyPair.pair_id)
    .where(StudyPair.study_id == STUDY)
    .group_by(StudyPair.stratum)
)
"""The same by stratum."""
OWN_HELD = (
    select(func.count(Lease.id))
    .join(StudyPair, StudyPair.pair_id == Lease.pair_id)
    .where(StudyPair.study_id == STUDY, Lease.person_id == ASKER, Lease.repeat_no == 0)
)
STILL_FREE = select(StudyPair.pair_id).where(
    StudyPair.study_id == STUDY, StudyPair.pair_id == bindparam("of"), FREE, *NEW_TO_ASKER
)
ELSEWHERE = (
    select(func.count(StudyPair.pair_id))
    .where(StudyPair.study_id == STUDY, StudyPair.done < StudyPair.wanted, *NEW_TO_ASKER)
    .where(OTHERS_HOLD > 0)
)
"""Pairs that would be the asker's if others did not look at them."""


def _walk(capped: bool) -> tuple[Select[Any], Select[Any]]:
    """The first free pair at or after `start` in the shuffled order, and before it."""
    first = select(StudyPair.pair_id).where(*OF_LEVEL).order_by(StudyPair.shuffle_key).limit(1)
    if capped:
        first = first.join(_asked, _asked.id == StudyPair.pair_id).where(bindparam("cap") > SEEN_OF_PHOTO)
    # PostgreSQL: one that another request is judging or leasing is passed over rather than waited for.
    first = first.with_for_update(skip_locked=True, of=StudyPair)
    start: ColumnElement[int] = bindparam("start", type_=StudyPair.shuffle_key.type)
    return first.where(StudyPair.shuffle_key >= start), first.where(StudyPair.shuffle_key < start)


WALKS = {capped: _walk(capped) for capped in (False, True)}


def next_for_participant(
    session: Session,
    participant: Participant,
    study: Study,
    settings: StudySettings,
    project: ProjectSettings,
    rng: random.Random,
    expires_at: datetime,
    *,
    besides: Sequence[int] = (),
) -> Lease | None:
    """Lease what this participant sees next: a gold pair of the qualification, then pairs of the study.

    Now and then, by the study's shares, a gold pair or an own pair again in the place of the latter.

    Args:
        besides: ids of pairs that are not wanted.
    Returns:
        None where the participant has what they are asked for, or no pair is free for them.
    """
    own = project.model_copy(update={"gold_share": settings.gold_share, "repeat_share": settings.repeat_share})
    turn = Turn(session, participant.person_id, own, rng, list(besides), [], PAIR_QUEUE, None)
    if participant.stage is Stage.qualification:
        lease = _next_of_qualification(turn, settings)
    elif participant.stage is Stage.task:
        lease = _next_of_task(turn, participant, study, settings)
    else:
        return None
    if lease is not None:
        lease.expires_at = expires_at
        insert_row(session, INSERT_LEASE, lease)
    return lease


def count_first_looks(session: Session, person_id: int) -> int:
    """Live answers of a person, repeats aside."""
    return session.scalar(select(func.count()).where(Judgment.person_id == person_id, *STANDS)) or 0


def _next_of_qualification(turn: Turn, settings: StudySettings) -> Lease | None:
    asked = count_first_looks(turn.session, turn.person_id)
    held = turn.session.scalar(select(func.count()).where(Lease.person_id == turn.person_id))
    if asked + (held or 0) >= settings.qualification:
        return None
    return pick_gold(_besides_training(turn, settings), PAIR_QUEUE)


def _besides_training(turn: Turn, settings: StudySettings) -> Turn:
    """A turn in which no pair of the training comes, for its answer was told."""
    shown = [item.pair for item in settings.training]
    told = turn.session.scalars(select(Pair.id).where(Pair.key.in_(shown))).all() if shown else []
    return replace(turn, besides=[*turn.besides, *told])


def _next_of_task(turn: Turn, participant: Participant, study: Study, settings: StudySettings) -> Lease | None:
    asking = {**turn.asking(PAIR_QUEUE), "study": study.id}
    held = turn.session.connection().scalar(OWN_HELD, asking) or 0
    if participant.answers + held >= settings.answers:
        return None
    draw = turn.rng.random()
    lease = None
    if draw < settings.repeat_share:
        lease = pick_repeat(turn, PAIR_QUEUE)
    elif draw < settings.repeat_share + settings.gold_share:
        lease = pick_gold(_besides_training(turn, settings), PAIR_QUEUE)
    return lease or _lease_study_pair(turn, study, settings, asking)


def _lease_study_pair(turn: Turn, study: Study, settings: StudySettings, asking: dict[str, object]) -> Lease | None:
    counted = turn.session.connection().execute(OWN_OF_STRATA, asking).all()
    own = {stratum: count for stratum, count in counted}  # noqa: C416, a row is no pair to mypy
    for stratum in sorted(study.strata, key=lambda one: (own.get(one, 0), turn.rng.random())):
        found = _find_in_stratum(turn, settings, {**asking, "stratum": stratum})
        if found is not None:
            return make_lease(turn, PAIR_QUEUE, found, Picked.random)
    return None


def _find_in_stratum(turn: Turn, settings: StudySettings, asking: dict[str, object]) -> int | None:
    """Least-answered first, random within."""
    run = turn.session.connection()
    alone = turn.session.get_bind().dialect.name == "sqlite"
    walk = WALKS[settings.answers_per_photo > 0]
    level: int | None = -1
    while (level := run.scalar(NEXT_LEVEL, {**asking, "above": level})) is not None:
        start = turn.rng.randrange(SHUFFLE_RANGE)
        for statement in walk:
            values = {**asking, "level": level, "start": start, "cap": settings.answers_per_photo}
            while (found := run.scalar(statement, values)) is not None:
                # PostgreSQL locked the row only now: another's lease may have come in after it was looked at.
                if alone or run.scalar(STILL_FREE, {**asking, "of": found}) is not None:
                    return int(found)
                values = {**values, "besides": [*values["besides"], found]}  # type: ignore[misc]
    return None


def count_elsewhere(session: Session, participant: Participant, study: Study) -> int:
    """Pairs that others look at just now and that would be this participant's if they gave them back."""
    asking = {"asker": participant.person_id, "besides": [], "study": study.id}
    return int(session.connection().scalar(ELSEWHERE, asking) or 0)


def check_slot(session: Session, participant: Participant, study: Study, answer: Answer) -> None:
    """Refuse an answer that comes so late that its slot is another's.

    Raises:
        UserError: as said; or the participant's way has ended.
    """
    if participant.stage is Stage.ended:
        raise UserError("Your part in this study has ended; this answer is not counted.")
    if answer.pair_id is None:
        raise UserError("A study asks about pairs; reload the page.")
    if answer.repeat_no or answer.replaces is not None:
        return
    asking = {"asker": participant.person_id, "study": study.id, "of": answer.pair_id}
    held = select(Lease.id).where(Lease.pair_id == answer.pair_id, Lease.person_id == participant.person_id)
    if session.scalar(held) is not None or session.scalar(OF_UUID, {"uuid": answer.uuid}) is not None:
        return
    of_study = select(StudyPair.pair_id).where(StudyPair.study_id == STUDY, StudyPair.pair_id == bindparam("of"))
    free = session.connection().scalar(of_study.where(FREE).with_for_update(of=StudyPair), asking)
    if free is None or session.connection().scalar(of_study.where(FREE), asking) is None:
        raise UserError("This pair was open for too long and was given to somebody else; this answer is not counted.")
