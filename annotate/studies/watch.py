"""Say how a study stands: who is where, which places are left, how well people judge, what they were paid."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, aliased

from annotate.studies.create import count_wanted
from annotate.studies.money import find_quartiles, find_reached, list_participants, list_payments, list_rates, number_of
from annotate.studies.settings import load_study_settings
from annotate.studies.way import count_places_taken
from db.models import Choice, Judgment, Pair
from db.studies import Outcome, PanelEntry, Participant, Stage, Study
from metrics.accuracy import compute_wilson

ORDER = list(Stage)
PASSED = {
    "arrived": Stage.information,
    "consented": Stage.screen,
    "screened": Stage.training,
    "trained": Stage.qualification,
    "qualified": Stage.task,
}
"""A step of the way -> the stage that who has passed it has come to."""


@dataclass(frozen=True)
class Standing:
    """One participant, by number."""

    number: int
    stage: Stage
    outcome: Outcome | None
    reason: str | None
    answers: int
    gold_right: int
    gold_wrong: int
    repeats: int
    repeats_same: int
    left: int
    """Answers for the image on the left."""
    sided: int
    """Answers for either image."""
    warned: bool
    active_seconds: float
    has_id: bool
    """Whether the panel's id of this participant is still here."""

    @property
    def flagged(self) -> bool:
        """Whether reports without the doubtful leave their answers out: warned by gold pairs, or stopped."""
        return self.warned or self.outcome is Outcome.blocked


def list_standings(session: Session, study: Study) -> list[Standing]:
    """All participants by number."""
    gold, repeats, sides = (count(session, study) for count in (_count_gold, _count_repeats, _count_sides))
    with_id = set(session.scalars(select(PanelEntry.participant_id).where(PanelEntry.study_id == study.id)))
    return [
        Standing(
            number_of(one),
            one.stage,
            one.outcome,
            one.reason,
            one.answers,
            *gold.get(one.person_id, (0, 0)),
            *repeats.get(one.person_id, (0, 0)),
            *sides.get(one.person_id, (0, 0)),
            one.warned_at is not None,
            one.active_seconds,
            one.id in with_id,
        )
        for one in list_participants(session, study)
    ]


def _of_study(study: Study) -> tuple[Any, ...]:
    people = select(Participant.person_id).where(Participant.study_id == study.id)
    return (Judgment.person_id.in_(people), Judgment.superseded_at.is_(None), Judgment.choice != Choice.skip)


def _sum(condition: Any) -> Any:
    return func.sum(case((condition, 1), else_=0))


def _count_gold(session: Session, study: Study) -> dict[int, tuple[int, int]]:
    """Person -> (right, wrong) answers to gold pairs; skipped ones are neither."""
    right = Judgment.choice == Pair.gold_answer
    rows = select(Judgment.person_id, _sum(right), _sum(~right)).join(Pair, Pair.id == Judgment.pair_id)
    of = (*_of_study(study), Judgment.repeat_no == 0, Pair.gold_answer.is_not(None))
    return _by_person(session, rows.where(*of))


def _count_repeats(session: Session, study: Study) -> dict[int, tuple[int, int]]:
    """Person -> (answers to a pair shown before, those that say the same as the first time)."""
    first = aliased(Judgment)
    rows = select(Judgment.person_id, func.count(), _sum(Judgment.choice == first.choice)).join(
        first,
        (first.person_id == Judgment.person_id)
        & (first.pair_id == Judgment.pair_id)
        & (first.repeat_no == 0)
        & first.superseded_at.is_(None)
        & (first.choice != Choice.skip),
    )
    return _by_person(session, rows.where(*_of_study(study), Judgment.repeat_no > 0))


def _count_sides(session: Session, study: Study) -> dict[int, tuple[int, int]]:
    """Person -> (answers for the left image, answers for either)."""
    left = Judgment.choice == Judgment.shown_left
    rows = select(Judgment.person_id, _sum(left), func.count())
    sided = (Judgment.choice.in_([Choice.a, Choice.b]), Judgment.shown_left.is_not(None))
    return _by_person(session, rows.where(*_of_study(study), *sided))


