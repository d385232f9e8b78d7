"""The demo filled by a simulated annotator and what follows, and all of it thrown away; people's answers stay."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from time import sleep
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

import runs.rounds
import ui.pages.data
import ui.pages.export
import ui.pages.people
from annotate.judging.people import add_person, get_person
from annotate.judging.simulate import ANNOTATOR, SimilarityScore, get_annotator, judge_pairs
from annotate.judging.simulate_command import SIMULATE, SimulateOptions, run_simulate
from db.errors import UserError
from db.images import add_image, image_path, probe_bytes
from db.models import (
    Candidate,
    Choice,
    Image,
    Judgment,
    Label,
    Method,
    Origin,
    Pair,
    Person,
    Run,
    RunState,
    Source,
    Split,
)
from db.records import add_candidate, add_method, add_source, pair_key
from db.session import Database
from runs.delete import delete_run
from runs.options import Place
from runs.rounds import PlannedRun
from runs.store import insert_run, run_folder
from tests.making import fetch, judge
from ui import demo, filling
from ui.context import Context
from ui.demo import make_demo
from ui.filling import Demo, clear_demo, fill_demo, look_at_demo, plan_filling

EMPTY = Demo(is_demo=True, answers=0, runs=0, live=0, failed=0, has_round=False, has_torch=True)


@pytest.fixture
def context(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A demo of two photos, three methods and six pairs."""
    names = ("unsharp mask", "bilateral and sharpen", "Richardson-Lucy")
    monkeypatch.setattr(demo, "METHODS", {name: demo.METHODS[name] for name in names})
    monkeypatch.setattr(demo, "SHOTS", demo.SHOTS[:1])
    make_demo(database, data)
    return Context(database=database, data=data)


def answers_of(database: Database, name: str) -> list[Judgment]:
    statement = select(Judgment).join(Person, Person.id == Judgment.person_id).where(Person.name == name)
    return fetch(database, statement.where(Judgment.superseded_at.is_(None)).order_by(Judgment.id))


def test_a_simulated_annotator_prefers_what_is_nearer_to_the_ground_truth(context: Context) -> None:
    run_simulate(SimulateOptions(count=100, noise=0.0), Place(context.data))
    answers = answers_of(context.database, ANNOTATOR)
    with context.database.read() as session:
        assert f"{len(answers)} of the judgments behind these counts are simulated" in ui.pages.data.counts_html(
            session
        )
        assert f"{len(answers)} of the judgments are simulated" in ui.pages.export.counts_html(session)
    assert "nothing: a program" in ui.pages.people.people_html(context)
    assert len({answer.pair_id for answer in answers if answer.repeat_no == 0}) == 6
    score = SimilarityScore(context.data)
    with context.database.read() as session:
        assert get_person(session, ANNOTATOR).simulated
        for answer in answers:
            pair = session.get_one(Pair, answer.pair_id)
            a, b = score(session, pair.a_id), score(session, pair.b_id)
            assert answer.choice == (Choice.tie if abs(a - b) < 0.002 else Choice.a if a > b else Choice.b)
            assert answer.seconds > 0


def test_some_of_its_answers_are_by_lot(context: Context) -> None:
    with context.database.write() as session:
        person_id = get_annotator(session).id
    told: list[int] = []
    answers, by_lot = judge_pairs(
        context.database,
        person_id,
        lambda _session, number: float(number),
        count=4,
        noise=0.5,
        seed=3,
        tell=told.append,
    )
    assert (answers, by_lot, told) == (4, 4, [1, 2, 3, 4])


def test_no_real_person_is_simulated_and_photos_need_their_ground_truth(context: Context) -> None:
    with context.database.write() as session:
        add_person(session, "Ada")
    with pytest.raises(UserError, match="'Ada' is a person"):
        run_simulate(SimulateOptions(name="Ada"), Place(context.data))
    with context.database.write() as session:
        session.scalars(select(Source)).first().hq_image_id = None  # type: ignore[union-attr]
    with pytest.raises(UserError, match="1 photos with pairs have no ground truth"):
        run_simulate(SimulateOptions(), Place(context.data))
    assert answers_of(context.database, ANNOTATOR) == []


