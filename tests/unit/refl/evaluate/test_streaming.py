"""Evaluating many faces: a batch at a time, one model at a time, killed and continued to the same tables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from sqlalchemy import select

import refl.evaluate.compare
import refl.evaluate.restored
import refl.evaluate.run
import refl.restore.methods
from db.errors import UserError
from db.models import Run, RunState
from db.session import open_database
from refl.__main__ import main
from refl.evaluate.command import EVALUATE
from refl.evaluate.compare import measure_reward
from refl.evaluate.faces import FaceSet
from refl.evaluate.plan import Plan, make_plan
from refl.evaluate.restored import compute_keys, find_changes
from refl.evaluate.run import evaluate
from refl.evaluate.values import open_measured
from refl.restore.methods import load_method
from refl.restorers.tiny import save_tiny
from refl.tune.ablate import AblateOptions, evaluate_variants
from refl.tune.data import Face
from reward.model.checkpoint import build_model, save_model
from reward.model.config import ModelConfig
from reward.model.model import RewardModel
from reward.score.scorer import load_scorer
from runs.hold import hold_folder
from runs.options import Place, read_words
from tests.unit.refl.conftest import MICRO, make_micro_restorer, make_micro_reward

FREE_MEMORY = refl.evaluate.run.free_memory
TABLES = ("values.csv", "summary.csv", "synthetic.png")
CONFIG = """
[degradation]
blur_kernel_px = 5
blur_sigma_px = [0.5, 1.0]
downsample_factor = [1.0, 2.0]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two micro restorers and two micro reward models, for tests to copy."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        save_tiny(make_micro_restorer(seed), MICRO, folder / "restorers" / name)
    for name, text_mode in (("learned", "learned"), ("captioned", "caption")):
        save_model(make_micro_reward(folder, unlocked_image_groups=2, text_mode=text_mode), folder / "rewards" / name)
    return folder


@pytest.fixture
def base(models: Path, tmp_path: Path, faces: list[Face], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments: two micro restorers and two micro reward models on eight faces; only quick metrics."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.toml").write_text(CONFIG)
    monkeypatch.setattr("refl.evaluate.run.choose_metrics", lambda _truth, _device: (["psnr", "gmsd"], {"vif": "slow"}))
    monkeypatch.setattr(refl.evaluate.run, "free_memory", lambda: None)  # a tenth of a second each beside pytest
    words = [f"--method={tmp_path / 'restorers' / 'one'}", f"--method=other={tmp_path / 'restorers' / 'two'}"]
    words += [f"--faces={faces[0].path.parent}", f"--degradation={tmp_path / 'config.toml'}", "--batch-size=3"]
    words += [f"--reward={name}={tmp_path / 'rewards' / name}" for name in ("learned", "captioned")]
    return [*words, "--seeds", "0", "5", "--device=cpu"]


def plan_of(words: list[str], tmp_path: Path) -> Plan:
    data = tmp_path / "data"
    database = open_database(data)
    try:
        return make_plan(EVALUATE.settle(read_words(EVALUATE, words), data), database, data)
    finally:
        database.close()


class Killed(Exception):
    """Stands for the end of the process."""


def evaluate_until(plan: Plan, out: Path, images: int | None) -> list[tuple[int, int]]:
    """Evaluate, and die once so many images were counted."""
    told = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if images is not None and done >= images:
            raise Killed

    if images is None:
        evaluate(plan, out, {}, progress)
    else:
        with pytest.raises(Killed):
            evaluate(plan, out, {}, progress)
    return told


def read_tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


