"""That a batch's step computes what the published loop does one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.published_refl import PublishedLoop, select
from benchmarks.refl_step import make_part, prepare
from refl.tune.config import load_refl_config
from refl.tune.sums import take_means
from refl.tune.train import train_step

CHANGES = {
    "trajectory": {"steps": 4},
    "loss": {"perceptual": "gmsd"},
    "train": {"batch_size": 3, "image_size_px": 32, "log_every_steps": 1},
}


@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_loss_and_gradient_are_those_of_the_published_loop(micro_batch_size: int) -> None:
    changes = {**CHANGES, "train": {**CHANGES["train"], "micro_batch_size": micro_batch_size}}
    config = load_refl_config("paper", changes)
    training, text = prepare(config, "tiny", "tiny", "cpu")
    loss, _ = PublishedLoop(training, text).train_step(0, make_part(training, "cpu"))
    gradients = [master.grad for master in training.weights.masters if master.grad is not None]
    gradient = float(nn.utils.get_total_norm(gradients))

    training, _ = prepare(config, "tiny", "tiny", "cpu")
    part, size = make_part(training, "cpu"), training.micro_batch_size
    values = train_step(training, 0, iter([[select(part, at, size) for at in range(0, len(part.places), size)]]))

    # benchmarks.refl_step saw 6e-7 of the loss and 2e-5 of the gradient, at 64 px and 50 steps
    assert take_means(training)["loss"] == pytest.approx(loss, rel=1e-5)
    assert values["gradient_norm"] == pytest.approx(gradient, rel=3e-4)
    assert gradient > 0
    assert torch.isfinite(torch.tensor(loss))
