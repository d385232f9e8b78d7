"""Which pairs there are, who sees which of them when, and on which side."""

from __future__ import annotations

import itertools
import random
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from annotate.judging.judgments import undo_judgment
from annotate.judging.pairs import lease_pairs, make_pairs
from db.errors import UserError
from db.models import Choice, Judgment, Lease, Pair, Side, Split, utc_now
from db.pairs import compute_shuffle_key, wanted_judgments
from db.project import ProjectSettings
from db.records import candidate_key, pair_key
from tests.making import add_candidates


@pytest.fixture
def ask(session, rng):
    """`ask(person, settings)`: the next pair of a person whose page shows nothing else; None when done."""

    def next_lease(person, settings, holding=()):
        leases = lease_pairs(session, person.id, settings, rng, count=1, holding=holding)
        return leases[0] if leases else None

    return next_lease


def test_all_pairs_of_each_source_and_only_within_it(session, settings):
    add_candidates(session, "four", ["m1", "m2", "m3", "m4"])  # 4 * 3 / 2 = 6 pairs
    add_candidates(session, "two", ["m1", "m2"])  # 1 pair
    add_candidates(session, "one", ["m1"])
    add_candidates(session, "none", [])
    report = make_pairs(session, settings)
    assert (report.added, report.sources_with_pairs, report.sources_without_pairs) == (7, 2, 2)
    assert session.scalar(select(func.count()).select_from(Pair)) == 7
    for pair in session.scalars(select(Pair)):
        assert pair.a.source_id == pair.b.source_id == pair.source_id


def test_making_pairs_again_adds_only_what_is_new(session, settings):
    add_candidates(session, "face", ["m1", "m2", "m3"])
    assert make_pairs(session, settings).added == 3
    again = make_pairs(session, settings)
    assert (again.added, again.existing) == (0, 3)
    add_candidates(session, "face", ["m4"])
    more = make_pairs(session, settings)
    assert (more.added, more.existing) == (3, 3)


def test_a_pair_is_the_same_whichever_way_round(session, settings):
    first, second = candidate_key("face", "m1", 0), candidate_key("face", "m2", 0)
    (key, first_is_a), (same, second_is_a) = pair_key(first, second), pair_key(second, first)
    assert key == same
    assert first_is_a is not second_is_a
    m1, m2 = add_candidates(session, "face", ["m1", "m2"])
    make_pairs(session, settings)
    pair = session.scalars(select(Pair)).one()
    assert pair.key == key
    assert (pair.a_id, pair.b_id) == ((m1.id, m2.id) if first_is_a else (m2.id, m1.id))


def test_per_source_draws_that_many_with_the_seed(session, settings):
    for name in ("x", "y"):
        add_candidates(session, name, ["m1", "m2", "m3", "m4"])
    add_candidates(session, "z", ["m1", "m2"])
    assert make_pairs(session, settings, per_source=2, seed=3).added == 2 + 2 + 1
    same = make_pairs(session, settings, per_source=2, seed=3)
    assert (same.added, same.existing) == (0, 5)
    keys = set(session.scalars(select(Pair.key)))
    assert any(make_pairs(session, settings, per_source=2, seed=seed).added for seed in range(4, 8))
    assert keys < set(session.scalars(select(Pair.key)))


def test_against_a_method(session, settings):
    add_candidates(session, "x", ["old", "m1", "m2", "m3"])
    add_candidates(session, "y", ["m1", "m2"])
    report = make_pairs(session, settings, against="old")
    assert (report.added, report.sources_without_pairs) == (3, 1)
    assert all("old" in (pair.a.method.name, pair.b.method.name) for pair in session.scalars(select(Pair)))


def test_identical_files_are_left_out_and_counted(session, settings):
    add_candidates(session, "x", ["copy=1", "copy=2", "m3"])
    report = make_pairs(session, settings)
    assert (report.added, report.identical) == (2, 1)


