"""Every algorithm ships with a preset that runs as its comment says, and its memory is counted by phase."""

from __future__ import annotations

from pathlib import Path

import pytest

from refl.restorers.tiny import save_tiny
from refl.tune.command import TRAIN
from refl.tune.config import SHIPPED, load_refl_config
from refl.tune.memory import count_training
from runs.options import read_words
from tests.unit.refl.conftest import CLIP, MICRO, make_micro_restorer, make_micro_reward


@pytest.mark.parametrize("preset", SHIPPED)
def test_a_preset_is_run_by_the_command_in_its_comment(preset: str) -> None:
    comment = [line for line in SHIPPED[preset].read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    words = next(line.split()[5:] for line in comment if "python -m refl train" in line)
    options = read_words(TRAIN, words)
    assert options.preset == preset
    assert options.config == load_refl_config(preset)
    assert options.config.method in (*preset.split("-"), "refl")


@pytest.mark.parametrize("method", ["dpo", pytest.param("gdpo", marks=pytest.mark.slow), "grpo"])
def test_every_algorithm_has_its_phases_counted(tmp_path: Path, method: str) -> None:
    save_tiny(make_micro_restorer(), MICRO, tmp_path)
    changes = {"train": {"batch_size": 1, "micro_batch_size": 1, "monitor_faces": 2, "image_size_px": 16}}
    config = load_refl_config(f"tiny-{method}", {**changes, "algorithm": {"algorithm": method, "group_size": 2}})
    reward = None if method == "dpo" else make_micro_reward(tmp_path).config
    phases = count_training(config, str(tmp_path), reward, CLIP).phases
    assert set(phases) == {"step", "check"}
    assert all(phase.at_peak["denoiser"] for phase in phases.values())
    assert ("reward model" in phases["step"].at_peak) is (reward is not None)
