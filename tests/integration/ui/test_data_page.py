"""The Data page: the runs it starts, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

import ui.pages.data
import ui.pairing
from db.errors import UserError
from db.models import Run, RunState, Source
from db.session import Database
from runs.store import latest_run
from tests.making import write_photo
from tests.watching import wait_for
from ui.context import Context
from ui.pages.data import start_import
from ui.pairing import ALL, IMPORT, PAIR, RANDOM, start_pairing


def test_import_then_pairs(context: Context, restored_folder: Path) -> None:
    with context.database.read() as session:
        assert ui.pages.data.counts_html(session) == '<p class="fr-note">Nothing imported yet.</p>'
    run = wait_for(context, start_import(context, str(restored_folder), skip_bad=False))
    assert run.state is RunState.finished, run.error
    html = ui.pages.data.import_html(context.data, run)
    assert f"Run {run.id}: restored imported: 4 sources added, 3 methods added, 11 candidates added" in html
    run = wait_for(context, start_pairing(context, RANDOM, 1, None))
    assert "4 pairs added, 0 were there. 4 photos have pairs, 0 have no two" in ui.pairing.pair_html(context.data, run)
    run = wait_for(context, start_pairing(context, ALL, 1, None))
    assert "6 pairs added, 4 were there" in ui.pairing.pair_html(context.data, run)
    run = wait_for(context, start_pairing(context, ALL, 1, None, 3))
    html = ui.pairing.pair_html(context.data, run)
    assert "3 tasks of 3 added, 0 were there; 3 photos have tasks, 1 have no three different" in html
    with context.database.read() as session:
        html = ui.pages.data.counts_html(session)
        shown = session.query(Source).first()
        assert shown is not None
        assert shown.lq is not None
        assert f'<img src="../img/{shown.lq.sha256}" loading="lazy" alt="{shown.key}"' in html
    for cell in ("gfpgan", "codeformer", "waiting"):
        assert f"<td>{cell}</td>" in html
    assert '<td>waiting</td><td class="n">10</td>' in html


def test_refused_files_are_listed_and_escaped(context: Context, restored_folder: Path) -> None:
    (restored_folder / "lq" / "<img src=x>.png").write_text("no image")
    (restored_folder / "<b>").mkdir()
    (restored_folder / "<b>" / "face0.png").write_text("no image")
    run = wait_for(context, start_import(context, str(restored_folder), skip_bad=False))
    assert run.state is RunState.failed
    html = ui.pages.data.import_html(context.data, run)
    assert "2 of the files of restored are unfit and nothing was imported" in html
    assert "<td>lq/&lt;img src=x&gt;.png</td><td>not a PNG, JPEG or WebP image</td>" in html
    assert "<b>" not in html
    run = wait_for(context, start_import(context, str(restored_folder), skip_bad=True))
    assert run.state is RunState.finished
    html = ui.pages.data.import_html(context.data, run)
    assert "<summary>Refused: 2</summary>" in html
    with context.database.read() as session:
        assert "<b>" not in ui.pages.data.counts_html(session)


def test_endings_case_and_quotes(context: Context, tmp_path: Path) -> None:
    folder = tmp_path / "a set"
    for seed, name in enumerate(("lq/Face.png", "m/face_out.png", "m/notes.md", "m/._face.png")):
        write_photo(folder / "x.png", seed)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / "x.png").rename(folder / name)
    run = wait_for(context, start_import(context, f'"{folder}"', skip_bad=False))
    assert run.state is RunState.failed
    html = ui.pages.data.import_html(context.data, run)
    assert "1 of the files of a set are unfit" in html
    assert "on the Data page: Endings of names, _out" in html
    assert "on the Data page: Any case" in html
    assert "_out" in html.partition("--strip-suffix=")[2]
    run = wait_for(
        context, start_import(context, str(folder), skip_bad=False, strip_suffixes=["_out"], ignore_case=True)
    )
    assert run.state is RunState.finished, run.error
    html = ui.pages.data.import_html(context.data, run)
    assert '<td>hidden</td><td>hidden, or left by a system</td><td class="n">1</td>' in html
    assert '<td>.md</td><td>not an image</td><td class="n">1</td>' in html
    assert "1 candidates added" in html


def test_import_that_fails_otherwise_says_why(context: Context, tmp_path: Path) -> None:
    (tmp_path / "set" / "gfpgan").mkdir(parents=True)
    run = wait_for(context, start_import(context, str(tmp_path / "set"), skip_bad=False))
    html = ui.pages.data.import_html(context.data, run)
    assert 'role="alert"' in html
    assert "has no folder called lq (found: gfpgan)" in html


def test_what_cannot_be_started(context: Context, database: Database, restored_folder: Path) -> None:
    with pytest.raises(UserError, match="Name a folder"):
        start_import(context, "  ", skip_bad=False)
    with pytest.raises(UserError, match="nothing at /nowhere"):
        start_import(context, "/nowhere", skip_bad=False)
    with pytest.raises(UserError, match="how many pairs"):
        start_pairing(context, RANDOM, None, None)
    with pytest.raises(UserError, match="Choose the method"):
        start_pairing(context, ui.pairing.AGAINST, None, None)
    with database.write() as session:
        session.add(Run(kind=PAIR.name, config={}, code_version="x", state=RunState.queued))
    with pytest.raises(UserError, match=r"Run 1 \(annotate pair\) is going on"):
        start_import(context, str(restored_folder), skip_bad=False)
    with database.read() as session:
        assert latest_run(session, IMPORT.name) is None, "nothing was started"


def test_all_events_are_private_and_the_timer_rests(context: Context) -> None:
    with gr.Blocks() as page:
        ui.pages.data.build(context)
    assert {event.api_visibility for event in page.fns.values()} == {"private"}
    timers = [block for block in page.blocks.values() if isinstance(block, gr.Timer)]
    assert [timer.active for timer in timers] == [False]
