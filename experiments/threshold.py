"""Count the fits that label below their target accuracy: `python -m experiments.threshold`.

Each of 500 fits learns from simulated answers (four restorations of a photo, so six pairs of it that share what the
metrics do not see; every photo has a taste of its own), chooses its threshold as `annotate fit` does, and is then
scored on pairs of 4,000 other photos by the very probabilities that people would choose either image. `before` is the
rule that this replaced: the lowest certainty from which (wrong + 1) / (answers + 1) was within the target, whatever
photos the answers were of. A size takes one to two minutes on a core with the linear kernel.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the processes below use the cores already

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from annotate.labeler.settings import FitSettings
from annotate.labeler.svm import Training, compute_p_a, fit_labeler, split_folds
from annotate.labeler.threshold import choose_threshold
from metrics.accuracy import compute_credit

Array = npt.NDArray[np.float64]

METRICS, CANDIDATES, OTHER_PHOTOS = 8, 4, 4_000
UNSEEN, OWN_TASTE, STRENGTH = 1.5, 0.7, 1.5
"""Standard deviations of what the metrics do not see of an image, of a photo's own taste, and of the common taste."""
TARGET, CONFIDENCE = 0.9, 0.9


def draw_pairs(photos: int, taste: Array, rng: np.random.Generator, *, effects: bool) -> tuple[Array, Array, Array]:
    """(differences, probability that a is chosen, photo) of all pairs of so many photos."""
    values = rng.normal(size=(photos, CANDIDATES, METRICS))
    tastes = taste + effects * OWN_TASTE * rng.normal(size=(photos, 1, METRICS))
    utility = (values * tastes).sum(axis=2) + 0.4 * values[..., 0] * values[..., 1]
    utility += effects * UNSEEN * rng.normal(size=utility.shape)
    a, b = np.triu_indices(CANDIDATES, 1)
    differences = (values[:, a] - values[:, b]).reshape(-1, METRICS)
    return differences, expit((utility[:, a] - utility[:, b]).ravel()), np.repeat(np.arange(photos), len(a))


def fit_once(seed: int, labels: int, kernel: str, effects: bool) -> list[tuple[float, bool]]:
    """(share labelled, whether that is below the target) by the rule before, by ours, and knowing the truth."""
    rng = np.random.default_rng((seed, labels))
    taste = STRENGTH * rng.normal(size=METRICS) * (rng.random(METRICS) < 0.7)
    differences, p, photos = (values[:labels] for values in draw_pairs(-(-labels // 6), taste, rng, effects=effects))
    names = photos.astype(str)
    data = Training(differences, (rng.random(labels) < p).astype(float), np.ones(labels), names, names)
    settings = FitSettings(kernel=kernel)
    held_out = np.zeros(labels)
    for train, outside in split_folds(data, settings.folds, settings.seed):
        held_out[outside] = compute_p_a(fit_labeler(data.part(train), settings), data.differences[outside])
    certainty, right = np.maximum(held_out, 1 - held_out), compute_credit(held_out - 0.5, data.p_a)

    others, true_p, _ = draw_pairs(OTHER_PHOTOS, taste, rng, effects=effects)
    p_a = compute_p_a(fit_labeler(data, settings), others)
    order = np.argsort(-np.maximum(p_a, 1 - p_a))
    sure = np.maximum(p_a, 1 - p_a)[order]
    accuracy = np.cumsum(compute_credit(p_a - 0.5, true_p)[order]) / np.arange(1, len(order) + 1)
    reached = np.nonzero(accuracy >= TARGET)[0]
    found = []
    for threshold in (
        choose_before(certainty, right),
        choose_threshold(certainty, right, data.weight, photos, TARGET, CONFIDENCE),
    ):
        labelled = 0 if threshold is None else int((sure >= threshold).sum())
        found.append((labelled / len(sure), bool(labelled) and bool(accuracy[labelled - 1] < TARGET)))
    return [*found, ((reached[-1] + 1) / len(sure) if len(reached) else 0.0, False)]


def choose_before(certainty: Array, right: Array) -> float | None:
    """The threshold as it was chosen before."""
    order = np.argsort(-certainty, kind="stable")
    wrong, n = np.cumsum(1 - right[order]), np.arange(1, len(order) + 1)
    fits = np.nonzero(wrong + 1 <= (1 - TARGET) * (n + 1) + 1e-9)[0]
    return float(certainty[order][fits[-1]]) if len(fits) else None


def main() -> None:
    """Print a row a size: how many fits label below the target, how many label at all, and what share of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--fits", type=int, default=500)
    parser.add_argument("--kernel", choices=["linear", "rbf", "auto"], default="linear")
    parser.add_argument("--no-effects", action="store_true", help="photos without a taste of their own")
    args = parser.parse_args()
    print("| labels | below: before | ours | label at all: before | ours | labelled: before | ours | at best |")
    print("|---|---|---|---|---|---|---|---|")
    for labels in args.labels:
        fit = partial(fit_once, labels=labels, kernel=args.kernel, effects=not args.no_effects)
        with ProcessPoolExecutor() as pool:
            fits = np.array(list(pool.map(fit, range(args.fits), chunksize=5)))
        share, below = fits[..., 0].mean(axis=0), fits[..., 1].mean(axis=0)
        at_all = (fits[..., 0] > 0).mean(axis=0)
        print(
            f"| {labels:,} | {below[0]:.1%} | {below[1]:.1%} | {at_all[0]:.0%} | {at_all[1]:.0%} "
            f"| {share[0]:.3f} | {share[1]:.3f} | {share[2]:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
