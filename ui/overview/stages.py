"""Describe each stage of the loop: its count, its state, what to know of it, and its own next action.

Counts come from the database in a few indexed queries, results from the small files of the latest runs, which are read
again only when they change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.labeler.settings import BOOSTING, LOGISTIC, MIN_ANSWERS, SIDE, SVM
from db.models import (
    Candidate,
    Judgment,
    Label,
    Method,
    MetricValue,
    Origin,
    Pair,
    Person,
    Run,
    RunState,
    Source,
    Split,
    Task,
    utc_now,
)
from db.project import load_settings
from runs.file_cache import read_file, read_json, read_number, read_part
from runs.files import read_last_objects
from runs.rounds import next_round_no
from runs.store import LIVE_STATES, run_folder
from runs.tables import read_table
from ui.pages.report import latest_report
from ui.train.round import count_decided

MOST_METHODS = 4
"""Methods that are named on the page; the others are counted."""


@dataclass(frozen=True)
class Link:
    """An action: what it is called, and the page where it is done, below the server's root path."""

    words: str
    href: str


@dataclass
class Stage:
    """One stage of the loop as the page shows it."""

    name: str
    title: str
    count: str
    """Its one number, such as '1,200'; '' where there is none yet."""
    unit: str
    link: Link
    facts: list[str] = field(default_factory=list)
    state: str = "empty"
    """empty, done, running, stopped, or care: something about it needs a person."""
    simulated: bool = False
    """Whether simulated annotators have a part in it."""


@dataclass
class Latest:
    """The latest run of every command, and the latest that finished."""

    runs: dict[str, Run]
    finished: dict[str, Run]
    live: list[Run]

    def id_of(self, kind: str) -> int:
        """The number of the latest finished run of a command; 0 where there is none."""
        return self.finished[kind].id if kind in self.finished else 0


@dataclass
class Project:
    """What the database and the latest results say, once for the stages and the advice."""

    sources: dict[Split, int]
    with_truth: int
    methods: list[tuple[str, int]]
    pairs: int
    tasks: int
    """Of three images and more."""
    waiting: int
    """Pairs, or tasks where the project shows these, that want an answer and nobody has judged."""
    in_part: int
    unpaired: bool
    """Whether restored images came after the last pairs were made."""
    people: list[tuple[str, bool, int]]
    """(name, simulated, live judgments) of each person who judged."""
    last_hour: int
    images: int
    """Restored images, those with the same pixels once."""
    unmeasured: int
    """Of which no metric value is stored."""
    machine_labels: int
    learnable: int
    """Pairs of the train split that were decided; not exact beyond MIN_ANSWERS."""
    since_fit: int
    """Judgments since the latest fit was started."""
    report: dict[str, Any]
    latest: Latest
    fit: dict[str, Any]
    """The key numbers of the latest fit; {} where there is none."""
    round_no: int

    @property
    def judgments(self) -> int:
        """Live judgments of all."""
        return sum(count for _, _, count in self.people)

    @property
    def only_programs(self) -> bool:
        """Whether all who judged are simulated."""
        return bool(self.people) and all(simulated for _, simulated, _ in self.people)

    @property
    def ceiling(self) -> dict[str, Any]:
        """How often one person's answer is that of most others: `value`, `low`, `high`; {} where nobody knows."""
        found = read_part(self.report, "agreement", "human ceiling") or read_part(self.fit, "people", "ceiling")
        return found if read_number(found, "value") is not None else {}

    @property
    def flagged(self) -> list[str]:
        """Who is flagged in the latest report."""
        found = self.report.get("flagged")
        return [str(name) for name in found] if isinstance(found, list) else []


