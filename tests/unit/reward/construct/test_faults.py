"""A fault changes what it says and nothing else, at any size, and no two pairs alike."""

from __future__ import annotations

import numpy as np
import pytest

from metrics.faces import TEMPLATE, TEMPLATE_SIZE_PX
from reward.construct.faults import FAULTS, TO_YIQ, blur_eye, comb_teeth, paste_input, shift_colours

SIZES = (64, 300, 512, 1024)


def make_face(side: int) -> np.ndarray:
    """Skin with fine noise, so that blurring shows."""
    rng = np.random.default_rng(0)
    return np.clip(np.array([180, 140, 120]) + rng.normal(0, 25, (side, side, 3)), 0, 255).astype(np.uint8)


def find_changed(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the changed pixels in parts of the side."""
    y, x = np.nonzero((before != after).any(axis=-1))
    return (x + 0.5) / before.shape[1], (y + 0.5) / before.shape[0]


@pytest.mark.parametrize("side", SIZES)
def test_one_eye_is_blurred_and_all_else_stays(side: int) -> None:
    face, eyes = make_face(side), TEMPLATE[:2] / TEMPLATE_SIZE_PX
    seen = set()
    for seed in range(8):
        blurred = blur_eye(face, np.random.default_rng(seed))
        x, y = find_changed(face, blurred)
        (eye,) = (place for place, (cx, cy) in enumerate(eyes) if np.hypot(x.mean() - cx, y.mean() - cy) < 0.03)
        seen.add(eye)
        assert np.abs(x - eyes[eye][0]).max() < 0.125  # not to the other eye, which is 0.25 away
        assert np.abs(y - eyes[eye][1]).max() < 0.09
        iris = [
            slice(int((at - reach) * side), int((at + reach) * side))
            for at, reach in zip(eyes[eye], (0.04, 0.02), strict=True)
        ]
        inside = (iris[1], iris[0])
        assert blurred[inside].std() < 0.85 * face[inside].std()
    assert seen == {0, 1}


@pytest.mark.parametrize("side", SIZES)
def test_lines_darken_the_mouth_alone(side: int) -> None:
    face, mouth = make_face(side), TEMPLATE[3:].mean(axis=0) / TEMPLATE_SIZE_PX
    combed = comb_teeth(face, np.random.default_rng(1))
    x, y = find_changed(face, combed)
    assert np.abs(x - mouth[0]).max() < 0.11
    assert np.abs(y - mouth[1]).max() < 0.065
    assert (combed <= face).all()
    row = combed[int((mouth[1] + 0.005) * side), int((mouth[0] - 0.06) * side) : int((mouth[0] + 0.06) * side)]
    dark = row.mean(axis=-1) < 100
    assert (np.diff(dark.astype(int)) == 1).sum() >= 2, "lines, with teeth between"


@pytest.mark.parametrize("side", SIZES)
def test_hues_turn_and_brightness_stays(side: int) -> None:
    face = make_face(side)
    for seed in range(6):
        shifted = shift_colours(face, np.random.default_rng(seed))
        (before, *hue), (after, *turned) = (image.reshape(-1, 3).mean(axis=0) @ TO_YIQ.T for image in (face, shifted))
        assert abs(before - after) < 8
        assert np.hypot(*np.subtract(hue, turned)) > 20
    grey = np.full((side, side, 3), 128, np.uint8)
    assert np.ptp(shift_colours(grey, np.random.default_rng(0)).astype(int).mean(axis=(0, 1))) > 5


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_the_same_for_a_pair_and_another_for_the_next(kind: str) -> None:
    face = make_face(128)
    first, again, other = (FAULTS[kind](face, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
    assert (face == make_face(128)).all(), "the image itself stays"


def test_the_input_takes_the_size_of_the_restored_image() -> None:
    photo = np.zeros((16, 12, 3), np.uint8)
    photo[:, :6] = 200
    pasted = paste_input(photo, np.zeros((64, 48, 3), np.uint8))
    assert pasted.shape == (64, 48, 3)
    assert pasted[:, :20].min() > 190
    assert pasted[:, 28:].max() < 10
