"""What is said of a restorer before it is loaded is what it is."""

from __future__ import annotations

import pytest
import torch

from db.errors import UserError
from refl.restorers.load import load_restorer
from refl.restorers.outline import Outline, outline_restorer


@pytest.mark.parametrize("asked", ["tiny", "diffbir-v1", "diffbir-v2.1", "osediff", "feedforward:swinir", "tuned"])
def test_the_outline_is_the_loaded_ones(asked, weights_dir, tmp_path, small_swinir):
    if asked == "feedforward:swinir":
        torch.save(small_swinir(), tmp_path / "swinir.pth")
        asked = f"feedforward:{tmp_path / 'swinir.pth'}"
    elif asked == "tuned":
        restorer = load_restorer("tiny")
        restorer.set_trainable("lora", rank=1)
        restorer.save_trained(tmp_path / "tuned")
        asked = str(tmp_path / "tuned")
    outline = outline_restorer(asked, weights_dir)
    restorer = load_restorer(asked, weights_dir=weights_dir)
    assert outline == Outline(restorer.image_size_px, restorer.multiple_px, restorer.is_random)


@pytest.mark.parametrize("asked", ["diffbir-v1", "osediff", "feedforward:gfpgan-v1.4"])
def test_a_missing_file_is_found(asked, weights_dir, tmp_path):
    with pytest.raises(UserError, match="is not here"):
        outline_restorer(asked, tmp_path)
