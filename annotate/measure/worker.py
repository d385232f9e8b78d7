"""Decode a batch of images in a worker process, compute their missing metrics, return the rows.

Only this module's functions load torch, and only in the process that calls them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotate.ingest.image_files import start_worker
from db.images import fetch_images, image_path
from metrics.lists import Column
from pixels.read import ImageFault, read_rgb


class ImageFile(NamedTuple):
    """A stored image: its SHA-256 and suffix name the file in the data folder."""

    sha256: str
    suffix: str


class Wanted(NamedTuple):
    """One missing value of an image."""

    column: Column
    reference: ImageFile | None


@dataclass(frozen=True)
class ImageJob:
    """Missing values of one image."""

    image_id: int
    file: ImageFile
    wanted: tuple[Wanted, ...]


@dataclass
class BatchResult:
    """Result of a batch: rows of MetricValue, and the image files that cannot be read."""

    images: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(file name, why); nothing is stored of these, so that they are measured when they are mended."""


def start_measuring() -> None:
    """Run once in each worker process: one thread each, since there is a process for each core."""
    start_worker()
    use_one_thread()


def use_one_thread() -> None:
    """Keep torch and OpenCV from starting a thread per core in this process."""
    from metrics import compute

    compute.set_threads(1)


def find_devices(device: str) -> list[str]:
    """`metrics.compute.find_devices`, callable in a worker without loading torch here."""
    from metrics import compute

    return compute.find_devices(device)


def prepare(columns: list[Column], device: str) -> None:
    """`metrics.compute.prepare`, callable in a worker without loading torch here."""
    from metrics import compute

    compute.prepare(columns, device)


def measure_batch(data: Path, jobs: list[ImageJob], device: str) -> BatchResult:
    """Measure what is missing of these images.

    Raises:
        MetricError: a metric cannot be loaded, or the GPU's memory is too small.
    """
    from metrics.compute import Request, compute_values

    fetch_images(data, {file for job in jobs for file in (job.file, *(one.reference for one in job.wanted)) if file})
    result = BatchResult(images=len(jobs))
    images: list[npt.NDArray[np.uint8]] = []

    @cache
    def place_of(file: ImageFile) -> int | None:
        try:
            images.append(read_rgb(image_path(data, *file)))
        except (OSError, ImageFault) as error:
            result.unreadable.append((image_path(data, *file).name, " ".join(str(error).split())[:200]))
            return None
        return len(images) - 1

    asked: list[tuple[ImageJob, Wanted]] = []
    requests: list[Request] = []
    for job in jobs:
        place = place_of(job.file)
        for wanted in job.wanted:
            reference = place_of(wanted.reference) if wanted.reference and place is not None else None
            if place is not None and (reference is None) == (wanted.reference is None):
                asked.append((job, wanted))
                requests.append(Request(wanted.column.metric, place, reference))
    for (job, wanted), value in zip(asked, compute_values(requests, images, device), strict=True):
        result.rows.append(
            {
                "image_id": job.image_id,
                "metric": wanted.column.metric,
                "version": wanted.column.version,
                "reference": wanted.reference.sha256 if wanted.reference else "",
                "value": value.value,
                "raw_value": value.raw_value,
                "failure": value.failure,
            }
        )
    return result
