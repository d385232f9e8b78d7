"""Build the Auto-annotate page: train the SVM, read its report, choose the target accuracy, label, check the labels.

Training and labelling are runs of `python -m annotate fit` and `label`; the page starts them and reads their folders,
so that its own process never loads scikit-learn.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from sqlalchemy import select
from sqlalchemy.orm import Session

import ui.autolabel.review
from annotate.judging.browse import count_machine_labels
from annotate.labeler.command import FIT, LABEL
from annotate.labeler.settings import FitSettings, choose_metrics
from db.errors import UserError
from db.models import Method, Run, RunState, Split
from metrics.lists import list_names
from ui.autolabel.report import NO_FIT, label_numbers_html, label_sentence, read_summary, report_html
from ui.context import Context
from ui.html import ended_html, live_html, read_result
from ui.run_panel import QUIET, RunPanel, Runs, is_live, start_run

MAX_FITS = 20
ROWS_OF_FIELDS = (
    ("metrics", "kernel", "target_accuracy", "confidence"),
    ("folds", "seed", "include_simulated", "quick"),
)
INTRO = """A small model, an SVM, learns from people's judgments which of two images they would choose, from the
images' metric values alone. It then labels the pairs that nobody judged, where it is sure enough, and abstains on the
others. A person's judgment always wins over its label."""
LABEL_INTRO = """The SVM labels the unjudged pairs of which it is sure enough that its labels keep the target accuracy,
with the confidence that its training was asked for. **Preview** counts what would be labelled and changes nothing."""
SECTIONS = {"report": "Report", "label": "Label", "labelled-pairs": "Labelled pairs", "disagreements": "Disagreements"}


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown(f"## Auto-annotate\n{INTRO}")
    # With the page's name: Gradio's pages have a base address, to which a lone '#report' would lead.
    links = " · ".join(f'<a href="auto-annotate#{name}">{words}</a>' for name, words in SECTIONS.items())
    gr.HTML(f"<p>Further down: {links}</p>")
    trained = _build_train(context)
    gr.Markdown("### Report", elem_id="report")
    fit = gr.Dropdown([], label="SVM", info="Report, labelling and disagreements are of this one", visible=False)
    report = gr.HTML(NO_FIT)

    def on_trained(fits: list[tuple[str, int]]) -> Any:
        return gr.Dropdown(choices=fits, value=fits[0][1] if fits else None, visible=bool(fits))

    trained.change(on_trained, [trained], [fit], **QUIET)
    fit.change(lambda run_id: report_html(context.data, run_id), [fit], [report], **QUIET)
    gr.Markdown(f"### Label\n{LABEL_INTRO}", elem_id="label")
    labelled = _build_label(context, fit)
    ui.autolabel.review.build_browse(context, labelled)
    ui.autolabel.review.build_disagreements(context, fit)


def _build_train(context: Context) -> gr.State:
    """The settings, the button, and how training goes; gives the state that holds the finished fits (`list_fits`)."""
    gr.Markdown("### Train")
    fields: dict[str, Any] = {}
    with context.database.read() as session:
        usual = {"metrics": choose_metrics(session)}
    for names in ROWS_OF_FIELDS:
        with gr.Row(equal_height=True):
            for name in names:
                fields[name] = _make_field(name, usual.get(name, FitSettings.model_fields[name].default))
    train = gr.Button("Train", variant="primary")
    panel = RunPanel(context, {FIT.name: fit_status_html}, stop="Stop training")
    panel.place(FIT.name, stop=True)
    trained = gr.State()

    def on_train(*values: Any) -> None:
        start_fit(context, dict(zip(fields, values, strict=True)))

    panel.start(train, on_train, list(fields.values()))
    panel.show([trained], lambda session, _runs, _busy: [list_fits(session, context.data)])
    return trained


