"""Compare the order of greatest information with a random one at equal answers: `python -m experiments.information`.

13 methods on 85 photos, their spread 0.5 (close) or 1 (clear) log odds, a method better on some photos than on others
(0.7); people answer by Luce's rule. Pairs, or the best of four of which each photo has twelve sets. The scale is fitted
anew after every 25 answers. The table has the mean rank correlation (Spearman) of the fitted scores with the true ones.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the processes below use the cores already

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import spearmanr

from annotate.labeler.information import estimate_scale, gain_of_pairs, rank_information
from metrics.rankings import LETTERS

Array = npt.NDArray[Any]

N_METHODS, N_PHOTOS, INTERACTION = 13, 85, 0.7
SETS_A_PHOTO, BATCH = 12, 25
CLICKS = (50, 100, 200, 400, 800)
NAMES = [f"m{number:02}" for number in range(N_METHODS)]


def simulate(seed: int, k: int, order: str, spread: float) -> list[float]:
    """Spearman correlations after CLICKS answers of one simulated project."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, spread, N_METHODS)
    on_photo = truth + rng.normal(0, INTERACTION, (N_PHOTOS, N_METHODS))
    photo, tasks = make_tasks(rng, k)
    rng = np.random.default_rng([seed, k])  # the same start of every order
    left = rng.permutation(len(tasks))
    rows: list[tuple[tuple[str, ...], str]] = []
    found: list[float] = []
    for n in range(0, CLICKS[-1], BATCH):
        taken = left[:BATCH]
        if order == "information" and n:
            scale = fit_all(rows)
            listed = rank_information(tasks[left], gain_of_pairs(*scale), BATCH, rng)
            taken = left[listed]
        left = left[~np.isin(left, taken)]
        for task in taken:
            seen = on_photo[photo[task], tasks[task]]
            best = int(np.argmax(seen + rng.gumbel(size=k)))
            rest = "?" if k > 2 else LETTERS[1 - best]
            rows.append((tuple(NAMES[method] for method in tasks[task]), f"{LETTERS[best]}>{rest}"))
        if len(rows) in CLICKS:
            found.append(float(spearmanr(fit_all(rows)[0], truth).statistic))
    return found


def make_tasks(rng: np.random.Generator, k: int) -> tuple[Array, Array]:
    """((n,) photos, (n, k) methods) of all that can be asked."""
    pairs = np.array(list(itertools.combinations(range(N_METHODS), 2)))
    sets = [
        pairs if k == 2 else np.array([rng.choice(N_METHODS, k, replace=False) for _ in range(SETS_A_PHOTO)])
        for _ in range(N_PHOTOS)
    ]
    return np.repeat(np.arange(N_PHOTOS), len(sets[0])), np.concatenate(sets)


def fit_all(rows: list[tuple[tuple[str, ...], str]]) -> tuple[Array, Array]:
    """(scores, covariance) of all methods."""
    return estimate_scale(pd.DataFrame(rows, columns=["methods", "ranking"]), NAMES)


def write_rows(runs: int, workers: int | None) -> Iterator[str]:
    """The table, a row as soon as it is there."""
    heads = [str(clicks) for clicks in CLICKS]
    yield f"| spread | asked | order | {' | '.join(heads)} | against random |"
    yield "|---" * (len(CLICKS) + 4) + "|"
    with ProcessPoolExecutor(workers) as processes:
        for spread, k in itertools.product((0.5, 1.0), (2, 4)):
            curves = {}
            for order in ("random", "information"):
                job = partial(simulate, k=k, order=order, spread=spread)
                curves[order] = np.array(list(processes.map(job, range(runs))))
                means = " | ".join(f"{value:.3f}" for value in curves[order].mean(axis=0))
                gain = (curves[order] - curves["random"]).mean(axis=1)
                half = 1.96 * gain.std(ddof=1) / np.sqrt(runs)
                verdict = "" if order == "random" else f"{gain.mean():+.3f} ± {half:.3f}"
                yield f"| {spread:g} | {k} | {order} | {means} | {verdict} |"


def main() -> int:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=150, help="simulated projects a row (default: 150)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    for line in write_rows(args.runs, args.workers):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
