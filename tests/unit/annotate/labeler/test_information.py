"""The order of greatest information: gains by hand, trees that join all methods, tasks of more than two."""

from __future__ import annotations

import math

import numpy as np
import pytest

from annotate.labeler.information import expected_gain, gain_of_pairs, rank_information
from experiments.information import simulate


def test_gain_of_an_answer_by_hand() -> None:
    """Nothing where the difference is known; near p (1 - p) variance / 2 where it is nearly known."""
    assert expected_gain(np.array(0.7), np.array(0.0)) == pytest.approx(0, abs=1e-12)
    p = 1 / (1 + math.exp(-0.7))
    assert expected_gain(np.array(0.7), np.array(0.01)) == pytest.approx(p * (1 - p) * 0.01 / 2, rel=0.02)
    far, near = expected_gain(np.array([3.0, 0.0]), np.array([1.0, 1.0]))
    assert far < near < math.log(2)


def test_pairs_of_methods_gain_by_the_variance_of_their_difference() -> None:
    covariance = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    gain = gain_of_pairs(np.zeros(3), covariance)
    assert gain[0, 1] == pytest.approx(0, abs=1e-12)
    assert gain[0, 2] == gain[2, 1] > 0.1


def test_each_round_joins_all_methods_by_the_greatest_gain() -> None:
    """Of 0-1 (.3), 0-2 (.2), 1-2 (.1) the first round takes the first two, the greatest first; the rest follows."""
    gain = np.array([[0, 0.3, 0.2], [0.3, 0, 0.1], [0.2, 0.1, 0]])
    tasks = np.array([[1, 2], [2, 0], [0, 1]])
    rng = np.random.default_rng(0)
    assert rank_information(tasks, gain, 10, rng).tolist() == [2, 1, 0]
    assert rank_information(tasks, gain, 1, rng).tolist() == [2]
    assert rank_information(tasks[:0], gain, 5, rng).tolist() == []


def test_a_task_of_three_is_worth_all_its_pairs() -> None:
    """Both have methods 0 and 1; the one with 2 besides is worth .3 + .2 + .1, padded like one of two is .3."""
    gain = np.array([[0, 0.3, 0.2], [0.3, 0, 0.1], [0.2, 0.1, 0]])
    tasks = np.array([[0, 1, -1], [0, 1, 2]])
    assert rank_information(tasks, gain, 2, np.random.default_rng(0)).tolist() == [1, 0]


def test_no_task_is_taken_twice_and_every_method_is_met_first() -> None:
    rng = np.random.default_rng(1)
    tasks = np.array([rng.choice(9, 2, replace=False) for _ in range(400)])
    order = rank_information(tasks, gain_of_pairs(rng.normal(size=9), np.eye(9)), 400, rng)
    assert sorted(order) == list(range(400))
    assert set(tasks[order[:8]].ravel()) == set(range(9))


@pytest.mark.parametrize("k", [2, 4])
def test_the_simulation_compares_orders_from_the_same_start(k: int) -> None:
    random, ordered = (simulate(0, k, order, 1.0) for order in ("random", "information"))
    assert len(random) == len(ordered) == 5
    assert random[-1] > 0.8
    assert ordered[-1] > 0.8
