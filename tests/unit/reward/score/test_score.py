"""Scoring files and candidates: what is wanted, what is done already, what a kill leaves. And the card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from sqlalchemy import select

from db.candidates import find_missing
from db.errors import UserError
from db.images import add_image, probe_image
from db.models import MetricValue, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database
from licences.terms import Licensed
from reward.model.card import describe_licence, write_card
from reward.model.checkpoint import compute_version, save_model
from reward.model.config import ModelConfig
from reward.model.model import RewardModel
from reward.score.files_and_rows import ImageItem, find_images, read_done, score_candidates, score_files
from reward.score.scorer import Scorer, load_scorer, score_apart, score_batch
from runs.licences import write_recorded
from tests.colour_files import encode, gama, tagged


@pytest.fixture
def scorer(make_model: Callable[..., RewardModel]) -> Scorer:
    model = make_model(text_mode="caption")
    return Scorer("tiny", None, model, compute_version(model))


def test_images_of_folders_and_files(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    one, two = make_photo(tmp_path / "in" / "deep" / "one.png", 1), make_photo(tmp_path / "in" / "two.JPG", 2)
    two.with_suffix(".txt").write_text(" a face \n")
    (tmp_path / "in" / "notes.md").write_text("no image")
    (tmp_path / "empty").mkdir()
    assert find_images([tmp_path / "in", one]) == [ImageItem(one, None), ImageItem(two, "a face")]
    with pytest.raises(UserError, match="absent is not there"):
        find_images([tmp_path / "absent"])
    with pytest.raises(UserError, match="No image in"):
        find_images([tmp_path / "empty"])


def test_a_photo_has_one_reward_as_a_file_and_as_a_candidate(tmp_path: Path, scorer: Scorer) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    exif = PilImage.Exif()
    exif[0x0112] = 6
    kinds = {"turned": encode(pixels, exif=exif), "linear": tagged(encode(pixels), gama(1.0))}
    kinds["grey16"] = encode(pixels[..., 0].astype(np.uint16) * 200)
    kinds["glass"] = encode(PilImage.fromarray(np.concatenate([pixels, pixels[..., :1]], axis=2)))
    for name, content in kinds.items():
        (tmp_path / f"{name}.png").write_bytes(content)
        stored = probe_image(tmp_path / f"{name}.png").converted
        assert stored is not None
        (tmp_path / f"{name}-stored.png").write_bytes(stored)
        items = [ImageItem(tmp_path / f"{name}{end}.png", "a face") for end in ("", "-stored")]
        score_files(scorer, items, tmp_path / f"{name}.jsonl", 2)
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert lines[0]["value"] == pytest.approx(lines[1]["value"], abs=1e-6)
        plain = np.asarray(PilImage.open(tmp_path / f"{name}-stored.png").convert("RGB"))
        assert lines[0]["value"] == pytest.approx(score_batch(scorer, [plain], ["a face"])[0], abs=1e-5)


def test_rewards_of_an_older_way_of_reading_are_computed_anew(
    tmp_path: Path, make_photo: Callable[..., Path], scorer: Scorer
) -> None:
    items, out = [ImageItem(make_photo(tmp_path / "a.png", 0), "a face")], tmp_path / "rewards.jsonl"
    score_files(scorer, items, out, 2)
    line = json.loads(out.read_text())
    del line["reading"]  # as earlier versions wrote it
    out.write_text(json.dumps(line) + "\n")
    assert score_files(scorer, items, out, 2).scored == 1
    assert score_files(scorer, items, out, 2).already == 1


def test_a_kill_loses_one_batch(
    tmp_path: Path, make_photo: Callable[..., Path], scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [ImageItem(make_photo(tmp_path / f"{number}.png", number), "a face") for number in range(6)]
    out, calls = tmp_path / "rewards.jsonl", 0

    def killed(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return score_apart(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("reward.score.files_and_rows.score_apart", killed)
        with pytest.raises(KeyboardInterrupt):
            score_files(scorer, items, out, 2)
    assert len(read_done(out, scorer.version)) == 4
    report = score_files(scorer, items, out, 2)
    assert (report.scored, report.already) == (2, 4)
    assert len(read_done(out, scorer.version)) == 6
    assert read_done(out, "reward of another version") == set()
    # another caption and a changed image are lines of their own
    make_photo(tmp_path / "0.png", 99)
    report = score_files(scorer, [items[0], ImageItem(items[1].path, "another")], out, 2)
    assert (report.scored, report.already) == (2, 0)
    with pytest.raises(UserError, match="None of the 1 images has a caption"):
        score_files(scorer, [ImageItem(items[0].path, None)], out, 2)


def test_candidates_get_what_files_get(
    tmp_path: Path, database: Database, data: Path, make_photo: Callable[..., Path], scorer: Scorer
) -> None:
    files = [make_photo(tmp_path / f"{number}.png", number) for number in range(5)]
    with database.write() as session:
        images = [add_image(session, data, probe_image(file), file) for file in files]
        for number in (0, 1):
            source = add_source(session, f"face{number}", Split.train, caption=f"face number {number}", lq=images[4])
            for method in ("m1", "m2"):
                add_candidate(session, source, add_method(session, method), images[2 * number + (method == "m2")])
        source = add_source(session, "again", Split.train, caption="another caption")
        add_candidate(session, source, add_method(session, "m1"), images[0])
    missing = list(find_missing(database, data, scorer.metric, scorer.version))
    assert [image.caption for image in missing] == ["face number 0"] * 2 + ["face number 1"] * 2  # no lq, the first's
    report = score_candidates(scorer, database, data, 3)
    assert report.scored == 4
    out = tmp_path / "rewards.jsonl"
    score_files(scorer, [ImageItem(image.path, image.caption) for image in missing], out, 3)
    expected = [json.loads(line)["value"] for line in out.read_text().splitlines()]
    with database.read() as session:
        rows = session.scalars(select(MetricValue).order_by(MetricValue.image_id)).all()
        assert [row.value for row in rows] == pytest.approx(expected, abs=1e-6)
        assert {(row.metric, row.version, row.reference) for row in rows} == {("reward-tiny", scorer.version, "")}
    again = score_candidates(scorer, database, data, 3)
    assert (again.scored, again.already) == (0, 4)
    assert len(list(find_missing(database, data, scorer.metric, "reward of another version"))) == 4


def test_without_candidates_it_says_how_to_get_some(database: Database, data: Path, scorer: Scorer) -> None:
    with pytest.raises(UserError, match=r"has no restored image to score.*python -m annotate import"):
        score_candidates(scorer, database, data, 3)


def test_of_a_trainings_folder_the_best_is_taken(tmp_path: Path, make_model: Callable[..., RewardModel]) -> None:
    best, last = make_model(), make_model()
    last.clip.visual.proj.data.zero_()
    save_model(best, tmp_path / "mine" / "best")
    save_model(last, tmp_path / "mine" / "last")
    for asked, model in (("mine", best), ("mine/best", best), ("mine/last", last)):
        scorer = load_scorer(str(tmp_path / asked), "cpu")
        assert (scorer.name, scorer.version) == ("mine", compute_version(model))
        assert scorer.path == tmp_path / ("mine/last" if model is last else "mine/best")


def test_a_card_says_whose_labels_and_which_licence(tmp_path: Path, make_model: Callable[..., RewardModel]) -> None:
    folder = tmp_path / "mine" / "best"
    save_model(make_model(weights=""), folder)
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "# Reward model mine" in card
    assert "Not known: there is no training.json." in card
    assert "Not measured." in card
    assert "- none recorded" in card
    write_recorded(folder.parent, [Licensed("data", "faces", "CC-BY-NC-4.0")])
    training = {
        "train": {"max_steps": 100, "batch_size": 8},
        "dataset": "/data/set",
        "dataset_sha256": "f" * 64,
        "labels": {
            "train, human, majority": 90,
            "train, svm, svm-7 with simulated annotators": 30,
            "val, human, majority": 10,
        },
        "code_version": "0.1.0",
        "step": 60,
        "validation": {"accuracy": 0.7, "n": 10, "loss": 0.5},
    }
    (folder / "training.json").write_text(json.dumps(training))
    interval = {"value": 0.66, "low": None, "high": None, "n": 50}
    evaluation = {"dataset": "set", "split": "test", "simulated": True, "accuracy": interval, "version": "reward 1"}
    write_card(folder, evaluation | {"ceiling": interval | {"value": None}, "calibration_error": 0.1, "spearman": None})
    write_card(folder)  # keeps the evaluation
    card = (folder / "README.md").read_text()
    for words in (
        "- faces (data): CC-BY-NC-4.0. **non-commercial**",
        "split train: 90 labels by people, 30 by the SVM",
        "split val: 10 labels by people, 0 by the SVM",
        "30 of these labels were made with answers of SIMULATED",
        "Validation: accuracy 0.700 on 10 labels",
        "accuracy 0.660 on 50 labels; human ceiling not known",
        "says nothing about real people",
        "- batch_size: 8",
        "started from random numbers",
    ):
        assert words in card, words
    assert load_scorer(str(folder), "cpu").name == "mine"
    with pytest.raises(UserError):
        write_card(tmp_path)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("hps-v2.1", "licence: Apache-2.0"),
        ("laion2b_s32b_b79k", "licence: MIT"),
        ("/somewhere/else.pt", "licence not known here"),
        ("laion_and_mine.pt", "licence not known here"),
    ],
)
def test_licence_of_the_starting_weights(make_config: Callable[..., ModelConfig], weights: str, words: str) -> None:
    assert words in describe_licence(make_config(weights=weights))
