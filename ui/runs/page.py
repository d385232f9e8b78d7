"""Show runs live, with curves, samples, logs, and the buttons stop, continue, clone, delete.

The page itself is static/runs.js: it asks `ui.runs.routes` while somebody looks, and keeps what it shows in its
address.
"""

from __future__ import annotations

import gradio as gr

from ui.context import Context

MOUNT = "import('ROOT/static/runs.js').then((page) => page.mount(element.querySelector('#fr-runs')));"


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    content = '<div id="fr-runs"><h2>Runs</h2><p class="fr-note">Loading …</p></div>'
    gr.HTML(content, js_on_load=MOUNT.replace("ROOT", context.root_path))