def load_project(session: Session, data: Path) -> Project:
    """Count everything: about 40 ms of two cores at 100,000 pairs and as many judgments."""
    latest = find_latest(session)
    fit = latest.finished.get("annotate fit")
    found = latest_report(session, data)
    live = Judgment.superseded_at.is_(None)
    by_person = (
        select(Person.name, Person.simulated, func.count())
        .join(Judgment, Judgment.person_id == Person.id)
        .where(live)
        .group_by(Person.id, Person.name, Person.simulated)
        .order_by(func.count().desc(), Person.name)
    )
    by_method = select(Candidate.method_id, func.count().label("n")).group_by(Candidate.method_id).subquery()
    of_method = select(Method.name, by_method.c.n).join(by_method, by_method.c.method_id == Method.id)
    people = [(str(name), bool(simulated), int(n)) for name, simulated, n in session.execute(by_person)]
    only_programs = all(simulated for _, simulated, _ in people)
    shown = Pair if load_settings(session).task_size == 2 else Task
    splits = session.execute(select(Source.split, func.count()).group_by(Source.split))
    return Project(
        sources={split: count for split, count in splits},  # noqa: C416, a result has keys of its own
        with_truth=_count(session, select(func.count()).where(Source.hq_image_id.is_not(None))),
        methods=[(str(name), int(n)) for name, n in session.execute(of_method.order_by(by_method.c.n.desc()))],
        pairs=_count(session, select(func.count()).select_from(Pair)),
        tasks=_count(session, select(func.count()).select_from(Task)),
        waiting=_count(session, select(func.count()).where(shown.queue_level == 0)),
        in_part=_count(session, select(func.count()).where(shown.queue_level > 0)),
        unpaired=_has_unpaired(session),
        people=people,
        last_hour=_count_since(session, utc_now() - timedelta(hours=1)),
        images=_count(session, select(func.count(Candidate.image_id.distinct()))),
        unmeasured=_count(session, select(func.count(Candidate.image_id.distinct())).where(~_has_value())),
        machine_labels=_count(
            session, select(func.count()).where(Label.origin == Origin.svm, Label.superseded_at.is_(None))
        ),
        learnable=count_decided(session, include_simulated=only_programs, most=MIN_ANSWERS),
        since_fit=_count_since(session, fit.started_at or fit.created_at) if fit else 0,
        report=found[1] if found else {},
        latest=latest,
        fit=read_json(run_folder(data, fit.id) / "summary.json") if fit else {},
        round_no=next_round_no(data),
    )


def find_latest(session: Session) -> Latest:
    """The latest runs, in two queries however many there are."""
    newest = select(func.max(Run.id)).group_by(Run.kind)
    done = newest.where(Run.state == RunState.finished)
    runs = {run.kind: run for run in session.scalars(select(Run).where(Run.id.in_(newest)))}
    finished = {run.kind: run for run in session.scalars(select(Run).where(Run.id.in_(done)))}
    live = session.scalars(select(Run).where(Run.state.in_(LIVE_STATES)).order_by(Run.id))
    return Latest(runs, finished, list(live))


def _count(session: Session, query: Any) -> int:
    return int(session.scalar(query) or 0)


def _count_since(session: Session, moment: datetime) -> int:
    """Live judgments after a moment. Rows are only ever appended, so the walk from the newest one back is short."""
    before = select(Judgment.id).where(Judgment.created_at <= moment).order_by(Judgment.id.desc()).limit(1)
    newer = Judgment.id > func.coalesce(before.scalar_subquery(), 0)
    return _count(session, select(func.count()).where(newer, Judgment.superseded_at.is_(None)))


def _has_unpaired(session: Session) -> bool:
    """Whether the restored image that came last is in no pair, though its photo has another."""
    last = session.scalar(select(func.max(Candidate.id)))
    paired = max(session.scalar(select(func.max(side))) or 0 for side in (Pair.a_id, Pair.b_id))
    if last is None or last <= paired:
        return False
    source = select(Candidate.source_id).where(Candidate.id == last).scalar_subquery()
    return _count(session, select(func.count(Candidate.image_id.distinct())).where(Candidate.source_id == source)) > 1


def _has_value() -> Any:
    return select(MetricValue.id).where(MetricValue.image_id == Candidate.image_id).exists()


def describe_stages(project: Project, data: Path) -> list[Stage]:
    """The ten stages, in the order of the loop."""
    stages = [
        _photos(project),
        _restored(project),
        _pairs(project),
        _judgments(project),
        _measured(project),
        _labeler(project, data),
        _dataset(project, data),
        _reward(project, data),
        _restorer(project, data),
        _next_round(project),
    ]
    for stage, kinds in zip(stages, KINDS_OF_STAGES, strict=True):
        _mark_runs(stage, project.latest, kinds)
    return stages


