"""Constructed pairs join a copy of a dataset: nothing old changes, nothing of them counts as a person's label."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from db.errors import UserError
from reward.__main__ import main as reward
from reward.construct import construct
from reward.construct.construct import allot
from reward.data import check_pairs, load_dataset
from reward.evaluate.people import choose_labels, read_judgments
from reward.model.card import describe_data
from reward.train.config import RewardTrainConfig
from reward.train.setup import choose_pairs, describe

KINDS = ["other_person", "input_pasted", "colour_shift", "blurred_eye", "comb_teeth"]


@pytest.fixture
def dataset(make_dataset: Callable[..., Path]) -> Path:
    """Twelve people, each with an input photo; three methods."""
    folder = make_dataset(12)
    return add_inputs(folder)


def add_inputs(folder: Path) -> Path:
    rows = read_rows(folder)
    for row in rows:
        noise = np.random.default_rng(int(row["source"][4:])).integers(0, 255, (8, 8, 3))
        file = folder / "lq.png"
        PilImage.fromarray(noise.astype(np.uint8)).save(file)
        row["sha256_lq"] = hashlib.sha256(file.read_bytes()).hexdigest()
        row["lq"] = f"images/{row['sha256_lq']}.png"
        file.rename(folder / row["lq"])
    write_rows(folder, rows)
    (folder / "judgments.jsonl").write_text("")
    return folder


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8-sig").splitlines()]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(dataset: Path, out: Path, *words: str) -> int:
    return reward(["construct", str(dataset), "--out", str(out), *words, "--data", str(dataset.parent / "data")])


def test_the_copy_has_all_that_was_there_and_pairs_of_every_kind(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    assert run(dataset, out, "--share", "0.5") == 0
    assert "90 constructed pairs added to 24 labels" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before
    for path, content in before.items():
        copied = (out / path.relative_to(dataset)).read_bytes()
        assert copied.startswith(content) if path.name == "pairs.jsonl" else copied == content
    check_pairs(load_dataset(out))
    rows = read_rows(out)
    made, old = rows[24:], {row["source"]: row for row in rows[:24]}
    counts = Counter((row["made_by"], row["split"]) for row in made)
    assert counts == {(kind, split): n for kind in KINDS for split, n in (("train", 12), ("val", 3), ("test", 3))}
    honest = {row[f"sha256_{side}"]: row["group"] for row in rows[:24] for side in "ab"}
    for row in made:
        right, wrong = ("a", "b") if row["p_a"] == 0.98 else ("b", "a")
        assert row["p_a"] in (0.98, 0.02)
        assert (row["origin"], row["weight"], row["agreement"], row["judgments"]) == ("constructed", 1.0, None, [])
        assert honest[row[f"sha256_{right}"]] == row["group"]
        assert row[f"method_{wrong}"] == f"{row[f'method_{right}']}+{row['made_by']}"
        for name in ("split", "group", "caption", "lq", "sha256_lq"):
            assert row[name] == old[row["source"]][name]
        if row["made_by"] == "other_person":
            other = honest[row[f"sha256_{wrong}"]]
            assert other != row["group"]
            assert old[other]["split"] == row["split"], "no split sees another's faces"
        else:
            assert row[f"sha256_{wrong}"] not in honest
    assert 25 < sum(row["p_a"] > 0.5 for row in made) < 65
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums["pairs.jsonl"] == hashlib.sha256((out / "pairs.jsonl").read_bytes()).hexdigest()
    assert "90 pairs that nobody judged" in (out / "README.md").read_text()


def test_the_same_seed_gives_the_same_bytes_and_more_takes_the_same(dataset: Path, tmp_path: Path) -> None:
    for name, *words in (("first", "0"), ("again", "0"), ("other", "1")):
        assert run(dataset, tmp_path / name, "--per-kind", "6", "--seed", *words) == 0
    first, again, other = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in ("first", "again", "other"))
    assert first == again
    assert first != other
    assert run(dataset, tmp_path / "more", "--per-kind", "24") == 0
    keys = [{row["pair"] for row in read_rows(tmp_path / name)} for name in ("first", "more")]
    assert keys[0] < keys[1]
    assert run(dataset, tmp_path / "most", "--per-kind", "1000", "--kinds", "colour_shift") == 0
    assert len(read_rows(tmp_path / "most")) == 24 + 36, "as many as there can be"


def test_nothing_constructed_counts_as_a_persons_label(dataset: Path, tmp_path: Path) -> None:
    before = load_dataset(dataset)
    assert run(dataset, tmp_path / "out", "--share", "1") == 0
    pairs = load_dataset(tmp_path / "out")
    config = RewardTrainConfig(max_steps=1, warmup_steps=0)
    from reward.model.config import load_model_config

    model = load_model_config("tiny")
    train, held_out = choose_pairs(pairs, model, config)
    assert {row.pair for row in held_out.rows} == {row.pair for row in before.select("val").rows}
    made = sum(row.origin == "constructed" for row in train.rows)
    assert made == 5 * 24
    without, held_again = choose_pairs(pairs, model, config.model_copy(update={"constructed_weight": 0.0}))
    assert [row.pair for row in without.rows] == [row.pair for row in before.select("train").rows]
    assert without.fingerprint == before.select("train").fingerprint
    assert held_again.fingerprint == before.select("val").fingerprint
    said = "\n".join(describe_data(describe(train, model, config) | {"step": 1}))
    assert "16 labels by people, 0 by the SVM, 120 constructed pairs, which nobody judged" in said
    labels, *_ = choose_labels(pairs, "test", read_judgments(pairs.path), include_simulated=True)
    assert {row.pair for row in labels.pairs} == {row.pair for row in before.select("test").rows}


def test_files_of_windows_are_read(dataset: Path, tmp_path: Path) -> None:
    file = dataset / "pairs.jsonl"
    windows = b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n").rstrip(b"\r\n")
    plain = load_dataset(dataset)
    file.write_bytes(windows)
    assert load_dataset(dataset).fingerprint == plain.fingerprint
    assert run(dataset, tmp_path / "out", "--kinds", "other_person", "--per-kind", "4") == 0
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes().startswith(windows + b"\n")
    assert len(load_dataset(tmp_path / "out")) == 28


def test_a_write_that_ends_early_leaves_nothing(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        assert any(tmp_path.glob(".out.partial-*/images/*")), "in the middle of writing"
        raise KeyboardInterrupt

    monkeypatch.setattr(construct, "write_card", stop)
    words = (dataset, tmp_path / "out", ["colour_shift"], 1.0, None, 0, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        construct.construct_dataset(*words)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert load_dataset(dataset)


def test_what_cannot_be_meant_is_one_line(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_dataset(6, name="plain")
    alone = make_dataset(6, name="alone", change=lambda row: row.update(group=row["split"]))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    (tmp_path / "hpd").mkdir()
    (tmp_path / "hpd" / "test.json").write_text("[]")
    for folder, out, words, said in (
        (plain, "new", ["--kinds", "input_pasted"], "input_pasted needs the photos that were restored (lq)"),
        (alone, "new", ["--kinds", "other_person"], "needs images of two persons by one method in one split"),
        (plain, "there", [], "is there already; name a new folder"),
        (plain, "new", ["--share", "0.1", "--per-kind", "3"], "give one of them"),
        (plain, "plain/new", ["--kinds", "colour_shift"], "lies inside the dataset"),
        (tmp_path / "hpd", "new", [], "has no pairs.jsonl"),
    ):
        assert run(folder, tmp_path / out, *words) == 2
        assert said in capsys.readouterr().err
    assert run(plain, tmp_path / "once", "--kinds", "colour_shift") == 0
    assert run(tmp_path / "once", tmp_path / "new", "--kinds", "colour_shift") == 2
    assert "has 4 constructed pairs already" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_whole_photos_are_no_aligned_faces(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(6)
    rows = read_rows(folder)
    for row in rows:
        for side in "ab":
            file = folder / "wide.png"
            image = PilImage.open(folder / row[f"image_{side}"])
            image.resize((48, 32)).save(file)
            row[f"sha256_{side}"] = hashlib.sha256(file.read_bytes()).hexdigest()
            row[f"image_{side}"] = f"images/{row[f'sha256_{side}']}.png"
            file.rename(folder / row[f"image_{side}"])
    write_rows(folder, rows)
    words = (folder, tmp_path / "out", ["blurred_eye"], 1.0, None, 0, lambda *_: None)
    with pytest.raises(UserError, match="blurred_eye needs aligned faces, which are square, and none of 18 images"):
        construct.construct_dataset(*words)
    assert not (tmp_path / "out").exists()
    assert run(folder, tmp_path / "out", "--kinds", "colour_shift") == 0


def test_a_number_is_divided_in_proportion() -> None:
    assert allot(10, {"train": 80, "val": 10, "test": 10}) == {"train": 8, "val": 1, "test": 1}
    assert allot(4, {"train": 7, "val": 2, "test": 1}) == {"train": 3, "val": 1, "test": 0}
    assert allot(3, {"train": 3}) == {"train": 3}
