"""Measure the hacking monitor's error rates: `python -m experiments.monitor_rates --null 200 --control 10 [--out DIR]`.

Null looks: the weights of the shipped tiny restorer's ControlNet take a random walk, a step of normal noise before each
look, as large as a share of each tensor's standard deviation; nothing is optimised. LOOKS looks a walk follow its first
one, so that two in a row are as alike as in a training. In every second walk the live reward model walks as well. Every
look that is called hacking is a false alarm.

Control: the restorer is trained with nothing but a static reward, which must end in hacking; a training is caught where
the monitor says so by step MAX_STEPS.

The faces are of ../shared/faces: `train` and `val` as in experiments.loop, from whose chain the first reward model
comes; the second learns from the same labels with another seed. All values of all looks stay in --out; what is there
is not made again, so that a changed rule is tried on the same looks in seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from scipy.stats import beta
from torch import Tensor, nn

from experiments import loop
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.load import load_restorer
from refl.tune.config import load_refl_config
from refl.tune.data import DegradedFaces, find_faces, stack
from refl.tune.monitor import Monitor, choose_judges, to_bytes
from refl.tune.setup import MONITOR_DRAW
from refl.tune.train import train
from refl.tune.training import Material
from refl.tune.verdict import Check, Verdict, compare, compute_spread, mean_and_error
from reward.model.checkpoint import load_model

SIZES = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
"""A step of a walk, in standard deviations of each tensor of weights."""
REWARD_SIZE = 0.01
LOOKS = 5
FAMILIES_NEEDED = 2
MAX_STEPS = 100
EVERY_STEPS = 10
CONTROL: dict[str, dict[str, Any]] = {
    "loss": {"structure_weight": 0, "perceptual_weight": 0, "regularizer_weight": 0},
    "live_reward": {"reward_every_steps": 0},
    "train": {"ema_decay": 0, "max_steps": MAX_STEPS, "monitor_every_steps": EVERY_STEPS},
}
"""All that remains of the preset tiny-refl is the reward, and it never learns. Without the running average, which lags
fifty steps behind, nothing at all holds the restorer."""


def learn_rewards(folder: Path) -> list[Path]:
    """Two checkpoints; what is there already is not made again."""
    seeds = ("reward", "reward-1")
    if not (folder / "reward").is_dir():
        loop.learn_reward(folder, faces=300, test_faces=64, judgments=300, steps=300, seed=0)
    if not (folder / "reward-1").is_dir():
        what = [f"--dataset={folder / 'dataset'}", f"--out={folder / 'reward-1'}", f"--data={folder / 'data'}"]
        loop.run("reward", "train", "--preset=tiny", *what, "--max-steps=300", "--validate-every-steps=50", "--seed=1")
    return [folder / name / "best" for name in seeds]


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Write what each look compares to `looks.jsonl` of a folder, which appears when all is written."""
    rows = []

    def keep(first: Check, now: Check, families_needed: int, before_suspicious: bool) -> Verdict:
        rows.append({name: pack(look) for name, look in (("first", first), ("now", now))})
        return compare(first, now, families_needed, before_suspicious)

    with patch("refl.tune.monitor.compare", keep):
        yield
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "looks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pack(look: Check) -> dict[str, Any]:
    """A look as JSON has it."""
    values = {part: {name: list(row) for name, row in getattr(look, part).items()} for part in ("rewards", "judges")}
    return {"step": look.step, **values}


def unpack(row: dict[str, Any]) -> Check:
    """The look that `pack` was given."""
    rewards, judges = ({name: np.array(v) for name, v in row[part].items()} for part in ("rewards", "judges"))
    return Check(row["step"], rewards, judges)


def replay(folder: Path) -> Iterator[tuple[Check, Check, Verdict]]:
    """The recorded looks of a training or a walk under the rule as it is now: (first, now, verdict) of each."""
    suspicious = False
    for line in (folder / "looks.jsonl").read_text(encoding="utf-8").splitlines():
        first, now = (unpack(json.loads(line)[name]) for name in ("first", "now"))
        verdict = compare(first, now, FAMILIES_NEEDED, suspicious)
        suspicious = verdict.suspicious
        yield first, now, verdict


def train_control(folder: Path, chain: Path, reward: Path, seed: int) -> None:
    """The restorer by the reward alone, recorded."""
    config = load_refl_config("tiny-refl", {**CONTROL, "train": {**CONTROL["train"], "seed": seed}})
    faces, held_out = (find_faces(chain / "faces" / split) for split in ("train", "val"))
    with recorded(folder), tempfile.TemporaryDirectory() as out:
        train(Material(load_tiny(), load_model(reward), faces, held_out), config, Path(out))


def load_tiny() -> DiffusionRestorer:
    """The shipped restorer."""
    restorer = load_restorer("tiny")
    assert isinstance(restorer, DiffusionRestorer)
    return restorer


def make_monitor(chain: Path, seed: int) -> Monitor:
    """As training makes it, of the preset's number of held-out faces."""
    config = load_refl_config("tiny-refl")
    faces = find_faces(chain / "faces" / "val")[: config.train.monitor_faces]
    images = DegradedFaces(faces, loop.SIZE_PX, config.degradation, seed)
    hq, lq = stack([images[MONITOR_DRAW, place] for place in range(len(faces))])
    judges = choose_judges((), to_bytes(hq))
    return Monitor(lq, hq, list(range(len(faces))), judges, FAMILIES_NEEDED, batch_size=8)


