"""Compute metric values: pyiqa's metrics, pyiqa's code on parameters that other packages carry, our own measures.

Values equal those of the plain pyiqa object called image by image; the tests state how nearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metrics.faces import FACE_MEASURES, FaceError, identity_arcface, load_arcface
from metrics.lists import (
    ARCFACE,
    FACE_METRICS,
    WITHOUT_OPENCV,
    Column,
    MetricError,
    load_metric_list,
    measured_columns,
)
from metrics.load import MetricFunction, is_lower_better, load_metric, needs_reference
from metrics.memory import is_out_of_memory
from metrics.natural import MEASURES, Planes, split_planes
from metrics.weights import MissingWeights, is_offline
from pixels.read import read_rgb

Image = npt.NDArray[np.uint8]
"""(H, W, 3), RGB, 0 … 255."""
FitPair = Callable[[int, int | None], tuple[Image, Image | None]]
"""Places of an image and of its reference in the list of images → both in one size."""

GPU_BATCH = 16
MAX_ASPECT_DIFFERENCE = 0.02
FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError, cv2.error, FaceError)
"""Errors of a metric at an image that it cannot measure, such as one smaller than its window."""
MAX_REASON_LENGTH = 300


@dataclass(frozen=True)
class Request:
    """One value to compute: which metric, of which image, against which other; places in the list of images."""

    metric: str
    image: int
    reference: int | None = None


@dataclass(frozen=True)
class Value:
    """One computed value, or why there is none."""

    value: float | None
    """Oriented so that higher is better, by pyiqa's `lower_better`; our own measures as they are."""
    raw_value: float | None
    failure: str | None = None


def find_devices(device: str) -> list[str]:
    """The devices to measure on: 'auto' is every GPU, or the CPU where there is none; 'cuda' is every GPU.

    Raises:
        MetricError: no such device here.
    """
    count = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return ["cpu"]
    found = [f"cuda:{number}" for number in range(count)]
    if device in ("auto", "cuda") and found:
        return found
    if device not in found:
        here = f"has {', '.join(found)}" if found else "has no GPU that torch can use"
        raise MetricError(f"There is no device {device!r}: this machine {here}. Choose another, or cpu.")
    return [device]


