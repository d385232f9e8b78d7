"""Build the Restore page: drop photos or pick the project's, choose restorers, compare results, send them to labelling.

Restoring is a run of `python -m refl restore`; the page starts it and reads what it left, so that its own process
never loads torch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.command import PAIR
from db.errors import UserError
from db.models import Run, RunState, Source, Split
from refl.restore.choices import list_methods
from refl.restore.command import RESTORE
from runs.store import latest_run, read_progress
from ui.context import Context
from ui.html import ended_html, live_html, read_result, render
from ui.pairing import ALL, pair_html, start_pairing
from ui.restore.results import ON_SLIDE, PHOTO, choices_of, compare_html
from ui.run_panel import QUIET, RunPanel, Runs, is_live, start_run

OWN, PROJECT = "Photos from this computer", "Photos of the project"
ALL_SPLITS = "all"
AS_IT_IS = "as it is"
MAX_KEYS_OFFERED = 200
MAX_CANDIDATES = 8
INTRO = """Faces are found, restored by each restorer that you choose, and stored beside the project's other restored
images, so that they can be judged."""
PAIR_INTRO = (
    """Restored images of one photo are judged in pairs: two restorers, or one with two candidates, give some."""
)


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown(f"## Restore\n{INTRO}")
    asked = _build_what(context) + _build_how(context)
    start = gr.Button("Restore", variant="primary")
    panel = RunPanel(context, {RESTORE.name: status_html, PAIR.name: pair_html})
    panel.place(RESTORE.name, stop=True)
    gr.Markdown("### Compare")
    with gr.Row(equal_height=True):
        item = gr.Dropdown([], label="Photo or face", allow_custom_value=True)
        left = gr.Dropdown([PHOTO], value=PHOTO, label="Left of the line", allow_custom_value=True)
        right = gr.Dropdown([], label="Right of the line", allow_custom_value=True)
    compare = gr.HTML(js_on_load=ON_SLIDE)
    gr.Markdown(f"### Judge\n{PAIR_INTRO}")
    pair = gr.Button("Make pairs of the restored images", interactive=False)
    panel.place(PAIR.name)
    gr.HTML('<p><a href=".." style="padding:0">Judge them on the Label page</a></p>')

    def fill(_session: Session, runs: Runs, busy: bool) -> list[Any]:
        run = runs[RESTORE.name]
        items, sides = choices_of(context, run)
        first, last = (items[0][1] if items else None), (sides[-1] if sides else None)
        return [
            gr.Button(interactive=not busy and bool(items)),
            gr.Dropdown(choices=items, value=first, visible=bool(items)),
            gr.Dropdown(choices=[PHOTO, *sides], value=PHOTO, visible=bool(items)),
            gr.Dropdown(choices=[PHOTO, *sides], value=last, visible=bool(items)),
            compare_html(context, run, first, PHOTO, last),
        ]

    def on_compare(item: str | None, left: str, right: str | None) -> str:
        with context.database.read() as session:
            run = latest_run(session, RESTORE.name)
        return compare_html(context, run, item, left, right)

    gr.on([item.input, left.input, right.input], on_compare, [item, left, right], [compare], **QUIET)
    panel.start(start, partial(start_restoring, context), asked)
    panel.start(pair, lambda: start_pairing(context, ALL, None, None), rests=False)
    panel.show([pair, item, left, right, compare], fill)


def _build_what(context: Context) -> list[Any]:
    """Which photos: what is dropped here, or the project's."""
    origin = gr.Radio([OWN, PROJECT], value=OWN, label="Restore")
    with gr.Row(equal_height=True, visible=True) as own:
        files = gr.File(
            label="Photos, PNG, JPEG or WebP",
            file_count="multiple",
            file_types=[".png", ".jpg", ".jpeg", ".webp"],
            scale=2,
        )
        aligned = gr.Checkbox(label="Cropped faces", info="Already aligned as FFHQ's faces are: no face is looked for")
    with gr.Row(equal_height=True, visible=False) as project:
        split = gr.Dropdown([ALL_SPLITS, *(split.value for split in Split)], value=ALL_SPLITS, label="Split")
        keys = gr.Dropdown(
            [], multiselect=True, allow_custom_value=True, label="Photos", info="None chosen: all of the split"
        )

    def on_origin(origin: str) -> list[Any]:
        with context.database.read() as session:
            newest = select(Source.key).where(Source.lq_image_id.is_not(None)).order_by(Source.id.desc())
            names = list(session.scalars(newest.limit(MAX_KEYS_OFFERED)))
        return [gr.Row(visible=origin == OWN), gr.Row(visible=origin == PROJECT), gr.Dropdown(choices=names)]

    origin.change(on_origin, [origin], [own, project, keys], **QUIET)
    return [origin, files, aligned, split, keys]


