"""Print the tables of `experiments.reward_worth` and draw its grid: `python -m experiments.worth_tables OUT`.

Means over seeds have their 95 % interval by Student's t, those of a seed by resampling faces. The annotator is
SIMULATED.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from scipy.stats import t

from experiments.reward_worth import ARMS, MARGINS, MODES, SETS, WANTED
from metrics.accuracy import bootstrap_mean
from training.images import read_image

Array = npt.NDArray[np.float64]
Results = dict[int, dict[str, Any]]

BETTER = {"psnr": 1, "ssim": 1, "gmsd": -1, "likeness": 1, "taste": 1}
"""Sign of each judge."""
COMPARED = (
    ("holding", "base"),
    ("blind", "base"),
    ("seeing", "base"),
    ("heads", "base"),
    ("set", "base"),
    ("oracle", "base"),
    ("blind", "holding"),
    ("seeing", "holding"),
    ("heads", "holding"),
    ("set", "holding"),
    ("seeing", "blind"),
    ("set", "blind"),
    ("set", "seeing"),
)
TESTS = ("all", "another person", "another person, inputs shuffled")
GRID_FACES, GRID_SCALE = 8, 2


def read_results(out: Path) -> Results:
    """Results by seed."""
    files = sorted(out.glob("seed*/results.json"))
    nothing: dict[str, Any] = {"arms": {}, "reward": {}, "tuning": {}}
    return {int(file.parent.name.removeprefix("seed")): nothing | json.loads(file.read_text()) for file in files}


def print_head(*cells: str) -> None:
    """The first two lines of a table."""
    print(f"\n| {' | '.join(cells)} |\n" + "|---" * len(cells) + "|")


def list_arms(results: Results) -> list[str]:
    """The arms that every seed has."""
    return [arm for arm in ARMS if all(arm in result["arms"] for result in results.values())]


def format_seeds(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """The mean over seeds with its interval by Student's t; without one where there is one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:{sign}.{digits}f}"
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:{sign}.{digits}f} [{mean - half:{sign}.{digits}f}, {mean + half:{sign}.{digits}f}]"


def over_faces(values: Array) -> tuple[float, float, float]:
    """Mean over one seed's faces, with its interval."""
    return bootstrap_mean(values, np.ones(len(values)), np.arange(len(values)))


def compare(result: dict[str, Any], one: str, other: str) -> Array:
    """(faces,) 1 where the SIMULATED annotator chooses the first arm, 0 the other, 0.5 where they are equal."""
    difference = np.sign(np.subtract(result["arms"][one]["taste"], result["arms"][other]["taste"]))
    return np.asarray((1 + difference) / 2)


def print_win_rates(results: Results) -> None:
    """How often one arm is chosen over another."""
    print_head("SIMULATED annotator, noise-free", *(f"seed {seed}" for seed in results), "mean over seeds [95 %]")
    for one, other in COMPARED:
        having = [result for result in results.values() if {one, other} <= set(result["arms"])]
        if len(having) < len(results):
            continue
        rates = [over_faces(compare(result, one, other)) for result in having]
        cells = " | ".join(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in rates)
        wanted = f", wanted {WANTED[other]:.2f}" if one in SETS and other in WANTED else ""
        print(f"| {one} over {other}{wanted} | {cells} | **{format_seeds([rate[0] for rate in rates])}** |")


def print_changes(results: Results) -> None:
    """What each arm gains on the base by every judge, better is higher, and whether the margins hold."""
    arms = list_arms(results)
    print_head("change of the mean over the base", "base", *arms)
    for judge, sign in BETTER.items():
        base = np.mean([np.mean(result["arms"]["base"][judge]) for result in results.values()])
        cells = []
        for arm in arms:
            found = [
                sign * float(np.mean(np.subtract(result["arms"][arm][judge], result["arms"]["base"][judge])))
                for result in results.values()
            ]
            held = sum(value > -MARGINS[judge] for value in found) if judge in MARGINS else 0
            cells.append(
                format_seeds(found, 4, "+") + (f", kept in {held} of {len(found)}" if judge in MARGINS else "")
            )
        margin = f", at most {MARGINS[judge]} lost" if judge in MARGINS else ""
        print(f"| {judge}{', turned' if sign < 0 else ''}{margin} | {base:.4f} | {' | '.join(cells)} |")


def print_accuracies(results: Results) -> None:
    """Held-out accuracies of the reward models, and how their gradient lies to the taste's."""
    first = results[min(results)]["reward"]
    names = [name for name in first if all("test" in result["reward"].get(name, {}) for result in results.values())]
    print_head("reward model", *TESTS, "another person, ffhq", "another person, London", "gradient, cosine")
    for name in names:
        tests = [result["reward"][name]["test"] for result in results.values()]
        halves = [np.split(np.array(test["another person"]), 2) for test in tests]  # the London set is the second
        found = [[float(np.mean(test[which])) for test in tests] for which in TESTS]
        found += [[float(half[at].mean()) for half in halves] for at in (0, 1)]
        found.append([float(np.mean(test["gradient"])) for test in tests])
        print(f"| {name} | {' | '.join(format_seeds(values) for values in found)} |")