def set_threads(count: int) -> None:
    """Set how many threads torch and OpenCV use in this process."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def prepare(columns: Sequence[Column], device: str) -> None:
    """Build every metric once, which downloads the weights that are missing.

    Raises:
        MetricError: a name that nobody knows, a reference too many or too few, a package or weights that are missing.
    """
    references: dict[str, bool] = {}
    for column in columns:
        references.setdefault(column.metric, bool(column.reference))
    for name, has_reference in references.items():
        if needs_reference(name) != has_reference:
            says = "compares with a reference: give it references" if not has_reference else "takes no reference"
            raise MetricError(f"The metric {name} {says} in the metric list.")
    missing: list[MissingWeights] = []
    faults: list[str] = []
    for name in references:
        try:
            if name == ARCFACE:
                _load_arcface()
            elif name not in MEASURES and name not in FACE_METRICS:
                load_metric(name, device)
        except MissingWeights as error:
            missing.append(error)
            if not is_offline():  # each further one would wait for the network too
                break
        except MetricError as error:
            faults.append(str(error))
    if missing:
        lacks = MissingWeights("; ".join(error.files for error in missing), missing[0].why)
        if not faults:
            raise lacks
        faults.insert(0, str(lacks))
    if faults:
        raise MetricError(" ".join(faults))


def _load_arcface() -> None:
    """Load uniface's networks once, so that a missing file is told before an image is measured.

    Raises:
        MissingWeights: there is no network, or HF_HUB_OFFLINE forbids a download.
        MetricError: a package is missing, or a file is damaged.
    """
    try:
        load_arcface()
    except OSError as error:
        raise MissingWeights("RetinaFace and ArcFace of uniface, in UNIFACE_CACHE_DIR", str(error)) from error
    except (ImportError, RuntimeError) as error:
        raise MetricError(f"The metric {ARCFACE} cannot be loaded ({error}). Install it: {WITHOUT_OPENCV}") from error


def compute_values(requests: Sequence[Request], images: Sequence[Image], device: str = "cpu") -> list[Value]:
    """The requested values, in the order of the requests; an image that a metric cannot measure is a failure.

    Args:
        images: uint8 (H, W, 3), RGB, of any sizes, references among them.
        device: a device as `find_devices` gives them.
    Raises:
        MetricError: a metric cannot be loaded, or one image is too much for the GPU's memory.
    """
    values: dict[int, Value] = {}
    by_metric: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        by_metric.setdefault(request.metric, []).append(place)
    planes = cache(lambda image: split_planes(images[image]))
    pair = cache(partial(_fit_pair, images))
    tensors = cache(partial(_pair_tensors, pair, device))
    for name, places in by_metric.items():
        wanted = [requests[place] for place in places]
        if name in MEASURES:
            results: Iterable[float | str] = (_try_measure(name, planes, request.image) for request in wanted)
        elif name in FACE_METRICS:
            results = (_try_face(name, pair, request) for request in wanted)
        else:
            results = _compute_tensors(
                name, [(request.image, request.reference) for request in wanted], tensors, device
            )
        values.update((place, _to_value(name, result)) for place, result in zip(places, results, strict=True))
    return [values[place] for place in range(len(requests))]


def measure_files(list_name: str, path: Path, references: Mapping[str, Path] | None = None) -> dict[str, float]:
    """The metric vector of one image file, by column name, higher is better, NaN where a metric fails.

    Args:
        references: 'lq' and 'hq' to their files; the columns of one that is not given are left out.
    Raises:
        MetricError: as `metrics.lists.load_metric_list` and `prepare`.
    """
    files = {"": path, **(references or {})}
    wanted = [column for column in measured_columns(load_metric_list(list_name)) if column.reference in files]
    prepare(wanted, "cpu")
    places = {kind: place for place, kind in enumerate(files)}
    images = [read_rgb(file) for file in files.values()]
    requests = [Request(column.metric, 0, places[column.reference] if column.reference else None) for column in wanted]
    values = compute_values(requests, images)
    return {c.name: math.nan if v.value is None else v.value for c, v in zip(wanted, values, strict=True)}


def _to_value(name: str, result: float | str) -> Value:
    if isinstance(result, str):
        return Value(None, None, result[:MAX_REASON_LENGTH])
    if not math.isfinite(result):
        return Value(None, None, f"{name} gave {result}")
    return Value(-result if is_lower_better(name) else result, result)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _try_measure(name: str, planes: Callable[[int], Planes], image: int) -> float | str:
    try:
        return MEASURES[name](planes(image))
    except FAILURES as error:
        return _reason(error)


def _try_face(name: str, pair: FitPair, request: Request) -> float | str:
    try:
        image, reference = pair(request.image, request.reference)
        assert reference is not None
        return identity_arcface(image, reference) if name == ARCFACE else FACE_MEASURES[name](image, reference)
    except FAILURES as error:
        return _reason(error)


def _fit_pair(images: Sequence[Image], image: int, reference: int | None) -> tuple[Image, Image | None]:
    """The image and its reference in one size: the larger one resampled, averaging areas, to the smaller one's.

    Raises:
        ValueError: their aspect ratios differ by more than MAX_ASPECT_DIFFERENCE.
    """
    if reference is None:
        return images[image], None
    first, second = images[image], images[reference]
    (height, width), (other_height, other_width) = first.shape[:2], second.shape[:2]
    if (height, width) == (other_height, other_width):
        return first, second
    ratio = width * other_height / (height * other_width)
    if max(ratio, 1 / ratio) > 1 + MAX_ASPECT_DIFFERENCE + 1e-9:
        raise ValueError(
            f"{width} x {height} pixels and its reference {other_width} x {other_height}: not the same shape"
        )
    if width * height > other_width * other_height:
        return _shrink(first, other_width, other_height), second
    return first, _shrink(second, width, height)


def _shrink(image: Image, width: int, height: int) -> Image:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _pair_tensors(pair: FitPair, device: str, image: int, reference: int | None) -> tuple[Tensor, Tensor | None]:
    """(1, 3, H, W) each, RGB, 0 … 1."""
    first, second = pair(image, reference)
    return _to_tensor(first, device), None if second is None else _to_tensor(second, device)


def _to_tensor(image: Image, device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].contiguous().float() / 255


def _compute_tensors(
    name: str,
    wanted: Sequence[tuple[int, int | None]],
    tensors: Callable[[int, int | None], tuple[Tensor, Tensor | None]],
    device: str,
) -> list[float | str]:
    """One result for each (image, reference), a number or the reason why there is none.

    A GPU takes images of one size together; a CPU one by one, where larger arrays only miss its caches.
    """
    function = load_metric(name, device)
    results: dict[int, float | str] = {}
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, key in enumerate(wanted):
        try:
            by_size.setdefault(tuple(tensors(*key)[0].shape), []).append(place)
        except FAILURES as error:
            results[place] = _reason(error)
    for places in by_size.values():
        for group in _groups(places, 1 if device == "cpu" else GPU_BATCH):
            inputs = [tensors(*wanted[place]) for place in group]
            results.update(zip(group, _call_metric(name, function, inputs), strict=True))
    return [results[place] for place in range(len(wanted))]


def _groups(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _call_metric(
    name: str, function: MetricFunction, inputs: Sequence[tuple[Tensor, Tensor | None]]
) -> list[float | str]:
    """The metric of all inputs at once; one by one where that fails, so that one image's failure is its own."""
    images = torch.cat([image for image, _ in inputs])
    references = [reference for _, reference in inputs if reference is not None]
    try:
        with torch.inference_mode():
            values = function(images, torch.cat(references) if references else None)
        found = [float(value) for value in values.detach().double().cpu().reshape(-1)]
        if len(found) == len(inputs):
            return list(found)
        reason = f"{len(found)} values for {len(inputs)} images"
    except (MemoryError, *FAILURES) as error:
        reason = _reason(error)
        if is_out_of_memory(error):
            if len(inputs) == 1:
                raise _lacks_memory(name, images) from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if len(inputs) == 1:
        return [reason]
    return [result for single in inputs for result in _call_metric(name, function, [single])]


def _lacks_memory(name: str, images: Tensor) -> MetricError:
    (height, width), device = images.shape[-2:], images.device.type
    instead = "leave the metric out" if device == "cpu" else "measure with --device cpu, or leave the metric out"
    where = "This machine" if device == "cpu" else "The GPU"
    return MetricError(
        f"{where} has too little memory for {name} of one image of {width} x {height} pixels; {instead}."
    )
