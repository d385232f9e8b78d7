"""At full size, by counting on fake tensors: memory within the presets' limits, kernels, host copies, bytes on disk."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch

from refl.restorers.surface import make_generators
from refl.tune.command import MEMORY_GIB
from refl.tune.config import SHIPPED, load_refl_config
from refl.tune.draws import draw_trajectory
from refl.tune.memory import build_training, count_training
from refl.tune.sampling import roll_out
from reward.model.checkpoint import read_architecture
from reward.model.config import load_model_config
from runs.devices import CUDA_GIB
from training.accounting import MemoryCount
from training.memory import find_peak
from training.without_memory import count_without_memory

GIB = 2**30
LIMITS_GIB = {"paper-24gb": 20, "lora-16gb": 14, "osediff-24gb": 20, "paper": 32}
LIMIT_GIB = 24 - CUDA_GIB - 5
"""Of the other algorithms' presets, which leave room for the allocator's gaps."""
MAX_KERNELS = 1200
"""Of a denoising step."""


def count(preset: str) -> MemoryCount:
    config = load_refl_config(preset)
    if config.method == "dpo":
        return count_training(config, "diffbir-v1", None, {})
    reward = load_model_config("vit-h-14")
    restorer = "osediff" if "osediff" in preset else "diffbir-v1"
    return count_training(config, restorer, reward, read_architecture(reward))


@pytest.mark.parametrize("preset", [name for name in SHIPPED if not name.startswith("tiny")])
@pytest.mark.slow
def test_a_preset_fits_its_card(preset: str) -> None:
    phases = count(preset).phases
    for name, phase in phases.items():
        assert phase.peak_bytes / GIB <= LIMITS_GIB.get(preset, LIMIT_GIB), (name, phase.at_peak)
    assert find_peak(phases) == pytest.approx(MEMORY_GIB[preset], abs=0.1)  # as the doctor says
    if load_refl_config(preset).method != "refl":
        assert set(phases) == {"step", "check"}
        assert "reward's moments" not in phases["step"].at_peak
        return
    assert set(phases) == {"trajectory", "step", "reward update", "check"}
    # the reward goes on learning
    assert phases["step"].at_peak["reward's moments"] == pytest.approx(2 * 4 * 514_793_729, rel=1e-3)
    assert phases["reward update"].at_peak["gradients"] == pytest.approx(4 * 514_793_729, rel=1e-3)


@pytest.mark.slow
def test_hypir_with_its_own_adapters_twice_fits_a_card_of_24_gb() -> None:
    reward = load_model_config("vit-h-14")
    phases = count_training(load_refl_config("osediff-24gb"), "hypir", reward, read_architecture(reward)).phases
    assert find_peak(phases) == pytest.approx(16.7, abs=0.1)  # as docs/refl.md says
    adapters = 260_500_000
    assert phases["step"].at_peak["restorer's trained weights, float32"] == pytest.approx(4 * adapters, rel=0.01)
    assert phases["step"].at_peak["restorer's moments"] == pytest.approx(8 * adapters, rel=0.01)
    # in float16: Stable Diffusion's denoiser, the adapters, and their frozen copies
    assert phases["step"].at_peak["denoiser"] == pytest.approx(2 * (865_900_000 + 2 * adapters), rel=0.01)


def test_a_denoising_step_has_few_kernels_and_no_host_copy_after_the_first() -> None:
    config = load_refl_config("paper-24gb", {"live_reward": {"reward_every_steps": 0}})
    reward = load_model_config("tiny")
    copies: list[dict[str, int]] = []
    kernels: list[int] = []
    for steps in (2, 4):
        with count_without_memory("meta") as counted:
            training = build_training(config, "diffbir-v1", reward, read_architecture(reward), "meta")
            plan = make_long(training, steps)
            with counted.phase("trajectory") as phase:
                trajectory = draw_trajectory(training, 0)
                lq = torch.zeros(4, 3, 512, 512, device="meta")
                roll_out(training.restorer, lq, training.embedding, trajectory, make_generators(range(4)))
        assert len(plan) == steps + 1
        copies.append(dict(phase.host_copies))
        kernels.append(phase.kernels.total())
    assert copies[0] == copies[1]
    assert 0 < (kernels[1] - kernels[0]) / 2 <= MAX_KERNELS


def make_long(training: Any, steps: int) -> Any:
    """Let so many steps be without gradient."""
    training.plan = training.restorer.plan_steps(50)[-(steps + 1) :]
    trajectory = training.config.trajectory.model_copy(update={"gradient_window": (0, 0)})
    training.config = training.config.model_copy(update={"trajectory": trajectory})
    return training.plan


def test_a_run_of_the_published_method_writes_less_than_60_gib() -> None:
    """Each checkpoint holds the trained weights and both moments of ControlNet and reward model; all else are links."""
    train = load_refl_config("paper").train
    once = 3 * 4 * (363_153_280 + 514_793_729) / GIB
    writes = {*range(train.checkpoint_every_steps, train.max_steps + 1, train.checkpoint_every_steps), train.max_steps}
    copies = set(range(train.keep_every_steps, train.max_steps + 1, train.keep_every_steps))
    assert copies <= writes  # so that none of them is written for itself
    assert len(writes) == ceil(train.max_steps / train.checkpoint_every_steps)
    assert once * len(writes) <= 60
