"""Train on pairs whose answer is known: `python -m experiments.reward_known_pairs [--out DIR] [--faces N]`.

Photos of ../shared/faces/train/ffhq256 (one per person) and, for all 85 inputs of ../shared/faces/restored, what
one of the real restorers made of it, all at 112 px, are the ground truth. Each is degraded in two of four ways (blur,
noise, JPEG, or all three as published) at three strengths, and each of these restored by four classical filters. The
better image is known by construction: the ground truth, else the one from the weaker degradation of the same way,
whatever filter restored it; of two restored images also the one nearer to the ground truth by PSNR, so that no answer
is against the pixels. `python -m reward train --preset tiny` learns from 70 % of the people; the table says how often
it is right on the 20 % that neither training nor the choice of the checkpoint saw, beside the best single metric of
the list `offline` that needs no reference, its sign chosen with hindsight. The 4 people of whom `restored` has the
photo itself are all among those unseen, with what the real restorers made of them.

With --lots N the answers of the train and val splits are drawn by lot, N times, and a model is trained on each draw:
what is learnt then must be chance. The images have little in common but how degraded they are, so a single such model
is right or wrong on most pairs together; only the mean over many draws must be near one half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t as student

from metrics.accuracy import bootstrap_mean
from metrics.compute import Request, compute_values, prepare, set_threads
from metrics.lists import load_metric_list, measured_columns
from refl.faces.degrade import DegradationSettings, FloatImage, degrade, draw_degradation
from reward.data import PairImages, Pairs, group_pairs, load_dataset, to_pixels
from reward.model.checkpoint import load_model
from training.images import read_image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "faces"
SIZE_PX = 112
"""As the preset `tiny` sees faces: resizing would take the noise away."""
NO_NOISE: dict[str, Any] = {"blur_kernel_px": 21, "downsample_factor": (1, 1), "noise_std": (0, 0)}
NO_BLUR: dict[str, Any] = {"blur_kernel_px": 1, "blur_sigma_px": (0.1, 0.1), "downsample_factor": (1, 1)}
WAYS: dict[str, tuple[DegradationSettings, ...]] = {
    "blur": tuple(
        DegradationSettings(**NO_NOISE, blur_sigma_px=sigma_px, jpeg_quality=(95, 100))
        for sigma_px in ((0.6, 0.9), (1.2, 1.6), (2.1, 2.8))
    ),
    "noise": tuple(
        DegradationSettings(**NO_BLUR, noise_std=noise_std, jpeg_quality=(95, 100))
        for noise_std in ((4, 6), (12, 16), (28, 36))
    ),
    "jpeg": tuple(
        DegradationSettings(**NO_BLUR, noise_std=(0, 0), jpeg_quality=quality)
        for quality in ((60, 75), (28, 38), (12, 18))
    ),
    "published": tuple(
        DegradationSettings(
            blur_kernel_px=21,
            blur_sigma_px=sigma_px,
            downsample_factor=factor,
            noise_std=noise_std,
            jpeg_quality=quality,
        )
        for sigma_px, factor, noise_std, quality in (
            ((0.6, 0.9), (1.3, 1.8), (2, 4), (80, 92)),
            ((1.2, 1.7), (2.2, 3.0), (5, 8), (55, 70)),
            ((2.2, 3.0), (3.8, 5.0), (10, 14), (30, 45)),
        )
    ),
}
"""Strengths 1, 2, 3 of each way, in ranges that do not overlap, so that the weaker keeps more of the face."""
LEVELS = (1, 2, 3)
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


@dataclass(frozen=True)
class Face:
    """The ground truth of one person's pairs."""

    name: str
    split: str
    photo: Pixels


def read_faces(n_faces: int, rng: np.random.Generator) -> Iterator[Face]:
    """So many photos of ffhq256, then the outputs of real restorers; the split is a hash of the name."""
    photos = sorted((SHARED / "train" / "ffhq256").rglob("*.jpg"))
    files = [photos[place] for place in rng.permutation(len(photos))[:n_faces]]
    with_photo = {path.stem for path in (SHARED / "restored" / "hq").iterdir()}
    for lq in sorted((SHARED / "restored" / "lq").iterdir()):
        made = sorted(
            path for path in (SHARED / "restored").glob(f"*/{lq.name}") if path.parent.name not in ("lq", "hq")
        )
        if lq.stem not in with_photo:
            files.append(made[rng.integers(len(made))])
    for file in files:
        draw = int(hashlib.sha256(file.stem.encode()).hexdigest()[:8], 16) / 2**32
        yield Face(file.stem, next(name for name, end in SPLIT_SHARES if draw < end), read_small(file))


