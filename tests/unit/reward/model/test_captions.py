"""The prompt stands in for single missing captions, never silently, and never for all unless that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.errors import UserError
from db.images import add_image, probe_image
from db.models import MetricValue, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database
from reward.data import load_dataset
from reward.model.captions import check_captions, describe_long_captions
from reward.model.checkpoint import compute_version
from reward.model.config import ModelConfig
from reward.model.model import RewardModel
from reward.score.files_and_rows import ImageItem, read_done, score_candidates, score_files
from reward.score.scorer import Scorer
from reward.train.setup import choose_pairs
from tests.unit.reward.train.test_train import make_train_config


@pytest.fixture
def scorer(make_model: Callable[..., RewardModel]) -> Scorer:
    model = make_model(text_mode="caption", prompt="a face")
    return Scorer("tiny", None, model, compute_version(model))


def test_captions_beyond_what_clip_reads_are_counted(make_config: Callable[..., ModelConfig]) -> None:
    config = make_config(text_mode="caption", prompt="a face")
    just = " ".join(["face"] * 75)  # with begin and end 77 tokens
    assert describe_long_captions(config, ["a face", None, "", just, "a" * 400]) is None, "one long word is one token"
    said = describe_long_captions(config, [just + " face", just + " face", just + " smiles", "short"])
    assert said is not None
    assert said.startswith("2 captions are longer than the 77 tokens that the model reads")
    assert describe_long_captions(make_config(text_mode="fixed", prompt="a face"), [just + " face"]) is None
    assert describe_long_captions(config, ["one two three"], 4) is not None


def test_scoring_says_how_many_captions_are_cut(
    tmp_path: Path, make_photo: Callable[..., Path], scorer: Scorer
) -> None:
    items = [ImageItem(make_photo(tmp_path / "0.png", 0), "a face " * 80), ImageItem(tmp_path / "0.png", None)]
    note = score_files(scorer, items, tmp_path / "rewards.jsonl", 2).note
    assert note is not None
    assert "1 of 2 images have no caption" in note
    assert "1 captions are longer than the 77 tokens" in note


def test_the_rule(make_config: Callable[..., ModelConfig]) -> None:
    caption = make_config(text_mode="caption", prompt="a face")
    assert check_captions(caption, 0, 3, "images", instead="") is None
    note = "2 of 3 images have no caption; the prompt 'a face' stands in."
    assert check_captions(caption, 2, 3, "images", instead="") == note
    assert check_captions(caption, 3, 3, "images", instead="", use_prompt=True) == note.replace("2 of", "3 of")
    with pytest.raises(UserError, match=r"None of the 3 images has a caption, but text_mode is caption\. Buy some\."):
        check_captions(caption, 3, 3, "images", instead="Buy some.")
    for mode in ("fixed", "learned"):
        assert check_captions(make_config(text_mode=mode), 3, 3, "images", instead="") is None


def test_training_says_for_how_many_pairs_the_prompt_stands_in(
    make_dataset: Callable[..., Path], make_config: Callable[..., ModelConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """24 photos, two pairs of each: 32 to train on, of which one photo's two have a caption; none that is held out."""

    def describe(row: dict[str, Any]) -> None:
        row["caption"] = "a man" if row["source"] == "face0" else None

    pairs = load_dataset(make_dataset(change=describe))
    caplog.set_level(logging.INFO, "reward")
    train_pairs, held_out = choose_pairs(pairs, make_config(text_mode="caption", prompt="p"), make_train_config())
    assert (len(train_pairs), len(held_out)) == (32, 8)
    assert caplog.messages == [
        "30 of 32 pairs to train on have no caption; the prompt 'p' stands in.",
        "8 of 8 held-out pairs have no caption; the prompt 'p' stands in.",
    ]


def test_files_without_a_caption_are_scored_with_the_prompt(
    tmp_path: Path, make_photo: Callable[..., Path], scorer: Scorer
) -> None:
    photo = make_photo(tmp_path / "0.png", 0)
    other = make_photo(tmp_path / "1.png", 1)
    items = [ImageItem(photo, None), ImageItem(photo, "a face"), ImageItem(other, "an old man")]
    report = score_files(scorer, items, tmp_path / "out.jsonl", 4)
    assert report.note == "1 of 3 images have no caption; the prompt 'a face' stands in."
    values = [line.split('"value": ')[1] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert values[0] == values[1] != values[2]
    with pytest.raises(UserError, match=r"None of the 1 images has a caption.*--use-prompt"):
        score_files(scorer, items[:1], tmp_path / "none.jsonl", 4)
    assert not (tmp_path / "none.jsonl").exists()
    assert score_files(scorer, items[:1], tmp_path / "none.jsonl", 4, use_prompt=True).scored == 1
    assert len(read_done(tmp_path / "none.jsonl", scorer.version)) == 1


def test_what_is_left_to_score_may_lack_captions_where_the_rest_had_some(
    tmp_path: Path, database: Database, data: Path, make_photo: Callable[..., Path], scorer: Scorer
) -> None:
    with database.write() as session:
        for number in range(2):
            file = make_photo(tmp_path / f"{number}.png", number)
            image = add_image(session, data, probe_image(file), file)
            source = add_source(session, f"face{number}", Split.train, caption="a man" if number else None)
            add_candidate(session, source, add_method(session, "m"), image)
            if number:
                values = {
                    "metric": scorer.metric,
                    "version": scorer.version,
                    "reference": "",
                    "value": 0,
                    "raw_value": 0,
                }
                session.add(MetricValue(image_id=image.id, **values))
    report = score_candidates(scorer, database, data, 4)
    assert (report.scored, report.note) == (1, "1 of 1 images have no caption; the prompt 'a face' stands in.")


def test_candidates_without_one_caption_are_refused(
    tmp_path: Path, database: Database, data: Path, make_photo: Callable[..., Path], scorer: Scorer
) -> None:
    file = make_photo(tmp_path / "0.png", 0)
    with database.write() as session:
        image = add_image(session, data, probe_image(file), file)
        add_candidate(session, add_source(session, "face", Split.train), add_method(session, "m"), image)
    with pytest.raises(UserError, match="None of the 1 images has a caption"):
        score_candidates(scorer, database, data, 4)
    assert score_candidates(scorer, database, data, 4, use_prompt=True).scored == 1
