"""The Auto-annotate page: train the SVM, read its report, choose the target accuracy, label, look at the labels.

Training and labelling are runs of `python -m annotate fit` and `label`; the page starts them and reads their folders,
so that its own process never loads scikit-learn.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

import ui.autolabel.review
from annotate.judging.browse import count_machine_labels
from annotate.labeler.settings import FitSettings
from db.errors import UserError
from db.models import Method, Run, RunState, Split
from metrics.lists import list_names
from runs.launch import launch
from runs.stop import stop
from runs.store import LIVE_STATES, latest_run, reap_lost
from ui.autolabel.refit import to_flags
from ui.autolabel.report import NO_FIT, label_numbers_html, label_sentence, read_summary, report_html
from ui.context import Context
from ui.html import ended_html, live_html, page_error, read_result

FIT = "annotate fit"
LABEL = "annotate label"
TICK_SECONDS = 1.0
MAX_FITS = 20
ROWS_OF_FIELDS = (("metrics", "kernel", "target_accuracy"), ("folds", "seed", "include_simulated", "quick"))
INTRO = """A small model, an SVM, learns from people's judgments which of two images they would choose, from the
images' metric values alone. It then labels the pairs that nobody judged, where it is sure enough, and abstains on the
others. A person's judgment always wins over its label."""
LABEL_INTRO = """The SVM labels the unjudged pairs of which it is sure enough to reach the target accuracy. **Preview**
counts what would be labelled and changes nothing."""
SECTIONS = {"report": "Report", "label": "Label", "labelled-pairs": "Labelled pairs", "disagreements": "Disagreements"}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


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
    for names in ROWS_OF_FIELDS:
        with gr.Row(equal_height=True):
            for name in names:
                fields[name] = _make_field(name)
    train = gr.Button("Train", variant="primary")
    status = gr.HTML()
    halt = gr.Button("Stop training", variant="stop", size="sm", visible=False)
    timer = gr.Timer(TICK_SECONDS, active=False)
    trained = gr.State()
    shown = [status, train, halt, timer, trained]

    def show() -> list[Any]:
        reap_lost(context.database, context.data)
        with context.database.read() as session:
            run = latest_run(session, FIT)
            fits = list_fits(session, context.data)
        busy = run is not None and run.state in LIVE_STATES
        return [
            fit_status_html(context.data, run),
            gr.Button(interactive=not busy),
            gr.Button(visible=busy),
            gr.Timer(active=busy),
            fits,
        ]

    def tick() -> list[Any]:
        reap_lost(context.database, context.data)
        with context.database.read() as session:
            run = latest_run(session, FIT)
        if run is not None and run.state in LIVE_STATES:
            return [fit_status_html(context.data, run), *[gr.skip()] * (len(shown) - 1)]
        return show()

    def on_train(*values: Any) -> list[Any]:
        _refuse_in_page(lambda: start_fit(context, dict(zip(fields, values, strict=True))))
        return show()

    def on_stop() -> list[Any]:
        _refuse_in_page(lambda: stop_run(context, FIT))
        return show()

    gr.on(None, show, None, shown, **QUIET)
    timer.tick(tick, None, shown, **QUIET)
    train.click(on_train, list(fields.values()), shown, **QUIET)
    halt.click(on_stop, None, shown, **QUIET)
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
    status = gr.HTML()
    halt = gr.Button("Stop labelling", variant="stop", size="sm", visible=False)
    timer = gr.Timer(TICK_SECONDS, active=False)
    labelled = gr.State()
    shown = [status, methods, preview, label, halt, timer, labelled]

    def show() -> list[Any]:
        reap_lost(context.database, context.data)
        with context.database.read() as session:
            run = latest_run(session, LABEL)
            names = list(session.scalars(select(Method.name).order_by(Method.name)))
            count = count_machine_labels(session)
        busy = run is not None and run.state in LIVE_STATES
        return [
            label_status_html(context.data, run),
            gr.Dropdown(choices=names),
            gr.Button(interactive=not busy),
            gr.Button(interactive=not busy),
            gr.Button(visible=busy),
            gr.Timer(active=busy),
            (run.id if run and not busy else 0, count),
        ]

    def tick() -> list[Any]:
        reap_lost(context.database, context.data)
        with context.database.read() as session:
            run = latest_run(session, LABEL)
        if run is not None and run.state in LIVE_STATES:
            return [label_status_html(context.data, run), *[gr.skip()] * (len(shown) - 1)]
        return show()

    def start(fit: int | None, target: float, splits: list[str], methods: list[str], *, dry_run: bool) -> list[Any]:
        _refuse_in_page(lambda: start_label(context, fit, target, splits, methods, dry_run=dry_run))
        return show()

    def on_preview(fit: int | None, target: float, splits: list[str], methods: list[str]) -> list[Any]:
        return start(fit, target, splits, methods, dry_run=True)

    def on_label(fit: int | None, target: float, splits: list[str], methods: list[str]) -> list[Any]:
        return start(fit, target, splits, methods, dry_run=False)

    def on_stop() -> list[Any]:
        _refuse_in_page(lambda: stop_run(context, LABEL))
        return show()

    def on_fit(run_id: int | None) -> Any:
        summary = read_summary(context.data, run_id)
        return summary["target"]["target_accuracy"] if summary else gr.skip()

    asked = [fit, target, splits, methods]
    gr.on(None, show, None, shown, **QUIET)
    timer.tick(tick, None, shown, **QUIET)
    preview.click(on_preview, asked, shown, **QUIET)
    label.click(on_label, asked, shown, **QUIET)
    halt.click(on_stop, None, shown, **QUIET)
    fit.change(on_fit, [fit], [target], **QUIET)
    return labelled


