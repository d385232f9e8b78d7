"""Make what `experiments.reward_worth` learns from: faces, images that people could choose between, SIMULATED answers.

Real faces at 64 px, a seed's own draw each: `train` of those that the shipped tiny restorer was pretrained on, `val`
and half of `test` of those held out from that, the other half of `test` of the London set, which nothing here has seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor

from dataset.labelled import LabelledPair, Origin, Split
from experiments.loop import SHARED, SIZE_PX, split_pretraining
from experiments.worth_taste import Taste, blur
from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.config import load_refl_config
from refl.tune.data import DegradedFaces, Face, stack
from reward.data import Pairs, to_tensor
from training.images import read_image

SPLITS: tuple[Split, ...] = ("train", "val", "test")
CONSTRUCTED: Origin = "constructed"
NOISE = 0.15
"""Share of the SIMULATED annotator's answers that are drawn by lot."""
BLUR_PX = 1.0
"""Of the unsharp mask."""
AMOUNTS = (-0.8, 2.0)
"""Of the unsharp mask, from over-smoothed to over-sharpened; 0 changes nothing."""
GRAIN = (2 / 255, 10 / 255)
"""Standard deviation of added grain."""
FEW_STEPS = 4
BATCH = 16
DRAW = 2**40 + 1
"""The draw of the faces' degradation, which no training step has."""


@dataclass(frozen=True)
class Sizes:
    """How many faces of each kind."""

    train: int = 320
    val: int = 20
    test: int = 40
    """From each of the two sources."""


@dataclass(frozen=True)
class FaceSet:
    """Faces of one split, in memory and as files."""

    faces: list[Face]
    hq: Tensor
    """(N, 3, 64, 64) in [0, 1], as are the low-quality photos."""
    lq: Tensor
    folder: Path

    def path(self, method: str, place: int) -> Path:
        """Where a face's image of that method is; `hq` and `lq` are methods too."""
        return self.folder / method / self.faces[place].path.name

    def write(self, method: str, images: Tensor) -> None:
        """Write (N, 3, 64, 64) images in [0, 1] as PNG."""
        (self.folder / method).mkdir(parents=True, exist_ok=True)
        for place, image in enumerate(to_bytes(images)):
            PilImage.fromarray(image).save(self.path(method, place))

    def read(self, method: str) -> Tensor:
        """(N, 3, 64, 64) in [0, 1], what `write` wrote."""
        return torch.stack([to_tensor(self.path(method, place)) for place in range(len(self.faces))]).float() / 255


def to_bytes(images: Tensor) -> np.ndarray:
    """(N, H, W, 3) uint8 of (N, 3, H, W) in [0, 1]."""
    found: np.ndarray = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return found


def make_faces(folder: Path, seed: int, sizes: Sizes) -> dict[Split, FaceSet]:
    """The seed's faces of each split, shrunk and degraded as in ReFL; read again where they are there."""
    trained, held_out = split_pretraining()
    london = sorted((SHARED / "gt" / "london512").rglob("*.jpg"))
    rng = np.random.default_rng(seed)
    trained, held_out, london = (_shuffle(paths, rng) for paths in (trained, held_out, _one_each(london)))
    chosen: dict[Split, list[Path]] = {
        "train": trained[: sizes.train],
        "val": held_out[: sizes.val],
        "test": [*held_out[sizes.val :][: sizes.test], *london[: sizes.test]],
    }
    return {split: _read_split(folder / split, paths, seed) for split, paths in chosen.items()}


