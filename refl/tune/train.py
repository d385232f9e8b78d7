"""Fine-tune a restorer on preferences: one loop around the step of an algorithm, refl, dpo, gdpo or grpo.

One plain function, the same on a CPU, one GPU, many, and many hosts. Every random number follows from the seed, the
step and the face's place, so that a training that is continued is the one that was never stopped, and micro-batches and
processes change nothing but the speed. Every decision (to check held-out faces, to save, to stop) is taken by all
processes alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refl.tune.brake import decide, find_factor, find_good_step, is_stopped, list_actions
from refl.tune.config import Algorithm, ReflConfig
from refl.tune.dpo import take_dpo_step
from refl.tune.gdpo import take_gdpo_step
from refl.tune.grpo import take_grpo_step
from refl.tune.hard import keep_hard_faces
from refl.tune.judges import Judge
from refl.tune.live_reward import choose_inputs, compute_rewards
from refl.tune.monitor import FaceRewards
from refl.tune.parts import FacePart, Part, read_parts
from refl.tune.people_judge import PeopleJudge, StoppedWaiting
from refl.tune.refl import take_refl_step
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
from refl.tune.setup import start
from refl.tune.sums import take_means
from refl.tune.training import Material, Training
from training.processes import agree_on_largest
from training.run import Progress, end_where_asked, tell_step
from training.stopping import advise_out_of_memory, stop_at_next_step
from training.tracking import end_tracker, start_tracker, track_image

log = logging.getLogger(__name__)

TAKE_STEP: dict[Algorithm, Callable[..., tuple[dict[str, float], list[Tensor]]]] = {
    "refl": take_refl_step,
    "dpo": take_dpo_step,
    "gdpo": take_gdpo_step,
    "grpo": take_grpo_step,
}


def train(material: Material, config: ReflConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or continue what `out/last` holds, until `max_steps` or the budget's end.

    Leaves `out/last` and `out/tuned`.

    Under `accelerate launch` every process calls this, and `out` is a folder that all of them see. A signal to
    any of them ends training after the step with a checkpoint, a second SIGTERM or SIGINT at once.

    Returns:
        step; evaluations of the network; seconds of this call after the preparation; hacking, the step at which the
        monitor first saw it or None;
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
        if config.algorithm.hard_share < 1:
            keep_hard_faces(training, out)
        if training.step == 0 and not training.checks:
            training.live.first_margins = training.live.measure_margins()
            if monitor:
                check_held_out(training, out)
        elif brakes:
            mend_good(training, out)
        if is_stopped(training.checks):
            log.info("the brake ended this training after step %s; tuned/ is its result", f"{training.step:,}")
        is_done = is_stopped(training.checks) or training.is_spent
        steps = range(training.step, training.step if is_done else settings.max_steps)
        inputs = read_parts(training, steps)
        began = logged = time.monotonic()
        logged_step = training.step
        with stop_at_next_step() as stop_asked:
            for step in steps:
                if isinstance(training.judge, PeopleJudge):
                    training.judge.begin_step(accelerator, out.name, step, stop_asked)
                try:
                    values = train_step(training, step, inputs)
                except StoppedWaiting:
                    save_last(training, out)
                    raise
                training.step = done = step + 1
                ends = done == settings.max_steps or training.is_spent
                stop = agree_on_largest(accelerator, stop_asked())
                if done % settings.log_every_steps == 0 or ends:
                    values |= take_means(training) | {"evaluations": training.evaluations.total}
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
                if gives_up or training.is_spent:
                    break
                end_where_asked(stop, done, settings.max_steps)
        seconds = time.monotonic() - began
        end_tracker(accelerator)
    result: dict[str, Any] = {"step": training.step, "evaluations": training.evaluations.total, "seconds": seconds}
    result["hacking"] = first_hacking(training)
    if training.judge is not None:
        result["judge"] = {"name": training.judge.name, "version": training.judge.version}
    if brakes:
        result["brake"] = {"good_step": find_good_step(training.checks), "actions": list_actions(training.checks)}
    return result


def train_step(training: Training, step: int, inputs: Iterator[list[Part]]) -> dict[str, float]:
    """Take the algorithm's step over all micro-batches and processes, then the reward model's own where it is due.

    An algorithm's step takes the parts of this process, has the optimizer take one step or more, and gives what it has
    to report and, of each part, (N, 3, H, W) restored images; what is told as a mean it adds to the sums.

    Returns:
        what this step alone has to report: gradient norms when they are logged, the reward model's update.
    Raises:
        UserError: a term, a reward or the gradient is not finite.
    """
    config = training.config
    training.weights.set_learning_rate(compute_learning_rate(step, config) * find_factor(training.checks))
    parts = next(inputs)
    with training.evaluations.counting():
        values, restored = TAKE_STEP[config.method](training, step, parts)
    training.evaluations.add_up(training.accelerator)
    if (step + 1) % config.train.log_every_steps:
        values = {}
    if training.live.is_due(step):
        values |= update_reward(training, step, restored, parts)
    return values


def update_reward(training: Training, step: int, restored: Sequence[Tensor], parts: Sequence[Part]) -> dict[str, float]:
    """The reward model's own step on what this step restored; a process without images learns with the others."""
    none = torch.zeros(0, 3, 1, 1, device=training.accelerator.device)
    faces = [part for part in parts if isinstance(part, FacePart)]
    images = torch.cat(list(restored)).clamp(0, 1) if restored else none
    hq = torch.cat([part.hq for part in faces]) if faces else none
    captions = [caption for part in faces for caption in part.captions]
    lq = torch.cat([part.lq for part in faces]) if faces else none
    found = training.live.update(step, images, hq, captions, choose_inputs(training.live.model, lq, hq))
    return {f"live_reward/{name}": value for name, value in found.items()}


def compute_learning_rate(step: int, config: ReflConfig) -> float:
    """The rate of a step, from 0: linear warmup, then constant as published."""
    warmup = config.train.warmup_steps
    return config.train.learning_rate * min(1.0, (step + 1) / warmup if warmup else 1.0)


def check_held_out(training: Training, out: Path) -> tuple[dict[str, float], bool]:
    """Let the monitor check the held-out faces and write its grid; warn of hacking, and brake. A collective.

    Returns:
        means for the progress line, and whether training is to end, the same on every process.
    """
    monitor, step, accelerator = training.monitor, training.step, training.accelerator
    assert monitor is not None
    with training.weights.averaged():
        means, verdict, restored = monitor.check(step, partial(restore, training), list_rewards(training), accelerator)
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


def list_rewards(training: Training) -> dict[str, FaceRewards]:
    """What rewards the monitor's faces: the judge, or the reward model as it is and as it was; none where none is."""
    if training.judge is not None:
        asks_people = isinstance(training.judge, PeopleJudge)  # who are asked about no held-out face
        return {} if asks_people else {"live": partial(judge_held_out, training, training.judge)}
    if training.frozen_reward is None:
        return {}
    captions = [face.caption for face in training.held_out]
    models = {"live": training.live.model, "frozen": training.frozen_reward}
    return {name: partial(reward_held_out, training, model, captions) for name, model in models.items()}


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


def judge_held_out(training: Training, judge: Judge, images: Tensor, places: Sequence[int]) -> Tensor:
    """As `reward_held_out`, by a judge without gradient."""
    monitor, at = training.monitor, list(places)
    assert monitor is not None
    faces = [training.held_out[place] for place in places]
    captions, names = [face.caption for face in faces], [face.name for face in faces]
    return judge.score(images, monitor.lq[at], monitor.hq[at], captions, names)


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