KINDS_OF_STAGES = (
    ("annotate import",),
    ("refl restore",),
    ("annotate pair",),
    (),
    ("annotate measure",),
    ("annotate fit", "annotate label"),
    ("annotate export",),
    ("reward train",),
    ("refl train", "refl pretrain"),
    (),
)
"""The commands that fill each stage."""


def _mark_runs(stage: Stage, latest: Latest, kinds: Sequence[str]) -> None:
    """Say of a stage that its run goes on, or that the latest ended badly."""
    for kind in kinds:
        run = latest.runs.get(kind)
        if run is None:
            continue
        if any(live.kind == kind for live in latest.live):
            stage.state = "running"
        elif run.state in (RunState.failed, RunState.lost):
            stage.state = "care"
            stage.facts.append(f"run {run.id} {'failed' if run.state is RunState.failed else 'was lost'}")
        elif run.state is RunState.stopped:
            stage.state = "stopped"
            stage.facts.append(f"run {run.id} was stopped")


def _photos(project: Project) -> Stage:
    total = sum(project.sources.values())
    facts = [f"{project.sources[split]:,} {split.value}" for split in Split if project.sources.get(split)]
    if total:
        facts.append(f"{project.with_truth:,} with ground truth")
    return _stage("photos", "Photos", total, "photos", Link("Import photos", "/admin/data"), facts)


def _restored(project: Project) -> Stage:
    total = sum(count for _, count in project.methods)
    facts = [f"{name}: {count:,}" for name, count in project.methods[:MOST_METHODS]]
    if len(project.methods) > MOST_METHODS:
        facts.append(f"{len(project.methods) - MOST_METHODS} more methods")
    return _stage("restored", "Restored images", total, "images", Link("Restore photos", "/admin/restore"), facts)


def _pairs(project: Project) -> Stage:
    facts = [_plural(project.tasks, "task", "tasks")] if project.tasks else []
    if project.pairs:
        facts.append(f"{project.waiting:,} wait for an answer")
    if project.in_part:
        facts.append(f"{project.in_part:,} want more answers")
    stage = _stage("pairs", "Pairs", project.pairs, "pairs", Link("Make pairs", "/admin/data"), facts)
    if project.unpaired and project.pairs:
        stage.state = "care"
        stage.facts.append("new images are in no pair")
    return stage


def _judgments(project: Project) -> Stage:
    programs = sum(count for _, simulated, count in project.people if simulated)
    people = [count for _, simulated, count in project.people if not simulated]
    facts = [_plural(len(people), "person", "people")] if people else []
    if programs:
        facts.append(f"{programs:,} SIMULATED")
    if project.judgments:
        facts.append(f"{project.last_hour:,} in the last hour")
    if project.ceiling:
        facts.append(f"agreement {project.ceiling['value']:.0%}")
    if project.flagged:
        facts.append(f"flagged: {', '.join(project.flagged[:MOST_METHODS])}")
    stage = _stage("judgments", "Judgments", project.judgments, "answers", Link("Judge", "/"), facts)
    stage.simulated = programs > 0
    if project.flagged:
        stage.state = "care"
    return stage


def _measured(project: Project) -> Stage:
    facts = [f"{project.unmeasured:,} images are not measured"] if project.unmeasured else []
    return _stage(
        "measured", "Measured", project.images - project.unmeasured, "images", Link("Measure", "/admin/metrics"), facts
    )


def _labeler(project: Project, data: Path) -> Stage:
    link = Link("Fit or label", "/admin/auto-annotate")
    run, measured = project.latest.finished.get("annotate fit"), read_part(project.fit, "accuracy")
    if run is None:
        return _stage("labeler", "Labeler", 0, "", link)
    accuracy = read_number(measured, "accuracy")
    if accuracy is None:
        facts = [f"run {run.id}", "its accuracy is not known"]
        return Stage("labeler", "Labeler", "fitted", "", link, facts, "done")
    methods = read_file(run_folder(data, run.id) / "methods.csv", _read_accuracies) or {}
    metrics = {name: value for name, value in methods.items() if name not in (SVM, LOGISTIC, BOOSTING, SIDE)}
    facts = [_interval(measured)]
    if metrics:
        best = max(metrics, key=lambda name: metrics[name])
        facts.append(f"best metric {best} {metrics[best]:.0%}")
    if project.ceiling:
        facts.append(f"people {project.ceiling['value']:.0%}")
    facts.append(f"{project.machine_labels:,} pairs labelled")
    return Stage(
        "labeler",
        "Labeler",
        f"{accuracy:.0%}",
        "held-out accuracy",
        link,
        facts,
        "done",
        simulated=bool(project.fit.get("simulated")),
    )


