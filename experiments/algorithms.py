"""Compare every way to learn from preferences at equal cost: `python -m experiments.algorithms --out DIR`.

As `experiments.reward_worth`: a SIMULATED annotator with a planted taste, which no fidelity term optimises, answers
about restored images of real faces, a share of the answers by lot. dpo learns from the answers themselves; refl, gdpo
and grpo from one reward model that sees the photo and was trained on the same answers. Each tunes the shipped tiny
restorer until it has spent the same number of network evaluations. The judge is the annotator's own noise-free choice
between an arm's output and the base's, on faces that nothing has seen.

Each seed is a folder of --out with `results.json`; finished parts are left out when the command is given again. With
`--tables` it prints what is there, and with `--grid FILE` it draws the first faces.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.loop import SHARED
from experiments.reward_worth import MARGINS, Settings, Study, judge_arm, learn, measure_spread, open_study
from experiments.worth_data import restore
from experiments.worth_tables import BETTER, compare, draw_grid, format_seeds, over_faces, print_head, read_results
from refl.restorers.tiny import load_tiny
from refl.tune.config import ReflConfig, load_refl_config
from refl.tune.train import train as tune
from refl.tune.training import Material
from reward.model.model import RewardModel

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "refl": {"train": {"monitor_every_steps": 60}},
    "refl-eighth": {"algorithm": {"budget": 1500}, "train": {"monitor_every_steps": 8}},
    "dpo": {
        "algorithm": {"algorithm": "dpo", "beta": 500.0},
        "train": {"batch_size": 16, "learning_rate": 1e-4, "monitor_every_steps": 15},
    },
    "gdpo": {
        "algorithm": {"algorithm": "gdpo", "beta": 500.0, "group_size": 4, "group_ends": 1},
        "trajectory": {"eta": (1.0, 1.0)},
        "train": {"learning_rate": 1e-4, "monitor_every_steps": 12},
    },
    "grpo": {
        "algorithm": {"algorithm": "grpo", "group_size": 16, "updates": 3, "clip_range": 1e-3},
        "trajectory": {"eta": (1.0, 1.0)},
        "train": {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 5e-5, "monitor_every_steps": 3},
    },
}
"""What each differs in from the preset tiny-refl, chosen on seeds 100 and 101, which are in no table; `refl-eighth`
spends an eighth of what the others do."""
NEVER = 10**6


def configure(study: Study, method: str, spread: float, budget: int, more: dict[str, dict[str, Any]]) -> ReflConfig:
    """The settings of a method.

    Args:
        spread: of the reward within photos, which refl's weight is in.
        more: tables over METHODS'.
    """
    settings, own = study.settings, METHODS[method]
    changes: dict[str, dict[str, Any]] = {
        "algorithm": {"budget": budget},
        "loss": {"reward_weight": settings.reward_weight / spread},
        "live_reward": {"reward_every_steps": 0},
        "train": {
            "max_steps": NEVER,
            "learning_rate": settings.learning_rate,
            "warmup_steps": 5,
            "ema_decay": 0.0,
            "gradient_norms": False,
            "monitor_faces": 8,
            "checkpoint_every_steps": NEVER,
            "log_every_steps": 1,
            "seed": study.seed,
        },
    }
    for tables in (own, more):
        for table, fields in tables.items():
            changes[table] = {**changes.get(table, {}), **fields}
    return load_refl_config("tiny-refl", changes)


def run_method(
    study: Study, method: str, reward: RewardModel, spread: float, budget: int, more: dict[str, dict[str, Any]]
) -> None:
    """Tune the restorer by a method until its budget is spent, and keep what annotator, judges and monitor say."""
    if study.has("arms", method):
        return
    config = configure(study, method, spread, budget, more)
    curve: list[dict[str, float]] = []
    material = Material(
        load_tiny(),
        reward,  # dpo's is only watched
        study.sets["train"].faces,
        study.sets["val"].faces,
        pairs=study.pairs if method == "dpo" else None,
    )
    began = time.monotonic()

    def note(done: int, _total: int, values: dict[str, float]) -> None:
        curve.append({"step": done, **values})

    result = tune(material, config, study.folder / f"tuned-{method}", note)
    seconds = time.monotonic() - began
    judge_arm(study, method, restore(material.restorer.eval(), study.sets["test"].lq, study.seed))  # type: ignore[arg-type]
    checks = json.loads((study.folder / f"tuned-{method}" / "checks.json").read_text())["checks"]
    suspicious = sum(row["seen"] != "good" for row in checks)
    found = {
        "suspicious": suspicious,
        "curve": curve,
        "seconds": seconds,
        "steps": result["step"],
        "evaluations": result["evaluations"],
    }
    study.keep({**found, "hacking": result["hacking"]}, "tuning", method)
    rate = over_faces(compare(study.results, method, "base"))
    print(f"seed {study.seed} {method}: over the base {rate[0]:.3f} [{rate[1]:.3f}, {rate[2]:.3f}], ", end="")
    print(f"{result['step']} steps, {result['evaluations']:,} evaluations, {seconds:.0f} s", flush=True)


def run_seed(study: Study, methods: list[str], budget: int, more: dict[str, dict[str, Any]]) -> None:
    """All of one seed that is not there yet."""
    if not study.has("arms", "base"):
        judge_arm(study, "base", restore(load_tiny(), study.sets["test"].lq, study.seed))
    reward = learn(study, "seeing")
    spread = measure_spread(study, reward)
    for method in methods:
        run_method(study, method, reward, spread, budget, more)


def print_tables(out: Path) -> None:
    """Win rates, changes by judge, and cost of each method."""
    results = read_results(out)
    methods = [name for name in METHODS if all(name in result["arms"] for result in results.values())]
    print_head("SIMULATED annotator, noise-free", *(f"seed {seed}" for seed in results), "mean over seeds [95 %]")
    for method in methods:
        rates = [over_faces(compare(result, method, "base")) for result in results.values()]
        cells = " | ".join(f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in rates)
        print(f"| {method} over base | {cells} | **{format_seeds([rate[0] for rate in rates])}** |")
    print_head("change of the mean over the base", "base", *methods)
    for judge, sign in BETTER.items():
        base = np.mean([np.mean(result["arms"]["base"][judge]) for result in results.values()])
        gained = []
        for method in methods:
            gains = [
                sign * float(np.mean(np.subtract(result["arms"][method][judge], result["arms"]["base"][judge])))
                for result in results.values()
            ]
            held = f", kept in {sum(gain > -MARGINS[judge] for gain in gains)}" if judge in MARGINS else ""
            gained.append(format_seeds(gains, 4, "+") + held)
        print(f"| {judge}{', turned' if sign < 0 else ''} | {base:.4f} | {' | '.join(gained)} |")
    print_head("cost, mean over seeds", *methods)
    tunings = {method: [result["tuning"][method] for result in results.values()] for method in methods}
    for name, form in (("evaluations", "{:,.0f}"), ("steps", "{:,.0f}"), ("seconds", "{:,.0f}")):
        spent = [form.format(np.mean([one[name] for one in found])) for found in tunings.values()]
        print(f"| {name} | {' | '.join(spent)} |")
    said = [", ".join(describe_monitor(one) for one in found) for found in tunings.values()]
    print(f"| monitor, by seed | {' | '.join(said)} |")


def describe_monitor(tuning: dict[str, Any]) -> str:
    """The monitor's word on a training."""
    if tuning["hacking"] is not None:
        return f"hacking at step {tuning['hacking']}"
    return "suspicious" if tuning["suspicious"] else "nothing"


def read_changes(words: list[str]) -> dict[str, dict[str, Any]]:
    """Tables of `table.field=value`."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        name, _, value = word.partition("=")
        table, _, field = name.partition(".")
        found.setdefault(table, {})[field] = value.split(",") if "," in value else value
    return found


def main() -> None:
    """Run, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the seeds' folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budget", type=int, default=12_000, help="network evaluations of each method")
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--reward-steps", type=int, default=200)
    parser.add_argument("--set", nargs="*", default=[], metavar="TABLE.FIELD=VALUE", help="settings over the methods'")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--grid", type=Path, help="PNG of the first faces of the London set")
    args = parser.parse_args()
    if args.tables or args.grid:
        print_tables(args.out)
        if args.grid:
            draw_grid(args.out, args.grid, list(METHODS))
        return
    if not SHARED.is_dir():
        raise SystemExit("needs ../shared/faces, which is not beside this checkout")
    torch.set_num_threads(1)
    settings = Settings(answers=args.answers, constructed=args.answers, reward_steps=args.reward_steps)
    for seed in args.seeds:
        study = open_study(args.out.absolute(), seed, settings)
        run_seed(study, args.methods, args.budget, read_changes(args.set))


if __name__ == "__main__":
    main()
