"""Run a reward set: members in one scale, their mean less their spread as the reward.

Where members disagree, nobody's labels said which of them is right; a restorer that looks for the highest reward would
go just there. Sources: the mean less the spread of an ensemble, Coste et al., arXiv:2310.02743; pulling harder to the
base where members disagree, GARDO, arXiv:2512.24138.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from db.errors import UserError
from metrics.lists import MetricError
from metrics.load import is_lower_better, load_differentiable, needs_reference
from reward.model.captions import CONTEXT_TOKENS
from reward.model.checkpoint import VERSION_PREFIX, compute_version, find_named, load_named, read_shape
from reward.model.config import ModelConfig
from reward.model.model import RewardModel
from reward.model.set_config import Member, RewardConfig, SetConfig, find_set, read_set

LEAST_VARIANCE = 1e-8
"""Under the root of a spread, whose gradient at 0 is infinite otherwise."""


CombinedShape = tuple[SetConfig, dict[str, tuple[ModelConfig, dict[str, Any]]]]
"""What the memory of a set depends on: its config, and (config, architecture) of each of its models by name."""


class RewardSet(nn.Module):
    """Reward models and metrics as members; the models' weights are on the device, a metric goes where images are."""

    def __init__(self, config: SetConfig, models: dict[str, RewardModel]) -> None:
        """Take the models by what the config's members call them."""
        super().__init__()
        self.config = config
        self.places = {what: at for at, what in enumerate(models)}
        self.models = nn.ModuleList(models.values())
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(config.logit_scale), persistent=False)  # so that it has a device

    @property
    def names(self) -> list[str]:
        """The members', in order."""
        return [member.name for member in self.config.members]

    @property
    def optimized_metrics(self) -> set[str]:
        """Metrics that are members, so that nobody judges by them."""
        return {member.metric for member in self.config.members if member.metric}

    @property
    def logit_scale(self) -> Tensor:
        """() factor from reward to logit."""
        return self.scale.float()

    @property
    def context_tokens(self) -> int:
        """Tokens that every model's text tower takes; that of CLIP where there is no model."""
        return min([model.context_tokens for model in self.list_models()], default=CONTEXT_TOKENS)

    @property
    def float32_parameters(self) -> list[Tensor]:
        """As of each model."""
        return [parameter for model in self.list_models() for parameter in model.float32_parameters]

    def list_models(self) -> list[RewardModel]:
        """The reward models, each once."""
        return [model for model in self.models if isinstance(model, RewardModel)]

    def forward(self, images: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None) -> Tensor:
        """(B,) rewards: the members' mean less `spread_weight` times their spread, in `unit`; see `compute_members`."""
        return self.combine(self.compute_members(images, captions, inputs))

    def combine(self, members: Tensor) -> Tensor:
        """(B,) rewards of (members, B)."""
        config = self.config
        return config.unit * (members.mean(dim=0) - config.spread_weight * compute_spread(members))

    def compute_members(self, images: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None) -> Tensor:
        """(members, B) rewards by each, float32, in its spreads over the held-out images: about 0, higher is better.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            captions: B of them; None where there is none.
            inputs: (B, 3, h, w) RGB in [0, 1], the photos that members see beside the images, where any does.
        """
        given = {}
        for what, at in self.places.items():
            model = self.models[at]
            assert isinstance(model, RewardModel)
            given[what] = model.compute_members(images, captions, inputs)
        found = [
            given[member.model][member.head] if member.model else measure(member.metric, images, inputs)
            for member in self.config.members
        ]
        scaled = [(one - member.center) / member.scale for one, member in zip(found, self.config.members, strict=True)]
        return torch.stack(scaled)


def compute_spread(members: Tensor) -> Tensor:
    """(B,) standard deviations over (members, B); its gradient is finite where all are equal."""
    return (members.var(dim=0, correction=0) + LEAST_VARIANCE).sqrt()


