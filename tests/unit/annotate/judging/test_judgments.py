"""Judgments are appended, counted, taken back and resolved into labels as worked out by hand."""

from __future__ import annotations

import random
from uuid import uuid4

import pandas as pd
import pytest
from sqlalchemy import func, select

from annotate.judging.judgments import undo_judgment
from annotate.judging.labels import compute_dawid_skene, compute_majority, resolve_labels
from annotate.judging.pairs import lease_pairs
from annotate.judging.people import add_person
from db.errors import UserError
from db.models import Choice, Judgment, Label, Lease, Origin, Pair, Side
from db.session import open_database
from tests.making import add_pairs
from tests.making import judge as judge_pair

pytestmark = pytest.mark.filterwarnings("ignore:The (inplace|copy) keyword")  # crowd-kit's, not ours


@pytest.fixture
def ada(people):
    return people[0].id


@pytest.fixture
def judge(session):
    """`judge(person, pair, Choice.a)`: record a judgment without asking for the pair first."""

    def record(person_id, pair, choice=Choice.a, **fields):
        return judge_pair(session, person_id, pair.id, choice, **fields)

    return record


def lease_one(session, person_id, settings):
    (lease,) = lease_pairs(session, person_id, settings, random.Random(0), count=1, holding=[])
    return lease


def count(session, pair):
    return session.scalar(select(Pair.judgment_count).where(Pair.id == pair.id))


def live(session, pair):
    return session.scalars(select(Judgment).where(Judgment.pair_id == pair.id, Judgment.superseded_at.is_(None))).all()


def live_labels(session):
    statement = select(Label).where(Label.superseded_at.is_(None)).order_by(Label.pair_id)
    return list(session.scalars(statement))


def test_a_judgment_stores_what_was_seen_and_frees_the_lease(session, ada, settings, make_project, answer):
    (pair,) = make_project(1)
    lease = lease_one(session, ada, settings)
    side = lease.shown_left
    row = answer(ada, lease, Choice.tie, seconds=3.25, reasons=["eyes", "skin"], view_mode="fit+flicker")
    session.expire_all()
    assert (row.pair_id, row.person_id, row.choice, row.shown_left) == (pair.id, ada, Choice.tie, side)
    assert (row.seconds, row.reasons, row.view_mode) == (3.25, ["eyes", "skin"], "fit+flicker")
    assert (row.repeat_no, row.skip_reason, row.superseded_at) == (0, None, None)
    assert count(session, pair) == 1
    assert session.scalar(select(func.count()).select_from(Lease)) == 0


def test_the_same_uuid_is_stored_once(session, ada, make_project, judge):
    (pair,) = make_project(1)
    uuid = str(uuid4())
    first = judge(ada, pair, Choice.a, uuid=uuid)
    assert judge(ada, pair, Choice.b, uuid=uuid).id == first.id
    assert first.choice is Choice.a
    assert count(session, pair) == 1
    assert session.scalar(select(func.count()).select_from(Judgment)) == 1


def test_a_uuid_of_another_person_or_pair_is_refused(session, people, make_project, judge):
    first, second = make_project(2)
    uuid = judge(people[0].id, first).uuid
    for person, pair in ((people[1], first), (people[0], second)):
        with pytest.raises(UserError, match="already belongs to another pair or person"):
            judge(person.id, pair, uuid=uuid)
    assert [count(session, pair) for pair in (first, second)] == [1, 0]


def test_an_answer_supersedes_the_one_that_it_replaces_and_counts_once(session, ada, make_project, judge):
    (pair,) = make_project(1)
    first = judge(ada, pair, Choice.a)
    second = judge(ada, pair, Choice.a, reasons=["teeth"], replaces=first.uuid)
    session.expire_all()
    assert first.superseded_at is not None
    assert [row.uuid for row in live(session, pair)] == [second.uuid]
    assert (first.reasons, second.reasons) == ([], ["teeth"])
    assert count(session, pair) == 1


def test_a_superseded_uuid_that_is_sent_again_changes_nothing(session, ada, make_project, judge):
    (pair,) = make_project(1)
    first = judge(ada, pair)
    second = judge(ada, pair, reasons=["eyes"], replaces=first.uuid)
    judge(ada, pair, uuid=first.uuid)
    assert [row.uuid for row in live(session, pair)] == [second.uuid]
    assert count(session, pair) == 1


def test_an_answer_of_another_tab_is_refused_and_the_first_one_stands(session, ada, make_project, judge, settings):
    (pair,) = make_project(1)
    first = judge(ada, pair, Choice.a)
    for replaces in (None, str(uuid4())):
        with pytest.raises(UserError, match="in another tab"):
            judge(ada, pair, Choice.b, replaces=replaces)
    undo_judgment(session, ada, first.uuid, settings)
    with pytest.raises(UserError, match="answer to replace is gone"):
        judge(ada, pair, Choice.a, reasons=["eyes"], replaces=first.uuid)
    second = judge(ada, pair, Choice.b)
    assert [row.uuid for row in live(session, pair)] == [second.uuid]


