"""The Data page: import photos and restored images, make pairs, see what is there.

Importing and pairing are runs of `python -m annotate import` and `pair`; the page starts them and reads their folders,
so that closing it changes nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from annotate.ingest.command import IMPORT
from annotate.ingest.store import describe_counts
from annotate.judging.command import PAIR
from db.errors import UserError
from db.models import Candidate, Image, Method, Pair, Run, RunState, Source, Split
from runs.image_folders import clean_path
from ui.context import Context
from ui.html import ended_html, live_html, read_result
from ui.pairing import AGAINST, ALL, RANDOM, pair_html, start_pairing
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
LISTS = {
    "refused": "Refused",
    "converted": "Stored without metadata, or converted so that every program sees the same picture",
    "differ_in_aspect": "Photos whose images differ in aspect",
    "share_a_picture": "Photos that share a picture, and so the split",
    "ignored": "Not part of the layout",
}


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
    gr.Markdown("### Pairs\nPairs are made of the restored images of one photo; those there already stay as they are.")
    with gr.Row(equal_height=True):
        which = gr.Radio([ALL, RANDOM, AGAINST], value=ALL, label="Pairs of a photo")
        per_source = gr.Number(3, label="Pairs per photo", precision=0, minimum=1, visible=False)
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
    panel.start(make, partial(start_pairing, context), [which, per_source, against])
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
    state = case(
        (Pair.judgments_wanted == 0, "not asked (equal pictures)"),
        (Pair.gold_answer.is_not(None), "gold (answer known)"),
        (Pair.queue_level.is_(None), "judged"),
        (Pair.queue_level > 0, "judged in part"),
        else_="waiting",
    )
    pairs = session.execute(select(state, func.count()).group_by(state).order_by(state)).all()
    tables = [
        _table(["photos", "number"], [[split.value, splits.get(split, 0)] for split in Split], total=True),
        _table(["method", "restored images"], [[name, n] for name, n in methods[:MAX_ROWS]], total=False),
        _table(["pairs", "number"], [[name, n] for name, n in pairs], total=True),
    ]
    box = 'style="flex:1 1 min(16rem, 100%);min-width:0;max-height:24rem;overflow:auto" tabindex="0" role="region"'
    words = ("Photos by split", "Restored images by method", "Pairs by state")
    cells = "".join(f'<div {box} aria-label="{of}">{table}</div>' for of, table in zip(words, tables, strict=True))
    return f'<div style="display:flex;flex-wrap:wrap;gap:2rem;align-items:flex-start">{cells}</div>' + _strip(session)


def _strip(session: Session) -> str:
    """The photos that came last, as their stored bytes."""
    last = session.execute(
        select(Source.key, Image.sha256)
        .join(Image, Image.id == Source.lq_image_id)
        .order_by(Source.id.desc())
        .limit(THUMBNAILS)
    ).all()
    style = "width:96px;height:96px;object-fit:cover;border-radius:4px;display:block"
    pictures = "".join(
        f'<img src="../img/{sha256}" loading="lazy" alt="{escape(key)}" title="{escape(key)}" style="{style}">'
        for key, sha256 in last
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:6px;margin-top:1rem">{pictures}</div>'


def import_html(data: Path, run: Run | None) -> str:
    """How the latest import goes or went: progress, counts, what was refused, converted, ignored."""
    if run is None:
        return ""
    name = escape(Path(str(run.config.get("path", ""))).name)
    if is_live(run):
        return live_html(data, run, f"Checking and storing {name}")
    result = read_result(data, run.id)
    if run.state is RunState.failed and result.get("refused"):
        count = f"{result['refused_count']:,}"
        parts = [
            f'<div role="alert"><p class="fr-error">Run {run.id}: {count} of the files of {name} are unfit and nothing '
            f"was imported. Mend them, or tick “{SKIP_BAD}”. {escape(' '.join(result.get('advice', [])))}</p></div>"
        ]
    else:
        parts = [ended_html(run, f"{name} imported: {escape(describe_counts(result))}")]
    if result.get("ignored_kinds"):
        parts.append(_table(["ignored", "why", "files"], result["ignored_kinds"], total=False))
    for key, words in LISTS.items():
        rows = result.get(key) or []
        if rows:
            number = result.get(f"{key}_count", len(rows))
            table = _table(["file", "why"], rows[:MAX_ROWS], total=False)
            more = f'<p class="fr-note">{number - MAX_ROWS:,} more.</p>' if number > MAX_ROWS else ""
            is_open = " open" if key == "refused" else ""
            parts.append(f"<details{is_open}><summary>{words}: {number:,}</summary>{table}{more}</details>")
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], *, total: bool) -> str:
    """A table of text and numbers, escaped here; `total` adds a row with the sum of the second column."""
    if total:
        rows = [*rows, ["all", sum(int(str(row[1])) for row in rows)]] if rows else [["none yet", 0]]
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="n">{cell:,}</td>' if isinstance(cell, int) else f"<td>{escape(str(cell))}</td>" for cell in row
        )
        + "</tr>"
        for row in rows
    )
    numeric = {place for row in rows[:1] for place, cell in enumerate(row) if isinstance(cell, int)}
    names = "".join(
        f'<th scope="col"{" class=n" if place in numeric else ""}>{escape(name)}</th>'
        for place, name in enumerate(head)
    )
    return f'<table class="fr"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'
