"""Build the part of a page that fills the demo project, and throws away what filled it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from db.errors import UserError
from ui.context import Context
from ui.filling import clear_demo, fill_demo, look_at_demo
from ui.html import page_error, render
from ui.run_panel import QUIET

TICK_SECONDS = 3.0


def build_demo_section(context: Context) -> None:
    """How the demo stands, a button that fills it, and one that throws that away and asks once; hidden elsewhere."""
    with gr.Column(visible=False) as section:
        gr.Markdown("### Demo")
        state = gr.HTML()
        with gr.Row():
            fill = gr.Button(
                "Fill the demo: simulated answers and a small round", variant="primary", size="sm", visible=False
            )
            clear = gr.Button("Remove simulated answers and their runs", variant="stop", size="sm", visible=False)
        with gr.Row(visible=False) as asked:
            sure = gr.Button("Yes, remove them for good", variant="stop", size="sm")
            keep = gr.Button("Keep them", size="sm")
    timer = gr.Timer(TICK_SECONDS, active=False)
    shown = [section, state, fill, clear, asked, timer]

    def show(done: str = "") -> list[Any]:
        demo = look_at_demo(context.database)
        text = " ".join(part for part in (done, demo.sentence) if part)
        return [
            gr.Column(visible=demo.is_demo or demo.can_clear),
            render("note.html", text=text) if text else "",
            gr.Button(visible=demo.can_fill),
            gr.Button(visible=demo.can_clear),
            gr.Row(visible=False),
            gr.Timer(active=demo.live > 0),
        ]

    def tick() -> list[Any]:
        """As `show`, but a question that is being asked stays."""
        values = show()
        values[4] = gr.skip()
        return values

    def on_fill() -> list[Any]:
        try:
            fill_demo(context)
        except UserError as error:
            raise page_error(error) from error
        return show()

    def on_sure() -> list[Any]:
        try:
            return show(clear_demo(context))
        except UserError as error:
            raise page_error(error) from error

    gr.on(None, lambda: show(), None, shown, **QUIET)
    timer.tick(tick, None, shown, **QUIET)
    fill.click(on_fill, None, shown, **QUIET)
    clear.click(lambda: gr.Row(visible=True), None, [asked], **QUIET)
    keep.click(lambda: gr.Row(visible=False), None, [asked], **QUIET)
    sure.click(on_sure, None, shown, **QUIET)
