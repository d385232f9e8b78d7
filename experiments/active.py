"""Count the labels each order of showing needs for the same held-out accuracy: `python -m experiments.active`.

Pairs are asked one by one as the labelling page asks them (the reserve and the share at random included), the labeler
is fitted anew after every batch, and its accuracy is measured on photos that were never asked. Answers are drawn from
real people's votes (../shared/faces/votes) or from simulated people.

Of each set the table names some accuracies, those that the random order reaches with so many labels, and the labels
that every order needs for them: read off the mean curve of all seeds, made monotone; in brackets the 95 % interval of
a bootstrap over seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the processes below use the cores already

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression

from annotate.judging.pairs import ACTIVE_ORDERS
from annotate.labeler.active import SHORTLIST_LENGTH, rank_disagreement, rank_diverse, rank_uncertain, spread_sources
from annotate.labeler.settings import FitSettings
from annotate.labeler.svm import Labeler, Training, compute_p_a, fit_bag, fit_labeler
from db.models import Picked
from db.pairs import RESERVED_LAST_DIGITS
from db.project import ProjectSettings
from experiments import votes

Array = npt.NDArray[Any]

VOTES = Path(__file__).resolve().parents[2] / "shared" / "faces" / "votes"
ORDERS = ("random", "uncertain", "disagreement", "diverse", "mixed")
RESERVED_SHARE = len(RESERVED_LAST_DIGITS) / 16
RESAMPLES = 2_000


@dataclass(frozen=True)
class Study:
    """Pairs that can be asked, and pairs of other photos to measure on.

    differences (n, d), sources (n,), method_pairs (n,); answers (n, w): 1 where the k-th person asked prefers a, else
    0. held_out (m, d), with the share of people who prefer a (m,) and the weight (m,) of each of its pairs.
    """

    differences: Array
    sources: Array
    method_pairs: Array
    answers: Array
    held_out: Array
    held_out_p_a: Array
    held_out_weight: Array


@dataclass(frozen=True)
class Plan:
    """Plan of labelling a set: the study of a seed, first labels, labels between fits, all labels."""

    name: str
    make: Callable[[int], Study]
    start: int
    batch: int
    total: int
    named_at: tuple[int, ...]
    """Labels at which the random order's accuracies are named."""


def make_sr(seed: int) -> Study:
    """52 people's best of four on 12 scenes: six scenes to ask, six to measure on; a choice is three pairwise wins."""
    folder = VOTES / "sr"
    pairs = votes.count_pairs(votes.read_wins(folder)[0])
    return split_votes(votes.Study("sr", pairs, {"": votes.read_author_metrics(folder)}), wanted=8, seed=seed)


def make_codec(seed: int) -> Study:
    """47 votes on each of 144 pairs of 24 photos: half of the photos to ask, half to measure on."""
    return split_votes(votes.load_codec(VOTES / "codec"), wanted=4, seed=seed)


