"""Measure what each column of a metric list adds: `python -m experiments.metric_lists [--metrics offline]`.

Reads ../shared/faces: real votes on super-resolution (votes/sr, 12 photos, 4 methods) and real restorers' outputs of
real low-quality faces (restored, 85 photos, 14 methods; only 4 have a ground truth). One row per column:

votes      share of the votes that the higher value wins, with the 95 % interval over photos; under 0.5 the labeler
           learns the other sign
dropped    held-out accuracy of a linear model (leave one photo out) with all columns minus that without this one
methods    share of the variance between one photo's restored images that the method explains
nearest    the column with the largest rank correlation over differences between one photo's restored images
ms         on one core, an image of 512 x 512 pixels decoded before
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from experiments.votes import count_pairs, find_image, read_wins
from metrics.compute import Request, compute_values, prepare, set_threads
from metrics.lists import Column, columns, load_metric_list
from pixels.read import read_rgb

Array = npt.NDArray[np.float64]
FACES = Path(__file__).resolve().parents[2] / "shared" / "faces"
RESAMPLES = 2000
TIMED_IMAGES = 8


def measure(wanted: list[Column], image: Path | None, lq: Path | None) -> list[float]:
    """Oriented values of one image, NaN where measuring failed."""
    if image is None or lq is None:
        sys.exit("An image that was voted on, or its lq image, is missing in the folder.")
    requests = [Request(column.metric, 0, 1 if column.reference else None) for column in wanted]
    values = compute_values(requests, [read_rgb(image), read_rgb(lq)])
    return [np.nan if value.value is None else value.value for value in values]


def measure_votes(wanted: list[Column], folder: Path) -> tuple[Array, Array, npt.NDArray[Any]]:
    """(differences a − b, votes for a and for b, photo), a row per pair of images that people compared."""
    wins, _ = read_wins(folder)
    pairs = count_pairs(wins)
    values: dict[tuple[str, str], list[float]] = {}
    for image, a, b, _, _ in pairs.itertuples(index=False):
        for method in (a, b):
            if (image, method) not in values:
                path = find_image(folder / "".join(c for c in method.lower() if c.isalnum()), image)
                values[image, method] = measure(wanted, path, find_image(folder / "lq", image))
    differences = np.array(
        [
            np.subtract(values[image, a], values[image, b])
            for image, a, b in zip(pairs["image"], pairs["a"], pairs["b"], strict=True)
        ]
    )
    n, p_a = pairs["n"].to_numpy(float), pairs["p_a"].to_numpy(float)
    return differences, np.stack([n * p_a, n * (1 - p_a)], axis=1), pairs["image"].to_numpy(str)


def vote_accuracy(difference: Array, votes: Array, photos: npt.NDArray[Any]) -> tuple[float, float, float]:
    """Share of the votes for the side with the higher value, half where equal, with its interval over photos."""
    won = np.where(difference > 0, votes[:, 0], np.where(difference < 0, votes[:, 1], votes.sum(axis=1) / 2))
    names = np.unique(photos)
    sums = np.array([(won[photos == name].sum(), votes[photos == name].sum()) for name in names])
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    shares = sums[drawn].sum(axis=1)
    low, high = np.percentile(shares[:, 0] / shares[:, 1], (2.5, 97.5))
    return float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high)


def held_out_accuracy(differences: Array, votes: Array, photos: npt.NDArray[Any]) -> float:
    """Share of the votes that a linear model predicts which never saw the photo."""
    predicted = np.zeros(len(differences))
    for name in np.unique(photos):
        train = photos != name
        scaler = StandardScaler(with_mean=False).fit(differences[train])
        x = scaler.transform(differences[train])
        model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=1000)
        model.fit(
            np.concatenate([x, x]),
            np.repeat([1, 0], len(x)),
            sample_weight=np.concatenate([votes[train, 0], votes[train, 1]]),
        )
        predicted[~train] = model.decision_function(scaler.transform(differences[~train]))
    return vote_accuracy(predicted, votes, photos)[0]


def measure_restored(wanted: list[Column], folder: Path) -> tuple[Array, npt.NDArray[Any], npt.NDArray[Any]]:
    """(values, photo, method), a row a restored image of a photo that has two or more."""
    methods = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in ("lq", "hq"))
    files = [(path, path.stem, method) for method in methods for path in sorted((folder / method).iterdir())]
    photos = [stem for _, stem, _ in files]
    files = [entry for entry in files if photos.count(entry[1]) > 1]
    values = [measure(wanted, path, find_image(folder / "lq", stem)) for path, stem, _ in files]
    return np.array(values), np.array([stem for _, stem, _ in files]), np.array([method for _, _, method in files])


def method_share(values: Array, photos: npt.NDArray[Any], methods: npt.NDArray[Any]) -> float:
    """Share of the variance within photos that is explained by the method: additive model of both."""
    fine = np.isfinite(values)

    def residual(*factors: npt.NDArray[Any]) -> float:
        design = np.concatenate([factor[fine, None] == np.unique(factor) for factor in factors], axis=1).astype(float)
        fitted = design @ np.linalg.lstsq(design, values[fine], rcond=None)[0]
        return float(((values[fine] - fitted) ** 2).sum())

    within = residual(photos)
    return (within - residual(photos, methods)) / within


def centre(values: Array, photos: npt.NDArray[Any]) -> Array:
    """Values minus their photo's mean."""
    return np.array(
        [row - np.nanmean(values[photos == photo], axis=0) for row, photo in zip(values, photos, strict=True)]
    )


