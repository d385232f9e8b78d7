"""Build the Project page: the question, the guidelines, how often pairs are judged, and the licences."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from db.errors import UserError
from db.images import add_image, probe_image
from db.project import FIXED_AFTER_IMPORT, ProjectSettings, load_settings, save_settings
from ui.context import Context
from ui.demo_section import build_demo_section
from ui.html import page_error, render

LISTS = ("reasons", "skip_reasons")
TEXTS = ("title", "question", "guidelines", "data_licence")
SECTIONS = {
    "What is asked": ("title", "question", "guidelines", "reasons", "skip_reasons"),
    "How many at once": ("task_size", "asked", "mixed_share"),
    "How often": (
        "judgments_per_pair",
        "judgments_per_test_pair",
        "repeat_share",
        "repeat_gap",
        "gold_share",
        "lease_seconds",
    ),
    "Which pairs come first": ("order", "random_share", "refit_after"),
    "Licences": ("data_licence", "consent_to_publish", "commercial"),
    "Split, fixed once photos are imported": FIXED_AFTER_IMPORT,
}


def build(context: Context) -> None:
    """A field for each setting, made from the settings' own descriptions; saved together."""
    gr.Markdown("## Project")
    build_demo_section(context)
    fields: dict[str, Any] = {}
    for heading, names in SECTIONS.items():
        gr.Markdown(f"### {heading}")
        for name in names:
            if name in TEXTS:
                fields[name] = _make_field(name)
        with gr.Row():
            for name in names:
                if name not in TEXTS:
                    fields[name] = _make_field(name)
    with gr.Row():
        save = gr.Button("Save", variant="primary")
        picture = gr.UploadButton("Add a picture to the guidelines", file_types=[".png", ".jpg", ".jpeg", ".webp"])
    state = gr.HTML()

    def load() -> list[Any]:
        with context.database.read() as session:
            settings = load_settings(session)
        values = [getattr(settings, name) for name in fields]
        return ["\n".join(value) if isinstance(value, list) else value for value in values]

    def on_save(*values: Any) -> str:
        changes = {name: _read_field(name, value) for name, value in zip(fields, values, strict=True)}
        try:
            with context.database.write() as session:
                save_settings(session, changes)
        except UserError as error:
            return render("project/refused.html", error=error)
        return '<div class="fr-note" role="status">Saved.</div>'

    def on_picture(path: str, guidelines: str) -> str:
        try:
            probe = probe_image(Path(path))
            with context.database.write() as session:
                image = add_image(session, context.data, probe, Path(path))
        except UserError as error:
            raise page_error(UserError(str(error).replace(path, Path(path).name))) from error
        return f"{guidelines.rstrip()}\n\n![example](/img/{image.sha256})\n"

    shown = list(fields.values())
    gr.on(None, load, None, shown, api_visibility="private", show_progress="hidden")
    save.click(on_save, shown, [state], api_visibility="private")
    picture.upload(on_picture, [picture, fields["guidelines"]], [fields["guidelines"]], api_visibility="private")


def _make_field(name: str) -> Any:
    label = name.replace("_", " ").capitalize()
    description = str(ProjectSettings.model_fields[name].description)
    if name == "guidelines":
        return gr.Textbox(label=label, info=description, lines=10, max_lines=30)
    if name in LISTS:
        return gr.Textbox(label=label, info=f"{description}; one a line", lines=6)
    if name in TEXTS:
        return gr.Textbox(label=label, info=description)
    annotation = ProjectSettings.model_fields[name].annotation
    if annotation is bool:
        return gr.Checkbox(label=label, info=description)
    if get_origin(annotation) is Literal:
        return gr.Dropdown(list(get_args(annotation)), label=label, info=description)
    return gr.Number(label=label, info=description)


def _read_field(name: str, value: Any) -> Any:
    if name in LISTS:
        return [line.strip() for line in str(value).splitlines() if line.strip()]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
