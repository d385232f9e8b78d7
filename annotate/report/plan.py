"""Say of neighbours in the ranking whether they are told apart, and how many answers are missing.

`metrics.stopping` has the rules, which hold however often one looks; `metrics.power` the number of answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from metrics.answers import list_comparisons
from metrics.plackett_luce import fit, tally_answers
from metrics.power import Covariances, split_covariance
from metrics.stopping import ALPHA, decide_images, information_needed, sequence_interval, share_interval
from metrics.two_way import number_clusters
from metrics.votes import JOD, MIN_SOURCES

POWER = 0.8
SMALLEST_JOD = 0.02
"""A smaller difference than this is not planned for: it may as well be none."""
WIDEST_JOD = 10.0
"""Between bounds further apart nothing is known, nor how many answers are missing."""
NEIGHBOUR_COLUMNS = [
    *("method", "below", "difference_jod", "low_jod", "high_jod", "decided"),
    *("more_answers", "times", "answers", "photos", "people"),
]
PAIR_COLUMNS = ["pair", "for_a", "for_b", "ties", "share_low", "share_high", "decided"]


def measure_variation(answers: pd.DataFrame) -> tuple[dict[str, float], dict[str, int], Covariances]:
    """(scores, numbers of methods, what photos and people add to their covariance) of answers with people and sources.

    A photo's group, the person in it, counts as the photo where it is known.
    """
    tally = tally_answers(answers)
    found = fit(tally)
    photos, people = number_clusters(answers)
    covariances = split_covariance(tally, found, photos, np.zeros_like(photos) if people is None else people)
    scores = dict(zip(tally.methods, found.scores.tolist(), strict=True))
    return scores, {name: at for at, name in enumerate(tally.methods)}, covariances


def compare_neighbours(answers: pd.DataFrame, ranking: pd.DataFrame) -> pd.DataFrame:
    """Each method of a ranking against the next one below it: NEIGHBOUR_COLUMNS.

    `low_jod` and `high_jod` hold at all looks at once with 1 - ALPHA, and `decided` says that they leave 0 out.
    `more_answers` is how many more on the same photos by the same people decide such a difference with POWER, infinite
    where none do; `times` as many answers, photos and people do. NaN where there is nothing to go by.
    """
    rows: list[tuple[Any, ...]] = []
    scores, number, covariances = measure_variation(answers)
    counts = covariances.n_answers, covariances.n_photos, covariances.n_people
    order = ranking.sort_values(["component", "rank", "method"])
    for above, below in zip(order.to_dict("records")[:-1], order.to_dict("records")[1:], strict=True):
        first, second = above["method"], below["method"]
        told = above["component"] == below["component"] and min(above["n_sources"], below["n_sources"]) >= MIN_SOURCES
        if not told:
            rows.append((first, second, *[math.nan] * 3, False, *[math.nan] * 2, *counts))
            continue
        difference = scores[first] - scores[second]
        variation = covariances.of(number[first], number[second])
        low, high = sequence_interval(difference, variation.variance, variation.degrees)
        decided, more, times = low > 0 or high < 0, math.nan, math.nan
        if not decided and abs(difference) >= SMALLEST_JOD * JOD:
            asked = round(abs(difference), 3), POWER, ALPHA
            more = variation.answers_on_the_same(information_needed, *asked) - covariances.n_answers
            times = variation.growth(information_needed, *asked)
        rows.append((first, second, *(end / JOD for end in (difference, low, high)), decided, more, times, *counts))
    return pd.DataFrame(rows, columns=NEIGHBOUR_COLUMNS)


def describe_neighbours(neighbours: pd.DataFrame, median_seconds: float) -> list[str]:
    """Tell of each two neighbours whether they are decided and what is missing, a sentence each."""
    return [_describe(row, median_seconds) for row in neighbours.to_dict("records")]


def _describe(row: Mapping[Any, Any], median_seconds: float) -> str:
    names, difference = f"{row['method']} and {row['below']}", row["difference_jod"]
    if math.isnan(difference):
        return f"{names}: too little to go by; they never met, or on fewer than {MIN_SOURCES} sources."
    if row["high_jod"] - row["low_jod"] > WIDEST_JOD:
        return (
            f"{names}: too little to go by; the bounds of their difference lie more than {WIDEST_JOD:g} JOD apart, for "
            "too few photos or people speak of both."
        )
    size = f"by {abs(difference):.2f} JOD [{row['low_jod']:+.2f}, {row['high_jod']:+.2f}]"
    if row["decided"]:
        better, worse = (row["method"], row["below"]) if difference > 0 else (row["below"], row["method"])
        return f"{better} is better than {worse} {size}: decided, however often you look."
    start = f"{names} differ {size}: not decided."
    if math.isnan(row["times"]):
        return f"{start} The difference is too small to plan for."
    if math.isfinite(row["more_answers"]):
        more = max(round_number(row["more_answers"]), 1)
        time = format_time(more * median_seconds)
        return f"{start} If that is what it is, about {more:,} more answers tell with {POWER:.0%} power ({time})."
    times = max(row["times"], 1.0)
    more = round_number((times - 1) * row["answers"])
    return (
        f"{start} If that is what it is, no number of answers on the same {row['photos']:,} photos by the same "
        f"{row['people']:,} people tells with {POWER:.0%} power; {times:.1f} times as many of all three do, "
        f"{more:,} more answers ({format_time(more * median_seconds)})."
    )


def round_number(value: float) -> int:
    """A number rounded up to two digits, as no more are known."""
    digits = max(0, math.floor(math.log10(max(value, 1))) - 1)
    return int(math.ceil(value / 10**digits) * 10**digits)


def format_time(seconds: float) -> str:
    """Work time in words, as whole minutes or hours."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes:,} minute{'' if minutes == 1 else 's'}" if minutes < 120 else f"{minutes / 60:,.0f} hours"


