"""ReFL: fine-tune a restorer by the gradient of a reward, held by a structural, a perceptual and a regularizing term.

One plain function, the same on a CPU, one GPU, many, and many hosts. Every random number follows from the seed, the
step and the face's place, so that a training that is continued is the one that was never stopped, and micro-batches and
processes change nothing but the speed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from refl.color_fix import fix_color
from refl.live_reward import average_gradients
from refl.losses import compute_control_change, compute_reward_loss, compute_structure_loss
from refl.monitor import Verdict
from refl.restorers.surface import make_generators
from refl.sampling import Outcome, Trajectory, iterate_outcomes
from refl.train_config import ReflConfig
from refl.train_data import stack, use_one_thread
from refl.train_setup import Material, Training, save_monitor, start
from reward.averages import averaged_weights
from reward.batches import choose_batch, ignore_signals, split_batch
from reward.checkpoint import save_model
from reward.model import RewardModel
from reward.stopping import is_out_of_memory, stop_at_next_step
from reward.training_state import keep_step, save_checkpoint
from runs import UserError
from runs.store import RunStopped

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], None]
"""Told (steps done, steps in all, values), on the main process."""
TRAJECTORY_DRAW, NOISE_DRAW = 1, 2
"""Keep the seeds of different draws apart."""
MAX_NAMED = 4


@dataclass(frozen=True)
class Part:
    """One process's micro-batch."""

    places: list[int]
    counted: int
    """0 where it only keeps this process in step with the others."""
    hq: Tensor
    lq: Tensor
    captions: list[str | None]