def _refuse_in_page(action: Any) -> None:
    try:
        action()
    except UserError as error:
        raise page_error(error) from error


def _make_field(name: str) -> Any:
    field = FitSettings.model_fields[name]
    label, info = name.replace("_", " ").capitalize(), str(field.description)
    if name == "metrics":
        return gr.Dropdown(list_names(), value=field.default, allow_custom_value=True, label=label, info=info)
    if get_origin(field.annotation) is Literal:
        return gr.Dropdown(list(get_args(field.annotation)), value=field.default, label=label, info=info)
    if field.annotation is bool:
        return gr.Checkbox(label=label, info=info)
    if field.annotation is float:
        return gr.Slider(0.51, 0.99, value=field.default, step=0.01, label=label, info=info)
    return gr.Number(field.default, precision=0, label=label, info=info)


def list_fits(session: Session, data: Path) -> list[tuple[str, int]]:
    """(words, run id) of the finished fits whose report is there, the latest first."""
    finished = (
        select(Run).where(Run.kind == FIT, Run.state == RunState.finished).order_by(Run.id.desc()).limit(MAX_FITS)
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
    try:
        settings = FitSettings.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}") from error
    _refuse_second_run(context, FIT)
    return launch(context.database, context.data, FIT, to_flags(settings), settings.model_dump(), url=context.url)


def start_label(
    context: Context, fit: int | None, target: float, splits: list[str], methods: list[str], *, dry_run: bool
) -> int:
    """Start `annotate label` with the labeler of a fit as a run and return its id.

    Raises:
        UserError: no fit is chosen, or labelling is going on.
    """
    if fit is None:
        raise UserError("Train an SVM first.")
    _refuse_second_run(context, LABEL)
    arguments = [f"--labeler={fit}", f"--target-accuracy={target}"]
    arguments += [f"--splits={split}" for split in splits or ()]
    arguments += [f"--methods={method}" for method in methods or ()]
    arguments += ["--dry-run"] if dry_run else []
    config = {"labeler": fit, "target_accuracy": target, "splits": splits, "methods": methods, "dry_run": dry_run}
    return launch(context.database, context.data, LABEL, arguments, config, url=context.url)


def _refuse_second_run(context: Context, kind: str) -> None:
    with context.database.read() as session:
        run = latest_run(session, kind)
    if run is not None and run.state in LIVE_STATES:
        raise UserError(f"Run {run.id} ({kind}) is going on; wait for it or stop it.")


def stop_run(context: Context, kind: str) -> None:
    """Stop the run of that kind that is going on."""
    with context.database.read() as session:
        run = latest_run(session, kind)
    if run is not None and run.state in LIVE_STATES:
        stop(context.database, run.id)


def fit_status_html(data: Path, run: Run | None) -> str:
    """How the latest training goes or went."""
    if run is None:
        return ""
    if run.state in LIVE_STATES:
        return live_html(data, run, "Training")
    return ended_html(run, f"trained {escape(str(read_result(data, run.id).get('labeler', '')))}")


def label_status_html(data: Path, run: Run | None) -> str:
    """How the latest preview or labelling goes or went: what would be, or is, labelled."""
    if run is None:
        return ""
    dry_run = bool(run.config.get("dry_run"))
    if run.state in LIVE_STATES:
        return live_html(data, run, "Counting" if dry_run else "Labelling")
    if run.state is not RunState.finished:
        stopped = "nothing was changed" if dry_run else "the labels made before are stored; label again to go on"
        return ended_html(run, "", stopped)
    result = read_result(data, run.id)
    return ended_html(run, label_sentence(result)) + label_numbers_html(data, result)