def test_bad_requests_are_refused(session, settings):
    add_candidates(session, "x", ["m1", "m2"])
    with pytest.raises(UserError, match=r"no method called 'm9'. Known: m1, m2"):
        make_pairs(session, settings, against="m9")
    with pytest.raises(UserError, match="give 1 or more"):
        make_pairs(session, settings, per_source=0)
    assert session.scalar(select(func.count()).select_from(Pair)) == 0


def test_test_pairs_take_their_own_number_of_judgments(session):
    settings = ProjectSettings(judgments_per_pair=2, judgments_per_test_pair=5)
    assert [wanted_judgments(split, settings) for split in (Split.train, Split.val, Split.test)] == [2, 2, 5]
    add_candidates(session, "x", ["m1", "m2"], Split.test)
    make_pairs(session, settings)
    assert session.scalars(select(Pair.judgments_wanted)).one() == 5


def test_the_order_of_showing_is_fixed_by_key_and_seed():
    keys = [f"{number:032x}" for number in range(2000)]
    drawn = [compute_shuffle_key(key, 0) for key in keys]
    assert drawn == [compute_shuffle_key(key, 0) for key in keys]
    assert drawn != [compute_shuffle_key(key, 1) for key in keys]
    assert all(0 <= value < 2**31 for value in drawn)
    assert 0.45 < sum(value < 2**30 for value in drawn) / len(drawn) < 0.55


def test_everyone_who_asks_gets_another_pair_while_one_judgment_is_wanted(people, settings, make_project, ask):
    make_project(3)
    shown = [ask(person, settings) for person in people[:3]]
    assert len({lease.pair_id for lease in shown}) == 3
    assert ask(people[3], settings) is None


def test_a_pair_that_wants_three_is_held_by_three_and_no_fourth(people, settings, make_project, ask):
    make_project(1, wanted=3)
    assert all(ask(person, settings) is not None for person in people[:3])
    assert ask(people[3], settings) is None


def test_judged_pairs_fill_slots_as_leases_do(people, settings, make_project, ask, answer):
    make_project(1, wanted=2)
    answer(people[0].id, ask(people[0], settings))
    assert ask(people[1], settings) is not None
    assert ask(people[2], settings) is None


def test_never_a_pair_that_the_person_judged_or_holds(session, people, settings, make_project, ask, answer):
    make_project(4, wanted=4)
    seen = []
    for _ in range(2):
        lease = ask(people[0], settings)
        seen.append(lease.pair_id)
        answer(people[0].id, lease)
    held = lease_pairs(session, people[0].id, settings, random.Random(1), count=8, holding=[])
    assert len(held) == 2
    assert len({*seen, *(lease.pair_id for lease in held)}) == 4


def test_least_judged_first(people, settings, make_project, ask, answer):
    pairs = make_project(6, wanted=3)
    for person in people[:2]:
        for _ in pairs:
            answer(person.id, ask(person, settings))
    twice_judged = {pair.id for pair in pairs}
    for _ in range(3):
        lease = ask(people[2], settings)
        twice_judged.remove(lease.pair_id)
        answer(people[2].id, lease)
    # All have two judgments, three have three and want no more.
    assert {ask(people[3], settings, holding=[]).pair_id} <= twice_judged


def test_a_level_is_finished_before_the_next_begins(people, settings, make_project, ask, answer):
    pairs = make_project(8, wanted=2)
    counts = []
    for _ in range(8):
        for person in people[:2]:
            lease = ask(person, settings)
            counts.append(next(pair for pair in pairs if pair.id == lease.pair_id).judgment_count)
            answer(person.id, lease)
    assert counts[:8] == [0] * 8
    assert sorted(counts) == counts


def test_a_page_gets_back_what_it_was_given_and_does_not_show(session, people, settings, make_project):
    make_project(6)
    rng = random.Random(2)
    first = [lease.pair_id for lease in lease_pairs(session, people[0].id, settings, rng, count=3, holding=[])]
    reloaded = [lease.pair_id for lease in lease_pairs(session, people[0].id, settings, rng, count=4, holding=[])]
    assert reloaded[:3] == first
    more = [lease.pair_id for lease in lease_pairs(session, people[0].id, settings, rng, count=2, holding=reloaded)]
    assert len(more) == 2
    assert not set(more) & set(reloaded)


