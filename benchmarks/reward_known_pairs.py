"""A reward model on pairs whose answer is known: `python -m benchmarks.reward_known_pairs [--out DIR] [--faces N]`.

Each face of ../shared/faces/train/ffhq256 (128 px, one person a photo) is degraded at three strengths, and each of
these restored by four classical filters. The better image is known by construction: the ground truth, else the one
that comes from the weaker degradation, whatever restored it. `python -m reward train --preset tiny` learns from 70 % of
the people; the table says how often it is right on the 20 % that neither training nor the choice of the checkpoint saw,
by kind of pair and strength, beside the best single metric of the list `offline`, its sign chosen with hindsight.

With --shuffle the answers of the train and val splits are drawn by lot: what is learnt then must be chance. One factor,
blur, runs through all pairs, so that a single such model is right or wrong on most of them; only the mean over many
draws of lots must be near one half, and one run shows no more than one draw.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from metrics.compute import Request, compute_values, prepare, set_threads
from metrics.lists import load_metric_list, measured_columns
from refl.degrade import DegradationSettings, FloatImage, degrade, draw_degradation
from reward.checkpoint import load_model
from reward.data import PairImages, Pairs, group_pairs, load_dataset, to_pixels
from reward.images import read_image

ROOT = Path(__file__).resolve().parents[1]
FACES = ROOT.parent / "shared" / "faces" / "train" / "ffhq256"
SIZE_PX = 128
STRENGTHS = {
    1: DegradationSettings(
        blur_kernel_px=21,
        blur_sigma_px=(0.6, 0.9),
        downsample_factor=(1.3, 1.8),
        noise_std=(2, 4),
        jpeg_quality=(80, 92),
    ),
    2: DegradationSettings(
        blur_kernel_px=21,
        blur_sigma_px=(1.2, 1.7),
        downsample_factor=(2.2, 3.0),
        noise_std=(5, 8),
        jpeg_quality=(55, 70),
    ),
    3: DegradationSettings(
        blur_kernel_px=21,
        blur_sigma_px=(2.2, 3.0),
        downsample_factor=(3.8, 5.0),
        noise_std=(10, 14),
        jpeg_quality=(30, 45),
    ),
}
"""Ranges that do not overlap, so that the weaker degradation keeps more of the face."""
METRIC_PAIRS = 400
SPLIT_SHARES = (("train", 0.7), ("val", 0.8), ("test", 1.0))
"""Upper ends."""

Pixels = npt.NDArray[np.uint8]


def sharpen(image: Pixels) -> Pixels:
    """Unsharp masking."""
    blurred = cv2.GaussianBlur(image, (0, 0), 1.5)
    return np.asarray(cv2.addWeighted(image, 2.0, blurred, -1.0, 0.0), dtype=np.uint8)


def resample(image: Pixels) -> Pixels:
    """Halve with an area filter, then enlarge bicubically: noise goes, and some of the face."""
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


RESTORERS: dict[str, Callable[[Pixels], Pixels]] = {
    "median": lambda image: np.asarray(cv2.medianBlur(image, 3), dtype=np.uint8),
    "bilateral": lambda image: np.asarray(cv2.bilateralFilter(image, 5, 40, 2), dtype=np.uint8),
    "unsharp": sharpen,
    "bicubic": resample,
}


def make_candidates(hq: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """The ground truth, 3 degraded and 12 restored images of a face, by method: 'hq', 'lq 2', 'median 2'."""
    found = {"hq": hq}
    truth: FloatImage = hq.astype(np.float32) / np.float32(255)
    for strength, settings in STRENGTHS.items():
        lq = np.round(degrade(truth, draw_degradation(settings, rng)) * 255).astype(np.uint8)
        found[f"lq {strength}"] = lq
        found |= {f"{name} {strength}": restore(lq) for name, restore in RESTORERS.items()}
    return found


def draw_pairs(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """(better method, worse method) of one face's pairs, nine of them: of each kind, at drawn strengths."""
    names = list(RESTORERS)
    yield "hq", f"lq {rng.integers(1, 4)}"
    for strength in rng.permutation([1, 2, 3])[:2]:
        yield "hq", f"{rng.choice(names)} {strength}"
    steps = list(combinations(STRENGTHS, 2))
    weak, strong = steps[rng.integers(len(steps))]
    yield f"lq {weak}", f"lq {strong}"
    for weak, strong in (steps[place] for place in rng.permutation(len(steps))[:2]):
        name = rng.choice(names)
        yield f"{name} {weak}", f"{name} {strong}"
    for weak, strong in steps:
        first, second = rng.choice(names, 2, replace=False)
        yield f"{first} {weak}", f"{second} {strong}"


