"""Fill the demo project, so that every page shows something, and throw all of that away again.

A simulated annotator judges, and a small round follows: it learns from those answers up to a tuned restorer and its
pairs. All its runs are asked for by that annotator, by which they are known again. What people did meanwhile stays.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from annotate.judging.discard import discard_answers
from annotate.judging.remove_method import count_peoples_answers, remove_method
from annotate.judging.simulate import ANNOTATOR, get_annotator
from annotate.judging.simulate_command import SIMULATE
from annotate.report.command import RANK
from db.errors import UserError
from db.models import Judgment, Label, Method, Person, Run, RunState, Source, utc_now
from db.session import Database
from runs.delete import check_apart, delete_run
from runs.devices import list_devices
from runs.rounds import PlannedRun, RoundSettings, next_round_no, plan_round, start_round
from runs.stop import stop
from runs.store import LIVE_STATES, reap_lost
from ui.context import Context

DEMO_PEOPLE = ("Eileen Collins", "Grace Hopper")
"""Who is in the demo's photos (`ui.demo`)."""
ANSWERS = 64
"""Of the demo's 96 pairs; the rest is left to people and the labeler."""
REWARD_STEPS, REFL_STEPS = 50, 20
TARGET_ACCURACY = 0.75
"""Of the demo's machine labels: from so few answers the labeler would abstain on nearly all at 0.9."""
CONFIDENCE = 0.51
"""That they keep it: two people's photos promise nothing of a third's, and the demo is to show machine labels."""
STOP_SECONDS = 5.0
FILLING = Lock()
"""Held while the demo is filled or cleared: of two admins who press at once, the second sees what the first did."""
WORTH = "Two people's photos and a program's answers: this shows the pages and says nothing about quality."


@dataclass(frozen=True)
class Demo:
    """How the demo project stands."""

    is_demo: bool
    """Whether the project's photos are those of the demo, and no others."""
    answers: int
    """Live answers of the simulated annotator."""
    runs: int
    """Of those that were asked for to fill it."""
    live: int
    """Of these: not ended yet."""
    failed: int
    has_round: bool
    has_torch: bool

    @property
    def full(self) -> bool:
        """Whether nothing is left to add."""
        return self.runs > 0 and (self.has_round or not self.has_torch)

    @property
    def can_fill(self) -> bool:
        """Whether `fill_demo` would add something."""
        return self.is_demo and not self.full

    @property
    def can_clear(self) -> bool:
        """Whether `clear_demo` would remove something."""
        return bool(self.answers or self.runs)

    @property
    def sentence(self) -> str:
        """How it stands, for a page or a terminal."""
        if not self.can_clear:
            return "The demo has no simulated answers." if self.is_demo else ""
        state = f"{self.live:,} of {self.runs:,} runs to go" if self.live else f"{self.runs:,} runs have ended"
        failed = f", {self.failed:,} of them failed or stopped: see Runs" if self.failed else ""
        more = "" if self.has_torch else " Measuring and training need torch: run `make install`, then fill it again."
        return f"Simulated: {self.answers:,} answers; {state}{failed}. {WORTH}{more}"


def look_at_demo(database: Database) -> Demo:
    """How the demo stands; quick enough for each view of a page."""
    with database.read() as session:
        groups = set(session.scalars(select(Source.group).distinct().limit(len(DEMO_PEOPLE) + 1)))
        person_id = _find_annotator(session)
        runs = session.execute(select(Run.kind, Run.state).where(Run.person_id == person_id)).all() if person_id else []
        live = Judgment.superseded_at.is_(None)
        answers = select(func.count()).select_from(Judgment).where(Judgment.person_id == person_id, live)
        return Demo(
            is_demo=bool(groups) and groups <= set(DEMO_PEOPLE),
            answers=(session.scalar(answers) or 0) if person_id else 0,
            runs=len(runs),
            live=sum(state in LIVE_STATES for _, state in runs),
            failed=sum(state in (RunState.failed, RunState.lost, RunState.stopped) for _, state in runs),
            has_round=any(kind == "reward train" for kind, _ in runs),
            has_torch=importlib.util.find_spec("torch") is not None,
        )


def _find_annotator(session: Session) -> int | None:
    return session.scalar(select(Person.id).where(Person.name == ANNOTATOR, Person.simulated.is_(True)))


