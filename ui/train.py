"""The Train page: start any long run from a form that is made of its config, or the whole next round.

The page is plain JavaScript (static/train.js) in one piece of HTML, and talks to ui/train_routes.py: what is typed is
checked while it is typed, and a link such as /admin/train#kind=refl%20train&reward=FOLDER opens a filled-in form.
"""

from __future__ import annotations

import gradio as gr

from ui.context import Context

MOUNT = "import('/static/train.js').then((page) => page.mount(element.querySelector('.fr-train')));"
CONTENT = """<link rel="stylesheet" href="/static/train.css">
<div class="fr-train"><p class="fr-note">Loading …</p></div>"""


def build(context: Context) -> None:  # noqa: ARG001
    """The page, inside the caller's Blocks or route."""
    gr.Markdown("## Train")
    gr.HTML(CONTENT, js_on_load=MOUNT, apply_default_css=False)
