"""The Runs page: what runs and ran, live, with curves, samples, logs, and the buttons stop, continue, clone, delete.

The page itself is static/runs.js: it asks `ui.run_routes` while somebody looks, and keeps what it shows in its address.
"""

from __future__ import annotations

import gradio as gr

from ui.context import Context

MOUNT = "import('/static/runs.js').then((page) => page.mount(element.querySelector('#fr-runs')));"


def build(context: Context) -> None:  # noqa: ARG001
    """The page, inside the caller's Blocks or route."""
    gr.HTML('<div id="fr-runs"><h2>Runs</h2><p class="fr-note">Loading …</p></div>', js_on_load=MOUNT)
