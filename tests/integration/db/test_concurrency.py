"""Several people at once against one database: nobody judges what another holds, and every pair gets its judgments."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import exists, func, select, update

import annotate.judging.pairs
from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.pairs import lease_pairs
from annotate.judging.people import add_person
from annotate.judging.tasks import make_tasks
from db.errors import UserError
from db.models import Asked, Choice, Judgment, Lease, Pair, Task, utc_now
from db.project import load_settings, save_settings
from tests.making import add_candidates, add_pairs, fetch, judge
from tests.watching import LIMIT_SECONDS

PAIRS = 40
TASKS = 20
AHEAD = 3


@pytest.fixture
def fill(any_database):
    """`fill(people, wanted)`: PAIRS pairs that want so many judgments; gives the people's ids."""

    def make(people, wanted, pairs=PAIRS):
        with any_database.write() as session:
            add_pairs(session, pairs, judgments_per_pair=wanted, repeat_share=0.0)
            return [add_person(session, f"person {number}").id for number in range(people)]

    return make


def wants_more_of(session, person_id):
    """Whether a pair still wants a judgment that this person has not given."""
    judged = exists().where(Judgment.pair_id == Pair.id, Judgment.person_id == person_id)
    return session.scalar(select(Pair.id).where(Pair.queue_level.is_not(None), ~judged).limit(1)) is not None


def label_until_done(database, person_id, start):
    """One person's page: judges the first of its pairs and asks for new ones in one transaction, until none is left."""
    rng, showing = random.Random(person_id), []
    start.wait()
    while True:
        with database.write() as session:
            settings = load_settings(session)
            if showing:
                pair_id, side = showing.pop(0)
                with suppress(UserError):  # another tab of theirs was first
                    judge(session, person_id, pair_id, shown_left=side)
            held = [pair_id for pair_id, _ in showing]
            new = lease_pairs(session, person_id, settings, rng, count=AHEAD - len(held), holding=held)
            showing += [(lease.pair_id, lease.shown_left) for lease in new]
        if not showing:
            with database.read() as session:
                if not wants_more_of(session, person_id):
                    return
            time.sleep(0.01)  # the last pairs are held by others


def run_together(database, people):
    start = threading.Barrier(len(people))
    with ThreadPoolExecutor(len(people)) as pool:
        for done in [pool.submit(label_until_done, database, person_id, start) for person_id in people]:
            done.result(LIMIT_SECONDS)


@pytest.mark.parametrize(("people", "wanted"), [(2, 1), (8, 1), (4, 3), (8, 3)])
def test_no_duplicates_and_no_starvation(any_database, fill, people, wanted):
    run_together(any_database, fill(people, wanted))
    with any_database.read() as session:
        judgments = session.execute(select(Judgment.pair_id, Judgment.person_id)).all()
        assert Counter(pair_id for pair_id, _ in judgments) == dict.fromkeys(session.scalars(select(Pair.id)), wanted)
        assert len(set(judgments)) == len(judgments)
        assert set(session.scalars(select(Pair.judgment_count))) == {wanted}
        assert session.scalars(select(Lease)).all() == []


@pytest.mark.parametrize("wanted", [1, 3])
def test_tasks_are_shared_out_as_pairs_are(any_database, wanted):
    """Four people at once: every task gets its answers, nobody one twice, and the places are balanced."""
    with any_database.write() as session:
        save_settings(session, {"task_size": 4, "judgments_per_pair": wanted, "repeat_share": 0.0})
        settings = load_settings(session)
        for number in range(TASKS):
            add_candidates(session, f"face{number:02}", ["m1", "m2", "m3", "m4"])
        make_tasks(session, settings, 4)
        people = [add_person(session, f"person {number}").id for number in range(4)]
    start = threading.Barrier(len(people))

    def answer_until_done(person_id):
        rng, showing = random.Random(person_id), []
        start.wait()
        for _ in range(1000):
            with any_database.write() as session:
                if showing:
                    task_id, places = showing.pop(0)
                    answer = Answer(str(uuid4()), None, 0, None, None, 1.0)
                    of_task = {"task_id": task_id, "ranking": "b>?", "places": places, "asked": Asked.best}
                    record_judgment(session, person_id, replace(answer, **of_task))
                held = [task_id for task_id, _ in showing]
                count = AHEAD - len(held)
                new = lease_pairs(session, person_id, settings, rng, count=count, holding=[], holding_tasks=held)
                showing += [(lease.task_id, lease.places) for lease in new]
            if not showing:
                with any_database.read() as session:
                    judged = exists().where(Judgment.task_id == Task.id, Judgment.person_id == person_id)
                    if session.scalar(select(Task.id).where(Task.queue_level.is_not(None), ~judged).limit(1)) is None:
                        return
                time.sleep(0.01)

    with ThreadPoolExecutor(len(people)) as pool:
        for done in [pool.submit(answer_until_done, person_id) for person_id in people]:
            done.result(LIMIT_SECONDS)
    with any_database.read() as session:
        rows = session.execute(select(Judgment.task_id, Judgment.person_id, Judgment.places)).all()
        assert Counter(row.task_id for row in rows) == dict.fromkeys(session.scalars(select(Task.id)), wanted)
        assert len({(row.task_id, row.person_id) for row in rows}) == len(rows) == TASKS * wanted
        assert set(session.scalars(select(Task.judgment_count))) == {wanted}
        assert session.scalars(select(Lease)).all() == []
        for task_id in {row.task_id for row in rows}:
            columns = zip(*(row.places for row in rows if row.task_id == task_id), strict=True)
            assert all(len(set(column)) == wanted for column in columns), "each in a new place each time"


