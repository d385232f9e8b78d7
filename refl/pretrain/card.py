"""Write what a tiny restorer is beside its weights: training.json for programs, README.md for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from db.errors import UserError
from licences.terms import format_list
from runs.files import write_text_whole
from runs.licences import read_recorded

MEASURES = {"psnr": "PSNR (dB, higher is better)", "ssim": "SSIM (higher)", "gmsd": "GMSD (lower)"}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write training.json: the settings, the data's hash and counts, the step, what was measured."""
    write_text_whole(folder / "training.json", json.dumps(record, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """The training.json of a restorer's folder.

    Raises:
        UserError: missing or damaged.
    """
    path = folder / "training.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}). Give a folder that `python -m refl pretrain` wrote."
        ) from error
    return record


def write_card(folder: Path) -> None:
    """Write the model card, README.md, of what training.json says."""
    record = read_record(folder)
    model, train, faces, measured = record["model"], record["train"], record["faces"], record["measured"] or {}
    side = model["image_size_px"]
    lines = [
        "# Tiny restorer",
        "",
        f"Restores aligned faces of {side} × {side} and {2 * side} × {2 * side} pixels: a regression network, then",
        "latent diffusion under a ControlNet, in float16. It invents detail: a restored face is plausible, not",
        "evidence of a person's real appearance.",
        "",
        "## Data and terms",
        "",
        train["data_terms"] or "Not stated. The weights have the terms of the faces that they were trained on.",
        "",
        *format_list(read_recorded(folder.resolve())),
        "",
        f"{faces['trained']:,} faces trained on, {faces['held_out']:,} held out by file name; SHA-256 over all names",
        f"and contents {record['dataset_sha256'][:16]}….",
        "",
        "## Training",
        "",
        f"`python -m refl pretrain`: stage 1 {train['stage1_steps']:,} steps, autoencoder {train['vae_steps']:,},",
        f"diffusion {record['step']:,} of {train['diffusion_steps']:,}. All settings: `training.json`.",
        f"Degraded, at {side} pixels, by blur of {format_range(train['blur_sigma_px'])} px, shrinking",
        f"{format_range(train['downsample_factor'])} times, noise of {format_range(train['noise_std'])} (of 255) and",
        f"JPEG {format_range(train['jpeg_quality'])}.",
    ]
    rows = [
        f"| {label} | {measured[f'val/{name}_lq']:.4g} | {measured[f'val/{name}']:.4g} |"
        for name, label in MEASURES.items()
        if f"val/{name}" in measured
    ]
    if rows:
        lines += [
            "",
            f"Means over {min(train['validate_faces'], faces['held_out'])} held-out faces:",
            "",
            "| | degraded | restored |",
            "|---|---|---|",
            *rows,
        ]
    write_text_whole(folder / "README.md", "\n".join(lines) + "\n")


def format_range(limits: list[float]) -> str:
    """'0.2 to 2'."""
    return f"{limits[0]:g} to {limits[1]:g}"
