"""Take ReFL's steps: the gradient of a reward through the last denoising steps, held by terms of the ground truth.

Source: arXiv:2304.05977, as DiffusionReward, arXiv:2505.17910, has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from db.errors import UserError
from refl.faces.color_fix import fix_color
from refl.restorers.surface import make_generators
from refl.tune.draws import draw_trajectory, noise_seed
from refl.tune.live_reward import choose_inputs
from refl.tune.losses import compute_change, compute_pull, compute_reward_loss, compute_structure_loss
from refl.tune.parts import FacePart
from refl.tune.sampling import Outcome, Rollout, Trajectory, iterate_outcomes, join, roll_out
from refl.tune.sums import add_sums, count_batch
from refl.tune.training import Training
from reward.model.reward_set import RewardSet, compute_spread

MAX_NAMED = 4


def take_refl_step(training: Training, step: int, parts: Sequence[FacePart]) -> tuple[dict[str, float], list[Tensor]]:
    """One optimizer step over all micro-batches and processes; see `refl.tune.train.train_step`.

    Raises:
        UserError: a term or the gradient is not finite.
    """
    config, weights = training.config, training.weights
    batch = count_batch(training, step)
    trajectory = draw_trajectory(training, step)
    logs = (step + 1) % config.train.log_every_steps == 0
    values: dict[str, float] = {}
    restored = []
    for number, (part, rollout) in enumerate(
        zip(parts, roll_out_parts(training, parts, trajectory, step), strict=True)
    ):
        outcomes = iterate_outcomes(
            training.restorer,
            rollout,
            trajectory,
            regularize=config.loss.regularizer_weight > 0,
            frozen_control=training.frozen_control,
        )
        turns = max(1, trajectory.renoise)
        for turn, outcome in enumerate(outcomes):
            image = decode(training, outcome)
            terms, apart = compute_terms(training, outcome, image, part)
            if logs and number == 0 and turn == 0 and config.train.gradient_norms:
                values |= measure_gradient_norms(training, terms)
            # each process gives its share of the mean over the batch; gradients are summed over processes
            weights.backward(torch.stack(list(terms.values())).sum() / (batch * turns))
            add_sums(training, [*terms.values(), *apart], turns)
        restored.append(image.detach())
        del outcomes, outcome, terms, apart, image  # the graph, before the next one is built
    values["gradient_norm"] = weights.step(training.accelerator, config.train.max_gradient_norm, step + 1)
    return values, restored


def roll_out_parts(
    training: Training, parts: Sequence[FacePart], trajectory: Trajectory, step: int
) -> Iterator[Rollout]:
    """Roll out each micro-batch up to its steps with gradient; denoised by whole batches, which is faster."""
    if not parts:
        return
    lq = torch.cat([part.lq for part in parts])
    places = [place for part in parts for place in part.places]
    seeds = [noise_seed(training.config.train.seed, step, place) for place in places]
    stops = np.cumsum([len(part.places) for part in parts]).tolist()
    size = training.rollout_batch_size
    rollouts = [
        roll_out(
            training.restorer,
            lq[first : first + size],
            training.embedding,
            trajectory,
            make_generators(seeds[first : first + size]),
        )
        for first in range(0, len(lq), size)
    ]
    whole = join(rollouts)
    for first, stop in zip([0, *stops[:-1]], stops, strict=True):
        yield whole.select(first, stop)


def decode(training: Training, outcome: Outcome) -> Tensor:
    """(N, 3, H, W) about [0, 1], not clamped; with the colour fix where training is to see it."""
    restored = training.restorer.decode(outcome.x0)
    if not training.config.loss.color_fix:
        return restored
    return fix_color(restored, outcome.cleaned, training.restorer.use.color_fix)


def compute_terms(
    training: Training, outcome: Outcome, restored: Tensor, part: FacePart
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Compute the terms of the loss, times their factors; a term of factor 0 is not computed.

    Returns:
        (N,) of each term; (N,) of each thing that is only told, as `list_sums` has them after the terms.
    Raises:
        UserError: one is not finite; names it and the faces.
    """
    loss = training.config.loss
    apart: list[Tensor] = []
    pull: Tensor | float = 1.0
    terms: dict[str, Tensor] = {}  # in the order of list_terms
    if loss.reward_weight:
        live = training.live
        rewards, members = live.compute_apart(restored, part.captions, choose_inputs(live.model, part.lq, part.hq))
        terms["reward"] = loss.reward_weight * compute_reward_loss(rewards)
        if len(members):
            spread = compute_spread(members)
            if isinstance(live.model, RewardSet):
                pull = compute_pull(spread, live.model.config.held_out_spread, loss.disagreement_pull)
            apart = [*members, spread, torch.ones_like(spread) * pull]
    if loss.structure_weight:
        terms["structure"] = loss.structure_weight * compute_structure_loss(restored, part.hq)
    if training.perceptual:
        terms["perceptual"] = loss.perceptual_weight * training.perceptual(restored, part.hq)
    if training.identity:
        other = part.hq if loss.identity_to == "hq" else part.lq
        terms["identity"] = loss.identity_weight * training.identity(restored, other)
    if loss.regularizer_weight:
        terms["regularizer"] = loss.regularizer_weight * pull * compute_change(outcome.compared, outcome.reference)
    finite = torch.isfinite(torch.stack(list(terms.values()))).all(dim=1).tolist()
    for name, is_finite in zip(terms, finite, strict=True):
        if not is_finite:
            faces = [training.faces[place].name for place in part.places][:MAX_NAMED]
            raise UserError(
                f"The {name} term of step {training.step + 1} is not finite, with {', '.join(faces)}. Check these "
                "faces, lower learning_rate, or set mixed_precision to no; the last checkpoint is from before."
            )
    return terms, apart


def measure_gradient_norms(training: Training, terms: dict[str, Tensor]) -> dict[str, float]:
    """The length of each term's gradient over the trained parameters, of the first micro-batch, a mean per image."""
    weights, found = training.weights, {}
    scale = float(weights.scale(torch.ones((), device=training.accelerator.device)))
    for name, values in terms.items():
        gradients = torch.autograd.grad(values.mean() * scale, weights.working, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        found[f"gradient_norm/{name}"] = float(torch.stack(squares).sum().sqrt()) / scale if squares else 0.0
    return found