def test_an_expired_lease_frees_its_pair(session, people, settings, make_project, ask):
    make_project(1)
    lease = ask(people[0], settings)
    assert ask(people[1], settings) is None
    session.execute(update(Lease).values(expires_at=utc_now() - timedelta(seconds=1)))
    taken = ask(people[1], settings)
    assert taken.pair_id == lease.pair_id
    assert session.scalars(select(Lease.person_id)).all() == [people[1].id]


def test_a_lease_lasts_lease_seconds_and_asking_prolongs_what_the_page_holds(session, people, settings, make_project):
    make_project(3)
    rng = random.Random(0)
    (shown,) = lease_pairs(session, people[0].id, settings, rng, count=1, holding=[])
    assert abs((shown.expires_at - utc_now()).total_seconds() - settings.lease_seconds) < 5
    (ahead,) = lease_pairs(session, people[0].id, settings, rng, count=1, holding=[shown.pair_id])
    soon = utc_now() + timedelta(seconds=1)
    session.execute(update(Lease).values(expires_at=soon))
    lease_pairs(session, people[0].id, settings, rng, count=0, holding=[shown.pair_id])
    session.expire_all()
    assert (shown.expires_at - utc_now()).total_seconds() > 100
    assert ahead.expires_at == soon, "the page does not hold it and was not given it: it must run out"


def test_whoever_returns_from_lunch_keeps_the_pairs_that_nobody_took(session, people, settings, make_project, ask):
    make_project(2)
    held = ask(people[0], settings).pair_id
    session.execute(update(Lease).values(expires_at=utc_now() - timedelta(seconds=1)))
    other = ask(people[0], settings, holding=[held])
    assert other.pair_id != held
    assert ask(people[1], settings) is None


def test_a_page_is_never_given_what_it_holds_also_when_its_lease_is_gone(session, people, settings, make_project, ask):
    make_project(1, wanted=3)
    held = ask(people[0], settings).pair_id
    session.execute(update(Lease).values(expires_at=utc_now() - timedelta(seconds=1)))
    ask(people[1], settings)  # clears the expired lease; the pair still has open slots
    assert ask(people[0], settings, holding=[held]) is None


def test_the_second_showing_has_the_other_side_left(people, settings, make_project, ask, answer):
    make_project(12, wanted=4)
    sides = {}
    for person in people:
        for _ in range(12):
            lease = ask(person, settings)
            sides.setdefault(lease.pair_id, []).append(lease.shown_left)
            answer(person.id, lease)
    assert len(sides) == 12
    for shown in sides.values():
        assert shown[0] != shown[1]
        assert shown[2] != shown[3]


def test_leased_pairs_are_balanced_too(people, settings, make_project, ask):
    make_project(20, wanted=2)
    first = {}
    for _ in range(20):
        lease = ask(people[0], settings, holding=list(first))
        first[lease.pair_id] = lease.shown_left
    second = []
    for _ in range(20):
        lease = ask(people[1], settings, holding=second)
        second.append(lease.pair_id)
        assert lease.shown_left != first[lease.pair_id]


def test_about_half_of_the_first_showings_have_a_left(session, people, settings, make_project):
    pairs = make_project(200)
    leases = lease_pairs(session, people[0].id, settings, random.Random(11), count=200, holding=[])
    assert len(leases) == len(pairs)
    left = sum(lease.shown_left is Side.a for lease in leases)
    assert abs(left - 100) < 4 * 7.1  # four standard deviations of a fair coin thrown 200 times: sqrt(200) / 2 = 7.1


