"""Spoil a restored face in ways that any person would reject, each drawn anew for each pair.

Places are those of faces aligned as FFHQ's are; a face that is not aligned is spoilt somewhere else than in the eye or
the teeth, which is worse by then all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import cv2
import numpy as np
import numpy.typing as npt

from db.errors import UserError
from pixels.read import RgbImage
from reward.construct.options import Kind

Rng = np.random.Generator
Mask = npt.NDArray[Any]
"""(H, W), 0 … 1."""
Spoil = Callable[[RgbImage, RgbImage | None, Rng], RgbImage]
"""(restored image, what was restored or None, draw) -> the spoilt image, of the restored one's size."""

EYES = ((0.3769, 0.4686), (0.6229, 0.4691))
MOUTH = ((0.3931, 0.7254), (0.6115, 0.7249))
"""Centres of the eyes and corners of the mouth (x, y), as shares of the side of an aligned face; FFHQ's template."""


def paste_input(image: RgbImage, lq: RgbImage | None, _rng: Rng) -> RgbImage:
    """What was restored, at the restored image's size.

    Raises:
        UserError: it is not known.
    """
    if lq is None:
        raise UserError("input_pasted needs the photos that were restored (lq), and the dataset has none.")
    size = image.shape[1], image.shape[0]
    larger = size[0] > lq.shape[1]
    return np.asarray(cv2.resize(lq, size, interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA), np.uint8)


def shift_colours(image: RgbImage, _lq: RgbImage | None, rng: Rng) -> RgbImage:
    """Colours turned around the grey axis by 25 to 60 degrees, either way: green or purple skin."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    angle = np.deg2rad(rng.uniform(25, 60)) * rng.choice((-1, 1))
    a, b = lab[..., 1] - 128, lab[..., 2] - 128
    lab[..., 1] = 128 + np.cos(angle) * a - np.sin(angle) * b
    lab[..., 2] = 128 + np.sin(angle) * a + np.cos(angle) * b
    return np.asarray(cv2.cvtColor(lab.round().clip(0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB), np.uint8)


def blur_eye(image: RgbImage, _lq: RgbImage | None, rng: Rng) -> RgbImage:
    """One of the eyes smeared, out to its lids; the other stays."""
    height, width = image.shape[:2]
    x, y = EYES[int(rng.integers(2))]
    sigma_px = rng.uniform(0.02, 0.04) * width
    blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.uint8)
    mask = _ellipse((height, width), (x * width, y * height), (0.09 * width, 0.055 * height))
    return _mix(image, blurred, mask)


def comb_teeth(image: RgbImage, _lq: RgbImage | None, rng: Rng) -> RgbImage:
    """A row of narrow dark gaps across the mouth: more teeth than anybody has."""
    height, width = image.shape[:2]
    (left, y), (right, _) = MOUTH
    gaps = int(rng.integers(9, 15))
    at = np.linspace(left * width, right * width, gaps)
    columns = np.arange(width)[None, :] + 0.5
    gap_px = max(0.8, (right - left) * width / gaps / 5)
    comb = np.exp(-0.5 * ((columns[..., None] - at) / (gap_px / 2)) ** 2).max(axis=-1)
    mask = _ellipse((height, width), ((left + right) / 2 * width, y * height), (0.11 * width, 0.03 * height))
    bright = np.full_like(image, np.uint8(rng.integers(215, 245)))
    return _mix(_mix(image, bright, 0.7 * mask), np.full_like(image, 25), 0.9 * mask * comb)


SPOILERS: dict[Kind, Spoil] = {
    "input_pasted": paste_input,
    "colour_shift": shift_colours,
    "blurred_eye": blur_eye,
    "comb_teeth": comb_teeth,
}
"""All kinds but `other_person`, which takes another image as it is."""
assert {*SPOILERS, "other_person"} == set(get_args(Kind))


def _ellipse(size: tuple[int, int], center: tuple[float, float], radii: tuple[float, float]) -> Mask:
    """(H, W) 1 inside, falling to 0 over the outer third."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    distance = np.hypot((columns - center[0]) / radii[0], (rows - center[1]) / radii[1])
    return np.asarray(((1 - distance) * 3).clip(0, 1))


def _mix(image: RgbImage, other: RgbImage, mask: Mask) -> RgbImage:
    """The other image where the mask is 1, the image where it is 0."""
    mixed = image + mask[..., None] * (other.astype(np.float32) - image)
    return np.asarray(mixed.round().clip(0, 255), np.uint8)