def _build_how(context: Context) -> list[Any]:
    """Which restorers, how many candidates, what becomes of the background."""
    methods = gr.Dropdown(
        _offered(context),
        value=["tiny"],
        multiselect=True,
        allow_custom_value=True,
        label="Restorers",
        info="Or feedforward:FILE, onnx:FILE or the folder of a tuned restorer; NAME= before it names its images",
    )
    with gr.Row(equal_height=True):
        count = gr.Number(
            2, precision=0, minimum=1, maximum=MAX_CANDIDATES, label="Candidates of each", info="Seeds 0, 1 and so on"
        )
        steps = gr.Number(0, precision=0, minimum=0, label="Steps", info="0: the restorer's own")
        strength = gr.Slider(
            0, 1.5, value=1, step=0.05, label="Strength of the tuning", info="Of restorers tuned by LoRA; 0: untuned"
        )
        background = gr.Dropdown(
            [AS_IT_IS, "realesrgan-x2"],
            value=AS_IT_IS,
            allow_custom_value=True,
            label="Around the faces",
            info="The photo as it is, or enlarged by a model",
        )
    gr.on(None, lambda: gr.Dropdown(choices=_offered(context)), None, [methods], **QUIET)
    return [methods, count, steps, strength, background]


def _offered(context: Context) -> list[tuple[str, str]]:
    """The restorers as they are now: weights may have come, and trainings ended, since the server started."""
    return [(choice.words, choice.asked) for choice in list_methods(context.data)]


def start_restoring(
    context: Context,
    origin: str,
    files: list[str] | None,
    aligned: bool,
    split: str,
    keys: list[str],
    methods: list[str],
    count: float | None,
    steps: float | None,
    strength: float,
    background: str,
) -> int:
    """Start `refl restore` as a run and return its id.

    Raises:
        UserError: no photo or restorer is chosen, a number is missing, or a run is going on.
    """
    if not methods:
        raise UserError("Choose a restorer.")
    if not count:
        raise UserError("Say how many candidates each restorer makes.")
    given: dict[str, Any] = {"methods": methods, "seeds": list(range(int(count)))}
    if origin == OWN:
        if not files:
            raise UserError("Drop a photo first.")
        given |= {"inputs": files, "out": context.data / "restored", "aligned": aligned}
        if background != AS_IT_IS and not aligned:
            given["background"] = background
    elif keys:
        given["source"] = keys
    elif split != ALL_SPLITS:
        given["split"] = split
    if steps:
        given["steps"] = int(steps)
    if strength != 1:
        given["strength"] = strength
    return start_run(context, RESTORE, RESTORE.make(given))


def status_html(data: Path, run: Run | None) -> str:
    """How the latest restoring goes or went: what was restored, and what was left out."""
    if run is None:
        return ""
    if is_live(run):
        stage = str((read_progress(data, run.id) or {}).get("stage", "loading"))
        return live_html(data, run, stage.capitalize())
    if run.state is not RunState.finished:
        return ended_html(run, "", "what was restored before is stored; restore again to go on")
    result = read_result(data, run.id)
    there = f", {result['already']:,} were there already" if result["already"] else ""
    ended = ended_html(run, f"{result['restored']:,} faces restored by {', '.join(result['methods'])}{there}")
    converted = [(Path(path).name, done) for path, done in result.get("converted", [])]
    without_face = [Path(path).name for path in result["without_face"]]
    return render("restore/status.html", ended=ended, converted=converted, without_face=without_face)
