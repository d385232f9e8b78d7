"""Time a ReFL step as the published loop takes it, and as ours does: `python -m benchmarks.refl_step`.

`published` is benchmarks/published_refl.py: one image at a time, as DiffusionReward's train.py has it, in float32.
`ours` is `refl.tune.train.train_step` on the same draws, noise, weights, faces and terms, so that the losses must be
equal; the ways below it change the trajectory, and are another method at another price.

A step's seconds count the optimizer, and at their share what comes less often: the reward model's update (every 10th
step), ours alone the norms of each term's gradient (every 10th) and the monitor's check of 16 faces (every 100th).

    OMP_NUM_THREADS=1 python -m benchmarks.refl_step                # CPU: the tiny restorer, random weights
    python -m benchmarks.refl_step --restorer diffbir-v1 --preset paper-24gb --reward vit-h-14     # a GPU: full size
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_refl import PublishedLoop, select
from benchmarks.random_restorers import make_text
from benchmarks.restoring import PEAK_TFLOPS
from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.config import ReflConfig, load_refl_config
from refl.tune.data import find_faces
from refl.tune.memory import build_training
from refl.tune.parts import FacePart, Part
from refl.tune.setup import make_monitor, make_plan
from refl.tune.sums import take_means
from refl.tune.train import check_held_out, train_step
from refl.tune.training import Material, Training
from reward.model.checkpoint import read_architecture
from reward.model.config import load_model_config

ROOT = Path(__file__).resolve().parents[1]
WAYS: dict[str, dict[str, Any]] = {
    "published": {},
    "ours": {},
    "10 steps": {"steps": 10},
    "from the condition": {"steps": 20, "start_fraction": 0.5},
    "as preset tiny-refl": {"steps": 10, "start_fraction": 0.3, "gradient_window": (0, 2), "eta": (0.0, 0.0)},
    "re-noised 4 times": {"steps": 20, "start_fraction": 0.5, "renoise": 4},
}
"""Name -> fields of the preset's trajectory."""
FIRST = 9
"""A step that logs, for which losses and gradients are compared; those timed after it do not log."""
FROZEN_FACTOR = 0.95
"""Of the frozen ControlNet's weights, so that the regularizer has something to hold."""
EXACT, ROUNDED = 1e-4, 0.05
"""Largest relative difference of losses: float32 on a CPU, and with TF32 or bfloat16 against it."""


def choose_config(way: str, args: argparse.Namespace) -> ReflConfig:
    """The preset's, on this way's trajectory."""
    train = {"batch_size": args.batch_size, "image_size_px": args.size_px, "log_every_steps": 10, "workers": 0}
    changes = {"trajectory": WAYS[way], "train": train}
    if args.restorer == "tiny":
        changes["loss"] = {"perceptual": "gmsd"}  # needs no file; at full size VGG16 with random weights
        train["micro_batch_size"] = 0
    if way == "published":
        train |= {"mixed_precision": "no", "gradient_checkpointing": False, "micro_batch_size": 1}
    return load_refl_config(args.preset, changes)


def prepare(config: ReflConfig, restorer_name: str, reward: str, device: str) -> tuple[Training, nn.Module]:
    """A training with random weights, the ControlNet's outputs too, which start at 0; and the prompt's encoder."""
    model = load_model_config(reward, weights="", text_mode="fixed")
    torch.manual_seed(0)
    training = build_training(config, restorer_name, model, read_architecture(model), device)
    restorer, weights = training.restorer, training.weights
    assert isinstance(restorer, DiffusionRestorer)
    assert training.frozen_control is not None
    torch.manual_seed(1)
    with torch.no_grad():
        masters = weights.values()
        for part in (restorer.control.controlnet_down_blocks, restorer.control.controlnet_mid_block):
            for parameter in part.parameters():
                masters[parameter].copy_(torch.randn(parameter.shape) * 0.02)
        weights.publish()
        for frozen, trained in zip(training.frozen_control.parameters(), weights.masters, strict=True):
            frozen.copy_(trained * FROZEN_FACTOR)
        text = restorer.text if restorer_name == "tiny" else make_text("full").to(device).requires_grad_(False)
        assert text is not None
        training.embedding = text([restorer.use.prompt]).float()
    training.plan = make_plan(restorer, config)
    return training, text


