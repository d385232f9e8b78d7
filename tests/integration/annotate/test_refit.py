"""The labeler is fitted anew in the background: when it is due, once, and not again on what failed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from annotate.judging.pairs import ACTIVE_ORDERS, lease_pairs
from annotate.judging.people import add_person
from annotate.labeler.svm import MIN_LABELS
from db.errors import UserError
from db.models import Candidate, Choice, Pair, Picked, Run, RunState, Shortlist
from db.project import load_settings, save_settings
from db.records import add_metric_value
from metrics.lists import columns, load_metric_list
from runs.store import end_run
from tests.making import add_pairs
from tests.making import judge as judge_pair
from tests.watching import wait_for
from ui.autolabel import refit

PHOTOS = 50


@pytest.fixture
def project(context):
    """Pairs of 50 photos by three methods in an active order, and one person."""
    with context.database.write() as session:
        settings = {"order": "uncertain", "refit_after": 40, "repeat_share": 0.0, "gold_share": 0.0}
        add_pairs(session, PHOTOS, ["m1", "m2", "m3"], **settings)
        add_person(session, "Ada")
        add_person(session, "robot", simulated=True)


@pytest.fixture
def judge(context, project) -> Callable[..., None]:
    """`judge(10)`: that many answers to the next pairs; the candidate of the larger id is better."""

    def answer_pairs(count: int, person_id: int = 1, choice: Choice | None = None) -> None:
        with context.database.write() as session:
            settings, rng = load_settings(session), random.Random(count)
            for lease in lease_pairs(session, person_id, settings, rng, count=count, holding=[]):
                pair = session.get_one(Pair, lease.pair_id)
                better = Choice.a if pair.a_id > pair.b_id else Choice.b
                shown = {"shown_left": lease.shown_left, "picked": lease.picked}
                judge_pair(session, person_id, pair.id, choice or better, **shown)

    return answer_pairs


@pytest.fixture
def launched(context, monkeypatch):
    """Fits that would be started, as their options; each is a queued run until a test ends it."""
    started = []

    def launch(database, data, kind, arguments, config, **_how):
        with database.write() as session:
            session.add(run := Run(kind=kind, config=config, code_version="test"))
            session.flush()
        started.append((run.id, arguments))
        return run.id

    monkeypatch.setattr("runs.launch.launch", launch)
    return started


def test_the_smallest_number_of_answers_is_the_labelers():
    assert refit.MIN_ANSWERS == MIN_LABELS


def test_one_fit_is_started_when_enough_came_and_none_while_it_runs(context, judge, launched):
    judge(39)
    assert refit.refit_if_due(context) is None
    judge(1)
    run_id = refit.refit_if_due(context)
    assert run_id is not None
    judge(40)
    assert refit.refit_if_due(context) is None, "one is running"
    end_run(context.database, run_id, RunState.failed, "nothing is measured")
    assert refit.refit_if_due(context) is not None, "40 came since it was started"
    assert len(launched) == 2


def test_a_fit_that_failed_waits_for_as_many_new_judgments(context, judge, launched):
    judge(40)
    end_run(context.database, refit.refit_if_due(context), RunState.failed, "nothing is measured")
    judge(39)
    assert refit.refit_if_due(context) is None
    judge(1)
    assert refit.refit_if_due(context) is not None


@pytest.mark.parametrize("changes", [{"order": "random"}, {"refit_after": 0}])
def test_no_fit_where_none_is_wanted(context, judge, launched, changes):
    with context.database.write() as session:
        save_settings(session, changes)
    judge(100)
    assert refit.refit_if_due(context) is None
    assert launched == []


def test_ties_skips_and_simulated_answers_do_not_start_a_fit(context, judge, launched):
    judge(25)
    judge(40, person_id=2)  # simulated
    judge(40, choice=Choice.tie)
    assert refit.refit_if_due(context) is None, "25 answers that are no ties are too few"
    judge(5)
    assert refit.refit_if_due(context) is not None


def test_the_options_are_those_of_the_last_fit_that_finished(context, judge, launched):
    with context.database.write() as session:
        chosen = {"metrics": "mine.toml", "kernel": "rbf", "seed": 3, "include_simulated": True, "quick": False}
        session.add(Run(kind="annotate fit", config=chosen, code_version="", state=RunState.finished))
        session.add(Run(kind="annotate fit", config={"metrics": "bad"}, code_version="", state=RunState.failed))
    judge(40)
    refit.refit_if_due(context)
    flags = launched[0][1]
    assert {"--include-simulated", "--quick"} <= set(flags)
    assert {"--metrics=mine.toml", "--kernel=rbf", "--seed=3"} <= set(flags)


def test_a_commercial_project_is_fitted_by_the_permissive_list(context, judge, launched):
    with context.database.write() as session:
        save_settings(session, {"commercial": True})
    judge(40)
    run_id = refit.refit_if_due(context)
    with context.database.read() as session:
        assert session.get_one(Run, run_id).config["metrics"] == "permissive"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fit_that_cannot_start_is_said_once(context, monkeypatch, caplog):
    looks = []

    def look(_context):
        looks.append(1)
        raise UserError("nothing is measured") if len(looks) < 4 else SystemExit  # which ends the thread

    monkeypatch.setattr(refit, "refit_if_due", look)
    monkeypatch.setattr(refit, "LOOK_SECONDS", 0.001)
    refit.start_refits(context).join(timeout=20)
    assert len(looks) == 4
    assert caplog.text.count("could not be fitted anew: nothing is measured") == 1


def test_switching_to_an_active_order_after_a_fit_makes_its_lists_at_once(context, judge, launched):
    judge(40)
    with context.database.write() as session:
        session.add(Run(kind="annotate fit", config={}, code_version="", state=RunState.finished))
    run_id = refit.refit_if_due(context)
    assert run_id is not None
    end_run(context.database, run_id, RunState.failed, "no")
    assert refit.refit_if_due(context) is None


def measure_all(context) -> None:
    """Values of the reference-free columns of the offline list: all are the candidate's method."""
    with context.database.write() as session:
        wanted = [column for column in columns(load_metric_list("offline")) if not column.reference]
        for candidate in session.scalars(select(Candidate)):
            for at, column in enumerate(wanted):
                value = candidate.method_id + 0.01 * ((candidate.image_id * (at + 3)) % 17)
                add_metric_value(session, candidate.image, column.metric, column.version, value=value, raw_value=value)


