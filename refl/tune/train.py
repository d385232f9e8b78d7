"""Fine-tune a restorer by the gradient of a reward, held by terms of structure, perception, identity and change.

One plain function, the same on a CPU, one GPU, many, and many hosts. Every random number follows from the seed, the
step and the face's place, so that a training that is continued is the one that was never stopped, and micro-batches and
processes change nothing but the speed. Every decision (to check held-out faces, to save, to stop) is taken by all
processes alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from db.errors import UserError
from refl.faces.color_fix import fix_color
from refl.restorers.surface import make_generators
from refl.tune.brake import decide, find_factor, find_good_step, is_stopped, list_actions
from refl.tune.config import ReflConfig
from refl.tune.data import stack, use_one_thread
from refl.tune.live_reward import choose_inputs, compute_rewards
from refl.tune.losses import compute_change, compute_pull, compute_reward_loss, compute_structure_loss
from refl.tune.sampling import Outcome, Rollout, Trajectory, iterate_outcomes, join, roll_out
from refl.tune.save import (
    first_hacking,
    go_back,
    keep_copy,
    mend_good,
    rolls_back,
    save_good,
    save_last,
    save_tuned,
    write_checks,
)
from refl.tune.setup import Material, Training, list_sums, list_terms, start
from reward.model.reward_set import RewardSet, compute_spread
from training.batches import choose_batch, make_loader, split_batch
from training.processes import agree_on_largest, sum_tensors
from training.run import Progress, end_where_asked, tell_step
from training.stopping import advise_out_of_memory, stop_at_next_step
from training.tracking import end_tracker, start_tracker, track_image

log = logging.getLogger(__name__)

TRAJECTORY_DRAW, NOISE_DRAW = 1, 2
"""Keep the seeds of different draws apart."""
MAX_NAMED = 4


@dataclass(frozen=True)
class Part:
    """One process's micro-batch."""

    places: list[int]
    hq: Tensor
    lq: Tensor
    captions: list[str | None]


