"""Say how many answers tell two methods apart: from a project's own variance, or before there are any answers.

The variance of a difference has three parts. What answers scatter by themselves falls with their number. What photos
and people differ by does not: more answers on the same photos by the same people can never go below it, and only more
photos and people can.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.plackett_luce import Fit, Floats, Tally, leave_out

Numbers = npt.NDArray[np.int64]
ROUNDS = 6
"""Of finding a number of answers and the degrees of freedom that they have, in turns."""


def round_degrees(degrees: float) -> float:
    """Degrees of freedom rounded to some two digits, so that what was simulated for some serves others."""
    return math.inf if degrees > 1_000 else float(f"{max(degrees, 1.0):.2g}")


Needed = Callable[[float, float, float, float], float]
"""(difference, power, alpha, degrees) -> information: one of `metrics.stopping`'s two."""


@dataclass(frozen=True)
class Variation:
    """What the variance of a difference of two methods' log odds is made of."""

    answers: float
    """The part that answers scatter by themselves."""
    photos: float
    """The part that photos add, of which more answers on the same ones take nothing."""
    people: float
    """The same of people."""
    n_answers: int
    n_photos: int
    n_people: int

    @property
    def floor(self) -> float:
        """The variance that more answers on the same photos by the same people cannot go below."""
        return self.photos + self.people

    @property
    def variance(self) -> float:
        """Of the difference as it is now."""
        return self.answers + self.floor

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the variance (Satterthwaite 1946): few photos or people tell it badly."""
        parts = ((self.answers, self.n_answers), (self.photos, self.n_photos), (self.people, self.n_people))
        noise = sum(part**2 / max(n - 1, 1) for part, n in parts)
        return self.variance**2 / noise if noise > 0 else math.inf

    def answers_on_the_same(self, needed: Needed, difference: float, power: float, alpha: float) -> float:
        """Answers in all that decide a difference, on the same photos by the same people; infinite where none do."""
        at, n = self, math.inf
        for _ in range(ROUNDS):  # the degrees of freedom are those of the answers that are being planned
            left = 1 / needed(difference, power, alpha, round_degrees(at.degrees)) - self.floor
            if left <= 0:
                return math.inf
            n = self.n_answers * self.answers / left
            at = replace(self, answers=left, n_answers=max(round(n), 1))
        return n

    def growth(self, needed: Needed, difference: float, power: float, alpha: float) -> float:
        """How many times as many answers, photos and people together decide a difference."""
        times = 1.0
        for _ in range(ROUNDS):
            degrees = round_degrees(self.degrees * times)
            times = self.variance * needed(difference, power, alpha, degrees)
        return times


@dataclass(frozen=True)
class Covariances:
    """(M, M) covariances of the scores by leaving out photos, people, and each person's answers to each photo."""

    photos: Floats
    people: Floats
    both: Floats
    n_answers: int
    n_photos: int
    n_people: int

    def of(self, first: int, second: int) -> Variation:
        """The variation of the difference of two methods, by their numbers."""
        photos, people, both = (
            float(part[first, first] + part[second, second] - 2 * part[first, second])
            for part in (self.photos, self.people, self.both)
        )
        if self.n_people < 2:
            people = both
        counts = self.n_answers, self.n_photos, self.n_people
        return Variation(both, max(photos - both, 0.0), max(people - both, 0.0), *counts)


def split_covariance(tally: Tally, found: Fit, photos: Numbers, people: Numbers) -> Covariances:
    """What photos and people add to the covariance of the scores.

    Args:
        photos, people: (n,) numbers from 0 of each answer's photo and person.
    Source: Cameron, Gelbach & Miller, Robust Inference With Multiway Clustering, 2011; by leaving out clusters:
        MacKinnon, Nielsen & Webb, Cluster-robust inference: A guide to empirical practice, 2023.
    """
    cells = pd.factorize(photos * (int(people.max(initial=0)) + 1) + people)[0]
    n_photos, n_people = (len(np.unique(numbers)) for numbers in (photos, people))
    spread = [_jackknife(tally, found, clusters) for clusters in (photos, people, cells)]
    return Covariances(spread[0], spread[1], spread[2], len(photos), n_photos, n_people)


def _jackknife(tally: Tally, found: Fit, clusters: Numbers) -> Floats:
    if clusters.max(initial=0) == 0:
        return np.zeros((len(tally.methods),) * 2)
    moved = leave_out(tally, found, clusters)
    moved -= moved.mean(axis=0)
    spread: Floats = moved.T @ moved * (1 - 1 / len(moved))
    return spread


@dataclass(frozen=True)
class Study:
    """What a study asks, before it has begun."""

    methods: int
    photos: int
    people: int
    k: int = 2
    asked: str = "best"
    """Of k above 2: 'best', 'best_worst' or 'order'."""
    photo_sd: float = 0.0
    """Standard deviation over photos of the difference of two methods, in log odds."""
    person_sd: float = 0.0

    @property
    def per_answer(self) -> float:
        """Variance of a difference of two even methods that one answer would have, in squared log odds.

        A choice out of j has (1 - 1/j) / (M - 1) information in every direction, where sets are drawn evenly.
        """
        choices = {"best": [self.k], "best_worst": [self.k, self.k - 1], "order": list(range(self.k, 1, -1))}
        sizes = [size for size in choices[self.asked if self.k > 2 else "best"] if size > 1]
        return 2 * (self.methods - 1) / sum(1 - 1 / size for size in sizes)

    def variation(self, n_answers: int) -> Variation:
        """The variation of a difference after so many answers, spread evenly over photos and people."""
        photos = self.photo_sd**2 / self.photos
        people = self.person_sd**2 / self.people
        return Variation(self.per_answer / n_answers, photos, people, n_answers, self.photos, self.people)


def observe_study(variation: Variation, **of: Any) -> Study:
    """The study whose variation this is: what photos and people differ by, from answers that there are."""
    photo_sd = math.sqrt(variation.photos * variation.n_photos)
    person_sd = math.sqrt(variation.people * variation.n_people)
    return Study(photos=variation.n_photos, people=variation.n_people, photo_sd=photo_sd, person_sd=person_sd, **of)