def add_monitor(training: Training, faces: Path) -> None:
    """Give a training the monitor that checks the faces of a folder."""
    training.held_out = find_faces(faces)
    material = Material(training.restorer, training.frozen_reward, [], training.held_out)
    size_px = training.config.train.image_size_px or training.restorer.image_size_px
    training.monitor = make_monitor(material, training.config, size_px, training.accelerator)


def time_calls(device: str, work: Callable[[int], object], numbers: Sequence[int]) -> tuple[float, float]:
    """(seconds, processor's seconds) of a call, the median over those with these numbers."""
    wall, busy = [], []
    for number in numbers:
        began = time.monotonic(), time.process_time()
        work(number)
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.monotonic() - began[0])
        busy.append(time.process_time() - began[1])
    return median(wall), median(busy)


def measure(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Loss, seconds and peak memory of one way, in this process."""
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if way != "published" and device == "cuda":
        torch.set_float32_matmul_precision("high")  # as `make_accelerator` does
    with tempfile.TemporaryDirectory(prefix="facereward-refl-step-") as temporary:
        folder = Path(temporary)
        training, text = prepare(choose_config(way, args), args.restorer, args.reward, device)
        part = make_part(training, device)
        loop = PublishedLoop(training, text) if way == "published" else None
        if loop:
            found = time_published(loop, part, args.repeats)
        else:
            write_faces(folder / "faces", args.size_px or training.restorer.image_size_px)
            add_monitor(training, folder / "faces")
            found = time_ours(training, part, args.repeats, folder)
    if device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        found["device"] = torch.cuda.get_device_name()
        found["tflop"] = count_tflop(training, loop, part)
    else:
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found["device"] = f"CPU, {args.threads} threads"
    found["seconds"] = combine(found["times"], 0)
    found["processor_seconds"] = combine(found["times"], 1)
    found["gradients"] = max(1, training.config.trajectory.renoise)
    return found


def time_published(loop: PublishedLoop, part: FacePart, repeats: int) -> dict[str, Any]:
    """Loss and gradient of the first step, and what each part of the loop takes."""
    loss, restored = loop.train_step(FIRST, part)
    gradients = [parameter.grad for parameter in loop.training.weights.working if parameter.grad is not None]
    gradient = float(nn.utils.get_total_norm(gradients))
    loop.apply()
    loop.update(restored, part)

    def step(number: int) -> None:
        loop.train_step(number, part)
        loop.apply()

    timed = partial(time_calls, part.lq.device.type)
    times = {
        "step": timed(step, range(1, repeats + 1)),
        "update": timed(lambda _: loop.update(restored, part), range(3)),
    }
    return {"loss": loss, "gradient": gradient, "times": times}


def time_ours(training: Training, part: FacePart, repeats: int, folder: Path) -> dict[str, Any]:
    """Loss and gradient of the first step, and what each part of the training takes."""
    parts: list[Part] = [
        select(part, at, training.micro_batch_size) for at in range(0, len(part.places), training.micro_batch_size)
    ]

    def step(number: int) -> dict[str, float]:
        return train_step(training, number, iter([parts]))

    gradient = step(FIRST)["gradient_norm"]
    loss = take_means(training)["loss"]
    restored = part.lq.clone()
    training.live.update(0, restored, part.hq, part.captions)
    check_held_out(training, folder)  # the first has less to do
    timed = partial(time_calls, part.lq.device.type)
    plain, logging = timed(step, range(1, repeats + 1)), timed(step, [FIRST])
    times = {
        "step": plain,
        "norms": (max(0.0, logging[0] - plain[0]), max(0.0, logging[1] - plain[1])),
        "update": timed(lambda _: training.live.update(0, restored, part.hq, part.captions), range(3)),
        "check": timed(lambda _: check_held_out(training, folder), range(1)),
    }
    return {"loss": loss, "gradient": gradient, "times": times}


def combine(times: dict[str, tuple[float, float]], clock: int) -> float:
    """Seconds of a step with all else at its share; clock 0 is the wall's, 1 the processor's."""
    every = {"step": 1, "norms": 10, "update": 10, "check": 100}
    return sum(seconds[clock] / every[name] for name, seconds in times.items())


def count_tflop(training: Training, loop: PublishedLoop | None, part: FacePart) -> float:
    """TFLOP of one step; what is computed a second time is counted twice."""
    with FlopCounterMode(display=False) as counter:
        if loop:
            loop.train_step(1, part)
        else:
            train_step(training, 1, iter([[select(part, number, 1) for number in range(len(part.places))]]))
    return float(counter.get_total_flops()) / 1e12


def make_part(training: Training, device: str) -> FacePart:
    """The batch: smooth random faces, and what is left of them."""
    side, count = training.config.train.image_size_px or training.restorer.image_size_px, len(training.faces)
    coarse = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    hq = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    lq = F.avg_pool2d(hq, 5, 1, 2)
    return FacePart(list(range(count)), hq.to(device), lq.to(device), [None] * count)


def write_faces(folder: Path, side: int) -> None:
    """16 held-out faces for the monitor."""
    folder.mkdir()
    for number in range(16):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PilImage.fromarray(coarse).resize((side, side), PilImage.Resampling.BICUBIC).save(folder / f"{number}.png")


def main() -> None:
    """Each way in a process of its own, in turns, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restorer", default="tiny", help="tiny or diffbir-v1, random weights (default: tiny)")
    parser.add_argument("--preset", default="paper", help="of `refl train`; ours is trained so (default: paper)")
    parser.add_argument("--reward", default="tiny", help="preset of the reward model, random weights (default: tiny)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size-px", type=int, default=0, help="side of the faces (default: the restorer's own)")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--repeats", type=int, default=3, help="timed steps in a process (default: 3)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each way, in turns (default: 2)")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)  # a child process
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    for turn in range(args.rounds):
        for way in args.ways:
            command = [sys.executable, "-m", "benchmarks.refl_step", *sys.argv[1:], "--way", way]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            parts = ", ".join(f"{name} {seconds[0]:.3f}" for name, seconds in found[way][-1]["times"].items())
            print(f"{turn + 1}. {way}: {parts} s; load {os.getloadavg()[0]:.1f}", flush=True)
    print_table(found, args)
    check_equal(found, args)


def print_table(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    """Medians over the rounds, and the ratios of each round to what is published."""
    config, first = load_refl_config(args.preset), next(iter(found.values()))
    card = first[0]["device"]
    print(f"\n{args.restorer}, {args.preset}, batch {args.batch_size}, {card}\n")
    print("| way | s a step | faster, in each round | by processor's time | s a gradient | peak GiB | of the card |")
    print("|---|---|---|---|---|---|---|")
    for way, rounds in found.items():
        seconds = median(row["seconds"] for row in rounds)
        wall, busy = (
            ", ".join(f"{a[key] / b[key]:.2f}×" for a, b in zip(found.get("published", rounds), rounds, strict=True))
            for key in ("seconds", "processor_seconds")
        )
        share = describe_share(way, rounds[0], config, card)
        peak = max(row["peak_gib"] for row in rounds)
        each = seconds / rounds[0]["gradients"]
        print(f"| {way} | {seconds:.3f} | {wall} | {busy} | {each:.3f} | {peak:.2f} | {share} |")


def describe_share(way: str, row: dict[str, Any], config: ReflConfig, card: str) -> str:
    """Share of the card's dense peak, of TF32 in float32, in a step without what comes less often."""
    peak = next((value for part, value in PEAK_TFLOPS.items() if part in card), None)
    if peak is None or "tflop" not in row:
        return "–"
    if way == "published" or config.train.mixed_precision == "no":
        peak /= 2
    return f"{row['tflop'] / row['times']['step'][0] / peak:.0%}"


def check_equal(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    """Check ours against the published loop: the batch's mean loss and the gradient's length at the first step."""
    if not {"published", "ours"} <= set(found):
        return
    published, ours = found["published"][0], found["ours"][0]
    exact = load_refl_config(args.preset).train.mixed_precision == "no" and ours["device"].startswith("CPU")
    for what in ("loss", "gradient"):
        apart = abs(ours[what] - published[what]) / abs(published[what])
        print(f"{what}: published {published[what]:.7g}, ours {ours[what]:.7g}, {apart:.1e} apart (relative)")
        if apart > (EXACT if exact else ROUNDED):
            raise SystemExit(f"The {what} of ours is not the published one's.")


if __name__ == "__main__":
    main()