def split_votes(study: votes.Study, wanted: int, seed: int) -> Study:
    """Half of the images to ask, each pair `wanted` times, answers drawn from its votes; half to measure on."""
    rng = np.random.default_rng(seed)
    pairs, differences = study.pairs, study.training(next(iter(study.metrics.values()))).differences
    images, n = pairs["image"].to_numpy(str), pairs["n"].to_numpy(int)
    for_a = np.round(pairs["p_a"].to_numpy(float) * n).astype(int)
    methods = [sorted(name.split()[0] for name in row) for row in zip(pairs["a"], pairs["b"], strict=True)]
    names = rng.permutation(np.unique(images))
    in_first_half = np.isin(images, names[: len(names) // 2])
    asked, measured = in_first_half & (n >= wanted), ~in_first_half
    answers = [
        rng.permutation(np.repeat([1.0, 0.0], [won, all_votes - won]))[:wanted]
        for won, all_votes in zip(for_a[asked], n[asked], strict=True)
    ]
    return Study(
        differences[asked],
        images[asked],
        np.unique(["/".join(pair) for pair in methods], return_inverse=True)[1][asked],
        np.array(answers),
        differences[measured],
        for_a[measured] / n[measured],
        n[measured].astype(float),
    )


def make_simulated(seed: int) -> Study:
    """Simulated people, who answer by a logistic draw: 200 photos to ask and 200 to measure on, six candidates each.

    12 metrics of which some matter, and a product of two; a method shifts all of its images. The best possible accuracy
    is about 0.8.
    """
    rng = np.random.default_rng(seed)
    methods = rng.normal(0, 0.5, (6, 12))
    weights = rng.normal(0, 1, 12) * (rng.random(12) < 0.6)
    values = methods + rng.normal(0, 1, (400, 6, 12))
    utility = values @ weights + 0.5 * values[..., 0] * values[..., 1]
    first, second = np.triu_indices(6, 1)
    differences = values[:, first] - values[:, second]
    p_a = 1 / (1 + np.exp(-1.7 * (utility[:, first] - utility[:, second]) / utility.std()))
    asked, measured = slice(0, 200), slice(200, 400)
    return Study(
        differences[asked].reshape(-1, 12),
        np.repeat(np.arange(200), 15),
        np.tile(np.arange(15), 200),
        (rng.random((200, 15)) < p_a[asked]).reshape(-1, 1).astype(float),
        differences[measured].reshape(-1, 12),
        p_a[measured].ravel(),
        np.ones(p_a[measured].size),
    )


PLANS = {
    "sr": Plan("votes/sr: real people, 6 scenes asked, 6 held out", make_sr, 30, 10, 200, (40, 80, 120)),
    "codec": Plan("votes/codec: real people, 12 photos asked, 12 held out", make_codec, 30, 10, 200, (40, 80, 120)),
    "simulated": Plan("SIMULATED people, 200 photos asked, 200 held out", make_simulated, 50, 25, 600, (100, 200, 400)),
}


def simulate(study: Study, order: str, plan: Plan, seed: int) -> list[float]:
    """Held-out accuracy of the labeler after the first labels and after every batch, in one order."""
    rng = np.random.default_rng(seed)
    reserved = rng.random(len(study.sources)) < RESERVED_SHARE
    times = np.zeros(len(study.sources), dtype=int)
    times_at_fit = times
    lists: dict[Picked, Array] = {}
    accuracies = []
    for n in range(1, plan.total + 1):
        pair = pick(study, order, times, times_at_fit, reserved, lists, rng)
        times[pair] += 1
        if n >= plan.start and (n - plan.start) % plan.batch == 0:
            data = collect_training(study, times)
            labeler = fit_labeler(data, FitSettings(seed=seed))
            accuracies.append(measure_accuracy(study, labeler))
            lists = rank_all(study, order, times, reserved, labeler, data, seed)
            times_at_fit = times.copy()
    return accuracies


def pick(
    study: Study,
    order: str,
    times: Array,
    times_at_fit: Array,
    reserved: Array,
    lists: dict[Picked, Array],
    rng: np.random.Generator,
) -> int:
    """The pair that is asked next: the rules of annotate.judging.pairs._pick_queued, on arrays."""
    wanting = times < study.answers.shape[1]
    if not lists:
        return draw_least_asked(wanting, times, rng)
    active = rng.choice(np.array(ACTIVE_ORDERS)) if order == "mixed" else order
    at_random = rng.random() < ProjectSettings().random_share
    listed = lists[Picked(active)]
    listed = listed[times[listed] == times_at_fit[listed]]  # each once between two fits, as one person sees them
    if at_random and (wanting & reserved).any():
        return draw_least_asked(wanting & reserved, times, rng)
    if len(listed):
        return int(listed[0])
    others = wanting & ~reserved
    return draw_least_asked(others if others.any() else wanting, times, rng)


def draw_least_asked(wanting: Array, times: Array, rng: np.random.Generator) -> int:
    """One of the pairs that were asked the fewest times."""
    least = times[wanting].min()
    return int(rng.choice(np.nonzero(wanting & (times == least))[0]))


def collect_training(study: Study, times: Array) -> Training:
    """The labels so far: of each pair the share of those asked who prefer a."""
    asked = times > 0
    p_a = np.array([answers[:n].mean() for answers, n in zip(study.answers[asked], times[asked], strict=True)])
    sources = study.sources[asked].astype(str)
    return Training(study.differences[asked], p_a, np.ones(len(p_a)), sources, sources)


def measure_accuracy(study: Study, labeler: Labeler) -> float:
    """Share of the held-out answers that the labeler gives too; half of one where it is indifferent."""
    guess = compute_p_a(labeler, study.held_out)
    right = np.where(guess > 0.5, study.held_out_p_a, 1 - study.held_out_p_a)
    return float(np.average(np.where(guess == 0.5, 0.5, right), weights=study.held_out_weight))


def rank_all(
    study: Study, order: str, times: Array, reserved: Array, labeler: Labeler, data: Training, seed: int
) -> dict[Picked, Array]:
    """The shortlists of the orders that are in use, as annotate.labeler.active makes them: indices of pairs."""
    open_pairs = np.nonzero(~reserved & (times < study.answers.shape[1]))[0]
    open_pairs = np.random.default_rng(seed).permutation(open_pairs)
    differences, sources = study.differences[open_pairs], study.sources[open_pairs]
    ranked: dict[Picked, Array] = {}
    if order in ("uncertain", "mixed"):
        ranked[Picked.uncertain] = spread_sources(rank_uncertain(compute_p_a(labeler, differences)), sources)
    if order in ("disagreement", "mixed"):
        bagged = np.array([compute_p_a(one, differences) for one in fit_bag(data, labeler, seed=seed)])
        ranked[Picked.disagreement] = spread_sources(rank_disagreement(bagged), sources)
    if order in ("diverse", "mixed"):
        judged = np.repeat(study.sources, times), np.repeat(study.method_pairs, times)
        ranked[Picked.diverse] = rank_diverse(sources, study.method_pairs[open_pairs], *judged, SHORTLIST_LENGTH)
    return {picked: open_pairs[indices] for picked, indices in ranked.items()}


def simulate_seed(job: tuple[str, str, int]) -> list[float]:
    """One curve, in a process of its own."""
    name, order, seed = job
    return simulate(PLANS[name].make(seed), order, PLANS[name], seed)


def labels_needed(curve: Array, grid: Array, target: float) -> float:
    """Labels at which a mean curve, made monotone, reaches the target; infinite where it never does."""
    smooth = IsotonicRegression().fit_transform(grid, curve)
    if smooth[-1] < target:
        return float("inf")
    at = int(np.argmax(smooth >= target))
    if at == 0:
        return float(grid[0])
    share = (target - smooth[at - 1]) / (smooth[at] - smooth[at - 1])
    return float(grid[at - 1] + share * (grid[at] - grid[at - 1]))


def table_lines(plan: Plan, curves: dict[str, Array]) -> Iterator[str]:
    """The table of a set.

    Args:
        curves: (seeds, checkpoints) accuracies of each order, the same seeds in the same order.
    """
    grid = np.arange(plan.start, plan.total + 1, plan.batch).astype(float)
    seeds = len(curves["random"])
    draws = np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))
    smooth = IsotonicRegression().fit_transform(grid, curves["random"].mean(axis=0))
    targets = [float(np.interp(named, grid, smooth)) for named in plan.named_at]
    yield f"{plan.name}; {seeds} seeds"
    heads = [f"labels for {target:.3f}" for target in targets]
    yield f"{'order':<13}" + "".join(f"{head:>20}" for head in heads) + f"{'accuracy on the way, against random':>46}"
    for order, accuracies in curves.items():
        needed = [
            (
                labels_needed(accuracies.mean(axis=0), grid, target),
                *np.quantile(
                    [labels_needed(accuracies[draw].mean(axis=0), grid, target) for draw in draws[:300]],
                    [0.025, 0.975],
                    method="nearest",
                ),
            )
            for target in targets
        ]
        cells = [f"{show(mean, plan)} [{show(low, plan)}, {show(high, plan)}]" for mean, low, high in needed]
        gain = 100 * (accuracies - curves["random"]).mean(axis=1)
        low, high = np.quantile(gain[draws].mean(axis=1), [0.025, 0.975])
        word = "better" if low > 0 else "worse" if high < 0 else "no difference"
        verdict = "" if order == "random" else f"{gain.mean():+.2f} points [{low:+.2f}, {high:+.2f}]  {word}"
        yield f"{order:<13}" + "".join(f"{cell:>20}" for cell in cells) + f"{verdict:>46}"


def show(labels: float, plan: Plan) -> str:
    """A number of labels, '>200' where all were not enough."""
    return f">{plan.total}" if labels == float("inf") else f"{labels:.0f}"


def main() -> int:
    """Simulate all orders on all sets and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(PLANS), default=list(PLANS), help="default: all")
    parser.add_argument("--seeds", type=int, default=20, help="simulations of each order (default: 20)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as processes:
        for name in args.sets:
            if name != "simulated" and not VOTES.is_dir():
                print(f"{PLANS[name].name}: left out, {VOTES} is not there")
                continue
            jobs = [(name, order, seed) for order in ORDERS for seed in range(args.seeds)]
            found = np.array(list(processes.map(simulate_seed, jobs)))
            curves = dict(zip(ORDERS, found.reshape(len(ORDERS), args.seeds, -1), strict=True))
            print("\n".join(table_lines(PLANS[name], curves)), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
