"""Compare trajectories at equal arithmetic: `python -m experiments.trajectories --chain DIR --out DIR`.

The chain is what `python -m experiments.loop --out` left of one seed: faces and a reward model. Each way trains the
tiny restorer by `refl train` for as many steps as a budget of arithmetic allows, a step costing what
torch.utils.flop_counter counts; then one `refl evaluate` compares all with the base on unseen faces, by the reward
model that trained them, frozen, and by metrics that no way optimised.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.loop import run
from refl.restorers.surface import make_generators
from refl.restorers.tiny import load_tiny
from refl.tune.config import ReflConfig, load_refl_config
from refl.tune.perceptual import load_perceptual
from refl.tune.sampling import Trajectory, iterate_outcomes, roll_out
from refl.tune.setup import make_plan
from reward.score.scorer import load_scorer

PRESET = "tiny-refl"
REFERENCE = "20-steps"
WAYS: dict[str, dict[str, Any]] = {
    "published": {"steps": 50, "start_fraction": 1.0, "gradient_window": (0, 1), "eta": (0.0, 1.0)},
    REFERENCE: {"steps": 20, "gradient_window": (0, 1)},
    "20-steps-random-window": {"steps": 20, "gradient_window": (0, 5)},
    "20-steps-last-2-unrolled": {"steps": 20, "gradient_window": (1, 1), "unroll": True},
    "10-steps-all": {"steps": 10, "gradient_window": (0, 2)},
    "5-steps": {"steps": 5, "gradient_window": (0, 1)},
    "20-steps-renoised-4-times": {"steps": 20, "gradient_window": (0, 4), "renoise": 4},
}
"""Name -> fields of the preset's trajectory; all but the published one start from the condition noised to 0.3 of the
schedule, so that of 20 steps 6 are taken, of 10 three, of 5 two."""
COLUMNS = ("reward frozen", "psnr", "ssim", "gmsd", "fsim", "vif")


def count_step(config: ReflConfig, reward_folder: Path) -> float:
    """TFLOP of one image's training step, all of its gradients; the mean over the window of steps with gradient."""
    restorer = load_tiny().requires_grad_(False)
    restorer.control.requires_grad_(True)
    frozen = load_tiny().control.requires_grad_(False)
    reward = load_scorer(str(reward_folder), "cpu").model.requires_grad_(False)
    perceptual = load_perceptual(config.loss.perceptual, torch.device("cpu"))
    plan = make_plan(restorer, config)
    lq = torch.rand(1, 3, restorer.image_size_px, restorer.image_size_px)
    with torch.no_grad():
        embedding = restorer.encode_prompts([restorer.use.prompt])
    low, high = config.trajectory.gradient_window
    counts: list[float] = []
    for index in range(low, high + 1):
        draws = Trajectory(plan, [0.0] * len(plan), index, config.trajectory.unroll, config.trajectory.renoise)
        with FlopCounterMode(display=False) as counter:
            rollout = roll_out(restorer, lq, embedding, draws, make_generators([0]))
            for outcome in iterate_outcomes(restorer, rollout, draws, regularize=True, frozen_control=frozen):
                restored = restorer.decode(outcome.x0)
                torch.autograd.backward(reward(restored, [None]).sum() + perceptual(restored, lq).sum())
        counts.append(counter.get_total_flops() / 1e12)
    return sum(counts) / len(counts)


def list_flags(changes: dict[str, Any]) -> list[str]:
    """The flags of `refl train` for these fields."""
    flags: list[str] = []
    for name, value in changes.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            flags += [flag, *(str(end) for end in value)]
        elif value is True:
            flags.append(flag)
        else:
            flags.append(f"{flag}={value}")
    return flags


def main() -> None:
    """Train each way, evaluate all, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain", type=Path, required=True, help="folder of one seed that experiments.loop left")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings and the report")
    parser.add_argument("--steps", type=int, default=100, help=f"that {REFERENCE} takes (default: 100)")
    args = parser.parse_args()
    chain, out = args.chain.absolute(), args.out.absolute()
    reward, shared = chain / "reward" / "best", f"--data={out / 'data'}"
    costs = {
        name: count_step(load_refl_config(PRESET, {"trajectory": changes}), reward) for name, changes in WAYS.items()
    }
    steps = {name: max(1, round(args.steps * costs[REFERENCE] / cost)) for name, cost in costs.items()}
    minutes = {}
    for name, changes in WAYS.items():
        began = time.monotonic()
        what = [f"--preset={PRESET}", "--restorer=tiny", f"--reward={reward}", f"--faces={chain / 'faces' / 'train'}"]
        what += [f"--held-out={chain / 'faces' / 'val'}", f"--out={out / name}", "--seed=0", "--monitor-every-steps=0"]
        # a tenth of the steps to warm up and no running average, which would both hold few steps back more than many
        length = [f"--max-steps={steps[name]}", f"--warmup-steps={steps[name] // 10}", "--ema-decay=0"]
        run("refl", "train", *what, *length, *list_flags(changes), shared)
        minutes[name] = (time.monotonic() - began) / 60
    methods = ["--method=tiny", *(f"--method={out / name / 'tuned'}" for name in WAYS)]
    what = [f"--faces={chain / 'faces' / 'test'}", f"--reward=frozen={reward}", f"--degradation={PRESET}"]
    run("refl", "evaluate", *methods, *what, "--seeds", "0", "1", f"--out={out / 'report'}", shared)
    table = pd.read_csv(out / "report" / "summary.csv")
    columns = [column for column in COLUMNS if column in set(table["metric"])]
    print(f"\n| way | GFLOP an image and step | steps | minutes | {' | '.join(columns)} |")
    print("|---" * (4 + len(columns)) + "|")
    for name in WAYS:
        rows = table[table["method"] == f"{name}-tuned"].set_index("metric")
        cells = [
            f"{row['change']:+.4f} [{row['change_low']:+.4f}, {row['change_high']:+.4f}]"
            for row in (rows.loc[column] for column in columns)
        ]
        print(f"| {name} | {1000 * costs[name]:.1f} | {steps[name]} | {minutes[name]:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
