"""Degrade a folder of good faces into the LQ/HQ pairs that restorers are trained and judged on.

What is written is the layout that `python -m annotate import` reads: `lq/<name>.png`, `hq/` with the photos, and
`degradations.jsonl` with what was drawn for each. An image's degradation depends on the seed and its file name alone,
so that a folder can grow, and a part of it gives the same images as the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from db.errors import UserError
from refl.faces.degrade import (
    GFPGAN,
    PUBLISHED,
    SMALL,
    STRONG,
    Degradation,
    DegradationSettings,
    degrade,
    draw_degradation,
)
from refl.faces.photo_files import (
    PhotosRefused,
    check_photos,
    encode_png,
    find_photos,
    map_in_threads,
    read_photo,
    write_whole,
)
from runs.store import iterate_lines

PRESETS: Mapping[str, DegradationSettings] = {
    "published": PUBLISHED,
    "gfpgan": GFPGAN,
    "small": SMALL,
    "strong": STRONG,
}
LINES = "degradations.jsonl"


@dataclass
class DegradeReport:
    """Result of degrading a folder."""

    degraded: int = 0
    already: int = 0
    """Photos that an earlier call degraded."""


def make_degradation(settings: DegradationSettings, seed: int, name: str) -> Degradation:
    """Draw the degradation for the image of that name: the same wherever and whenever it is drawn."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogateescape")).digest()
    return draw_degradation(settings, np.random.default_rng(int.from_bytes(digest[:16], "big")))


def degrade_folder(
    folder: Path,
    out: Path,
    preset: str,
    seed: int,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DegradeReport:
    """Degrade every photo of a folder into `out`; what is there of an earlier call stays.

    Args:
        preset: one of PRESETS.
        threads: how many photos at a time; None for one per core.
        progress: called with (done, total) in steps: each photo is checked, then degraded.
    Raises:
        PhotosRefused: photos are unfit; nothing is written then.
        UserError: no photo, no such preset, `out` holds something else, or cannot be written.
    """
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}. Known: {', '.join(PRESETS)}.")
    if seed < 0:
        raise UserError(f"The seed is {seed}; give 0 or more.")
    photos = find_photos([folder])
    probes, unfit = check_photos(photos, lambda done, _: progress(done, 2 * len(photos)) if progress else None)
    if unfit:
        raise PhotosRefused(unfit, "Nothing was degraded; mend them or take them out of the folder.")
    asked: dict[str, Any] = {"preset": preset, "seed": seed}
    done = read_lines(out, asked)
    wanted, report = [], DegradeReport()
    for photo in photos:
        line = done.get(photo.name)
        sha256 = probes[photo].original_sha256 or probes[photo].sha256
        if line is not None and line["sha256"] != sha256:
            raise UserError(f"{photo} has changed since {out} was made from it; name another --out.")
        if line is None or not (out / line["lq"]).is_file() or not (out / line["hq"]).is_file():
            wanted.append((photo, sha256))
    report.already = len(photos) - len(wanted)
    if wanted:
        _append(out / LINES, "")  # first of all: it says whose folder this is

    def degrade_one(item: tuple[Path, str]) -> dict[str, Any]:
        photo, sha256 = item
        return {"image": photo.name, "sha256": sha256, **asked, **_degrade_photo(photo, out, preset, seed)}

    for line in map_in_threads(degrade_one, wanted, threads):
        if line["image"] not in done:
            _append(out / LINES, json.dumps(line) + "\n")
        report.degraded += 1
        if progress:
            progress(len(photos) + report.already + report.degraded, 2 * len(photos))
    return report


def _degrade_photo(photo: Path, out: Path, preset: str, seed: int) -> dict[str, Any]:
    """Write a photo's lq and hq; returns where they are and what was drawn."""
    pixels, content = read_photo(photo)
    degradation = make_degradation(PRESETS[preset], seed, photo.name)
    lq = degrade(pixels.astype(np.float32) / np.float32(255.0), degradation)
    converted = content.startswith(b"\x89PNG") and photo.suffix.lower() != ".png"
    places = {"lq": f"lq/{photo.stem}.png", "hq": f"hq/{photo.stem}{'.png' if converted else photo.suffix}"}
    write_whole(out / places["hq"], content)
    write_whole(out / places["lq"], encode_png(np.round(lq * 255.0).astype(np.uint8)))
    return {**places, "degradation": asdict(degradation)}


def _append(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); free some space.") from error


def read_lines(out: Path, asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines of an earlier call by image; a last one that a kill left half-written is cut off.

    Args:
        asked: preset and seed, which every line must have.
    Raises:
        UserError: `out` was made with other settings, or holds something else.
    """
    file = out / LINES
    if not file.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there and was not made by this command; name another --out.")
        return {}
    lines: dict[str, dict[str, Any]] = {}
    try:
        for line in iterate_lines(file):
            if {name: line[name] for name in asked} != asked:
                raise UserError(
                    f"{out} was made with preset {line['preset']} and seed {line['seed']}; name another --out."
                )
            lines[line["image"]] = line
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as what this command writes ({error}); name another --out.") from error
    return lines