def describe_pair(methods: tuple[str, str]) -> tuple[str, str]:
    """(kind, strengths) of a pair for the table."""
    names, strengths = zip(*(method.partition(" ")[::2] for method in methods), strict=True)
    shown = " against ".join(sorted(strength for strength in strengths if strength))
    if "hq" in names:
        return f"ground truth against {'degraded' if 'lq' in names else 'restored'}", shown
    if "lq" in names:
        return "both degraded", shown
    return "both restored, " + ("by the same filter" if names[0] == names[1] else "by different filters"), shown


def write_dataset(folder: Path, n_faces: int, shuffle: bool, seed: int = 0) -> int:
    """A dataset folder as `annotate export` writes it, with the rows that reward reads; returns the number of pairs."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lots = np.random.default_rng([seed, 1])
    files = sorted(FACES.rglob("*.jpg"))
    rows = []
    for file in (files[place] for place in rng.permutation(len(files))[:n_faces]):
        photo = cv2.resize(read_image(file), (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
        candidates = make_candidates(np.asarray(photo, dtype=np.uint8), rng)
        stored: dict[str, str] = {}
        draw = int(hashlib.sha256(file.stem.encode()).hexdigest()[:8], 16) / 2**32
        split = next(name for name, end in SPLIT_SHARES if draw < end)
        for better, worse in draw_pairs(rng):
            for method in (better, worse):
                stored.setdefault(method, store(folder, candidates[method]))
            swap = bool(rng.integers(2))
            a, b = (worse, better) if swap else (better, worse)
            p_a = float(lots.integers(2)) if shuffle and split != "test" else float(not swap)
            rows.append(make_row(file.stem, split, {"a": a, "b": b}, stored, p_a))
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return len(rows)


def store(folder: Path, image: Pixels) -> str:
    """Write an image under its SHA-256; returns that."""
    _, encoded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    sha256 = hashlib.sha256(encoded.tobytes()).hexdigest()
    (folder / "images" / f"{sha256}.png").write_bytes(encoded.tobytes())
    return sha256


def make_row(source: str, split: str, methods: dict[str, str], stored: dict[str, str], p_a: float) -> dict[str, Any]:
    """A line of pairs.jsonl; the degradation stands in for the person who judged."""
    sides = {f"image_{side}": f"images/{stored[method]}.png" for side, method in methods.items()}
    return {
        "pair": hashlib.sha256(f"{source}/{methods['a']}/{methods['b']}".encode()).hexdigest()[:32],
        "source": source,
        "split": split,
        "group": source,
        "caption": None,
        **sides,
        "lq": None,
        "hq": None,
        **{f"sha256_{side}": stored[method] for side, method in methods.items()},
        "sha256_lq": None,
        "sha256_hq": None,
        "method_a": methods["a"],
        "method_b": methods["b"],
        "seed_a": 0,
        "seed_b": 0,
        "p_a": p_a,
        "tie": False,
        "origin": "human",
        "made_by": "known:degradation",
        "weight": 1.0,
        "agreement": None,
        "judgments": [],
    }


def train(dataset: Path, out: Path, data: Path, flags: list[str]) -> float:
    """Run the command that a person would type; returns its seconds."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "reward",
        "train",
        "--preset",
        "tiny",
        "--dataset",
        str(dataset),
        "--out",
        str(out),
    ]
    subprocess.run([*command, "--data", str(data), *flags], cwd=ROOT, check=True)
    return time.monotonic() - began


