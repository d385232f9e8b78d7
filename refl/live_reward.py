"""The reward model while ReFL runs: it gives rewards with gradient to the pixels, and goes on learning.

Its update is the published one: the ground truth must beat what the restorer makes now, as a discriminator would have
it. So that it does not forget people, labelled pairs can be replayed in each update, and an update that costs accuracy
on held-out human labels is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from refl.train_config import LiveRewardConfig
from reward.averages import copy_into
from reward.batches import choose_batch
from reward.data import PairImages, Pairs, group_pairs, to_pixels
from reward.loss import preference_loss
from reward.model import RewardModel, clamp_logit_scale, parameter_groups, preprocess
from reward.pair_scorer import InputReader, PairScorer, measure

MAX_GRADIENT_NORM = 1.0
"""As published."""
MEASURE_BATCH_PAIRS = 64


def average_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; nothing happens in a single one."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


@dataclass
class LiveReward:
    """A reward model in training. At rest none of its parameters requires a gradient."""

    model: RewardModel
    config: LiveRewardConfig
    accelerator: Accelerator
    replay: Pairs | None = None
    """Labelled pairs of the train split."""
    held_out: Pairs | None = None
    """People's labels of the val split."""
    seed: int = 0
    trained: list[nn.Parameter] = field(init=False)
    optimizer: torch.optim.AdamW | None = field(init=False, default=None)
    """None where the model never learns."""
    first_accuracy: float | None = None
    """On `held_out`, of the model that training began with."""
    n_updates: int = 0

    def __post_init__(self) -> None:
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.config.reward_every_steps:
            groups = parameter_groups(self.model, self.config.reward_weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=self.config.reward_learning_rate)
        self.rest()

    def compute(self, images: Tensor, captions: Sequence[str | None]) -> Tensor:
        """(N,) rewards of (N, 3, H, W) images in [0, 1], with gradient to the images."""
        return self.model(images, captions)  # type: ignore[no-any-return]

    def rest(self) -> None:
        """No gradient into the model's own weights."""
        self.model.requires_grad_(False)

    def is_due(self, step: int) -> bool:
        """Whether the model learns at this step, counted from 0."""
        every, first = self.config.reward_every_steps, self.config.reward_first_step
        return bool(every) and step >= first and step % every == 0

    def update(self, step: int, restored: Tensor, hq: Tensor, captions: Sequence[str | None]) -> dict[str, float]:
        """One step of AdamW: the ground truth against what was restored from it, and the replayed pairs.

        Args:
            restored, hq: (N, 3, H, W) in [0, 1], without gradient; of this process.
        Returns:
            loss (nats an image or pair), accuracy on what it was given, before the step; `kept` 0 where the update
            was taken back; `held_out_accuracy` where it is measured.
        """
        assert self.optimizer is not None
        before = [p.detach().clone() for p in self.trained] if self._guards() else []
        for parameter in self.trained:
            parameter.requires_grad_(True)
        losses, right = self._compare(restored, hq, captions)
        if self.config.replay_pairs and self.replay:
            replayed_losses, replayed_right = self._replay(step)
            losses, right = torch.cat([losses, replayed_losses]), torch.cat([right, replayed_right])
        # summed over images as published, so more images weigh more than one
        torch.autograd.backward(losses.sum() * self.config.reward_loss_scale)
        self.rest()
        average_gradients(self.accelerator, self.trained)
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clamp_logit_scale(self.model)
        self.n_updates += 1
        values = {"loss": float(losses.mean()), "accuracy": float(right.mean()), "kept": 1.0}
        if before:
            values |= self._take_back_if_worse(before)
        return values

    def measure_accuracy(self) -> float | None:
        """On the held-out human labels; None where there are none."""
        if self.held_out is None or not any(row.p_a != 0.5 for row in self.held_out.rows):
            return None
        reader = InputReader(self.accelerator, self.model, None, workers=0)
        scorer = PairScorer(self.model, frozen_done=False)
        return measure(scorer, reader, self.held_out, MEASURE_BATCH_PAIRS)["accuracy"]

    def state_dict(self) -> dict[str, Any]:
        """All but the model's weights that an exact continuation needs."""
        return {
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "first_accuracy": self.first_accuracy,
            "n_updates": self.n_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        self.first_accuracy, self.n_updates = state["first_accuracy"], state["n_updates"]

    def _compare(self, restored: Tensor, hq: Tensor, captions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """(N,) losses with the ground truth as the winner, (N,) 1 where the model says so."""
        pixels = preprocess(torch.cat([hq, restored]).detach(), self.model.config)
        cosines, logits = PairScorer(self.model, frozen_done=False)(pixels, captions)
        return preference_loss(logits[0], logits[1], torch.ones_like(logits[0])), (cosines[0] > cosines[1]).float()

    def _replay(self, step: int) -> tuple[Tensor, Tensor]:
        """Losses and credit of this update's labelled pairs, drawn as training draws its batches."""
        assert self.replay is not None
        count = self.config.replay_pairs * self.accelerator.num_processes
        places = choose_batch(step, len(self.replay), min(count, len(self.replay)), self.seed)
        mine = places[self.accelerator.process_index :: self.accelerator.num_processes]
        rows = [self.replay.rows[place] for place in mine]
        images = PairImages(self.replay)
        pixels = to_pixels(group_pairs([images[place] for place in mine]), self.model.config, self.accelerator.device)
        cosines, logits = PairScorer(self.model, frozen_done=False)(pixels, [row.caption for row in rows])
        p_a, weight = (torch.tensor([getattr(row, n) for row in rows], device=pixels.device) for n in ("p_a", "weight"))
        losses = weight * preference_loss(logits[0], logits[1], p_a)
        return losses, ((cosines[0] > cosines[1]) == (p_a > 0.5)).float()

    def _guards(self) -> bool:
        return self.config.max_accuracy_loss < 1 and self.held_out is not None

    def _take_back_if_worse(self, before: list[Tensor]) -> dict[str, float]:
        """Undo the last step's change of the weights where it cost too much accuracy on people's labels."""
        accuracy = self.measure_accuracy()
        if accuracy is None or self.first_accuracy is None:
            return {}
        kept = accuracy >= self.first_accuracy - self.config.max_accuracy_loss
        if not kept:
            copy_into(self.trained, before)
        return {"kept": float(kept), "held_out_accuracy": accuracy}