def time_columns(wanted: list[Column], folder: Path) -> dict[str, float]:
    """Milliseconds an image of 512 x 512 pixels, of the columns one by one; reading the file does not count."""
    lq = sorted((folder / "lq").iterdir())
    pixels = [image for image in map(read_rgb, lq) if image.shape == (512, 512, 3)][: 2 * TIMED_IMAGES]
    half = len(pixels) // 2
    spent = {}
    for column in wanted:
        requests = [Request(column.metric, place, half + place if column.reference else None) for place in range(half)]
        compute_values(requests[:1], pixels)
        start = time.process_time()
        for request in requests:
            compute_values([request], pixels)
        spent[column.name] = 1000 * (time.process_time() - start) / half
    return spent


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", default="offline", help="name of a list, or a TOML file")
    parser.add_argument("--faces", type=Path, default=FACES, help="the folder of real faces")
    args = parser.parse_args()
    if not args.faces.is_dir():
        sys.exit(f"{args.faces} is not there; name the folder of real faces with --faces")
    set_threads(1)
    wanted = [column for column in columns(load_metric_list(args.metrics)) if column.reference != "hq"]
    prepare(wanted, "cpu")
    differences, votes, photos = measure_votes(wanted, args.faces / "votes" / "sr")
    values, restored_photos, methods = measure_restored(wanted, args.faces / "restored")
    spent = time_columns(wanted, args.faces / "restored")
    whole = held_out_accuracy(differences, votes, photos)
    ranks = np.abs(spearmanr(centre(values, restored_photos), nan_policy="omit").statistic)
    np.fill_diagonal(ranks, 0)
    print(f"{'column':<18} {'votes':>6}  {'interval':<14} {'dropped':>8} {'methods':>8}  {'nearest':<24} {'ms':>5}")
    for place, column in enumerate(wanted):
        share, low, high = vote_accuracy(differences[:, place], votes, photos)
        dropped = whole - held_out_accuracy(np.delete(differences, place, axis=1), votes, photos)
        near = int(np.nanargmax(ranks[place]))
        print(
            f"{column.name:<18} {share:6.3f}  [{low:.3f}, {high:.3f}] {dropped:+8.3f} "
            f"{method_share(values[:, place], restored_photos, methods):8.2f}  "
            f"{wanted[near].name:<18} {ranks[place, near]:5.2f} {spent[column.name]:5.1f}"
        )
    one_by_one = np.argsort([-abs(vote_accuracy(column, votes, photos)[0] - 0.5) for column in differences.T])
    print(
        f"all columns: {whole:.3f} held out; the four best by `votes` (chosen on these votes): "
        f"{held_out_accuracy(differences[:, one_by_one[:4]], votes, photos):.3f}; {sum(spent.values()):.0f} ms an image"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
