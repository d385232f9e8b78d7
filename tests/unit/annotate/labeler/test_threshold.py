"""The threshold keeps what it promises: bounds by hand, and thousands of simulated answers with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from annotate.labeler.threshold import choose_threshold, compute_likeness, compute_lower_bound, count_smallest

TARGET, CONFIDENCE = 0.9, 0.9


def alone(n: int) -> np.ndarray:
    return np.arange(n)


def test_the_smallest_share_keeps_the_target_with_one_wrong_answer() -> None:
    # 0.9^38 + 38 · 0.1 · 0.9^37 = 0.0953, of 37 it is 0.1036
    assert count_smallest(0.9, 0.9) == 38
    # 0.5^7 · 8 = 0.0625, 0.5^6 · 7 = 0.109
    assert count_smallest(0.5, 0.9) == 7


def test_answers_alone_have_the_exact_binomial_bound() -> None:
    right = np.ones(22)
    # 0.9^22 = 0.098: all of 22 right keep 0.9, of 21 (0.109) they do not
    assert compute_lower_bound(right, right, alone(22), 0.0, 0.9) == pytest.approx(0.1 ** (1 / 22))
    assert compute_lower_bound(right[:21], right[:21], alone(21), 0.0, 0.9) < 0.9


def test_groups_bound_by_their_sums_and_by_what_they_are_worth() -> None:
    right = np.repeat([1.0, 1.0, 1.0, 0.0], 10)
    one = compute_lower_bound(right, np.ones(40), np.repeat(alone(4), 10), 1.0, 0.9)
    four = compute_lower_bound(right[::10], np.ones(4), alone(4), 0.0, 0.9)
    assert one < four  # what four answers say, with one degree less
    assert compute_lower_bound(np.ones(30), np.ones(30), np.zeros(30), 0.0, 0.9) == 0.0
    assert compute_likeness(right, np.repeat(alone(4), 10)) == 1.0
    assert compute_likeness(np.tile([1.0, 0.0], 20), np.repeat(alone(4), 10)) == 0.0


def test_it_takes_as_many_as_keep_the_target() -> None:
    certainty = np.linspace(0.99, 0.5, 400)
    right = np.array([1.0] * 200 + [0.0] * 200)
    # 200 right and k wrong: 220 answers with 20 wrong are below 0.9 in nearly any draw, 200 with none are not
    assert choose_threshold(certainty, right, np.ones(400), alone(400), 0.9, 0.9) == certainty[199]


def test_equal_certainties_are_taken_together() -> None:
    right = np.array([1.0] * 60 + [0.0] * 60)
    assert choose_threshold(np.full(120, 0.9), right, np.ones(120), alone(120), 0.9, 0.9) is None


def test_too_few_answers_and_a_single_group_promise_nothing() -> None:
    for n in (0, 37):
        assert choose_threshold(np.full(n, 0.99), np.ones(n), np.ones(n), alone(n), 0.9, 0.9) is None
    assert choose_threshold(np.full(38, 0.99), np.ones(38), np.ones(38), alone(38), 0.9, 0.9) == 0.99
    assert choose_threshold(np.full(500, 0.99), np.ones(500), np.ones(500), np.zeros(500), 0.9, 0.9) is None


def test_the_unit_of_weights_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    certainty, right, weight = rng.uniform(0.5, 1, 300), (rng.random(300) < 0.93).astype(float), rng.uniform(1, 2, 300)
    one = choose_threshold(certainty, right, weight, alone(300), 0.85, 0.9)
    assert one == choose_threshold(certainty, right, 52 * weight, alone(300), 0.85, 0.9)
    assert one is not None


def draw_answers(n: int, likeness: float, rng: np.random.Generator, pairs: int = 6) -> tuple[np.ndarray, ...]:
    """Certainties 0.5 … 1, whether each is right, photo of each; a photo shifts the log odds of all of its answers."""
    photos = np.repeat(np.arange(n // pairs), pairs)
    certainty = expit(np.abs(rng.normal(0, 3.0, len(photos))))
    shift = likeness * rng.normal(size=n // pairs)[photos]
    return certainty, (rng.random(len(photos)) < expit(logit(certainty) + shift)).astype(float), photos


def share_below(
    n: int, likeness: float, *, pairs: int = 6, by_photo: bool = True, runs: int = 200
) -> tuple[float, float]:
    """(share of runs that label below the target, mean share of pairs labelled), against the truth."""
    truth, answers, _ = draw_answers(600_000, likeness, np.random.default_rng(99), pairs)
    order = np.argsort(-truth)
    accuracy = np.cumsum(answers[order]) / np.arange(1, len(order) + 1)
    below, covered = 0, 0.0
    for seed in range(runs):
        certainty, right, photos = draw_answers(n, likeness, np.random.default_rng(seed), pairs)
        groups = photos if by_photo else np.arange(len(photos))
        threshold = choose_threshold(certainty, right, np.ones(len(right)), groups, TARGET, CONFIDENCE)
        if threshold is not None:
            labelled = int((truth >= threshold).sum())
            below += bool(accuracy[labelled - 1] < TARGET)
            covered += labelled / len(truth)
    return below / runs, covered / runs


@pytest.mark.parametrize(("n", "likeness"), [(120, 0.0), (300, 1.0), (1200, 2.0)])
def test_of_ten_fits_at_most_one_labels_below_the_target(n: int, likeness: float) -> None:
    """The simulation with whole fits is `experiments/threshold.py`."""
    below, _ = share_below(n, likeness)
    assert below <= 0.1


def test_answers_of_one_photo_counted_as_independent_would_break_the_promise() -> None:
    below, covered = share_below(1200, 2.0, pairs=40, by_photo=False)
    assert below > 0.1
    kept, still_covered = share_below(1200, 2.0, pairs=40)
    assert kept <= 0.1
    assert 0 < still_covered < covered


def test_many_answers_lose_little() -> None:
    """Of independent answers 59 % may be labelled at 0.9, and with 3,000 of them nearly all of these are."""
    below, covered = share_below(3000, 0.0, runs=40)
    truth = draw_answers(600_000, 0.0, np.random.default_rng(1))[0]
    ordered = np.sort(truth)[::-1]
    most = np.mean(np.cumsum(ordered) / np.arange(1, len(ordered) + 1) >= TARGET)
    assert below <= 0.1
    assert most - 0.12 < covered < most
