"""Scoring files and candidates: what is wanted, what is done already, what a kill leaves. And the card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from db.images import add_image, probe_image
from db.models import MetricValue, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database
from reward.card import describe_licence, write_card
from reward.checkpoint import save_model
from reward.config import ModelConfig, load_model_config
from reward.model import RewardModel
from reward.score import ImageItem, find_images, read_done, score_candidates, score_files
from reward.scoring import Scorer, compute_version, load_scorer, read_scorer_config, score_batch
from runs import UserError
from runs.candidates import find_missing


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
        return score_batch(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("reward.score.score_batch", killed)
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


def test_a_config_is_read_without_weights(tmp_path: Path, make_model: Callable[..., RewardModel]) -> None:
    model = make_model(text_mode="caption", prompt="a nose")
    save_model(model, tmp_path / "mine" / "best")
    (tmp_path / "mine" / "best" / "model.safetensors").unlink()
    for asked in ("mine", "mine/best"):
        assert read_scorer_config(str(tmp_path / asked)) == model.config
    assert read_scorer_config("hps-v2.1").architecture == "ViT-H-14"
    assert read_scorer_config("other=tiny") == load_model_config("tiny")
    with pytest.raises(UserError, match="There is no scorer 'nowhere'"):
        read_scorer_config("nowhere")
    (tmp_path / "mine" / "best" / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_scorer_config(str(tmp_path / "mine"))


def test_a_card_says_whose_labels_and_which_licence(tmp_path: Path, make_model: Callable[..., RewardModel]) -> None:
    folder = tmp_path / "mine" / "best"
    save_model(make_model(weights=""), folder)
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "# Reward model mine" in card
    assert "Not known: there is no training.json." in card
    assert "Not measured." in card
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
        "split train: 90 labels by people, 30 by the SVM",
        "split val: 10 labels by people, 0 by the SVM",
        "30 of these labels were made with answers of SIMULATED",
        "Validation: accuracy 0.700 on 10 labels",
        "accuracy 0.660 on 50 labels; human ceiling not known",
        "these are no figures about people",
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
