"""Restore faces to PNG files batch by batch, and record what decides their pixels; a continued evaluation keeps them.

The images of a method and set are `OUT/restored/SET/METHOD/SEED/00012-NAME.png`. Beside the folders of the seeds stand
`record.json`, what the pixels depend on, and `seconds.jsonl`, how long each batch took. Where the record says something
else than what is asked for now, all images are made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from db.errors import UserError
from pixels.read import RgbImage, read_rgb
from refl.evaluate.faces import FaceSet, split_batches
from refl.faces.grey import keep_grey
from refl.faces.photo_files import encode_png, map_in_threads, write_whole
from refl.restore.restore import RestoreMethod, explain_small_memory, to_images
from refl.restorers.content import name_changes
from runs.file_cache import read_json
from runs.files import append_line

log = logging.getLogger(__name__)

MAX_NAME = 80
"""Letters of a face's name in its file's: file systems end at 255 bytes."""


@dataclass(frozen=True)
class Restored:
    """The images of one method and seed of a set."""

    faces: FaceSet
    method: str
    seed: int
    files: Sequence[Path]
    """One per face, in the order of the faces."""
    keys: Sequence[str]
    """Inputs that a value of an image depends on besides the metric: pixels, ground truth, what was restored, caption;
    hashed."""


def restore_set(
    method: RestoreMethod,
    faces: FaceSet,
    seeds: Sequence[int],
    out: Path,
    batch_size: int,
    done: Callable[[int], None] = lambda _images: None,
) -> list[Restored]:
    """Every face with every seed; without chance there is one image per face, under the first seed.

    Args:
        out: folder of the evaluation; what is there already is not restored again.
        done: called with the number of images of each batch.
    Raises:
        UserError: a batch is too large for the memory, the restorer gives values that are not numbers, or the folder of
            the images holds other files.
    """
    folder = open_folder(out, method, faces)
    made = []
    for seed in seeds if method.restorer.is_random else seeds[:1]:
        files = list_files(folder, faces, seed)
        for places in split_batches(len(files), batch_size):
            # whole batches, as they were before: another batch may round a pixel otherwise
            if not all(files[place].is_file() for place in places):
                lq, began = faces.read_lq(places), time.monotonic()
                images = restore_batch(method, lq, [_seed_of(seed, place) for place in places])
                _add_seconds(folder, len(places), time.monotonic() - began)
                write_images([files[place] for place in places], images)
            done(len(places))
        made.append(Restored(faces, method.name, seed, files, compute_keys(files, faces)))
    return made


def restore_batch(method: RestoreMethod, lq: Tensor, seeds: Sequence[int]) -> list[RgbImage]:
    """(S, S, 3) uint8 of each of (N, 3, S, S), without colour where that has none.

    Raises:
        UserError: the batch is too large for the memory, or the restorer gives values that are not numbers.
    """
    with explain_small_memory(method, len(lq), "--dtype bfloat16 or --device cpu"), torch.inference_mode():
        restored = method.restorer.restore(lq.to(method.device), seeds, method.steps)
        if not bool(torch.isfinite(restored).all()):
            raise UserError(f"{method.name} gives values that are not numbers; try --dtype float32.")
        return [keep_grey(*pair) for pair in zip(to_images(restored), to_images(lq), strict=True)]


def _seed_of(seed: int, place: int) -> int:
    """The noise of one face, the same for every method and step of a comparison."""
    return int(np.random.default_rng([seed, place]).integers(2**63 - 1))


def open_folder(out: Path, method: RestoreMethod, faces: FaceSet) -> Path:
    """The folder of a method's images of a set, emptied where they are of something else.

    The same faces with more behind them are not a reason: the first keep their places.

    Raises:
        UserError: the folder holds files and no record, so that it is none of ours.
    """
    folder = out / "restored" / faces.name / to_file_name(method.name)
    wanted = json.loads(json.dumps({**faces.describe(), "settings": method.settings}))
    if not (folder / "record.json").is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files of something else; move them away, or name another --out.")
        _write_record(folder, wanted)
        return folder
    before = read_json(folder / "record.json")
    changed = find_changes(before, wanted)
    if changed:
        log.warning("%s: made with other %s than now; restored anew", folder, " and ".join(changed))
        for child in folder.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
        (folder / "seconds.jsonl").unlink(missing_ok=True)
    if changed or len(wanted["faces"]) > len(before["faces"]):
        _write_record(folder, wanted)  # last, so that one who is killed before finds them changed again
    return folder


def find_changes(before: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """List in words how two records differ; of faces only those that both have."""
    known = before.get("faces") if isinstance(before.get("faces"), list) else []
    count = min(len(known or []), len(wanted["faces"]))
    changed = ["settings"] if name_changes(before.get("settings") or {}, wanted["settings"]) else []
    changed += [name for name in ("size_px", "degradation") if before.get(name) != wanted[name]]
    if not known or known[:count] != wanted["faces"][:count]:
        changed.append("faces")
    return changed


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / "record.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def to_file_name(name: str) -> str:
    """A name as a part of a path: letters, digits and _ . + - of it."""
    return re.sub(r"[^\w.+-]+", "-", name)[:MAX_NAME].lstrip(".") or "-"


def list_files(folder: Path, faces: FaceSet, seed: int) -> list[Path]:
    """List the path of each face's image."""
    return [folder / str(seed) / f"{place:05d}-{to_file_name(name)}.png" for place, name in enumerate(faces.names)]


def write_images(files: Sequence[Path], images: Sequence[RgbImage]) -> None:
    """Write PNG files, each whole or not at all."""

    def write(item: tuple[Path, RgbImage]) -> None:
        write_whole(item[0], encode_png(item[1]))

    for _ in map_in_threads(write, zip(files, images, strict=True)):
        pass


def read_images(files: Sequence[Path]) -> list[RgbImage]:
    """(S, S, 3) uint8 of each file."""
    return list(map_in_threads(read_rgb, files))


def compute_keys(files: Sequence[Path], faces: FaceSet) -> list[str]:
    """See `Restored.keys`."""
    degraded = json.dumps(faces.describe()["degradation"], sort_keys=True) if faces.degradation else ""

    def compute(place: int) -> str:
        face = faces.faces[place]
        digest = hashlib.sha256(files[place].read_bytes())
        digest.update(f"\0{face.sha256}\0{face.caption or ''}".encode())
        if degraded:
            digest.update(f"\0{place}\0{degraded}".encode())
        if reading := faces.readings[place]:
            digest.update(f"\0{reading}".encode())
        return digest.hexdigest()[:32]

    return list(map_in_threads(compute, range(len(files))))


def _add_seconds(folder: Path, images: int, seconds: float) -> None:
    append_line(folder / "seconds.jsonl", json.dumps({"images": images, "seconds": seconds}))


def read_seconds(folder: Path) -> float:
    """Seconds that a restorer took for an image; NaN where that was not noted."""
    images, seconds = 0, 0.0
    try:
        lines = (folder / "seconds.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        try:
            noted = json.loads(line)
        except ValueError:
            continue  # a kill left it half-written
        images, seconds = images + noted["images"], seconds + noted["seconds"]
    return seconds / images if images else math.nan
