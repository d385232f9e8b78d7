"""Hashes of pixels: equal for equal pictures, kept, and computed anew where the file of them is damaged."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

import db.pixel_hashes
from db.images import probe_bytes, write_image
from db.pixel_hashes import KNOWN, hash_pixels


def store(data: Path, pixels: np.ndarray, kind: str = "PNG", **options: int) -> tuple[str, str]:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, kind, **options)
    probe = probe_bytes(buffer.getvalue(), "test")
    write_image(data, probe, buffer.getvalue())
    return probe.sha256, probe.suffix


def test_equal_pixels_of_other_bytes(data: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    files = [
        store(data, pixels),
        store(data, pixels, compress_level=0),
        store(data, pixels, "WEBP", lossless=1),
        store(data, pixels.reshape(16, 8, 3)),
        store(data, pixels ^ np.uint8(1)),
    ]
    found = hash_pixels(data, files)
    assert len({sha256 for sha256, _ in files}) == 5
    same = [found[sha256] for sha256, _ in files]
    assert same[0] == same[1] == same[2]
    assert len(set(same)) == 3


def test_hashes_are_kept_and_whole_lines_alone_count(data: Path, monkeypatch) -> None:
    files = [store(data, np.full((4, 4, 3), value, np.uint8)) for value in range(3)]
    found = hash_pixels(data, files)
    with monkeypatch.context() as patch:
        patch.setattr(db.pixel_hashes, "open_rgb", None)
        assert hash_pixels(data, files[:2]) == {sha256: found[sha256] for sha256, _ in files[:2]}
    (data / KNOWN).write_text((data / KNOWN).read_text()[:-10] + "\nnonsense\n\xff")
    assert hash_pixels(data, files) == found
    assert hash_pixels(data, files) == found


def test_a_missing_file_has_none(data: Path) -> None:
    assert hash_pixels(data, [("0" * 64, ".png")]) == {}