def walk(folder: Path, chain: Path, reward: Path, size: float, seed: int) -> None:
    """One random walk of the ControlNet, recorded; with an odd seed one of the live reward model too."""
    restorer, frozen, monitor = load_tiny(), load_model(reward).eval().requires_grad_(False), make_monitor(chain, seed)
    restorer.requires_grad_(False)
    live, accelerator = deepcopy(frozen), Accelerator(cpu=True)
    shake, shake_reward = (make_shaker(part, seed) for part in (restorer.control, live))
    rewards = {name: partial(give_rewards, model) for name, model in (("live", live), ("frozen", frozen))}
    with recorded(folder):
        for step in range(1 + LOOKS):
            if step:
                shake(size)
                shake_reward(REWARD_SIZE * (seed % 2))
            monitor.check(step, restorer.restore, rewards, accelerator)


def give_rewards(model: Callable[[Tensor, Sequence[None]], Tensor], images: Tensor, places: Sequence[int]) -> Tensor:
    """(N,) rewards; the faces have no captions."""
    return model(images, [None] * len(places))


def make_shaker(module: nn.Module, seed: int) -> Callable[[float], None]:
    """Adds noise to all weights, of a size in standard deviations that each tensor had in the beginning."""
    generator = torch.Generator().manual_seed(seed)
    weights = list(module.parameters())
    spreads = [float(weight.std(correction=0)) for weight in weights]

    def shake(size: float) -> None:
        for weight, spread in zip(weights, spreads, strict=True):
            weight.add_(size * spread * torch.randn(weight.shape, generator=generator))

    return shake


def describe(first: Check, now: Check) -> tuple[float, float, float]:
    """(rise of the reward in spreads, changes of PSNR and SSIM)."""
    rise = mean_and_error(now.rewards["live"] - first.rewards["live"])[0] / compute_spread(first.rewards["live"])
    psnr, ssim = (mean_and_error(now.judges[name] - first.judges[name])[0] for name in ("psnr", "ssim"))
    return rise, psnr, ssim


def bound(count: int, of: int) -> float:
    """The upper end of the exact 95 % interval of a share."""
    return 1.0 if count == of else float(beta.ppf(0.975, count + 1, of - count))


def print_null(folders: dict[float, list[Path]]) -> None:
    """A row per size of noise, then the rates."""
    print("\n| noise | looks | PSNR, mean at last looks | largest rise of the reward | suspicious | hacking |")
    print("|" + "---|" * 6)
    looks = suspicious = hacking = 0
    for size, found in folders.items():
        walks = [list(replay(folder)) for folder in found]
        rows = [row for rows in walks for row in rows]
        counts = [sum(getattr(verdict, name) for _, _, verdict in rows) for name in ("suspicious", "hacking")]
        psnr = np.mean([describe(*rows[-1][:2])[1] for rows in walks])
        rise = max(describe(first, now)[0] for first, now, _ in rows)
        print(f"| {size:g} | {len(rows)} | {psnr:+.4f} | {rise:+.3f} | {counts[0]} | {counts[1]} |")
        looks, suspicious, hacking = looks + len(rows), suspicious + counts[0], hacking + counts[1]
    for name, count in (("suspicious", suspicious), ("hacking", hacking)):
        print(f"{name}: {count} of {looks} null looks, {count / looks:.1%}, at most {bound(count, looks):.1%}")


def print_control(folders: list[Path]) -> None:
    """A row per seed, then how many were caught."""
    print("\n| training | first suspicious | hacking | reward, in spreads | PSNR | SSIM | fallen |\n|" + "---|" * 7)
    caught = 0
    for folder in folders:
        rows = list(replay(folder))
        steps = [next((now.step for _, now, v in rows if getattr(v, n)), None) for n in ("suspicious", "hacking")]
        rise, psnr, ssim = describe(*rows[-1][:2])
        fallen = ", ".join(rows[-1][2].fallen)
        print(f"| {folder.name} | {steps[0]} | {steps[1]} | {rise:+.2f} | {psnr:+.2f} | {ssim:+.4f} | {fallen} |")
        caught += steps[1] is not None
    print(f"caught by step {MAX_STEPS}: {caught} of {len(folders)}")


def main() -> None:
    """Walk, train, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--null", type=int, default=200, help="looks at a restorer shaken by noise (default: 200)")
    parser.add_argument("--control", type=int, default=10, help="trainings by the reward alone (default: 10)")
    parser.add_argument("--first-seed", type=int, default=1, help="of the trainings and walks (default: 1)")
    parser.add_argument("--out", type=Path, help="keep everything here (default: a temporary folder)")
    args = parser.parse_args()
    if not loop.SHARED.is_dir():
        raise SystemExit("needs ../shared/faces, which is not beside this checkout")
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).absolute()
        rewards = learn_rewards(out / "chain")
        walks: dict[float, list[Path]] = {}
        for number in range(args.null // LOOKS):
            later, place = divmod(number, len(SIZES))
            size, seed = SIZES[place], args.first_seed + later
            walks.setdefault(size, []).append(out / f"walk-{size:g}-{seed}")
            if not (walks[size][-1] / "looks.jsonl").is_file():
                walk(walks[size][-1], out / "chain", rewards[(seed + place) % 2], size, seed)
        trainings = [out / f"control-{seed}" for seed in range(args.first_seed, args.first_seed + args.control)]
        for seed, folder in enumerate(trainings, start=args.first_seed):
            if not (folder / "looks.jsonl").is_file():
                train_control(folder, out / "chain", rewards[seed % 2], seed)
        if walks:
            print_null(walks)
        if trainings:
            print_control(trainings)


if __name__ == "__main__":
    main()
