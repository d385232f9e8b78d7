"""Restorers side by side on the same faces and seeds: metrics of every image, means with intervals, changes of them.

Every metric is oriented so that higher is better, and is left out where it cannot be computed here; which ones, and
why, is part of the result. Intervals are 95 %, from resampling images; a change over the base is paired by image.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image as PilImage
from torch import Tensor

from metrics.accuracy import bootstrap_mean
from metrics.compute import prepare
from metrics.lists import Column, MetricError
from metrics.weights import MissingWeights, forbid_downloads, is_offline
from refl.monitor import RewardFunction, judge, measure_metrics, to_bytes
from refl.restorers.surface import Restorer

WITH_TRUTH = ("psnr", "ssim", "gmsd", "fsim", "vif", "lpips-vgg", "identity", "landmark_distance")
"""Metrics against the ground truth."""
WITHOUT_TRUTH = ("niqe_skvideo", "niqe", "musiq", "maniqa", "clipiqa", "laion_aes")
"""Metrics of the restored image alone."""
BATCH_IMAGES = 16
GRID_FACES = 16
COLUMNS = ["set", "method", "image", "seed", "metric", "value"]


@dataclass(frozen=True)
class FaceSet:
    """Faces to restore."""

    name: str
    names: Sequence[str]
    lq: Tensor
    """(N, 3, H, W) in [0, 1]."""
    hq: Tensor | None
    """The ground truth; None of wild photos."""
    captions: Sequence[str | None]


@dataclass(frozen=True)
class Restored:
    """What one method made of a set."""

    images: dict[int, Tensor]
    """Seed -> (N, 3, H, W) in [0, 1]."""
    seconds_an_image: float


def restore_set(restorer: Restorer, faces: FaceSet, seeds: Sequence[int], steps: int | None = None) -> Restored:
    """Every face with every seed; without chance there is one image a face, under the first seed."""
    began, images = time.monotonic(), {}
    for seed in seeds if restorer.is_random else seeds[:1]:
        batches = [
            restorer.restore(lq, [_seed_of(seed, start + place) for place in range(len(lq))], steps).cpu()
            for start, lq in zip(
                range(0, len(faces.lq), BATCH_IMAGES), torch.split(faces.lq, BATCH_IMAGES), strict=True
            )
        ]
        images[seed] = torch.cat(batches)
    return Restored(images, (time.monotonic() - began) / (len(images) * len(faces.lq)))


def _seed_of(seed: int, place: int) -> int:
    """The noise of one face, the same for every method and step of a comparison."""
    return int(np.random.default_rng([seed, place]).integers(2**63 - 1))


def choose_metrics(truth: bool, device: str = "cpu") -> tuple[list[str], dict[str, str]]:
    """(metrics that can be computed here, the others with the reason).

    Where one download fails, no other is tried.
    """
    found, left_out, failed = [], {}, ""
    with ExitStack() as downloads:
        for name in (*WITH_TRUTH, *WITHOUT_TRUTH) if truth else WITHOUT_TRUTH:
            try:
                prepare([Column(name, "", "hq" if name in WITH_TRUTH else "")], device)
                found.append(name)
            except MissingWeights as error:
                left_out[name] = f"{error.files}; not tried, since that of {failed} failed" if failed else str(error)
                if not is_offline():
                    failed = name
                    downloads.enter_context(forbid_downloads())
            except MetricError as error:
                left_out[name] = str(error)
    return found, left_out


def measure_set(
    faces: FaceSet,
    method: str,
    restored: Restored,
    metrics: Sequence[str],
    rewards: Mapping[str, RewardFunction],
    device: str = "cpu",
) -> pd.DataFrame:
    """A row an image, seed and metric: set, method, image, seed, metric, value; NaN where a metric fails.

    Args:
        rewards: name -> (N, 3, H, W) to (N,), for the faces of the set in their order.
    """
    tables = []
    for seed, images in restored.images.items():
        truths = to_bytes(faces.hq) if faces.hq is not None else []
        values = measure_metrics(metrics, to_bytes(images), truths, device)
        with torch.no_grad():
            values |= {f"reward {name}": reward(images).double().cpu().numpy() for name, reward in rewards.items()}
        if faces.hq is not None:
            values |= judge(("saturation", "high_frequency"), images, faces.hq)
        for metric, numbers in values.items():
            rows = {"set": faces.name, "method": method, "image": list(faces.names), "seed": seed, "metric": metric}
            tables.append(pd.DataFrame({**rows, "value": numbers}))
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def summarize(values: pd.DataFrame, base: str, seed: int = 0) -> pd.DataFrame:
    """A row a set, metric and method: mean, low, high; change, change_low, change_high over the base; n images.

    Seeds are averaged within an image first. Rows where a metric failed are left out, of a change those where either
    failed; a metric that measured no image of a method has no row.
    """
    by_image = values.groupby(["set", "metric", "method", "image"], sort=False)["value"].mean().reset_index()
    rows = []
    for (name, metric), group in by_image.groupby(["set", "metric"], sort=False):
        wide = group.pivot(index="image", columns="method", values="value")
        for method in group["method"].unique():
            own = wide[method].dropna()
            if own.empty:
                continue
            change = (wide[method] - wide[base]).dropna() if method != base and base in wide else own[:0]
            rows.append((name, metric, method, *_interval(own, seed), *_interval(change, seed), len(own)))
    means = ["mean", "low", "high", "change", "change_low", "change_high"]
    return pd.DataFrame(rows, columns=["set", "metric", "method", *means, "n"])


def _interval(values: pd.Series[float], seed: int) -> tuple[float, float, float]:
    return bootstrap_mean(values.to_numpy(float), np.ones(len(values)), values.index.to_numpy(), seed)


def write_grid(path: Path, faces: FaceSet, restored: Mapping[str, Restored]) -> None:
    """A PNG of the first faces by name, unselected: a column a face; input, each method in order, ground truth."""
    seed_images = [next(iter(made.images.values())) for made in restored.values()]
    rows = [faces.lq, *seed_images, *([faces.hq] if faces.hq is not None else [])]
    drawn = [torch.cat(list(images[:GRID_FACES].cpu()), dim=2) for images in rows]
    PilImage.fromarray(to_bytes(torch.cat(drawn, dim=1)[None])[0]).save(path)