def test_what_is_there_already_is_not_planned_again(data: Path) -> None:
    whole = plan_filling(data, EMPTY)
    assert [one.kind for one in whole[:3]] == ["annotate simulate", "annotate rank", "annotate measure"]
    assert whole[-1].kind == "annotate pair"
    assert [one.after for one in whole] == [[], [0], [0], *([place] for place in range(2, len(whole) - 1))]
    told = {one.kind: one.options for one in whole}
    for kind in ("annotate rank", "annotate fit", "annotate export"):
        assert told[kind].include_simulated, kind  # type: ignore[attr-defined]
    without = plan_filling(data, Demo(True, 0, 0, 0, 0, has_round=False, has_torch=False))
    assert [one.kind for one in without] == ["annotate simulate", "annotate rank"]
    rest = plan_filling(data, Demo(True, 60, 2, 0, 0, has_round=False, has_torch=True))
    assert [one.kind for one in rest] == [one.kind for one in whole[2:]]
    assert rest[0].after == []


def test_without_torch_it_says_what_installs_it_and_fills_the_rest(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(filling, "start_round", lambda _database, _data, plan, **_: [one.kind for one in plan])
    assert fill_demo(context) == ["annotate simulate", "annotate rank"]
    with context.database.write() as session:
        person_id = get_annotator(session).id
        insert_run(session, context.data, SIMULATE.name, {}, person_id=person_id, state=RunState.finished)
    assert look_at_demo(context.database).full
    assert "make install" in look_at_demo(context.database).sentence
    with pytest.raises(UserError, match="is filled already"):
        fill_demo(context)
    monkeypatch.setattr(filling.importlib.util, "find_spec", lambda _name: "here")
    assert not look_at_demo(context.database).full


def press_at_once(press: Callable[[Context], Any], context: Context) -> list[Any]:
    """What two admins see who press a button at once: what it returns, or what it refuses."""
    both = Barrier(2)

    def once(_: int) -> Any:
        both.wait()
        try:
            return press(context)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(once, range(2)))


def test_two_who_fill_it_at_once_fill_it_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_slowly(data: Path, demo: Demo) -> list[PlannedRun]:
        sleep(0.1)
        return plan_filling(data, demo)

    monkeypatch.setattr(runs.rounds, "start_what_can", lambda *_: None)
    monkeypatch.setattr(filling.importlib.util, "find_spec", lambda _name: None)  # the round's folder guards it else
    monkeypatch.setattr(filling, "plan_filling", plan_slowly)
    seen = press_at_once(fill_demo, context)
    assert "The demo is filled already" in str(seen)
    assert len(fetch(context.database, select(Run))) == 2


def test_two_who_clear_it_at_once_clear_it_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete_slowly(*arguments: Any, **options: Any) -> int:
        sleep(0.05)
        return delete_run(*arguments, **options)

    fill_by_hand(context)
    monkeypatch.setattr(filling, "delete_run", delete_slowly)
    seen = press_at_once(clear_demo, context)
    assert any(said.startswith("4 simulated answers are taken out") for said in seen)
    assert fetch(context.database, select(Run)) == []


def test_only_the_demo_is_filled(context: Context) -> None:
    assert look_at_demo(context.database).is_demo
    with context.database.write() as session:
        add_source(session, "mine", Split.train)
    found = look_at_demo(context.database)
    assert (found.is_demo, found.can_fill, found.can_clear, found.sentence) == (False, False, False, "")
    with pytest.raises(UserError, match="Only the demo"):
        fill_demo(context)
    assert fetch(context.database, select(Run)) == []


def fill_by_hand(context: Context) -> dict[str, Any]:
    """As the runs of a filling leave it: answers, a labeler's label, a method with an image of its own, folders."""
    database, data = context.database, context.data
    run_simulate(SimulateOptions(count=4), Place(data))
    folder = data / "rounds" / "1"
    (folder / "restorer").mkdir(parents=True)
    (folder / "restorer" / "weights").write_bytes(b"w")
    with database.write() as session:
        person_id = get_person(session, ANNOTATOR).id
        for run in session.scalars(select(Run)):
            run.person_id = person_id
        done: dict[str, Any] = {"person_id": person_id, "state": RunState.finished}
        fit = insert_run(session, data, "annotate fit", {}, **done)
        outputs = [{"option": "out", "value": str(folder / "restorer")}]
        tune = insert_run(
            session, data, "refl train", {"out": str(folder / "restorer")}, cwd="/", inputs=[], outputs=outputs, **done
        )
        restore = insert_run(session, data, "refl restore", {}, inputs=[], outputs=[], **done)
        pair = session.scalars(select(Pair).where(Pair.judgment_count == 0)).first()
        assert pair is not None
        session.add(Label(pair_id=pair.id, origin=Origin.svm, made_by=f"svm-{fit.id}-abc", p_a=0.9))
        method = add_method(session, "round-1", {"weights": str(folder / "restorer" / "tuned")})
        method.run_id = restore.id
        other = session.get_one(Candidate, pair.a_id)
        content = demo._encode_png(np.full((64, 64, 3), 0.5, dtype=np.float32))
        image = add_image(session, data, probe_bytes(content, "an image"), content)
        candidate = add_candidate(session, other.source, method, image)
        new = Pair(
            key=pair_key("x", "y")[0], source_id=other.source_id, a_id=candidate.id, b_id=other.id, shuffle_key=1
        )
        session.add(new)
        session.flush()
        file = image_path(data, image.sha256, image.suffix)
        return {"unjudged": pair.id, "new": new.id, "file": file, "tune": tune.id, "folder": folder}