def test_repeats_do_not_count(session, ada, settings, make_project, judge):
    (pair,) = make_project(1)
    judge(ada, pair)
    repeat = judge(ada, pair, repeat_no=1, shown_left=Side.b)
    assert count(session, pair) == 1
    assert len(live(session, pair)) == 2
    undo_judgment(session, ada, repeat.uuid, settings)
    assert count(session, pair) == 1


def test_an_answer_leaves_the_lease_of_another_showing(session, ada, settings, make_project, judge):
    """Reasons are added to the first showing while its repeat is already on the page."""
    (pair,) = make_project(1)
    first = judge(ada, pair)
    repeat = undo_judgment(session, ada, judge(ada, pair, repeat_no=1).uuid, settings)
    judge(ada, pair, reasons=["hair"], replaces=first.uuid)
    assert session.scalars(select(Lease.id)).all() == [repeat.id]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"uuid": "7"}, "not a UUID"),
        ({"uuid": "3f2a9c10b5e44d7a8c1d0e9f7a6b5c4d"}, "not a UUID"),
        ({"uuid": "3F2A9C10-B5E4-4D7A-8C1D-0E9F7A6B5C4D"}, "not a UUID"),
        ({"seconds": -0.5}, "must be a finite number"),
        ({"seconds": float("nan")}, "must be a finite number"),
        ({"seconds": float("inf")}, "must be a finite number"),
        ({"choice": Choice.skip, "skip_reason": None}, "needs a reason"),
        ({"choice": Choice.skip, "skip_reason": "  "}, "needs a reason"),
        ({"choice": Choice.tie, "skip_reason": "identical"}, "belongs to a skip"),
    ],
)
def test_malformed_answers_are_refused_and_leave_nothing(session, ada, make_project, judge, fields, message):
    (pair,) = make_project(1)
    before = judge(ada, pair)
    with pytest.raises(UserError, match=message):
        judge(ada, pair, **fields)
    assert [row.uuid for row in live(session, pair)] == [before.uuid]
    assert count(session, pair) == 1


def test_an_unknown_pair_is_refused(ada, judge):
    with pytest.raises(UserError, match="no pair 12"):
        judge(ada, Pair(id=12))


def test_undo_restores_count_slot_and_side(session, people, settings, make_project, answer):
    (pair,) = make_project(1)
    lease = lease_one(session, people[0].id, settings)
    side = lease.shown_left
    judgment = answer(people[0].id, lease)
    again = undo_judgment(session, people[0].id, judgment.uuid, settings)
    assert (again.pair_id, again.shown_left, again.repeat_no) == (pair.id, side, 0)
    assert count(session, pair) == 0
    assert live(session, pair) == []
    assert lease_pairs(session, people[1].id, settings, random.Random(0), count=1, holding=[]) == []
    new = answer(people[0].id, again, Choice.b)
    assert [row.uuid for row in live(session, pair)] == [new.uuid]
    assert count(session, pair) == 1


def test_undoing_twice_is_undoing_once(session, ada, settings, make_project, judge):
    (pair,) = make_project(1)
    uuid = judge(ada, pair).uuid
    assert undo_judgment(session, ada, uuid, settings) is not None
    assert undo_judgment(session, ada, uuid, settings) is None
    assert count(session, pair) == 0
    assert session.scalar(select(func.count()).select_from(Lease)) == 1


def test_undo_reaches_several_back_in_any_order(session, ada, settings, make_project, judge):
    pairs = make_project(3)
    uuids = [judge(ada, pair).uuid for pair in pairs]
    for uuid in (uuids[2], uuids[0]):
        undo_judgment(session, ada, uuid, settings)
    assert [count(session, pair) for pair in pairs] == [0, 1, 0]


def test_only_own_judgments_can_be_undone(session, people, settings, make_project, judge):
    (pair,) = make_project(1)
    uuid = judge(people[0].id, pair).uuid
    for person_id, wanted in ((people[1].id, uuid), (people[0].id, str(uuid4()))):
        with pytest.raises(UserError, match="no judgment"):
            undo_judgment(session, person_id, wanted, settings)
    assert count(session, pair) == 1


def test_undoing_an_answer_that_was_replaced_does_nothing(session, ada, settings, make_project, judge):
    (pair,) = make_project(1)
    first = judge(ada, pair)
    second = judge(ada, pair, Choice.b, replaces=first.uuid)
    assert undo_judgment(session, ada, first.uuid, settings) is None
    assert [row.uuid for row in live(session, pair)] == [second.uuid]