def test_killed_anywhere_and_continued_it_gives_the_same_tables(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(base, tmp_path)
    told = evaluate_until(plan, tmp_path / "whole", None)
    # 8 faces, 2 methods with 2 seeds: 32 images, restored, measured, and rewarded by 2 models
    assert told[-1] == (128, 128)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    restored: list[int] = []
    monkeypatch.setattr(refl.evaluate.restored, "restore_batch", spy(refl.evaluate.restored.restore_batch, restored))
    for images in (3, 14, 30, 70, 120):
        evaluate_until(plan, tmp_path / "killed", images)
    evaluate_until(plan, tmp_path / "killed", None)
    assert read_tables(tmp_path / "killed") == read_tables(tmp_path / "whole")
    assert sum(restored) == 32  # nothing was restored twice


def spy(function: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
    """The function, noting how many images of a batch it is given."""

    def noted(first: Any, images: Any, *more: Any) -> Any:
        counts.append(len(images))
        return function(first, images, *more)

    return noted


def test_killed_while_it_writes_a_batch_it_makes_that_batch_again(base: list[str], tmp_path: Path) -> None:
    plan = plan_of(base, tmp_path)
    evaluate_until(plan, tmp_path / "whole", None)
    evaluate_until(plan, tmp_path / "killed", 8)
    written = sorted((tmp_path / "killed").rglob("*.png"))
    assert [file.name for file in written[:2]] == ["00000-0.png.png", "00001-1.png.png"]
    written[1].unlink()
    (written[1].parent / f".{written[1].name}.part").write_bytes(b"half")
    evaluate_until(plan, tmp_path / "killed", 40)
    with open(tmp_path / "killed" / "measured.jsonl", "a") as stream:
        stream.write('{"keys": ["half a line')
    evaluate_until(plan, tmp_path / "killed", None)
    assert read_tables(tmp_path / "killed") == read_tables(tmp_path / "whole")


@pytest.mark.parametrize("what", ["weights", "steps", "size", "degradation", "face", "dtype"])
def test_images_that_would_be_others_now_are_made_anew(
    base: list[str], faces: list[Face], tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="refl")
    words = [word for word in base if not word.startswith(("--reward", "--method=other"))]
    evaluate_until(plan_of(words, tmp_path), tmp_path / "out", None)
    if what == "weights":
        save_tiny(make_micro_restorer(7), MICRO, tmp_path / "restorers" / "one")
    elif what == "face":
        shutil.copy(faces[1].path, faces[0].path)
    elif what == "degradation":
        (tmp_path / "config.toml").write_text(CONFIG.replace("1.0, 2.0", "2.0, 3.0"))
    else:
        words.append({"steps": "--steps=3", "size": "--image-size-px=32", "dtype": "--dtype=bfloat16"}[what])
    plan = plan_of(words, tmp_path)
    evaluate_until(plan, tmp_path / "out", None)
    evaluate_until(plan, tmp_path / "fresh", None)
    assert read_tables(tmp_path / "out") == read_tables(tmp_path / "fresh")
    said = {"weights": "settings", "steps": "settings", "dtype": "settings", "size": "settings and size_px"}
    assert f"made with other {said.get(what, what if what != 'face' else 'faces')} than now" in caplog.text


def test_a_changed_caption_and_reward_model_are_scored_anew(base: list[str], faces: list[Face], tmp_path: Path) -> None:
    evaluate_until(plan_of(base, tmp_path), tmp_path / "out", None)
    faces[0].path.with_suffix(".txt").write_text("a green face")
    reward = build_model(json_config(tmp_path / "rewards" / "learned"))
    save_model(reward, tmp_path / "rewards" / "learned")  # other random weights
    plan = plan_of(base, tmp_path)
    evaluate_until(plan, tmp_path / "out", None)
    evaluate_until(plan, tmp_path / "fresh", None)
    assert read_tables(tmp_path / "out") == read_tables(tmp_path / "fresh")


def json_config(folder: Path) -> ModelConfig:
    return ModelConfig.model_validate(json.loads((folder / "config.json").read_text()))


def test_more_faces_and_seeds_keep_what_is_there(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[int] = []
    monkeypatch.setattr(refl.evaluate.restored, "restore_batch", spy(refl.evaluate.restored.restore_batch, restored))
    for limit, fresh in (("3", 3), ("6", 3), ("2", 0), ("8", 2)):
        restored.clear()
        words = [word for word in base if not word.startswith(("--reward", "--method=other"))]
        words = words[: words.index("--seeds")]
        evaluate_until(plan_of([*words, f"--limit={limit}"], tmp_path), tmp_path / "out", None)
        assert sum(restored) == fresh


def test_a_folder_of_something_else_is_not_emptied(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "out" / "restored" / "synthetic" / "other").mkdir(parents=True)
    mine = tmp_path / "out" / "restored" / "synthetic" / "other" / "mine.txt"
    mine.write_text("keep me")
    with pytest.raises(UserError, match="holds files of something else"):
        evaluate_until(plan_of(base, tmp_path), tmp_path / "out", None)
    assert mine.read_text() == "keep me"


def test_two_evaluations_do_not_write_into_one_folder(base: list[str], tmp_path: Path) -> None:
    with hold_folder(tmp_path / "out"), pytest.raises(UserError, match="Another run writes into"):
        evaluate_until(plan_of(base, tmp_path), tmp_path / "out", None)
    with hold_folder(tmp_path / "out"):
        pass


def test_one_restorer_and_one_reward_model_at_a_time(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    monkeypatch.setattr(refl.evaluate.run, "free_memory", FREE_MEMORY)

    def watched(load: Callable[..., Any], inner: Callable[[Any], Any]) -> Callable[..., Any]:
        def loaded(*args: Any, **kwargs: Any) -> Any:
            assert [ref() for ref in alive if ref() is not None] == []
            found = load(*args, **kwargs)
            alive.append(weakref.ref(inner(found)))
            return found

        return loaded

    monkeypatch.setattr(
        refl.restore.methods, "load_restorer", watched(refl.restore.methods.load_restorer, lambda found: found)
    )
    monkeypatch.setattr(
        refl.evaluate.run, "load_scorer", watched(refl.evaluate.run.load_scorer, lambda found: found.model)
    )
    evaluate_until(plan_of(base, tmp_path), tmp_path / "out", None)
    assert len(alive) == 4


def test_no_model_sees_more_than_a_batch(base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    monkeypatch.setattr(RewardModel, "encode_pixels", spy(RewardModel.encode_pixels, scored))
    restored: list[int] = []
    monkeypatch.setattr(refl.evaluate.restored, "restore_batch", spy(refl.evaluate.restored.restore_batch, restored))
    evaluate_until(plan_of(base, tmp_path), tmp_path / "out", None)
    assert restored == [3, 3, 2] * 4
    assert scored == [3, 3, 2] * 8


@pytest.mark.slow
def test_as_many_images_are_in_memory_for_24_faces_as_for_8(
    base: list[str], faces: list[Face], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most = 0, 0

    def note(items: Any) -> Any:
        nonlocal now, most
        for item in [items] if isinstance(items, torch.Tensor) else items:
            count = len(items) if isinstance(items, torch.Tensor) else 1
            now, most = now + count, max(most, now + count)
            weakref.finalize(item, forget, count)
        return items

    def forget(count: int) -> None:
        nonlocal now
        now -= count

    for module, name in ((refl.evaluate.restored, "restore_batch"), (refl.evaluate.compare, "read_images")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, function=function: note(function(*args)))
    for name in ("read_lq", "read_squares"):
        method = getattr(FaceSet, name)
        monkeypatch.setattr(FaceSet, name, lambda *args, method=method: note(method(*args)))
    monkeypatch.setattr("refl.evaluate.run.write_grid", lambda *_args: None)  # 16 faces, however many there are
    peaks = []
    for count in (8, 24):
        for number in range(8, count):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            PilImage.fromarray(pixels).save(faces[0].path.parent / f"more{number}.png")
        evaluate_until(plan_of(base, tmp_path), tmp_path / f"out{count}", None)
        peaks.append(most)
        most = 0
    assert peaks[0] == peaks[1]
    assert peaks[0] <= 4 * 3


def test_without_captions_it_is_refused_before_anything_is_loaded(
    base: list[str], faces: list[Face], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for face in faces[:2]:
        face.path.with_suffix(".txt").unlink()
    monkeypatch.setattr(refl.restore.methods, "load_restorer", lambda *_args, **_kwargs: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"None of the 8 synthetic faces has a caption.*--use-prompt to let captioned"):
        plan_of(base, tmp_path)
    plan = plan_of([*base, "--use-prompt"], tmp_path)
    (note,) = plan.notes
    assert note.startswith("reward captioned: 8 of 8 synthetic faces have no caption; the prompt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method=nobody"], "There is no restorer 'nobody'"),
        (["--method=feedforward:none.pth"], "There is no file 'none.pth'"),
        (["--method=other=tiny"], "Two of the restorers are called 'other'"),
        (["--method=oth/er=tiny", "--method=oth er=tiny"], "kept in a folder 'oth-er'"),
        (["--image-size-px=40"], "takes sides that are multiples of 16 px, not 40"),
        (["--reward=nowhere"], "There is no scorer 'nowhere'"),
        (["--reward=a=nowhere"], "There is no scorer 'nowhere'"),
        (["--reward=learned=tiny"], "Two reward models are called 'learned'"),
        (["--limit=0"], "--limit: Give 1 or more, got '0'"),
        (["--batch-size=0"], "--batch-size: Give 1 or more"),
        (["--seeds", "-1"], "--seeds: Give 0 or more"),
        (["--wild=."], "holds no PNG"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    base: list[str], tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refl.restore.methods, "load_restorer", lambda *_args, **_kwargs: pytest.fail("loaded"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=message):
        plan_of([*base, *words], tmp_path)


def test_a_damaged_face_is_found_before_anything_is_loaded(base: list[str], faces: list[Face], tmp_path: Path) -> None:
    faces[3].path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png"):
        plan_of(base, tmp_path)


def test_restorers_are_loaded_with_the_type_steps_and_weights_that_were_asked_for(
    base: list[str], tmp_path: Path
) -> None:
    plan = plan_of([*base, "--dtype=bfloat16", "--steps=3", f"--weights={tmp_path / 'weights'}"], tmp_path)
    method = load_method(plan.methods[0], plan.options)
    assert next(method.restorer.unet.parameters()).dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert method.settings["steps"] == 3
    assert plan.options.weights == tmp_path / "weights"
    assert plan_of(base, tmp_path).options.weights == tmp_path / "data" / "weights"


def test_a_signal_ends_it_after_the_batch_and_the_same_command_goes_on(
    base: list[str], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore_batch = refl.evaluate.restored.restore_batch

    def send(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return restore_batch(*args)

    command = ["evaluate", "--data", str(data), *base]
    monkeypatch.setattr(refl.evaluate.restored, "restore_batch", send)
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 128 + signal.SIGTERM
    (folder,) = (data / "evaluations").iterdir()
    assert len(list(folder.rglob("*.png"))) == 3
    restored: list[int] = []
    monkeypatch.setattr(refl.evaluate.restored, "restore_batch", spy(restore_batch, restored))
    assert main(command) == 0
    assert sum(restored) == 29
    assert list((data / "evaluations").iterdir()) == [folder]
    evaluate_until(plan_of(base, tmp_path), tmp_path / "whole", None)
    assert read_tables(folder) == read_tables(tmp_path / "whole")
    database = open_database(data)
    with database.read() as session:
        states = [run.state for run in session.scalars(select(Run).order_by(Run.id))]
    database.close()
    assert states == [RunState.stopped, RunState.finished]
    last = (data / "runs" / "2" / "progress.jsonl").read_text().splitlines()[-1]
    assert (json.loads(last)["done"], json.loads(last)["total"]) == (128, 128)


def test_an_ablation_gets_its_report_without_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("refl.tune.ablate.run_module", lambda command, _url: ran.append(command))
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "training.json").write_text('{"config": {}}')
    options = AblateOptions(preset="paper", restorer="tiny", reward="frm", out=tmp_path)
    evaluate_variants([tmp_path], options, Place())
    assert "--use-prompt" in ran[0]


def test_a_reward_is_the_one_that_score_gives(base: list[str], tmp_path: Path) -> None:
    """Of the 8-bit pixels of the PNG, at its caption."""
    plan = plan_of(base, tmp_path)
    method = load_method(plan.methods[0], plan.options)
    (restored,) = refl.evaluate.restored.restore_set(method, plan.sets[0], [0], tmp_path, batch_size=8)
    scorer = load_scorer(str(tmp_path / "rewards" / "captioned"), "cpu")
    measured = open_measured(tmp_path / "measured.jsonl")
    measure_reward(scorer, [restored], measured, batch_size=3)
    pixels = np.stack([np.array(PilImage.open(file)) for file in restored.files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = scorer.model(images, [face.caption for face in plan.sets[0].faces])
    found = [measured.known[scorer.version][key] for key in restored.keys]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("photo", ["lq", "hq"])
def test_a_seeing_reward_gets_what_was_restored(
    base: list[str], models: Path, tmp_path: Path, photo: Literal["lq", "hq"]
) -> None:
    folder = tmp_path / "rewards" / "seeing"
    save_model(make_micro_reward(tmp_path, unlocked_image_groups=2, text_mode="input", input_photo=photo), folder)
    base = [word for word in base if not word.startswith("--reward=")]
    plan = plan_of([*base, f"--reward={folder}"], tmp_path)
    method = load_method(plan.methods[0], plan.options)
    (restored,) = refl.evaluate.restored.restore_set(method, plan.sets[0], [0], tmp_path, batch_size=8)
    scorer = load_scorer(str(folder), "cpu")
    measured = open_measured(tmp_path / "measured.jsonl")
    measure_reward(scorer, [restored], measured, batch_size=3)
    faces = plan.sets[0]
    seen = faces.read_lq(range(8)) if photo == "lq" else faces.read_squares(range(8))
    images = torch.from_numpy(np.stack([np.array(PilImage.open(file)) for file in restored.files]))
    with torch.no_grad():
        expected = scorer.model(images.permute(0, 3, 1, 2).float() / 255, [None] * 8, (seen * 255).round() / 255)
    found = [measured.known[scorer.version][key] for key in restored.keys]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_reward_that_sees_the_ground_truth_is_refused_for_wild_faces_at_once(
    base: list[str], faces: list[Face], tmp_path: Path
) -> None:
    folder = tmp_path / "rewards" / "seeing"
    save_model(make_micro_reward(tmp_path, unlocked_image_groups=2, text_mode="input", input_photo="hq"), folder)
    words = [*base, f"--wild={faces[0].path.parent}", f"--reward=mine={folder}"]
    with pytest.raises(UserError, match=r"ground truth.*all 8 wild faces lack it\. mine needs it\. Leave --wild out"):
        plan_of(words, tmp_path)


def test_values_are_of_what_was_restored(base: list[str], tmp_path: Path, faces: list[Face]) -> None:
    """The same restored pixels of a face that was spoilt otherwise are rewarded anew."""
    (one,) = plan_of(base, tmp_path).sets
    assert one.degradation is not None
    other = replace(one, degradation=one.degradation.model_copy(update={"blur_kernel_px": 7}))
    files = [face.path for face in faces]
    assert set(compute_keys(files, one)).isdisjoint(compute_keys(files, other))


def test_only_faces_that_are_read_otherwise_now_are_restored_anew(tmp_path, monkeypatch):
    turned, faces = PilImage.Exif(), []
    turned[0x0112] = 6
    for name, options in (("plain", {}), ("turned", {"exif": turned})):
        PilImage.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.jpg", **options)
        faces.append(Face(name, tmp_path / f"{name}.jpg", None, name))
    before = [FaceSet("wild", one, 8, None) for one in ([faces[0]], faces)]
    records = [{**one.describe(), "settings": {}} for one in before]
    keys = compute_keys([face.path for face in faces], before[1])
    monkeypatch.setattr("refl.evaluate.faces.READING", 1_000)
    after = [replace(one) for one in before]
    wanted = [{**one.describe(), "settings": {}} for one in after]
    assert [find_changes(*pair) for pair in zip(records, wanted, strict=True)] == [[], ["faces"]]
    now = compute_keys([face.path for face in faces], after[1])
    assert [now[0] == keys[0], now[1] == keys[1]] == [True, False]
