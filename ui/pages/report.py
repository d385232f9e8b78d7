"""The Report page: how far judging is, and the ranking, agreement and pictures of the latest report.

The counts come from the database at once. The report is a run of `python -m annotate rank`, shown from its folder, so
that what stands here is what the CSV files say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.report.command import RANK
from db.models import Judgment, Person, Run, RunState, Split
from runs.store import read_progress, run_folder
from runs.tables import read_table
from ui.context import Context
from ui.html import download_html, picture_html, table_html
from ui.run_panel import RunPanel, is_live, start_run

DAYS_SHOWN = 14
NO_DATA = '<small class="fr-note">not enough data</small>'
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
    "agreement",
    "side_bias",
    "over_time",
    "questions",
    "rewards",
)
MEASURES = {
    "alpha nominal": "Krippendorff's alpha; 1 is perfect agreement, 0 what chance gives",
    "alpha ordinal": "the same, a tie lying between the two sides",
    "human ceiling": "how often one person's answer is that of most others: the mark to hold a model against",
}


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown("## Report")
    counts = gr.HTML()
    gr.Markdown("### Ranking and agreement")
    with gr.Row():
        split = gr.Dropdown(["all", *(split.value for split in Split)], value="all", label="Pairs of split")
        simulated = gr.Checkbox(label="Count simulated annotators too (the report says so)")
        compute = gr.Button("Compute report", variant="primary")
    panel = RunPanel(context, {RANK.name: status_html})
    panel.place(RANK.name)
    report = gr.HTML()
    panel.start(compute, partial(start_report, context), [split, simulated])
    panel.show(
        [counts, report], lambda session, _runs, _busy: [counts_html(session), report_html(session, context.data)]
    )


def start_report(context: Context, split: str, simulated: bool) -> int:
    """Start `annotate rank` as a run and return its id.

    Raises:
        UserError: one is going on.
    """
    given = {"split": None if split == "all" else split, "include_simulated": simulated}
    return start_run(context, RANK, RANK.make(given))


def latest_report(session: Session, data: Path) -> tuple[Run, dict[str, Any]] | None:
    """The last finished run whose folder holds a whole report, with its summary."""
    finished = (
        select(Run).where(Run.kind == RANK.name, Run.state == RunState.finished).order_by(Run.id.desc()).limit(50)
    )
    for run in session.scalars(finished.order_by(Run.id.desc()).limit(50)):
        summary = run_folder(data, run.id) / "summary.json"
        if summary.exists():
            return run, json.loads(summary.read_text(encoding="utf-8"))
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
    most = max(count for _, count in by_day)
    people = [
        [_person(name, simulated), f"{count:,}", f"{last:%Y-%m-%d %H:%M}" if last else ""]
        for name, simulated, count, last in by_person
    ]
    days = [[escape(str(when)), f"{count:,}", _bar(count / most)] for when, count in by_day]
    total = sum(count for _, _, count, _ in by_person)
    half = "flex:1 1 min(20rem, 100%);min-width:0"
    return (
        f"<p><strong>{total:,} judgments</strong>, skips, repeats and gold pairs among them.</p>"
        '<div style="display:flex;flex-wrap:wrap;gap:2rem;align-items:flex-start">'
        f'<div style="{half}">{table_html(["person", "judgments", "last (UTC)"], people, numeric={1, 2})}</div>'
        f'<div style="{half}">{table_html(["day (UTC)", "judgments", ""], days, numeric={1})}</div></div>'
    )


def _bar(share: float) -> str:
    style = f"width:{100 * share:.0f}%;min-width:2px;height:0.7em;background:#0072B2;border-radius:2px"
    return f'<div style="min-width:8rem"><div style="{style}"></div></div>'


def status_html(data: Path, run: Run | None) -> str:
    """What the latest run is doing, or why it ended without a report."""
    message, style = "", "fr-note"
    if run is not None and is_live(run):
        progress = read_progress(data, run.id)
        message = "Computing" + (f", step {progress['done']} of {progress['total']}" if progress else "") + " …"
    elif run is not None and run.state is not RunState.finished:
        message, style = f"Run {run.id} {run.state.value}: {run.error or 'no reason was given'}", "fr-error"
    return f'<div role="status" aria-live="polite"><p class="{style}">{escape(message)}</p></div>' if message else ""


def report_html(session: Session, data: Path) -> str:
    """The latest report: tables, pictures, files to download."""
    latest = latest_report(session, data)
    if latest is None:
        return '<p class="fr-note">No report yet. "Compute report" ranks the methods from the judgments there are.</p>'
    run, summary = latest
    folder = run_folder(data, run.id)
    since = session.scalar(
        select(func.count())
        .select_from(Judgment)
        .where(Judgment.id > summary["last_judgment_id"], Judgment.superseded_at.is_(None))
    )
    pictures = {name: picture_html(folder, name, words) for name, words in PICTURES}
    return "".join(
        [
            _heading(run, summary, since or 0),
            _ranking_html(summary["ranking"]),
            pictures["ranking"],
            _rewards_html(summary.get("rewards", []), [row["method"] for row in summary["ranking"]]),
            _bias_html(summary["side_bias"]),
            pictures["win_matrix"],
            _questions_html(summary.get("questions", [])),
            "<h3>Agreement</h3>",
            _agreement_html(summary["agreement"]),
            "<h3>People</h3>",
            _people_html(folder / "people.csv"),
            pictures["people"],
            pictures["over_time"],
            "<h3>Files</h3><p>",
            " · ".join(
                download_html(folder / f"{name}.csv", "text/csv")
                for name in TABLES
                if (folder / f"{name}.csv").exists()
            ),
            "<br>",
            " · ".join(download_html(folder / f"{name}.png", "image/png") for name, _ in PICTURES),
            f'</p><p class="fr-note">All of it lies in {escape(str(folder))}.</p>',
        ]
    )


def _heading(run: Run, summary: dict[str, Any], since: int) -> str:
    when = f"{run.ended_at:%Y-%m-%d %H:%M} UTC" if run.ended_at else ""
    options = summary["options"]
    limits = [f"split {options['split']}"] if options["split"] else []
    limits += [f"only {', '.join(options['people'])}"] if options["people"] else []
    raters = f"{summary['n_people']} {'person' if summary['n_people'] == 1 else 'people'}"
    raters += f" and {summary['n_simulated']} simulated" if summary["n_simulated"] else ""
    notes = "".join(f'<li dir="auto">{escape(note)}</li>' for note in summary["notes"])
    return (
        f"<p><strong>Report of {when}</strong> (run {run.id}"
        f"{', ' + escape('; '.join(limits)) if limits else ''}): {summary['n_votes']:,} answers on "
        f"{summary['n_sources']:,} sources by {raters}. Judgments since then: {since:,}.</p>"
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _ranking_html(ranking: list[dict[str, Any]]) -> str:
    grouped = max(row["component"] for row in ranking) > 1
    rows = [
        [
            (f"group {row['component']}, " if grouped else "") + str(row["rank"]),
            escape(row["method"]),
            f"{row['score']:+.2f}",
            NO_DATA if row["low"] is None else f"{row['low']:+.2f} … {row['high']:+.2f}",
            f"{row['win_rate']:.0%}",
            f"{row['wins']} / {row['ties']} / {row['losses']}",
            f"{row['n_judgments']:,}",
            f"{row['n_sources']:,}",
        ]
        for row in ranking
    ]
    head = ["rank", "method", "score", "95 % interval", "win rate", "won / tie / lost", "judgments", "sources"]
    return table_html(head, rows, numeric={0, 2, 3, 4, 5, 6, 7}) + (
        '<p class="fr-note">A method that scores d more than another wins against it with probability 1 / (1 + e^-d), '
        "ties counting one half: 1.1 more is 3 to 1. Intervals resample the sources.</p>"
    )


def _rewards_html(rewards: list[dict[str, Any]], ranked: list[str]) -> str:
    """Mean rewards, a row a method in the order of people's ranking, a column a reward model; empty without rewards."""
    if not rewards:
        return ""
    models = list(dict.fromkeys((row["reward"], row["version"]) for row in rewards))
    names = [*ranked, *sorted({row["method"] for row in rewards} - set(ranked))]
    cells = {(row["reward"], row["version"], row["method"]): row for row in rewards}
    rows = [
        [escape(name), *(_reward_cell(cells.get((*model, name))) for model in models)]
        for name in names
        if any((*model, name) in cells for model in models)
    ]
    head = ["method", *(f"{reward} ({version.removeprefix('reward ')})" for reward, version in models)]
    return (
        "<h3>Rewards</h3>"
        + table_html(head, rows, numeric=set(range(1, len(head))))
        + '<p class="fr-note">Mean reward of the images, its 95 % interval, methods in the order of the ranking above. '
        "`python -m reward score` stored them; rewards of two versions cannot be compared.</p>"
    )