def test_all_that_came_of_simulated_answers_goes_and_peoples_answers_stay(context: Context) -> None:
    made = fill_by_hand(context)
    database, data = context.database, context.data
    with database.write() as session:
        ada = add_person(session, "Ada")
        judge(session, ada.id, made["unjudged"], Choice.a)
    images = len(fetch(database, select(Image)))
    said = clear_demo(context)
    assert "4 simulated answers are taken out" in said
    assert answers_of(database, ANNOTATOR) == []
    assert [answer.pair_id for answer in answers_of(database, "Ada")] == [made["unjudged"]]
    assert fetch(database, select(Pair.judgment_count).order_by(Pair.judgment_count)) == [0, 0, 0, 0, 0, 1]
    assert fetch(database, select(Label).where(Label.superseded_at.is_(None))) == []
    assert fetch(database, select(Run)) == []
    assert fetch(database, select(Method).where(Method.name == "round-1")) == []
    assert len(fetch(database, select(Image))) == images - 1
    assert not made["file"].exists()
    assert not made["folder"].exists()
    assert [path for path in (data / "runs").iterdir() if path.is_dir()] == []
    found = look_at_demo(database)
    assert (found.can_fill, found.can_clear) == (True, False)


def test_what_people_judged_of_it_stays_with_the_runs_that_made_it(context: Context) -> None:
    made = fill_by_hand(context)
    with context.database.write() as session:
        judge(session, add_person(session, "Ada").id, made["new"], Choice.b)
    assert "People judged images of round-1" in clear_demo(context)
    assert len(answers_of(context.database, "Ada")) == 1
    assert answers_of(context.database, ANNOTATOR) == []
    assert made["file"].exists()
    assert (made["folder"] / "restorer" / "weights").exists()
    assert len(fetch(context.database, select(Run))) == 4


def test_nothing_goes_while_another_run_needs_it(context: Context) -> None:
    made = fill_by_hand(context)
    with context.database.write() as session:
        uses = [{"option": "method", "kind": "restorer", "value": str(made["folder"] / "restorer" / "tuned")}]
        insert_run(session, context.data, "refl evaluate", {}, inputs=uses, outputs=[], state=RunState.finished)
    with pytest.raises(UserError, match=r"Run 5 \(refl evaluate\) needs what these runs made"):
        clear_demo(context)
    assert len(answers_of(context.database, ANNOTATOR)) == 4
    assert len(fetch(context.database, select(Run))) == 5
    assert run_folder(context.data, made["tune"]).is_dir()


def test_there_is_nothing_to_clear_before(context: Context) -> None:
    with pytest.raises(UserError, match="no simulated answers"):
        clear_demo(context)


@pytest.mark.slow
def test_every_step_of_the_filling_can_be_taken(
    database: Database, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole demo, the runs one after the other in this process, with few steps of training."""
    pytest.importorskip("torch", reason="needs torch: `make install`")
    monkeypatch.setattr(filling, "REWARD_STEPS", 2)
    monkeypatch.setattr(filling, "REFL_STEPS", 1)
    make_demo(database, data)
    plan = plan_filling(data, look_at_demo(database))
    for one in plan:
        one.command.run(one.command.settle(one.options, data), Place(data))
    with database.write() as session:
        session.query(Run).update({"person_id": get_person(session, ANNOTATOR).id})
    assert {run.state for run in fetch(database, select(Run))} == {RunState.finished}
    assert look_at_demo(database).has_round
    (method,) = fetch(database, select(Method).where(Method.name == "round-1"))
    new = select(Pair).join(Candidate, Candidate.id.in_([Pair.a_id, Pair.b_id]))
    assert len(fetch(database, new.where(Candidate.method_id == method.id))) == 12 * 5
    clear_demo(Context(database=database, data=data))
    assert fetch(database, select(Run)) == []
    assert fetch(database, select(Method.name).order_by(Method.id)) == list(demo.METHODS)
    assert not (data / "rounds" / "1").exists()