def test_a_real_fit_fails_once_where_nothing_is_measured_then_lists_what_to_show_next(context, judge):
    judge(60)
    run_id = refit.refit_if_due(context)
    assert refit.refit_if_due(context) is None, "it runs"
    failed = wait_for(context, run_id)
    assert failed.state is RunState.failed
    assert "measure" in failed.error
    assert refit.refit_if_due(context) is None, "nothing came since"
    measure_all(context)
    judge(45)
    finished = wait_for(context, refit.refit_if_due(context))
    assert (finished.state, finished.error) == (RunState.finished, None)
    with context.database.write() as session:
        assert set(session.scalars(select(Shortlist.picked))) == {*ACTIVE_ORDERS, Picked.information}
        rng, settings = random.Random(0), load_settings(session)
        leases = lease_pairs(session, 1, settings, rng, count=20, holding=[])
        assert {lease.picked for lease in leases} >= {Picked.uncertain}


def test_a_killed_fit_does_not_block_the_next(context, judge, launched):
    judge(40)
    run_id = refit.refit_if_due(context)
    judge(40)
    with context.database.write() as session:  # the process is gone without a word
        session.execute(update(Run).where(Run.id == run_id).values(pid=2**22 + 1, pid_started=1.0))
    assert refit.refit_if_due(context) not in (None, run_id)
