"""The folders of ../shared/cases/photos that trainings and scoring once refused or passed over without a word."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("torch", reason="needs torch: `make install`")


from db.errors import UserError
from refl.faces.photo_files import find_photos
from refl.pretrain.config import PretrainConfig
from refl.pretrain.data import read_faces
from refl.tune.data import find_faces
from reward.score.files_and_rows import find_images
from tests.making import find_case

STEPS = PretrainConfig(stage1_steps=1, vae_steps=1, diffusion_steps=1)
READERS = {
    "refl tune": lambda folder: [face.path for face in find_faces(folder)],
    "refl pretrain": lambda folder: [folder / name for name in read_faces([folder], 16, STEPS)[0].names],
    "refl restore, degrade": lambda folder: find_photos([folder]),
    "reward score": lambda folder: [item.path for item in find_images([folder])],
}


@pytest.mark.parametrize("reader", READERS)
def test_types_passed_over_are_named(reader: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = READERS[reader](find_case("photos/mixed_types"))
    assert [path.name for path in found] == ["a.png", "d.jfif"]
    assert "passed over 1 .tif, 1 .bmp (b.tif, c.bmp)" in caplog.text


@pytest.mark.parametrize("reader", READERS)
def test_hidden_files_are_passed_over(reader: str) -> None:
    found = READERS[reader](find_case("photos/faces_appledouble"))
    assert [path.name for path in found] == ["a0.jpg", "a1.jpg", "a2.jpg"]


@pytest.mark.parametrize("reader", ["refl tune", "reward score"])
def test_a_bad_caption_names_its_file(reader: str) -> None:
    folder = find_case("photos/faces_bad_caption")
    with pytest.raises(UserError, match=r"a0.txt: not UTF-8 text \(byte 0xf6, 'ö' in Windows-1252\)"):
        READERS[reader](folder)