def _questions_html(questions: list[dict[str, Any]]) -> str:
    """What was asked, a row a version; empty in the reports of before versions were kept."""
    rows = [
        [str(row["version"] or ""), escape(row["question"]), row["since"], f"{row['judgments']:,}"] for row in questions
    ]
    head = ["version", "question", "since (UTC)", "judgments"]
    return "<h3>What was asked</h3>" + table_html(head, rows, numeric={0, 3}) if rows else ""


def _reward_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return NO_DATA
    span = f"{row['low']:+.3f} … {row['high']:+.3f}, n {row['n_images']:,}" if row["low"] is not None else ""
    return f'{row["mean"]:+.3f}<br><small class="fr-note">{span}</small>'


def _bias_html(bias: dict[str, Any]) -> str:
    logit = _span(bias, "logit", "logit_low", "logit_high", lambda value: f"{value:+.2f}")
    share = _span(bias, "left_share", "left_share_low", "left_share_high", lambda value: f"{value:.1%}")
    return (
        f"<p>Side bias: {logit} logits for whatever stands left (0 is none); "
        f"left was chosen in {share} of {bias['n_decisive']:,} answers without ties.</p>"
    )


def _agreement_html(agreement: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            escape(name),
            _span(row, "value", "low", "high", lambda value: f"{value:.2f}"),
            f"{row['n']:,} {escape(row['unit'])}",
            escape(MEASURES.get(name, "")),
        ]
        for name, row in agreement.items()
    ]
    return table_html(["measure", "value, 95 % interval", "from", "meaning"], rows, numeric=set())


