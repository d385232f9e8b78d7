"""The Restore page without a browser: what it starts, what it refuses, what it shows of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage

import refl.restore.choices
from db.errors import UserError
from db.models import Run, RunState, Source
from db.records import add_candidate, add_method
from db.session import Database
from refl.restore.choices import NEEDS, list_methods
from refl.restore.command import RESTORE
from refl.restore.rows import add_face
from runs.options import read_words
from runs.store import RunLog, add_run, end_run, run_folder
from tests.making import add_photos, write_photo
from tests.watching import get_run
from ui.context import Context
from ui.restore.page import ALL_SPLITS, AS_IT_IS, OWN, PROJECT, start_restoring, status_html
from ui.restore.results import PHOTO, choices_of, compare_html


@pytest.fixture
def started(context: Context, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of every run that the page starts; each run is there, queued, and without a process."""
    calls: list[list[str]] = []

    def note(database: Database, data: Path, kind: str, arguments: Sequence[str], config: Any, **_how: Any) -> int:
        calls.append(list(arguments))
        return add_run(database, data, kind, config)

    monkeypatch.setattr("runs.launch.launch", note)
    return calls


def start(context: Context, **changes: Any) -> int:
    values = {
        "origin": OWN,
        "files": ["/up/a.jpg"],
        "aligned": False,
        "split": ALL_SPLITS,
        "keys": [],
        "methods": ["tiny"],
        "count": 2,
        "steps": 0,
        "strength": 1,
        "background": AS_IT_IS,
        **changes,
    }
    return start_restoring(context, **values)


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, ["/up/a.jpg", "--out={data}/restored", "--seeds", "0", "1", "--method=tiny"]),
        (
            {"aligned": True, "background": "realesrgan-x2", "count": 1, "steps": 5, "methods": ["tiny", "n=/x y"]},
            ["/up/a.jpg", "--out={data}/restored", "--aligned", "--method=tiny", "--method=n=/x y"],
        ),
        (
            {"background": "/m.pth", "files": ["/up/a.jpg", "/up/b.png"]},
            ["/up/a.jpg", "/up/b.png", "--out={data}/restored", "--background=/m.pth", "--seeds", "0", "1"],
        ),
        ({"strength": 0.5}, ["/up/a.jpg", "--out={data}/restored", "--seeds", "0", "1", "--method=tiny"]),
        ({"origin": PROJECT}, ["--seeds", "0", "1", "--method=tiny"]),
        ({"origin": PROJECT, "split": "test"}, ["--split=test", "--seeds", "0", "1", "--method=tiny"]),
        ({"origin": PROJECT, "split": "test", "keys": ["-a", "b"]}, ["--source=-a", "--source=b", "--seeds", "0"]),
    ],
)
def test_the_run_is_the_command_that_a_person_would_type(
    context: Context, started: list[list[str]], data: Path, changes: dict[str, Any], arguments: list[str]
) -> None:
    run_id = start(context, **changes)
    wanted = [argument.format(data=data) for argument in arguments]
    assert set(wanted) <= set(started[0])
    options = read_words(RESTORE, started[0])
    assert options.methods == changes.get("methods", ["tiny"])
    assert options.steps == changes.get("steps")
    assert options.strength == (changes.get("strength") if "strength" in changes else None)
    assert [str(path) for path in options.inputs] == (
        [] if "origin" in changes else changes.get("files", ["/up/a.jpg"])
    )
    assert get_run(context.database, run_id).config["methods"] == options.methods


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": None}, "Drop a photo first"),
        ({"methods": []}, "Choose a restorer"),
        ({"count": None}, "how many candidates"),
    ],
)
def test_what_is_missing_is_said(
    context: Context, started: list[list[str]], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        start(context, **changes)
    assert started == []


def test_one_run_at_a_time(context: Context, started: list[list[str]]) -> None:
    first = start(context)
    with pytest.raises(UserError, match=f"Run {first} .* is going on"):
        start(context)
    end_run(context.database, first, RunState.stopped)
    assert start(context) > first


@pytest.fixture
def finished(context: Context, data: Path, tmp_path: Path) -> Run:
    """A run that restored the faces of two whole photos, one of which has none, by 'm' with seed 0 and 3."""
    run_id = add_run(context.database, data, RESTORE.name, {})
    whole = write_photo(tmp_path / "a b.jpg", 0, (80, 60))
    pasted = write_photo(tmp_path / "restored" / "a b.png", 1, (160, 120))
    with context.database.write() as session:
        lq = write_photo(tmp_path / "face.png", 2, (64, 64))
        source_id = add_face(session, data, "a <b>#0", lq.read_bytes(), group="a b")
        for seed in (0, 3):
            (image,) = add_photos(session, data, tmp_path, [3 + seed], (64, 64))
            add_candidate(session, session.get_one(Source, source_id), add_method(session, "m"), image, seed)
    made_by = [{"method_id": 1, "method": "m", "seed": seed, "folder": f"m-seed{seed}"} for seed in (0, 3)]
    RunLog(run_id, run_folder(data, run_id)).write_result(
        {
            "restored": 2,
            "already": 1,
            "methods": ["m"],
            "made_by": made_by,
            "sources": [source_id],
            "without_face": ["/up/x/<i>.jpg"],
            "converted": [["/up/x/<g>.png", "alpha laid over white"]],
            "photos": [{"photo": str(whole), "faces": 1, "files": {"m-seed0": str(pasted)}}],
        }
    )
    end_run(context.database, run_id, RunState.finished)
    return get_run(context.database, run_id)


def test_the_end_of_a_run_says_what_was_made_and_what_was_not(data: Path, finished: Run) -> None:
    html = status_html(data, finished)
    assert f"Run {finished.id}: 2 faces restored by m, 1 were there already." in html
    assert "No face was found in &lt;i&gt;.jpg." in html
    assert "turned by up to 30°" in html
    assert "&lt;g&gt;.png was converted: alpha laid over white." in html


def test_whole_photos_and_faces_can_be_compared(context: Context, finished: Run, tmp_path: Path) -> None:
    items, sides = choices_of(context, finished)
    assert items == [("a b.jpg, the whole photo", "photo 0"), ("a <b>#0", "source 1")]
    assert sides == ["m-seed0", "m-seed3"]
    face = compare_html(context, finished, "source 1", PHOTO, "m-seed3")
    with context.database.read() as session:
        source = session.get_one(Source, 1)
        assert source.lq is not None
        assert f'<img src="../img/{source.lq.sha256}" alt="the photo" class="fr-over">' in face
    assert "aspect-ratio:1.0000" in face
    photo = compare_html(context, finished, "photo 0", PHOTO, "m-seed0")
    assert f"gradio_api/file={tmp_path}/restored/a%20b.png" in photo
    assert f"gradio_api/file={tmp_path}/a%20b.jpg" in photo
    assert "aspect-ratio:1.3333" in photo
    assert "There is no m-seed3 of this one." in compare_html(context, finished, "photo 0", PHOTO, "m-seed3")


@pytest.mark.parametrize("item", ["photo 1", "photo -1", "source 2", "source x", "", "<b>", None])
def test_what_is_no_item_shows_nothing(context: Context, finished: Run, item: str | None) -> None:
    assert "<img" not in compare_html(context, finished, item, PHOTO, "m-seed0")


def test_names_are_escaped(context: Context, finished: Run) -> None:
    assert "<script>" not in compare_html(context, finished, "source 1", "<script>", "m-seed0")


def test_a_turned_photo_has_the_shape_that_is_shown(context: Context, finished: Run, tmp_path: Path) -> None:
    exif = PilImage.Exif()
    exif[0x0112] = 6
    PilImage.new("RGB", (80, 60)).save(tmp_path / "a b.jpg", exif=exif)
    (tmp_path / "restored" / "a b.png").unlink()
    assert "There is no m-seed0" in compare_html(context, finished, "photo 0", PHOTO, "m-seed0")
    assert "aspect-ratio:0.7500" in compare_html(context, finished, "photo 0", PHOTO, PHOTO)


def test_a_run_that_failed_or_goes_on_shows_no_results(context: Context, data: Path) -> None:
    run_id = add_run(context.database, data, RESTORE.name, {})
    RunLog(run_id, run_folder(data, run_id)).progress(1, 4, stage="looking at photos")
    run = get_run(context.database, run_id)
    assert "Looking at photos: 25%" in status_html(data, run)
    assert choices_of(context, run) == ([], [])
    end_run(context.database, run_id, RunState.failed, "No face was found in <x>.")
    run = get_run(context.database, run_id)
    assert "No face was found in &lt;x&gt;." in status_html(data, run)
    assert choices_of(context, run) == ([], [])


def test_restorers_whose_weights_are_here_come_first(data: Path) -> None:
    names = [choice.asked for choice in list_methods(data)]
    assert names[0] == "tiny"
    assert set(names) == set(NEEDS)
    (data / "weights").mkdir(parents=True)
    manifest = tomllib.loads(refl.restore.choices.MANIFEST.read_text())
    for name in ("sd-2.1-base-safetensors", "diffbir-swinir-face", "diffbir-v1-face"):
        assert not list_methods(data)[1].is_here
        (data / "weights" / manifest[name]["file"]).touch()
    here = [choice for choice in list_methods(data) if choice.is_here]
    assert [(choice.asked, choice.words) for choice in here] == [("tiny", "tiny"), ("diffbir-v1", "diffbir-v1")]


def test_every_file_that_a_restorer_needs_is_in_the_manifest() -> None:
    manifest = tomllib.loads(refl.restore.choices.MANIFEST.read_text())
    needed = {name for groups in NEEDS.values() for group in groups for name in group}
    assert needed <= manifest.keys()


def test_tuned_restorers_of_the_runs_are_offered(data: Path) -> None:
    folder = data / "runs" / "7" / "best"
    folder.mkdir(parents=True)
    (folder / "trained.json").touch()
    tuned = list_methods(data)[-1]
    assert (tuned.asked, tuned.words) == (str(folder.resolve()), "run 7/best: tuned")