def plan_filling(data: Path, demo: Demo) -> list[PlannedRun]:
    """The runs that fill the demo: answers, their ranking, and the round that learns from them where torch is here.

    What is there already is not planned again.
    """
    plan: list[PlannedRun] = []
    if not demo.runs:
        plan.append(PlannedRun(SIMULATE, SIMULATE.make({"count": ANSWERS}), "let a simulated annotator judge"))
        rank = RANK.make({"include_simulated": True})
        plan.append(PlannedRun(RANK, rank, "rank the methods by those answers", after=[0]))
    if demo.has_torch:
        settings = RoundSettings(
            max_reward_steps=REWARD_STEPS,
            max_refl_steps=REFL_STEPS,
            measure_held_out=False,  # two people are too few to hold one out
            include_simulated=True,
            target_accuracy=TARGET_ACCURACY,
            confidence=CONFIDENCE,
            device=list_devices()[0],
        )
        before = len(plan)
        for one in plan_round(data, next_round_no(data), settings):
            after = [place + before for place in one.after] or ([0] if before else [])
            plan.append(replace(one, after=after))
    return plan


def fill_demo(context: Context) -> list[int]:
    """Queue what fills the demo, and return the ids of the runs.

    Raises:
        UserError: this is not the demo project, or it is filled already.
    """
    with FILLING:
        demo = look_at_demo(context.database)
        if not demo.is_demo:
            raise UserError("Only the demo project can be filled with simulated answers; start one with --demo.")
        if demo.full:
            raise UserError("The demo is filled already; remove the simulated answers and their runs first.")
        plan = plan_filling(context.data, demo)
        with context.database.write() as session:
            person_id = get_annotator(session).id
        return start_round(context.database, context.data, plan, url=context.url, person_id=person_id)


def clear_demo(context: Context) -> str:
    """Take the simulated answers out, and remove the runs that filled the demo with all that came of them.

    Answers of people stay. Where they answered pairs of a method that came of it, the method stays, and so do the runs.

    Returns:
        What was done, in a sentence or two.
    Raises:
        UserError: another run, or a method, was made from what would be removed; nothing has been changed then.
    """
    with FILLING:
        return _clear_demo(context)


def _clear_demo(context: Context) -> str:
    database, data = context.database, context.data
    reap_lost(database, data)
    with database.read() as session:
        person_id = _find_annotator(session)
        if person_id is None:
            raise UserError("There are no simulated answers to remove.")
        found = list(session.scalars(select(Run.id).where(Run.person_id == person_id).order_by(Run.id.desc())))
        check_apart(session, data, found)
    for run_id in found:  # the last first, so that none of them starts meanwhile
        with database.read() as session:
            live = session.get_one(Run, run_id).state in LIVE_STATES
        with suppress(UserError):  # it has ended by itself
            if live:
                stop(database, run_id, STOP_SECONDS)
    with database.write() as session:
        check_apart(session, data, found)
        goes_on = session.scalar(select(Run.id).where(Run.id.in_(found), Run.state.in_(LIVE_STATES)).limit(1))
        if goes_on is not None:
            raise UserError(
                f"Run {goes_on} does not stop, so nothing is removed yet; stop it on the Runs page, then remove."
            )
        change = discard_answers(session, ANNOTATOR)
        for run_id in found:
            machine = Label.made_by.like(f"svm-{run_id}-%")
            session.execute(update(Label).where(machine, Label.superseded_at.is_(None)).values(superseded_at=utc_now()))
        methods = session.scalars(select(Method).where(Method.run_id.in_(found))).all()
        kept = [method.name for method in methods if count_peoples_answers(session, method.id)]
        files = [] if kept else [file for method in methods for file in remove_method(session, data, method)]
    for file in files:
        file.unlink(missing_ok=True)
    said = f"{change.judgments:,} simulated answers are taken out."
    if kept:
        return f"{said} People judged images of {', '.join(kept)}: they stay, and so do the runs that made them."
    freed = sum(_delete(context, run_id) for run_id in found)
    return f"{said} {len(found):,} runs and what they made are gone, {freed / 2**20:,.1f} MiB; people's answers stay."


def _delete(context: Context, run_id: int) -> int:
    """Remove a run with what it made, and the folder of its round where nothing else is in it; the bytes freed."""
    with context.database.read() as session:
        outs = [Path(made["value"]) for made in session.get_one(Run, run_id).outputs or []]
    try:
        freed = delete_run(context.database, context.data, run_id, also_out=True)
    except UserError:  # what it made is no folder of its own: the run alone goes
        freed = delete_run(context.database, context.data, run_id)
    for out in outs:
        if out.parent.parent == context.data / "rounds":
            with suppress(OSError):  # not empty yet
                out.parent.rmdir()
    return freed
