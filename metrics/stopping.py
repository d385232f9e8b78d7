"""Decide whether a question is answered, by rules whose error holds however often one looks.

Whoever looks at a 95 % interval after every answer and stops when it leaves zero stops wrongly far more often than one
time in twenty. The bounds here are wider by what it takes:

- "Is A better than B": an asymptotic confidence sequence, Robbins' normal mixture on the difference of the scores and
  its variance over photos and people at once. In units of information (1 / variance) the difference times information
  is a Brownian motion, also where answers of one photo or person depend, as their share of the variance counts in both.
- "Which of two images": Robbins' mixture of binomials with a Beta(1/2, 1/2) prior (a betting martingale) on the answers
  for either, ties left out. It is exact, as each person answers a pair once.

Source: Robbins, Statistical methods related to the law of the iterated logarithm, 1970; Waudby-Smith, Arbour, Sinha,
Kennedy & Ramdas, Time-uniform central limit theory and asymptotic confidence sequences, 2024; Howard, Ramdas, McAuliffe
& Sekhon, Time-uniform, nonparametric, nonasymptotic confidence sequences, 2021.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from metrics.votes import JOD

ALPHA = 0.05
TIGHT_AT_JOD = 0.3
"""Difference whose decision the sequence is made narrowest for. Fixed, as it may not follow from the answers."""
NARROWEST = 10.0
"""Information, times the squared difference, at which such a decision falls."""
EVEN_JOD = 1.0
"""Two images are about even where the sequence says that neither is preferred by more than 3 to 1."""
PATHS, STEPS = 4_000, 600

Array = npt.NDArray[Any]


def mixture_weight(alpha: float = ALPHA) -> float:
    """The information that the mixture counts as its own: the bound is narrowest around TIGHT_AT_JOD's decision.

    Source: Howard et al. 2021, proposition 3.
    """
    narrow = -2 * math.log(alpha)
    return NARROWEST / (TIGHT_AT_JOD * JOD) ** 2 / (narrow + math.log(narrow) + 1)


def bound(information: Any, alpha: float = ALPHA) -> Any:
    """Standard errors that an estimate with so much information may lie off, ever, with probability 1 - alpha.

    Args:
        information: 1 / variance of a difference of log odds, above 0; a number or an array.
    """
    own = mixture_weight(alpha)
    total = information + own
    return np.sqrt(total / information * np.log(total / (own * alpha**2)))


def widen(errors: Any, degrees: float) -> Any:
    """Standard errors of the normal distribution as those of Student's t that are as rare."""
    from scipy.stats import norm, t

    return errors if math.isinf(degrees) else t.isf(norm.sf(errors), degrees)


def sequence_interval(
    difference: float, variance: float, degrees: float = math.inf, alpha: float = ALPHA
) -> tuple[float, float]:
    """The bounds of a difference of log odds that hold at all times at once; infinite where nothing is known.

    Args:
        degrees: of freedom of the variance: of few photos or people it is known badly, and the bound is widened as that
            of a single look is, from the normal quantile to Student's of the same probability.
    """
    if not 0 < variance < math.inf:
        return -math.inf, math.inf
    errors = float(widen(bound(1 / variance, alpha), degrees))
    return difference - errors * math.sqrt(variance), difference + errors * math.sqrt(variance)


@lru_cache(maxsize=1)
def _draw_motion() -> tuple[Array, Array]:
    """((STEPS,) information times the squared difference, (PATHS, STEPS) Brownian motions of drift 1 at these)."""
    at = np.geomspace(0.05, 2_000, STEPS)
    steps = np.random.default_rng(0).normal(size=(PATHS, STEPS)) * np.sqrt(np.diff(at, prepend=0.0))
    return at, at + np.cumsum(steps, axis=1)


@lru_cache(maxsize=1024)
def information_needed(difference: float, power: float, alpha: float = ALPHA, degrees: float = math.inf) -> float:
    """Information with which so large a difference is decided with that probability, by who looks all the time.

    By PATHS simulated Brownian motions with the drift of the difference, the same at every call.

    Args:
        difference: of log odds, above 0.
    """
    own = mixture_weight(alpha) * difference**2
    at, motion = _draw_motion()
    errors = np.sqrt((at + own) / at * np.log((at + own) / (own * alpha**2)))
    crossed = motion >= widen(errors, degrees) * np.sqrt(at)
    first = np.where(crossed.any(axis=1), at[crossed.argmax(axis=1)], np.inf)
    return float(np.quantile(first, power)) / difference**2


def single_look_information(difference: float, power: float, alpha: float = ALPHA, degrees: float = math.inf) -> float:
    """Information with which so large a difference is found with that probability by one look at the end."""
    from scipy.stats import norm

    return float((widen(norm.isf(alpha / 2), degrees) + norm.ppf(power)) / difference) ** 2


def log_evidence(wins: Array, losses: Array, share: Any = 0.5) -> Array:
    """Log of what a bet of 1 that `share` of the answers is not for the first image has grown to, by element.

    At 1 / alpha it is decided: under the truth of `share` it gets there ever with probability alpha at most.
    """
    from scipy.special import betaln, xlog1py, xlogy

    mixed = betaln(wins + 0.5, losses + 0.5) - betaln(0.5, 0.5)
    return np.asarray(mixed - xlogy(wins, share) - xlog1py(losses, -share))


@lru_cache(maxsize=65536)
def share_interval(wins: int, losses: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Bounds that hold at all times of the share of people who prefer the first of two images."""
    from scipy.optimize import brentq

    if wins + losses == 0:
        return 0.0, 1.0
    middle, tiny, limit = wins / (wins + losses), 1e-9, -math.log(alpha)

    def over(share: float) -> float:
        return float(log_evidence(np.array(wins), np.array(losses), share)) - limit

    low = float(brentq(over, tiny, middle)) if wins and over(tiny) > 0 else 0.0
    high = float(brentq(over, middle, 1 - tiny)) if losses and over(1 - tiny) > 0 else 1.0
    return low, high


def decide_images(wins: int, losses: int, alpha: float = ALPHA) -> str:
    """What is known of two images: 'first', 'second', 'even' (within EVEN_JOD), or 'open'."""
    low, high = share_interval(wins, losses, alpha)
    if low > 0.5 or high < 0.5:
        return "first" if low > 0.5 else "second"
    far = 1 / (1 + math.exp(-EVEN_JOD * JOD))
    return "even" if 1 - far < low and high < far else "open"