def votes_table(rows):
    columns = ["judgment_id", "pair_id", "person", "choice", "weight"]
    return pd.DataFrame([(number, *row, 1.0) for number, row in enumerate(rows)], columns=columns)


def test_majority_is_the_share_of_votes_and_a_tie_is_half_a_vote():
    votes = votes_table(
        [(1, "x", "a"), (1, "y", "b"), (1, "z", "a"), (2, "x", "tie"), (3, "x", "b"), (4, "x", "a"), (4, "y", "tie")]
    )
    p_a = compute_majority(votes)
    assert p_a.to_dict() == pytest.approx({1: 2 / 3, 2: 0.5, 3: 0.0, 4: 0.75})


def test_dawid_skene_follows_the_reliable_people():
    """Two people agree on nine pairs and a third says the opposite: on the tenth, where it is one against one, the
    reliable one wins; the majority could only say one half."""
    rows = []
    for pair_id in range(9):
        truth = "a" if pair_id % 2 else "b"
        wrong = "b" if truth == "a" else "a"
        rows += [(pair_id, "x", truth), (pair_id, "y", truth), (pair_id, "liar", wrong)]
    rows += [(9, "x", "a"), (9, "liar", "b")]
    votes = votes_table(rows)
    p_a = compute_dawid_skene(votes)
    assert compute_majority(votes)[9] == 0.5
    assert p_a[9] > 0.95
    assert all(p_a[pair_id] > 0.95 if pair_id % 2 else p_a[pair_id] < 0.05 for pair_id in range(9))


def test_dawid_skene_gives_ties_one_half():
    votes = votes_table([(pair, who, choice) for pair, choice in enumerate("aabb") for who in "xyz"])
    votes = pd.concat([votes, votes_table([(9, who, "tie") for who in "xyz"])])
    assert compute_dawid_skene(votes)[9] == pytest.approx(0.5, abs=0.01)


