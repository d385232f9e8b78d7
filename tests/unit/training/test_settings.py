"""Which settings decide a training, of each of the three and of an evaluation."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from refl.evaluate.options import EvaluateOptions
from refl.faces.degrade import DegradationSettings
from refl.pretrain.config import THIRD_PHASE, PretrainConfig
from refl.restorers.tiny_config import TinyConfig
from refl.tune.config import LiveRewardConfig, LossConfig, ReflTrainConfig, TrajectoryConfig
from reward.model.config import ModelConfig
from reward.train.config import RewardTrainConfig
from training.settings import list_deciding

PACE = {"checkpoint_every_steps", "keep_every_steps", "keep_steps_max", "log_every_steps", "workers", "tracker"}
MEMORY = {"micro_batch_size", "gradient_checkpointing"}
LENGTHS = {"stage1_steps", "vae_steps", "diffusion_steps"}


@pytest.mark.parametrize(
    ("settings", "may_change"),
    [
        (ModelConfig, set()),
        (RewardTrainConfig, PACE | MEMORY | {"cache_frozen"}),
        (TrajectoryConfig, set()),
        (LossConfig, set()),
        (LiveRewardConfig, set()),
        (DegradationSettings, set()),
        (ReflTrainConfig, PACE | MEMORY | {"rollout_batch_size", "compile"}),
        (TinyConfig, {"steps", "eta", "start_fraction", "color_fix"}),
        (
            PretrainConfig,
            LENGTHS
            | {"checkpoint_every_seconds", "data_terms", "device", "log_every_steps", "validate_every_steps"}
            | {"validate_faces", "workers"},
        ),
        (EvaluateOptions, {"out", "device", "batch_size", "weights"}),
    ],
)
def test_all_settings_decide_but_those_that_may_change(settings: type[BaseModel], may_change: set[str]) -> None:
    assert set(settings.model_fields) - list_deciding(settings) == may_change


def test_what_the_third_phase_alone_reads_are_settings() -> None:
    assert list_deciding(TinyConfig) | list_deciding(PretrainConfig) >= THIRD_PHASE
