"""Build the Export page: choose a format and filters, write the dataset as a run, read its card, download it."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.exchange.command import EXPORT
from annotate.judging.people import count_simulated
from dataset.options import ExportOptions
from db.models import Label, Method, Origin, Pair, Person, Run, RunState, Source, Split, Task
from db.records import describe_discarded
from runs.store import read_progress, run_folder
from ui.context import Context
from ui.html import read_result, render
from ui.run_panel import RunPanel, Runs, is_live, start_run

MAX_ZIP_BYTES = 500 * 2**20
ROWS_OF_FIELDS = (
    ("format", "ties", "resolve", "origin"),
    ("name", "licence", "prompt"),
    ("min_agreement", "splits", "methods"),
    ("people", "exclude_people", "include_simulated", "skip_bad"),
)
FILTERS = "Choose the filters; empty ones take everything. The split stays the one that was drawn at import."


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown("## Export")
    counts = gr.HTML()
    fields: dict[str, Any] = {}
    gr.Markdown(FILTERS)
    for names in ROWS_OF_FIELDS:
        with gr.Row():
            for name in names:
                fields[name] = _make_field(name)
    export = gr.Button("Export", variant="primary")
    panel = RunPanel(context, {EXPORT.name: status_html})
    panel.place(EXPORT.name)
    card = gr.Markdown()
    download = gr.DownloadButton("Download as a zip", visible=False)

    def fill(session: Session, runs: Runs, _busy: bool) -> list[Any]:
        run = runs[EXPORT.name]
        out = _finished_folder(context.data, run)
        methods = list(session.scalars(select(Method.name).order_by(Method.name)))
        people = list(session.scalars(select(Person.name).order_by(Person.name)))
        return [
            counts_html(session),
            _card_text(out),
            gr.DownloadButton(visible=out is not None, value=_zip_of(context.data, run, out)),
            gr.Dropdown(choices=methods),
            gr.Dropdown(choices=people),
            gr.Dropdown(choices=people),
        ]

    def on_export(*values: Any) -> None:
        start_export(context, dict(zip(fields, values, strict=True)))

    panel.start(export, on_export, list(fields.values()))
    panel.show([counts, card, download, *(fields[name] for name in ("methods", "people", "exclude_people"))], fill)


def _make_field(name: str) -> Any:
    field = ExportOptions.model_fields[name]
    label, info = name.replace("_", " ").capitalize(), str(field.description)
    if get_origin(field.annotation) is Literal:
        return gr.Dropdown(list(get_args(field.annotation)), value=field.default, label=label, info=info)
    if name == "splits":
        return gr.CheckboxGroup([split.value for split in Split], label=label, info=info)
    if get_origin(field.annotation) is list:
        return gr.Dropdown([], multiselect=True, label=label, info=info)
    if field.annotation is bool:
        return gr.Checkbox(label=label, info=info)
    if field.annotation is float:
        return gr.Slider(0, 1, value=field.default, step=0.05, label=label, info=info)
    return gr.Textbox(value=field.default, label=label, info=info)


def start_export(context: Context, values: dict[str, Any]) -> int:
    """Start `annotate export` with these options as a run and return its id.

    Raises:
        UserError: an option is out of range, or an export is going on.
    """
    return start_run(
        context, EXPORT, EXPORT.make({name: [] if value is None else value for name, value in values.items()})
    )


def counts_html(session: Session) -> str:
    """What there is to export: judged pairs by split, machine labels."""
    judged = session.execute(
        select(Source.split, func.count())
        .join(Pair, Pair.source_id == Source.id)
        .where(Pair.judgment_count > 0, Pair.gold_answer.is_(None))
        .group_by(Source.split)
    ).all()
    answered = (Task.judgment_count > 0, Task.gold_ranking.is_(None))
    tasks = session.scalar(select(func.count()).select_from(Task).where(*answered)) or 0
    live = select(func.count()).select_from(Label).where(Label.superseded_at.is_(None))
    machine = session.scalar(live.where(Label.origin == Origin.svm)) or 0
    imported = session.scalar(live.where(Label.made_by.startswith("imported:"))) or 0
    simulated = count_simulated(session)
    return render(
        "export/counts.html", judged=judged, tasks=tasks, machine=machine, imported=imported, simulated=simulated
    )


def status_html(data: Path, run: Run | None) -> str:
    """How the latest export goes or went."""
    if run is None:
        return ""
    finished = run.state is RunState.finished
    result = read_result(data, run.id) if finished else {}
    discarded = describe_discarded(**result["discarded"]) if "discarded" in result else ""
    progress = read_progress(data, run.id) or {}
    return render(
        "export/status.html", run=run, live=is_live(run), progress=progress, result=result, discarded=discarded
    )


def _finished_folder(data: Path, run: Run | None) -> Path | None:
    """The dataset that a finished run left in its own folder."""
    if run is None or run.state is not RunState.finished:
        return None
    out = run_folder(data, run.id) / "dataset"
    return out if out.is_dir() else None


def _card_text(out: Path | None) -> str:
    """The dataset's card without its YAML front matter."""
    return (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2] if out else ""


def _zip_of(data: Path, run: Run | None, out: Path | None) -> str | None:
    """The dataset as a zip beside it, made once; None where there is none or it would be too large to download."""
    if run is None or out is None:
        return None
    archive = run_folder(data, run.id) / f"dataset-{run.id}.zip"
    if not archive.exists():
        if sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) > MAX_ZIP_BYTES:
            return None
        partial = archive.with_name(f".{archive.stem}-{secrets.token_hex(8)}.zip")  # of this request alone
        try:
            shutil.make_archive(str(partial.with_suffix("")), "zip", out)
            partial.replace(archive)
        finally:
            partial.unlink(missing_ok=True)
    return str(archive)
