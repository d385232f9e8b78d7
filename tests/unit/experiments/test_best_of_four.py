"""One choice among four against one pair, by the click: planted, and on votes/sr."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.best_of_four import read_choices, replay, simulate


def test_the_best_of_four_orders_methods_by_fewer_clicks_than_pairs() -> None:
    (pairs,), (fours,) = (simulate(k, 1.0, (100,), runs=12) for k in (2, 4))
    assert fours > pairs + 0.02
    assert fours > 0.75


def test_real_choices_order_methods_by_half_the_clicks(shared_faces: Path) -> None:
    """Ten choices a scene: field.md 2.2 has .406 read whole, .320 as pairs; 4 runs of 12 scenes have .05 of noise."""
    answers = read_choices(shared_faces / "votes" / "sr")
    assert (len(answers), answers["source"].nunique(), answers["person"].nunique()) == (624, 12, 52)
    whole, pairs = replay(answers, 10, runs=4)
    assert whole == pytest.approx(0.406, abs=0.15)
    assert whole > pairs
