"""Look again and again at simulated studies, and count false stops and power: `python -m experiments.stopping`.

A study has four methods, 60 photos and 20 people; a method is better on some photos than on others (0.5 log odds) and
to some people than to others (0.25); answers come in random order, pairs or the best of four, and the report is looked
at after every 60 of them (20 of four), 20 times.

False stops: the first two methods are even in the mean over photos and people, and the rule says at one look or more
that they are not. Power: they differ by 0.4 JOD, the answers needed for 80 % are planned from the two variances that
the simulation has (not from the answers), and as many are asked, of as many photos and people.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the processes below use the cores already

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import t

from metrics.accuracy import exact_interval
from metrics.plackett_luce import Tally, fit, tally_answers
from metrics.power import Study, Variation, split_covariance
from metrics.rankings import LETTERS
from metrics.stopping import ALPHA, information_needed, sequence_interval, single_look_information
from metrics.votes import JOD

Array = npt.NDArray[Any]

N_METHODS, N_PHOTOS, N_PEOPLE, LOOKS = 4, 60, 20, 20
PHOTO_SD, PERSON_SD = 0.5, 0.25
POWER, DIFFERENCE_JOD = 0.8, 0.4
FLATTER = float(np.sqrt(1 + (16 * np.sqrt(3) / (15 * np.pi)) ** 2 * (PHOTO_SD**2 + PERSON_SD**2)))
"""How many times larger a difference is on one photo to one person than over all, where shares are averaged.

Source: Zeger, Liang & Albert, Models for longitudinal data, 1988.
"""


def simulate_answers(
    rng: np.random.Generator, n: int, k: int, difference: float, n_photos: int = N_PHOTOS, n_people: int = N_PEOPLE
) -> pd.DataFrame:
    """n answers in random order: methods, ranking, photo, person (numbers).

    Args:
        difference: in log odds, by which m0 is better than each other in the mean over photos and people.
    """
    scores = np.zeros(N_METHODS)
    scores[0] = difference * FLATTER
    own = scores + rng.normal(0, PHOTO_SD / np.sqrt(2), (n_photos, 1, N_METHODS))
    own = own + rng.normal(0, PERSON_SD / np.sqrt(2), (1, n_people, N_METHODS))
    photo, person = rng.integers(n_photos, size=n), rng.integers(n_people, size=n)
    shown = rng.permuted(np.tile(np.arange(N_METHODS), (n, 1)), axis=1)[:, :k]
    seen = np.take_along_axis(own[photo, person], shown, axis=1)
    best = np.argmax(seen + rng.gumbel(size=seen.shape), axis=1)
    rest = "b" if k == 2 else "?"
    said = [f"{LETTERS[at]}>{'a' if k == 2 and at else rest}" for at in best]
    methods = [tuple(f"m{number}" for number in row) for row in shown]
    return pd.DataFrame({"methods": methods, "ranking": said, "photo": photo, "person": person})


def estimate(answers: pd.DataFrame, tally: Tally | None = None) -> tuple[float, Variation]:
    """(difference of m0 and m1 in log odds, its variation) as the report computes them.

    Args:
        tally: of these answers and later ones, which saves the time of tallying at each look.
    """
    n = len(answers)
    tally = tally or tally_answers(answers)
    tally = replace(tally, asked=tally.asked[:n], chosen=tally.chosen[:n])
    found = fit(tally)
    photos, people = (pd.factorize(answers[name])[0] for name in ("photo", "person"))
    first, second = tally.methods.index("m0"), tally.methods.index("m1")
    return float(found.scores[first] - found.scores[second]), split_covariance(tally, found, photos, people).of(
        first, second
    )


def look_on(seed: int, k: int, n: int, looks: int, difference: float = 0.0) -> tuple[bool, bool, bool]:
    """(whether the rule stops at any look, whether an interval of one look would, whether that at the end does)."""
    answers = simulate_answers(np.random.default_rng(seed), n, k, difference)
    tally = tally_answers(answers)
    stopped = peeked = found = False
    for look in range(1, looks + 1):
        value, variation = estimate(answers[: n * look // looks], tally)
        low, high = sequence_interval(value, variation.variance, variation.degrees)
        stopped |= low > 0 or high < 0
        critical = float(t.isf(ALPHA / 2, variation.degrees))
        found = abs(value) > critical * np.sqrt(variation.variance)
        peeked |= found
    return stopped, peeked, found


def plan(k: int, *, once: bool) -> int:
    """Answers for POWER at DIFFERENCE_JOD: looking once, or all the time."""
    study = Study(N_METHODS, N_PHOTOS, N_PEOPLE, k, photo_sd=PHOTO_SD, person_sd=PERSON_SD)
    needed = single_look_information if once else information_needed
    return round(study.variation(1000).answers_on_the_same(needed, DIFFERENCE_JOD * JOD, POWER, ALPHA))


def write_share(share: float, n: int) -> str:
    """A share with its 95 % interval (Clopper-Pearson)."""
    low, high = exact_interval(share, n)
    return f"{share:.1%} [{low:.1%}, {high:.1%}]"


def write_rows(runs: int, workers: int | None) -> Iterator[str]:
    """The two tables, a row as soon as it is there."""
    with ProcessPoolExecutor(workers) as processes:
        yield "| asked | answers | looks | false stops by the rule | by looking at 95 % intervals |"
        yield "|---|---|---|---|---|"
        for k in (2, 4):
            n = LOOKS * (60 if k == 2 else 20)
            job = partial(look_on, k=k, n=n, looks=LOOKS)
            found = np.array(list(processes.map(job, range(runs), chunksize=10))).mean(axis=0)
            yield f"| {k} | {n} | {LOOKS} | {write_share(found[0], runs)} | {write_share(found[1], runs)} |"
        yield "\n| asked | looks | answers planned for 80 % | power |\n|---|---|---|---|"
        for k in (2, 4):
            for looks in (1, LOOKS):
                n = plan(k, once=looks == 1)
                job = partial(look_on, k=k, n=n, looks=looks, difference=DIFFERENCE_JOD * JOD)
                found = np.array(list(processes.map(job, range(runs // 2), chunksize=10))).mean(axis=0)
                yield f"| {k} | {looks} | {n} | {write_share(found[2 if looks == 1 else 0], runs // 2)} |"


def main() -> int:
    """Simulate and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=int, default=2_000, help="studies a row, half of them for power (default: 2,000)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    for line in write_rows(args.runs, args.workers):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