def train(material: Material, config: ReflConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or continue what `out/last` holds, until `max_steps`; leaves `out/last` and `out/tuned`.

    Under `accelerate launch` every process calls this, and `out` is a folder that all of them see. A signal to
    any of them ends training after the step with a checkpoint, a second SIGTERM or SIGINT at once.

    Returns:
        step; seconds of this call after the preparation; hacking, the step at which the monitor first saw it or None;
        under the brake `brake`, the step of `tuned/` and what was done.
    Raises:
        UserError: nothing to train on, an image is missing or damaged, `out` holds another training, the memory does
            not suffice, a term is not finite.
        RunStopped: a signal came; the checkpoint is written.
    """
    with explain_out_of_memory(config):
        training = start(material, config, out)
        accelerator, monitor, settings = training.accelerator, training.monitor, config.train
        start_tracker(accelerator, settings.tracker, {k: v for t in config.model_dump().values() for k, v in t.items()})
        brakes = settings.on_hacking == "brake"
        if training.step == 0 and not training.checks:
            training.live.first_margins = training.live.measure_margins()
            if monitor:
                check_held_out(training, out)
        elif brakes:
            mend_good(training, out)
        if is_stopped(training.checks):
            log.info("the brake ended this training after step %s; tuned/ is its result", f"{training.step:,}")
        steps = range(training.step, training.step if is_stopped(training.checks) else settings.max_steps)
        inputs = read_parts(training, steps)
        began = logged = time.monotonic()
        logged_step = training.step
        with stop_at_next_step() as stop_asked:
            for step in steps:
                values = train_step(training, step, inputs)
                training.step = done = step + 1
                ends = done == settings.max_steps
                stop = agree_on_largest(accelerator, stop_asked())
                if done % settings.log_every_steps == 0 or ends:
                    values |= take_means(training)
                    # with the checks and checkpoints in between
                    values["seconds_per_step"] = (time.monotonic() - logged) / (done - logged_step)
                    if accelerator.device.type == "cuda":
                        values["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
                    logged, logged_step = time.monotonic(), done
                gives_up = saved = False
                if monitor and (done % settings.monitor_every_steps == 0 or ends):
                    seen, gives_up = check_held_out(training, out)
                    values |= seen
                    saved = brakes
                if not saved and (stop or ends or gives_up or done % settings.checkpoint_every_steps == 0):
                    save_last(training, out)
                if settings.keep_every_steps and done % settings.keep_every_steps == 0:
                    keep_copy(training, out)
                tell_step(accelerator, progress, done, settings.max_steps, values)
                if gives_up:
                    break
                end_where_asked(stop, done, settings.max_steps)
        seconds = time.monotonic() - began
        end_tracker(accelerator)
    result: dict[str, Any] = {"step": training.step, "seconds": seconds, "hacking": first_hacking(training)}
    if brakes:
        result["brake"] = {"good_step": find_good_step(training.checks), "actions": list_actions(training.checks)}
    return result


def read_parts(training: Training, steps: range) -> Iterator[list[Part]]:
    """This process's micro-batches of each step, decoded and degraded ahead by worker processes."""
    accelerator, config = training.accelerator, training.config.train
    planned = [
        split_batch(
            choose_batch(step, len(training.faces), config.batch_size, config.seed),
            accelerator.num_processes,
            accelerator.process_index,
            training.micro_batch_size,
        )
        for step in steps
    ]
    keys = [
        [(step, int(place)) for place in part] for step, parts in zip(steps, planned, strict=True) for part in parts
    ]
    pinned = accelerator.device.type == "cuda"
    batches = make_loader(training.images, keys, stack, config.workers, pinned, use_one_thread)
    for parts in planned:
        found = []
        for places in parts:
            hq, lq = (images.to(accelerator.device, non_blocking=True) for images in next(batches))
            captions = [training.faces[place].caption for place in places]
            found.append(Part(places.tolist(), hq, lq, captions))
        yield found


def train_step(training: Training, step: int, inputs: Iterator[list[Part]]) -> dict[str, float]:
    """Take one optimizer step over all micro-batches and processes, then the reward model's own where it is due.

    Returns:
        what this step alone has to report: gradient norms when they are logged, the reward model's update.
    Raises:
        UserError: a term or the gradient is not finite.
    """
    config, weights = training.config, training.weights
    weights.set_learning_rate(compute_learning_rate(step, config) * find_factor(training.checks))
    batch_images = len(choose_batch(step, len(training.faces), config.train.batch_size, config.train.seed))
    trajectory = draw_trajectory(training, step)
    logs = (step + 1) % config.train.log_every_steps == 0
    values: dict[str, float] = {}
    parts = next(inputs)
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
            weights.backward(torch.stack(list(terms.values())).sum() / (batch_images * turns))
            add_sums(training, terms, apart, turns)
        restored.append(image.detach())
        del outcomes, outcome, terms, apart, image  # the graph, before the next one is built
    gradient_norm = weights.step(training.accelerator, config.train.max_gradient_norm, step + 1)
    if logs:
        values["gradient_norm"] = gradient_norm
    if training.live.is_due(step):
        values |= update_reward(training, step, restored, parts)
    return values


def roll_out_parts(training: Training, parts: Sequence[Part], trajectory: Trajectory, step: int) -> Iterator[Rollout]:
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


def draw_trajectory(training: Training, step: int) -> Trajectory:
    """This step's trajectory, one for all its images, so that they go through the model together."""
    config = training.config.trajectory
    rng = np.random.default_rng([training.config.train.seed, TRAJECTORY_DRAW, step])
    low, high = config.gradient_window
    index = int(rng.integers(low, high, endpoint=True))
    etas = [float(eta) for eta in rng.uniform(*config.eta, size=len(training.plan))]
    return Trajectory(training.plan, etas, index, config.unroll, config.renoise)


def noise_seed(seed: int, step: int, place: int) -> int:
    """The seed of one image's noise at one step."""
    return int(np.random.default_rng([seed, NOISE_DRAW, step, place]).integers(2**63 - 1))


def decode(training: Training, outcome: Outcome) -> Tensor:
    """(N, 3, H, W) about [0, 1], not clamped; with the colour fix where training is to see it."""
    restored = training.restorer.decode(outcome.x0)
    if not training.config.loss.color_fix:
        return restored
    return fix_color(restored, outcome.cleaned, training.restorer.use.color_fix)


def compute_terms(
    training: Training, outcome: Outcome, restored: Tensor, part: Part
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


def update_reward(training: Training, step: int, restored: Sequence[Tensor], parts: Sequence[Part]) -> dict[str, float]:
    """The reward model's own step on what this step restored; a process without images learns with the others."""
    none = torch.zeros(0, 3, 1, 1, device=training.accelerator.device)
    images = torch.cat(list(restored)).clamp(0, 1) if restored else none
    hq = torch.cat([part.hq for part in parts]) if parts else none
    captions = [caption for part in parts for caption in part.captions]
    lq = torch.cat([part.lq for part in parts]) if parts else none
    found = training.live.update(step, images, hq, captions, choose_inputs(training.live.model, lq, hq))
    return {f"live_reward/{name}": value for name, value in found.items()}


def compute_learning_rate(step: int, config: ReflConfig) -> float:
    """The rate of a step, from 0: linear warmup, then constant as published."""
    warmup = config.train.warmup_steps
    return config.train.learning_rate * min(1.0, (step + 1) / warmup if warmup else 1.0)


def add_sums(training: Training, terms: dict[str, Tensor], apart: list[Tensor], turns: int) -> None:
    """Add (N,) values of each term, and of what else is told, to the sums since the last progress line."""
    stacked = torch.stack([*terms.values(), *apart]).detach().double()
    training.sums[:-1] += stacked.sum(dim=1) / turns
    training.sums[-1] += stacked.shape[1] / turns


def take_means(training: Training) -> dict[str, float]:
    """The mean of each term over all images and processes since the last call, their sum, and the mean reward."""
    names, sums = list_sums(training.config, training.live), training.sums.clone()
    sum_tensors(training.accelerator, [sums])
    *totals, images = sums.tolist()
    training.sums.zero_()
    values = {name: total / images for name, total in zip(names, totals, strict=True)}
    values["loss"] = sum(values[f"loss/{term}"] for term in list_terms(training.config))
    if "loss/reward" in names:
        values["reward"] = 1 - values["loss/reward"] / training.config.loss.reward_weight
    return values


def check_held_out(training: Training, out: Path) -> tuple[dict[str, float], bool]:
    """Let the monitor check the held-out faces and write its grid; warn of hacking, and brake. A collective.

    Returns:
        means for the progress line, and whether training is to end, the same on every process.
    """
    monitor, step, accelerator = training.monitor, training.step, training.accelerator
    assert monitor is not None
    captions = [face.caption for face in training.held_out]
    models = {"live": training.live.model, "frozen": training.frozen_reward}
    rewards = {name: partial(reward_held_out, training, model, captions) for name, model in models.items()}
    with training.weights.averaged():
        means, verdict, restored = monitor.check(step, partial(restore, training), rewards, accelerator)
    if accelerator.is_main_process:
        grid = out / "grids" / f"{step:06d}.png"
        monitor.write_grid(grid, restored)
        track_image(accelerator, training.config.train.tracker, "held_out", grid, step)
    values = {f"held_out/{name}": value for name, value in means.items()}
    accuracy = training.live.measure_accuracy()
    if accuracy is not None:
        values["held_out/human_accuracy"] = accuracy
    if verdict and verdict.hacking:
        log.warning("step %s: the reward rose while %s fell, twice in a row: hacking", step, ", ".join(verdict.fallen))
    elif verdict and verdict.suspicious:
        log.warning("step %s: the reward rose while %s fell: suspicious", step, ", ".join(verdict.fallen))
    gives_up = bool(verdict and verdict.hacking and training.config.train.on_hacking != "warn")
    if training.config.train.on_hacking == "brake":
        gives_up = brake(training, out)
        values["brake/learning_rate_factor"] = find_factor(training.checks)
    elif rolls_back(training) and not (verdict and verdict.suspicious):
        save_tuned(training, out)
    if accelerator.is_main_process:
        write_checks(training, out)
    return values, gives_up


def brake(training: Training, out: Path) -> bool:
    """Do what the brake's rule says after the newest check, and write `last/`, so that no decision is ever lost.

    Returns:
        whether training is to end.
    """
    settings, monitor = training.config.train, training.monitor
    assert monitor is not None
    decision = decide(monitor.history, settings.brake_factor, settings.brake_backs_max)
    monitor.history[-1]["brake"] = vars(decision)
    if decision.action in ("keep", "wait"):
        monitor.hold_good()
    else:
        log.warning("step %s: %s: %s", training.step, decision.action, decision.reason)
    if decision.action in ("back", "stop"):
        go_back(training, out)
    save_last(training, out)
    if decision.action == "keep":
        save_good(training, out)
    return decision.action == "stop"


def restore(training: Training, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
    """(N, 3, H, W) restored images in [0, 1] of (N, 3, H, W) on any device."""
    restored: Tensor = training.restorer.restore(lq.to(training.accelerator.device), seeds, steps)
    return restored


@torch.no_grad()
def reward_held_out(
    training: Training, model: nn.Module, captions: Sequence[str | None], images: Tensor, places: Sequence[int]
) -> Tensor:
    """(N,) rewards of (N, 3, H, W) images in [0, 1] of the monitor's faces of these places."""
    monitor, device, at = training.monitor, training.accelerator.device, list(places)
    assert monitor is not None
    inputs = choose_inputs(model, monitor.lq[at], monitor.hq[at])
    seen = None if inputs is None else inputs.to(device)
    return compute_rewards(model, images.to(device), [captions[place] for place in places], seen)


def explain_out_of_memory(config: ReflConfig) -> AbstractContextManager[None]:
    """`advise_out_of_memory` for a training."""

    def advise() -> str:
        train = config.train
        hints = []
        if train.micro_batch_size != 1:
            hints.append("micro_batch_size to 1 (the batch and the result stay)")
        if not train.gradient_checkpointing:
            hints.append("gradient_checkpointing to true")
        if train.mixed_precision == "no" and torch.cuda.is_available():
            hints.append("mixed_precision to bf16 in a new --out")
        if train.trainable == "control":
            hints.append("trainable to lora in a new --out")
        return f"Out of memory. Set {', or '.join(hints or ['image_size_px lower'])}."

    return advise_out_of_memory(advise)