def measure(metric: str, images: Tensor, inputs: Tensor | None) -> Tensor:
    """(B,) float32 values of a metric, higher is better, with gradient to (B, 3, H, W) images; inputs as references."""
    with torch.autocast(images.device.type, enabled=False):
        images = images.float().clamp(0, 1)
        reference = None
        if needs_reference(metric):
            assert inputs is not None
            reference = F.interpolate(inputs.float(), images.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
        values = load_differentiable(metric, str(images.device))(images, reference).reshape(len(images))
    return (-values if is_lower_better(metric) else values).float()


def find_reward(what: str, weights_dir: Path | None = None) -> tuple[Path | None, RewardConfig]:
    """Find a reward set, or the model that `find_named` finds: its folder where it is one, and its config.

    Args:
        what, weights_dir: as of `find_named`; or the folder of a set.
    Raises:
        UserError: there is none, or weights or metrics of it cannot be got.
    """
    folder = find_set(what)
    if folder is None:
        return find_named(what, weights_dir)
    config = read_set(folder)
    for member in config.members:
        if member.model:
            find_member(folder, member, weights_dir)
        else:
            check_metric(member.metric)
    return folder, config


def find_member(folder: Path, member: Member, weights_dir: Path | None) -> ModelConfig:
    """The config of a member's model, with as many heads as the set was made of.

    Raises:
        UserError: it is not there any more, or is another model.
    """
    try:
        config = find_named(member.model, weights_dir)[1]
    except UserError as error:
        raise UserError(
            f"{folder}: its member {member.name} cannot be had. {error} Put the model back into its place, or make the "
            "set again: python -m reward set."
        ) from error
    if member.head >= config.members:
        raise UserError(
            f"{folder}: {member.name} is head {member.head} of {member.model}, which has fewer. Make the set again: "
            "python -m reward set."
        )
    return config


def read_combined_shape(what: str, weights_dir: Path | None = None) -> CombinedShape | None:
    """What the memory of a set depends on; None for what is no set.

    Raises:
        UserError: as of `find_reward`.
    """
    if find_set(what) is None:
        return None
    _, config = find_reward(what, weights_dir)
    assert isinstance(config, SetConfig)
    asked = dict.fromkeys(member.model for member in config.members if member.model)
    return config, {one: read_shape(one, weights_dir) for one in asked}


def check_metric(metric: str) -> bool:
    """Check that a metric has a gradient here; returns whether it compares with a reference.

    Raises:
        UserError: nobody knows it, it has no gradient, or its weights cannot be had.
    """
    try:
        load_differentiable(metric, "cpu")
        return needs_reference(metric)
    except MetricError as error:
        raise UserError(f"The metric {metric} cannot be a member of a reward set. {error}") from error


def load_reward(
    what: str, dtype: torch.dtype = torch.float32, weights_dir: Path | None = None
) -> RewardModel | RewardSet:
    """The set or model that `find_reward` finds, on the CPU.

    Raises:
        UserError: there is none, it is damaged, or a member is not the model that the set was made of.
    """
    folder, config = find_reward(what, weights_dir)
    if isinstance(config, ModelConfig):
        return load_named(what, dtype, weights_dir)
    assert folder is not None
    models = {}
    for asked in dict.fromkeys(member.model for member in config.members if member.model):
        models[asked] = load_named(asked, dtype, weights_dir)
        check_members(folder, config, asked, models[asked], dtype)
    return RewardSet(config, models)


def check_members(folder: Path, config: SetConfig, asked: str, model: RewardModel, dtype: torch.dtype) -> None:
    """Check that a model is the one that the set was made of: its scale would be another's."""
    for member in (one for one in config.members if one.model == asked):
        if dtype == torch.float32 and (found := compute_version(model)) != member.version:
            raise UserError(
                f"{folder}: was made of {asked} when that was {member.version}; now it is {found}. Make the set again: "
                "python -m reward set."
            )


def compute_reward_version(reward: RewardModel | RewardSet) -> str:
    """As `compute_version`; of a set a hash of its members' versions and scales and of how they are combined."""
    if isinstance(reward, RewardModel):
        return compute_version(reward)
    members = [member.model_dump(exclude={"name", "model"}) for member in reward.config.members]
    how = [members, reward.config.spread_weight, reward.config.unit]
    return VERSION_PREFIX + hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]


def name_heads(name: str, config: ModelConfig) -> list[str]:
    """'frm' of a model of one head, 'frm-1', 'frm-2' of two."""
    return [name] if config.members == 1 else [f"{name}-{at + 1}" for at in range(config.members)]
