"""People as the judge: training waits for their answers, can be stopped there, and asks nobody twice."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sqlalchemy import select
from torch import Tensor

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.pairs import lease_pairs
from annotate.judging.people import add_person
from annotate.judging.simulate import rank_scores
from db.errors import UserError
from db.images import open_rgb
from db.models import Asked, Candidate, Choice, Judgment, Lease, Method, Pair, Person, Picked, Split, Task
from db.project import load_settings, save_settings
from db.session import Database
from refl.tune.judge_names import PEOPLE
from refl.tune.judges import load_judge
from refl.tune.people_judge import PeopleJudge, StoppedWaiting, compute_shares, count_wins
from runs.options import Place
from tests.forked import run_two
from tests.making import add_face, add_photos, count_rows, fetch, open_fresh

FACES = ("ada", "ben", "cleo")


@pytest.fixture
def project(database: Database, data: Path, tmp_path: Path) -> Database:
    """A project of three photos and an older restored image of each, one of them held out; one person."""
    return fill(database, data, tmp_path / "photos")


def fill(database: Database, data: Path, folder: Path) -> Database:
    with database.write() as session:
        save_settings(session, {"repeat_share": 0, "gold_share": 0})
        photos = add_photos(session, data, folder, range(9))
        for at, face in enumerate(FACES):
            split = Split.val if face == "cleo" else Split.train
            lq, hq, old = photos[3 * at : 3 * at + 3]
            add_face(session, face, ["old"], lq, old, hq=hq, split=split)
        add_person(session, "Ada")
    return database


def open_judge(data: Path, answers: int = 1) -> PeopleJudge:
    judge = load_judge(PEOPLE, "cpu", data / "weights", Place(data), answers)
    assert isinstance(judge, PeopleJudge)
    judge.poll_seconds = 0.02
    return judge


def make_greys(*levels: int) -> Tensor:
    """(N, 3, 16, 16) plain images of these grey levels."""
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)


def ask(
    judge: PeopleJudge, images: Tensor, names: list[str], step: int = 0, stop: Callable[[], int] = lambda: 0
) -> list[float]:
    judge.begin_step(Accelerator(cpu=True), "tiny-grpo", step, stop)
    found: list[float] = judge.score(images, images, images, [None] * len(images), names).tolist()
    return found


def find_level(database: Database, data: Path, candidate: Candidate) -> float:
    with database.read() as session:
        return float(np.asarray(open_rgb(data, session.get_one(Candidate, candidate.id).image)).mean())


def answer_next(database: Database, data: Path, name: str = "Ada", skips: bool = False) -> Lease | None:
    """One turn of a person at the Label page who likes the brighter image; None where nothing is shown."""
    with database.write() as session:
        person = session.scalars(select(Person).where(Person.name == name)).one()
        leases = lease_pairs(session, person.id, load_settings(session), random.Random(1), count=1, holding=[])
        if not leases:
            return None
        lease, shown = leases[0], {"repeat_no": leases[0].repeat_no, "picked": leases[0].picked, "seconds": 1.0}
        if lease.pair_id is not None:
            pair = session.get_one(Pair, lease.pair_id)
            a, b = (find_level(database, data, candidate) for candidate in (pair.a, pair.b))
            choice = Choice.tie if a == b else Choice.a if a > b else Choice.b
            said = {"choice": Choice.skip, "skip_reason": "both bad"} if skips else {"choice": choice}
            answer = Answer(str(uuid4()), lease.pair_id, shown_left=lease.shown_left, **said, **shown)
        else:
            task = session.get_one(Task, lease.task_id)
            levels = {one.letter: find_level(database, data, one.candidate) for one in task.candidates}
            ranking = rank_scores(levels, lease.asked)
            of_task = {"task_id": task.id, "ranking": ranking, "places": lease.places, "asked": lease.asked}
            answer = Answer(str(uuid4()), None, shown_left=None, choice=None, **of_task, **shown)
        record_judgment(session, person.id, answer)
        return lease


@contextmanager
def answering(database: Database, data: Path, *names: str, skips: bool = False) -> Iterator[list[Lease]]:
    """People at the Label page while the block runs; gives what they were shown."""
    ended, shown = threading.Event(), list[Lease]()

    def work() -> None:
        while not ended.is_set():
            for name in names or ("Ada",):
                if lease := answer_next(database, data, name, skips):
                    shown.append(lease)
            time.sleep(0.01)

    person = threading.Thread(target=work)
    person.start()
    try:
        yield shown
    finally:
        ended.set()
        person.join()


def test_each_image_gets_the_share_of_its_group_that_it_was_better_than(project: Database, data: Path) -> None:
    with answering(project, data) as shown:
        found = ask(open_judge(data), make_greys(50, 90, 10, 200, 100), ["ada"] * 3 + ["ben"] * 2)
    assert found == [0.5, 1.0, 0.0, 1.0, 0.0]
    assert {lease.picked for lease in shown} == {Picked.leftover}  # no fair sample to measure accuracy on
    methods = fetch(project, select(Method.name).order_by(Method.id))
    assert methods == ["old", "tiny-grpo@step-000001"]
    new = fetch(project, select(Candidate).where(Candidate.method_id == 2).order_by(Candidate.id))
    assert [(one.source_id, one.seed) for one in new] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert count_rows(project, Pair, Judgment) == [4, 4]
    assert fetch(project, select(Pair.awaited).distinct()) == [False]
    assert fetch(project, select(Pair.reserved).distinct()) == [False]  # the reserve is for random picks


def test_a_project_of_tasks_is_asked_for_the_best_of_a_group(project: Database, data: Path) -> None:
    with project.write() as session:
        save_settings(session, {"task_size": 4})
    with answering(project, data):
        found = ask(open_judge(data), make_greys(50, 90, 10, 30, 200, 100), ["ada"] * 4 + ["ben"] * 2)
    # the best of four is better than each; of the others nothing is known
    assert found == pytest.approx([1 / 3, 1.0, 1 / 3, 1 / 3, 1.0, 0.0])
    assert count_rows(project, Task) == [1]
    with pytest.raises(UserError, match="group of 7 images: at most 6"):
        ask(open_judge(data), make_greys(*range(7)), ["ada"] * 7, step=1)
    assert count_rows(project, Task, Method) == [1, 2]  # refused whole


def test_equal_images_tie_and_are_not_shown(project: Database, data: Path) -> None:
    assert ask(open_judge(data), make_greys(50, 50, 70), ["ada", "ada", "ben"]) == [0.5, 0.5, 0.5]
    assert count_rows(project, Pair, Task) == [0, 0]
    with answering(project, data):
        assert ask(open_judge(data), make_greys(9, 50, 50), ["ada"] * 3, step=1) == [0.0, 0.75, 0.75]
    assert count_rows(project, Pair) == [1]


def test_a_skip_is_worth_a_half_and_several_answers_their_mean(project: Database, data: Path) -> None:
    with project.write() as session:
        add_person(session, "Ben")
    with answering(project, data, skips=True):
        assert ask(open_judge(data), make_greys(50, 90), ["ada"] * 2) == [0.5, 0.5]
    judge, found = open_judge(data, answers=2), list[float]()
    asking = threading.Thread(target=lambda: found.extend(ask(judge, make_greys(50, 90), ["ada"] * 2, step=1)))
    asking.start()
    while answer_next(project, data, "Ada", skips=True) is None:
        time.sleep(0.01)
    time.sleep(0.1)
    assert not found  # one of two answers is there
    while answer_next(project, data, "Ben") is None:
        time.sleep(0.01)
    asking.join()
    assert found == [0.25, 0.75]


def test_a_stopped_step_is_discarded_and_its_images_and_answers_are_found_again(
    project: Database, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images, names = make_greys(50, 90, 10), ["ada"] * 3
    signals = iter([0, 0, 15])
    with pytest.raises(StoppedWaiting) as stopped:
        ask(open_judge(data), images, names, step=119, stop=lambda: next(signals))
    assert stopped.value.code == 128 + 15
    assert "step 120: waiting for people: 0 of 3 tasks answered" in caplog.text
    assert fetch(project, select(Pair.awaited)) == [False] * 3  # nobody waits any more
    before = count_rows(project, Candidate, Pair, Method)
    assert answer_next(project, data) is not None
    with pytest.raises(StoppedWaiting):
        ask(open_judge(data), images, names, step=119, stop=lambda: 15)
    assert "1 of 3 tasks answered" in caplog.text
    with answering(project, data):
        assert ask(open_judge(data), images, names, step=119) == [0.5, 1.0, 0.0]
    assert count_rows(project, Candidate, Pair, Method) == before
    assert count_rows(project, Judgment) == [3]
    # a step whose answers are there asks nobody
    assert ask(open_judge(data), images, names, step=119, stop=lambda: 15) == [0.5, 1.0, 0.0]


def test_a_step_that_made_other_images_asks_about_these(project: Database, data: Path) -> None:
    with pytest.raises(StoppedWaiting):
        ask(open_judge(data), make_greys(50, 90), ["ada"] * 2, stop=lambda: 2)
    with answering(project, data):
        assert ask(open_judge(data), make_greys(91, 51), ["ada"] * 2) == [1.0, 0.0]
    assert fetch(project, select(Method.name))[1:] == ["tiny-grpo@step-000001", "tiny-grpo@step-000001-2"]


def test_what_a_killed_step_asked_about_is_shown_first_no_longer(project: Database, data: Path) -> None:
    def die() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(open_judge(data), make_greys(50, 90), ["ada"] * 2, stop=die)
    assert fetch(project, select(Pair.awaited)) == [True]
    with pytest.raises(StoppedWaiting):
        ask(open_judge(data), make_greys(1, 2), ["ada"] * 2, step=1, stop=lambda: 2)
    assert fetch(project, select(Pair.awaited)) == [False, False]


def test_answers_of_programs_mark_the_judge(project: Database, data: Path) -> None:
    with project.write() as session:
        add_person(session, "sim", simulated=True)
    judge = open_judge(data)
    assert judge.name == "people"
    with answering(project, data, "sim"):
        ask(judge, make_greys(50, 90), ["ada"] * 2)
    assert judge.name == "people-simulated"
    with answering(project, data, "Ada"):
        ask(judge, make_greys(50, 91), ["ada"] * 2, step=1)
    assert judge.name == "people-simulated"  # what it was trained on stays
    continued = open_judge(data)
    assert ask(continued, make_greys(50), ["ada"], step=2) == [0.5]
    assert continued.name == "people-simulated"


@pytest.mark.parametrize(("face", "says"), [("cleo", "of the split val"), ("dan", "has no photo 'dan'")])
def test_nobody_is_asked_about_held_out_photos_or_others(project: Database, data: Path, face: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ask(open_judge(data), make_greys(1, 2, 3, 4), ["ada", "ada", face, face])
    assert count_rows(project, Method, Pair) == [1, 0]


def test_the_version_is_that_of_the_question(project: Database, data: Path) -> None:
    first = open_judge(data).version
    with project.write() as session:
        save_settings(session, {"question": "Who is this?"})
    assert open_judge(data).version != first
    with pytest.raises(UserError, match="0 answers of people"):
        open_judge(data, answers=0)


def test_what_a_whole_order_is_worth() -> None:
    wins: dict[tuple[int, int], list[float]] = {}
    count_wins(wins, [7, 8, 9], "b>a=c")
    count_wins(wins, [7, 8, 9], None)
    assert wins[8, 7] == [1.0, 0.5]
    assert wins[7, 9] == wins[9, 7] == [0.5, 0.5]
    assert compute_shares([], wins) == []


def ask_together(data: Path, out: Path) -> None:
    accelerator, judge = Accelerator(cpu=True), open_judge(data)
    rank = accelerator.process_index
    for step, sizes in enumerate([(2, 3), (2, 0)]):  # of the second step one process has no image
        images = make_greys(*range(10 * rank, 10 * rank + sizes[rank]))
        judge.begin_step(accelerator, "two", step, lambda: 0)
        found = judge.score(images, images, images, [None] * len(images), [FACES[rank]] * len(images))
        torch.save(found, out / f"{step}-{rank}")
    judge.answers = 2  # more than there are people
    judge.begin_step(accelerator, "two", 2, lambda: 15 * rank)  # a signal comes to one of them
    try:
        judge.score(make_greys(1, 5), images, images, [None] * 2, [FACES[rank]] * 2)
    except StoppedWaiting:
        (out / f"stopped-{rank}").touch()


@pytest.mark.slow
def test_two_processes_wait_and_stop_together(tmp_path: Path) -> None:
    data = tmp_path / "data"
    database = fill(open_fresh(data), data, tmp_path / "photos")
    with answering(database, data):
        run_two(tmp_path / "log", ask_together, data, tmp_path)
    found = {name: torch.load(tmp_path / name).tolist() for name in ("0-0", "0-1", "1-0", "1-1")}
    assert found == {"0-0": [0.0, 1.0], "0-1": [0.0, 0.5, 1.0], "1-0": [0.0, 1.0], "1-1": []}
    assert (tmp_path / "stopped-0").exists()
    assert (tmp_path / "stopped-1").exists()
    assert fetch(database, select(Pair.awaited).distinct()) == [False]
    database.close()


def test_how_people_are_asked_is_the_projects(project: Database, data: Path) -> None:
    with project.write() as session:
        save_settings(session, {"task_size": 3, "asked": "order"})
    with answering(project, data) as shown:
        assert ask(open_judge(data), make_greys(50, 90, 10, 30), ["ada"] * 4) == pytest.approx([2 / 3, 1, 0, 1 / 3])
    assert {lease.asked for lease in shown} == {Asked.order}