def test_fewer_people_than_judgments_wanted(any_database, fill):
    run_together(any_database, fill(2, 3))
    with any_database.read() as session:
        assert set(session.scalars(select(Pair.judgment_count))) == {2}
        assert session.scalar(select(func.count()).select_from(Judgment)) == 2 * PAIRS


def test_a_killed_clients_pairs_go_to_another_when_its_leases_expire(any_database, fill, monkeypatch):
    gone, other = fill(2, 1, pairs=3)
    rng = random.Random(0)

    def ask(person_id):
        with any_database.write() as session:
            leases = lease_pairs(session, person_id, load_settings(session), rng, count=8, holding=[])
            return {lease.pair_id for lease in leases}

    now = utc_now()
    given = []
    for person_id, seconds in ((gone, 0), (other, 0), (other, 299), (other, 301)):
        monkeypatch.setattr(annotate.judging.pairs, "utc_now", lambda later=now + timedelta(seconds=seconds): later)
        given.append(ask(person_id))
    held = given[0]
    assert len(held) == 3
    assert given == [held, set(), set(), held]
    assert ask(gone) == set()


@pytest.mark.parametrize("holds", ["nothing", "its pairs"])
def test_people_come_back_together_after_their_leases_ran_out(any_database, fill, holds):
    """As after a night: each finds the others' leases run out, and its own deleted by them in the same moment."""
    people = fill(12, 12, pairs=120)
    held = {}
    for person_id in people:
        with any_database.write() as session:
            settings = load_settings(session)
            leases = lease_pairs(session, person_id, settings, random.Random(person_id), count=4, holding=[])
            held[person_id] = [lease.pair_id for lease in leases] if holds == "its pairs" else []
    for again in range(4):
        with any_database.write() as session:
            session.execute(update(Lease).values(expires_at=utc_now() - timedelta(hours=8)))
        start = threading.Barrier(len(people))

        def come_back(person_id, start=start, again=again):
            start.wait()
            with any_database.write() as session:
                rng = random.Random(f"{person_id} {again}")
                held_now = held[person_id]
                return len(
                    lease_pairs(
                        session, person_id, load_settings(session), rng, count=4 - len(held_now), holding=held_now
                    )
                ) + len(held_now)

        with ThreadPoolExecutor(len(people)) as pool:
            assert list(pool.map(come_back, people)) == [4] * len(people)


def test_two_tabs_of_one_person(any_database, fill):
    (person,) = fill(1, 2)
    run_together(any_database, [person] * 4)
    with any_database.read() as session:
        live = session.scalars(select(Judgment.pair_id).where(Judgment.superseded_at.is_(None))).all()
        assert len(live) == len(set(live)) == PAIRS
        assert session.scalar(select(func.count()).select_from(Judgment)) == PAIRS, "none was superseded"
        assert set(session.scalars(select(Pair.judgment_count))) == {1}


def test_the_same_judgment_sent_at_the_same_moment_is_stored_once(any_database, fill):
    (person,) = fill(1, 1, pairs=1)
    (pair_id,) = fetch(any_database, select(Pair.id))
    start = threading.Barrier(6)
    answer = Answer(str(uuid4()), pair_id, 0, "a", Choice.b, 1.0)

    def send(_):
        start.wait()
        with any_database.write() as session:
            return record_judgment(session, person, answer).id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(send, range(6)))) == 1
    with any_database.read() as session:
        assert session.scalars(select(Judgment.uuid)).all() == [answer.uuid]
        assert session.scalars(select(Pair.judgment_count)).all() == [1]
