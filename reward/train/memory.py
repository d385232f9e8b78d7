"""Count the memory of a reward model's training by part, before anything is loaded, by running it on fake tensors.

The model is built at full size without its numbers; a step and a validation run as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from dataset.labelled import LabelledPair
from reward.data import Pairs, to_pixels
from reward.model.config import ModelConfig
from reward.model.model import RewardModel
from reward.train.config import RewardTrainConfig
from reward.train.pairs import InputReader, PairScorer, compute_margins
from reward.train.savings import list_savings
from reward.train.setup import N_SUMS, Training, place_model
from reward.train.train import train_step
from runs.devices import CUDA_GIB
from training.accounting import MemoryCount
from training.memory import GIB
from training.without_memory import count_fake_training, make_lone_accelerator, make_moments

IMAGE_SIZE_PX = 512
"""Side of the images that are read; restorers make such faces."""
SMALLER_PRESETS = ("vit-l-14", "vit-b-32")
MICRO_BATCHES = 2
"""Of a step: gradients are there from the first on, a third needs no more than the second."""


def count_training(
    model_config: ModelConfig,
    architecture: dict[str, Any],
    config: RewardTrainConfig,
    processes: int = 1,
    device: str = "cpu",
) -> MemoryCount:
    """The memory of each process of a training, from its second step on: phases `step`, and `validation` if it has one.

    Every pair has a caption of its own, so that text costs what it can cost at most.

    Args:
        architecture: in open_clip's form.
        processes: that share a batch.
        device: "cpu", or "meta", on which host copies are seen as well and the optimizer takes no step.
    Raises:
        UserError: more is to be trained than the towers have.
    """
    with count_fake_training(device) as count:
        training = build_training(model_config, architecture, config, processes, device)
        name_parts(count, training)
        if device == "cpu":
            make_moments(training.weights)
        run_phases(count, training)
    return count


def build_training(
    model_config: ModelConfig, architecture: dict[str, Any], config: RewardTrainConfig, processes: int, device: str
) -> Training:
    """A training as `start` puts it into place, with nothing read; 8-bit moments, which need a GPU, as float32."""
    config = config.model_copy(update={"optimizer": "adamw"})
    accelerator = make_lone_accelerator(device)
    model = RewardModel(model_config, architecture).eval()
    model.gradient_checkpointing = config.gradient_checkpointing
    weights = place_model(model, config, accelerator)
    micro = config.choose_micro_batch_size(processes)
    pairs = make_pairs(MICRO_BATCHES * micro)
    return Training(
        accelerator=accelerator,
        config=config,
        model=model,
        scorer=PairScorer(model, frozen_done=config.cache_frozen),
        weights=weights,
        reader=cast(InputReader, _Reader(model, accelerator, frozen_done=config.cache_frozen)),
        pairs=pairs,
        held_out=Pairs(pairs.path, pairs.rows[:micro]),
        record={},
        micro_batch_size=micro,
        sums=torch.zeros(N_SUMS, device=device),
        label_weights=torch.ones(model_config.members, len(pairs)),
    )


def make_pairs(count: int) -> Pairs:
    """So many labels of images that are nowhere, each with another caption."""
    nowhere = Path()
    return Pairs(
        nowhere,
        tuple(
            LabelledPair(
                pair=str(number),
                image_a=nowhere,
                image_b=nowhere,
                sha256_a=None,
                sha256_b=None,
                p_a=1.0,
                weight=1.0,
                origin="human",
                made_by="",
                agreement=None,
                caption=f"face {number}",
                source=str(number),
                group=str(number),
                split="train",
                method_a=None,
                method_b=None,
                lq=None,
                hq=None,
            )
            for number in range(count)
        ),
    )


class _Reader:
    """Gives inputs as `InputReader` does, without a file."""

    def __init__(self, model: RewardModel, accelerator: Accelerator, *, frozen_done: bool) -> None:
        self.model, self.accelerator, self.frozen_done = model, accelerator, frozen_done

    def read(self, _pairs: Pairs, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        config, device = self.model.config, self.accelerator.device
        for places in batches:
            count = (2 + config.needs_input) * len(places)
            images = torch.zeros(count, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, dtype=torch.uint8)
            if self.frozen_done:
                one = self.model.encode_frozen(images[:1].to(device).float())
                yield one.expand(len(images), *one.shape[1:]).contiguous()
            else:
                yield to_pixels([(list(range(len(images))), images)], config, device)


def name_parts(count: MemoryCount, training: Training) -> None:
    """Say what is whose."""
    model, weights = training.model, training.weights
    count.name("text tower", model)  # what is not of the image tower
    count.name("image tower", model.clip.visual)
    working = {id(parameter) for parameter in weights.working}
    count.name("trained weights, float32", [one for one in weights.masters if id(one) not in working])
    count.name("average", weights.averages)
    count.name("moments", weights.optimizer)


def run_phases(count: MemoryCount, training: Training) -> None:
    """A step, and a validation where there are any, each a phase of the count."""
    micro, size = training.micro_batch_size, training.config.batch_size
    with count.phase("step"):
        parts = [list(range(start, start + micro)) for start in range(0, len(training.pairs), micro)]
        train_step(training, training.reader.read(training.pairs, parts), parts, size)
    if training.config.validate_every_steps:
        with count.phase("validation"), training.weights.averaged():
            compute_margins(training.scorer, training.reader, training.held_out, micro)


def describe_lack(needed_bytes: int, free_bytes: int, config: RewardTrainConfig, processes: int) -> str:
    """One line that says what to change where a training needs more than a GPU has left; empty where it fits.

    Args:
        needed_bytes: as counted; what CUDA itself takes is added.
        processes: that share a batch.
    """
    needed = needed_bytes / GIB + CUDA_GIB
    if needed <= free_bytes / GIB:
        return ""
    smaller = f"take a smaller preset ({' or '.join(SMALLER_PRESETS)})"
    changes = list_savings(config, processes)
    what = f"Set {', or '.join(changes)}; or {smaller}." if changes else f"{smaller[0].upper()}{smaller[1:]}."
    return f"It needs {needed:.1f} GiB with what CUDA takes; {free_bytes / GIB:.1f} GiB of the GPU are free. {what}"