def _by_person(session: Session, statement: Any) -> dict[int, tuple[int, int]]:
    rows = session.execute(statement.group_by(Judgment.person_id))
    return {person: (int(first), int(second)) for person, first, second in rows}


def describe_study(session: Session, study: Study) -> dict[str, Any]:
    """All that a page or the terminal shows of one study, as JSON; no panel's id is in it."""
    settings = load_study_settings(study)
    standings = list_standings(session, study)
    wanted, done = count_wanted(session, study)
    return {
        "name": study.name,
        "state": study.state.value,
        "panel": settings.panel,
        "title": settings.title,
        "link": study.link,
        "places": settings.places,
        "places_left": max(0, settings.places - count_places_taken(session, study)),
        "answers_wanted": wanted,
        "answers_done": done,
        "flow": count_flow(session, study, standings),
        "ended": count_ends(standings),
        "quality": describe_quality(standings),
        "pay": describe_pay(session, study),
        "participants": [{**asdict(one), "flagged": one.flagged} for one in standings],
    }


def count_flow(session: Session, study: Study, standings: list[Standing]) -> dict[str, int]:
    """Step -> participants who have passed it, those who are at work now, and those who are done."""
    reached = find_reached(session, study)
    at = [reached.get(one.id, one.stage) for one in list_participants(session, study)]
    flow = {
        step: sum(ORDER.index(stage) >= ORDER.index(least) for stage in at if stage is not Stage.ended)
        for step, least in PASSED.items()
    }
    flow["at work"] = sum(one.stage in (Stage.qualification, Stage.task) for one in standings)
    flow["done"] = sum(one.outcome is Outcome.done for one in standings)
    return flow


def count_ends(standings: list[Standing]) -> list[dict[str, Any]]:
    """Each outcome but done, with its number and the commonest reasons of it."""
    ends = []
    for outcome in Outcome:
        of_it = [one for one in standings if one.outcome is outcome and outcome is not Outcome.done]
        if of_it:
            reasons = Counter(one.reason or "" for one in of_it).most_common(3)
            ends.append({"outcome": outcome.value, "count": len(of_it), "reasons": reasons})
    return ends


def describe_quality(standings: list[Standing]) -> dict[str, Any]:
    """Shares over all participants, with their 95 % Wilson intervals; None where there is nothing to count."""
    right, wrong = sum(one.gold_right for one in standings), sum(one.gold_wrong for one in standings)
    return {
        "gold": _share(right, right + wrong),
        "repeats": _share(sum(one.repeats_same for one in standings), sum(one.repeats for one in standings)),
        "left": _share(sum(one.left for one in standings), sum(one.sided for one in standings)),
        "warned": sum(one.warned for one in standings),
        "stopped": sum(one.outcome is Outcome.blocked for one in standings),
    }


def _share(part: int, of: int) -> dict[str, Any] | None:
    if not of:
        return None
    low, high = compute_wilson(part, of)
    return {"part": part, "of": of, "share": part / of, "low": low, "high": high}


def describe_pay(session: Session, study: Study) -> dict[str, Any]:
    """What the ledger holds, and the hourly rate of those who are done against the announced one."""
    settings = load_study_settings(study)
    payments = list_payments(session, study)
    rates = list_rates(session, study)
    return {
        "currency": settings.currency,
        "owed_cents": sum(payment.cents for payment in payments),
        "paid_cents": sum(payment.cents for payment in payments if payment.paid_at is not None),
        "by_kind": {
            kind: sum(payment.cents for payment in payments if payment.kind == kind)
            for kind in sorted({payment.kind.value for payment in payments})
        },
        "announced_cents": settings.hourly_cents,
        "quartiles_cents": find_quartiles(rates),
        "below": [[rate.number, rate.top_up_cents] for rate in rates if rate.top_up_cents],
        "top_up_cents": sum(rate.top_up_cents for rate in rates),
    }
