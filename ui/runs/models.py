"""Show the lineage of labelers, datasets, reward models, restorers and methods, to the judgments and back.

The page itself is static/models.js, drawn from `runs.lineage`.
"""

from __future__ import annotations

import gradio as gr

from ui.context import Context

MOUNT = "import('ROOT/static/models.js').then((page) => page.mount(element.querySelector('#fr-models')));"


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    content = '<div id="fr-models"><h2>Models</h2><p class="fr-note">Loading …</p></div>'
    gr.HTML(content, js_on_load=MOUNT.replace("ROOT", context.root_path))
