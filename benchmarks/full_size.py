"""Time a ReFL preset at full size with random weights, and its memory: `python -m benchmarks.full_size`, on a GPU.

A training is put together as `refl train` does it, without files; its step (whole trajectory, batch of the preset), an
update of the live reward model and a check of 16 faces are timed, and what the allocator saw stands beside what
`refl train --memory` counts. LPIPS is stood for by VGG16 with random weights.

    python -m benchmarks.full_size --preset paper-24gb --restorer diffbir-v1
    python -m benchmarks.full_size --preset tiny-refl --restorer tiny --reward tiny      # tries the script on a CPU
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.config import load_refl_config
from refl.tune.live_reward import choose_inputs, compute_rewards
from refl.tune.memory import build_training, count_training, list_trained, make_part
from refl.tune.parts import Part
from refl.tune.setup import NEVER, make_plan
from refl.tune.train import restore, train_step
from refl.tune.training import Training
from reward.model.checkpoint import read_architecture
from reward.model.config import load_model_config
from training.without_memory import make_moments

GIB = 2**30
CHECK_FACES = 16


def main() -> None:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper-24gb")
    parser.add_argument("--restorer", default="diffbir-v1")
    parser.add_argument("--reward", default="vit-h-14", help="preset of the reward model (default: vit-h-14)")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as make_accelerator does
    config, reward = load_refl_config(args.preset), load_model_config(args.reward, weights="")
    architecture = read_architecture(reward)
    phases = count_training(config, args.restorer, reward, architecture).phases
    training = build_training(config, args.restorer, reward, architecture, device)
    training.plan = make_plan(training.restorer, config)
    give_numbers(training)
    for weights in list_trained(training):
        make_moments(weights)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{args.preset}, {args.restorer}, batch {config.train.batch_size}, {name}\n")
    print("| | seconds | allocated GiB | reserved GiB | counted GiB |\n|---|---|---|---|---|")
    for phase, work in list_work(training).items():
        seconds, allocated, reserved = measure(work, args.repeats, device)
        counted = phases[phase].peak_bytes / GIB
        print(f"| {phase} | {seconds:.2f} | {allocated:.2f} | {reserved:.2f} | {counted:.2f} |", flush=True)


@torch.no_grad()
def give_numbers(training: Training) -> None:
    """Let the ControlNet's outputs, zero at the start of its training, be numbers."""
    if isinstance(training.restorer, DiffusionRestorer):
        control = training.restorer.control
        for part in (control.controlnet_down_blocks, control.controlnet_mid_block):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.02)


def list_work(training: Training) -> dict[str, Callable[[], object]]:
    """Phase -> what it does once."""
    config, device = training.config, training.accelerator.device
    size_px = config.train.image_size_px or training.restorer.image_size_px
    share, size = config.train.batch_size, training.micro_batch_size
    faces = [make_part(min(size, share - at), size_px, device) for at in range(0, share, size)]
    whole = make_part(share, size_px, device)
    for part in [*faces, whole]:
        part.hq.uniform_()
        part.lq.uniform_()
    parts: list[Part] = [*faces]
    learns, batch = training.live.config, training.rollout_batch_size
    lq = torch.rand(batch, 3, size_px, size_px, device=device)

    def step() -> None:
        training.live.config = NEVER
        train_step(training, 0, iter([parts]))
        training.live.config = learns

    @torch.no_grad()
    def check() -> None:
        for _ in range(CHECK_FACES // batch):
            images = restore(training, lq, list(range(batch)))
            compute_rewards(training.live.model, images, [None] * batch, lq)

    seen = choose_inputs(training.live.model, whole.lq, whole.hq)
    work: dict[str, Callable[[], object]] = {"step": step}
    if training.live.weights:
        work["reward update"] = lambda: training.live.update(0, whole.lq, whole.hq, whole.captions, seen)
    return {**work, "check": check} if config.train.monitor_every_steps else work


def measure(work: Callable[[], object], repeats: int, device: str) -> tuple[float, float, float]:
    """(seconds, GiB allocated and reserved at most), after one run to warm up; no GiB on a CPU."""
    work()
    if device == "cpu":
        began = time.monotonic()
        for _ in range(repeats):
            work()
        return (time.monotonic() - began) / repeats, 0.0, 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    seconds = (time.monotonic() - began) / repeats
    return seconds, torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB


if __name__ == "__main__":
    main()
