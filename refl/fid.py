"""FID between restored faces and their ground truths: pyiqa's, as clean-fid computes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image as PilImage

from metrics.lists import MetricError
from metrics.weights import load_with_weights
from refl.evaluate import FaceSet, Restored
from refl.monitor import to_bytes

MIN_FACES = 1000
"""A covariance of Inception's 2,048 features means little with fewer."""


def load_fid() -> Any:
    """The metric with Inception's weights.

    Raises:
        MissingWeights: they are not here and cannot be downloaded.
    """
    from pyiqa.archs.fid_arch import FID

    return load_with_weights("fid", FID)


def compute_fid(
    fid: Any, images: Sequence[npt.NDArray[np.uint8]], truths: Sequence[npt.NDArray[np.uint8]], device: str
) -> float:
    """The distance of two sets of (H, W, 3) images, 0 or above; lower is better.

    Source: Heusel et al., arXiv:1706.08500; resizing after Parmar et al., arXiv:2104.11222.
    """
    fid.to(device)
    with TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("restored", "truth")]
        for folder, pictures in zip(folders, (images, truths), strict=True):
            folder.mkdir()
            for place, picture in enumerate(pictures):
                PilImage.fromarray(picture).save(folder / f"{place:06d}.png", compress_level=1)
        found = fid(*map(str, folders), num_workers=0, device=torch.device(device), verbose=False)
    return float(found)


def compare_by_fid(
    faces: FaceSet, restored: Mapping[str, Restored], base: str, device: str = "cpu"
) -> tuple[pd.DataFrame, str | None]:
    """(rows like `evaluate.summarize`'s, minus FID so that higher is better, no intervals; why there are none).

    A method's images are those of its first seed.
    """
    if faces.hq is None:
        return pd.DataFrame(), None
    if len(faces.names) < MIN_FACES:
        return pd.DataFrame(), f"FID needs {MIN_FACES:,} faces or more, and {faces.name} has {len(faces.names):,}."
    try:
        fid = load_fid()
    except MetricError as error:
        return pd.DataFrame(), str(error)
    truths = to_bytes(faces.hq)
    found = {
        method: -compute_fid(fid, to_bytes(next(iter(made.images.values()))), truths, device)
        for method, made in restored.items()
    }
    rows = [
        {
            "set": faces.name,
            "metric": "fid",
            "method": method,
            "mean": value,
            "change": value - found[base] if method != base else math.nan,
            "n": len(truths),
        }
        for method, value in found.items()
    ]
    return pd.DataFrame(rows), None
