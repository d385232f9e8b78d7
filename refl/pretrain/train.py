"""Train a tiny restorer from a folder of faces: stage 1, then the autoencoder, then denoiser and ControlNet.

What a step sees follows from the seed and the step alone, so that a training that is continued is the one that was
never stopped. The first two phases do not depend on each other, so two processes may train them at once.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from db.errors import UserError
from refl.pretrain.card import write_card, write_record
from refl.pretrain.config import PHASES, THIRD_PHASE, PretrainConfig
from refl.pretrain.data import Batch, Faces, read_ahead
from refl.pretrain.phases import Phase, Progress, Training, make_phases, prepare_diffusion, validate
from refl.restorers.tiny import make_tiny, save_tiny
from refl.restorers.tiny_config import TinyConfig
from runs.space import explain_full_disk
from training.averages import averaged_weights
from training.device import choose_device
from training.precision import copy_values
from training.run import end_where_asked
from training.settings import check_settings
from training.state import find_last, load_state, read_record, save_checkpoint
from training.stopping import advise_out_of_memory, stop_at_next_step

log = logging.getLogger(__name__)


def pretrain(
    faces: Faces,
    held_out: Faces,
    digest: str,
    model: TinyConfig,
    config: PretrainConfig,
    out: Path,
    progress: Progress,
    only: str | None = None,
) -> dict[str, Any]:
    """Train the phases, or continue what `out` holds; leaves a folder that `load_tiny` reads.

    Args:
        digest: the data's hash, that a continued training must have too.
        only: a phase to train alone; None for all in turn.
    Returns:
        what was measured at the end of each phase.
    Raises:
        UserError: `out` holds another training, or a phase that `only` needs is not finished.
        RunStopped: a signal came; the checkpoint is written.
    """
    device = torch.device(choose_device(config.device))
    torch.manual_seed(config.seed)
    restorer = make_tiny(model).to(device)
    record = {"model": model.model_dump(mode="json"), "train": config.model_dump(mode="json"), "dataset_sha256": digest}
    training = Training(restorer, model, config, faces, held_out, record, out, device, progress)
    measured = {}
    smaller = "a lower batch_size or diffusion_batch_size in a new --out, or device to cpu"
    with advise_out_of_memory(lambda: f"Out of memory. Set {smaller}."), stop_at_next_step() as stop_asked:
        for phase in make_phases(training):
            if only not in (None, "diffusion", phase.name):
                continue  # the first two need no other
            optimizer = make_optimizer(phase, config)
            load_phase(training, phase, optimizer)
            if only in (None, phase.name):
                if phase.name == "diffusion":
                    prepare_diffusion(training, stop_asked)
                measured[phase.name] = train_phase(training, phase, optimizer, stop_asked)
            elif phase.step < phase.steps:
                raise UserError(f"{out / phase.name}: {phase.step:,} of {phase.steps:,} steps. Train this phase first.")
            use_averages(phase)
            training.finished[phase.name] = phase.step
    return measured


def train_phase(
    training: Training, phase: Phase, optimizer: torch.optim.Optimizer, stop_asked: Callable[[], int]
) -> dict[str, float]:
    """Take the phase's remaining steps; checkpoints as the config says and at the end."""
    config = training.config
    number = PHASES.index(phase.name)
    steps = range(phase.step, phase.steps)
    size = training.model.image_size_px
    images = read_ahead(training.faces, size, config, steps, number) if phase.name != "diffusion" else None
    training.restorer.requires_grad_(False)
    for parameter in phase.parameters:
        parameter.requires_grad_(True)
    logged = saved = time.monotonic()
    losses: list[Tensor] = []
    values: dict[str, float] = {}
    measured: dict[str, float] | None = None
    for step in steps:
        batch, seed = next(images) if images else (None, step)
        losses.append(train_step(training, phase, optimizer, batch, seed))
        phase.step = done = step + 1
        values = {}
        last = done == phase.steps
        if done % config.log_every_steps == 0 or last:
            now = time.monotonic()
            values["loss"] = float(torch.stack(losses).mean())
            values["seconds_per_step"] = (now - logged) / len(losses)
            losses, logged = [], now
            if not math.isfinite(values["loss"]):
                raise UserError(f"{phase.name}: the loss of step {done:,} is not finite. Lower its learning rate.")
        if last or (config.validate_every_steps and done % config.validate_every_steps == 0):
            with averaged_weights(phase.parameters, phase.averages):
                measured = validate(training, phase)
            values |= measured
        stop = stop_asked()
        if stop or last or time.monotonic() - saved > config.checkpoint_every_seconds:
            save(training, phase, optimizer, measured)
            saved = time.monotonic()
        if values:
            training.progress(phase.name, done, phase.steps, values)
        end_where_asked(stop, done, phase.steps, phase.name)
    return values