def print_volume(results: Results) -> None:
    """Accuracy and win rate of the seeing model by the number of answers, of the seeds that have every number."""
    names = {name for result in results.values() for name in result["reward"] if name.startswith("seeing-")}
    *fewer, most = sorted(names, key=lambda name: int(name.removeprefix("seeing-")))
    arm_of = {**{name: name for name in fewer}, most: "seeing"}
    having = {seed: result for seed, result in results.items() if set(arm_of.values()) <= set(result["arms"])}
    seeds = ", ".join(str(seed) for seed in having)
    print_head(
        f"SIMULATED answers, seed {seeds}", "accuracy, all", "another person", "over base", "over holding", "taste"
    )
    for name, arm in arm_of.items():
        tests = [result["reward"][name]["test"] for result in having.values()]
        cells = [[float(np.mean(test[which])) for test in tests] for which in ("all", "another person")]
        for other in ("base", "holding"):
            cells.append([float(compare(result, arm, other).mean()) for result in having.values()])
        gains = [np.mean(np.subtract(r["arms"][arm]["taste"], r["arms"]["base"]["taste"])) for r in having.values()]
        shown = [*(format_seeds(values) for values in cells), f"{np.mean(gains):+.3f}"]
        print(f"| {int(name.removeprefix('seeing-')):,} | {' | '.join(shown)} |")


def fill_forward(curve: list[dict[str, float]]) -> dict[int, dict[str, float]]:
    """The lines of a training at which unseen faces were measured, by step; what one does not say the last one did."""
    known: dict[str, float] = {}
    found = {}
    for line in curve:
        known |= line
        if "val/accuracy" in line and "loss" in known:
            found[int(line["step"])] = dict(known)
    return found


def print_curves(results: Results) -> None:
    """What training said on the way, means over seeds."""
    keys = {
        "loss": "loss",
        "rewards/accuracies": "accuracy, training",
        "val/accuracy": "accuracy, unseen faces",
    }
    for kind in MODES:
        names = {name for name in results[min(results)]["reward"] if name.startswith(f"{kind}-")}
        largest = max(names, key=lambda name: int(name.rpartition("-")[2]))
        print_head(f"{largest} answers, step", *keys.values())
        curves = [fill_forward(result["reward"][largest]["curve"]) for result in results.values()]
        for step in sorted(set.intersection(*(set(curve) for curve in curves))):
            cells = [f"{np.mean([curve[step][key] for curve in curves]):.3f}" for key in keys]
            print(f"| {step} | {' | '.join(cells)} |")
    arms = [arm for arm in list_arms(results) if arm != "holding"]  # it has no reward
    print_head("own reward, mean of ten batches, step", *arms)
    rewards = {
        arm: [
            {int(line["step"]): line["reward"] for line in result["tuning"][arm]["curve"] if "reward" in line}
            for result in results.values()
        ]
        for arm in arms
    }
    for step in sorted(set.intersection(*(set(one) for of_arm in rewards.values() for one in of_arm))):
        cells = [f"{np.mean([one[step] for one in rewards[arm]]):+.3f}" for arm in arms]
        print(f"| {step} | {' | '.join(cells)} |")
    seconds = (np.mean([result["tuning"][arm]["seconds"] for result in results.values()]) for arm in arms)
    print(f"| seconds, all of it | {' | '.join(f'{one:.0f}' for one in seconds)} |")


def draw_grid(out: Path, path: Path, arms: Sequence[str]) -> None:
    """The first faces of the London set by name, of the first seed: a row a face, its columns lq, base, arms and hq.

    The London set's faces may be published with its citation (CC BY 4.0); no other face is drawn.
    """
    folder = sorted(out.glob("seed*/faces/test"))[0]
    names = sorted(file.name for file in (folder / "hq").glob("*_neutral.png"))[:GRID_FACES]
    columns = ["lq", "arm-base", *(f"arm-{arm}" for arm in arms), "hq"]
    rows = [np.concatenate([read_image(folder / column / name) for column in columns], axis=1) for name in names]
    image = PilImage.fromarray(np.concatenate(rows))
    image = image.resize((image.width * GRID_SCALE, image.height * GRID_SCALE), PilImage.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("P", palette=PilImage.Palette.ADAPTIVE, colors=256).save(path, optimize=True)
    print(f"\n{path}, from the left: {', '.join(columns)}; {len(names)} faces of the London set, the first by name")


def main() -> None:
    """Print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that `experiments.reward_worth` wrote")
    parser.add_argument("--grid", type=Path, help="PNG of the first faces of the London set")
    args = parser.parse_args()
    results = read_results(args.out)
    if not results:
        raise SystemExit(
            f"{args.out} holds no seed's results. Run `python -m experiments.reward_worth --out {args.out}`."
        )
    print_win_rates(results)
    print_changes(results)
    print_accuracies(results)
    print_volume(results)
    print_curves(results)
    if args.grid:
        draw_grid(args.out, args.grid, list_arms(results))


if __name__ == "__main__":
    main()
