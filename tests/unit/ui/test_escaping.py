"""What pages show of names that hold HTML: text."""

from __future__ import annotations

from pathlib import Path

import pytest

import ui.pages.data
import ui.pages.export
import ui.pages.metrics
import ui.pages.people
import ui.pages.report
import ui.pairing
from annotate.ingest.store import import_folder
from annotate.judging.people import add_person
from dataset.card import write_card
from dataset.formats import our_configs
from db.errors import UserError
from db.models import RunState
from db.project import load_settings, save_settings
from db.session import Database
from runs.store import add_run, end_run, latest_run
from tests.conftest import write_photo
from ui.context import Context
from ui.html import ended_html, page_error

HOSTILE = "<img src=x onerror=alert(1)>[a](javascript:b)"


def test_messages_are_text() -> None:
    assert str(page_error(UserError(f"There is no method '{HOSTILE}'.")).message).startswith(
        "There is no method '&lt;img src=x onerror=alert(1)&gt;"
    )


def test_names_of_files_methods_people_and_runs_are_text(database: Database, data: Path, tmp_path: Path) -> None:
    for folder in ("lq", HOSTILE):
        write_photo(tmp_path / "in" / folder / f"{HOSTILE}.png", len(folder))
    import_folder(database, data, tmp_path / "in")
    with database.write() as session:
        add_person(session, HOSTILE[:40])
        save_settings(session, {"title": HOSTILE, "question": HOSTILE})
        assert load_settings(session).title == HOSTILE
    run_id = add_run(database, data, ui.pairing.IMPORT.name, {"path": f"/x/{HOSTILE}"})
    end_run(database, run_id, RunState.failed, HOSTILE)
    with database.read() as session:
        run = latest_run(session, ui.pairing.IMPORT.name)
        assert run is not None
        shown = [
            ui.pages.data.counts_html(session),
            ui.pages.data.import_html(data, run),
            ui.pages.export.counts_html(session),
            ui.pages.export.status_html(data, run),
            ui.pages.people.people_html(Context(database=database, data=data)),
            ended_html(run, ""),
        ]
    assert not [html for html in shown if "<img src=x" in html]
    assert sum("&lt;img src=x" in html for html in shown) >= 5


@pytest.mark.parametrize("text", [HOSTILE, "`code`", "| a |\n|---|", "![x](https://example.org/pixel.png)"])
def test_a_card_takes_no_name_for_markdown(text: str) -> None:
    counts = {
        "rows": 1,
        "splits": {"train": 1},
        "origins": {"human": 1},
        "made_by": {text: 1},
        "methods": {text: 1},
        "ties": 0,
        "people": 1,
        "simulated_annotators": 0,
        "dropped": {},
        "discarded": {"answers": 0, "people": 0},
    }
    options = {"name": text, "licence": text, "ties": "keep", "format": "jsonl", "resolve": "majority"}
    rows = [{"source": "s", "agreement": None, "judgments": []}]
    card = write_card(rows, [], [], counts, options, our_configs(".jsonl"))
    body = card.split("---\n", 2)[2].split("```json")[0] + card.split("```")[-1]
    assert text not in body
    for sign in ("<img", "](", "`code"):
        assert sign not in body