def read_small(file: Path) -> Pixels:
    """(SIZE_PX, SIZE_PX, 3) RGB."""
    return np.asarray(cv2.resize(read_image(file), (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def make_candidates(hq: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """The ground truth and, of two ways, 3 degraded and 12 restored images: 'hq', 'lq blur 2', 'median blur 2'."""
    found = {"hq": hq}
    truth: FloatImage = hq.astype(np.float32) / np.float32(255)
    for way in rng.choice(list(WAYS), 2, replace=False):
        for level, settings in zip(LEVELS, WAYS[way], strict=True):
            lq = np.round(degrade(truth, draw_degradation(settings, rng)) * 255).astype(np.uint8)
            found[f"lq {way} {level}"] = lq
            found |= {f"{name} {way} {level}": restore(lq) for name, restore in RESTORERS.items()}
    return found


def draw_pairs(candidates: dict[str, Pixels], rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """(better method, worse method) of one face's pairs, nine of them where that many are sure."""
    degraded = [name for name in candidates if name.startswith("lq")]
    restored = [name for name in candidates if name != "hq" and name not in degraded]
    yield "hq", str(rng.choice(degraded))
    for name in rng.choice(restored, 2, replace=False):
        yield "hq", str(name)
    yield next(pair for pair in draw_order(degraded, rng) if is_weaker(*pair))
    sure = (pair for pair in draw_order(restored, rng) if is_weaker(*pair) and is_nearer(candidates, *pair))
    yield from islice(sure, 5)


def draw_order(names: list[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """All ordered pairs of the names, in a drawn order."""
    pairs = list(permutations(names, 2))
    return [pairs[place] for place in rng.permutation(len(pairs))]


def is_weaker(better: str, worse: str) -> bool:
    """Whether the two come from the same way of degrading, the first from the weaker."""
    (_, way, level), (_, other_way, other_level) = better.split(), worse.split()
    return way == other_way and level < other_level


def is_nearer(candidates: dict[str, Pixels], better: str, worse: str) -> bool:
    """Whether the first image is nearer to the ground truth by PSNR."""
    return cv2.PSNR(candidates[better], candidates["hq"]) > cv2.PSNR(candidates[worse], candidates["hq"])


def describe_pair(methods: tuple[str, str]) -> tuple[str, str, str]:
    """(kind, way, strengths) of a pair for the table."""
    if methods[0].startswith("real ") or methods[1].startswith("real "):
        return "photo against a real restorer's output", "", ""
    parts = [method.split() for method in methods if method != "hq"]
    way, shown = parts[0][1], " against ".join(sorted(part[2] for part in parts))
    names = {part[0] for part in parts}
    if len(parts) == 1:
        return f"ground truth against {'degraded' if 'lq' in names else 'restored'}", way, shown
    if "lq" in names:
        return "both degraded", way, shown
    return "both restored, by " + ("the same filter" if len(names) == 1 else "different filters"), way, shown


def write_dataset(folder: Path, n_faces: int, seed: int = 0) -> int:
    """A dataset folder as `annotate export` writes it, with the rows that reward reads; returns the number of pairs."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for face in read_faces(n_faces, rng):
        candidates = make_candidates(face.photo, rng)
        rows += write_pairs(folder, face, candidates, draw_pairs(candidates, rng), rng)
    for file in sorted((SHARED / "restored" / "hq").iterdir()):
        made = sorted(
            path for path in (SHARED / "restored").glob(f"*/{file.name}") if path.parent.name not in ("lq", "hq")
        )
        candidates = {"hq": read_small(file)} | {f"real {path.parent.name}": read_small(path) for path in made}
        face = Face(file.stem, "test", candidates["hq"])
        rows += write_pairs(folder, face, candidates, [("hq", name) for name in candidates if name != "hq"], rng)
    write_rows(folder, rows)
    return len(rows)


def write_pairs(
    folder: Path,
    face: Face,
    candidates: dict[str, Pixels],
    pairs: Iterable[tuple[str, str]],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Store the images of pairs (better, worse); returns their rows, a and b drawn."""
    stored: dict[str, str] = {}
    rows = []
    for better, worse in pairs:
        for method in (better, worse):
            if method not in stored:
                stored[method] = store(folder, candidates[method])
        swap = bool(rng.integers(2))
        a, b = (worse, better) if swap else (better, worse)
        rows.append(make_row(face.name, face.split, {"a": a, "b": b}, stored, float(not swap)))
    return rows


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The dataset's pairs.jsonl."""
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def draw_lots(dataset: Path, folder: Path, seed: int) -> Path:
    """The dataset once more in `folder`, the answers of train and val drawn by lot; its images are linked to."""
    lots = np.random.default_rng([seed, 1])
    rows = [json.loads(line) for line in (dataset / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    folder.mkdir()
    (folder / "images").symlink_to((dataset / "images").resolve())
    write_rows(folder, [row if row["split"] == "test" else {**row, "p_a": float(lots.integers(2))} for row in rows])
    return folder


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


def compare_metrics(pairs: Pairs) -> dict[str, npt.NDArray[np.bool_]]:
    """(n,) whether each metric is right, with the better of its two signs on these pairs; the best first."""
    columns = [column for column in measured_columns(load_metric_list("offline")) if not column.reference]
    prepare(columns, "cpu")
    paths = sorted({path for row in pairs.rows for path in (row.image_a, row.image_b)})
    vectors: dict[Path, npt.NDArray[np.float64]] = {}
    for path in paths:
        values = compute_values([Request(column.metric, 0) for column in columns], [read_image(path)])
        vectors[path] = np.array([np.nan if value.value is None else value.value for value in values])
    signs = np.array([1.0 if row.p_a > 0.5 else -1.0 for row in pairs.rows])[:, None]
    margins = np.array([vectors[row.image_a] - vectors[row.image_b] for row in pairs.rows]) * signs
    right = np.where((margins > 0).mean(axis=0) >= (margins < 0).mean(axis=0), margins > 0, margins < 0)
    order = np.argsort(-right.mean(axis=0), kind="stable")
    return {columns[place].metric: right[:, place] for place in order}


def show_share(right: npt.NDArray[np.bool_], pairs: Pairs) -> str:
    """'0.912 [0.890, 0.930]', the interval from resampling people."""
    sources = np.array([row.source for row in pairs.rows])
    mean, low, high = bootstrap_mean(right.astype(float), np.ones(len(right)), sources, 0)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def print_table(pairs: Pairs, right: npt.NDArray[np.bool_]) -> None:
    """Accuracy by kind of pair, way of degrading and strength as Markdown."""
    kinds: dict[tuple[str, str, str], list[bool]] = {}
    for row, correct in zip(pairs.rows, right.tolist(), strict=True):
        kind, way, strengths = describe_pair((str(row.method_a), str(row.method_b)))
        for key in dict.fromkeys(((kind, way, ""), (kind, "", strengths), (kind, "", ""), ("all", "", ""))):
            kinds.setdefault(key, []).append(correct)
    print("| pair | degraded by | strengths | pairs | accuracy |\n|---|---|---|---|---|")
    for (kind, way, strengths), values in sorted(kinds.items()):
        print(f"| {kind} | {way or 'all'} | {strengths or 'all'} | {len(values):,} | {np.mean(values):.3f} |")


def print_comparison(test: Pairs, right: npt.NDArray[np.bool_]) -> None:
    """The model beside the single metrics on pairs of two restored images."""
    both = [place for place, row in enumerate(test.rows) if is_restored(row.method_a) and is_restored(row.method_b)]
    places = np.random.default_rng(0).permutation(both)[:METRIC_PAIRS].tolist()
    pairs = Pairs(test.path, tuple(test.rows[place] for place in places))
    ranked = compare_metrics(pairs)
    ahead = right[places].astype(float) - next(iter(ranked.values()))
    sources = np.array([row.source for row in pairs.rows])
    mean, low, high = bootstrap_mean(ahead, np.ones(len(ahead)), sources, 0)
    print(f"\nOn {len(places)} test pairs of two restored images: the reward model {show_share(right[places], pairs)};")
    print(", ".join(f"{name} {show_share(values, pairs)}" for name, values in ranked.items()))
    print(f"The reward model is ahead of the best of them by {mean:+.3f} [{low:+.3f}, {high:+.3f}]")


def print_lots(dataset: Path, out: Path, draws: int, flags: list[str]) -> None:
    """Train on each draw of lots; the share that each model gets right, and their mean."""
    shares: list[float] = []
    for draw in range(draws):
        folder = draw_lots(dataset, out / f"lots-{draw}", draw)
        train(folder, out / f"lots-{draw}-checkpoints", out / "data", [*flags, "--seed", str(draw)])
        shares.append(
            float(score(out / f"lots-{draw}-checkpoints" / "best", load_dataset(folder).select("test")).mean())
        )
        print(f"lots {draw}: {shares[-1]:.3f}", flush=True)
    reach = float(student.ppf(0.975, draws - 1)) * np.std(shares, ddof=1) / np.sqrt(draws) if draws > 1 else np.nan
    print(f"mean of {draws} draws of lots: {np.mean(shares):.3f} ± {reach:.3f}")


def main() -> None:
    """Make the dataset, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep dataset and checkpoints here (default: a temporary folder)")
    parser.add_argument("--faces", type=int, default=1000, help="photos of ffhq256, nine pairs each (default: 1000)")
    parser.add_argument("--lots", type=int, default=0, metavar="N", help="train on N draws of lots instead")
    args, flags = parser.parse_known_args()  # the others are those of `reward train`
    set_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        dataset = out / "dataset"
        if not dataset.exists():
            began = time.monotonic()
            count = write_dataset(dataset, args.faces)
            print(f"{count:,} pairs made in {time.monotonic() - began:.0f} s", flush=True)
        if args.lots:
            print_lots(dataset, out, args.lots, flags)
            return
        seconds = train(dataset, out / "checkpoints", out / "data", flags)
        test = load_dataset(dataset).select("test")
        right = score(out / "checkpoints" / "best", test)
        print(f"trained in {seconds:.0f} s; {show_share(right, test)} of {len(right):,} pairs of unseen people\n")
        print_table(test, right)
        print_comparison(test, right)


def is_restored(method: str | None) -> bool:
    """Whether one of the filters made it."""
    return str(method).partition(" ")[0] in RESTORERS


if __name__ == "__main__":
    main()