def _build_label(context: Context, fit: gr.Dropdown) -> gr.State:
    """Target, filters, preview and labelling; gives the state that changes when labels have changed."""
    with gr.Row(equal_height=True):
        target = gr.Slider(0.51, 0.99, value=0.9, step=0.01, label="Target accuracy", info="Of the machine labels")
        splits = gr.CheckboxGroup([split.value for split in Split], label="Splits", info="None ticked: all")
        methods = gr.Dropdown([], multiselect=True, label="Methods", info="Pairs of two of these; none chosen: all")
    with gr.Row():
        preview = gr.Button("Preview")
        label = gr.Button("Label the pairs", variant="primary")
    panel = RunPanel(context, {LABEL.name: label_status_html}, stop="Stop labelling")
    panel.place(LABEL.name, stop=True)
    labelled = gr.State()

    def fill(session: Session, runs: Runs, busy: bool) -> list[Any]:
        names = list(session.scalars(select(Method.name).order_by(Method.name)))
        run = runs[LABEL.name]
        return [gr.Dropdown(choices=names), (run.id if run and not busy else 0, count_machine_labels(session))]

    def on_fit(run_id: int | None) -> Any:
        summary = read_summary(context.data, run_id)
        return summary["target"]["target_accuracy"] if summary else gr.skip()

    fit.change(on_fit, [fit], [target], **QUIET)
    asked = [fit, target, splits, methods]
    panel.start(preview, partial(start_label, context, dry_run=True), asked)
    panel.start(label, partial(start_label, context, dry_run=False), asked)
    panel.show([methods, labelled], fill)
    return labelled


def _make_field(name: str, value: Any) -> Any:
    field = FitSettings.model_fields[name]
    label, info = name.replace("_", " ").capitalize(), str(field.description)
    if name == "metrics":
        return gr.Dropdown(list_names(), value=value, allow_custom_value=True, label=label, info=info)
    if get_origin(field.annotation) is Literal:
        return gr.Dropdown(list(get_args(field.annotation)), value=value, label=label, info=info)
    if field.annotation is bool:
        return gr.Checkbox(label=label, info=info)
    if field.annotation is float:
        return gr.Slider(0.51, 0.99, value=value, step=0.01, label=label, info=info)
    return gr.Number(value, precision=0, label=label, info=info)


def list_fits(session: Session, data: Path) -> list[tuple[str, int]]:
    """(words, run id) of the finished fits whose report is there, the latest first."""
    finished = (
        select(Run).where(Run.kind == FIT.name, Run.state == RunState.finished).order_by(Run.id.desc()).limit(MAX_FITS)
    )
    fits = []
    for run in session.scalars(finished):
        summary = read_summary(data, run.id)
        if summary is not None:
            kind = "quick fit" if run.config.get("quick") else "fit"
            when = f"{run.ended_at:%Y-%m-%d %H:%M} UTC" if run.ended_at else ""
            fits.append((f"{summary['labeler']}, {kind} of {when} on {summary['n_train']:,} labels", run.id))
    return fits


def start_fit(context: Context, values: dict[str, Any]) -> int:
    """Start `annotate fit` with these settings as a run and return its id.

    Raises:
        UserError: a setting is out of range, or a fit is going on.
    """
    return start_run(context, FIT, FIT.make(values))


def start_label(
    context: Context, fit: int | None, target: float, splits: list[str], methods: list[str], *, dry_run: bool
) -> int:
    """Start `annotate label` with the labeler of a fit as a run and return its id.

    Raises:
        UserError: no fit is chosen, or labelling is going on.
    """
    if fit is None:
        raise UserError("Train an SVM first.")
    given = {"labeler": str(fit), "target_accuracy": target, "splits": splits or [], "methods": methods or []}
    return start_run(context, LABEL, LABEL.make({**given, "dry_run": dry_run}))


def fit_status_html(data: Path, run: Run | None) -> str:
    """How the latest training goes or went."""
    if run is None:
        return ""
    if is_live(run):
        return live_html(data, run, "Training")
    return ended_html(run, f"trained {read_result(data, run.id).get('labeler', '')}")


def label_status_html(data: Path, run: Run | None) -> str:
    """How the latest preview or labelling goes or went: what would be, or is, labelled."""
    if run is None:
        return ""
    dry_run = bool(run.config.get("dry_run"))
    if is_live(run):
        return live_html(data, run, "Counting" if dry_run else "Labelling")
    if run.state is not RunState.finished:
        stopped = "nothing was changed" if dry_run else "the labels made before are stored; label again to go on"
        return ended_html(run, "", stopped)
    result = read_result(data, run.id)
    return ended_html(run, label_sentence(result)) + label_numbers_html(data, result)
