"""Keep a photo without colour grey: restorers and enlargers know only colour photos and tint it."""

from __future__ import annotations

import cv2
import numpy as np

from pixels.read import RgbImage

MAX_SPREAD = 3
"""Of 255, between the channels of any pixel: JPEG leaves as much in a black-and-white photo, and so does the grey that
`refl.faces.align` puts around a face at the photo's border."""


def is_grey(photo: RgbImage) -> bool:
    """Whether a photo, (H, W, 3), has no colour."""
    red, green, blue = cv2.split(photo)
    return all(cv2.absdiff(a, b).max() <= MAX_SPREAD for a, b in ((red, green), (green, blue), (red, blue)))


def keep_grey(restored: RgbImage, photo: RgbImage) -> RgbImage:
    """Keep only the lightness of a restored (H, W, 3) image of any size where the photo has no colour."""
    if not is_grey(photo):
        return restored
    return np.repeat(cv2.cvtColor(restored, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
