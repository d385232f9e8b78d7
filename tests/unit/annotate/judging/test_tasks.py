"""Which tasks of three to six candidates there are, who sees them in which places, and what may be answered."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.event import listen

from annotate.ingest.damage import describe_damage
from annotate.ingest.equal_pixels import set_aside_equal_pairs
from annotate.ingest.groups import _change_pairs
from annotate.judging.browse import load_answers
from annotate.judging.discard import Change, discard_answers, restore_answers
from annotate.judging.gold import import_gold
from annotate.judging.judgments import Answer, answers_what_was_asked, record_judgment, undo_judgment
from annotate.judging.labels import compute_dawid_skene, load_votes, resolve_labels
from annotate.judging.pairs import GIVEN_BACK_SECONDS, draw_places, lease_pairs, make_pairs, release_leases
from annotate.judging.people import add_person
from annotate.judging.remove_method import count_peoples_answers, remove_method
from annotate.judging.simulate import answer_scores, judge_pairs, rank_scores
from annotate.judging.tasks import make_tasks
from db.errors import UserError
from db.models import (
    Asked,
    Candidate,
    Choice,
    Judgment,
    Label,
    Lease,
    Method,
    Pair,
    Picked,
    Side,
    Split,
    Task,
    TaskCandidate,
    utc_now,
)
from db.project import ProjectSettings, save_settings
from db.records import DECIDED, candidate_key, task_key
from tests.making import add_candidates, judge
from ui.train.round import count_decided

pytestmark = pytest.mark.filterwarnings("ignore:The (inplace|copy) keyword")  # crowd-kit's, not ours
METHODS = ["m1", "m2", "m3", "m4", "m5", "m6"]


@pytest.fixture
def fours() -> ProjectSettings:
    """A project that asks for the best of four; no repeats, no gold."""
    return ProjectSettings(task_size=4, repeat_share=0, gold_share=0)


@pytest.fixture
def make_fours(session, fours):
    """`make_fours(3)`: so many photos of four restored images, one task each."""

    def make(photos: int, **changes: object) -> list[Task]:
        for number in range(photos):
            add_candidates(session, f"face{number}", METHODS[:4])
        make_tasks(session, fours.model_copy(update=changes), 4)
        return list(session.scalars(select(Task).order_by(Task.id)))

    return make


def lease_one(session, person, settings, seed=0, **held) -> Lease | None:
    found = lease_pairs(session, person.id, settings, random.Random(seed), count=1, holding=[], **held)
    return found[0] if found else None


def answer_of(lease: Lease, ranking: str | None = "a>?", **fields: object) -> Answer:
    of_task = {"task_id": lease.task_id, "ranking": ranking, "places": lease.places, "asked": lease.asked}
    return Answer(str(uuid4()), None, lease.repeat_no, None, None, 2.0, **{"picked": lease.picked, **of_task, **fields})


def methods_of(task: Task) -> list[str]:
    return [one.candidate.method.name for one in task.candidates]


def test_every_candidate_is_seen_once_and_methods_meet_alike(session, fours):
    for number in range(60):
        add_candidates(session, f"face{number:02}", METHODS)
    report = make_tasks(session, fours, 4)
    # Six images: a task of four, and one of the other two and two that were in the first.
    assert (report.added, report.sources_with_tasks, report.smaller) == (120, 60, 0)
    tasks = session.scalars(select(Task)).all()
    per_source = Counter((task.source_id, name) for task in tasks for name in methods_of(task))
    assert set(per_source.values()) == {1, 2}
    met = Counter(pair for task in tasks for pair in itertools.combinations(sorted(methods_of(task)), 2))
    assert sum(met.values()) == 120 * 6
    assert (len(met), max(met.values()) - min(met.values()) <= 2) == (15, True), met


def test_letters_follow_the_candidate_keys_and_pairs_exist(session, fours, make_fours):
    (task,) = make_fours(1)
    keys = [candidate_key("face0", name, 0) for name in methods_of(task)]
    assert [one.letter for one in task.candidates] == list("abcd")
    assert keys == sorted(keys)
    assert (task.key, task.size) == (task_key(reversed(keys)), 4)
    letter_of = {one.candidate_id: one.letter for one in task.candidates}
    pairs = session.scalars(select(Pair)).all()
    assert {letter_of[pair.a_id] + letter_of[pair.b_id] for pair in pairs} == {"ab", "ac", "ad", "bc", "bd", "cd"}
    before = {pair.key for pair in pairs}
    assert make_pairs(session, fours).added == 0
    assert {pair.key for pair in session.scalars(select(Pair))} == before


def test_making_tasks_again_adds_only_what_is_new(session, fours):
    add_candidates(session, "face", METHODS[:4])
    assert make_tasks(session, fours, 4).added == 1
    again = make_tasks(session, fours, 4)
    assert (again.added, again.existing) == (0, 1)
    add_candidates(session, "face", ["m5"])
    more = make_tasks(session, fours, 4)
    assert (more.added, more.existing, more.pairs_added) == (1, 1, 3)  # m5 with three that had met
    assert make_tasks(session, fours, 4, per_source=2).added == 0
    assert make_tasks(session, fours, 4, per_source=9).added == 3  # of five images there are five fours
    assert make_tasks(session, fours, 4, per_source=9).added == 0


def test_a_task_never_has_two_images_of_the_same_pixels(session, fours):
    candidates = add_candidates(session, "face", ["m1", "copy=1", "copy=2", "m3"])
    pixels = {candidate.image_id: candidate.method.name for candidate in candidates}
    pixels[candidates[3].image_id] = pixels[candidates[0].image_id]  # another file of the same pixels
    add_candidates(session, "plain", METHODS[:3])
    report = make_tasks(session, fours, 4, pixels=pixels)
    # Two different pictures make no task; three make one of three.
    assert (report.sources_without_tasks, report.smaller, report.added) == (1, 1, 1)
    report = make_tasks(session, fours, 3)
    assert report.added == 2  # now that the other file is not known to look the same: each copy with the others
    for task in session.scalars(select(Task)):
        images = [one.candidate.image_id for one in task.candidates]
        assert len(set(images)) == len(images)


def test_every_task_has_the_named_method(session, fours):
    add_candidates(session, "face", METHODS)
    add_candidates(session, "other", METHODS[1:])
    report = make_tasks(session, fours, 3, against="m1")
    assert (report.added, report.sources_without_tasks) == (3, 1)  # five others, two a task
    assert all("m1" in methods_of(task) for task in session.scalars(select(Task)))
    for wrong in ({"against": "m9"}, {"per_source": 0}):
        with pytest.raises(UserError):
            make_tasks(session, fours, 3, **wrong)
    with pytest.raises(UserError, match="3 to 6"):
        make_tasks(session, fours, 7)


def test_a_person_sees_each_task_once_and_then_none(session, people, fours, make_fours):
    tasks = make_fours(5)
    seen = []
    while (lease := lease_one(session, people[0], fours, len(seen))) is not None:
        assert (lease.pair_id, lease.shown_left, lease.asked) == (None, None, Asked.best)
        assert sorted(lease.places) == list("abcd")
        seen.append(lease.task_id)
        record_judgment(session, people[0].id, answer_of(lease))
    assert sorted(seen) == [task.id for task in tasks]
    assert lease_one(session, people[1], fours) is None  # one answer a task was wanted
    assert session.scalar(select(func.count()).where(Task.queue_level.is_not(None))) == 0


def test_the_last_open_slot_is_held_for_one_person(session, people, fours, make_fours):
    make_fours(1)
    lease = lease_one(session, people[0], fours)
    assert lease_one(session, people[1], fours) is None
    assert lease_one(session, people[0], fours, holding_tasks=[lease.task_id]) is None
    assert lease_one(session, people[0], fours).id == lease.id  # a page that shows nothing gets its own again
    release_leases(session, people[0].id, [], [lease.task_id])
    assert session.scalar(select(Lease.expires_at)) <= utc_now() + timedelta(seconds=GIVEN_BACK_SECONDS)
    session.execute(update(Lease).values(expires_at=lease.leased_at))
    assert lease_one(session, people[1], fours).task_id == lease.task_id


def test_places_are_balanced_in_a_task(session, people, fours, make_fours):
    (task,) = make_fours(1, judgments_per_pair=4)
    shown = []
    for person in people:
        lease = lease_one(session, person, fours, seed=person.id)
        shown.append(lease.places)
        record_judgment(session, person.id, answer_of(lease))
    for letter in "abcd":
        assert sorted(places.index(letter) for places in shown) == [0, 1, 2, 3], shown
    assert set(session.scalars(select(Judgment.places).where(Judgment.task_id == task.id))) == set(shown)


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_any_row_of_showings_leaves_balanced_places(size):
    for seed in range(5):
        rng, shown = random.Random(seed), []
        for _ in range(2 * size):
            shown.append(draw_places(shown, size, rng))
        assert {Counter(column).most_common()[-1][1] for column in zip(*shown, strict=True)} == {2}
    firsts = Counter(draw_places([], size, random.Random(seed))[0] for seed in range(600))
    assert min(firsts.values()) > 600 / size / 2


def test_a_repeat_puts_every_candidate_elsewhere_and_asks_as_before(session, people, fours, make_fours):
    make_fours(3)
    lease = lease_one(session, people[0], fours.model_copy(update={"asked": "best_worst"}))
    record_judgment(session, people[0].id, answer_of(lease, "a>?>d"))
    lease2 = lease_one(session, people[0], fours)
    record_judgment(session, people[0].id, answer_of(lease2))
    repeating = fours.model_copy(update={"repeat_share": 1.0, "repeat_gap": 1})
    again = lease_one(session, people[0], repeating)
    assert (again.task_id, again.repeat_no, again.asked) == (lease.task_id, 1, Asked.best_worst)
    assert all(old != new for old, new in zip(lease.places, again.places, strict=True))
    record_judgment(session, people[0].id, answer_of(again, "a>?>d"))
    assert session.scalar(select(Task.judgment_count).where(Task.id == lease.task_id)) == 1


def test_gold_tasks_come_beside_the_queue_and_gold_pairs_after_them(session, people, fours, make_fours):
    tasks = make_fours(3)
    tasks[0].gold_ranking = "b>?"
    pair = session.scalars(select(Pair).where(Pair.source_id == tasks[1].source_id)).first()
    pair.gold_answer = "a"
    session.flush()
    checking = fours.model_copy(update={"gold_share": 1.0})
    first = lease_one(session, people[0], checking)
    assert first.task_id == tasks[0].id
    second = lease_one(session, people[0], checking, holding_tasks=[first.task_id])
    assert (second.pair_id, second.asked) == (pair.id, Asked.pair)


def test_a_share_of_showings_is_asked_in_another_way(session, people, fours, make_fours):
    make_fours(60)
    mixed = fours.model_copy(update={"mixed_share": 0.5})
    leases = lease_pairs(session, people[0].id, mixed, random.Random(1), count=60, holding=[])
    ways = Counter(lease.asked for lease in leases)
    assert set(ways) == set(Asked)
    assert 20 <= ways[Asked.best] <= 45
    assert all((lease.asked is Asked.pair) is (lease.pair_id is not None) for lease in leases)
    in_pairs = lease_pairs(
        session, people[1].id, mixed.model_copy(update={"task_size": 2}), random.Random(1), count=60, holding=[]
    )
    ways = Counter(lease.asked for lease in in_pairs)
    assert ways[Asked.pair] >= 20
    assert set(ways) == set(Asked)


def test_a_project_of_tasks_is_done_when_they_are(session, people, fours, make_fours):
    """Its pairs are the same comparisons once more; a project of pairs shows them, and no task."""
    make_fours(1)
    record_judgment(session, people[0].id, answer_of(lease_one(session, people[0], fours)))
    assert lease_one(session, people[0], fours.model_copy(update={"mixed_share": 0.5})) is None
    of_pairs = fours.model_copy(update={"task_size": 2})
    assert lease_one(session, people[0], of_pairs).pair_id is not None


def test_an_answer_is_stored_whole_and_taken_back(session, people, fours, make_fours):
    (task,) = make_fours(1)
    lease = lease_one(session, people[0], fours.model_copy(update={"asked": "order"}))
    given = answer_of(lease, "c>a=d>b", reasons=["eyes"])
    judgment = record_judgment(session, people[0].id, given)
    assert (judgment.task_id, judgment.pair_id, judgment.choice) == (task.id, None, None)
    assert (judgment.ranking, judgment.places, judgment.asked) == ("c>a=d>b", lease.places, Asked.order)
    assert session.scalars(select(Lease)).all() == []
    assert record_judgment(session, people[0].id, given).id == judgment.id  # sent twice
    session.refresh(task)
    assert task.judgment_count == 1
    with pytest.raises(UserError, match="answered this already"):
        record_judgment(session, people[0].id, answer_of(lease, "a>?", asked=Asked.order))
    changed = answer_of(lease, "c>?", asked=Asked.order, replaces=given.uuid)
    record_judgment(session, people[0].id, changed)
    again = undo_judgment(session, people[0].id, changed.uuid, fours)
    assert (again.task_id, again.places, again.asked) == (task.id, given.places, Asked.order)
    session.refresh(task)
    assert task.judgment_count == 0


def test_undoing_a_task_keeps_the_leases_of_others(session, people, fours, make_fours):
    """Pair 1 and task 1 are two things, and so is a lease of neither."""
    make_fours(3)
    person = people[0].id
    pair = lease_one(session, people[0], fours.model_copy(update={"task_size": 2}))
    first = lease_pairs(session, person, fours, random.Random(0), count=1, holding=[pair.pair_id])[0]
    given = answer_of(first)
    record_judgment(session, person, given)
    second = lease_pairs(session, person, fours, random.Random(0), count=1, holding=[pair.pair_id])[0]
    undo_judgment(session, person, given.uuid, fours)
    held = session.execute(select(Lease.pair_id, Lease.task_id)).all()
    assert set(held) == {(pair.pair_id, None), (None, first.task_id), (None, second.task_id)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pair_id": 1}, "to a pair or to a task"),
        ({"task_id": None}, "to a pair or to a task"),
        ({"shown_left": Side.a}, "has no left side"),
        ({"asked": Asked.pair}, "how it was asked"),
        ({"places": None}, "says its places"),
        ({"places": "abc"}, "letters abcd"),
        ({"places": "aabc"}, "letters abcd"),
        ({"ranking": None}, "a ranking or a skip"),
        ({"choice": Choice.a, "ranking": None}, "a ranking or a skip"),
        ({"choice": Choice.skip}, "a ranking or a skip"),
        ({"choice": Choice.skip, "ranking": None}, "needs a reason"),
        ({"skip_reason": "both bad"}, "belongs to a skip"),
        ({"ranking": "e>?"}, "cannot be read"),
        ({"ranking": "a>b>c"}, "cannot be read"),
        ({"ranking": "a>b>c>d"}, "than was asked"),
        ({"task_id": 99}, "There is no task 99"),
    ],
)
def test_an_answer_that_is_none_is_refused(session, people, fours, make_fours, fields, said):
    make_fours(1)
    lease = lease_one(session, people[0], fours)
    given = answer_of(lease)
    with pytest.raises(UserError, match=said):
        record_judgment(session, people[0].id, Answer(**{**vars(given), **fields}))
    assert session.scalar(select(func.count()).select_from(Judgment)) == 0


@pytest.mark.parametrize(
    ("ranking", "ways"),
    [
        ("a=b=c=d", {"best", "best_worst", "order"}),
        ("c>?", {"best", "order"}),
        ("b=c>?", {"best", "order"}),
        ("a=b=c>d", {"best", "best_worst", "order"}),  # all but one are best, or: that one is the worst
        ("c>?>b", {"best_worst", "order"}),
        ("c>a>b", {"best_worst", "order"}),  # of three, the one between is not named
        ("a>b=c", {"best_worst", "order"}),
        ("c>a=d>b", {"order"}),
        ("c>a>?", {"order"}),
        ("?>c", {"order"}),
        ("a>b>c>d", {"order"}),
    ],
)
def test_what_may_be_answered_is_what_was_asked(ranking, ways):
    assert {asked for asked in ("best", "best_worst", "order") if answers_what_was_asked(ranking, Asked(asked))} == ways


def test_a_task_is_reserved_and_wanted_as_a_pair(session, fours):
    add_candidates(session, "test face", METHODS[:4], Split.test)
    add_candidates(session, "train face", METHODS[:4])
    make_tasks(session, fours, 4)
    wanted = {task.source.split: (task.judgments_wanted, task.reserved) for task in session.scalars(select(Task))}
    assert wanted[Split.test] == (3, True)
    assert wanted[Split.train][0] == 1
    assert session.scalar(select(func.count()).select_from(TaskCandidate)) == 8


def test_discarded_answers_give_their_task_back_and_return(session, people, fours, make_fours):
    tasks = make_fours(2)
    ada = people[0].id
    for _ in tasks:
        record_judgment(session, ada, answer_of(lease_one(session, people[0], fours)))
    assert lease_one(session, people[1], fours) is None
    assert discard_answers(session, "Ada") == Change(judgments=2, pairs=0, tasks=2)
    assert [task.judgment_count for task in session.scalars(select(Task))] == [0, 0]
    again = lease_one(session, people[0], fours)
    record_judgment(session, ada, answer_of(again, "b>?"))
    assert restore_answers(session, "Ada") == Change(judgments=1, pairs=0, tasks=1, answered_anew=1)
    assert [task.judgment_count for task in session.scalars(select(Task))] == [1, 1]
    assert set(session.scalars(select(Judgment.ranking).where(Judgment.superseded_at.is_(None)))) == {"a>?", "b>?"}


def test_a_method_goes_with_its_tasks_unless_a_person_answered_one(session, people, fours, tmp_path):
    add_candidates(session, "face", METHODS[:4])
    add_candidates(session, "other", METHODS[:3])
    make_tasks(session, fours.model_copy(update={"judgments_per_pair": 2}), 4)
    robot = add_person(session, "robot", simulated=True)
    first = lease_one(session, robot, fours)
    while first.task_id != session.scalar(select(Task.id).where(Task.size == 4)):
        first = lease_one(session, robot, fours, holding_tasks=[first.task_id])
    given = answer_of(first)
    record_judgment(session, robot.id, given)
    method = session.scalars(select(Method).where(Method.name == "m4")).one()
    assert count_peoples_answers(session, method.id) == 0
    remove_method(session, tmp_path, method)
    assert [task.size for task in session.scalars(select(Task))] == [3]
    assert session.scalar(select(func.count()).select_from(TaskCandidate)) == 3
    assert session.scalar(select(func.count()).select_from(Judgment)) == 0
    left = lease_one(session, people[0], fours)
    record_judgment(session, people[0].id, answer_of(left))
    with pytest.raises(UserError, match="People answered"):
        remove_method(session, tmp_path, session.scalars(select(Method).where(Method.name == "m1")).one())


def test_a_task_with_equal_images_found_later_is_asked_no_more(session, people, fours, make_fours):
    (task,) = make_fours(1)
    lease_one(session, people[0], fours)
    first, second = task.candidates[0].candidate, task.candidates[1].candidate
    found = set_aside_equal_pairs(session, {first.image_id: "same", second.image_id: "same"})
    assert [pair.pair_id is None for pair in found] == [False, True]
    assert set(found[1].methods) == {first.method.name, second.method.name}
    session.refresh(task)
    assert (task.judgments_wanted, session.scalars(select(Lease)).all()) == (0, [])
    assert lease_one(session, people[0], fours) is None
    assert set_aside_equal_pairs(session, {first.image_id: "same", second.image_id: "same"}) == []
    more = make_tasks(session, fours, 4, pixels={first.image_id: "same", second.image_id: "same"})
    assert (more.added, more.smaller) == (2, 1)  # three different pictures: each of the equal two with the others


def test_what_depends_on_an_image_are_its_tasks_too(session, people, fours, make_fours, tmp_path):
    make_fours(2)
    task_id = None
    for _ in range(2):
        lease = lease_one(session, people[0], fours)
        task_id = lease.task_id
        record_judgment(session, people[0].id, answer_of(lease))
    image = session.get_one(Task, task_id).candidates[0].candidate.image
    (one,) = describe_damage(session, tmp_path, [(image.sha256, "cut short")])
    assert (one.pairs, one.tasks, one.judgments) == (3, 1, 1)
    assert "  in 3 pairs, 1 task, 1 judgment" in one.describe()


def test_a_photo_that_changes_its_split_takes_its_tasks_with_it(session, fours, make_fours):
    (task,) = make_fours(1)
    _change_pairs(session, fours, [task.source_id], Split.test)
    session.refresh(task)
    assert (task.judgments_wanted, task.reserved) == (3, True)


def pair_of(session, task: Task, letters: str) -> Pair:
    first, second = (next(one.candidate_id for one in task.candidates if one.letter == letter) for letter in letters)
    return session.scalars(select(Pair).where(Pair.a_id == first, Pair.b_id == second)).one()


def answer_task(session, person, task: Task, ranking: str | None, **fields: object) -> Judgment:
    shown = {"repeat_no": 0, "shown_left": None, "choice": None, "seconds": 2.0, "places": "abcdef"[: task.size]}
    of_task = {"task_id": task.id, "ranking": ranking, "asked": Asked.order}
    return record_judgment(session, person.id, Answer(str(uuid4()), None, **{**shown, **of_task, **fields}))


def test_an_answer_votes_on_the_pairs_that_it_tells_of_with_a_part_each(session, people, make_fours):
    (task,) = make_fours(1, judgments_per_pair=3)
    best = answer_task(session, people[0], task, "c>?")
    votes = load_votes(session)
    assert {(row.pair_id, row.choice) for row in votes.itertuples()} == {
        (pair_of(session, task, "ac").id, "b"),
        (pair_of(session, task, "bc").id, "b"),
        (pair_of(session, task, "cd").id, "a"),
    }
    assert votes["weight"].to_list() == pytest.approx([1 / 3] * 3)
    report = resolve_labels(session)
    labels = session.scalars(select(Label)).all()
    assert report.added == len(labels) == 3
    assert [label.weight for label in labels] == pytest.approx([1 / 3] * 3)
    assert [[row.id for row in label.judgments] for label in labels] == [[best.id]] * 3
    # A pair's own answer weighs three times as much: of a and c p_a = (0 · 1/3 + 1 · 1) / (4/3).
    ac = pair_of(session, task, "ac")
    judge(session, people[1].id, ac.id, "a")
    answer_task(session, people[2], task, "a=b=c=d")  # six ties of one sixth
    resolve_labels(session)
    live = {label.pair_id: label for label in session.scalars(select(Label).where(Label.superseded_at.is_(None)))}
    assert len(live) == 6
    assert live[ac.id].p_a == pytest.approx((1 + 0.5 / 6) / (1 / 3 + 1 + 1 / 6))
    assert (live[ac.id].weight, len(live[ac.id].judgments)) == (1.0, 3)
    assert live[pair_of(session, task, "bc").id].weight == pytest.approx(1 / 3 + 1 / 6)
    assert live[pair_of(session, task, "ab").id].weight == pytest.approx(1 / 6)


def test_labels_of_tasks_go_with_their_answers(session, people, fours, make_fours):
    (task,) = make_fours(1, judgments_per_pair=2)
    first = answer_task(session, people[0], task, "a>b>c>d")
    answer_task(session, people[1], task, None, choice=Choice.skip, skip_reason="both bad")
    assert resolve_labels(session).added == 6
    assert resolve_labels(session).unchanged == 6
    undo_judgment(session, people[0].id, first.uuid, fours)
    assert resolve_labels(session).withdrawn == 6


def test_gold_tasks_repeats_and_programs_make_no_votes(session, people, make_fours):
    gold, plain = make_fours(2, judgments_per_pair=2)
    gold.gold_ranking = "a>?"
    session.flush()
    answer_task(session, people[0], gold, "b>?")
    answer_task(session, people[0], plain, "b>?")
    answer_task(session, people[0], plain, "a>?", repeat_no=1)
    robot = add_person(session, "robot", simulated=True)
    answer_task(session, robot, plain, "d>?")
    assert len(load_votes(session)) == 3
    assert len(load_votes(session, include_simulated=True)) == 6
    assert len(load_votes(session, excluded={people[0].id})) == 0


def test_a_labels_weight_of_pairs_alone_is_one(session, people, make_project):
    pairs = make_project(2, wanted=3)
    for person, choice in zip(people, "aab", strict=False):
        judge(session, person.id, pairs[0].id, choice)
    resolve_labels(session)
    (label,) = session.scalars(select(Label))
    assert (label.p_a, label.weight) == (2 / 3, 1.0)


def test_dawid_skene_takes_the_votes_of_tasks(session, people, make_fours):
    tasks = make_fours(4, judgments_per_pair=4)
    right, wrong = "a>b>c>d", "d>c>b>a"
    for task in tasks:
        for person, ranking in zip(people, [right, right, right, wrong], strict=True):
            answer_task(session, person, task, ranking)
        right, wrong = wrong, right
    p_a = compute_dawid_skene(load_votes(session))
    assert p_a[pair_of(session, tasks[0], "ab").id] > 0.95 > 0.05 > p_a[pair_of(session, tasks[1], "ab").id]
    assert len(p_a) == 24
    assert resolve_labels(session, "dawid-skene").added == 24


@pytest.mark.parametrize(
    ("scores", "asked", "ranking"),
    [
        ({"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.3}, "best", "c>?"),
        ({"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.3}, "best_worst", "c>?>a"),
        ({"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.3}, "order", "c>b>d>a"),
        ({"a": 0.1, "b": 0.899, "c": 0.9, "d": 0.3}, "best", "b=c>?"),
        ({"a": 0.1, "b": 0.5, "c": 0.9}, "best_worst", "c>b>a"),
        ({"a": 0.1, "b": 0.9, "c": 0.9}, "best_worst", "b=c>a"),
        ({"a": 0.1, "b": 0.1, "c": 0.101, "d": 0.1}, "order", "a=b=c=d"),
    ],
)
def test_scores_say_what_is_asked(scores, asked, ranking):
    assert rank_scores(scores, Asked(asked)) == ranking
    assert answers_what_was_asked(ranking, Asked(asked))


@pytest.mark.parametrize("asked", ["best", "best_worst", "order"])
def test_a_program_is_wrong_as_often_as_it_should_be(rng, asked):
    """Of 2,000 answers 30 % are wrong, give or take three standard errors."""
    scores = {"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.3}
    given = [answer_scores(scores, Asked(asked), 0.3, rng) for _ in range(2000)]
    wrong = sum(ranking != rank_scores(scores, Asked(asked)) for ranking, _ in given)
    assert wrong / 2000 == pytest.approx(0.3, abs=3 * (0.21 / 2000) ** 0.5)
    assert sum(drawn for _, drawn in given) > wrong
    assert all(answers_what_was_asked(ranking, Asked(asked)) for ranking, _ in given)


def test_a_program_answers_tasks_and_is_marked(database, fours):
    """Method m1 is the best to it, then m2, m3, m4."""
    with database.write() as session:
        for number in range(8):
            add_candidates(session, f"face{number}", METHODS[:4])
        save_settings(session, {**fours.model_dump(), "asked": "order", "mixed_share": 0.5})
        make_tasks(session, fours, 4)
        person_id = add_person(session, "robot", simulated=True).id

    def score(session, candidate_id):
        return -float(session.get_one(Candidate, candidate_id).method.name[1:])

    answers, by_lot = judge_pairs(database, person_id, score, count=500, noise=0.0, seed=1)
    assert (answers >= 8, by_lot) == (True, 0)
    with database.read() as session:
        rows = session.scalars(select(Judgment)).all()
        assert len({row.asked for row in rows}) > 1
        for row in rows:
            assert (row.person.simulated, row.picked) == (True, Picked.random)
            if row.task is not None:
                scores = {one.letter: score(session, one.candidate_id) for one in row.task.candidates}
                assert row.ranking == rank_scores(scores, row.asked)


@pytest.mark.parametrize(("task_size", "most"), [(2, 16), (4, 17)])
def test_an_answer_and_the_next_showing_cost_few_statements(database, fours, task_size, most):
    """A pair's cost as many before there were tasks (15; 16 where the question is new); a task asks for its size."""
    settings, rng = fours.model_copy(update={"task_size": task_size}), random.Random(1)

    def see(session, holding):
        pairs = [answer.pair_id for answer in holding if answer.pair_id]
        tasks = [answer.task_id for answer in holding if answer.task_id]
        leases = lease_pairs(session, ada, settings, rng, count=2 - len(holding), holding=pairs, holding_tasks=tasks)
        return holding + [
            answer_of(lease)
            if lease.task_id
            else Answer(str(uuid4()), lease.pair_id, 0, lease.shown_left, Choice.a, 1.0)
            for lease in leases
        ]

    with database.write() as session:
        ada = add_person(session, "Ada").id
        for number in range(8):
            add_candidates(session, f"face{number}", METHODS[:4])
        make_tasks(session, settings, 4)
        held = see(session, [])
    statements: list[str] = []
    listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    for _ in range(4):
        statements.clear()
        with database.write() as session:
            record_judgment(session, ada, held[0])
            held = see(session, held[1:])
        fixed = [one for one in statements if "ORDER BY" not in one or "shuffle_key" not in one]  # walks: by chance
        assert len(held) == 2
        assert len(fixed) <= most, "\n".join(fixed)


