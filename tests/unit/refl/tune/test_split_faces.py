"""Which faces ReFL trains on: split by person, and never those that the dataset holds out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # so that the folder's tests are left out together where it is not installed
from PIL import Image as PilImage

from dataset.labelled import LabelledPair
from db.errors import UserError
from refl.tune.data import find_faces, leave_out_held_out, split_faces
from reward.data import Pairs


def write_face(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PilImage.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def make_pairs(folder: Path, **fields: Any) -> Pairs:
    row: dict[str, Any] = dict.fromkeys(LabelledPair.__dataclass_fields__)
    row |= {"pair": "p", "source": "photo", "group": "person", "split": "test", **fields}
    return Pairs(folder, (LabelledPair(**row),))


def test_a_person_and_a_copy_are_on_one_side(tmp_path: Path) -> None:
    for person in range(40):
        for number in range(3):
            write_face(tmp_path / f"person{person}" / f"{number}.png", 100 * person + number)
    for number in range(40):
        write_face(tmp_path / f"alone{number}.png", 5000 + number)
        write_face(tmp_path / f"copy{number}.png", 5000 + number)
    train, held_out = split_faces(find_faces(tmp_path), 0, 0.25)
    assert len(train) + len(held_out) == 200
    assert 20 < len(held_out) < 90
    for side, other in ((train, held_out), (held_out, train)):
        folders = {face.path.parent.name for face in side if "/" in face.name}
        assert not folders & {face.path.parent.name for face in other if "/" in face.name}
        numbers = {face.path.stem.strip("alonecpy") for face in side if "/" not in face.name}
        assert not numbers & {face.path.stem.strip("alonecpy") for face in other if "/" not in face.name}
    again, _ = split_faces(find_faces(tmp_path)[::2], 0, 0.25)
    assert {face.name for face in again} <= {face.name for face in train} | {f.name for f in again if "copy" in f.name}


def test_the_datasets_held_out_photos_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "faces"
    for name, seed in (("same_bytes", 1), ("photo", 2), ("person/a", 3), ("other", 4)):
        write_face(folder / f"{name}.png", seed)
    hq = write_face(tmp_path / "dataset" / "hq.png", 1)
    faces, known = find_faces(folder), tmp_path / "checked.json"
    with caplog.at_level("INFO"):
        kept = leave_out_held_out(faces, make_pairs(tmp_path, hq=hq), known)
    assert [face.name for face in kept] == ["other.png"]
    (folder / "same_bytes.png").write_bytes((folder / "same_bytes.png").read_bytes() + b"behind the end")
    assert leave_out_held_out(faces, make_pairs(tmp_path, hq=hq), known) == kept
    assert "3 of 4 faces are of photos that the dataset holds out" in caplog.text
    assert len(leave_out_held_out(faces, make_pairs(tmp_path, hq=hq, split="train"), known)) == 4
    with pytest.raises(UserError, match="All 1 faces are of photos"):
        leave_out_held_out(faces[-1:], make_pairs(tmp_path, hq=hq), known)


def test_a_continued_training_reads_no_file_that_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.images

    faces = [write_face(tmp_path / f"{number}.png", number) for number in range(3)]
    known, read = tmp_path / "checked.json", []
    decode = training.images.decode_image
    monkeypatch.setattr(
        training.images, "decode_image", lambda content, path: read.append(path.name) or decode(content, path)
    )
    first = training.images.check_images(dict.fromkeys(faces), known)
    assert sorted(read) == ["0.png", "1.png", "2.png"]
    read.clear()
    assert training.images.check_images(dict.fromkeys(faces), known) == first
    assert read == []
    write_face(faces[1], 77)
    assert training.images.check_images(dict.fromkeys(faces), known) != first
    assert read == ["1.png"]
    known.write_text("{ half")
    read.clear()
    training.images.check_images(dict.fromkeys(faces), known)
    assert len(read) == 3
