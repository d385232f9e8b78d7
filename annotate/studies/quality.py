"""Count a participant's answers, warn and stop by gold pairs, and end the way when all is answered.

A gold pair's answer is right, or wrong; a skipped one is neither. Nobody is stopped who was not warned before, nor on
the training: its pairs are only explained.
"""

from __future__ import annotations

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from annotate.studies.assign import STANDS, count_elsewhere, count_first_looks
from annotate.studies.create import note_event
from annotate.studies.settings import StudySettings
from annotate.studies.way import end
from db.models import Choice, Judgment, Pair, utc_now
from db.studies import Outcome, Participant, Stage, Study, StudyEvent, StudyPair

QUALIFICATION = "qualification"
"""Kind of the event with its result."""
COUNT = (
    update(StudyPair)
    .where(StudyPair.study_id == bindparam("study"), StudyPair.pair_id == bindparam("of"))
    .values(done=StudyPair.done + bindparam("change"))
)
GOLD_ANSWERS = (
    select(Judgment.choice, Pair.gold_answer)
    .join(Pair, Pair.id == Judgment.pair_id)
    .where(Judgment.person_id == bindparam("person"), *STANDS, Pair.gold_answer.is_not(None))
    .order_by(Judgment.id)
)


def count_gold(session: Session, person_id: int) -> tuple[int, int]:
    """(right, wrong) live answers of a person to gold pairs."""
    rows = session.connection().execute(GOLD_ANSWERS, {"person": person_id}).all()
    answered = [(choice, known) for choice, known in rows if choice != Choice.skip]
    right = sum(choice == known for choice, known in answered)
    return right, len(answered) - right


def count_answer(session: Session, participant: Participant, judgment: Judgment, change: int) -> None:
    """Keep the numbers of answers of the pair and the participant, as one came (+1) or went (−1).

    To be called in the transaction that adds or supersedes the judgment, once for each.
    """
    if judgment.repeat_no or judgment.pair_id is None:
        return
    of = {"study": participant.study_id, "of": judgment.pair_id, "change": change}
    if session.connection().execute(COUNT, of).rowcount:
        participant.answers += change


def judge_progress(session: Session, participant: Participant, settings: StudySettings) -> None:
    """After answers: let in or screen out, warn, stop, or end as done."""
    if participant.stage is Stage.qualification:
        _judge_qualification(session, participant, settings)
    elif participant.stage is Stage.task:
        _judge_attention(session, participant, settings)
        if participant.stage is Stage.task and participant.answers >= settings.answers:
            end(session, participant, Outcome.done, f"Gave all {settings.answers} answers.")
    session.flush()


def _judge_qualification(session: Session, participant: Participant, settings: StudySettings) -> None:
    if count_first_looks(session, participant.person_id) < settings.qualification:
        return
    right, wrong = count_gold(session, participant.person_id)
    note_event(session, participant.study_id, participant.id, QUALIFICATION, right=right, wrong=wrong)
    if right >= settings.qualification_right:
        participant.stage = Stage.task
        return
    said = f"{right} of {settings.qualification} qualification pairs right, {settings.qualification_right} needed."
    end(session, participant, Outcome.screened_out, said)


def _judge_attention(session: Session, participant: Participant, settings: StudySettings) -> None:
    if not settings.warn_after_wrong:
        return
    _, wrong = count_gold(session, participant.person_id)
    wrong -= _count_wrong_before(session, participant)
    if participant.warned_at is None and wrong >= settings.warn_after_wrong:
        participant.warned_at = utc_now()
        note_event(session, participant.study_id, participant.id, "warned", wrong=wrong)
    elif participant.warned_at is not None and 0 < settings.stop_after_wrong <= wrong:
        said = f"{wrong} wrong answers to gold pairs, after a warning at {settings.warn_after_wrong}."
        end(session, participant, Outcome.blocked, said)


def _count_wrong_before(session: Session, participant: Participant) -> int:
    """Wrong answers of the qualification, which let in all the same and count no second time."""
    of_it = (StudyEvent.participant_id == participant.id, StudyEvent.kind == QUALIFICATION)
    detail = session.scalar(select(StudyEvent.detail).where(*of_it).order_by(StudyEvent.id.desc()).limit(1))
    return 0 if detail is None else int(detail["wrong"])


def end_where_nothing_is_left(session: Session, participant: Participant, study: Study) -> None:
    """End as done who could be asked about nothing more, through no fault of theirs; who may still be, waits."""
    if participant.stage is Stage.task and not count_elsewhere(session, participant, study):
        end(session, participant, Outcome.done, f"No pair was left after {participant.answers} answers.")
