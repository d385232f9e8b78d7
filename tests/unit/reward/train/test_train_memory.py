"""The memory of a reward model's training, counted on fake tensors: as on real ones, and the paper's on a small GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reward.__main__ import main
from reward.model.checkpoint import read_architecture
from reward.model.config import ModelConfig, load_model_config, preset_names
from reward.model.model import RewardModel
from reward.train import memory as train_memory
from reward.train.command import MEMORY_GIB, load_preset
from reward.train.memory import count_training, describe_lack
from runs.devices import CUDA_GIB
from tests.unit.reward.train.test_train import make_train_config
from training import without_memory
from training.accounting import MemoryCount
from training.memory import GIB

PAPER_GIB = 11
"""Counted: 10.31. A card of 24 GB leaves about 22 to a training, one of 16 GB about 14."""


def test_the_papers_reward_model_is_trained_on_a_small_gpu() -> None:
    """Its whole batch of 128 pairs by accumulation in one process."""
    model = load_model_config("vit-h-14")
    config = load_preset("vit-h-14", {})["train"]
    count = count_training(model, read_architecture(model), config)
    assert set(count.phases) == {"step", "validation"}
    assert count.peak_bytes / GIB <= PAPER_GIB
    assert count.peak_bytes / GIB == pytest.approx(MEMORY_GIB["vit-h-14"], abs=0.1)  # as the doctor says
    parts, trained = count.phases["step"].at_peak, 514_793_729
    assert parts["moments"] == pytest.approx(2 * 4 * trained, rel=1e-3)
    assert parts["trained weights, float32"] == pytest.approx(4 * trained, rel=1e-3)
    assert parts["gradients"] == pytest.approx(4 * trained, rel=1e-3)
    assert parts["image tower"] + parts["text tower"] == pytest.approx(2 * 986_110_000, rel=1e-3)


SAVING = {"mixed_precision": "bf16", "gradient_checkpointing": True, "ema_decay": 0.9, "cache_frozen": True}
SEEING = {"text_mode": "input+learned", "members": 2}


@pytest.mark.parametrize(("fields", "changes"), [({}, {}), ({}, SAVING), (SEEING, SAVING)])
def test_real_tensors_give_the_same_count(
    make_config: Callable[..., ModelConfig],
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, object],
    changes: dict[str, object],
) -> None:
    model, config = make_config(**fields), make_train_config(batch_size=8, micro_batch_size=2, **changes)
    monkeypatch.setattr(train_memory, "IMAGE_SIZE_PX", 64)
    fake = count_training(model, read_architecture(model), config)
    monkeypatch.setattr(without_memory, "count_without_memory", lambda device: MemoryCount(device, workspaces=True))
    real = count_training(model, read_architecture(model), config)
    for name, phase in real.phases.items():
        assert (fake.phases[name].peak_bytes, fake.phases[name].at_peak) == (phase.peak_bytes, phase.at_peak), name


@pytest.mark.slow
def test_the_papers_model_that_sees_the_input_is_trained_on_a_small_gpu() -> None:
    """Each pair's input goes through the tower too, and every member has a head."""
    model = load_model_config("vit-h-14", text_mode="input+learned", members=4)
    count = count_training(model, read_architecture(model), load_preset("vit-h-14", {})["train"])
    assert count.peak_bytes / GIB <= PAPER_GIB
    with torch.device("meta"):
        whole = RewardModel(model, read_architecture(model))
    trained = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    heads = 4 * 2 * 2 * (1024 * 1024 + 1024)  # of 4 members, for the image and its input, two layers each
    assert sum(parameter.numel() for parameter in whole.heads.parameters()) == heads
    assert count.phases["step"].at_peak["moments"] == pytest.approx(2 * 4 * trained, rel=1e-3)


@pytest.mark.parametrize("preset", [pytest.param(name, marks=pytest.mark.slow) for name in MEMORY_GIB])
def test_the_doctor_says_what_is_counted_of_each_preset(preset: str) -> None:
    """The presets are those that ship; each one's number is that of `--memory`."""
    assert MEMORY_GIB.keys() == set(preset_names())
    model, config = load_model_config(preset), load_preset(preset, {})["train"]
    counted = count_training(model, read_architecture(model), config).peak_bytes / GIB
    assert counted == pytest.approx(MEMORY_GIB[preset], abs=0.1)


def test_processes_share_a_batch_and_a_training_without_validation_has_none(
    make_config: Callable[..., ModelConfig],
) -> None:
    model, config = make_config(), make_train_config(batch_size=32, validate_every_steps=0)
    alone, shared = (count_training(model, read_architecture(model), config, processes) for processes in (1, 8))
    assert set(alone.phases) == {"step"}
    assert shared.peak_bytes < alone.peak_bytes / 2


def test_what_does_not_fit_gets_one_line_of_advice() -> None:
    config = make_train_config(batch_size=8, mixed_precision="bf16")
    assert not describe_lack(3 * GIB, int((3 + CUDA_GIB) * GIB) + 1, config, 1)
    assert describe_lack(10 * GIB, 8 * GIB, config, 1) == (
        "It needs 10.7 GiB with what CUDA takes; 8.0 GiB of the GPU are free. Set micro_batch_size to 4 (the batch and "
        "the result stay), or gradient_checkpointing to true; or take a smaller preset (vit-l-14 or vit-b-32)."
    )
    spared = config.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True})
    assert describe_lack(10 * GIB, 8 * GIB, spared, 1).endswith("Take a smaller preset (vit-l-14 or vit-b-32).")


def test_the_command_prints_the_table_without_a_dataset_and_makes_no_run(
    architecture_file: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"architecture": architecture_file, "image-size-px": 32, "unlocked-image-groups": 5}
    words = [f"--{name}={value}" for name, value in flags.items()]
    assert main(["train", "--preset", "tiny", "--data", str(data), "--memory", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["GiB", "step", "validation"]
    assert lines[-1].startswith("in all")
    assert not data.exists()