def decide_pairs(answers: pd.DataFrame) -> pd.DataFrame:
    """What the answers of two people or more say of each pair of images, of a task's too: PAIR_COLUMNS.

    The bounds of the share of people who prefer a hold at all looks at once; `decided` is a, b, even or open.
    """
    told = list_comparisons(answers)
    counts = pd.crosstab(told["pair"], told["choice"]).reindex(columns=["a", "b", "tie"], fill_value=0)
    counts = counts[counts.sum(axis=1) >= 2]
    words = {"first": "a", "second": "b"}
    rows = [
        (pair, a, b, tie, *share_interval(a, b), words.get(decided := decide_images(a, b), decided))
        for pair, a, b, tie in counts[["a", "b", "tie"]].astype(int).itertuples(name=None)
    ]
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def describe_pairs(pairs: pd.DataFrame) -> str:
    """How many pairs of images are decided, in a sentence; empty where nobody shared one."""
    if pairs.empty:
        return ""
    by_kind = pairs["decided"].value_counts()
    n_decided, n_even = int(by_kind.get("a", 0) + by_kind.get("b", 0)), int(by_kind.get("even", 0))
    return (
        f"Of {len(pairs):,} pairs of images with two answers or more {n_decided:,} are decided, {n_even:,} are about "
        f"even, {len(pairs) - n_decided - n_even:,} are open; it takes {FEWEST} answers that all agree. See pairs.csv."
    )


def count_fewest() -> int:
    """The fewest answers that decide a pair of images, all of them the same."""
    return next(n for n in range(1, 100) if decide_images(n, 0) == "first")


FEWEST = 7
"""`count_fewest()`, which the tests hold it to; not counted at import, as that loads scipy."""


def average_sd(covariances: Covariances, numbers: Sequence[int]) -> tuple[float, float]:
    """(over photos, over people) standard deviation of a difference of two methods in log odds, over all twos."""
    found = [covariances.of(first, second) for at, first in enumerate(numbers) for second in list(numbers)[at + 1 :]]
    photos = np.mean([one.photos for one in found]) * covariances.n_photos
    people = np.mean([one.people for one in found]) * covariances.n_people
    return float(np.sqrt(photos)), float(np.sqrt(people))
