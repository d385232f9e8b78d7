"""Build the Data page: import photos and restored images, make pairs or tasks, list them.

Importing and pairing are runs of `python -m annotate import` and `pair`; the page starts them and reads their folders,
so that closing it changes nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy import case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from annotate.ingest.command import IMPORT
from annotate.ingest.store import describe_counts
from annotate.judging.command import PAIR
from annotate.judging.people import count_simulated
from db.errors import UserError
from db.models import Candidate, Image, Method, Pair, Run, Source, Split, Task
from runs.image_folders import clean_path
from ui.context import Context
from ui.html import ended_html, live_html, read_result, render
from ui.pairing import AGAINST, ALL, RANDOM, SIZES, pair_html, start_pairing
from ui.run_panel import QUIET, RunPanel, Runs, is_live, start_run

MAX_ROWS = 200
THUMBNAILS = 24
SKIP_BAD = "Leave unfit files out instead of refusing the import"
ENDINGS = "Endings of names"
ANY_CASE = "Any case"
LAYOUT = """A folder has `lq/` with the photos, optionally `hq/` with their ground truth, and a folder for each method,
with the same file names in each; `lq/<name>.txt` is a photo's caption. Or name a manifest (`.csv` or `.jsonl`, a row a
restored image) with the columns `source`, `lq`, `hq`, `method`, `restored`, `seed`, `caption`, `person`, or a zip of
either; a manifest may lie beside `lq/` too. Photos that share a picture share the split. Importing the same files again
adds nothing. Where there are no restored images yet, `lq/` alone will do: the [Restore page](restore) makes
them."""


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown("## Data")
    counts = gr.HTML()
    gr.Markdown(f"### Import\n{LAYOUT}")
    path = gr.Textbox(label="Folder, manifest or zip on the server", placeholder="/path/to/restored")
    with gr.Row():
        skip_bad = gr.Checkbox(label=SKIP_BAD)
        any_case = gr.Checkbox(label=ANY_CASE, info="Names that differ only in case are one")
        endings = gr.Textbox(
            label=ENDINGS, placeholder="_out _restored", info="Taken off the names of outputs; a space between two"
        )
    with gr.Row(equal_height=True):
        upload = gr.UploadButton("Upload a zip", file_types=[".zip"])
        start = gr.Button("Import", variant="primary")
    panel = RunPanel(context, {IMPORT.name: import_html, PAIR.name: pair_html})
    panel.place(IMPORT.name, stop=True)
    gr.Markdown(
        "### Pairs and tasks\nPairs, or tasks of three to six images, are made of the restored images of one photo; "
        "those there already stay as they are. The [Project page](project) says which are shown."
    )
    with gr.Row(equal_height=True):
        size = gr.Dropdown(SIZES, value=0, label="Images at once")
        which = gr.Radio([ALL, RANDOM, AGAINST], value=ALL, label="Pairs of a photo")
        per_source = gr.Number(3, label="Per photo", precision=0, minimum=1, visible=False)
        against = gr.Dropdown([], label="Method", visible=False)
        make = gr.Button("Make pairs", variant="primary")
    panel.place(PAIR.name)

    def on_import(path: str, skip_bad: bool, endings: str, any_case: bool) -> None:
        start_import(context, path, skip_bad=skip_bad, strip_suffixes=endings.split(), ignore_case=any_case)

    def on_which(which: str) -> list[Any]:
        return [gr.Number(visible=which == RANDOM), gr.Dropdown(visible=which == AGAINST)]

    def fill(session: Session, _runs: Runs, _busy: bool) -> list[Any]:
        methods = list(session.scalars(select(Method.name).order_by(Method.name)))
        return [counts_html(session), gr.Dropdown(choices=methods)]

    upload.upload(lambda file: file, [upload], [path], api_visibility="private")
    which.change(on_which, [which], [per_source, against], **QUIET)
    panel.start(start, on_import, [path, skip_bad, endings, any_case])
    panel.start(make, partial(start_pairing, context), [which, per_source, against, size])
    panel.show([counts, against], fill)


def start_import(
    context: Context, path: str, *, skip_bad: bool, strip_suffixes: Sequence[str] = (), ignore_case: bool = False
) -> int:
    """Start `annotate import` of a path on this machine as a run and return its id.

    Args:
        path: as a person pastes it, also in quotes.
        strip_suffixes, ignore_case: see `annotate.ingest.layout.read_folder`.
    Raises:
        UserError: no path, nothing there, or a run is going on.
    """
    if not path.strip():
        raise UserError("Name a folder, a manifest or a zip on the server, or upload a zip.")
    found = clean_path(path).expanduser().absolute()
    if not found.exists():
        raise UserError(f"There is nothing at {found} on the server.")
    options = IMPORT.make(
        {"path": found, "skip_bad": skip_bad, "strip_suffix": list(strip_suffixes), "ignore_case": ignore_case}
    )
    return start_run(context, IMPORT, options, beside=(PAIR,))


def counts_html(session: Session) -> str:
    """Photos by split, restored images by method, pairs by state, and the photos that came last."""
    splits = {row[0]: row[1] for row in session.execute(select(Source.split, func.count()).group_by(Source.split))}
    if not splits:
        return '<p class="fr-note">Nothing imported yet.</p>'
    made = select(Candidate.method_id, func.count().label("n")).group_by(Candidate.method_id).subquery()
    methods = session.execute(
        select(Method.name, made.c.n).join(made, made.c.method_id == Method.id).order_by(made.c.n.desc(), Method.name)
    ).all()
    pairs = _count_states(session, Pair, Pair.gold_answer)
    tasks = _count_states(session, Task, Task.gold_ranking)
    last = session.execute(
        select(Source.key, Image.sha256)
        .join(Image, Image.id == Source.lq_image_id)
        .order_by(Source.id.desc())
        .limit(THUMBNAILS)
    ).all()
    return render(
        "photos/counts.html",
        splits=_with_sum([(split.value, splits.get(split, 0)) for split in Split]),
        methods=methods[:MAX_ROWS],
        pairs=_with_sum(pairs),
        tasks=_with_sum(tasks) if tasks else [],
        simulated=count_simulated(session),
        last=last,
    )


def _count_states(
    session: Session, table: type[Pair] | type[Task], known: InstrumentedAttribute[str | None]
) -> list[tuple[str, int]]:
    """(state, how many pairs or tasks are in it), by name."""
    state = case(
        (table.judgments_wanted == 0, "not asked (equal pictures)"),
        (known.is_not(None), "gold (answer known)"),
        (table.queue_level.is_(None), "judged"),
        (table.queue_level > 0, "judged in part"),
        else_="waiting",
    )
    counted = session.execute(select(state, func.count()).group_by(state).order_by(state))
    return [(str(name), int(n)) for name, n in counted]


def _with_sum(rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [*rows, ("all", sum(n for _, n in rows))] if rows else [("none yet", 0)]


def import_html(data: Path, run: Run | None) -> str:
    """How the latest import goes or went: progress, counts, what was refused, converted, ignored."""
    if run is None:
        return ""
    name = Path(str(run.config.get("path", ""))).name
    if is_live(run):
        return live_html(data, run, f"Checking and storing {name}")
    result = read_result(data, run.id)
    ended = ended_html(run, f"{name} imported: {describe_counts(result)}")
    return render(
        "photos/import.html", run=run, name=name, result=result, ended=ended, skip_bad=SKIP_BAD, max_rows=MAX_ROWS
    )
