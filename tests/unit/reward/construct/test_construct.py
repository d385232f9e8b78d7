"""Constructed pairs: each kind spoils what it says, they are marked as made, and nobody counts them as people's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset.read import read_dataset
from db.errors import UserError
from reward.__main__ import main
from reward.construct import construct as constructing
from reward.construct.construct import RIGHT, construct
from reward.construct.kinds import EYES, MOUTH, SPOILERS
from reward.construct.options import KINDS
from reward.data import check_pairs, load_dataset
from reward.evaluate.people import choose_labels, read_judgments
from reward.model.card import format_card
from reward.model.config import ModelConfig
from reward.train.config import RewardTrainConfig
from reward.train.setup import choose_pairs, describe


def draw_face(size_px: int) -> Any:
    """Smooth skin with some colour; not a face, but every kind changes it."""
    rng = np.random.default_rng(0)
    small = rng.integers(90, 200, (4, 4, 3)).astype(np.float32)
    import cv2

    return cv2.resize(small, (size_px, size_px), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def add_lq(row: dict[str, Any]) -> None:
    row |= {"lq": row["image_a"], "sha256_lq": row["sha256_a"]}


def run(dataset: Path, out: Path, **changes: Any) -> dict[str, int]:
    values = {"kinds": KINDS, "per_photo": 1, "seed": 0, "progress": lambda _done, _total: None}
    return construct(dataset, out, **{**values, **changes})


@pytest.mark.parametrize("size_px", [64, 512, 1024])
@pytest.mark.parametrize(("kind", "places"), [("blurred_eye", EYES), ("comb_teeth", MOUTH)])
def test_only_that_place_is_spoilt(kind: Any, places: Any, size_px: int) -> None:
    image = draw_face(size_px)
    image[::2] //= 2  # something to blur
    spoilt = SPOILERS[kind](image, None, np.random.default_rng(1))
    changed = (spoilt != image).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert changed.mean() < 0.05
    xs, ys = [x for x, _ in places], [y for _, y in places]
    assert min(xs) - 0.1 < columns.mean() / size_px < max(xs) + 0.1
    assert min(ys) - 0.07 < rows.min() / size_px
    assert rows.max() / size_px < max(ys) + 0.07


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "other_person"])
def test_each_draw_is_another_and_the_same_seed_the_same(kind: Any) -> None:
    image, lq = draw_face(64), draw_face(16)
    one, again, other = (SPOILERS[kind](image, lq, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.shape == image.shape
    assert one.dtype == np.uint8
    assert (one == again).all()
    assert (one != image).any()
    assert kind == "input_pasted" or (one != other).any()


def test_the_old_dataset_is_in_the_new_one_and_stays_as_it_was(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset, out = make_dataset(change=add_lq), tmp_path / "out"
    (dataset / "README.md").write_text("# Faces\n")
    (dataset / "judgments.jsonl").write_text("")
    (dataset / "SHA256SUMS").write_text("")
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in dataset.rglob("*") if path.is_file()}
    counts = run(dataset, out)
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in before} == before
    old, new = ((folder / "pairs.jsonl").read_text().splitlines() for folder in (dataset, out))
    assert new[: len(old)] == old
    assert counts == dict.fromkeys(KINDS, 24)
    assert not (out / "SHA256SUMS").exists()
    assert "judged by nobody" in (out / "README.md").read_text()
    assert "input_pasted: 24" in (out / "README.md").read_text()
    pairs = load_dataset(out)
    check_pairs(pairs)  # every new image is there, and what its name says
    made = [row for row in pairs.rows if row.origin == "constructed"]
    assert Counter(row.made_by for row in made) == counts
    sides = Counter(row.p_a for row in made)
    assert set(sides) == {RIGHT, 1 - RIGHT}
    assert min(sides.values()) > 30
    images = next(iter((dataset / "images").iterdir())).name
    assert (out / "images" / images).stat().st_ino == (dataset / "images" / images).stat().st_ino


def test_the_same_seed_gives_the_same_rows(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = make_dataset(change=add_lq)
    texts = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(dataset, tmp_path / name, seed=seed)
        texts.append((tmp_path / name / "pairs.jsonl").read_text())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_another_person_is_of_the_same_method_and_split(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = make_dataset(change=add_lq)
    owner = {}
    for row in load_dataset(dataset).rows:
        for side in ("a", "b"):
            owner[getattr(row, f"sha256_{side}")] = (row.group, row.split, getattr(row, f"method_{side}"))
    run(dataset, tmp_path / "out", kinds=["other_person"], per_photo=3)
    made = [row for row in load_dataset(tmp_path / "out").rows if row.origin == "constructed"]
    assert len(made) == 72
    for row in made:
        right, wrong = (row.sha256_a, row.sha256_b) if row.p_a > 0.5 else (row.sha256_b, row.sha256_a)
        assert owner[right][0] == row.group
        assert owner[wrong][0] != row.group
        assert owner[wrong][1:] == owner[right][1:]


def test_they_train_but_are_nobodys_labels(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = make_dataset(change=add_lq)
    (dataset / "judgments.jsonl").write_text("")
    run(dataset, tmp_path / "out", kinds=["colour_shift"])
    pairs = load_dataset(tmp_path / "out")
    model = ModelConfig(architecture="tiny", unlocked_image_groups=1, unlocked_text_blocks=0, text_mode="learned")
    config = RewardTrainConfig(max_steps=1000)
    trained, held_out = choose_pairs(pairs, model, config)
    assert Counter(row.origin for row in trained.rows) == {"human": 32, "constructed": 16}
    assert {row.origin for row in held_out.rows} == {"human"}
    left, _ = choose_pairs(pairs, model, config.model_copy(update={"constructed_weight": 0.0}))
    assert {row.origin for row in left.rows} == {"human"}
    assert left.fingerprint == choose_pairs(load_dataset(dataset), model, config)[0].fingerprint
    labels, _, _ = choose_labels(pairs, "test", read_judgments(tmp_path / "out"), include_simulated=True)
    assert {row.origin for row in labels.pairs} == {"human"}
    training = {**describe(trained, model, config), "step": 1}
    card = format_card(tmp_path / "model", model, training, None)
    assert "32 labels by people, 0 by the SVM, 16 of pairs made by a program, not judged" in card


def test_a_project_does_not_take_them_back(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    run(make_dataset(change=add_lq), tmp_path / "out", kinds=["colour_shift"])
    lines = (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "out" / "pairs.jsonl").write_text(lines[-1] + "\n")
    (tmp_path / "out" / "judgments.jsonl").write_text("")
    with pytest.raises(UserError, match="line 1: "):
        read_dataset(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "kinds", "said"),
    [
        (
            None,
            KINDS,
            r"input_pasted needs .* 24 of 24 photos lack it, 'face0' first. Leave it out: --kinds other_person",
        ),
        (lambda row: row.update(group="one", split="train"), ["other_person"], "two people or more"),
    ],
)
def test_what_a_kind_needs_is_one_line(
    make_dataset: Callable[..., Path], tmp_path: Path, change: Any, kinds: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run(make_dataset(change=change), tmp_path / "out", kinds=kinds)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_into(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        run(make_dataset(change=add_lq), tmp_path / "out")


def test_a_failure_leaves_nothing_behind(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(change=add_lq)
    there = {path.name for path in tmp_path.iterdir()}

    def fail(*_args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(constructing, "write_image", fail)
    with pytest.raises(OSError, match="Input/output error"):
        run(dataset, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == there


def test_disks_without_links_get_copies(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    dataset = make_dataset(change=add_lq)
    run(dataset, tmp_path / "out", kinds=["blurred_eye"])
    shutil.rmtree(dataset)
    check_pairs(load_dataset(tmp_path / "out"))


def test_the_command_names_the_new_dataset(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset(change=add_lq)
    text = (dataset / "pairs.jsonl").read_text()
    (dataset / "pairs.jsonl").write_bytes(text.replace("\n", "\r\n").encode())  # as Windows writes it
    words = ["construct", str(dataset), "--kinds", "other_person", "colour_shift", "--per-photo", "2"]
    assert main([*words, "--data", str(tmp_path / "data")]) == 0
    assert "colour_shift  48 pairs" in capsys.readouterr().out
    written = (tmp_path / "dataset-constructed" / "pairs.jsonl").read_bytes()
    assert written.startswith((dataset / "pairs.jsonl").read_bytes().rstrip())
    rows = [json.loads(line) for line in written.splitlines()]
    assert Counter(row["origin"] for row in rows) == {"human": 48, "constructed": 96}