def test_a_repeat_comes_after_the_gap_once_and_with_sides_swapped(session, people, settings, make_project, answer):
    make_project(40)
    settings = settings.model_copy(update={"repeat_share": 0.5, "repeat_gap": 4})
    rng, person = random.Random(3), people[0]
    order, first, repeats = [], {}, []
    while leases := lease_pairs(session, person.id, settings, rng, count=1, holding=[]):
        lease = leases[0]
        if lease.repeat_no:
            assert lease.repeat_no == 1
            assert lease.shown_left != first[lease.pair_id]
            assert len(order) - order.index(lease.pair_id) - 1 >= 4, "four other judgments lie between"
            repeats.append(lease.pair_id)
        else:
            first[lease.pair_id] = lease.shown_left
            order.append(lease.pair_id)
        answer(person.id, lease)
    assert len(order) == 40
    assert len(repeats) == len(set(repeats)) > 10
    counts = session.scalars(select(Pair.judgment_count)).all()
    assert counts == [1] * 40, "repeats do not count"


def test_skips_and_gold_pairs_are_not_repeated(session, people, settings, make_project, answer):
    pairs = make_project(30)
    for pair in pairs[:10]:
        pair.gold_answer = "a"
    session.flush()
    settings = settings.model_copy(update={"repeat_share": 0.5, "repeat_gap": 1, "gold_share": 0.4})
    gold = {pair.id for pair in pairs[:10]}
    repeated, skipped = set(), set()
    for number in itertools.count():
        leases = lease_pairs(session, people[0].id, settings, random.Random(number), count=1, holding=[])
        if not leases:
            break
        if leases[0].repeat_no:
            repeated.add(leases[0].pair_id)
        choice = Choice.skip if number % 3 == 0 else Choice.b
        if choice is Choice.skip:
            skipped.add(leases[0].pair_id)
        answer(people[0].id, leases[0], choice)
    first_skips = set(
        session.scalars(select(Judgment.pair_id).where(Judgment.choice == Choice.skip, Judgment.repeat_no == 0))
    )
    assert repeated
    assert not repeated & gold
    assert not repeated & first_skips


def test_gold_comes_at_its_share_and_once_to_each_person(session, people, settings, make_project, answer):
    pairs = make_project(120, wanted=2)
    gold = {pair.id for pair in pairs[:40]}
    for pair in pairs[:40]:
        pair.gold_answer = "b"
    session.flush()
    settings = settings.model_copy(update={"gold_share": 0.2})
    rng = random.Random(5)
    for person in people[:2]:
        shown = []
        for _ in range(80):
            (lease,) = lease_pairs(session, person.id, settings, rng, count=1, holding=[])
            shown.append(lease.pair_id)
            answer(person.id, lease, Choice.b)
        golden = [pair_id for pair_id in shown if pair_id in gold]
        assert len(golden) == len(set(golden))
        assert 5 < len(golden) < 27  # 80 draws at 0.2: 16, standard deviation 3.6


def test_gold_pairs_are_not_in_the_queue(session, people, settings, make_project, ask):
    for pair in make_project(3):
        pair.gold_answer = "tie"
    session.flush()
    assert ask(people[0], settings) is None


def test_a_finished_person_stays_finished(session, people, settings, make_project, answer):
    pairs = make_project(30)
    pairs[0].gold_answer = "a"
    session.flush()
    settings = settings.model_copy(update={"repeat_share": 0.3, "repeat_gap": 1, "gold_share": 0.01})
    rng = random.Random(1)
    while leases := lease_pairs(session, people[0].id, settings, rng, count=1, holding=[]):
        answer(people[0].id, leases[0])
    for _ in range(100):
        assert lease_pairs(session, people[0].id, settings, rng, count=4, holding=[]) == []


def test_a_pair_taken_back_is_given_again_with_the_same_side(session, people, settings, make_project, ask, answer):
    make_project(1)
    lease = ask(people[0], settings)
    side = lease.shown_left
    judgment = answer(people[0].id, lease)
    assert ask(people[0], settings) is None
    undo_judgment(session, people[0].id, judgment.uuid, settings)
    again = ask(people[0], settings)
    assert (again.pair_id, again.shown_left) == (judgment.pair_id, side)
    assert ask(people[1], settings) is None, "the slot is held by the lease"
