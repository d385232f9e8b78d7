"""The tiny restorer's folder and the one that ships: small, strict, quick, and better than what it is given."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.data import astronaut

from db.errors import UserError
from refl.pretrain.card import read_record
from refl.pretrain.config import PretrainConfig
from refl.pretrain.data import is_held_out, make_pairs, read_faces
from refl.pretrain.loss import compute_gmsd, compute_ssim
from refl.pretrain.phases import to_pixels
from refl.restorers.tiny import SHIPPED, load_tiny, make_tiny, save_tiny
from refl.restorers.tiny_config import TinyConfig


def test_a_folder_comes_back_in_float16_of_every_number(make_micro, micro, tmp_path):
    restorer = make_micro()
    save_tiny(restorer, micro, tmp_path)
    loaded = load_tiny(tmp_path)
    for name, value in restorer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    assert loaded.base == str(tmp_path)
    assert not loaded.trainable_parameters()
    assert not loaded.training
    again = load_tiny(tmp_path)
    lq = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.restore(lq, [0]), loaded.restore(lq, [0]))


def test_a_damaged_folder_is_refused(make_micro, micro, tmp_path):
    save_tiny(make_micro(), micro, tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = config.read_text()
    for text, message in [
        ("{", "not JSON"),
        (json.dumps({**json.loads(good), "stepz": 3}), "stepz: Extra inputs"),
        (json.dumps({**json.loads(good), "norm_groups": 3}), "must be multiples of norm_groups, 3"),
        (json.dumps({**json.loads(good), "latent_channels": 2}), "not the weights of"),
    ]:
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            load_tiny(tmp_path)
    config.write_text(good)
    save_file(dict(list(load_file(weights).items())[1:]), weights)
    with pytest.raises(UserError, match="not the weights of"):
        load_tiny(tmp_path)
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="is empty; get it again"):
        load_tiny(tmp_path)
    with pytest.raises(UserError, match="Give a folder of a tiny restorer"):
        load_tiny(tmp_path / "absent")


def test_the_shipped_restorer_is_small_and_says_where_it_comes_from():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 16_000_000
    assert sum(parameter.numel() for parameter in load_tiny().parameters()) <= 8_000_000
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert "non-commercial" in card
    assert "UTKFace" in card


@pytest.mark.parametrize("size_px", [64, 128])
def test_the_shipped_restorer_makes_a_face_better_than_it_was_given(size_px):
    face = cv2.resize(astronaut()[0:200, 125:325], (size_px, size_px), interpolation=cv2.INTER_AREA)
    hq = torch.from_numpy(face).permute(2, 0, 1)[None].float() / 255
    small = cv2.resize(face, (size_px // 2, size_px // 2), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    noisy = small + 8 * np.random.default_rng(0).standard_normal(small.shape, dtype=np.float32)
    degraded = cv2.resize(noisy.clip(0, 255) / 255, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    lq = torch.from_numpy(degraded).permute(2, 0, 1)[None].float()
    restored = load_tiny().restore(lq, [0])
    assert float(compute_ssim(restored, hq)) > float(compute_ssim(lq, hq))
    assert float(compute_gmsd(restored, hq)) < float(compute_gmsd(lq, hq))


def test_widths_must_divide():
    with pytest.raises(ValueError, match="must be multiples of norm_groups"):
        make_tiny(TinyConfig(unet_channels=(64, 96, 100)))


def test_held_out_faces_gain_beyond_the_interval(shared_faces: Path, tmp_path: Path):
    """On a part of the held-out faces, as experiments/tiny_restorer.py measures on all of them."""
    config = PretrainConfig.model_validate(read_record(SHIPPED)["train"])
    files = sorted(path for path in (shared_faces / "train").rglob("*.jpg") if is_held_out(path.name, config))
    assert len(files) >= 100
    for path in files[::2]:
        (tmp_path / path.name).symlink_to(path)
    restorer = load_tiny()
    pairs = make_pairs(read_faces([tmp_path], restorer.image_size_px, config)[0], restorer.image_size_px, config)
    hq, lq = (to_pixels(images, torch.device("cpu")) for images in (pairs.hq, pairs.lq))
    restored = restorer.restore(lq, [0] * len(lq))
    for gained in (
        compute_ssim(restored, hq) - compute_ssim(lq, hq),
        compute_gmsd(lq, hq) - compute_gmsd(restored, hq),
    ):
        assert float(gained.mean()) > 1.96 * float(gained.std()) / len(gained) ** 0.5
