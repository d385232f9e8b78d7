"""A ReFL step as the published loop takes it, and as ours does: `python -m benchmarks.refl_step`.

`published` is written anew after DiffusionReward's train.py: the ground truth is encoded for its shape alone, the
prompt is encoded in each step, the ControlNet's frozen copy runs beside the trained one at every denoising step, all
in float32. `ours` is `refl.train` with the same draws: the same trajectory, noise, weights and terms, so the losses
must be equal; the presets below it change the trajectory, and are another method at another price.

    python -m benchmarks.refl_step                                  # CPU: the tiny restorer, random weights
    python -m benchmarks.refl_step --restorer diffbir --precision bf16      # a GPU: full size, random weights
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.random_restorers import make_restorer
from refl.losses import compute_change, compute_reward_loss, compute_structure_loss
from refl.perceptual import load_perceptual
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.surface import draw_from, make_generators
from refl.restorers.tiny import make_tiny
from refl.restorers.tiny_config import TinyConfig
from refl.sampling import Trajectory, iterate_outcomes, roll_out
from refl.train_config import LossConfig
from reward.checkpoint import build_model
from reward.config import load_model_config
from reward.model import RewardModel

ROOT = Path(__file__).resolve().parents[1]
STEPS = 50
PRESETS: dict[str, dict[str, Any]] = {
    "published": {"start": 1.0, "steps": STEPS, "index": 1},
    "ours": {"start": 1.0, "steps": STEPS, "index": 1},
    "10 steps": {"start": 1.0, "steps": 10, "index": 1},
    "from the condition": {"start": 0.5, "steps": 20, "index": 1},
    "preset tiny-refl": {"start": 0.3, "steps": 10, "index": 1},
    "re-noised 4 times": {"start": 0.5, "steps": 20, "index": 1, "renoise": 4},
}
"""Name -> part of the schedule, its steps, the gradient's step from the end."""
LOSS = LossConfig(perceptual="gmsd")
REPEATS = 4
TOLERANCE = 1e-4
"""Relative, of the loss."""


def prepare_restorer(kind: str, start_fraction: float, precision: str, device: str) -> DiffusionRestorer:
    """Random weights, the ControlNet's outputs too, which start at 0; only the ControlNet has gradients."""
    torch.manual_seed(0)
    restorer: DiffusionRestorer
    if kind == "tiny":
        restorer = make_tiny(TinyConfig(prediction="epsilon")).to(device)
    else:
        restorer, _ = make_restorer("diffbir", "full", 512, STEPS, device, torch.float32)
    restorer.use = replace(restorer.use, start_fraction=start_fraction)
    for part in (restorer.control.controlnet_down_blocks, restorer.control.controlnet_mid_block):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.02)
    restorer.eval().requires_grad_(False)
    restorer.control.requires_grad_(True)
    if precision == "bf16":
        for frozen in (restorer.unet, restorer.vae, restorer.stage1):
            if frozen is not None:
                frozen.to(torch.bfloat16)
    return restorer


def compute_loss(
    restored: Tensor, hq: Tensor, residuals: Any, frozen: Any, reward: RewardModel, perceptual: Any
) -> Tensor:
    """() the mean over images of all four terms."""
    terms = (
        LOSS.reward_weight * compute_reward_loss(reward(restored, [None] * len(restored))),
        LOSS.structure_weight * compute_structure_loss(restored, hq),
        LOSS.perceptual_weight * perceptual(restored, hq),
        LOSS.regularizer_weight * compute_change(residuals, frozen),
    )
    return torch.stack(terms).sum(dim=0).mean()


def take_published_step(
    restorer: DiffusionRestorer, frozen: Any, lq: Tensor, hq: Tensor, draws: Trajectory, judges: tuple[Any, Any]
) -> float:
    """The loop of the published train.py, its optimizer's step left out."""
    generators = make_generators(range(len(lq)))
    with torch.no_grad():
        shape = restorer.encode_pixels(hq).shape  # the ground truth's latents, of which the shape is used
        condition = restorer.encode_condition(lq)
        embedding = restorer.encode_prompts([restorer.use.prompt] * len(lq))
    latents = draw_from(generators, shape[1:], lq.device)
    last = len(draws.plan) - 1 - draws.gradient_index
    for place, (timestep, previous) in enumerate(draws.plan[: last + 1]):
        at = torch.tensor(timestep, device=lq.device)
        with torch.set_grad_enabled(place == last):
            residuals = restorer.compute_control(latents, at, condition, embedding)
            with torch.no_grad():
                kept = restorer.compute_control(latents, at, condition, embedding, frozen)
            change = compute_change(residuals, kept)  # at every step; one is used
            output = restorer.predict_output(latents, at, condition, embedding, residuals)
            x0 = restorer.to_x0(latents, at, output)
        if place < last:
            noise = draw_from(generators, latents.shape[1:], lq.device)
            noise_pred = restorer.to_noise(latents, at, output)
            latents = restorer.step(latents, timestep, previous, noise_pred, draws.etas[place], noise, x0)
    del change
    loss = compute_loss(restorer.decode(x0), hq, residuals, kept, *judges)
    torch.autograd.backward(loss)
    return float(loss.detach())