def train(material: Material, config: ReflConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or continue what `out/last` holds, until `max_steps`; leaves `out/last` and `out/tuned`.

    Under `accelerate launch` every process calls this, and `out` is a folder that all of them see. The first SIGTERM or
    SIGINT ends training after the step with a checkpoint, the second at once.

    Returns:
        step; seconds of this call after the preparation; hacking, the step at which the monitor first saw it or None.
    Raises:
        UserError: nothing to train on, an image is missing or damaged, `out` holds another training, the memory does
            not suffice, a term is not finite.
        RunStopped: a signal came; the checkpoint is written.
    """
    with explain_out_of_memory(config):
        training = start(material, config, out)
        accelerator, monitor = training.accelerator, training.monitor
        if training.step == 0:
            training.live.first_accuracy = training.live.measure_accuracy()
            if monitor and accelerator.is_main_process:
                look(training, out)
        steps = range(training.step, config.train.max_steps)
        inputs = read_parts(training, steps)
        began = logged = time.monotonic()
        logged_step = training.step
        with stop_at_next_step() as stop_asked:
            for step in steps:
                values = take_step(training, step, inputs)
                training.step = done = step + 1
                ends = done == config.train.max_steps
                stop = stop_asked()
                if accelerator.num_processes > 1:
                    stop = int(accelerator.gather(torch.tensor([stop], device=accelerator.device)).max())
                if done % config.train.log_every_steps == 0 or ends:
                    values |= take_means(training)
                    # with the looks and checkpoints in between
                    values["seconds_per_step"] = (time.monotonic() - logged) / (done - logged_step)
                    if accelerator.device.type == "cuda":
                        values["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
                    logged, logged_step = time.monotonic(), done
                verdict = None
                every = config.train.monitor_every_steps
                if monitor and (done % every == 0 or ends):
                    if accelerator.is_main_process:
                        seen, verdict = look(training, out)
                        values |= seen
                    accelerator.wait_for_everyone()
                if config.train.keep_every_steps and done % config.train.keep_every_steps == 0:
                    keep_copy(training, out)
                if stop or ends or verdict or done % config.train.checkpoint_every_steps == 0:
                    save_last(training, out)
                if values and progress and accelerator.is_main_process:
                    progress(done, config.train.max_steps, values)
                if verdict and verdict.hacking and config.train.on_hacking != "warn":
                    break
                if stop and not ends:
                    log.info("stopped after step %s; the same command continues", done)
                    raise RunStopped(128 + stop)
        seconds = time.monotonic() - began
    return {"step": training.step, "seconds": seconds, "hacking": first_hacking(training)}


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
        [(step, int(place)) for place in part] for step, parts in zip(steps, planned, strict=True) for part, _ in parts
    ]

    def prepare_worker(worker: int) -> None:
        ignore_signals(worker)
        use_one_thread(worker)

    loader: Any = DataLoader(
        training.images,
        batch_sampler=keys,
        collate_fn=stack,
        num_workers=config.workers,
        worker_init_fn=prepare_worker,
        pin_memory=accelerator.device.type == "cuda",
    )
    batches = iter(loader)
    for parts in planned:
        found = []
        for places, counted in parts:
            hq, lq = (images.to(accelerator.device, non_blocking=True) for images in next(batches))
            captions = [training.faces[place].caption for place in places]
            found.append(Part(places.tolist(), counted, hq, lq, captions))
        yield found


def take_step(training: Training, step: int, inputs: Iterator[list[Part]]) -> dict[str, float]:
    """One optimizer step over all micro-batches and processes, then the reward model's own where it is due.

    Returns:
        what this step alone has to say: gradient norms when they are logged, the reward model's update.
    Raises:
        UserError: a term or the gradient is not finite.
    """
    accelerator, config = training.accelerator, training.config
    for group in training.optimizer.param_groups:
        group["lr"] = compute_learning_rate(step, config)
    batch_images = len(choose_batch(step, len(training.faces), config.train.batch_size, config.train.seed))
    trajectory = draw_trajectory(training, step)
    logs = (step + 1) % config.train.log_every_steps == 0
    values: dict[str, float] = {}
    made: list[tuple[Tensor, Part]] = []
    for number, part in enumerate(next(inputs)):
        # accelerate's reduction is a mean over processes, so each one's share of the mean is taken that often
        share = accelerator.num_processes / batch_images * (part.counted > 0)
        with accelerator.autocast():
            generators = make_generators([noise_seed(config.train.seed, step, place) for place in part.places])
            outcomes = iterate_outcomes(
                training.restorer, part.lq, training.embedding, trajectory, generators, training.frozen_control
            )
            for turn, outcome in enumerate(outcomes):
                restored = decode(training, outcome)
                terms = compute_terms(training, outcome, restored, part)
                if logs and number == 0 and turn == 0 and config.train.gradient_norms:
                    values |= measure_gradient_norms(training, terms)
                total = torch.stack(list(terms.values())).sum() * (share / max(1, trajectory.renoise))
                accelerator.backward(total)
                if part.counted:
                    add_sums(training, terms, max(1, trajectory.renoise))
        if part.counted:
            made.append((restored.detach(), part))
    average_gradients(accelerator, training.trained)
    longest = config.train.max_gradient_norm or math.inf
    gradient_norm = float(accelerator.clip_grad_norm_(training.trained, longest))
    if not math.isfinite(gradient_norm) and accelerator.scaler is None:  # a scaler leaves such a step out
        raise UserError(
            f"The gradient of step {step + 1} is not finite. Lower learning_rate, or set mixed_precision to no; the "
            "last checkpoint is from before."
        )
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.averages:
        kept = [parameter.detach() for parameter in training.trained]
        torch._foreach_lerp_(training.averages, kept, 1 - config.train.ema_decay)
    if logs:
        values["gradient_norm"] = gradient_norm
    if training.live.is_due(step):
        values |= update_reward(training, step, made)
    return values


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


def compute_terms(training: Training, outcome: Outcome, restored: Tensor, part: Part) -> dict[str, Tensor]:
    """(N,) of each term of the loss, times its factor; a term of factor 0 is not computed.

    Raises:
        UserError: one is not finite; names it and the faces.
    """
    loss = training.config.loss
    terms: dict[str, Tensor] = {}
    if loss.reward_weight:
        rewards = training.live.compute(restored, part.captions)
        terms["reward"] = loss.reward_weight * compute_reward_loss(rewards)
    if loss.structure_weight:
        terms["structure"] = loss.structure_weight * compute_structure_loss(restored, part.hq)
    if training.perceptual:
        terms["perceptual"] = loss.perceptual_weight * training.perceptual(restored, part.hq)
    if training.frozen_control is not None:
        change = compute_control_change(outcome.residuals, outcome.frozen)
        terms["regularizer"] = loss.regularizer_weight * change
    for name, values in terms.items():
        if not bool(torch.isfinite(values).all()):
            faces = [training.faces[place].name for place in part.places][:MAX_NAMED]
            raise UserError(
                f"The {name} term of step {training.step + 1} is not finite, with {', '.join(faces)}. Look at these "
                "faces, lower learning_rate, or set mixed_precision to no; the last checkpoint is from before."
            )
    return terms


def measure_gradient_norms(training: Training, terms: dict[str, Tensor]) -> dict[str, float]:
    """The length of each term's gradient over the trained parameters, of the first micro-batch, a mean an image."""
    found = {}
    for name, values in terms.items():
        gradients = torch.autograd.grad(values.mean(), training.trained, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        found[f"gradient_norm/{name}"] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return found


def update_reward(training: Training, step: int, made: Sequence[tuple[Tensor, Part]]) -> dict[str, float]:
    """The reward model's own step on what this step restored."""
    restored = torch.cat([images for images, _ in made])
    hq = torch.cat([part.hq for _, part in made])
    captions = [caption for _, part in made for caption in part.captions]
    found = training.live.update(step, restored.clamp(0, 1), hq, captions)
    return {f"live_reward/{name}": value for name, value in found.items()}


def compute_learning_rate(step: int, config: ReflConfig) -> float:
    """The rate of a step, from 0: linear warmup, then constant as published."""
    warmup = config.train.warmup_steps
    return config.train.learning_rate * min(1.0, (step + 1) / warmup if warmup else 1.0)


def add_sums(training: Training, terms: dict[str, Tensor], turns: int) -> None:
    """Add (N,) values of each term to the sums since the last progress line."""
    sums = training.sums
    for name, values in terms.items():
        sums[name] = sums.get(name, 0.0) + float(values.detach().sum()) / turns
    sums["images"] = sums.get("images", 0.0) + len(next(iter(terms.values()))) / turns


def take_means(training: Training) -> dict[str, float]:
    """The mean of each term over all images and processes since the last call, their sum, and the mean reward."""
    names = sorted(name for name in training.sums if name != "images")
    device = training.accelerator.device
    own = torch.tensor([training.sums[name] for name in [*names, "images"]], dtype=torch.float64, device=device)
    *sums, images = training.accelerator.reduce(own, "sum").tolist()
    training.sums = {}
    values = {f"loss/{name}": total / images for name, total in zip(names, sums, strict=True)}
    values["loss"] = sum(values.values())
    if "reward" in names:
        values["reward"] = 1 - values["loss/reward"] / training.config.loss.reward_weight
    return values


def look(training: Training, out: Path) -> tuple[dict[str, float], Verdict | None]:
    """The monitor's look at the held-out faces, with a grid; a hacking restorer is warned of, a good one kept."""
    monitor, step = training.monitor, training.step
    assert monitor is not None
    captions = [face.caption for face in training.held_out]
    models = {"live": training.live.model, "frozen": training.frozen_reward}
    rewards = {name: partial(compute_rewards, model, captions) for name, model in models.items()}
    with averaged_weights(training.trained, training.averages), training.accelerator.autocast():
        means, verdict, restored = monitor.look(step, training.restorer.restore, rewards)
    monitor.write_grid(out / "grids" / f"{step:06d}.png", restored)
    values = {f"held_out/{name}": value for name, value in means.items()}
    accuracy = training.live.measure_accuracy()
    if accuracy is not None:
        values["held_out/human_accuracy"] = accuracy
    if verdict and verdict.hacking:
        log.warning("step %s: the reward rose while %s fell: hacking", step, ", ".join(verdict.fallen))
    return values, verdict


def compute_rewards(model: RewardModel, captions: Sequence[str | None], images: Tensor) -> Tensor:
    """(N,) rewards of (N, 3, H, W) images in [0, 1]."""
    rewards: Tensor = model(images, captions)
    return rewards


def first_hacking(training: Training) -> int | None:
    """The step at which the monitor first saw hacking."""
    history = training.monitor.history if training.monitor else []
    return next((row["step"] for row in history if row["verdict"] and row["verdict"]["hacking"]), None)


def save_last(training: Training, out: Path) -> None:
    """Write `last/`, all that an exact continuation needs, and `tuned/`, which is used."""
    accelerator = training.accelerator
    if accelerator.is_main_process:
        hacking = first_hacking(training)
        record = {**training.record, "step": training.step, "hacking": hacking}
        state = {
            "step": training.step,
            "optimizer": training.optimizer.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "averages": training.averages,
            "live": training.live.state_dict(),
            "sums": training.sums,
            "monitor": save_monitor(training.monitor),
        }
        save_checkpoint(out / "last", lambda folder: save_weights(training, folder), record, state)
        if hacking is None or training.config.train.on_hacking != "roll_back":
            with averaged_weights(training.trained, training.averages):
                save_checkpoint(out / "tuned", lambda folder: save_weights(training, folder), record)
    else:
        training.sums = {}
    accelerator.wait_for_everyone()


def keep_copy(training: Training, out: Path) -> None:
    """Write `steps/NNNNNN`, as usable as `tuned/`; of a hacking restorer too, for whoever looks where it began."""
    if training.accelerator.is_main_process:
        record = {**training.record, "step": training.step, "hacking": first_hacking(training)}
        with averaged_weights(training.trained, training.averages):
            keep_max = training.config.train.keep_steps_max
            keep_step(out, training.step, keep_max, lambda folder: save_weights(training, folder), record)
    training.accelerator.wait_for_everyone()


def save_weights(training: Training, folder: Path) -> None:
    """What was trained of the restorer, and the reward model where it learns."""
    folder.mkdir(parents=True, exist_ok=True)
    training.restorer.save_trained(folder)
    if training.config.live_reward.reward_every_steps:
        save_model(training.live.model, folder / "reward")


@contextmanager
def explain_out_of_memory(config: ReflConfig) -> Iterator[None]:
    """Turn an allocator's error into what can be done about it.

    Raises:
        UserError: the memory did not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
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
        raise UserError(f"Out of memory. Set {', or '.join(hints or ['image_size_px lower'])}.") from error
