"""The Project page has a field for every setting, of a kind that fits it."""

from __future__ import annotations

import gradio as gr

from db.project import ProjectSettings
from ui.pages import project


def test_every_setting_has_its_place_on_the_page():
    assert sorted(name for names in project.SECTIONS.values() for name in names) == sorted(ProjectSettings.model_fields)


def test_a_switch_is_ticked_and_a_text_is_typed():
    with gr.Blocks():
        kinds = {name: type(project._make_field(name)) for name in ("commercial", "data_licence", "order", "seed")}
    assert kinds == {
        "commercial": gr.Checkbox,
        "data_licence": gr.Textbox,
        "order": gr.Dropdown,
        "seed": gr.Number,
    }
    assert project._read_field("commercial", True) is True
