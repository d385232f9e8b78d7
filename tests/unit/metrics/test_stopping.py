"""Bounds that hold at all looks, and the number of answers that a difference takes, against hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import beta
from scipy.stats import norm

from experiments.stopping import DIFFERENCE_JOD, LOOKS, estimate, look_on, plan, simulate_answers
from metrics.power import Study, Variation
from metrics.stopping import (
    ALPHA,
    JOD,
    bound,
    decide_images,
    information_needed,
    log_evidence,
    mixture_weight,
    sequence_interval,
    share_interval,
    single_look_information,
)


def test_evidence_of_a_pair_by_hand() -> None:
    """Seven to none: 2^7 B(7.5, 0.5) / B(0.5, 0.5) = 26.8, above 20; six to none 14.4."""
    assert math.exp(log_evidence(np.array(7), np.array(0))) == pytest.approx(128 * beta(7.5, 0.5) / beta(0.5, 0.5))
    assert [decide_images(n, 0) for n in (6, 7)] == ["open", "first"]
    assert decide_images(0, 7) == "second"
    assert share_interval(0, 0) == (0, 1)


def test_the_bounds_of_a_pair_hold_at_all_looks() -> None:
    """Of even pairs looked at after every one of 100 answers, one in twenty is decided at most; most are told even."""
    rng = np.random.default_rng(1)
    for_first = np.cumsum(rng.integers(0, 2, (4_000, 100)), axis=1)
    against = np.arange(1, 101) - for_first
    decided = (log_evidence(for_first, against) >= -math.log(ALPHA)).any(axis=1)
    assert 0.01 < decided.mean() < 0.05
    assert np.mean([decide_images(int(n), 100 - int(n)) == "even" for n in for_first[:, -1]]) > 0.8


def test_the_bound_of_a_difference_is_crossed_one_time_in_twenty() -> None:
    """By Brownian motions without drift; the interval of a single look by more than one in three."""
    rng = np.random.default_rng(2)
    at = np.geomspace(1, 3_000, 400)
    motion = np.cumsum(rng.normal(size=(4_000, 400)) * np.sqrt(np.diff(at, prepend=0)), axis=1)
    errors = np.abs(motion) / np.sqrt(at)
    crossed = (errors > bound(at)).any(axis=1).mean()
    assert 0.02 < crossed < 0.05
    assert (errors > norm.isf(ALPHA / 2)).any(axis=1).mean() > 1 / 3


def test_the_bound_by_hand() -> None:
    """With as much information as the mixture's own: sqrt(2 ln(2 / 0.0025)) = 3.656 standard errors."""
    own = mixture_weight()
    assert bound(own) == pytest.approx(3.6563, abs=1e-4)
    low, high = sequence_interval(1.0, 1 / own)
    assert (high - low) / 2 == pytest.approx(3.6563 / math.sqrt(own), abs=1e-4)
    assert sequence_interval(1.0, 1 / own, degrees=5)[0] < low
    assert sequence_interval(1.0, math.inf) == (-math.inf, math.inf)


def test_information_of_one_look_by_hand() -> None:
    """(1.95996 + 0.84162)² / d² = 7.849 / d²."""
    assert single_look_information(0.5, 0.8) == pytest.approx(7.849 / 0.25, rel=1e-4)
    once = single_look_information(0.3 * JOD, 0.8)
    assert once < information_needed(0.3 * JOD, 0.8) < 2.5 * once


def test_answers_for_a_difference_by_hand() -> None:
    """Two methods, pairs, even: an answer has 1/4 information. No photo differs: 4 · 7.849 / d² answers; and where the
    floor is half of what is wanted, twice as many."""
    d = 0.5
    study = Study(methods=2, photos=1_000_000, people=1_000_000)
    asked = single_look_information, d, 0.8, ALPHA
    assert study.variation(100).answers_on_the_same(*asked) == pytest.approx(4 * 7.849 / d**2, rel=0.05)
    floor = 0.5 * d**2 / 7.849
    half = Variation(4 / 100, floor, 0.0, 100, 10**6, 10**6)
    assert half.answers_on_the_same(*asked) == pytest.approx(2 * 4 * 7.849 / d**2, rel=0.05)
    none = Variation(4 / 100, 2.1 * floor, 0.0, 100, 10**6, 10**6)
    assert math.isinf(none.answers_on_the_same(*asked))
    assert none.growth(*asked) == pytest.approx((4 / 100 + 2.1 * floor) * 7.849 / d**2, rel=0.05)


@pytest.mark.parametrize(("k", "asked", "per_answer"), [(2, "best", 4 * 3), (4, "best", 2 * 3 / 0.75)])
def test_variance_of_an_answer_by_hand(k: int, asked: str, per_answer: float) -> None:
    assert Study(4, 10, 10, k, asked).per_answer == pytest.approx(per_answer)
    assert Study(4, 10, 10, 4, "order").per_answer < Study(4, 10, 10, 4, "best_worst").per_answer < 2 * 3 / 0.75


def test_the_variance_has_the_parts_that_were_planted() -> None:
    """0.5² / 60 of photos and 0.25² / 20 of people, in the mean over studies; the answers' own as planned."""
    found = [estimate(simulate_answers(np.random.default_rng(seed), 1_800, 2, 0.0))[1] for seed in range(20)]
    planned = Study(4, 60, 20, 2, photo_sd=0.5, person_sd=0.25).variation(1_800)
    for name in ("answers", "photos", "people"):
        assert np.mean([getattr(one, name) for one in found]) == pytest.approx(getattr(planned, name), rel=0.35)


def test_one_person_adds_nothing_that_could_be_known() -> None:
    answers = simulate_answers(np.random.default_rng(0), 200, 2, 0.0).assign(person=0)
    assert estimate(pd.DataFrame(answers))[1].people == 0


def test_looking_ten_times_at_even_methods_stops_seldom() -> None:
    """In 20 studies, looked at six times; the slow test has 2,000."""
    found = np.array([look_on(seed, 2, 300, 6) for seed in range(20)])
    assert found[:, 0].sum() <= 3
    assert found[:, 1].sum() > found[:, 0].sum()


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 4])
def test_two_thousand_sequences_under_no_difference_stop_at_most_one_time_in_twenty(k: int) -> None:
    found = np.array([look_on(seed, k, 600 if k == 2 else 300, 10) for seed in range(2_000)])
    assert found[:, 0].mean() <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 4])
def test_power_is_as_planned(k: int) -> None:
    difference = DIFFERENCE_JOD * JOD
    once = np.array([look_on(seed, k, plan(k, once=True), 1, difference) for seed in range(600)])
    assert once[:, 2].mean() == pytest.approx(0.8, abs=0.05)
    always = np.array([look_on(seed, k, plan(k, once=False), LOOKS, difference) for seed in range(400)])
    assert always[:, 0].mean() == pytest.approx(0.8, abs=0.05)