def take_our_step(
    restorer: DiffusionRestorer, frozen: Any, lq: Tensor, hq: Tensor, draws: Trajectory, judges: tuple[Any, Any]
) -> float:
    """As `refl.train.take_step` does it, its optimizer's step left out; the mean loss over the outcomes."""
    with torch.no_grad():
        embedding = restorer.encode_prompts([restorer.use.prompt])
    found = []
    rollout = roll_out(restorer, lq, embedding, draws, make_generators(range(len(lq))))
    for outcome in iterate_outcomes(restorer, rollout, draws, regularize=True, frozen_control=frozen):
        loss = compute_loss(restorer.decode(outcome.x0), hq, outcome.compared, outcome.reference, *judges)
        torch.autograd.backward(loss / max(1, draws.renoise))
        found.append(float(loss.detach()))
    return sum(found) / len(found)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Loss, seconds and peak memory of one way, in this process."""
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    preset = PRESETS[name]
    precision = "fp32" if name == "published" else args.precision
    restorer = prepare_restorer(args.restorer, preset["start"], precision, device)
    frozen = deepcopy(restorer.control).requires_grad_(False)
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.mul_(0.95)
    reward = build_model(load_model_config(args.reward, weights="", text_mode="fixed")).to(device).requires_grad_(False)
    side = args.size_px or restorer.image_size_px
    torch.manual_seed(1)
    hq = torch.rand(args.batch_size, 3, side, side, device=device)
    lq = torch.nn.functional.avg_pool2d(hq, 3, 1, 1)
    plan = restorer.plan_steps(preset["steps"])
    draws = Trajectory(plan, [0.5] * len(plan), preset["index"], renoise=preset.get("renoise", 0))
    take = take_published_step if name == "published" else take_our_step
    judges = reward, load_perceptual("gmsd", device)
    seconds, loss = [], 0.0
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
    for _ in range(REPEATS):
        restorer.zero_grad(set_to_none=True)
        began = time.monotonic()
        with autocast:
            loss = take(restorer, frozen, lq, hq, draws, judges)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    gradient = torch.stack([p.grad.float().square().sum() for p in restorer.control.parameters() if p.grad is not None])
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "loss": loss,
        "gradient": float(gradient.sum().sqrt()),
        "seconds": median(seconds[1:]),
        "gradients": max(1, draws.renoise),
        "peak_gib": peak / 2**30,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {args.threads} threads",
    }


def main() -> None:
    """Each way in a process of its own, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restorer", choices=("tiny", "diffbir"), default="tiny")
    parser.add_argument("--reward", default="tiny", help="preset of the reward model, random weights (default: tiny)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours (default: fp32)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--size-px", type=int, default=0, help="side of the faces (default: the restorer's own)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=tuple(PRESETS), help=argparse.SUPPRESS)  # a child process
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args)))
        return
    found = {}
    for name in PRESETS:
        command = [sys.executable, "-m", "benchmarks.refl_step", *sys.argv[1:], "--way", name]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {found[name]['seconds']:.3f} s", flush=True)
    published = found["published"]
    print(f"\n{args.restorer}, batch {args.batch_size}, ours in {args.precision}, {published['device']}\n")
    print("| way | s a step | against published | gradients a step | s a gradient | against published | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for name, row in found.items():
        each = row["seconds"] / row["gradients"]
        faster, faster_each = published["seconds"] / row["seconds"], published["seconds"] / each
        print(
            f"| {name} | {row['seconds']:.3f} | {faster:.2f}× | {row['gradients']} | {each:.3f} | {faster_each:.2f}× "
            f"| {row['peak_gib']:.2f} |"
        )
    for what in ("loss", "gradient"):
        apart = abs(found["ours"][what] - published[what]) / abs(published[what])
        print(f"{what} of ours and published differ by {apart:.1e} (relative)")
        if args.precision == "fp32" and apart > TOLERANCE:
            raise SystemExit(f"The {what} of ours is not the published one's: {found['ours'][what]}")


if __name__ == "__main__":
    main()