@torch.no_grad()
def score(checkpoint: Path, pairs: Pairs) -> npt.NDArray[np.bool_]:
    """(n,) whether the model prefers the better image."""
    model, images = load_model(checkpoint), PairImages(pairs)
    right = []
    for start in range(0, len(pairs), 64):
        rows = pairs.rows[start : start + 64]
        pixels = to_pixels(group_pairs([images[start + place] for place in range(len(rows))]), model.config)
        prompts = model.encode_prompts([row.caption for row in rows])
        a, b = ((features * prompts).sum(dim=1) for features in model.encode_pixels(pixels).chunk(2))
        right += [bool(margin > 0) == (row.p_a > 0.5) for margin, row in zip((a - b).tolist(), rows, strict=True)]
    return np.array(right)


def compare_metrics(pairs: Pairs) -> list[tuple[str, float]]:
    """(metric, share of pairs that it gets right with the better of its two signs), the best first."""
    columns = [column for column in measured_columns(load_metric_list("offline")) if not column.reference]
    prepare(columns, "cpu")
    paths = sorted({path for row in pairs.rows for path in (row.image_a, row.image_b)})
    vectors: dict[Path, npt.NDArray[np.float64]] = {}
    for path in paths:
        values = compute_values([Request(column.metric, 0) for column in columns], [read_image(path)])
        vectors[path] = np.array([np.nan if value.value is None else value.value for value in values])
    signs = np.array([1.0 if row.p_a > 0.5 else -1.0 for row in pairs.rows])[:, None]
    differences = np.array([vectors[row.image_a] - vectors[row.image_b] for row in pairs.rows]) * signs
    share = np.nanmean(differences > 0, axis=0)
    best = np.maximum(share, 1 - share)
    return [(columns[place].metric, float(best[place])) for place in np.argsort(-best)]


def print_table(pairs: Pairs, right: npt.NDArray[np.bool_]) -> None:
    """Accuracy by kind of pair and strength as Markdown."""
    kinds: dict[tuple[str, str], list[bool]] = {}
    for row, correct in zip(pairs.rows, right.tolist(), strict=True):
        kind, strengths = describe_pair((str(row.method_a), str(row.method_b)))
        for key in ((kind, strengths), (kind, "all"), ("all", "")):
            kinds.setdefault(key, []).append(correct)
    print("| pair | strengths | pairs | accuracy |\n|---|---|---|---|")
    for (kind, strengths), values in sorted(kinds.items()):
        print(f"| {kind} | {strengths} | {len(values):,} | {np.mean(values):.3f} |")


def main() -> None:
    """Make the dataset, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep dataset and checkpoints here (default: a temporary folder)")
    parser.add_argument("--faces", type=int, default=1000, help="photos, nine pairs each (default: 1000)")
    parser.add_argument("--shuffle", action="store_true", help="draw the answers of train and val by lot")
    parser.add_argument("--no-metrics", action="store_true", help="leave out the comparison with single metrics")
    args, flags = parser.parse_known_args()  # the others are those of `reward train`
    set_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        dataset = out / "dataset"
        if not dataset.exists():
            began = time.monotonic()
            count = write_dataset(dataset, args.faces, args.shuffle)
            print(f"{count:,} pairs of {args.faces:,} people made in {time.monotonic() - began:.0f} s")
        seconds = train(dataset, out / "checkpoints", out / "data", flags)
        test = load_dataset(dataset).select("test")
        right = score(out / "checkpoints" / "best", test)
        print(f"trained in {seconds:.0f} s; {right.mean():.3f} of {len(right):,} pairs of unseen people\n")
        print_table(test, right)
        if args.no_metrics:
            return
        places = [
            place for place, row in enumerate(test.rows) if is_restored(row.method_a) and is_restored(row.method_b)
        ]
        places = np.random.default_rng(0).permutation(places)[:METRIC_PAIRS].tolist()
        ranked = compare_metrics(Pairs(test.path, tuple(test.rows[place] for place in places)))
        print(
            f"\nOn {len(places)} test pairs of two restored images: the reward model {right[places].mean():.3f}; ",
            end="",
        )
        print(", ".join(f"{name} {share:.3f}" for name, share in ranked))


def is_restored(method: str | None) -> bool:
    """Whether one of the filters made it."""
    return str(method).partition(" ")[0] in RESTORERS


if __name__ == "__main__":
    main()
