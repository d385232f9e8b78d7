"""Check the admin pages' templates: all are there and asked for, values are text, a missing value is a fault."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from ui.html import TEMPLATES, render

UI = Path(__file__).resolve().parents[3] / "ui"
NAMES = sorted(file.relative_to(UI / "templates").as_posix() for file in (UI / "templates").rglob("*.html"))


def test_each_template_is_asked_for_and_each_asked_for_is_there() -> None:
    """A folder called data would be there on one machine only: .gitignore leaves it out."""
    code = "".join(file.read_text(encoding="utf-8") for file in UI.rglob("*.py"))
    templates = "".join((UI / "templates" / name).read_text(encoding="utf-8") for name in NAMES)
    asked = re.findall(r'render\(\s*"([\w/]+\.html)"', code)
    asked += re.findall(r'{% (?:include|from) "([\w/]+\.html)"', templates)
    assert sorted(set(asked)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_template_compiles_and_marks_no_value_as_html(name: str) -> None:
    TEMPLATES.get_template(name)
    assert not re.search(r"\|\s*safe|autoescape", (UI / "templates" / name).read_text(encoding="utf-8"))


def test_values_are_text_unless_a_template_made_them() -> None:
    note = render("note.html", text="<b>&\"'")
    assert note == '<p class="fr-note">&lt;b&gt;&amp;&#34;&#39;</p>'
    assert render("note.html", text=note) == f'<p class="fr-note">{note}</p>'


def test_a_value_that_is_not_given_is_named() -> None:
    with pytest.raises(UndefinedError, match="'text' is undefined"):
        render("note.html", words="x")
