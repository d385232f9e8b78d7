"""Compute how far scores would move with other photos and other people: variances over both at once.

Answers about one photo share its difficulty, answers of one person share a taste, and a bootstrap of answers, or of
photos alone, or of the pairs that follow from a ranking, takes these for new evidence: its intervals are too narrow. A
bootstrap of both at once counts what both share twice and is too wide. So the variances from leaving out each photo and
each person are added, and that from leaving out each photo's answers by one person, which both contain, is taken off.
How often the intervals cover, against the others: `python -m experiments.coverage`.

Source: Cameron, Gelbach & Miller, Robust Inference With Multiway Clustering, 2011; the jackknife in place of squared
gradients: MacKinnon, Nielsen & Webb, Cluster-robust inference: A guide to empirical practice, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.accuracy import SAME
from metrics.plackett_luce import Fit, Floats, Tally, leave_out

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """How far M scores spread over photos and people."""

    covariance: Floats
    """(M, M) of the scores, a positive semi-definite one."""
    half_width: Floats
    """(M,) of the 95 % interval: the standard error times the quantile of Student's t."""


def number_clusters(answers: pd.DataFrame) -> tuple[Numbers, Numbers | None]:
    """((n,) the photos' groups, (n,) the people, or None where nobody says who answered), numbered from 0.

    A photo without a group is one of its own. An answer of nobody known is one person's of its own.
    """
    photos = answers["group"].fillna(answers["source"]) if "group" in answers else answers["source"]
    group = pd.factorize(photos, sort=True)[0]
    if "person" not in answers or answers["person"].isna().all():
        return group, None
    people = pd.factorize(answers["person"], sort=True)[0]
    unknown = people < 0
    people[unknown] = people.max() + 1 + np.arange(int(unknown.sum()))
    return group, people


def compute_spread(tally: Tally, found: Fit, photos: Numbers, people: Numbers | None, parts: Numbers) -> Spread:
    """Spread of the scores over photos and people, those of each part centred on its own mean.

    Args:
        photos: (n,) numbers of the answers' photos, or of the people in them.
        people: (n,) numbers of the people who answered; None, or one person, leaves the spread of photos alone.
        parts: (M,) numbers of the methods' parts: scores are known only against others of the same part.
    """
    photo = _jackknife(tally, found, photos, parts)
    if people is None or people.max(initial=0) == 0:
        degrees = np.maximum(_count_clusters(tally, photos) - 1.0, 1.0)
        return Spread(photo, _widen(np.diag(photo), degrees))
    cells = pd.factorize(photos * (people.max() + 1) + people)[0]
    person, both = _jackknife(tally, found, people, parts), _jackknife(tally, found, cells, parts)
    counts = [_count_clusters(tally, number) for number in (photos, people)]
    variance, half_width = _join([np.diag(part) for part in (photo, person, both)], counts)
    values, vectors = np.linalg.eigh(photo + person - both)
    covariance = (vectors * values.clip(min=0)) @ vectors.T
    scale = np.sqrt(variance / np.where(np.diag(covariance) > 0, np.diag(covariance), 1.0))
    return Spread(covariance * np.outer(scale, scale), half_width)


def compute_half_width(pulls: Floats, photos: Numbers, people: Numbers | None) -> float:
    """Half the 95 % interval, over photos and people, of a sum to which each answer adds its (n,) pull.

    A pull is how far the answer moves the sum from what is expected of it, such as (value - mean) / n of a mean. NaN
    with fewer than two photos, and where all pull alike, which is not to say that the sum is known exactly.
    """
    if photos.max(initial=0) < 1 or np.ptp(pulls) < SAME:
        return float("nan")
    several = people is not None and people.max(initial=0) > 0
    kinds = [photos]
    if people is not None and several:
        kinds += [people, pd.factorize(photos * (people.max() + 1) + people)[0]]
    own, counts = [], []
    for clusters in kinds:
        sums, sizes = np.bincount(clusters, weights=pulls), np.bincount(clusters).astype(float)
        own.append(np.array([(sums**2).sum() * len(sums) / (len(sums) - 1)]))
        counts.append(np.array([sizes.sum() ** 2 / (sizes**2).sum()]))
    return float((_join(own, counts[:2])[1] if several else _widen(own[0], np.maximum(counts[0] - 1, 1)))[0])


def _join(own: list[Floats], clusters: list[Floats]) -> tuple[Floats, Floats]:
    """(variance, half width of the 95 % interval) from the variances over photos, people and both, of few clusters."""
    # The difference of estimates may fall below any of them, which no variance can.
    variance = np.maximum(own[0] + own[1] - own[2], np.maximum(own[0], own[1]))
    # Of the answers' own spread, which photos and people hold too, half is taken as known: with none the intervals of
    # few people are too wide, with all of it those of some are too narrow (Satterthwaite 1946, the half by measuring).
    noise = np.zeros(len(variance))
    for part, count in zip(own[:2], clusters, strict=True):
        noise += np.maximum(part - own[2] / 2, 0) ** 2 / np.maximum(count - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(noise > 0, variance**2 / noise, np.inf)
    return variance, _widen(variance, degrees)


def _jackknife(tally: Tally, found: Fit, clusters: Numbers, parts: Numbers) -> Floats:
    """(M, M) covariance of the centred scores from leaving out one cluster after the other."""
    moved = leave_out(tally, found, clusters)
    for part in set(parts.tolist()):
        members = parts == part
        moved[:, members] -= moved[:, members].mean(axis=1, keepdims=True)
    moved -= moved.mean(axis=0)  # what the virtual ties do to every one alike is no spread
    return moved.T @ moved * (1 - 1 / len(moved))


def _count_clusters(tally: Tally, clusters: Numbers) -> Floats:
    """(M,) how many clusters of equal size would say as much of each method as those of unequal size do.

    Source: Carter, Schnepel & Steigerwald, Asymptotic Behavior of a t-Test Robust to Cluster Heterogeneity, 2017, by
    the numbers of answers.
    """
    from scipy.sparse import coo_array

    member = coo_array((np.ones(len(clusters)), (clusters, np.arange(len(clusters))))).tocsr()
    judged: Any = (member @ tally.asked) @ (tally.members > 0)
    total, squares = (np.asarray((judged**power).sum(axis=0), dtype=float).ravel() for power in (1, 2))
    effective: Floats = total**2 / np.where(squares > 0, squares, 1.0)
    return effective


def _widen(variance: Floats, degrees: Floats) -> Floats:
    from scipy.stats import t

    half: Floats = np.sqrt(variance) * t.ppf(0.975, degrees)
    return half
