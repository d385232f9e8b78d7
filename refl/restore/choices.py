"""List available restorers, and their weight files that are here, without importing torch."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from refl.restorers.record import RECORD_FILE

MANIFEST = Path(__file__).parents[1] / "published" / "weights.toml"
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "tiny": (),
    "diffbir-v1": (("sd-2.1-base", "sd-2.1-base-safetensors"), ("diffbir-swinir-face",), ("diffbir-v1-face",)),
    "diffbir-v2.1": (("sd-2.1-zsnr",), ("diffbir-swinir-face",), ("diffbir-v2.1",)),
    "osediff": (("sd-2.1-base", "sd-2.1-base-safetensors"), ("osediff-face",)),
    "pmrf": (("pmrf",),),
    "hypir": (("sd-2.1-base", "sd-2.1-base-safetensors"), ("hypir-sd2",)),
    "osdface": (
        ("sd-2.1-base", "sd-2.1-base-safetensors"),
        ("osdface-lora",),
        ("osdface-prompt",),
        ("osdface-embedding",),
    ),
    "pisasr": (("sd-2.1-base", "sd-2.1-base-safetensors"), ("pisasr",)),
    "gdpo": (("sd-2.1-base", "sd-2.1-base-safetensors"), ("gdpo-unet",), ("gdpo-vae",)),
    "feedforward:gfpgan-v1.4": (("gfpgan-v1.4",),),
    "feedforward:restoreformer": (("restoreformer",),),
    "feedforward:codeformer": (("codeformer",),),
    "onnx:gfpgan-v1.4-onnx": (("gfpgan-v1.4-onnx",),),
    "onnx:gpen-512-onnx": (("gpen-512-onnx",),),
    "onnx:gpen-256-onnx": (("gpen-256-onnx",),),
    "onnx:codeformer-onnx": (("codeformer-onnx",),),
    "onnx:restoreformer-onnx": (("restoreformer-onnx",),),
    "onnx:restoreformer-pp-onnx": (("restoreformer-pp-onnx",),),
}
"""Value for `--method`, and the manifest's names of the files that it needs: one of each group."""
TUNED = ("runs/*/**", "restorers/*/tuned", "rounds/*/restorer/tuned")
"""Places where trainings leave weights: in a run's folder, in --out as it is without being named, in a round's."""
MAX_TUNED = 50


@dataclass(frozen=True)
class MethodChoice:
    """A restorer to offer."""

    asked: str
    """Value for `--method`."""
    words: str
    is_here: bool
    """Whether its weight files lie in the weights folder; others are looked for elsewhere, or downloaded."""


def list_methods(data: Path) -> list[MethodChoice]:
    """The restorers that are known by name, those that are here first, then the tuned ones in this data folder."""
    files = {name: entry["file"] for name, entry in tomllib.loads(MANIFEST.read_text(encoding="utf-8")).items()}
    choices = []
    for asked, groups in NEEDS.items():
        here = all(any((data / "weights" / files[name]).is_file() for name in group) for group in groups)
        choices.append(MethodChoice(asked, asked if here else f"{asked} (weights not in the data folder)", here))
    return sorted(choices, key=lambda choice: not choice.is_here) + _list_tuned(data)


def _list_tuned(data: Path) -> list[MethodChoice]:
    """The folders that a training of a restorer left in the data folder, the latest first."""
    found = [file for place in TUNED for file in data.glob(f"{place}/{RECORD_FILE}")]
    found.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    folders = [file.parent for file in found[:MAX_TUNED]]
    return [MethodChoice(str(folder.resolve()), f"{_describe_place(folder, data)}: tuned", True) for folder in folders]


def _describe_place(folder: Path, data: Path) -> str:
    """'run 12/tuned', 'restorers/tiny-0a1b2c3d/tuned'"""
    return str(folder.relative_to(data)).replace("runs/", "run ")
