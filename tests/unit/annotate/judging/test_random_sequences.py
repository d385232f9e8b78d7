"""Whatever several people do in whatever order: counts are right, nothing is judged twice, no slot is overfilled."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, record_judgment, undo_judgment
from annotate.judging.pairs import lease_pairs, make_pairs
from annotate.judging.people import add_person
from annotate.judging.tasks import make_tasks
from db.models import Asked, Choice, Judgment, Lease, Pair, Side, Task
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
    """A pair or task on a page; its lease's row may be gone by the time of the answer."""

    pair_id: int | None
    task_id: int | None
    repeat_no: int
    shown_left: Side | None
    places: str | None
    asked: Asked

    @classmethod
    def of(cls, lease: Lease) -> Shown:
        return cls(lease.pair_id, lease.task_id, lease.repeat_no, lease.shown_left, lease.places, lease.asked)

    def answer(self, uuid: str, choice: Choice) -> Answer:
        """A choice as it is; the same of a task as a ranking."""
        ranking = None if choice is Choice.skip or self.pair_id else {"a": "a>?", "b": "b>?"}.get(choice, "a=b=c=d")
        if ranking and ranking[-1] == "?" and self.asked is Asked.best_worst:
            ranking += ">d"
        return Answer(
            uuid,
            self.pair_id,
            self.repeat_no,
            self.shown_left,
            None if ranking else choice,
            1.0,
            "both bad" if choice is Choice.skip else None,
            task_id=self.task_id,
            ranking=ranking,
            places=self.places,
            asked=self.asked,
        )


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
        pairs = [shown.pair_id for shown in page.showing if shown.pair_id]
        tasks = [shown.task_id for shown in page.showing if shown.task_id]
        count = what if isinstance(what, int) else 1
        leases = lease_pairs(session, page.person_id, settings, rng, count=count, holding=pairs, holding_tasks=tasks)
        page.showing += [Shown.of(lease) for lease in leases]
    if action == "judge" and page.showing:
        answer = page.showing.pop(0).answer(uuid, what)
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
            of = (lease.pair_id, lease.task_id)
            page.showing = [Shown.of(lease)] + [other for other in page.showing if (other.pair_id, other.task_id) != of]


def check(session: Session) -> None:
    """The invariants of design.md on judgments and leases."""
    session.expire_all()
    for table, of_judgment, of_lease in (
        (Pair, Judgment.pair_id, Lease.pair_id),
        (Task, Judgment.task_id, Lease.task_id),
    ):
        live = session.execute(
            select(of_judgment, Judgment.person_id, Judgment.repeat_no).where(
                Judgment.superseded_at.is_(None), of_judgment.is_not(None)
            )
        ).all()
        assert len(live) == len(set(live)), "one live judgment of a showing"
        leases = session.execute(select(of_lease, Lease.person_id, Lease.repeat_no).where(of_lease.is_not(None))).all()
        assert not set(live) & set(leases), "nobody is shown what they have judged"
        for one in session.scalars(select(table)):
            judged = sum(number == one.id and repeat_no == 0 for number, _, repeat_no in live)
            leased = sum(number == one.id and repeat_no == 0 for number, _, repeat_no in leases)
            assert one.judgment_count == judged
            if (one.gold_answer if table is Pair else one.gold_ranking) is None:
                assert judged + leased <= one.judgments_wanted, "two people hold one slot"


@pytest.fixture
def clean(session):
    """Empties what one example left, for the next; pairs and people stay."""

    def empty():
        for table in (Lease, Judgment):
            session.execute(delete(table))
        for table in (Pair, Task):
            session.execute(update(table).values(judgment_count=0))
        session.flush()

    return empty


@pytest.mark.parametrize("task_size", [2, 4])
@given(steps=st.lists(a_step, min_size=10, max_size=60), wanted=st.integers(1, 3), seed=st.integers(0, 10))
@hypothesis_settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # making a found sequence smaller takes minutes, one step being many queries
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_counts_slots_and_uniqueness_hold(session, clean, task_size, steps, wanted, seed):
    clean()
    settings = ProjectSettings(
        repeat_share=0.3, repeat_gap=1, gold_share=0.2, task_size=task_size, mixed_share=0.2 if task_size > 2 else 0
    )
    if not session.scalar(select(func.count()).select_from(Pair)):
        for number in range(7):
            add_candidates(session, f"face{number}", ["m1", "m2", "m3", "m4"][:task_size])
        make_pairs(session, settings, per_source=1)
        make_tasks(session, settings, 4)
        for number in range(PEOPLE):
            add_person(session, f"person {number}")
    pairs = list(session.scalars(select(Pair).order_by(Pair.shuffle_key)))
    for place, pair in enumerate(pairs):
        pair.gold_answer, pair.judgments_wanted = ("a" if place < 2 else None), wanted
    for place, task in enumerate(session.scalars(select(Task).order_by(Task.shuffle_key))):
        task.gold_ranking, task.judgments_wanted = ("a>?" if place < 2 else None), wanted
    session.flush()
    rng, pages = random.Random(seed), [Page(number + 1) for number in range(PEOPLE)]
    for action, person, what in steps:
        take(session, pages[person], settings, rng, action, what)
        check(session)
