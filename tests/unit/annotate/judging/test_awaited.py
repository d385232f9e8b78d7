"""What a training waits for is shown before all others, in whatever order and kind the project asks."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import select, update

from annotate.judging.pairs import lease_pairs, make_pairs
from annotate.judging.tasks import make_tasks
from annotate.labeler.active import replace_shortlists
from db.models import Pair, Picked, Task
from db.project import ProjectSettings, save_settings
from tests.making import add_candidates

CALM = {"repeat_share": 0.0, "gold_share": 0.0}


def lease(session, person, settings, seed=0, count=1):
    return lease_pairs(session, person.id, settings, random.Random(seed), count=count, holding=[])


def wait_for(session, table, *ids, wanted=1):
    session.execute(update(table).where(table.id.in_(ids)).values(awaited=True, judgments_wanted=wanted))


@pytest.mark.parametrize("order", ["random", "uncertain", "mixed"])
def test_an_awaited_pair_comes_first_in_every_order(session, people, make_project, order):
    pairs = make_project(40)
    replace_shortlists(session, {Picked.uncertain: [pair.id for pair in pairs[:20]]})
    wait_for(session, Pair, pairs[7].id, pairs[33].id)
    settings = ProjectSettings(**CALM, order=order)
    first = lease(session, people[0], settings, count=3)
    assert {one.pair_id for one in first[:2]} == {pairs[7].id, pairs[33].id}
    assert [one.picked for one in first[:2]] == [Picked.leftover] * 2  # no fair sample
    assert first[2].pair_id not in (pairs[7].id, pairs[33].id)
    # their slots are taken: another person gets something else
    assert not {one.pair_id for one in lease(session, people[1], settings, count=3)} & {pairs[7].id, pairs[33].id}


def test_it_comes_before_repeats_and_gold_and_until_it_has_its_answers(session, people, make_project, answer):
    pairs = make_project(10)
    wait_for(session, Pair, pairs[3].id, wanted=2)
    settings = ProjectSettings(repeat_share=0.5, gold_share=0.5, repeat_gap=1)
    for person in people[:2]:
        (held,) = lease(session, person, settings)
        assert held.pair_id == pairs[3].id
        answer(person.id, held)
    (held,) = lease(session, people[2], settings)
    assert held.pair_id != pairs[3].id


def test_a_pair_is_shown_in_a_project_of_tasks_and_a_task_in_one_of_pairs(session, people):
    for number in range(6):
        add_candidates(session, f"face{number}", ["m1", "m2", "m3", "m4"])
    tasks = ProjectSettings(**CALM, task_size=4)
    make_tasks(session, tasks, 4)
    make_pairs(session, tasks)
    pair_id, task_id = session.scalar(select(Pair.id).offset(9)), session.scalar(select(Task.id).offset(4))
    wait_for(session, Pair, pair_id)
    wait_for(session, Task, task_id)
    first = lease(session, people[0], tasks, count=3)
    assert {(one.pair_id, one.task_id) for one in first[:2]} == {(None, task_id), (pair_id, None)}
    assert first[2].pair_id is None
    first = lease(session, people[1], ProjectSettings(**CALM), count=2)
    assert all(one.pair_id for one in first)
    wait_for(session, Task, task_id, wanted=2)
    assert lease(session, people[2], ProjectSettings(**CALM))[0].task_id == task_id


def test_the_projects_number_of_judgments_is_not_that_of_a_training(session, make_project):
    pairs = make_project(3)
    wait_for(session, Pair, pairs[0].id, wanted=5)
    save_settings(session, {"judgments_per_pair": 2})
    session.expire_all()
    assert [pair.judgments_wanted for pair in pairs] == [5, 2, 2]