def test_a_gold_task_is_read_by_its_methods_in_any_order(session, tmp_path, fours):
    add_candidates(session, "face", METHODS[:4])
    table = tmp_path / "gold.csv"
    table.write_text("source,methods,answer\nface,m3;m1;m4;m2,b>?\n")
    assert vars(import_gold(session, table)) == {"added": 1, "marked": 0, "existing": 0}
    (task,) = session.scalars(select(Task))
    best = next(one for one in task.candidates if one.letter == task.gold_ranking[0])
    assert (best.candidate.method.name, task.gold_ranking[1:], task.queue_level) == ("m1", ">?", None)
    table.write_text("source,methods,answer\nface,m1;m2;m3;m4,a>?\n")
    assert vars(import_gold(session, table)) == {"added": 0, "marked": 0, "existing": 1}
    for answer, methods, said in [
        ("b>?", "m1;m2;m3;m4", "another known answer"),
        ("m1", "m1;m2;m3;m4", "is not a ranking"),
        ("a>?", "m1;m2", "2 methods"),
        ("a>?", "m1;m1;m2", "the same"),
        ("a>?", "m1;m2;m9", "no image by method 'm9'"),
    ]:
        table.write_text(f"source,methods,answer\nface,{methods},{answer}\n")
        with pytest.raises(UserError, match=said):
            import_gold(session, table)
    table.write_text("source,method_a,answer\nface,m1,a\n")
    with pytest.raises(UserError, match="method_b is empty"):
        import_gold(session, table)


def test_what_people_said_of_a_pair_in_tasks_is_listed(session, people, make_fours):
    (task,) = make_fours(1, judgments_per_pair=2)
    answer_task(session, people[0], task, "c>?")
    ac, ab = pair_of(session, task, "ac"), pair_of(session, task, "ab")
    judge(session, people[1].id, ac.id, "tie")
    found = load_answers(session, [ac.id, ab.id])
    assert found == {ac.id: [("Ben", False, Choice.tie), ("Ada", False, Choice.b)]}


def test_decided_answers_are_counted_with_those_of_tasks(session, people, make_fours):
    first, second, third = make_fours(3)
    answer_task(session, people[0], first, "c>?")
    answer_task(session, people[0], second, "a=b=c=d")
    answer_task(session, add_person(session, "robot", simulated=True), third, "a>b>c>d")
    judge(session, people[0].id, pair_of(session, second, "ab").id, "a")
    assert count_decided(session, include_simulated=False) == 1 + 3
    assert count_decided(session, include_simulated=True) == 1 + 3 + 3
    decided = session.scalars(select(Judgment.ranking).where(DECIDED)).all()
    assert sorted(decided, key=str) == [None, "a>b>c>d", "c>?"]