def test_dawid_skene_gives_probabilities_where_crowd_kit_does_not():
    rng = random.Random(1)
    rows = [(n, n // 3, f"p{n % 3}", rng.choice(["a", "a", "b", "tie"])) for n in range(60)]
    # Of these votes crowd-kit's posterior gives 1.00000000004, which the database refuses.
    p_a = compute_dawid_skene(pd.DataFrame(rows, columns=["judgment_id", "pair_id", "person", "choice"]))
    assert p_a.between(0, 1).all()
    assert p_a.max() > 0.99


@pytest.mark.parametrize("compute", [compute_majority, compute_dawid_skene])
def test_no_votes_give_no_labels(compute):
    assert len(compute(votes_table([]))) == 0


def test_labels_are_traced_to_their_judgments(session, people, make_project, judge):
    pairs = make_project(3, wanted=3)
    rows = [judge(people[0].id, pairs[0], Choice.a), judge(people[1].id, pairs[0], Choice.b)]
    rows += [judge(people[2].id, pairs[0], Choice.a), judge(people[0].id, pairs[1], Choice.tie)]
    report = resolve_labels(session)
    assert (report.added, report.replaced, report.withdrawn, report.unchanged) == (2, 0, 0, 0)
    labels = {label.pair_id: label for label in live_labels(session)}
    first, second = labels[pairs[0].id], labels[pairs[1].id]
    assert (first.p_a, first.agreement) == pytest.approx((2 / 3, 2 / 3))
    assert (second.p_a, second.agreement) == (0.5, 1.0)
    assert {first.origin, second.origin} == {Origin.human}
    assert {first.made_by, second.made_by} == {"majority"}
    assert [row.id for row in first.judgments] == [row.id for row in rows[:3]]
    assert [row.id for row in second.judgments] == [rows[3].id]


def test_skips_repeats_gold_and_superseded_make_no_label(session, people, settings, make_project, judge):
    skip, repeat, gold, taken_back = make_project(4)
    gold.gold_answer = "a"
    session.flush()
    ada, ben = people[0].id, people[1].id
    judge(ada, skip, Choice.skip)
    judge(ada, repeat, Choice.a)
    judge(ada, repeat, Choice.b, repeat_no=1)
    judge(ada, gold)
    undo_judgment(session, ada, judge(ada, taken_back).uuid, settings)
    judge(ben, taken_back, Choice.b)
    resolve_labels(session)
    assert {label.pair_id: label.p_a for label in live_labels(session)} == {repeat.id: 1.0, taken_back.id: 0.0}


def test_unchanged_labels_keep_their_row_and_changed_ones_gain_a_new_one(session, people, make_project, judge):
    same, more = make_project(2, wanted=2)
    judge(people[0].id, same)
    judge(people[0].id, more)
    resolve_labels(session)
    before = {label.pair_id: label.id for label in live_labels(session)}
    judge(people[1].id, more, Choice.a)  # the same value from other judgments is another label
    report = resolve_labels(session)
    assert (report.added, report.replaced, report.unchanged) == (0, 1, 1)
    after = {label.pair_id: label.id for label in live_labels(session)}
    assert after[same.id] == before[same.id]
    assert after[more.id] != before[more.id]
    old = session.get(Label, before[more.id])
    assert old.superseded_at is not None
    assert len(old.judgments) == 1, "the old label still names what it was made of"


def test_a_label_without_judgments_is_withdrawn_but_an_imported_one_stays(
    session, people, settings, make_project, judge
):
    lost, imported = make_project(2)
    uuid = judge(people[0].id, lost).uuid
    session.add(Label(pair_id=imported.id, origin=Origin.human, made_by="imported:hpdv2", p_a=1.0))
    resolve_labels(session)
    undo_judgment(session, people[0].id, uuid, settings)
    assert resolve_labels(session).withdrawn == 1
    assert [label.made_by for label in live_labels(session)] == ["imported:hpdv2"]


def test_an_imported_label_stays_where_its_pair_is_judged(session, people, make_project, judge):
    imported, other = make_project(2)
    session.add(Label(pair_id=imported.id, origin=Origin.human, made_by="imported:hpdv2", p_a=1.0))
    session.flush()
    judge(people[0].id, imported, Choice.b)
    judge(people[0].id, other, Choice.b)
    for method in ("majority", "dawid-skene"):
        resolve_labels(session, method)
        labels = {label.pair_id: (label.made_by, label.p_a) for label in live_labels(session)}
        assert labels[imported.id] == ("imported:hpdv2", 1.0)
        assert labels[other.id][0] == method


def test_labels_of_the_labeler_are_left_alone(session, people, make_project, judge):
    (pair,) = make_project(1)
    session.add(Label(pair_id=pair.id, origin=Origin.svm, made_by="labeler 1", p_a=0.9))
    judge(people[0].id, pair, Choice.b)
    resolve_labels(session)
    assert {label.origin: label.p_a for label in live_labels(session)} == {Origin.svm: 0.9, Origin.human: 0.0}


def test_simulated_people_count_only_when_asked_and_are_marked(session, people, make_project, judge):
    (pair,) = make_project(1, wanted=2)
    robot = add_person(session, "robot", simulated=True)
    judge(people[0].id, pair, Choice.a)
    judge(robot.id, pair, Choice.b)
    resolve_labels(session)
    (label,) = live_labels(session)
    assert (label.p_a, label.made_by) == (1.0, "majority")
    resolve_labels(session, include_simulated=True)
    (label,) = live_labels(session)
    assert (label.p_a, label.made_by) == (0.5, "majority with simulated annotators")


def test_people_can_be_left_out_by_name(session, people, make_project, judge):
    (pair,) = make_project(1, wanted=2)
    judge(people[0].id, pair, Choice.a)
    judge(people[1].id, pair, Choice.b)
    resolve_labels(session, exclude_people=["Ada"])
    assert [label.p_a for label in live_labels(session)] == [0.0]
    with pytest.raises(UserError, match="no person called 'Adda'"):
        resolve_labels(session, exclude_people=["Adda"])


def test_dawid_skene_gives_the_same_bits_whatever_order_answers_came_in(tmp_path):
    """Else an export after an import would differ in the last digits."""
    found = []
    for name in ("in order", "shuffled"):
        rng = random.Random(5)
        database = open_database(tmp_path / name)
        with database.write() as session:
            add_pairs(session, 30)
            people = [add_person(session, f"person {number}") for number in range(4)]
            for number, person in enumerate(people):
                person.public_id = f"public {number}"
            pairs = session.scalars(select(Pair).order_by(Pair.key)).all()
            votes = [(pair, person, rng.choice("aabt")) for pair in pairs for person in people if rng.random() < 0.7]
            if name == "shuffled":
                rng.shuffle(votes)
            for pair, person, vote in votes:
                judge_pair(session, person.id, pair.id, "tie" if vote == "t" else vote)
            resolve_labels(session, "dawid-skene")
            found.append({label.pair.key: label.p_a for label in live_labels(session)})
        database.close()
    assert found[0] == found[1]


def test_resolving_with_dawid_skene_and_with_an_unknown_method(session, people, make_project, judge):
    (pair,) = make_project(1, wanted=3)
    for person in people[:3]:
        judge(person.id, pair, Choice.b)
    resolve_labels(session, "dawid-skene")
    (label,) = live_labels(session)
    assert label.p_a < 0.01
    assert label.made_by == "dawid-skene"
    assert resolve_labels(session, "dawid-skene").unchanged == 1
    with pytest.raises(UserError, match="choose one of majority, dawid-skene"):
        resolve_labels(session, "mean")
