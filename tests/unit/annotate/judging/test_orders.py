"""Which pairs an active order shows, and that what it calls random is a fair sample."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest
from scipy.stats import chisquare
from sqlalchemy import select, update

from annotate.judging.judgments import undo_judgment
from annotate.judging.pairs import ACTIVE_ORDERS, lease_pairs, make_pairs
from annotate.judging.people import add_person
from annotate.labeler.active import replace_shortlists
from db.models import Judgment, Lease, Pair, Picked, Source, Split, utc_now
from db.pairs import is_reserved
from db.project import ProjectSettings
from tests.making import add_candidates

PHOTOS = 100


def order(name: str, **changes: object) -> ProjectSettings:
    return ProjectSettings(repeat_share=0, gold_share=0, order=name, **changes)


@pytest.fixture
def project(session):
    """A pair each of 100 photos; every tenth photo is of the test split, its pair wants one judgment too."""
    for number in range(PHOTOS):
        add_candidates(session, f"face{number}", ["m1", "m2"], Split.test if number % 10 == 0 else Split.train)
    make_pairs(session, ProjectSettings(judgments_per_test_pair=1))
    return {pair.id: pair for pair in session.scalars(select(Pair))}


@pytest.fixture
def listed(session, project):
    """Shortlists of all pairs that may be listed: by id upwards, downwards, and by key."""
    free = sorted(pair_id for pair_id, pair in project.items() if not pair.reserved)
    by_key = sorted(free, key=lambda pair_id: project[pair_id].key)
    lists = dict(zip(ACTIVE_ORDERS, (free, free[::-1], by_key), strict=True))
    replace_shortlists(session, lists)
    return lists


@pytest.fixture
def ada(session):
    return add_person(session, "Ada")


@pytest.fixture
def judge(session, answer, rng):
    """`judge(person, settings, 5)`: that many pairs one after the other; gives their leases."""

    def judge_pairs(person, settings, count):
        leases = []
        for _ in range(count):
            found = lease_pairs(session, person.id, settings, rng, count=1, holding=[])
            if not found:
                break
            leases += found
            answer(person.id, found[0], picked=found[0].picked)
        return leases

    return judge_pairs


def test_the_reserve_is_all_but_train_and_three_in_sixteen_of_it():
    keys = [f"{number:031x}{digit:x}" for number in range(10) for digit in range(16)]
    assert sum(is_reserved(key, Split.train) for key in keys) == 30
    assert all(is_reserved(key, split) for key in keys for split in (Split.val, Split.test))


def test_pairs_are_made_with_their_reserve(project, session):
    test = set(session.scalars(select(Source.id).where(Source.split == Split.test)))
    for pair in project.values():
        assert pair.reserved == (pair.source_id in test or pair.key[-1] in "012")
    share = sum(pair.reserved for pair in project.values() if pair.source_id not in test) / 90
    assert 0.05 < share < 0.33  # 3/16 ± 3.4 standard deviations


@pytest.mark.parametrize("name", ["random", "uncertain", "mixed"])
def test_before_a_labeler_has_listed_pairs_all_come_at_random(project, ada, judge, name):
    leases = judge(ada, order(name), PHOTOS + 1)
    assert {lease.pair_id for lease in leases} == set(project)
    assert {lease.picked for lease in leases} == {Picked.random}


@pytest.mark.parametrize("picked", ACTIVE_ORDERS)
def test_an_active_order_follows_its_list(listed, ada, judge, picked):
    leases = judge(ada, order(picked.value), 40)
    shown = [lease.pair_id for lease in leases if lease.picked is picked]
    assert shown == listed[picked][: len(shown)]
    assert {lease.picked for lease in leases} == {picked, Picked.random}


def test_mixed_takes_each_of_the_three_lists(listed, ada, judge):
    counts = Counter(lease.picked for lease in judge(ada, order("mixed", random_share=0.05), 60))
    assert all(8 < counts[picked] < 30 for picked in ACTIVE_ORDERS)  # 19 ± 3 standard deviations of 3.6


def test_the_share_at_random_comes_from_the_reserve_alone(session, project, listed, ada):
    counts = Counter()
    settings = order("uncertain", random_share=0.3)
    for seed in range(500):
        (lease,) = lease_pairs(session, ada.id, settings, random.Random(seed), count=1, holding=[])
        assert project[lease.pair_id].reserved == (lease.picked is Picked.random)
        counts[lease.picked] += 1
        session.delete(lease)
        session.flush()
    assert abs(counts[Picked.random] - 150) < 3.5 * 10.2  # binomial: sqrt(500 * 0.3 * 0.7) = 10.2


def test_random_picks_are_uniform_over_the_reserve(session, project, listed, ada):
    """The chi-square test of 1,000 first picks at a fixed seed; the reserve lies anywhere in the shuffled order.

    A pick takes the first fitting pair from a random place on, so a pair's chance is its distance to the one before:
    uniform over the pairs' keys, which are hashes, and not over one database's pairs. Here the walk is made even.
    """
    reserve = sorted((pair for pair in project.values() if pair.reserved), key=lambda pair: pair.shuffle_key)
    for place, pair in enumerate(reserve):
        pair.shuffle_key = (place + 1) * (2**31 // len(reserve)) - 1
    session.flush()
    rng, counts = random.Random(5), Counter()
    while sum(counts.values()) < 1000:
        (lease,) = lease_pairs(session, ada.id, order("uncertain", random_share=1.0), rng, count=1, holding=[])
        counts[lease.pair_id] += 1
        session.delete(lease)
        session.flush()
    assert set(counts) <= {pair.id for pair in reserve}
    assert chisquare([counts[pair.id] for pair in reserve]).pvalue > 0.01


def test_what_is_picked_at_random_says_nothing_of_what_is_uncertain(session, project, listed, ada, judge):
    """Half of the free pairs are called hard and listed first; the random picks have them at their share all along."""
    hard = {pair_id for pair_id, pair in project.items() if int(pair.key[:4], 16) % 2}
    free = listed[Picked.uncertain]
    replace_shortlists(session, {Picked.uncertain: sorted(free, key=lambda pair_id: pair_id not in hard)})
    leases = judge(ada, order("uncertain", random_share=0.5), 40)
    by_chance = [lease.pair_id in hard for lease in leases if lease.picked is Picked.random]
    active = [lease.pair_id in hard for lease in leases if lease.picked is Picked.uncertain]
    reserve = [pair_id in hard for pair_id, pair in project.items() if pair.reserved]
    assert all(active)
    assert abs(sum(by_chance) / len(by_chance) - sum(reserve) / len(reserve)) < 0.2


def test_everything_is_shown_in_the_end_and_named_for_what_it_is(session, project, listed, ada, judge):
    replace_shortlists(session, {picked: pair_ids[:30] for picked, pair_ids in listed.items()})
    leases = judge(ada, order("uncertain"), PHOTOS + 1)
    assert {lease.pair_id for lease in leases} == set(project)
    counts = Counter(lease.picked for lease in leases)
    assert counts[Picked.uncertain] == 30
    assert counts[Picked.random] == sum(pair.reserved for pair in project.values())
    assert counts[Picked.leftover] == PHOTOS - 30 - counts[Picked.random]
    for lease in leases:
        assert project[lease.pair_id].reserved == (lease.picked is Picked.random)


def test_a_used_up_reserve_leaves_the_active_order(session, project, listed, ada, judge):
    session.execute(update(Pair).where(Pair.reserved).values(judgments_wanted=0))
    leases = judge(ada, order("diverse", random_share=1.0), 20)
    assert {lease.picked for lease in leases} == {Picked.diverse}


def test_back_at_random_only_the_reserve_counts_as_random(project, listed, ada, judge):
    judge(ada, order("uncertain"), 30)
    leases = judge(ada, order("random"), 60)
    for lease in leases:
        assert lease.picked is (Picked.random if project[lease.pair_id].reserved else Picked.leftover)


def test_a_listed_pair_goes_to_as_many_people_as_it_wants_and_never_twice_to_one(session, listed, ada, judge):
    first = listed[Picked.uncertain][0]
    session.execute(update(Pair).where(Pair.id == first).values(judgments_wanted=2))
    people = [ada, add_person(session, "Ben"), add_person(session, "Cleo")]
    settings, rng = order("uncertain", random_share=0.05), random.Random(1)
    shown = [lease_pairs(session, person.id, settings, rng, count=6, holding=[]) for person in people]
    holders = [any(lease.pair_id == first for lease in leases) for leases in shown]
    assert holders == [True, True, False]
    rest = [lease.pair_id for leases in shown for lease in leases if lease.pair_id != first]
    assert len(rest) == len(set(rest)) == 16


def test_a_gold_pair_on_a_list_is_passed_over(session, listed, ada, judge):
    first = listed[Picked.uncertain][0]
    session.execute(update(Pair).where(Pair.id == first).values(gold_answer="a"))
    assert first not in [lease.pair_id for lease in judge(ada, order("uncertain"), 20)]


def test_why_a_pair_was_shown_stays_through_an_undo_and_a_lost_lease(session, listed, ada, judge, answer, rng):
    settings = order("uncertain", random_share=0.05)
    lease = next(lease for lease in judge(ada, settings, 20) if lease.picked is Picked.uncertain)
    judgment = session.scalars(select(Judgment).where(Judgment.pair_id == lease.pair_id)).one()
    assert judgment.picked is Picked.uncertain
    again = undo_judgment(session, ada.id, judgment.uuid, settings)
    assert again.picked is Picked.uncertain
    session.execute(update(Lease).values(expires_at=utc_now() - timedelta(seconds=1)))
    ben = add_person(session, "Ben")
    lease_pairs(session, ben.id, settings, rng, count=1, holding=[])  # takes the expired lease away
    assert answer(ada.id, again, picked=again.picked).picked is Picked.uncertain


def test_a_page_that_was_reloaded_gets_its_pairs_back_with_why(session, listed, ada):
    settings = order("disagreement", random_share=0.3)
    first = lease_pairs(session, ada.id, settings, random.Random(1), count=8, holding=[])
    told = {lease.pair_id: lease.picked for lease in first}
    session.expire_all()
    again = lease_pairs(session, ada.id, settings, random.Random(2), count=8, holding=[])
    assert {lease.pair_id: lease.picked for lease in again} == told
    assert set(told.values()) == {Picked.random, Picked.disagreement}


def test_repeats_and_gold_pairs_are_no_active_picks(session, project, listed, ada, judge):
    gold = [pair_id for pair_id, pair in project.items() if not pair.reserved][-20:]
    session.execute(update(Pair).where(Pair.id.in_(gold)).values(gold_answer="b"))
    settings = order("uncertain").model_copy(update={"repeat_share": 0.3, "gold_share": 0.3, "repeat_gap": 2})
    leases = judge(ada, settings, 45)
    beside = [lease for lease in leases if lease.repeat_no or lease.pair_id in gold]
    assert len(beside) > 10
    assert {lease.picked for lease in beside} == {Picked.random}