def _people_html(path: Path) -> str:
    """The table of people.csv, an empty cell there being 'not enough data'."""
    rows = []
    for person in read_table(path):
        flags = "<br>".join(escape(flag) for flag in person["flags"].split("; ") if flag)
        gold = f"{person['gold_right']} of {person['gold']}" if int(person["gold"]) else "none"
        rows.append(
            [
                _person(person["person"], person.get("simulated") == "True"),
                person["judgments"],
                person["skips"],
                _percent(person, "tie_share"),
                _percent(person, "consistency", "repeats"),
                _percent(person, "agreement", "shared_pairs"),
                _percent(person, "left_share", "decisive"),
                f"{float(person['median_seconds']):.1f}",
                _percent(person, "fast_share"),
                gold,
                f'<div style="min-width:16rem">{flags or "none"}</div>',
            ]
        )
    head = ["person", "judgments", "skips", "ties", "same when repeated", "as most others", "left", "median s"]
    head += ["under 0.4 s", "gold right", "to look at"]
    return table_html(head, rows, numeric={1, 2, 3, 4, 5, 6, 7, 8, 9}) + (
        '<p class="fr-note">What stands under "to look at" is a reason to ask, not a verdict; '
        "no judgment was left out because of it.</p>"
    )


def _percent(person: dict[str, str], name: str, count: str | None = None) -> str:
    if not person[name]:
        return NO_DATA
    text = f"{float(person[name]):.0%}"
    if count is None:
        return text
    low, high = float(person[f"{name}_low"]), float(person[f"{name}_high"])
    return f'{text}<br><small class="fr-note">{100 * low:.0f}–{100 * high:.0f}, n {person[count]}</small>'


def _span(row: dict[str, Any], value: str, low: str, high: str, write: Callable[[float], str]) -> str:
    if row[value] is None:
        return NO_DATA
    interval = f" ({write(row[low])} … {write(row[high])})" if row[low] is not None else ""
    return f"{write(row[value])}{interval}"


def _person(name: str, simulated: bool) -> str:
    return escape(name) + (" (simulated)" if simulated else "")
