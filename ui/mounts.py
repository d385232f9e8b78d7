"""Mount the pages that are JavaScript modules with JSON routes: Overview, Studies, Train, Runs and Models."""

from __future__ import annotations

import gradio as gr

from ui.context import Context
from ui.demo_section import build_demo_section

NOTE = '<p class="fr-note">Loading …</p>'


def build_overview(context: Context) -> None:
    """Build the Overview page: the loop as it stands, and what to do next, from `ui.overview`, live."""
    style = f'<link rel="stylesheet" href="{context.root_path}/static/overview/overview.css">'
    _mount(context, "overview", "overview/overview.js", f'{style}<div id="fr-overview">{NOTE}</div>', plain=True)
    build_demo_section(context)


def build_studies(context: Context) -> None:
    """Build the Studies page: who stands where in each study, live; studies.js asks `ui.studies.admin`."""
    style = f'<link rel="stylesheet" href="{context.root_path}/static/studies/studies.css">'
    _mount(context, "studies", "studies/studies.js", f'{style}<div id="fr-studies">{NOTE}</div>', plain=True)


def build_train(context: Context) -> None:
    """Build the Train page: a form made of each command's options, or the whole next round.

    static/train/train.js asks `ui.train.routes`. A link such as /admin/train#kind=refl%20train&reward=FOLDER opens a
    filled-in form.
    """
    gr.Markdown("## Train")
    style = f'<link rel="stylesheet" href="{context.root_path}/static/train/train.css">'
    _mount(context, "train", "train/train.js", f'{style}<div id="fr-train" class="fr-train">{NOTE}</div>', plain=True)


def build_runs(context: Context) -> None:
    """Build the Runs page: what runs and ran, live; static/runs/runs.js asks `ui.runs.routes` while somebody looks."""
    _mount(context, "runs", "runs/runs.js", f'<div id="fr-runs"><h2>Runs</h2>{NOTE}</div>')


def build_models(context: Context) -> None:
    """Build the Models page: each model back to its judgments and forward again, from `runs.lineage`."""
    _mount(context, "models", "runs/models.js", f'<div id="fr-models"><h2>Models</h2>{NOTE}</div>')


def _mount(context: Context, name: str, module: str, html: str, *, plain: bool = False) -> None:
    """Load a module of static/ and let it fill the element #fr-NAME."""
    address = f"{context.root_path}/static/{module}"
    load = f"import('{address}').then((page) => page.mount(element.querySelector('#fr-{name}')));"
    gr.HTML(html, js_on_load=load, apply_default_css=not plain)
