"""Make the inputs of a rehearsal: faces with captions, and a dataset folder of labelled pairs of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

SIZE_PX = 512
COARSE_PX = 8
"""Side of the noise that is enlarged: what is drawn is smooth."""
CAPTION = "a photo of a person's face"
SOURCES = 12
SPLITS = {4: "val", 5: "test"}
"""Of every sixth source; the others are train."""
NOISE = (8.0, 40.0)
"""Standard deviations, of 255, in the better and the worse image of a pair."""

Pixels = npt.NDArray[np.uint8]


def draw_face(seed: int, size_px: int = SIZE_PX) -> Pixels:
    """(S, S, 3) of smooth colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (COARSE_PX, COARSE_PX, 3), dtype=np.uint8)
    return np.asarray(PilImage.fromarray(coarse).resize((size_px, size_px), PilImage.Resampling.BICUBIC))


def write_faces(folder: Path, count: int, first_seed: int, size_px: int = SIZE_PX) -> None:
    """Faces with a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        PilImage.fromarray(draw_face(first_seed + number, size_px)).save(folder / f"face{number}.png")
        (folder / f"face{number}.txt").write_text(CAPTION + "\n", encoding="utf-8")


def write_dataset(folder: Path, size_px: int = SIZE_PX, sources: int = SOURCES) -> None:
    """A dataset folder as `annotate export` writes it: a pair per source, in which people prefer less noise."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = [make_row(folder, number, size_px) for number in range(sources)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_row(folder: Path, number: int, size_px: int) -> dict[str, object]:
    """One label; its images are written."""
    rng = np.random.default_rng(1_000 + number)
    face = draw_face(number, size_px).astype(float)
    stds = NOISE if number % 2 else NOISE[::-1]
    images = [
        write_image(folder, np.clip(face + rng.normal(0, std, face.shape), 0, 255).astype(np.uint8)) for std in stds
    ]
    source = f"face{number}"
    return {
        "pair": f"{number:03}",
        "source": source,
        "split": SPLITS.get(number % 6, "train"),
        "group": source,
        "caption": CAPTION,
        **{f"image_{side}": f"images/{sha256}.png" for side, sha256 in zip("ab", images, strict=True)},
        **{f"sha256_{side}": sha256 for side, sha256 in zip("ab", images, strict=True)},
        **{f"method_{side}": f"noise{std:.0f}" for side, std in zip("ab", stds, strict=True)},
        **{f"{name}{kind}": None for kind in ("lq", "hq") for name in ("", "sha256_")},
        "seed_a": 0,
        "seed_b": 0,
        "p_a": float(stds[0] < stds[1]),
        "tie": False,
        "origin": "human",
        "made_by": "majority",
        "weight": 1.0,
        "agreement": 1.0,
        "judgments": [],
    }


def write_image(folder: Path, pixels: Pixels) -> str:
    """The SHA-256 under which its PNG lies in the folder's images."""
    unnamed = folder / "images" / "unnamed.png"
    PilImage.fromarray(pixels).save(unnamed)
    sha256 = hashlib.sha256(unnamed.read_bytes()).hexdigest()
    unnamed.replace(folder / "images" / f"{sha256}.png")
    return sha256
