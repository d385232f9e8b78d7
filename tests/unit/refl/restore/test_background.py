from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("spandrel", reason="needs spandrel: `make install`")

import refl.restore.background
from db.errors import UserError
from refl.restore.background import enlarge, load_enlarger


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small network of Real-ESRGAN's compact kind, twice enlarging, random weights."""
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    network = Compact(num_feat=8, num_conv=2, upscale=2)
    torch.save({"params": network.state_dict()}, tmp_path / "small.pth")
    return tmp_path / "small.pth"


def test_a_photo_in_tiles_is_the_photo_in_one(weights, monkeypatch) -> None:
    model = load_enlarger(weights, "cpu")
    photo = np.random.default_rng(0).integers(0, 256, (53, 81, 3), dtype=np.uint8)
    whole = enlarge(photo, model)
    assert whole.shape == (106, 162, 3)
    monkeypatch.setattr(refl.restore.background, "TILE_PX", 20)
    monkeypatch.setattr(refl.restore.background, "OVERLAP_PX", 8)  # more than the network's four 3 x 3 layers reach
    assert np.array_equal(enlarge(photo, model), whole)
    with torch.inference_mode():
        direct = model(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).clamp(0, 1) * 255
    assert np.abs(whole - direct.numpy()).max() <= 0.51


def test_a_photo_without_colour_is_enlarged_without(weights) -> None:
    model = load_enlarger(weights, "cpu")
    photo = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    assert np.ptp(enlarge(photo, model), axis=2).any()
    assert not np.ptp(enlarge(np.repeat(photo[..., :1], 3, axis=2), model), axis=2).any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (33, 2)])
def test_small_photos_pass(weights, height, width) -> None:
    assert enlarge(np.zeros((height, width, 3), np.uint8), load_enlarger(weights, "cpu")).shape == (
        2 * height,
        2 * width,
        3,
    )


def test_too_large_a_result_is_refused(weights, monkeypatch) -> None:
    monkeypatch.setattr(refl.restore.background, "MAX_OUTPUT_PIXELS", 100)
    with pytest.raises(UserError, match="6 x 5 pixels enlarged 2 times are above the limit of 100"):
        enlarge(np.zeros((5, 6, 3), np.uint8), load_enlarger(weights, "cpu"))


def test_what_enlarges_nothing_is_refused(tmp_path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not an architecture that spandrel knows"):
        load_enlarger(tmp_path / "other.pth", "cpu")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text.pth: is a text"):
        load_enlarger(tmp_path / "text.pth", "cpu")
