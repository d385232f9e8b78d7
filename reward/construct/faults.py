"""Spoil a restored face in a way that any person would reject, by amounts that differ from pair to pair.

Images are uint8 (H, W, 3) RGB of any size; the rest of the image stays as it is, bit for bit. Eyes and teeth are looked
for where FFHQ's template has them, so `blur_eye` and `comb_teeth` are for aligned faces, which are square: on a whole
photo they would spoil whatever lies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageFilter

from metrics.faces import TEMPLATE, TEMPLATE_SIZE_PX
from pixels.read import RgbImage

Kind = Literal["other_person", "input_pasted", "colour_shift", "blurred_eye", "comb_teeth"]
Fault = Callable[[RgbImage, np.random.Generator], RgbImage]
Array = npt.NDArray[np.float64]

EYES, MOUTH = TEMPLATE[:2], TEMPLATE[3:]
EYE_DISTANCE = float(np.linalg.norm(EYES[1] - EYES[0])) / TEMPLATE_SIZE_PX
MOUTH_WIDTH = float(np.linalg.norm(MOUTH[1] - MOUTH[0])) / TEMPLATE_SIZE_PX
"""In parts of the image's side, as all lengths of this module that are not said to be pixels."""
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Brightness, then the two numbers of a colour: NTSC's."""


def shift_colours(image: RgbImage, rng: np.random.Generator) -> RgbImage:
    """Turn all hues by 60 to 180 degrees, either way, and tint the picture in the hue that skin has then.

    Brightness stays, but for colours that no screen can show.
    """
    angle = rng.uniform(math.pi / 3, math.pi) * rng.choice((-1, 1))
    tint = rng.uniform(0.04, 0.12)
    cos, sin = math.cos(angle), math.sin(angle)
    yiq = image.astype(np.float64) / 255 @ TO_YIQ.T
    # Skin lies along the first axis of the two.
    yiq[..., 1:] = yiq[..., 1:] @ np.array([[cos, sin], [-sin, cos]]) + tint * np.array([cos, sin])
    return _to_image(yiq @ np.linalg.inv(TO_YIQ).T * 255)


def blur_eye(image: RgbImage, rng: np.random.Generator) -> RgbImage:
    """Blur one eye of an aligned face until no iris is to be seen; nothing outside of an ellipse around it changes."""
    side = image.shape[0]
    centre = EYES[rng.integers(2)] / TEMPLATE_SIZE_PX + rng.uniform(-0.03, 0.03, 2) * EYE_DISTANCE
    radii = EYE_DISTANCE * rng.uniform((0.34, 0.2), (0.42, 0.26))
    sigma_px = rng.uniform(0.05, 0.09) * EYE_DISTANCE * side
    blurred = np.asarray(PilImage.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)), dtype=np.float64)
    return _blend(image, blurred, _ellipse(side, centre, radii, fade=0.3))


def comb_teeth(image: RgbImage, rng: np.random.Generator) -> RgbImage:
    """Draw dark vertical lines at equal distances over the mouth of an aligned face, as a comb of too many teeth."""
    side = image.shape[0]
    centre = MOUTH.mean(axis=0) / TEMPLATE_SIZE_PX + np.array((0.0, rng.uniform(-0.02, 0.08))) * MOUTH_WIDTH
    radii = MOUTH_WIDTH * rng.uniform((0.34, 0.12), (0.44, 0.17))
    period_px = max(2 * radii[0] * side / rng.integers(9, 15), 2.5)
    x = np.arange(side) + rng.uniform(0, period_px)
    lines = (0.5 + 0.5 * np.cos(2 * math.pi * x / period_px)) ** rng.uniform(1.5, 3.0)
    darker = image * (1 - rng.uniform(0.5, 0.75) * lines)[None, :, None]
    return _blend(image, darker, _ellipse(side, centre, radii, fade=0.25))


FAULTS: dict[Kind, Fault] = {"colour_shift": shift_colours, "blurred_eye": blur_eye, "comb_teeth": comb_teeth}
NEED_ALIGNED: tuple[Kind, ...] = ("blurred_eye", "comb_teeth")


def paste_input(photo: RgbImage, like: RgbImage) -> RgbImage:
    """Enlarge the low-quality photo to the restored image's size, as if nothing had been restored."""
    height, width = like.shape[:2]
    return np.asarray(PilImage.fromarray(photo).resize((width, height), PilImage.Resampling.BICUBIC))


def _ellipse(side: int, centre: Array, radii: Array, fade: float) -> Array:
    """(side, side) weights: 1 inside, falling to 0 at the border over the outer part `fade` of the radius.

    Args:
        centre, radii: (2,) x and y.
    """
    places = (np.arange(side) + 0.5) / side
    x, y = (places - centre[0]) / radii[0], (places - centre[1]) / radii[1]
    weights: Array = np.clip((1 - np.hypot(x[None, :], y[:, None])) / fade, 0, 1)
    return weights


def _blend(image: RgbImage, changed: Array, weights: Array) -> RgbImage:
    return _to_image(image + weights[..., None] * (changed - image))


def _to_image(values: Array) -> RgbImage:
    """Values 0 … 255 rounded to an image."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
