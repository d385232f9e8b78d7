"""Estimate what a study takes and costs before it is opened, from the time that answers took in this project."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.studies.settings import StudySettings
from db.models import Judgment, Pair, Person

FEWEST = 20
"""Timed answers below which the project's own time says little."""


@dataclass(frozen=True)
class Cost:
    """An estimate for one study."""

    timed: int
    """Answers of people to pairs whose time the server saw."""
    seconds: tuple[float, float, float] | None
    """(lower quartile, median, upper quartile) of an answer; None where none was timed."""
    asked: float
    """Answers of one participant in the mean: training, qualification, gold pairs and repeats too."""
    minutes: tuple[float, float, float]
    """Of one participant, from `seconds`; or thrice what the study expects."""
    pay_cents: int
    """What is owed if all places are filled, the panel's own fee aside."""
    rate_cents: tuple[float, float, float]
    """What the pay is an hour, for the slow, the median and the fast; 0 where it pays nothing."""
    top_up_cents: float
    """What lifts everybody to the announced rate if all take the upper quartile's time; 0 where none is needed."""


def list_seconds(session: Session) -> np.ndarray:
    """(n,) seconds of all live answers of people to pairs, as the server saw them."""
    statement = (
        select(Judgment.server_seconds)
        .join(Person, Person.id == Judgment.person_id)
        .where(
            Judgment.pair_id.is_not(None),
            Judgment.superseded_at.is_(None),
            Judgment.server_seconds.is_not(None),
            Person.simulated.is_(False),
        )
    )
    return np.array(session.scalars(statement).all(), dtype=float)


def count_asked(session: Session, settings: StudySettings) -> float:
    """Answers that one participant gives in the mean, all kinds together.

    Each showing of the task is a gold pair or a repeat by the study's shares, as far as there are any.
    """
    gold = session.scalar(select(func.count()).where(Pair.gold_answer.is_not(None))) or 0
    free = max(0, gold - len(settings.training) - settings.qualification)
    plain = 1 - settings.gold_share - settings.repeat_share
    showings = settings.answers / plain if plain > 0 else float("inf")
    in_task = sum(
        min(showings * share, most) if share else 0.0
        for share, most in ((settings.gold_share, free), (settings.repeat_share, settings.answers))
    )
    return len(settings.training) + settings.qualification + settings.answers + in_task


def estimate_cost(session: Session, settings: StudySettings) -> Cost:
    """What a study with these settings takes and costs if all its places are filled."""
    taken = np.minimum(list_seconds(session), settings.idle_seconds)  # what counts as time at work
    asked = count_asked(session, settings)
    seconds = None
    minutes = (settings.minutes_expected,) * 3
    if len(taken):
        low, median, high = (float(value) for value in np.quantile(taken, (0.25, 0.5, 0.75)))
        seconds = (low, median, high)
        minutes = (low * asked / 60, median * asked / 60, high * asked / 60)
    quick, middle, slow = (settings.pay_cents * 60 / value if value else 0.0 for value in minutes)
    lacking = max(0.0, settings.hourly_cents * minutes[2] / 60 - settings.pay_cents)
    return Cost(
        timed=len(taken),
        seconds=seconds,
        asked=asked,
        minutes=minutes,
        pay_cents=settings.places * settings.pay_cents,
        rate_cents=(slow, middle, quick),
        top_up_cents=lacking * settings.places,
    )


def describe_cost(cost: Cost, settings: StudySettings, wanted: int) -> list[str]:
    """The estimate in sentences.

    Args:
        wanted: answers that the study's pairs want.
    """
    low, median, high = cost.minutes
    if cost.seconds is None:
        said = "No answer to a pair was timed in this project yet"
        time = f"{said}: the {settings.minutes_expected:g} minutes that the study announces are taken."
    else:
        few = "" if cost.timed >= FEWEST else " (few: this says little)"
        time = (
            f"An answer takes {cost.seconds[1]:.1f} s ({cost.seconds[0]:.1f} to {cost.seconds[2]:.1f} for the middle "
            f"half), by {cost.timed:,} answers in this project{few}."
        )
    lines = [
        time,
        f"One participant gives {cost.asked:.0f} answers, gold pairs and repeats included: {median:.1f} minutes "
        f"({low:.1f} to {high:.1f}).",
        f"{settings.places:,} places: {settings.places * cost.asked:,.0f} answers, "
        f"{settings.places * median / 60:,.1f} hours; {settings.places * settings.answers:,} count for its pairs, "
        f"which want {wanted:,}.",
    ]
    pay = f"{_money(settings.pay_cents)} each, {_money(cost.pay_cents)} {settings.currency} in all, without the "
    lines.append(pay + "panel's fee." if settings.pay_cents else "The study pays nothing (pay_cents is 0).")
    if settings.pay_cents:
        slow, middle, quick = map(_money, cost.rate_cents)
        against = f", announced {_money(settings.hourly_cents)}" if settings.hourly_cents else ""
        lines.append(f"That is {middle} an hour ({slow} to {quick}){against}.")
    if cost.top_up_cents >= 1:
        lines.append(
            f"At the slower pace {_money(cost.top_up_cents)} {settings.currency} of top-ups are lacking to it; raise "
            "pay_cents or ask fewer answers."
        )
    return lines


def _money(cents: float) -> str:
    return f"{cents / 100:,.2f}"
