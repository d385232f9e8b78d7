"""Query strategies on hand-worked numbers, and the shortlists that they leave in the database."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import select

from annotate.judging.judgments import undo_judgment
from annotate.judging.pairs import ACTIVE_ORDERS, lease_pairs, make_pairs
from annotate.judging.people import add_person
from annotate.judging.tasks import make_tasks
from annotate.labeler import active
from annotate.labeler.active import (
    load_candidates,
    load_judged,
    load_judged_tasks,
    load_tasks,
    make_shortlists,
    make_task_shortlists,
    rank_disagreement,
    rank_diverse,
    rank_uncertain,
    replace_shortlists,
    spread_sources,
    write_shortlists,
)
from annotate.labeler.settings import FitSettings
from annotate.labeler.svm import Training, compute_p_a, fit_bag, fit_labeler
from db.models import Candidate, Pair, Picked, Shortlist, Source, Split, Task
from db.project import ProjectSettings
from db.records import add_metric_value
from tests.making import add_candidates, add_image_row


def test_uncertain_takes_the_smallest_margin_first():
    # |p − 1/2|: 0.4, 0.1, 0.05, 0.1, missing, 0
    p_a = np.array([0.9, 0.4, 0.55, 0.6, np.nan, 0.5])
    assert rank_uncertain(p_a).tolist() == [5, 2, 1, 3, 0]
    assert rank_uncertain(1 - p_a).tolist() == [5, 2, 1, 3, 0], "whichever side is a"
    assert rank_uncertain(np.array([])).tolist() == []


def test_disagreement_takes_what_the_bag_differs_on_not_what_all_find_even():
    bagged = np.array([[0.5, 0.1, 0.9, 0.6, np.nan], [0.5, 0.9, 0.9, 0.4, 0.5]])
    # mean KL: 0; ln 2 − H(0.1) = 0.693 − 0.325 = 0.368; 0; ln 2 − H(0.4) = 0.693 − 0.673 = 0.020; missing
    assert rank_disagreement(bagged).tolist()[:2] == [1, 3]
    assert sorted(rank_disagreement(bagged).tolist()) == [0, 1, 2, 3]
    assert rank_disagreement(1 - bagged).tolist()[:2] == [1, 3]
    assert rank_disagreement(np.array([[1.0, 0.0], [0.0, 0.0]])).tolist() == [0, 1], "certainties make no NaN"


def test_diverse_takes_the_least_judged_source_then_the_least_judged_methods():
    sources = np.array([1, 1, 2, 2, 3, 3])
    methods = np.array([7, 8, 7, 8, 7, 9])
    # Judged: source 1 twice, source 2 once; methods 7 twice, 8 once; 5 and 6 are of pairs that wait no more.
    ranked = rank_diverse(sources, methods, np.array([1, 1, 2, 5]), np.array([7, 7, 8, 6]), count=6)
    # Source 3 (0 times), its methods 9 (0) before 7 (2): index 5. Then sources 2 and 3 have 1: methods 8 and 7 have
    # 1 and 2: index 3 (source 2). Source 3 has 1: index 4. Sources 1 and 2 have 2: 8 (2), 7 (3): index 1 before 2.
    assert ranked.tolist() == [5, 3, 4, 1, 2, 0]
    assert rank_diverse(sources, methods, np.array([]), np.array([]), count=3).tolist() == [0, 3, 5]
    assert rank_diverse(np.array([]), np.array([]), np.array([1]), np.array([1]), count=3).tolist() == []


def test_sources_are_spread_in_rounds_of_two():
    sources = np.array([4, 4, 4, 4, 5, 6, 6, 6])
    ranked = np.array([0, 1, 2, 3, 5, 6, 7, 4])
    assert spread_sources(ranked, sources).tolist() == [0, 1, 5, 6, 4, 2, 3, 7]
    assert spread_sources(ranked, sources, at_once=1).tolist() == [0, 5, 4, 1, 6, 2, 7, 3]
    assert spread_sources(np.array([], dtype=int), sources).tolist() == []
    assert spread_sources(np.array([3, 0]), sources.astype(str)).tolist() == [3, 0]


@pytest.fixture
def project(session, settings):
    """40 photos of three methods each: 120 pairs; every tenth photo is of the test split."""
    for number in range(40):
        add_candidates(session, f"face{number}", ["m1", "m2", "m3"], Split.test if number % 10 == 0 else Split.train)
    make_pairs(session, settings)
    return list(session.scalars(select(Pair).order_by(Pair.id)))


def test_candidates_are_waiting_pairs_outside_the_reserve(session, settings, project, answer, rng):
    project[40].gold_answer = "a"
    session.flush()
    ada = add_person(session, "Ada")
    for lease in lease_pairs(session, ada.id, settings, rng, count=10, holding=[]):
        answer(ada.id, lease)
    session.expire_all()
    allowed = {
        pair.id for pair in project if not pair.reserved and pair.gold_answer is None and not pair.judgment_count
    }
    found = load_candidates(session, 1000, 0)
    assert set(found.pair_ids.tolist()) == allowed
    assert len(found.pair_ids) == len(allowed)
    splits = set(session.scalars(select(Source.split).where(Source.id.in_(found.sources.tolist()))))
    assert splits == {Split.train}
    some = [load_candidates(session, 20, seed).pair_ids.tolist() for seed in (0, 0, 1)]
    assert len(set(some[0])) == 20
    assert some[0] == some[1] != some[2]


def test_least_judged_candidates_come_first(session, settings, project, answer, rng):
    for pair in project:
        pair.judgments_wanted = 2
    session.flush()
    ada = add_person(session, "Ada")
    for lease in lease_pairs(session, ada.id, settings, rng, count=60, holding=[]):
        answer(ada.id, lease)
    session.expire_all()
    counts = {pair.id: pair.judgment_count for pair in project}
    found = [counts[pair_id] for pair_id in load_candidates(session, 1000, 3).pair_ids.tolist()]
    assert found == sorted(found)
    assert set(found) == {0, 1}


def test_what_was_judged_is_counted_as_often_as_it_was(session, settings, project, answer, rng):
    people = [add_person(session, name) for name in ("Ada", "Ben")]
    for pair in project:
        pair.judgments_wanted = 2
    session.flush()
    judged = []
    for person in people:
        for lease in lease_pairs(session, person.id, settings, rng, count=100, holding=[]):
            judged.append((lease.pair_id, answer(person.id, lease)))
    undo_judgment(session, people[0].id, judged[0][1].uuid, settings)
    sources, method_pairs = load_judged(session)
    assert len(sources) == len(method_pairs) == 199
    assert len(np.unique(method_pairs)) == 3
    of = {pair.id: pair.source_id for pair in project}
    assert sorted(sources.tolist()) == sorted(of[pair_id] for pair_id, _ in judged[1:])


@pytest.fixture
def known(monkeypatch):
    """Metric differences and a labeler that need no measuring: the difference of a pair is made of its id."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 3))
    values[5] = np.nan
    monkeypatch.setattr(active, "load_differences", lambda _session, _columns, pair_ids: values[pair_ids])
    p_a = (values[100:400, 0] > 0).astype(float)
    photos = (np.arange(300) // 6).astype(str)
    training = Training(values[100:400], p_a, np.ones(300), photos, photos)
    return SimpleNamespace(
        values=values, training=training, labeler=fit_labeler(training, FitSettings(kernel="linear"))
    )


def test_shortlists_hold_the_best_of_each_order_and_nothing_reserved(session, project, known):
    lists = make_shortlists(session, known.labeler, fit_bag(known.training, known.labeler), seed=1)
    assert set(lists) == {*ACTIVE_ORDERS, Picked.information}
    allowed = {pair.id for pair in project if not pair.reserved}
    missing = {5} & allowed
    for picked, pair_ids in lists.items():
        assert len(pair_ids) == len(set(pair_ids))
        assert set(pair_ids) == (allowed if picked in (Picked.diverse, Picked.information) else allowed - missing)
    margins = np.abs(known.values[lists[Picked.uncertain], 0])
    assert margins[:20].mean() < margins[-20:].mean() / 2
    of = {pair.id: pair.source_id for pair in project}
    first = [of[pair_id] for pair_id in lists[Picked.diverse][:20]]
    assert len(set(first)) == 20, "no photo twice before every photo was taken once"


def test_pairs_whose_rewards_are_unsure_come_first(session, project, known, people):
    bag = fit_bag(known.training, known.labeler)
    assert make_shortlists(session, known.labeler, bag, by_spread=True)[Picked.disagreement] == []  # none is stored
    lq, replaced = add_image_row(session, "a" * 64), add_image_row(session, "b" * 64)
    session.flush()
    spread_of = {}
    for candidate in session.scalars(select(Candidate).order_by(Candidate.id)):
        candidate.source.lq_image_id = lq.id
        value = spread_of[candidate.id] = float((candidate.id * 37) % 101)
        for version, reference, said in (("1", lq, -value), ("2", lq, value), ("2", replaced, 999.0)):
            values = {"value": said, "raw_value": said, "reference": reference.sha256}
            add_metric_value(session, candidate.image, "spread-mine", f"reward {version}", **values)
    session.flush()
    lists = make_shortlists(session, known.labeler, bag, by_spread=True)
    expected = {pair.id: np.hypot(spread_of[pair.a_id], spread_of[pair.b_id]) for pair in project if not pair.reserved}
    listed = lists[Picked.disagreement]
    assert set(listed) == set(expected)
    assert listed[0] == max(expected, key=lambda pair_id: expected[pair_id])
    assert lists[Picked.uncertain] == make_shortlists(session, known.labeler, bag)[Picked.uncertain]
    replace_shortlists(session, lists)
    settings = ProjectSettings(order="spread", random_share=0.05, repeat_share=0, gold_share=0)
    leases = lease_pairs(session, people[0].id, settings, random.Random(1), count=5, holding=[])
    shown = [lease.pair_id for lease in leases if lease.picked is Picked.disagreement]
    assert len(shown) >= 4
    assert shown == listed[: len(shown)]


def test_lists_are_cut_and_replaced_whole(session, project, known, monkeypatch):
    monkeypatch.setattr(active, "SHORTLIST_LENGTH", 7)
    lists = make_shortlists(session, known.labeler, fit_bag(known.training, known.labeler))
    assert [len(pair_ids) for pair_ids in lists.values()] == [7, 7, 7, 7]
    replace_shortlists(session, lists)
    replace_shortlists(session, {Picked.diverse: [3, 1, 2]})
    rows = session.execute(select(Shortlist.picked, Shortlist.place, Shortlist.pair_id).order_by(Shortlist.place))
    assert rows.all() == [(Picked.diverse, 0, 3), (Picked.diverse, 1, 1), (Picked.diverse, 2, 2)]
    replace_shortlists(session, {Picked.diverse: [], Picked.uncertain: []})
    assert len(session.scalars(select(Shortlist.place)).all()) == 3, "kept: they say that active orders were at work"


def test_shortlists_are_written_and_the_same_for_the_same_seed(database, settings, known):
    with database.write() as session:
        for number in range(20):
            add_candidates(session, f"face{number}", ["m1", "m2", "m3"])
        make_pairs(session, settings)
    first = write_shortlists(database, known.labeler, known.training, seed=2)
    assert write_shortlists(database, known.labeler, known.training, seed=2) == first
    with database.read() as session:
        stored = session.scalars(
            select(Shortlist.pair_id).where(Shortlist.picked == Picked.uncertain).order_by(Shortlist.place)
        ).all()
    assert stored == first[Picked.uncertain]


@pytest.fixture
def tasks(session, settings, project):
    """A task of each photo's three images: two pairs of eight have values, the others' depend on their ids."""
    make_tasks(session, settings, 3)
    return list(session.scalars(select(Task).order_by(Task.id)))


def test_a_task_is_worth_the_mean_of_its_pairs(session, project, tasks, known):
    lists = make_task_shortlists(session, known.labeler, fit_bag(known.training, known.labeler), seed=1)
    allowed = {task.id for task in tasks if not task.reserved}
    assert set(lists) == {*ACTIVE_ORDERS, Picked.information}
    assert all(set(task_ids) == allowed for task_ids in lists.values())
    by_source: dict[int, list[float]] = {}
    p_a = compute_p_a(known.labeler, known.values[[pair.id for pair in project]])
    for pair, p in zip(project, p_a, strict=True):
        by_source.setdefault(pair.source_id, []).append(abs(p - 0.5))
    margin = {task.id: np.nanmean(by_source[task.source_id]) for task in tasks}
    in_order = [margin[task_id] for task_id in lists[Picked.uncertain]]
    assert in_order == pytest.approx(sorted(in_order))
    assert in_order[-1] > in_order[0] + 0.05
    found = load_tasks(session, 5, 0)
    assert len(found.task_ids) == 5
    assert np.bincount(found.task_of).tolist() == [3] * 5
    one_missing = np.where(found.pair_ids == found.pair_ids[0], np.nan, 1.0)
    assert found.average(one_missing).tolist() == [1.0] * 5
    assert np.isnan(found.average(np.full(15, np.nan))).all()


def test_judged_tasks_are_passed_over_and_counted(session, tasks, known):
    tasks[0].judgment_count = 1
    tasks[1].gold_ranking = "a>?"
    session.flush()
    assert not {tasks[0].id, tasks[1].id} & set(load_tasks(session, 1000, 0).task_ids.tolist())
    sources, sets = load_judged_tasks(session)
    assert sources.tolist() == [tasks[0].source_id]
    assert set(sets.tolist()) == set(load_tasks(session, 1000, 0).method_sets.tolist())  # all have the same methods


def test_the_queue_shows_listed_tasks_first_and_a_share_of_reserved_ones(session, tasks, known, people):
    bag = fit_bag(known.training, known.labeler)
    replace_shortlists(session, {}, make_task_shortlists(session, known.labeler, bag))
    settings = ProjectSettings(
        task_size=3, order="uncertain", random_share=0.5, repeat_share=0, gold_share=0, mixed_share=0
    )
    (lease,) = lease_pairs(session, people[0].id, settings, random.Random(1), count=1, holding=[])
    first = session.scalars(
        select(Shortlist.task_id)
        .where(Shortlist.picked == Picked.uncertain, Shortlist.task_id.is_not(None))
        .order_by(Shortlist.place)
    ).first()
    held = [lease.task_id]
    more = lease_pairs(session, people[0].id, settings, random.Random(2), count=9, holding=[], holding_tasks=held)
    leases = [lease, *more]
    picked = {lease.task_id: lease.picked for lease in leases}
    assert set(picked.values()) == {Picked.uncertain, Picked.random}
    assert picked[first] is Picked.uncertain
    reserved = {task.id for task in tasks if task.reserved}
    assert {task_id for task_id, why in picked.items() if why is Picked.random} <= reserved
