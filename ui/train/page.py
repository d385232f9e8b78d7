"""The Train page: start any long run from a form that is made of its config, or the whole next round.

The page is plain JavaScript (static/train/) in one piece of HTML, and talks to ui/train/routes.py: what is typed is
checked while it is typed, and a link such as /admin/train#kind=refl%20train&reward=FOLDER opens a filled-in form.
"""

from __future__ import annotations

import gradio as gr

from ui.context import Context

MOUNT = "import('ROOT/static/train/train.js').then((page) => page.mount(element.querySelector('.fr-train')));"
CONTENT = """<link rel="stylesheet" href="ROOT/static/train/train.css">
<div class="fr-train"><p class="fr-note">Loading …</p></div>"""


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown("## Train")
    content, mount = (text.replace("ROOT", context.root_path) for text in (CONTENT, MOUNT))
    gr.HTML(content, js_on_load=mount, apply_default_css=False)
