"""Let a participant's answers and pairs be those of their study; of everybody else there is nothing to do here."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, Counter
from annotate.judging.pairs import Draw
from annotate.studies.assign import check_slot, count_elsewhere, next_for_participant
from annotate.studies.quality import count_answer, end_where_nothing_is_left, judge_progress
from annotate.studies.settings import StudySettings, load_study_settings
from annotate.studies.way import find_participant, note_activity, time_out
from db.errors import UserError
from db.project import ProjectSettings
from db.studies import Participant, Stage
from ui.gate.access import Visitor

MANY, STEP = 25, 5
AT_WORK = (Stage.qualification, Stage.task)


@dataclass(frozen=True)
class StudyTurn:
    """One request of a participant to the labelling page's API."""

    session: Session
    participant: Participant
    settings: StudySettings

    def check(self, answer: Answer) -> None:
        """Refuse an answer that this participant may not give now.

        Raises:
            UserError: as said.
        """
        if self.participant.stage not in (*AT_WORK, Stage.ended):
            raise UserError("The study has not come to this yet; go back to its page.")
        check_slot(self.session, self.participant, self.participant.study, answer)

    @property
    def counter(self) -> Counter:
        """Counts an answer for the study."""
        return partial(count_answer, self.session, self.participant)

    def draw(self, project: ProjectSettings, rng: random.Random) -> Draw:
        """What leases the next pair."""
        participant = self.participant
        return partial(next_for_participant, self.session, participant, participant.study, self.settings, project, rng)

    def note_answers(self) -> None:
        """Count the time, and see where the participant stands after the answers of this request."""
        note_activity(self.participant, self.settings)
        judge_progress(self.session, self.participant, self.settings)

    @property
    def is_at_work(self) -> bool:
        """Whether pairs are shown."""
        return self.participant.stage in AT_WORK

    def end_where_nothing_is_left(self) -> None:
        """End the way of who holds nothing and can be shown nothing more."""
        end_where_nothing_is_left(self.session, self.participant, self.participant.study)

    def count_elsewhere(self) -> int:
        """Pairs that others look at just now and that may come back."""
        return count_elsewhere(self.session, self.participant, self.participant.study) if self.is_at_work else 0

    def view(self) -> dict[str, Any]:
        """What the page is told of the study."""
        participant = self.participant
        return {
            "stage": participant.stage,
            "answers": count_shown(participant.answers, self.settings.answers),
            "wanted": self.settings.answers,
            "warned": participant.warned_at is not None,
        }


def view_study(session: Session, visitor: Visitor) -> dict[str, Any] | None:
    """What the page is told of a participant's study, without their turn; None for whoever is no participant."""
    participant = find_participant(session, visitor.person_id) if visitor.participant else None
    if participant is None:
        return None
    return StudyTurn(session, participant, load_study_settings(participant.study)).view()


def count_shown(answers: int, wanted: int) -> int:
    """The number of answers as a participant reads it, in steps where there are many.

    Counted one by one, an answer that leaves the number as it is would be known as one to a gold pair or a repeat.
    """
    if answers >= wanted or wanted < MANY:
        return answers
    return answers // STEP * STEP


def find_study_turn(session: Session, visitor: Visitor) -> StudyTurn | None:
    """The participant's turn, their other requests kept waiting; None for whoever is no participant."""
    if not visitor.participant:
        return None
    participant = find_participant(session, visitor.person_id, lock=True)
    if participant is None:
        return None
    time_out(session, participant)
    return StudyTurn(session, participant, load_study_settings(participant.study))
