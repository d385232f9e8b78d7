"""Image files of a dataset as 8-bit RGB, and the check of all of them before anything is trained on them."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import UnidentifiedImageError

from runs import UserError

log = logging.getLogger(__name__)

RgbImage = npt.NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
MAX_NAMED = 3
SECONDS_BETWEEN_LINES = 10.0


def read_image(path: Path) -> RgbImage:
    """(H, W, 3) uint8 RGB, as the file has it: no rotation, no resizing.

    Raises:
        UserError: missing, not a PNG, JPEG or WebP image, damaged, or above MAX_PIXELS; names the file.
    """
    return decode_image(_read_bytes(path), path)


def decode_image(content: bytes, path: Path) -> RgbImage:
    """As `read_image`, of bytes in memory; `path` stands in the errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limit below refuses them.
            image = PilImage.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} pixels, above the limit of {MAX_PIXELS:,}.")
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a PNG, JPEG or WebP image. Export or download the dataset again.") from error
    except PilImage.DecompressionBombError as error:  # Pillow's own limit, met before ours can be looked at
        raise UserError(f"{path}: far more pixels than the limit of {MAX_PIXELS:,}.") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise UserError(f"{path}: damaged image ({error}). Export or download the dataset again.") from error


def check_images(files: Mapping[Path, str | None]) -> dict[Path, str]:
    """Read and decode every file once, in threads, so that none fails or changes silently in the middle of training.

    Args:
        files: image files, each with the SHA-256 that it must have, None where that is not known.
    Returns:
        the SHA-256 of each file.
    Raises:
        UserError: a file is missing, damaged or another one than the dataset says; the first few are named.
    """

    def check(path: Path) -> tuple[str, str]:
        """(SHA-256, fault); the fault is empty where there is none."""
        try:
            content = _read_bytes(path)
            sha256 = hashlib.sha256(content).hexdigest()
            if files[path] not in (None, sha256):
                return sha256, f"{path}: another file than the dataset was made with (SHA-256 {sha256[:12]}…)."
            decode_image(content, path)
        except UserError as error:
            return "", str(error)
        return sha256, ""

    found: dict[Path, str] = {}
    faults: list[str] = []
    said = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, (path, (sha256, fault)) in enumerate(zip(files, pool.map(check, files), strict=True), 1):
            found[path] = sha256
            if fault:
                faults.append(fault)
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log.info("%s of %s images checked", f"{done:,}", f"{len(files):,}")
    if faults:
        more = f" And {len(faults) - MAX_NAMED:,} more of {len(files):,} images." if len(faults) > MAX_NAMED else ""
        raise UserError(" ".join(faults[:MAX_NAMED]) + more)
    return found


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Export or download the dataset again.") from error
