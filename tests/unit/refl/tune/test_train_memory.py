"""`refl train --memory` says what a training needs; a card that is too small is told which preset fits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch  # noqa: F401  # so that the folder's tests are left out together where it is not installed

import refl.tune.command
from refl.__main__ import main
from runs.options import read_words
from training.accounting import Phase

WORDS = ["train", "--preset", "tiny-refl", "--restorer", "tiny", "--reward", "tiny"]


def test_the_table_is_printed_and_nothing_is_started(
    tmp_path: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--batch-size=2", "--gradient-norms", "--monitor-faces=2", "--memory", f"--data={tmp_path}"]
    assert main([*WORDS, *flags]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["GiB", "trajectory", "step", "reward", "update", "check"]
    assert rows[-1].startswith("in all")
    assert list(tmp_path.iterdir()) == []  # type: ignore[attr-defined]


def test_a_small_card_is_told_which_preset_fits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needs, counted = {"no": 34, "bf16": 18}, []

    def count(_options: object, config: refl.tune.config.ReflConfig, _weights: Path) -> dict[str, Phase]:
        size = 13 if config.train.trainable == "lora" else needs[config.train.mixed_precision]
        counted.append(config.method)
        return {"step": Phase(size * 2**30, {"activations": size * 2**30})}

    monkeypatch.setattr(refl.tune.command, "count_memory", count)
    options = read_words(refl.tune.command.TRAIN, ["--preset=paper", "--restorer=diffbir-v1", "--reward=frm"])
    weights = Path("weights")
    for card_gib, said in ((80, ""), (23.6, "the preset paper-24gb fits"), (15.8, "the preset lora-16gb fits")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            refl.tune.command.say_memory(options, weights, card_gib)
        assert (said in caplog.text) if said else not caplog.text
    caplog.clear()
    refl.tune.command.say_memory(options, weights, 8)
    assert "lower image_size_px" in caplog.text
    counted.clear()
    for method, restorer, said in (
        ("gdpo", "diffbir-v1", "the preset gdpo-24gb fits"),
        ("gdpo", "osediff", "the preset gdpo-osediff-24gb fits"),
        ("grpo", "diffbir-v1", "the preset grpo-24gb fits"),
        ("dpo", "diffbir-v1", "the preset dpo-24gb fits"),
        ("dpo", "osediff", "lower image_size_px or micro_batch_size"),
    ):
        what = "--dataset=d" if method == "dpo" else "--reward=frm"
        flags = ["--algorithm", method, "--reward-every-steps=0", "--eta", "1", "1"]
        options = read_words(refl.tune.command.TRAIN, ["--preset=paper", f"--restorer={restorer}", what, *flags])
        caplog.clear()
        refl.tune.command.say_memory(options, weights, 15.8)
        assert said in caplog.text
        assert set(counted) == {method}, "presets of another algorithm were looked at"
        counted.clear()