def train_step(
    training: Training, phase: Phase, optimizer: torch.optim.Optimizer, batch: Batch | None, seed: int
) -> Tensor:
    """Take one optimizer step and one of the average; return the loss, ()."""
    config = training.config
    for group in optimizer.param_groups:
        group["lr"] = compute_learning_rate(phase.step, phase.steps, phase.learning_rate, config)
    with torch.autocast(training.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss = phase.loss(training, batch, seed)
    loss.backward()  # type: ignore[no-untyped-call]  # of torch
    nn.utils.clip_grad_norm_(phase.parameters, config.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    decay = min(config.ema_decay, (1 + phase.step) / (10 + phase.step))  # the first steps' weights are soon forgotten
    torch._foreach_lerp_(phase.averages, [p.detach() for p in phase.parameters], 1 - decay)
    return loss.detach()


def make_optimizer(phase: Phase, config: PretrainConfig) -> torch.optim.Optimizer:
    """AdamW over the phase's parameters."""
    return torch.optim.AdamW(
        phase.parameters, lr=phase.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )


def compute_learning_rate(step: int, steps: int, rate: float, config: PretrainConfig) -> float:
    """The rate of a step, from 0: linear warmup, constant, linear to 0 over the last `decay_share`."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    left = (steps - step) / max(1.0, steps * config.decay_share)
    return rate * min(warm, left, 1.0)


def use_averages(phase: Phase) -> None:
    """Make the running averages the weights."""
    copy_values(phase.parameters, phase.averages)


def save(training: Training, phase: Phase, optimizer: torch.optim.Optimizer, measured: dict[str, float] | None) -> None:
    """Write the phase's checkpoint; of the third phase the restorer as well, as good as it is."""
    state = {
        "step": phase.step,
        "weights": [parameter.detach() for parameter in phase.parameters],
        "averages": phase.averages,
        "optimizer": optimizer.state_dict(),
    }
    save_checkpoint(training.out / phase.name / "last", None, {**training.record, "step": phase.step}, state)
    if phase.name == "diffusion":
        then = "run the same command again; it continues from this step"
        with averaged_weights(phase.parameters, phase.averages), explain_full_disk(training.out, then):
            save_tiny(training.restorer, training.model, training.out)
        counts = {"trained": len(training.faces.names), "held_out": len(training.held_out.names)}
        write_record(training.out, {**training.record, "faces": counts, "step": phase.step, "measured": measured})
        write_card(training.out)


def load_phase(training: Training, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
    """Put a phase where its checkpoint stands; nothing happens where there is none.

    Raises:
        UserError: it is damaged, or of other settings or faces.
    """
    folder = training.out / phase.name
    adopt_older(folder)
    last = find_last(folder)
    if not last:
        return
    record = read_record(last)
    if record["dataset_sha256"] != training.record["dataset_sha256"]:
        raise UserError(f"{last} was trained on other faces. Name another --out to train on these.")
    unread = () if phase.name == "diffusion" else THIRD_PHASE
    check_settings(record["model"], training.model, last, unread)
    check_settings(record["train"], training.config, last, unread)
    state = load_state(last)
    phase.step = state["step"]
    copy_values(phase.parameters, state["weights"])
    copy_values(phase.averages, state["averages"])
    optimizer.load_state_dict(state["optimizer"])


def adopt_older(folder: Path) -> None:
    """Make checkpoints of a phase's files of version 0.1: state.pt with its record inside, and latents.pt."""
    older, latents = folder / "state.pt", folder / "latents.pt"
    if older.exists():
        if not find_last(folder):
            state = load_state(folder)
            save_checkpoint(folder / "last", None, json.loads(state.pop("record")), state)
        older.unlink()
    if latents.exists():
        (folder / "latents").mkdir(exist_ok=True)
        latents.replace(folder / "latents" / "state.pt")
