"""Define what a training of a restorer works with, what changes in it, and what its progress lines tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from refl.published.control import ConditionControlNet
from refl.tune.config import ReflConfig
from refl.tune.data import Face
from refl.tune.evaluations import Evaluations
from refl.tune.identity import IdentityLoss
from refl.tune.live_reward import LiveReward
from refl.tune.monitor import Monitor
from refl.tune.perceptual import PerceptualLoss
from refl.tune.sampling import Plan, Tunable
from reward.data import Pairs
from reward.model.model import RewardModel
from reward.model.reward_set import RewardSet
from training.precision import TrainedWeights

if TYPE_CHECKING:
    from refl.tune.judges import Judge


@dataclass(frozen=True)
class Material:
    """Inputs of a training."""

    restorer: Tunable
    reward: RewardModel | RewardSet | None
    """None where `judge` stands in its place, or where nothing is rewarded."""
    faces: Sequence[Face]
    """Of the train split; what dpo learns from are pairs instead."""
    held_out: Sequence[Face]
    """Of the val split; the monitor checks the first of them."""
    pairs: Pairs | None = None
    """Labelled pairs: dpo's own, or to replay; and human ones to measure on."""
    judge: Judge | None = None
    """A reward without gradient."""
    target_vae: AutoencoderKL | None = None
    """The autoencoder whose latents are what images are, where training changes the restorer's own encoder."""
    names: dict[str, str] = field(default_factory=dict)
    """For the record: what was asked for as restorer, reward and dataset."""
    reward_version: str = ""
    """`compute_version` of the reward model, where it goes on learning: what it learns is saved beside it."""


@dataclass
class Training:
    """All that changes while training, and what it works with."""

    accelerator: Accelerator
    config: ReflConfig
    restorer: Tunable
    frozen_control: ConditionControlNet | None
    """As training began; None where nothing compares with it, and where adapters are trained."""
    live: LiveReward
    frozen_reward: RewardModel | RewardSet | None
    """As training began; the live one itself where it never learns."""
    judge: Judge | None
    perceptual: PerceptualLoss | None
    identity: IdentityLoss | None
    faces: Sequence[Face]
    images: Dataset[tuple[Tensor, ...]]
    """DegradedFaces, or dpo's LatentPairs."""
    pairs: Pairs | None
    """What dpo learns from, in place of faces."""
    embedding: Tensor
    """(1, T, C) of the restorer's prompt, computed once."""
    plan: Plan
    weights: TrainedWeights
    monitor: Monitor | None
    held_out: Sequence[Face]
    record: dict[str, Any]
    micro_batch_size: int
    rollout_batch_size: int
    sums: Tensor
    """(len(list_sums) + 1,) of this process since the last progress line; the last is the number of rows."""
    evaluations: Evaluations
    step: int = 0

    @property
    def count(self) -> int:
        """Number of faces, or of pairs, that an epoch has."""
        return len(self.faces) if self.pairs is None else len(self.pairs)

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        budget = self.config.algorithm.budget
        return bool(budget) and self.evaluations.total >= budget

    @property
    def checks(self) -> list[dict[str, Any]]:
        """What the monitor has seen so far, a row a check; none without one."""
        return self.monitor.history if self.monitor else []


def list_terms(config: ReflConfig) -> list[str]:
    """The terms of the loss that are computed, in order."""
    loss = config.loss
    weights = {
        "reward": loss.reward_weight,
        "structure": loss.structure_weight,
        "perceptual": loss.perceptual_weight,
        "identity": loss.identity_weight,
        "regularizer": loss.regularizer_weight,
    }
    return [name for name, weight in weights.items() if weight]


GROUP_SUMS = ("reward", "group_spread")
SUMS = {
    "dpo": ("loss/dpo", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    "gdpo": ("loss/gdpo", *GROUP_SUMS, "rewards/accuracies"),
    "grpo": ("loss/grpo", *GROUP_SUMS, "divergence", "ratio", "clipped"),
}
"""What progress lines tell the means of, per pair or photo, of each algorithm but refl.

`rewards/…` are those that a restorer's errors imply, as TRL and torchtune name them; `group_spread` is the standard
deviation of the reward in a group; `ratio` of probabilities, 1 before a first update.
"""


def list_sums(config: ReflConfig, live: LiveReward) -> list[str]:
    """What progress lines tell the means of, in order; of a reward of several members each one, spread and pull."""
    if config.method != "refl":
        return list(SUMS[config.method])
    members = live.member_names if config.loss.reward_weight else []
    apart = [*(f"reward/{name}" for name in members), *(("reward_spread", "pull") if members else ())]
    return [*(f"loss/{term}" for term in list_terms(config)), *apart]
