"""Fixtures shared by all tests: a fresh database, small photos made on the spot, the shared faces where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from db.session import Database, open_database

SHARED_FACES = Path(__file__).resolve().parents[2] / "shared" / "faces"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An empty data folder."""
    return tmp_path / "data"


@pytest.fixture
def database(data: Path) -> Iterator[Database]:
    """A fresh, migrated SQLite database in the data folder."""
    opened = open_database(data)
    yield opened
    opened.close()


@pytest.fixture
def shared_faces() -> Path:
    """The folder of real faces; the test is skipped where it is absent."""
    if not SHARED_FACES.is_dir():
        pytest.skip("needs ../shared/faces, which is not beside this checkout")
    return SHARED_FACES


def write_photo(path: Path, seed: int, size_px: tuple[int, int] = (24, 32)) -> Path:
    """A small colourful image file, different for each seed; the suffix gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size_px[1], size_px[0], 3), dtype=np.uint8)
    PilImage.fromarray(pixels).save(path)
    return path


@pytest.fixture
def restored_folder(tmp_path: Path) -> Path:
    """Restorers' outputs as they write them: 4 photos, lq and hq, 3 methods of which one lacks a photo."""
    folder = tmp_path / "restored"
    for number in range(4):
        stem = f"face{number}"
        write_photo(folder / "lq" / f"{stem}.png", number)
        write_photo(folder / "hq" / f"{stem}.png", 100 + number)
        for place, method in enumerate(("bicubic", "gfpgan", "codeformer")):
            if not (method == "codeformer" and number == 3):
                write_photo(folder / method / f"{stem}.png", 1000 * (place + 1) + number)
        (folder / "lq" / f"{stem}.txt").write_text(f"portrait number {number}\n", encoding="utf-8")
    return folder
