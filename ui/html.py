"""Fill the templates of the admin pages, and render what several of them show of a run."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from db.errors import UserError
from db.models import Run, RunState
from runs.file_cache import read_json
from runs.store import read_progress, run_folder

DAMAGED = (UndefinedError, KeyError, TypeError, ValueError, AttributeError)
"""What rendering a result raises that lacks something, or has something else in its place."""


def _percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "show": format,  # as Python's format language says: `score | show("+.2f")`
    "thousands": "{:,}".format,
    "percent": _percent,
    "minute": lambda time: f"{time:%Y-%m-%d %H:%M}" if time else "",
    "base64": lambda file: base64.b64encode(file.read_bytes()).decode("ascii"),
}


def render(template: str, **values: Any) -> Markup:
    """Fill a template, named below ui/templates; values are text and are escaped, unless `render` made them.

    Raises:
        jinja2.UndefinedError: the template asks for a value that it was not given.
    """
    return Markup(TEMPLATES.get_template(template).render(values).strip())


def page_error(error: UserError) -> gr.Error:
    """An error as a page shows it: Gradio takes a message for HTML, and it may name anybody's files and methods."""
    return gr.Error(escape(str(error), quote=False))


def live_html(data: Path, run: Run, doing: str, more: str = "") -> str:
    """A progress bar of a run that goes on; `more` follows the percentage."""
    progress = read_progress(data, run.id) or {}
    doing = "Stopping" if run.state is RunState.stopping else doing
    return render("running.html", doing=doing, more=more, done=progress.get("done"), total=progress.get("total"))


def ended_html(run: Run, finished: str, stopped: str = "it added nothing") -> str:
    """One line on how a run ended."""
    return render("ended.html", run=run, finished=finished, stopped=stopped)


def read_result(data: Path, run_id: int) -> dict[str, Any]:
    """Read a run's result, empty where it left none or it is damaged."""
    return dict(read_json(run_folder(data, run_id) / "result.json"))
