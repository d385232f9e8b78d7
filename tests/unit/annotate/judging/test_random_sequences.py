"""Whatever several people do in whatever order: counts are right, nothing is judged twice, no slot is overfilled."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, record_judgment, undo_judgment
from annotate.judging.pairs import lease_pairs, make_pairs
from annotate.judging.people import add_person
from db.models import Choice, Judgment, Lease, Pair, Side
from db.project import ProjectSettings
from tests.making import add_candidates

PEOPLE = 3
a_person = st.integers(0, PEOPLE - 1)
a_step = st.one_of(
    st.tuples(st.just("ask"), a_person, st.integers(1, 3)),
    st.tuples(st.just("judge"), a_person, st.sampled_from(Choice)),
    st.tuples(st.just("judge"), a_person, st.sampled_from(Choice)),
    st.tuples(st.just("answer anew"), a_person, st.integers(0, 20)),
    st.tuples(st.just("send again"), a_person, st.integers(0, 20)),
    st.tuples(st.just("undo"), a_person, st.integers(0, 20)),
)


@dataclass(frozen=True)
class Shown:
    """A pair on a page; its lease's row may be gone by the time of the answer."""

    pair_id: int
    repeat_no: int
    shown_left: Side

    @classmethod
    def of(cls, lease: Lease) -> Shown:
        return cls(lease.pair_id, lease.repeat_no, lease.shown_left)


class Page:
    """What one person's browser holds and has sent."""

    def __init__(self, person_id: int) -> None:
        self.person_id = person_id
        self.showing: list[Shown] = []
        self.sent: list[Answer] = []


def take(session: Session, page: Page, settings: ProjectSettings, rng: random.Random, action: str, what: int | Choice):
    """One step of a person at their page."""
    uuid = str(UUID(int=rng.getrandbits(128), version=4))
    if action == "ask" or (action == "judge" and not page.showing):
        holding = [shown.pair_id for shown in page.showing]
        count = what if isinstance(what, int) else 1
        leases = lease_pairs(session, page.person_id, settings, rng, count=count, holding=holding)
        page.showing += [Shown.of(lease) for lease in leases]
    if action == "judge" and page.showing:
        shown = page.showing.pop(0)
        reason = "both bad" if what is Choice.skip else None
        answer = Answer(uuid, shown.pair_id, shown.repeat_no, shown.shown_left, what, 1.0, reason)
        record_judgment(session, page.person_id, answer)
        page.sent.append(answer)
    elif action == "send again" and page.sent:
        record_judgment(session, page.person_id, page.sent[what % len(page.sent)])
    elif action == "answer anew" and page.sent:
        old = page.sent[-1]
        row = session.scalars(select(Judgment).where(Judgment.uuid == old.uuid)).one()
        if row.superseded_at is None:  # a page adds reasons to what still stands
            page.sent.append(replace(old, uuid=uuid, reasons=["eyes"], replaces=old.uuid))
            record_judgment(session, page.person_id, page.sent[-1])
    elif action == "undo" and page.sent:
        lease = undo_judgment(session, page.person_id, page.sent[what % len(page.sent)].uuid, settings)
        if lease is not None:
            page.showing = [Shown.of(lease)] + [other for other in page.showing if other.pair_id != lease.pair_id]


def check(session: Session) -> None:
    """The invariants of design.md on judgments and leases."""
    session.expire_all()
    live = session.execute(
        select(Judgment.pair_id, Judgment.person_id, Judgment.repeat_no).where(Judgment.superseded_at.is_(None))
    ).all()
    assert len(live) == len(set(live)), "one live judgment of a showing"
    leases = session.execute(select(Lease.pair_id, Lease.person_id, Lease.repeat_no)).all()
    assert not set(live) & set(leases), "nobody is shown what they have judged"
    for pair in session.scalars(select(Pair)):
        judged = sum(pair_id == pair.id and repeat_no == 0 for pair_id, _, repeat_no in live)
        leased = sum(pair_id == pair.id and repeat_no == 0 for pair_id, _, repeat_no in leases)
        assert pair.judgment_count == judged
        if pair.gold_answer is None:
            assert judged + leased <= pair.judgments_wanted, "two people hold one slot"


@pytest.fixture
def clean(session):
    """Empties what one example left, for the next; pairs and people stay."""

    def empty():
        for table in (Lease, Judgment):
            session.execute(delete(table))
        for pair in session.scalars(select(Pair)):
            pair.judgment_count = 0
        session.flush()

    return empty


@given(steps=st.lists(a_step, min_size=10, max_size=60), wanted=st.integers(1, 3), seed=st.integers(0, 10))
@hypothesis_settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # making a found sequence smaller takes minutes, one step being many queries
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_counts_slots_and_uniqueness_hold(session, clean, steps, wanted, seed):
    clean()
    settings = ProjectSettings(repeat_share=0.3, repeat_gap=1, gold_share=0.2)
    if not session.scalar(select(func.count()).select_from(Pair)):
        for number in range(7):
            add_candidates(session, f"face{number}", ["m1", "m2"])
        make_pairs(session, settings)
        for number in range(PEOPLE):
            add_person(session, f"person {number}")
    pairs = list(session.scalars(select(Pair).order_by(Pair.shuffle_key)))
    for place, pair in enumerate(pairs):
        pair.gold_answer, pair.judgments_wanted = ("a" if place < 2 else None), wanted
    session.flush()
    rng, pages = random.Random(seed), [Page(number + 1) for number in range(PEOPLE)]
    for action, person, what in steps:
        take(session, pages[person], settings, rng, action, what)
        check(session)
