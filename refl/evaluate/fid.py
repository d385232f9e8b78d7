"""Compute FID between restored faces and ground truths in batches, as clean-fid and pyiqa do."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image as PilImage

from metrics.lists import MetricError, metric_version
from metrics.weights import load_with_weights
from refl.evaluate.faces import FaceSet, split_batches
from refl.evaluate.restored import Restored, read_images
from refl.evaluate.values import Measured
from refl.tune.monitor import to_bytes

MIN_FACES = 1000
"""A covariance of Inception's 2,048 features means little with fewer."""
Array = npt.NDArray[np.float64]


class Moments:
    """Mean and covariance of features that come in batches, float64; memory does not grow with their number.

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self.scatter: Array = np.zeros((0, 0))
        """Sum of the outer products of the distances from the mean."""

    def add(self, features: npt.NDArray[Any]) -> None:
        """Take (n, D) features."""
        rows = features.astype(np.float64)
        if not self.count:
            self.mean, self.scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        total = self.count + len(rows)
        mean = rows.mean(axis=0)
        shift, centred = mean - self.mean, rows - mean
        self.scatter += centred.T @ centred
        self.scatter += np.outer(shift * (self.count * len(rows) / total), shift)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> Array:
        """(D, D), without bias, as `numpy.cov` gives it."""
        return self.scatter / (self.count - 1)


def load_fid() -> Any:
    """The metric with Inception's weights.

    Raises:
        MetricError: they are not here and cannot be downloaded, or pyiqa is not installed.
    """

    def build() -> Any:
        from pyiqa.archs.fid_arch import FID

        return FID()

    return load_with_weights("fid", build)


def embed(fid: Any, images: Sequence[npt.NDArray[np.uint8]], device: str) -> npt.NDArray[np.float32]:
    """(n, D) features of n images (H, W, 3); through files, as pyiqa's own reading and resizing wants them.

    Source: resizing after Parmar et al., arXiv:2104.11222.
    """
    from pyiqa.archs.fid_arch import get_folder_features

    with TemporaryDirectory() as folder:
        for place, image in enumerate(images):
            PilImage.fromarray(image).save(Path(folder) / f"{place:06d}.png", compress_level=1)
        found: npt.NDArray[np.float32] = get_folder_features(
            folder,
            fid.model,
            num_workers=0,
            batch_size=len(images),
            test_img_size=fid.test_img_size,
            device=torch.device(device),
            verbose=False,
        )
    return found


def compute_distance(one: Moments, other: Moments) -> float:
    """Of two sets of features, 0 or above; lower is better.

    Source: Heusel et al., arXiv:1706.08500.
    """
    from pyiqa.archs.fid_arch import frechet_distance

    return float(frechet_distance(one.mean, one.covariance, other.mean, other.covariance))


def compare_by_fid(
    restored: Sequence[Restored],
    base: str,
    measured: Measured,
    batch_size: int,
    device: str = "cpu",
    done: Callable[[int], None] = lambda _images: None,
) -> tuple[pd.DataFrame, str | None]:
    """(rows like `evaluate.summarize`'s, minus FID so that higher is better, no intervals; why there are none).

    A method's images are those of its first seed. A method's distance is kept once it is whole.

    Args:
        restored: of one set.
        done: called with the number of images of each batch; 0 of ground truths.
    """
    faces = restored[0].faces
    if not is_wanted(faces):
        few = f"FID needs {MIN_FACES:,} faces or more, and {faces.name} has {len(faces.faces):,}."
        return pd.DataFrame(), few if faces.has_truth else None
    first = {one.method: one for one in reversed(restored)}
    try:
        fid = load_fid().to(device)
    except MetricError as error:
        done(len(faces.faces) * len(first))
        return pd.DataFrame(), str(error)
    kept, truths = f"fid {metric_version('fid')}", Moments()
    found = {}
    for method in dict.fromkeys(one.method for one in restored):
        key = hashlib.sha256(" ".join(first[method].keys).encode()).hexdigest()[:32]
        if measured.find_missing([kept], [key]):
            if not truths.count:
                for places in split_batches(len(faces.faces), batch_size):
                    truths.add(embed(fid, to_bytes(faces.read_squares(places)), device))
                    done(0)
            own = Moments()
            for places in split_batches(len(faces.faces), batch_size):
                own.add(embed(fid, read_images(first[method].files[places.start : places.stop]), device))
                done(len(places))
            measured.add([key], {kept: [compute_distance(own, truths)]})
        else:
            done(len(faces.faces))
        found[method] = -measured.known[kept][key]
    rows = [
        {
            "set": faces.name,
            "metric": "fid",
            "method": method,
            "mean": value,
            "change": value - found[base] if method != base else math.nan,
            "n": len(faces.faces),
        }
        for method, value in found.items()
    ]
    return pd.DataFrame(rows), None


def is_wanted(faces: FaceSet) -> bool:
    """Whether the set has ground truths, and faces enough."""
    return faces.has_truth and len(faces.faces) >= MIN_FACES
