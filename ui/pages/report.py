"""Build the Report page: progress of judging, and the latest report's ranking, agreement and pictures.

The counts come from the database at once. The report is a run of `python -m annotate rank`, shown from its folder, so
that what stands here is what the CSV files say.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.report.command import RANK
from db.models import Judgment, Person, Run, RunState, Split
from runs.file_cache import read_json
from runs.store import read_progress, run_folder
from runs.tables import read_table
from ui.context import Context
from ui.html import DAMAGED, render
from ui.run_panel import RunPanel, is_live, start_run

DAYS_SHOWN = 14
PICTURES = (
    ("ranking", "Methods by score, with 95 % intervals"),
    ("win_matrix", "Share of judgments that each method won over each other one"),
    ("people", "Consistency and agreement of each person, with 95 % intervals"),
    ("over_time", "Judgments made so far, by person"),
)
TABLES = (
    "ranking",
    "win_matrix",
    "win_counts",
    "people",
    "screening",
    "plan",
    "pairs",
    "agreement",
    "side_bias",
    "order_effects",
    "audit",
    "asked",
    "over_time",
    "questions",
    "rewards",
)


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown("## Report")
    counts = gr.HTML()
    gr.Markdown("### Ranking and agreement")
    with gr.Row():
        split = gr.Dropdown(["all", *(split.value for split in Split)], value="all", label="Pairs of split")
        simulated = gr.Checkbox(label="Count simulated annotators too (the report says so)")
        exclude = gr.Checkbox(label="Leave out the people that the screening flags")
        compute = gr.Button("Compute report", variant="primary")
    panel = RunPanel(context, {RANK.name: status_html})
    panel.place(RANK.name)
    report = gr.HTML()
    panel.start(compute, partial(start_report, context), [split, simulated, exclude])
    panel.show(
        [counts, report], lambda session, _runs, _busy: [counts_html(session), report_html(session, context.data)]
    )


def start_report(context: Context, split: str, simulated: bool, exclude: bool = False) -> int:
    """Start `annotate rank` as a run and return its id.

    Raises:
        UserError: one is going on.
    """
    given = {
        "split": None if split == "all" else split,
        "include_simulated": simulated,
        "exclude_flagged": exclude,
    }
    return start_run(context, RANK, RANK.make(given))


def latest_report(session: Session, data: Path) -> tuple[Run, dict[str, Any]] | None:
    """The last finished run whose folder holds a whole report, with its summary."""
    finished = (
        select(Run).where(Run.kind == RANK.name, Run.state == RunState.finished).order_by(Run.id.desc()).limit(50)
    )
    for run in session.scalars(finished.order_by(Run.id.desc()).limit(50)):
        if summary := read_json(run_folder(data, run.id) / "summary.json"):
            return run, summary
    return None


def counts_html(session: Session) -> str:
    """Judgments by person and by day, counted by the database."""
    by_person = session.execute(
        select(Person.name, Person.simulated, func.count(), func.max(Judgment.created_at))
        .join(Judgment, Judgment.person_id == Person.id)
        .where(Judgment.superseded_at.is_(None))
        .group_by(Person.id, Person.name, Person.simulated)
        .order_by(func.count().desc(), Person.name)
    ).all()
    if not by_person:
        return '<p class="fr-note">No judgments yet. Import photos, make pairs and judge some.</p>'
    made_at: Any = Judgment.created_at
    if session.get_bind().dialect.name == "postgresql":
        made_at = func.timezone("UTC", made_at)  # else the day would be that of the server's time zone
    day = func.date(made_at)
    by_day = session.execute(
        select(day, func.count())
        .where(Judgment.superseded_at.is_(None))
        .group_by(day)
        .order_by(day.desc())
        .limit(DAYS_SHOWN)
    ).all()
    return render("report/counts.html", people=by_person, days=by_day)


def status_html(data: Path, run: Run | None) -> str:
    """What the latest run is doing, or why it ended without a report."""
    if run is None or run.state is RunState.finished:
        return ""
    return render("report/status.html", run=run, live=is_live(run), progress=read_progress(data, run.id))


def report_html(session: Session, data: Path) -> str:
    """The latest report: tables, pictures, files to download."""
    latest = latest_report(session, data)
    if latest is None:
        return '<p class="fr-note">No report yet. "Compute report" ranks the methods from the judgments there are.</p>'
    run, summary = latest
    try:
        return _report_html(session, data, run, summary)
    except DAMAGED:
        text = f'The report of run {run.id} is damaged or of another version: "Compute report" makes a new one.'
        return render("note.html", text=text)


def _report_html(session: Session, data: Path, run: Run, summary: dict[str, Any]) -> str:
    folder = run_folder(data, run.id)
    since = session.scalar(
        select(func.count())
        .select_from(Judgment)
        .where(Judgment.id > summary["last_judgment_id"], Judgment.superseded_at.is_(None))
    )
    models, rewards = _compare_rewards(summary.get("rewards", []), [row["method"] for row in summary["ranking"]])
    return render(
        "report/report.html",
        run=run,
        summary=summary,
        since=since,
        folder=folder,
        models=models,
        rewards=rewards,
        people=list(read_table(folder / "people.csv")),
        pictures=dict(PICTURES),
        tables=[name for name in TABLES if (folder / f"{name}.csv").exists()],
    )


def _compare_rewards(
    rewards: list[dict[str, Any]], ranked: list[str]
) -> tuple[list[str], list[tuple[str, list[dict[str, Any] | None]]]]:
    """(the reward models; each method, in the order of people's ranking, with its mean reward by each of them)."""
    models = list(dict.fromkeys((row["reward"], row["version"]) for row in rewards))
    names = [*ranked, *sorted({row["method"] for row in rewards} - set(ranked))]
    cells = {(row["reward"], row["version"], row["method"]): row for row in rewards}
    rows = [(name, [cells.get((*model, name)) for model in models]) for name in names]
    return [f"{reward} ({version.removeprefix('reward ')})" for reward, version in models], [
        (name, row) for name, row in rows if any(row)
    ]
