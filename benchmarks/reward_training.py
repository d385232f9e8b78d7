"""Time a reward model's training, three ways with equal weights, pairs, steps: `python -m benchmarks.reward_training`.

`hpsv2` is the loop of HPSv2's training script, written anew: every image is decoded and resized by the loader at each
step, all blocks run with open_clip's own attention, a caption is encoded for each pair. `plain` is
`reward.train.train.train`; `cached` the same with `cache_frozen`. The three must come to the same losses. Each runs in
a process of its own, so that peak memory is that loop's alone; a step's time is the median after the first three. On a
GPU the share of the card's peak is what `plain`'s forward and backward count in floating-point operations, over the
time and the card's data sheet.

    python -m benchmarks.reward_training                                   # CPU: ViT-B-32, float32
    python -m benchmarks.reward_training --preset vit-h-14 --mixed-precision bf16 --batch-size 32   # a GPU
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from experiments.reward_known_pairs import ROOT, SHARED, make_row, store, write_rows
from reward.data import Pairs, load_dataset
from reward.model.checkpoint import build_model
from reward.model.config import ModelConfig, load_model_config
from reward.model.model import clamp_logit_scale, load_tokenizer
from reward.train.config import RewardTrainConfig
from reward.train.loss import preference_loss
from reward.train.train import compute_learning_rate, train
from training.batches import choose_batch
from training.images import read_image
from training.precision import group_parameters

LOOPS = ("hpsv2", "plain", "cached")
WARMUP_STEPS = 3
"""Left out of the median: loaders start, memory is found, kernels are chosen."""
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16, by what is in the card's name; NVIDIA's data sheets (SXM)."""
TOLERANCE = {"no": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
"""Largest difference of a step's loss, relative to the largest loss."""


def write_dataset(folder: Path, n_pairs: int) -> None:
    """Pairs of a photo and its blurred copy, 256 px, each with a caption of its own."""
    (folder / "images").mkdir(parents=True)
    files = sorted((SHARED / "train" / "ffhq256").rglob("*.jpg"))[:n_pairs]
    rows = []
    for number, file in enumerate(files):
        photo = read_image(file)
        blurred = np.asarray(cv2.GaussianBlur(photo, (0, 0), 1 + number % 4), dtype=np.uint8)
        stored = {"photo": store(folder, photo), "blurred": store(folder, blurred)}
        row = make_row(file.stem, "train", {"a": "photo", "b": "blurred"}, stored, 1.0)
        rows.append({**row, "caption": f"a photo of person number {number}"})
    write_rows(folder, rows)


class HpsPairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """As HPSv2's dataset gives a pair: both images as the image tower takes them, and the caption's ids."""

    def __init__(self, pairs: Pairs, config: ModelConfig) -> None:
        self.rows, self.config = pairs.rows, config
        self.tokenizer = load_tokenizer()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        row = self.rows[index]
        return self.read(row.image_a), self.read(row.image_b), self.tokenizer([row.caption or ""])[0]

    def read(self, path: Path) -> Tensor:
        """(3, S, S), as HPSv2's transform makes it of a square image."""
        size_px = [self.config.image_size_px] * 2
        with PilImage.open(path) as image:
            pixels = tv.resize(tv.to_tensor(image.convert("RGB")), size_px, InterpolationMode.BICUBIC, antialias=True)
        normalized: Tensor = tv.normalize(pixels, list(self.config.mean), list(self.config.std))
        return normalized


def train_as_hpsv2(pairs: Pairs, model_config: ModelConfig, config: RewardTrainConfig) -> list[tuple[float, float]]:
    """(loss, seconds since the start) of each step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    model = build_model(model_config).to(device)
    clip = model.clip
    if config.gradient_checkpointing:
        clip.set_grad_checkpointing()
    optimizer = torch.optim.AdamW(group_parameters(model.parameters(), config.weight_decay), lr=config.learning_rate)
    batches = [choose_batch(step, len(pairs), config.batch_size, config.seed) for step in range(config.max_steps)]
    loader = DataLoader(
        HpsPairs(pairs, model_config), batch_sampler=[batch.tolist() for batch in batches], num_workers=config.workers
    )
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
    scaler = torch.amp.GradScaler(device, enabled=config.mixed_precision == "fp16")
    found, began = [], time.monotonic()
    for step, (a, b, tokens) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = compute_learning_rate(step, config)
        with torch.autocast(device, precision, enabled=precision is not None):
            image_features, text_features, scale = clip(torch.cat([a, b]).to(device), tokens.to(device))
            logits = scale * image_features.float() @ text_features.float().T  # (2B, B), as HPSv2 computes all of them
            left, right = logits[: len(a)].diagonal(), logits[len(a) :].diagonal()
        loss = preference_loss(left, right, torch.ones_like(left)).mean()
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], config.max_gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        clamp_logit_scale(model)
        found.append((float(loss.detach()), time.monotonic() - began))
    return found


def run_loop(loop: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one loop and measure it: losses, seconds per step and to prepare, peak memory; of `plain` also FLOPs."""
    torch.set_num_threads(args.threads)
    pairs = load_dataset(args.dataset)
    model_config = load_model_config(args.preset, weights="", text_mode="caption")
    config = RewardTrainConfig(
        max_steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=1e-5,
        warmup_steps=2,
        mixed_precision=args.mixed_precision,
        gradient_checkpointing=args.gradient_checkpointing,
        cache_frozen=loop == "cached",
        validate_every_steps=0,
        checkpoint_every_steps=args.steps,
        log_every_steps=1,
        workers=args.workers,
    )
    began = time.monotonic()
    if loop == "hpsv2":
        steps = train_as_hpsv2(pairs, model_config, config)
        prepared = 0.0
    else:
        steps = []

        def note(_done: int, _total: int, values: dict[str, float]) -> None:
            steps.append((values["loss"], time.monotonic() - began))

        with tempfile.TemporaryDirectory(dir=args.dataset) as out:
            result = train(pairs, model_config, config, Path(out), note)
        # the last step's line comes after the checkpoint; what came before the first step is preparation
        prepared = time.monotonic() - began - result["seconds"]
    ends = [seconds for _, seconds in steps]
    times = [later - earlier for earlier, later in pairwise(ends[:-1])]
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "losses": [loss for loss, _ in steps],
        "step_seconds": median(times[WARMUP_STEPS:]),
        "prepared_seconds": prepared,
        "peak_gib": peak / 2**30,
        "flops": count_flops(model_config, args.batch_size) if loop == "plain" and on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {args.threads} threads",
    }


