"""Render pieces of HTML that several admin pages show: a run's progress and end, tables, pictures, downloads."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from db.errors import UserError
from db.models import Run, RunState
from runs.store import read_progress, run_folder


def page_error(error: UserError) -> gr.Error:
    """An error as a page shows it: Gradio takes a message for HTML, and it may name anybody's files and methods."""
    return gr.Error(escape(str(error), quote=False))


def live_html(data: Path, run: Run, doing: str, more: str = "") -> str:
    """A progress bar of a run that goes on; `doing` and `more`, which follows the percentage, are HTML already."""
    progress = read_progress(data, run.id)
    if run.state is RunState.stopping:
        doing = "Stopping"
    if progress is None or not progress.get("total"):
        return f'<div role="status"><p>{doing} …</p></div>'
    done, total = progress["done"], progress["total"]
    return (
        f'<div role="status"><p>{doing}: {done / total:.0%}{more}</p></div>'
        f'<div role="progressbar" aria-label="{doing}" aria-valuenow="{done}" aria-valuemax="{total}" '
        'style="height:0.6rem;border-radius:0.3rem;background:var(--border-color-primary)">'
        f'<div style="width:{done / total:.1%};height:100%;border-radius:inherit;background:var(--color-accent)">'
        "</div></div>"
    )


def ended_html(run: Run, finished: str, stopped: str = "it added nothing") -> str:
    """One line on how a run ended; `finished` is HTML already."""
    if run.state is RunState.finished:
        return f'<div role="status"><p>Run {run.id}: {finished}.</p></div>'
    message = escape(run.error or "no reason was given")
    if run.state is RunState.stopped:
        return f'<div role="status"><p class="fr-note">Run {run.id} was stopped; {stopped}.</p></div>'
    return f'<div role="alert"><p class="fr-error">Run {run.id} {run.state.value}: {message}</p></div>'


def read_result(data: Path, run_id: int) -> dict[str, Any]:
    """Read a run's result, empty where it left none."""
    file = run_folder(data, run_id) / "result.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int]) -> str:
    """An HTML table of cells that are HTML already; the columns in `numeric` are aligned right and not broken."""
    classes = [' class="n"' if place in numeric else "" for place in range(len(head))]
    cells = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(classes, head, strict=True))
    classes = [f'{kind} style="white-space:nowrap"' if kind else "" for kind in classes]
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(classes, row, strict=True)) + "</tr>"
        for row in rows
    )
    table = f'<table class="fr"><thead><tr>{cells}</tr></thead>{body}</table>'
    return f'<div style="overflow-x:auto" tabindex="0">{table}</div>'  # with the focus on it, arrow keys scroll it


def picture_html(folder: Path, name: str, words: str) -> str:
    """The SVG as it lies in the folder, inside the page: nothing re-encodes it."""
    content = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode("ascii")
    style = "display:block;max-width:100%;margin:1rem 0;background:#fff;border-radius:6px"
    return f'<img src="data:image/svg+xml;base64,{content}" alt="{escape(words)}" style="{style}">'


def download_html(path: Path, media_type: str) -> str:
    """A link that saves a small file, which travels inside the page."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<a download="{path.name}" href="data:{media_type};base64,{content}">{path.name}</a>'
