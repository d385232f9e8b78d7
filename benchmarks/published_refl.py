"""Run one step of ReFL as DiffusionReward's train.py does, over our networks, for benchmarks/refl_step.py.

Written anew after DR:train.py, ddim_sampler.py and utils_refl.py, with the accumulation that it loses put right. One
image at a time, a trajectory each, their gradients accumulated; the ground truth is encoded for its shape alone, the
prompt in each step, the schedule is made in each denoising step, the ControlNet's frozen copy runs beside the trained
one at every denoising step, the gradient's activations are computed again in denoiser and ControlNet. All in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refl.restorers.diffusion import DiffusionRestorer, count_noises
from refl.restorers.latent import make_schedule
from refl.restorers.surface import draw_ahead, make_generators
from refl.tune.draws import draw_trajectory, noise_seed
from refl.tune.losses import compute_change
from refl.tune.parts import FacePart
from refl.tune.refl import compute_terms
from refl.tune.sampling import Outcome
from refl.tune.training import Training
from reward.model.model import clamp_logit_scale, preprocess
from reward.train.loss import preference_loss
from training.precision import group_parameters


@dataclass
class PublishedLoop:
    """The published loop over one training's weights, with optimizers of its own."""

    training: Training
    text: nn.Module

    def __post_init__(self) -> None:
        config, model = self.training.config, self.training.live.model
        restorer = self.training.restorer
        assert isinstance(restorer, DiffusionRestorer)
        restorer.unet.enable_gradient_checkpointing()
        restorer.control.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.training.weights.working, lr=config.train.learning_rate)
        learning = self.training.live.weights
        self.learned = learning.working if learning else []
        for parameter in self.learned:
            parameter.requires_grad_(True)
        rate, decay = config.live_reward.reward_learning_rate, config.live_reward.reward_weight_decay
        self.reward_optimizer = torch.optim.AdamW(group_parameters(model.parameters(), decay), lr=rate)
        model.requires_grad_(False)

    def train_step(self, step: int, part: FacePart) -> tuple[float, list[Tensor]]:
        """(the batch's mean loss, each restored image); the gradient is there until `apply`."""
        losses, restored = [], []
        for number in range(len(part.places)):
            image, terms = self.follow(step, select(part, number, 1))
            loss = torch.stack(list(terms.values())).sum()
            torch.autograd.backward(loss / len(part.places))
            losses.append(float(loss.detach()))
            restored.append(image.detach())
        return sum(losses) / len(losses), restored

    def follow(self, step: int, part: FacePart) -> tuple[Tensor, dict[str, Tensor]]:
        """One image's trajectory, and its terms."""
        training, restorer, device = self.training, self.training.restorer, part.lq.device
        assert isinstance(restorer, DiffusionRestorer)
        draws = draw_trajectory(training, step)
        with torch.no_grad():
            shape = restorer.encode_pixels(part.hq).shape  # the ground truth's latents, of which the shape is used
            cleaned = restorer.clean(part.lq)
            condition, embedding = restorer.encode_pixels(cleaned), self.text([restorer.use.prompt]).float()
        plan, etas = draws.plan[: draws.gradient_place + 1], draws.etas
        generators = make_generators([noise_seed(training.config.train.seed, step, part.places[0])])
        noises = draw_ahead(generators, shape[1:], 1 + count_noises(etas[: draws.gradient_place]), device)
        latents = next(noises)
        for place, (timestep, previous) in enumerate(plan):
            make_schedule(restorer.use.prediction, restorer.use.zero_terminal_snr).alphas_cumprod.to(device)
            at, last = torch.tensor(timestep, device=device), place == len(plan) - 1
            with torch.set_grad_enabled(last):
                residuals = restorer.compute_control(latents, at, condition, embedding)
                with torch.no_grad():
                    kept = restorer.compute_control(latents, at, condition, embedding, training.frozen_control)
                compute_change(residuals, kept)  # at every step; the last one's is used
                output = restorer.predict_output(latents, at, condition, embedding, residuals)
                x0 = restorer.to_x0(latents, timestep, output)
            if not last:
                noise = next(noises) if etas[place] else None
                latents = restorer.step(latents, timestep, previous, output, etas[place], noise)
        image = restorer.decode(x0)
        return image, compute_terms(training, Outcome(x0, cleaned, residuals, kept), image, part)[0]

    def apply(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def update(self, restored: Sequence[Tensor], part: FacePart) -> None:
        """The reward model's own step: the ground truth must win, one pair at a time."""
        model, config = self.training.live.learner, self.training.config.live_reward
        for parameter in self.learned:
            parameter.requires_grad_(True)
        for number, image in enumerate(restored):
            pixels = preprocess(torch.cat([part.hq[number : number + 1], image]), model.config)
            features = model.encode_pixels(pixels)
            logits = model.logit_scale * features @ model.encode_prompts([None]).T
            loss = preference_loss(logits[:1, 0], logits[1:, 0], torch.ones_like(logits[:1, 0])).sum()
            torch.autograd.backward(loss * config.reward_loss_scale)
        nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.reward_optimizer.step()
        self.reward_optimizer.zero_grad()
        clamp_logit_scale(model)
        model.requires_grad_(False)


def select(part: FacePart, start: int, count: int) -> FacePart:
    """Some of a batch's images."""
    some = slice(start, start + count)
    return FacePart(part.places[some], part.hq[some], part.lq[some], part.captions[some])
