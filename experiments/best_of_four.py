"""Compare one choice among four with one pair, by the click: `python -m experiments.best_of_four [--faces FOLDER]`.

Two tables. From ../shared/faces/votes/sr (624 choices of the best of four, 12 scenes, 52 people): the rank correlation
of the four methods' order by n choices of one half of a scene's people with that by all of the other half, the n read
as choices among four, and as pairs (the chosen against one of the others by lot), both fitted by Plackett-Luce.
Planted: 13 methods, 85 photos that favour each method by a normal 0.7, Luce's model, and the rank correlation with the
truth after so many clicks, of pairs and of the best of four. The tables stand in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import spearmanr

from metrics.plackett_luce import fit, tally_answers

HALVES = (3, 5, 10, 20, 26)
CLICKS = (50, 100, 200, 400, 800)
METHODS, PHOTOS, PHOTO_SPREAD = 13, 85, 0.7
BEST = tuple(f"{letter}>?" for letter in "abcd")


def read_choices(folder: Path) -> pd.DataFrame:
    """votes/sr as answers: source, person, methods, ranking, seconds."""
    votes = pd.read_csv(folder / "best_of_4.csv", dtype={"image": str})
    methods = tuple(sorted(set(votes["chosen"])))
    return pd.DataFrame(
        {
            "source": votes["image"],
            "person": votes["observer"],
            "methods": [methods] * len(votes),
            "ranking": [BEST[methods.index(chosen)] for chosen in votes["chosen"]],
            "seconds": votes["seconds"],
        }
    )


def read_as_pairs(answers: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Each choice among several as one pair: the chosen against one of the others by lot."""
    rows = []
    for methods, ranking in zip(answers["methods"], answers["ranking"], strict=True):
        best = "abcdef".index(ranking[0])
        other = int(rng.choice([at for at in range(len(methods)) if at != best]))
        rows.append(((methods[best], methods[other]), "a>b"))
    return pd.DataFrame(rows, columns=["methods", "ranking"])


def score(answers: pd.DataFrame, names: list[str]) -> npt.NDArray[np.float64]:
    """(M,) scores in the order of the names; 0, an average method's, of those never compared."""
    tally = tally_answers(answers)
    return np.asarray(pd.Series(fit(tally).scores, index=tally.methods).reindex(names).fillna(0.0), dtype=float)


def replay(answers: pd.DataFrame, n: int, runs: int, seed: int = 0) -> tuple[float, float]:
    """(as choices among four, as pairs): mean rank correlation of n choices of one half of a scene's people with the
    order by all of the other half.
    """
    rng, found = np.random.default_rng(seed), []
    names = list(answers["methods"].iloc[0])
    for _, scene in answers.groupby("source"):
        for _ in range(runs):
            order = rng.permutation(len(scene))
            drawn, others = scene.iloc[order[:n]], score(scene.iloc[order[len(scene) // 2 :]], names)
            ways = drawn, read_as_pairs(drawn, rng)
            found.append([correlate(score(way, names), others) for way in ways])
    as_four, as_pairs = np.nanmean(found, axis=0)
    return float(as_four), float(as_pairs)


def correlate(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Spearman's correlation of scores, equal up to rounding being equal; NaN where all of one are."""
    first, second = first.round(6), second.round(6)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def simulate(k: int, spread: float, clicks: tuple[int, ...], runs: int, seed: int = 0) -> list[float]:
    """Mean rank correlation with the truth after so many clicks, each the best of k methods by lot."""
    rng, names = np.random.default_rng(seed), [f"m{number:02}" for number in range(METHODS)]
    found = np.zeros((runs, len(clicks)))
    for run in range(runs):
        truth = rng.normal(0, spread, METHODS)
        favour = rng.normal(0, PHOTO_SPREAD, (PHOTOS, METHODS))
        n = max(clicks)
        shown = np.argsort(rng.random((n, METHODS)), axis=1)[:, :k]
        utility = truth + favour[rng.integers(0, PHOTOS, n)] + rng.gumbel(size=(n, METHODS))
        best = np.argmax(np.take_along_axis(utility, shown, axis=1), axis=1)
        rankings = [("a>b", "b>a")[at] if k == 2 else BEST[at] for at in best]
        answers = pd.DataFrame({"methods": [tuple(names[at] for at in row) for row in shown], "ranking": rankings})
        tally = tally_answers(answers)
        for column, count in enumerate(clicks):
            scores = fit(tally, (np.arange(n) < count).astype(float)).scores
            found[run, column] = correlate(scores, truth)
    return [float(value) for value in found.mean(axis=0)]


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, default=Path("../shared/faces"))
    parser.add_argument("--runs", type=int, default=150)
    args = parser.parse_args()
    if (args.faces / "votes" / "sr").exists():
        answers = read_choices(args.faces / "votes" / "sr")
        print("| choices of a scene | read as choices among four | as pairs |\n|---|---|---|")
        for n in HALVES:
            print("| {} | {:.3f} | {:.3f} |".format(n, *replay(answers, n, args.runs)), flush=True)
    else:
        print(f"{args.faces}: no votes/sr here; only the planted table")
    print(f"\n| clicks | {' | '.join(map(str, CLICKS))} |\n|{'---|' * (1 + len(CLICKS))}")
    for spread in (0.5, 1.0):
        for k, way in ((2, "pairs"), (4, "best of four")):
            cells = " | ".join(f"{value:.3f}" for value in simulate(k, spread, CLICKS, args.runs))
            print(f"| {way}, spread {spread} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