def count_flops(config: ModelConfig, batch_size: int) -> int:
    """Floating-point operations of a step's forward and backward."""
    model = build_model(config).to("cuda")
    pixels = torch.rand(2, 3, config.image_size_px, config.image_size_px, device="cuda")
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(model(pixels, ["one", "one"]).sum())  # two images and one sentence: what a pair takes
    return int(counter.get_total_flops()) * batch_size


def print_table(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """A row a loop as Markdown, ratios against `hpsv2` and `plain`; ends with the agreement of the losses."""
    print(f"\n{args.preset}, batch {args.batch_size}, {args.mixed_precision}, {found['plain']['device']}\n")
    print("| loop | s a step | pairs/s | against hpsv2 | against plain | prepared in s | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for loop, row in found.items():
        seconds = row["step_seconds"]
        ratios = [f"{found[other]['step_seconds'] / seconds:.2f}×" for other in ("hpsv2", "plain")]
        print(
            f"| {loop} | {seconds:.3f} | {args.batch_size / seconds:.2f} | {ratios[0]} | {ratios[1]} | "
            f"{row['prepared_seconds']:.1f} | {row['peak_gib']:.2f} |"
        )
    largest = max(found["plain"]["losses"])
    for loop in ("hpsv2", "cached"):
        apart = max(abs(a - b) for a, b in zip(found[loop]["losses"], found["plain"]["losses"], strict=True)) / largest
        allowed = TOLERANCE[args.mixed_precision]
        print(f"losses of {loop} and plain differ by {apart:.1e} at most (relative; {allowed:g} allowed)")
        if apart > allowed:
            raise SystemExit(f"The losses of {loop} are not those of plain: {found[loop]['losses']}")
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in found["plain"]["device"]), None)
    if peak and found["plain"]["flops"]:
        share = found["plain"]["flops"] / found["plain"]["step_seconds"] / peak
        print(f"plain uses {share:.0%} of the card's peak ({peak / 1e12:.0f} TFLOP/s dense bfloat16)")


def main() -> None:
    """Make the pairs, run the three loops, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vit-b-32", help="architecture, with random weights (default: vit-b-32)")
    parser.add_argument("--pairs", type=int, default=64, help="pairs in the dataset (default: 64)")
    parser.add_argument("--steps", type=int, default=16, help="steps of each loop (default: 16)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per step (default: 8)")
    parser.add_argument("--mixed-precision", choices=tuple(TOLERANCE), default="no")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads on a CPU (default: 2)")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)  # a child process
    parser.add_argument("--dataset", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        print(json.dumps(run_loop(args.loop, args)))
        return
    if not SHARED.is_dir():
        raise SystemExit("needs ../shared/faces, which is not beside this checkout")
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        dataset = Path(temporary) / "dataset"
        write_dataset(dataset, args.pairs)
        for loop in LOOPS:
            command = [sys.executable, "-m", "benchmarks.reward_training", *sys.argv[1:]]
            done = subprocess.run(
                [*command, "--loop", loop, "--dataset", str(dataset)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[loop] = json.loads(done.stdout.splitlines()[-1])
            print(f"{loop}: {found[loop]['step_seconds']:.3f} s a step", flush=True)
    print_table(found, args)


if __name__ == "__main__":
    main()