def _read_accuracies(path: Path) -> dict[str, float]:
    return {str(row["method"]): float(row["accuracy"]) for row in read_table(path) if row["accuracy"]}


def _dataset(project: Project, data: Path) -> Stage:
    link = Link("Export a dataset", "/admin/export")
    run = project.latest.finished.get("annotate export")
    if run is None:
        return _stage("dataset", "Dataset", 0, "labelled pairs", link)
    result = read_json(run_folder(data, run.id) / "result.json")
    origins = read_part(result, "origins")
    facts = [f"{name}: {count:,}" for name in origins if (count := read_number(origins, name)) is not None]
    stage = _stage(
        "dataset", "Dataset", int(read_number(result, "rows") or 0), "labelled pairs", link, [f"run {run.id}", *facts]
    )
    stage.simulated = bool(result.get("simulated_annotators"))
    return stage


def _reward(project: Project, data: Path) -> Stage:
    run = project.latest.finished.get("reward train")
    link = Link("Train a reward model", "/admin/train#kind=reward%20train")
    if run is None:
        return _stage("reward", "Reward model", 0, "", link)
    best = read_part(read_json(run_folder(data, run.id) / "result.json"), "best")
    accuracy, low, n = (read_number(best, name) for name in ("accuracy", "low", "n"))
    if accuracy is None:
        return Stage(
            "reward", "Reward model", "trained", "", link, [f"run {run.id}", "not measured on held-out pairs"], "done"
        )
    facts = [f"run {run.id}", _interval(best) + (f" on {n:,} pairs" if n is not None else "")]
    if project.ceiling:
        facts.append(f"people {project.ceiling['value']:.0%}")
    stage = Stage("reward", "Reward model", f"{accuracy:.0%}", "accuracy", link, facts, "done")
    stage.simulated = project.only_programs
    if low is not None and low <= 0.5:
        stage.state = "care"
        stage.facts.append("may be no better than a coin")
    return stage


def _restorer(project: Project, data: Path) -> Stage:
    link = Link("Tune a restorer", "/admin/train#kind=refl%20train")
    run = project.latest.finished.get("refl train")
    if run is None:
        return _stage("restorer", "Restorer", 0, "", link)
    folder = run_folder(data, run.id)
    result = read_json(folder / "result.json")
    ends = read_file(folder / "progress.jsonl", _read_rewards)
    stage = Stage("restorer", "Restorer", "tuned", "", link, [f"run {run.id}"], "done", simulated=project.only_programs)
    if ends:
        stage.count, stage.unit = f"{ends[1] - ends[0]:+.3f}", "reward on held-out faces"
        stage.facts.append("monitor: no hacking seen")
    else:
        stage.facts.append("no held-out faces: nothing watched it")
    hacking = read_number(result, "hacking")
    if hacking is not None:
        stage.state = "care"
        stage.facts[-1] = f"monitor: hacking from step {hacking:,}"
    return stage


def _read_rewards(path: Path) -> tuple[float, float] | None:
    """(first, last) reward of the held-out faces by the frozen model, of a ReFL run's progress lines."""
    lines = read_last_objects(path, 10**9)
    values = [value for line in lines if (value := read_number(line, "held_out/frozen")) is not None]
    return (values[0], values[-1]) if len(values) > 1 else None


def _next_round(project: Project) -> Stage:
    link = Link("Plan the next round", "/admin/train#round=next")
    return _stage("round", "Next round", project.round_no - 1, "rounds begun", link)


def _stage(name: str, title: str, count: int, unit: str, link: Link, facts: Sequence[str] = ()) -> Stage:
    return Stage(name, title, f"{count:,}" if count else "", unit, link, list(facts), "done" if count else "empty")


def _interval(values: dict[str, Any]) -> str:
    """'58 to 66 %, 95 % interval'"""
    low, high = read_number(values, "low"), read_number(values, "high")
    if low is None or high is None:
        return "no interval"
    return f"{100 * low:.0f} to {100 * high:.0f} %, 95 % interval"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
