"""Train a reward model on labelled pairs: one plain function, the same on a CPU, one GPU, many, and many hosts.

Only the first weights are random: the pairs and the learning rate of each step follow from the seed and the step, so
that a continued training equals one that was never stopped.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from reward.data import Pairs
from reward.model.checkpoint import save_model
from reward.model.config import ModelConfig
from reward.model.model import clamp_logit_scale
from reward.train.config import RewardTrainConfig
from reward.train.loss import compute_losses
from reward.train.pairs import measure
from reward.train.savings import explain_out_of_memory
from reward.train.setup import Training, start
from training.batches import choose_batch, split_batch
from training.processes import agree_on_largest
from training.run import Progress, end_where_asked, tell_step
from training.state import get_random_states, keep_step, save_checkpoint
from training.stopping import stop_at_next_step
from training.tracking import end_tracker, start_tracker

log = logging.getLogger(__name__)


def train(
    pairs: Pairs, model_config: ModelConfig, config: RewardTrainConfig, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Train, or continue what `out/last` holds, until `max_steps`; leaves `out/last` and `out/best`.

    Under `accelerate launch` every process calls this, and `out` is a folder that all of them see. A signal to
    any of them ends training after the step with a checkpoint, a second SIGTERM or SIGINT at once.

    Args:
        pairs: the whole dataset; its train split is trained on, people's labels of its val split are measured on.
    Returns:
        step; best, what was measured of `best/` (None without validation); seconds of this call after the preparation.
    Raises:
        UserError: nothing to train or measure on, an image is missing or damaged, `out` holds another training, the
            memory does not suffice, the loss is not finite.
        RunStopped: a signal came; the checkpoint is written.
    """
    with explain_out_of_memory(config, processes=int(os.environ.get("WORLD_SIZE", "1"))):
        training = start(pairs, model_config, config, out)
        accelerator = training.accelerator
        start_tracker(accelerator, config.tracker, {**training.record["model"], **training.record["train"]})
        n_pairs = len(training.pairs)

        def plan(step: int) -> list[list[int]]:
            """This process's micro-batches of a step: places of pairs."""
            batch = choose_batch(step, n_pairs, config.batch_size, config.seed)
            place = accelerator.num_processes, accelerator.process_index, training.micro_batch_size
            return [part.tolist() for part in split_batch(batch, *place)]

        steps = range(training.step, config.max_steps)
        inputs = training.reader.read(training.pairs, (part for step in steps for part in plan(step)))
        began = logged = time.monotonic()
        with stop_at_next_step() as stop_asked:
            for step in steps:
                batch_pairs = len(choose_batch(step, n_pairs, config.batch_size, config.seed))
                gradient_norm = train_step(training, inputs, plan(step), batch_pairs)
                training.step = done = step + 1
                values: dict[str, float] = {}
                stop = agree_on_largest(accelerator, stop_asked())
                if done % config.log_every_steps == 0 or done == config.max_steps:
                    values |= take_means(training)
                    now = time.monotonic()
                    values |= {
                        "gradient_norm": gradient_norm,
                        "learning_rate": compute_learning_rate(step, config),
                        "logit_scale": float(training.model.logit_scale.detach()),
                        "pairs_per_second": values.pop("pairs") / max(now - logged, 1e-9),
                    }
                    if accelerator.device.type == "cuda":
                        values["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
                    logged = now
                if config.validate_every_steps and (
                    done % config.validate_every_steps == 0 or done == config.max_steps
                ):
                    values |= validate(training, out)
                if done == config.max_steps and not config.validate_every_steps:
                    save_best(training, out, {})
                if config.keep_every_steps and done % config.keep_every_steps == 0:
                    keep_copy(training, out)
                if stop or done % config.checkpoint_every_steps == 0 or done == config.max_steps:
                    save_last(training, out)
                tell_step(accelerator, progress, done, config.max_steps, values)
                end_where_asked(stop, done, config.max_steps)
        seconds = time.monotonic() - began
        end_tracker(accelerator)
    return {"step": training.step, "best": training.best, "seconds": seconds}


def train_step(training: Training, inputs: Iterator[Tensor], parts: list[list[int]], batch_pairs: int) -> float:
    """One optimizer step: the gradient of the mean over all pairs of the batch, over micro-batches and processes.

    Args:
        inputs: what the scorer takes, of each part in turn.
        parts: this process's places of pairs; none where the batch does not reach for every process.
        batch_pairs: pairs of the whole batch.
    Returns:
        the length of the gradient before clipping.
    Raises:
        UserError: the gradient is not finite.
    """
    accelerator, config, weights = training.accelerator, training.config, training.weights
    weights.set_learning_rate(compute_learning_rate(training.step, config))
    for places in parts:
        rows = [training.pairs.rows[place] for place in places]
        p_a = torch.tensor([row.p_a for row in rows], device=accelerator.device)
        label_weights = training.label_weights[:, places].to(accelerator.device)
        cosines, logits = training.scorer(next(inputs), [row.caption for row in rows])
        losses = compute_losses(logits.float(), p_a, label_weights)
        weights.backward(losses.sum() / batch_pairs)
        training.sums += sum_up(losses.detach(), cosines.detach().float().mean(dim=0), p_a)
    gradient_norm = weights.step(accelerator, config.max_gradient_norm, training.step + 1)
    clamp_logit_scale(training.model)
    return gradient_norm


def compute_learning_rate(step: int, config: RewardTrainConfig) -> float:
    """The rate of a step, from 0: linear warmup, then half a cosine to 0; as HPSv2's `cosine_lr`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * share)) / 2


def sum_up(losses: Tensor, cosines: Tensor, p_a: Tensor) -> Tensor:
    """Sum up what progress lines are means of, over (B,) weighted losses and (2, B) cosines.

    Returns:
        (6,) sums of loss and 1 over all pairs; of 1, chosen, rejected and accuracy over those that are not ties.
    """
    decided = p_a != 0.5
    a_chosen = p_a > 0.5
    chosen, rejected = torch.where(a_chosen, cosines[0], cosines[1]), torch.where(a_chosen, cosines[1], cosines[0])
    right = (1 + torch.sign(chosen - rejected)) / 2
    of_decided = [(values * decided).sum() for values in (torch.ones_like(chosen), chosen, rejected, right)]
    return torch.stack([losses.sum(), torch.ones_like(losses).sum(), *of_decided])


def take_means(training: Training) -> dict[str, float]:
    """The means over all processes since the last call, and `pairs`, their number."""
    loss, pairs, decided, chosen, rejected, right = training.accelerator.reduce(training.sums, "sum").tolist()
    training.sums.zero_()
    values = {"loss": loss / pairs, "pairs": pairs}
    if decided:
        values |= {
            "rewards/chosen": chosen / decided,
            "rewards/rejected": rejected / decided,
            "rewards/margins": (chosen - rejected) / decided,
            "rewards/accuracies": right / decided,
        }
    return values


def validate(training: Training, out: Path) -> dict[str, float]:
    """Measure the held-out human labels; a model that is more accurate, or as much at less loss, becomes `best/`.

    Returns:
        the values of a progress line.
    """
    with training.weights.averaged():
        measured = measure(training.scorer, training.reader, training.held_out, training.micro_batch_size)
    before = training.best
    if before is None or (measured["accuracy"], -measured["loss"]) > (before["accuracy"], -before["loss"]):
        save_best(training, out, measured)
    return {f"val/{name}": value for name, value in measured.items()}


def save_best(training: Training, out: Path, measured: dict[str, float]) -> None:
    """Write `best/`: the averaged weights where an average is kept."""
    training.best = {"step": training.step, **measured} if measured else None
    if training.accelerator.is_main_process:
        record = {**training.record, "step": training.step, "validation": measured or None}
        write = partial(save_model, training.model, values=training.weights.best_values())
        save_checkpoint(out / "best", write, record)
    training.accelerator.wait_for_everyone()


def keep_copy(training: Training, out: Path) -> None:
    """Write `steps/NNNNNN`, as usable as `best/` and measured or not."""
    if training.accelerator.is_main_process:
        record = {**training.record, "step": training.step}
        write = partial(save_model, training.model, values=training.weights.best_values())
        keep_step(out, training.step, training.config.keep_steps_max, write, record)
    training.accelerator.wait_for_everyone()


def save_last(training: Training, out: Path) -> None:
    """Write `last/`, all that an exact continuation needs."""
    accelerator = training.accelerator
    training.sums = accelerator.reduce(training.sums, "sum")
    random = gather_object([get_random_states()])
    if accelerator.is_main_process:
        state = {
            "step": training.step,
            "best": training.best,
            "weights": training.weights.state_dict(),
            "sums": training.sums,
            "random": random,
        }
        record = {**training.record, "step": training.step, "best": training.best}
        write = partial(save_model, training.model, values=training.weights.values())
        save_checkpoint(out / "last", write, record, state)
    else:
        training.sums.zero_()
    accelerator.wait_for_everyone()
