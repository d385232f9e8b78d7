"""Build the Metrics page: measure, list what is measured and missing, and the values by method.

Measuring is a run of `python -m annotate measure`; the page starts it and reads its folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from sqlalchemy.orm import Session

from annotate.labeler.settings import choose_metrics
from annotate.measure.command import MEASURE
from annotate.measure.counts import ColumnCount, count_columns, load_by_method
from db.candidates import REWARD_PREFIX, SPREAD_PREFIX
from db.errors import UserError
from db.models import Run
from metrics.lists import Column, MetricError, columns, list_names, load_metric_list, skipped_metrics
from runs.store import read_progress
from ui.context import Context
from ui.html import ended_html, live_html, read_result, render
from ui.run_panel import QUIET, RunPanel, Runs, is_live, refused_in_page, start_run

MAX_REASONS = 3
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
INTRO = """Each metric is measured once for every restored image, and again only when its version changes. Values are
turned so that **higher is better** for all of them. `name@lq` compares with the photo that was restored, `name@hq` with
its ground truth, for the images that have one."""


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown(f"## Metrics\n{INTRO}")
    with context.database.read() as session:
        usual = choose_metrics(session)
    chosen = gr.Dropdown(
        list_names(),
        value=usual,
        allow_custom_value=True,
        label="Metric list",
        info="One that ships with the project, or the path of a TOML file on the server",
    )
    measure = gr.Button("Measure what is missing", variant="primary")
    panel = RunPanel(context, {MEASURE.name: status_html})
    panel.place(MEASURE.name, stop=True)
    gr.Markdown("### What is measured")
    counts = gr.HTML()
    gr.Markdown("### Values by method")
    # Any value, since Gradio would refuse a column of the list that was chosen before; `fill` takes the first instead.
    column = gr.Dropdown([], label="Metric", allow_custom_value=True)
    values = gr.HTML()

    def fill(session: Session, _runs: Runs, busy: bool, name: str, column_name: str | None) -> list[Any]:
        column_of: dict[str, Column] = {}
        problem = ""
        try:
            column_of = find_columns(name)
        except UserError as error:
            problem = render("metrics/no_list.html", error=error)
        picked = column_of.get(column_name or "") or next(iter(column_of.values()), None)
        counted = count_columns(session, list(column_of.values()))
        missing = sum(count.missing for count in counted if not is_stored_reward(count.column))
        return [
            problem or counts_html(name, counted),
            gr.Dropdown(choices=list(column_of), value=picked.name if picked else None, visible=picked is not None),
            values_html(session, picked) if picked else "",
            gr.Button(interactive=not busy and missing > 0),
        ]

    def on_column(name: str, column_name: str) -> str:
        """The values alone: counting what is missing takes seconds where there are millions of them."""
        with refused_in_page(), context.database.read() as session:
            column_of = find_columns(name)
            if column_name not in column_of:
                raise UserError(f"The list {name} has no column {column_name!r}; choose one of those offered.")
            return values_html(session, column_of[column_name])

    asked = [chosen, column]
    column.input(on_column, asked, [values], **QUIET)
    panel.start(measure, partial(start_measuring, context), [chosen], rests=False)
    panel.show([counts, column, values, measure], fill, asked, [chosen.input])


def find_columns(name: str) -> dict[str, Column]:
    """The columns of a metric list by their names.

    Raises:
        UserError: no such list, or a package that it needs is not installed.
    """
    try:
        return {column.name: column for column in columns(load_metric_list(name))}
    except MetricError as error:
        raise UserError(str(error)) from error


def start_measuring(context: Context, name: str) -> int:
    """Start `annotate measure` of a metric list as a run and return its id.

    Raises:
        UserError: no such list, a package that it needs is missing, or a run is going on.
    """
    find_columns(name)
    return start_run(context, MEASURE, MEASURE.make({"metrics": name}))


def status_html(data: Path, run: Run | None) -> str:
    """How the latest measuring goes or went: images a second and time left, or what was done."""
    if run is None:
        return ""
    name = str(run.config.get("metrics", ""))
    if is_live(run):
        return live_html(data, run, f"Measuring {name}", _speed(read_progress(data, run.id) or {}))
    result = read_result(data, run.id)
    done = f"{name}, {result.get('values', 0):,} values of {result.get('images', 0):,} images measured"
    if result.get("unreadable_count"):
        done += f"; {result['unreadable_count']:,} files could not be read: put them back and measure again"
    return ended_html(run, done, "what was measured before is stored")


def _speed(progress: dict[str, Any]) -> str:
    """', 120 of 400 images, 12.5 images/s, 23 s left', as far as it is known."""
    parts = [f"{progress.get('done', 0):,} of {progress.get('total') or 0:,} images"]
    if progress.get("images_per_second"):
        parts.append(f"{progress['images_per_second']:.1f} images/s")
    seconds = progress.get("seconds_left")
    if seconds is not None:
        minutes, rest = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(
            f"{hours} h {minutes} min left"
            if hours
            else f"{minutes} min {rest} s left"
            if minutes
            else f"{rest} s left"
        )
    return ", " + ", ".join(parts)


def is_stored_reward(column: Column) -> bool:
    """Whether measuring leaves the column out, because it is a reward model that `reward score` stores."""
    return column.metric.startswith((REWARD_PREFIX, SPREAD_PREFIX))


def counts_html(name: str, counted: list[ColumnCount]) -> str:
    """A row a column: version, measured of wanted, missing, failed with the reasons; optional metrics left out."""
    metric_list = load_metric_list(name)
    return render(
        "metrics/counts.html",
        list=metric_list,
        counted=counted,
        skipped=skipped_metrics(metric_list),
        is_stored_reward=is_stored_reward,
        max_reasons=MAX_REASONS,
    )


def values_html(session: Session, column: Column) -> str:
    """The column's values by method, the highest median first: median, quartiles, and a box from 5 % to 95 %."""
    by_method, read, photos = load_by_method(session, column)
    if not by_method:
        return render("note.html", text=f"{column.name} is not measured yet.")
    methods = [(name, len(values), *np.quantile(values, QUANTILES)) for name, values in by_method.items()]
    methods.sort(key=lambda row: -row[4])
    low, high = min(row[2] for row in methods), max(row[-1] for row in methods)
    return render("metrics/values.html", methods=methods, low=low, high=high, read=read, photos=photos)
