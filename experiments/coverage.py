"""Count how often the ranking's intervals hold the truth: `python -m experiments.coverage [--runs 400]`.

Planted people and photos: 8 methods; a person answers about a photo by Luce's model, with a taste of their own (normal,
PERSON_SPREAD a method) and what the photo does to each method (normal, PHOTO_SPREAD). The truth is the fit of a million
answers, each about a photo and by a person of its own: what people in general say of photos in general. Printed is how
often the 95 % intervals hold it, over methods and runs, and their mean half width, beside those of four ways that are
wrong: answers resampled alone, the pairs that follow from them, photos alone, photos and people both at once.
The table stands in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.answers import list_comparisons, read_answers
from metrics.plackett_luce import Fit, Tally, fit, leave_out, tally_answers
from metrics.two_way import compute_spread, number_clusters
from metrics.votes import center

Floats = npt.NDArray[np.float64]

METHODS = tuple(f"m{number}" for number in range(8))
STRENGTHS = np.linspace(-0.8, 0.8, len(METHODS))
PHOTO_SPREAD, PERSON_SPREAD = 0.7, 0.5
SIZES = {"small": (8, 20, 200), "middle": (20, 60, 1000), "large": (40, 120, 3000)}
"""People, photos, answers."""
ASKED = {"pairs": 0.0, "fours": 1.0, "mixed": 0.5}
"""Share of answers that are the best of four; the others are pairs."""
WAYS = ("photos and people", "answers", "derived pairs", "photos", "both at once")
TRUTH_ANSWERS, TRUTH_PARTS = 250_000, 4


@dataclass(frozen=True)
class Coverage:
    """Of one way to make intervals: share that holds the truth, mean half width."""

    share: float
    half_width: float


def draw_answers(
    rng: np.random.Generator, people: int, photos: int, n: int, fours: float, *, uneven: bool = False
) -> pd.DataFrame:
    """n answers by people about photos; 0 people and photos: each answer is of its own.

    Args:
        fours: share of answers that are the best of four.
        uneven: the first person answers twice as often as the second, three times as often as the third.
    """
    share = 1 / np.arange(1, people + 1) if uneven else np.ones(people)
    photo = rng.integers(0, photos, n) if photos else np.arange(n)
    person = rng.choice(people, n, p=share / share.sum()) if people else np.arange(n)
    methods = len(METHODS)
    utility = STRENGTHS + rng.gumbel(size=(n, methods))
    utility += rng.normal(0, PHOTO_SPREAD, (photos or n, methods))[photo]
    utility += rng.normal(0, PERSON_SPREAD, (people or n, methods))[person]
    shown = np.argsort(rng.random((n, methods)), axis=1)[:, :4]
    best = [np.argmax(np.take_along_axis(utility, shown[:, :k], axis=1), axis=1) for k in (2, 4)]
    is_four = rng.random(n) < fours
    names = [tuple(METHODS[at] for at in row[: 4 if four else 2]) for row, four in zip(shown, is_four, strict=True)]
    rankings = [f"{'abcd'[b4]}>?" if four else ("a>b", "b>a")[b2] for b2, b4, four in zip(*best, is_four, strict=True)]
    return pd.DataFrame({"source": photo, "person": person, "methods": names, "ranking": rankings})


def find_truth(fours: float, answers: int = TRUTH_ANSWERS) -> Floats:
    """(8,) scores that the fit of ever more people and photos comes to."""
    rng = np.random.default_rng(99)
    parts = [fit(tally_answers(draw_answers(rng, 0, 0, answers, fours))).scores for _ in range(TRUTH_PARTS)]
    mean = np.mean(parts, axis=0)
    return np.asarray(mean - mean.mean())


def measure_half_widths(answers: pd.DataFrame) -> tuple[Floats, dict[str, Floats]]:
    """(scores, half widths of their 95 % intervals by WAYS)."""
    tally = tally_answers(answers)
    found, one = fit(tally), np.ones(len(METHODS), dtype=np.int64)
    photos, people = number_clusters(answers)
    pairs = tally_answers(read_answers(list_comparisons(answers).drop(columns="answer")))
    alone = {
        "answers": vary(tally, found, np.arange(len(answers))),
        "derived pairs": vary(pairs, fit(pairs), np.arange(pairs.asked.shape[0])),
        "photos": vary(tally, found, photos),
    }
    by_person = vary(tally, found, np.zeros(len(answers), dtype=np.int64) if people is None else people)
    half = {name: 1.96 * np.sqrt(variance) for name, variance in alone.items()}
    half["both at once"] = 1.96 * np.sqrt(alone["photos"] + by_person)
    half["photos and people"] = compute_spread(tally, found, photos, people, one).half_width
    return center(found.scores, one), half


def vary(tally: Tally, found: Fit, clusters: npt.NDArray[np.int64]) -> Floats:
    """(M,) variances of the centred scores when clusters of one kind alone are taken for new evidence."""
    moved = leave_out(tally, found, clusters)
    moved -= moved.mean(axis=1, keepdims=True)
    return np.asarray((moved**2).sum(axis=0))


def measure_coverage(
    size: tuple[int, int, int], fours: float, truth: Floats, runs: int, seed: int = 0, *, uneven: bool = False
) -> dict[str, Coverage]:
    """How often the intervals of each way hold the truth."""
    rng, held, widths = np.random.default_rng(seed), [], []
    for _ in range(runs):
        scores, half = measure_half_widths(draw_answers(rng, *size, fours, uneven=uneven))
        held.append([np.abs(scores - truth) < half[way] for way in WAYS])
        widths.append([half[way] for way in WAYS])
    shares, mean = np.mean(held, axis=(0, 2)), np.mean(widths, axis=(0, 2))
    return {way: Coverage(float(shares[at]), float(mean[at])) for at, way in enumerate(WAYS)}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--uneven", action="store_true", help="the first person answers most")
    args = parser.parse_args()
    print(f"| people, photos, answers | asked | {' | '.join(WAYS)} |\n|{'---|' * (2 + len(WAYS))}", flush=True)
    truths = {asked: find_truth(fours) for asked, fours in ASKED.items()}
    for size in SIZES.values():
        for asked, fours in ASKED.items():
            found = measure_coverage(size, fours, truths[asked], args.runs, uneven=args.uneven)
            cells = [f"{one.share:.3f} ({one.half_width:.2f})" for one in found.values()]
            print(f"| {', '.join(f'{n:,}' for n in size)} | {asked} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