def _shuffle(paths: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    return [paths[place] for place in rng.permutation(len(paths))]


def _one_each(paths: Sequence[Path]) -> list[Path]:
    """The first photo of each person of the London set, whose files begin with the person's number."""
    return list({path.stem.split("_")[0]: path for path in reversed(paths)}.values())


def _read_split(folder: Path, paths: Sequence[Path], seed: int) -> FaceSet:
    (folder / "hq").mkdir(parents=True, exist_ok=True)
    faces = []
    for path in paths:
        face = Face(path.stem, folder / "hq" / f"{path.stem}.png", None)
        if not face.path.exists():
            small = cv2.resize(read_image(path), (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
            PilImage.fromarray(small).save(face.path)
        faces.append(face)
    degraded = DegradedFaces(faces, SIZE_PX, load_refl_config("tiny-refl").degradation, seed)
    found = FaceSet(faces, *stack([degraded[DRAW, place] for place in range(len(faces))]), folder)
    found.write("lq", found.lq)
    return found


@torch.no_grad()
def restore(restorer: DiffusionRestorer, lq: Tensor, seed: int, steps: int | None = None) -> Tensor:
    """(N, 3, 64, 64) in [0, 1]; the noise is the seed's and the place's."""
    places = range(0, len(lq), BATCH)
    seeds = [[1000 * seed + place for place in range(start, min(start + BATCH, len(lq)))] for start in places]
    parts = zip(torch.split(lq, BATCH), seeds, strict=True)
    return torch.cat([restorer.restore(part, own, steps) for part, own in parts])


def make_candidates(restorer: DiffusionRestorer, faces: FaceSet, seed: int) -> dict[str, Tensor]:
    """(N, 3, 64, 64) restored images by method: what the SIMULATED annotator may choose between.

    The restorer's own output, its few-step output and its first stage alone; its output through a drawn unsharp mask,
    twice, and with grain; and two other persons' outputs, through a drawn unsharp mask: perhaps sharper, but others.
    """
    rng = np.random.default_rng([seed, len(faces.faces)])
    own = restore(restorer, faces.lq, seed)
    with torch.no_grad():
        smooth = restorer.clean(faces.lq).clamp(0, 1)
    grain = torch.from_numpy(rng.uniform(*GRAIN, (len(own), 1, 1, 1)) * rng.normal(size=(len(own), 1, *own.shape[2:])))
    return {
        "own": own,
        "few": restore(restorer, faces.lq, seed + 500, FEW_STEPS),
        "smooth": smooth,
        "mask1": sharpen(own, _draw_amounts(rng, len(own))),
        "mask2": sharpen(own, _draw_amounts(rng, len(own))),
        "grain": (own + grain.float()).clamp(0, 1),
        "other1": sharpen(own.roll(1, dims=0), _draw_amounts(rng, len(own))),
        "other2": sharpen(own.roll(2, dims=0), _draw_amounts(rng, len(own))),
    }


def _draw_amounts(rng: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(rng.uniform(*AMOUNTS, count)).float()


def sharpen(images: Tensor, amounts: Tensor) -> Tensor:
    """(N, 3, H, W) through an unsharp mask of (N,) amounts; a negative one smooths."""
    return (images + amounts.view(-1, 1, 1, 1) * (images - blur(images, BLUR_PX))).clamp(0, 1)


def answer(
    faces: FaceSet, candidates: dict[str, Tensor], taste: Taste, count: int, seed: int, split: Split, noise: float
) -> list[LabelledPair]:
    """Rows of SIMULATED answers to `count` pairs drawn from all, a share of the answers by lot."""
    rng = np.random.default_rng([seed, count, SPLITS.index(split)])
    names = list(candidates)
    liked = {name: taste(images, faces.hq) for name, images in candidates.items()}
    every = [(p, a, b) for p in range(len(faces.faces)) for a in range(len(names)) for b in range(a)]
    if count > len(every):
        raise ValueError(f"{count} answers are asked for, but there are only {len(every)} pairs.")
    rows = []
    for number in rng.permutation(len(every))[:count]:
        place, *both = every[number]
        a, b = (names[one] for one in rng.permutation(both))
        wins = bool(rng.integers(2)) if rng.random() < noise else bool(liked[a][place] > liked[b][place])
        rows.append(make_row(faces, place, a, b, float(wins), split))
    return rows


def construct(faces: FaceSet, methods: Sequence[str], count: int, seed: int) -> list[LabelledPair]:
    """Rows that nobody judged: an image of a face against a drawn other person's, by the same or another method.

    Whose face it is says which is better; how sharp either is does not. Each other person is a candidate's file.
    """
    rng = np.random.default_rng([seed, count])
    rows = []
    for number in range(count):
        place, other = rng.choice(len(faces.faces), 2, replace=False)
        a, b = rng.choice(methods, 2)
        row = make_row(faces, int(place), str(a), str(b), 1.0, "train")
        key, image = f"{row.source} constructed {number}", faces.path(str(b), int(other))
        rows.append(replace(row, pair=key, image_b=image, origin=CONSTRUCTED, made_by="other_person"))
    return rows


def make_row(faces: FaceSet, place: int, a: str, b: str, p_a: float, split: Split) -> LabelledPair:
    """One SIMULATED answer."""
    name = faces.faces[place].name
    return LabelledPair(
        pair=f"{name} {a} {b}",
        image_a=faces.path(a, place),
        image_b=faces.path(b, place),
        sha256_a=None,
        sha256_b=None,
        p_a=p_a,
        weight=1.0,
        origin="human",
        made_by="SIMULATED annotator",
        agreement=None,
        caption=None,
        source=name,
        group=name,
        split=split,
        method_a=a,
        method_b=b,
        lq=faces.path("lq", place),
        hq=faces.path("hq", place),
    )


def make_pairs(
    folder: Path,
    sets: dict[Split, FaceSet],
    load: Callable[[], DiffusionRestorer],
    taste: Taste,
    seed: int,
    counts: dict[Split, int],
) -> tuple[dict[Split, dict[str, Tensor]], Pairs]:
    """Candidates of each split, made once and kept as files, and the answers to `counts` pairs of train and val.

    The val answers are noise-free, as the judge's are.
    """
    done = folder / "candidates.json"
    names = json.loads(done.read_text()) if done.exists() else []
    if not names:
        restorer = load()
        for faces in sets.values():
            found = make_candidates(restorer, faces, seed)
            names = list(found)
            for name, images in found.items():
                faces.write(name, images)
        done.write_text(json.dumps(names))
    candidates = {split: {name: faces.read(name) for name in names} for split, faces in sets.items()}
    rows = []
    for split, count in counts.items():
        noise = NOISE if split == "train" else 0.0
        rows += answer(sets[split], candidates[split], taste, count, seed, split, noise)
    return candidates, Pairs(folder, tuple(rows))
