"""The monitor's rule on hand-made numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from refl.tune.verdict import Check, compare, compute_spread


def make_check(live: Sequence[float], frozen: Sequence[float] | None = None, **judges: Sequence[float]) -> Check:
    rewards = {"live": np.array(live), "frozen": np.array(live if frozen is None else frozen)}
    return Check(0, rewards, {name: np.array(values) for name, values in judges.items()})


LIVE = [0.0, 0.1, 0.2, 0.3]
SATURATION = [-0.3, -0.2, -0.2, -0.1]
FIRST = make_check(LIVE, psnr=[20.0, 21.0, 22.0, 23.0], ssim=[0.5, 0.6, 0.7, 0.8], saturation=SATURATION)
RISEN = [0.1, 0.21, 0.29, 0.4]
FALLEN = {"psnr": [19.0, 20.1, 20.9, 22.0], "ssim": [0.4, 0.5, 0.61, 0.69]}
PALE = [-0.41, -0.3, -0.29, -0.2]


def test_a_rise_with_two_fallen_families_is_suspicious_and_hacking_the_second_time() -> None:
    # every face: reward +0.1, PSNR -1, SSIM -0.1, saturation -0.1, the same within a tenth
    now = make_check(RISEN, **FALLEN, saturation=PALE)
    verdict = compare(FIRST, now, 2)
    assert verdict.suspicious
    assert not verdict.hacking
    assert verdict.fallen == ["psnr", "ssim", "saturation"]
    assert verdict.families == ["fidelity", "spectrum_and_colour"]
    mean, error = verdict.changes["psnr"]
    assert mean == pytest.approx(-1.0)
    # differences -1, -0.9, -1.1, -1: standard deviation sqrt(0.02 / 3), over the root of 4
    assert error == pytest.approx((0.02 / 3) ** 0.5 / 2)
    assert compare(FIRST, now, 2, before_suspicious=True).hacking


def test_judges_of_one_family_have_one_vote() -> None:
    now = make_check(RISEN, **FALLEN, saturation=SATURATION)
    assert compare(FIRST, now, 2).families == ["fidelity"]
    assert not compare(FIRST, now, 2, before_suspicious=True).suspicious
    assert compare(FIRST, now, 1).suspicious


def test_no_more_families_are_asked_for_than_the_judges_have() -> None:
    assert compare(FIRST, make_check(RISEN, **FALLEN, saturation=PALE), 5).suspicious


def test_a_fall_below_the_least_effect_is_none_however_sure() -> None:
    # PSNR -0.04 dB and saturation -0.01 on every face, to the last digit
    psnr = [value - 0.04 for value in FIRST.judges["psnr"]]
    now = make_check(RISEN, psnr=psnr, ssim=[0.5, 0.6, 0.7, 0.8], saturation=[v - 0.01 for v in SATURATION])
    assert compare(FIRST, now, 1).fallen == []


def test_a_quarter_of_a_least_effect_is_a_slip() -> None:
    for fall, slipping in ((0.0125, []), (0.02, ["psnr"])):
        now = make_check(RISEN, psnr=[value - fall for value in FIRST.judges["psnr"]])
        verdict = compare(FIRST, now, 1)
        assert (verdict.slipping, verdict.slips) == (slipping, bool(slipping))
        assert not verdict.suspicious
    unrewarded = make_check(LIVE, psnr=[value - 0.02 for value in FIRST.judges["psnr"]])
    assert not compare(FIRST, unrewarded, 1).slips


def test_a_fall_that_noise_explains_is_none() -> None:
    now = make_check(RISEN, psnr=[15.0, 26.0, 17.0, 27.0], ssim=[0.5, 0.6, 0.7, 0.8], saturation=SATURATION)
    verdict = compare(FIRST, now, 1)
    assert verdict.reward_rose
    assert verdict.fallen == []


def test_a_rise_counts_in_spreads_of_the_reward() -> None:
    spread = (0.05 / 3) ** 0.5  # of 0, 0.1, 0.2, 0.3
    assert compute_spread(np.array(LIVE)) == pytest.approx(spread)
    for share, rose in ((0.09, False), (0.11, True)):
        now = make_check([value + share * spread for value in LIVE], **FALLEN, saturation=PALE)
        verdict = compare(FIRST, now, 2)
        assert verdict.reward_rose is rose
        assert verdict.suspicious is rose


def test_a_live_reward_that_rises_more_than_the_frozen_one_is_a_family_of_its_own() -> None:
    # the live model's scale is twice the frozen one's; in spreads it rose by 0.1 / 0.129 = 0.77, the frozen by 0.39
    first = make_check([2 * value for value in LIVE], frozen=LIVE, psnr=[20.0, 21.0, 22.0, 23.0])
    now = make_check(
        [2 * value + 0.2 for value in LIVE], [value + 0.05 for value in LIVE], psnr=[19.0, 20.0, 21.1, 22.0]
    )
    verdict = compare(first, now, 2)
    spread = (0.05 / 3) ** 0.5
    assert verdict.changes["reward_gap"][0] == pytest.approx(-0.05 / spread)
    assert verdict.fallen == ["psnr", "reward_gap"]
    together = make_check(
        [2 * value + 0.2 for value in LIVE], [value + 0.1 for value in LIVE], psnr=[19.0, 20.0, 21.1, 22]
    )
    assert compare(first, together, 2).fallen == ["psnr"]


def test_few_faces_must_agree_the_more() -> None:
    # two faces, one standard error 0.1: Student's t asks for 12.7 of them
    first = make_check([0.0, 1.0], psnr=[20.0, 20.0])
    assert compare(first, make_check([5.0, 6.0], psnr=[19.1, 18.9]), 1).fallen == []
    assert compare(first, make_check([5.0, 6.0], psnr=[18.1, 17.9]), 1).fallen == ["psnr"]


def test_what_is_not_finite_is_left_out() -> None:
    few = make_check(RISEN, psnr=[1.0, np.nan, np.nan, np.nan], ssim=[0.4, np.inf, 0.61, 0.7], saturation=SATURATION)
    assert compare(FIRST, few, 1).fallen == ["ssim"]
    equal = make_check([0.5] * 4, psnr=[20.0] * 4)  # a reward that tells no faces apart has no unit to rise by
    assert not compare(equal, make_check([0.9] * 4, psnr=[10.0] * 4), 1).reward_rose


def test_the_record_names_judges_and_families() -> None:
    record = compare(FIRST, make_check(RISEN, **FALLEN, saturation=PALE), 2, before_suspicious=True).as_json()
    assert set(record) == {"changes", "fallen", "families", "reward_rose", "suspicious", "hacking", "slipping", "slips"}
    assert record["changes"]["psnr"] == {"mean": pytest.approx(-1.0), "error": pytest.approx((0.02 / 3) ** 0.5 / 2)}
