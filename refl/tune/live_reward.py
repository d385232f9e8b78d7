"""Compute rewards with a gradient to the pixels while ReFL runs, and train the reward model on.

Its update is the published one: the ground truth must beat what the restorer makes now, as a discriminator would have
it. So that it does not forget people, labelled pairs can be replayed in each update, and an update that costs accuracy
on held-out human labels is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from metrics.accuracy import bootstrap_mean, compute_credit
from refl.tune.config import LiveRewardConfig
from reward.data import PairImages, Pairs, group_pairs, to_pixels
from reward.model.model import RewardModel, clamp_logit_scale, preprocess
from reward.model.reward_set import RewardSet
from reward.train.frozen_cache import FrozenCache
from reward.train.loss import compute_losses
from reward.train.pairs import InputReader, PairScorer, compute_margins
from training.batches import choose_batch
from training.precision import DTYPES, OptimizerKind, TrainedWeights, copy_values
from training.processes import sum_tensors

Array = npt.NDArray[Any]
MAX_GRADIENT_NORM = 1.0
"""As published."""
MEASURE_BATCH_PAIRS = 64


class NoReward(nn.Module):
    """Stands where no model rewards: a judge does, or nothing is rewarded."""


@dataclass
class LiveReward:
    """A reward model in training. At rest none of its parameters requires a gradient."""

    model: RewardModel | RewardSet
    config: LiveRewardConfig
    accelerator: Accelerator
    replay: Pairs | None = None
    """Labelled pairs of the train split."""
    held_out: Pairs | None = None
    """People's labels of the val split."""
    seed: int = 0
    mixed_precision: str = "no"
    optimizer: OptimizerKind = "adamw"
    micro_batch_size: int = 0
    """Pairs that one process takes through the model at a time in an update; 0 takes all at once."""
    cache: FrozenCache | None = None
    """Output of the frozen blocks for the held-out images, which never changes."""
    weights: TrainedWeights | None = field(init=False, default=None)
    """None where the model never learns."""
    first_margins: Array | None = None
    """(n,) on `held_out`, of the model that training began with."""
    n_updates: int = 0

    def __post_init__(self) -> None:
        if self.config.reward_every_steps:
            self.weights = TrainedWeights(
                [parameter for parameter in self.model.parameters() if parameter.requires_grad],
                DTYPES[self.mixed_precision],
                self.accelerator.device,
                learning_rate=self.config.reward_learning_rate,
                weight_decay=self.config.reward_weight_decay,
                optimizer=self.optimizer,
                keep=self.model.float32_parameters,
            )
        self.rest()

    @property
    def learner(self) -> RewardModel:
        """The model, where it learns or is measured; a set does neither."""
        return cast(RewardModel, self.model)

    @property
    def member_names(self) -> list[str]:
        """The members of the reward, for logs; none where it is one."""
        if isinstance(self.model, RewardSet):
            return self.model.names
        several = isinstance(self.model, RewardModel) and self.model.config.members > 1
        return [str(at + 1) for at in range(self.model.config.members)] if several else []

    def compute_apart(
        self, images: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `compute`, and what each member said.

        Returns:
            (N,) rewards with gradient; (members, N) without, in the members' own scales; (0, N) where it is one.
        """
        if not self.member_names:
            rewards = self.compute(images, captions, inputs)
            return rewards, rewards.new_zeros(0, len(rewards))
        members = self.model.compute_members(images, captions, inputs)
        rewards = self.model.combine(members) if isinstance(self.model, RewardSet) else members.mean(dim=0)
        return rewards, members.detach()

    def compute(self, images: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None) -> Tensor:
        """(N,) rewards of (N, 3, H, W) images in [0, 1], with gradient to the images; see `compute_rewards`."""
        return compute_rewards(self.model, images, captions, inputs)

    def rest(self) -> None:
        """No gradient into the model's own weights."""
        self.model.requires_grad_(False)

    def is_due(self, step: int) -> bool:
        """Whether the model learns at this step, counted from 0."""
        every, first = self.config.reward_every_steps, self.config.reward_first_step
        return bool(every) and step >= first and step % every == 0

    def update(
        self,
        step: int,
        restored: Tensor,
        hq: Tensor,
        captions: Sequence[str | None],
        inputs: Tensor | None = None,
    ) -> dict[str, float]:
        """One step of AdamW: the ground truth against what was restored from it, and the replayed pairs. A collective.

        The loss is a sum over all images of all processes, as published, so more images weigh more than one.

        Args:
            restored, hq: (N, 3, H, W) in [0, 1], without gradient; of this process, N may be 0.
            inputs: (N, 3, H, W) in [0, 1], what was restored, for a model that sees it.
        Returns:
            loss (nats per image or pair), accuracy on what it was given, before the step, over all processes; `kept` 0
            where the update was taken back; `held_out_accuracy` where it is measured.
        """
        assert self.weights is not None
        before = self._remember() if self._guards() else None
        for parameter in self.weights.working:
            parameter.requires_grad_(True)
        sums = torch.zeros(3, device=self.accelerator.device)  # of losses, of right ones, of 1
        for start in range(0, len(restored), self.micro_batch_size or max(1, len(restored))):
            stop = start + (self.micro_batch_size or len(restored))
            seen = [one[start:stop] for one in (hq, restored, inputs) if one is not None]
            sums += self._learn(*self._compare(torch.cat(seen), captions[start:stop]))
        if self.config.replay_pairs and self.replay:
            for places in self._choose_replayed(step):
                sums += self._learn(*self._replay(places))
        self.rest()
        self.weights.step(self.accelerator, MAX_GRADIENT_NORM, step + 1)
        clamp_logit_scale(self.learner)
        self.n_updates += 1
        sum_tensors(self.accelerator, [sums])
        loss, right, count = sums.tolist()
        values = {"loss": loss / count, "accuracy": right / count, "kept": 1.0}
        if before is not None:
            values |= self._take_back_if_worse(before)
        return values

    def measure_margins(self) -> Array | None:
        """(n,) margins on the held-out human labels; None where there are none. A collective."""
        if self.held_out is None or not any(row.p_a != 0.5 for row in self.held_out.rows):
            return None
        reader = InputReader(self.accelerator, self.learner, self.cache, workers=0)
        scorer = PairScorer(self.learner, frozen_done=self.cache is not None)
        return compute_margins(scorer, reader, self.held_out, MEASURE_BATCH_PAIRS)[0]

    def measure_accuracy(self) -> float | None:
        """On the held-out human labels; None where there are none. A collective."""
        margins = self.measure_margins()
        if margins is None:
            return None
        credit, weight, _ = self._credit(margins)
        return float(np.average(credit, weights=weight))

    def state_dict(self) -> dict[str, Any]:
        """All but the model's weights that an exact continuation needs."""
        return {
            "weights": self.weights.state_dict() if self.weights else None,
            "first_margins": None if self.first_margins is None else torch.from_numpy(self.first_margins),
            "n_updates": self.n_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if self.weights:
            self.weights.load_state_dict(state["weights"])
        margins = state.get("first_margins")  # earlier versions kept none: what they began with is no longer guarded
        self.first_margins = None if margins is None else margins.numpy()
        self.n_updates = state["n_updates"]

    def _learn(self, losses: Tensor, right: Tensor) -> Tensor:
        """Add the gradient of (n,) losses; (3,) their sum, that of the right ones, and n."""
        assert self.weights is not None
        self.weights.backward(losses.sum() * self.config.reward_loss_scale)
        return torch.stack([losses.detach().sum(), right.sum(), losses.new_tensor(float(len(losses)))])

    def _compare(self, images: Tensor, captions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """(N,) losses with the ground truth as the winner, (N,) 1 where the model says so.

        Args:
            images: (2N or 3N, 3, H, W) ground truths, restored images, and inputs where the model sees them.
        """
        pixels = preprocess(images.detach(), self.learner.config)
        cosines, logits = PairScorer(self.learner, frozen_done=False)(pixels, captions)
        wins = torch.ones_like(logits[:, 0])
        hq, restored = cosines.mean(dim=0)
        return compute_losses(logits, wins[0], wins), (hq > restored).float()

    def _choose_replayed(self, step: int) -> list[npt.NDArray[np.int64]]:
        """This process's micro-batches of the update's labelled pairs, drawn as training draws its batches."""
        assert self.replay is not None
        processes = self.accelerator.num_processes
        count = min(self.config.replay_pairs, len(self.replay))
        mine = choose_batch(step, len(self.replay), count, self.seed)[self.accelerator.process_index :: processes]
        size = self.micro_batch_size or max(1, len(mine))
        return [mine[start : start + size] for start in range(0, len(mine), size)]

    def _replay(self, places: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Losses and credit of labelled pairs."""
        assert self.replay is not None
        rows = [self.replay.rows[place] for place in places]
        images = PairImages(self.replay)
        pixels = to_pixels(
            group_pairs([images[place] for place in places]), self.learner.config, self.accelerator.device
        )
        cosines, logits = PairScorer(self.learner, frozen_done=False)(pixels, [row.caption for row in rows])
        p_a, weight = (torch.tensor([getattr(row, n) for row in rows], device=pixels.device) for n in ("p_a", "weight"))
        losses = compute_losses(logits, p_a, weight.expand(len(logits), -1))
        left, right = cosines.mean(dim=0)
        return losses, ((left > right) == (p_a > 0.5)).float()

    def _guards(self) -> bool:
        return self.config.max_accuracy_loss < 1 and self.held_out is not None

    def _remember(self) -> tuple[list[Tensor], dict[str, Any]]:
        """The weights and moments before an update, in the host's memory, which has more room."""
        assert self.weights is not None
        masters = [master.detach().to("cpu", copy=True) for master in self.weights.masters]
        return masters, _to_host(self.weights.state_dict())

    def _take_back_if_worse(self, before: tuple[list[Tensor], dict[str, Any]]) -> dict[str, float]:
        """Undo the last step, of weights and moments, where it cost too much accuracy on people's labels.

        Too much is a fall of more than `max_accuracy_loss` that is not noise: its 95 % interval over sources, paired by
        label, lies below 0.
        """
        assert self.weights is not None
        margins = self.measure_margins()
        if margins is None or self.first_margins is None:
            return {}
        credit, weight, sources = self._credit(margins)
        change, _, high = bootstrap_mean(credit - self._credit(self.first_margins)[0], weight, sources)
        kept = not (change < -self.config.max_accuracy_loss and not high >= 0)  # one source alone has no interval
        if not kept:
            masters, state = before
            copy_values(self.weights.masters, masters)
            self.weights.publish()
            self.weights.load_state_dict(state)
        return {"kept": float(kept), "held_out_accuracy": float(np.average(credit, weights=weight))}

    def _credit(self, margins: Array) -> tuple[Array, Array, Array]:
        """(m,) credit of the m held-out labels that are not ties, their weights and their sources."""
        assert self.held_out is not None
        rows = self.held_out.rows
        p_a, weight = (np.array([getattr(row, name) for row in rows], dtype=float) for name in ("p_a", "weight"))
        decided, sources = p_a != 0.5, np.array([row.source for row in rows])
        return compute_credit(margins, p_a)[decided], weight[decided], sources[decided]


def compute_rewards(
    model: nn.Module, images: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None
) -> Tensor:
    """(N,) rewards of (N, 3, H, W) images in [0, 1] by any reward; one that sees the input gets (N, 3, H, W) inputs.

    Raises:
        ValueError: it needs them, and there are none.
    """
    rewards: Tensor = model(images, captions, inputs) if needs_input(model) else model(images, captions)
    return rewards


def needs_input(model: nn.Module) -> bool:
    """Whether a reward sees the photo that was restored; one that is neither model nor set of ours does not."""
    return isinstance(model, RewardModel | RewardSet) and model.config.needs_input


def choose_inputs(model: nn.Module, lq: Tensor, hq: Tensor) -> Tensor | None:
    """The photos that a reward sees beside the restored images: of these two as its config says; None for none."""
    if not needs_input(model):
        return None
    assert isinstance(model, RewardModel | RewardSet)
    return hq if model.config.input_photo == "hq" else lq


def copy_for_learning(frozen: RewardModel, trained: Sequence[nn.Parameter]) -> RewardModel:
    """A copy that has its own trained weights, and shares all others with the model it is made from."""
    learns = {id(parameter) for parameter in trained}
    shared = {id(tensor): tensor for tensor in frozen.parameters() if id(tensor) not in learns}
    return deepcopy(frozen, shared)


def _to_host(state: Any) -> Any:
    """A copy of nested state, its tensors in the host's memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: _to_host(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_to_host(value) for value in state]
    return state
