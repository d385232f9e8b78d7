"""`reward score` and `reward evaluate` find what is amiss before they read a reward model's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import reward.model.weights
import reward.score.scorer
from reward.__main__ import main
from reward.model.checkpoint import save_model
from reward.model.model import RewardModel

Run = Callable[..., str]


@pytest.fixture
def captioned(make_model: Callable[..., RewardModel], tmp_path: Path) -> Path:
    """A checkpoint of a model that wants captions."""
    save_model(make_model(text_mode="caption"), tmp_path / "captioned")
    return tmp_path / "captioned"


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must fail before any weights are read; gives what it says."""
    monkeypatch.setattr(reward.model.weights, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(reward.score.scorer, "load_reward", lambda *_, **__: pytest.fail("weights were read"))

    def run(*words: object) -> str:
        assert main([*map(str, words), "--data", str(tmp_path / "data")]) == 2
        return capsys.readouterr().err

    return run


def test_scoring_says_what_is_amiss_at_once(
    fail: Run, captioned: Path, make_photo: Callable[..., Path], tmp_path: Path
) -> None:
    photo = make_photo(tmp_path / "photos" / "one.png", 1)
    score = ("score", photo, "--device", "cpu", "--scorer")
    assert "None of the 1 images has a caption" in fail(*score, captioned)
    assert "is not a file of rewards" in fail(*score, captioned, "--use-prompt", "--out", photo)
    assert "absent is not there" in fail("score", tmp_path / "absent", "--device", "cpu", "--scorer", captioned)
    said = fail(*score, "face-reward-model", "--weights", tmp_path / "weights", "--use-prompt")
    assert f"put it into {tmp_path / 'weights'}" in said
    (tmp_path / "data").mkdir()
    assert "has no restored image to score" in fail("score", "--device", "cpu", "--scorer", captioned)


def test_evaluating_says_what_is_amiss_at_once(
    fail: Run, captioned: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = make_dataset(sources=12, change=lambda row: row | {"caption": None})
    evaluate = ("evaluate", dataset, "--device", "cpu", "--no-metrics", "--split", "train", "--scorer")
    assert "pairs has a caption" in fail(*evaluate, captioned)
    assert "Two scorers are called captioned" in fail(*evaluate, captioned, "--scorer", captioned, "--use-prompt")
    missing = fail(*evaluate, captioned, "--scorer", "hps-v2", "--use-prompt", "--weights", tmp_path / "w")
    assert (
        f"HPS_v2_compressed.pt (Apache-2.0) from https://huggingface.co/xswu/HPSv2, put it into {tmp_path / 'w'}"
        in missing
    )


def test_a_seeing_reward_without_photos_is_one_line(
    fail: Run,
    captioned: Path,
    make_model: Callable[..., RewardModel],
    make_photo: Callable[..., Path],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
) -> None:
    seeing = tmp_path / "seeing"
    save_model(make_model(text_mode="input"), seeing)
    photo = make_photo(tmp_path / "photos" / "one.png", 1)
    score = ("score", photo, "--device", "cpu", "--scorer")
    said = fail(*score, seeing)
    assert "sees the photo that was restored (lq)" in said
    assert "all 1 images lack it. seeing needs it. Name the folder of the photos" in said
    make_photo(tmp_path / "lq" / "two.png", 1)
    assert "one.png" in fail(*score, seeing, "--inputs", tmp_path / "lq")
    said = fail(*score, captioned, "--use-prompt", "--inputs", tmp_path / "lq")
    assert "--inputs is for a reward that sees the restored photo; captioned sees the image alone" in said
    assert "--inputs is for files" in fail("score", "--device", "cpu", "--scorer", seeing, "--inputs", tmp_path / "lq")
    evaluate = ("evaluate", make_dataset(sources=12), "--device", "cpu", "--no-metrics", "--split", "train", "--scorer")
    assert "pairs lack it. seeing needs it. Import the photos with lq and export" in fail(*evaluate, seeing)
