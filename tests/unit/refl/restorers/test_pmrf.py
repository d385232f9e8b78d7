"""PMRF from a file as it is published, with a small network."""

from __future__ import annotations

import pytest

pytest.importorskip("spandrel", reason="needs spandrel: `make install`")

import torch
from safetensors.torch import load_file, save_file

from db.errors import UserError
from refl.published.hdit import HDiT, HDiTShape
from refl.restorers import pmrf
from refl.restorers.load import get_restorer_files, load_restorer, method_name
from refl.restorers.outline import Outline, outline_restorer
from refl.restorers.surface import make_generators

SMALL = HDiTShape(widths=(16, 16, 16), depths=(1, 1, 1), head_width=8, kernel=7, mapping_width=8)
BF16_BOUND = 0.02


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, small_swinir):
    """A file of it, with what the published one holds of its training besides."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pmrf") / "pmrf.safetensors"
    state = {f"model.{name}": value for name, value in HDiT(SMALL).state_dict().items()}
    state |= {f"mmse_model.{name}": value for name, value in small_swinir().items()}
    state |= {f"{name}.inception.fc.weight": torch.ones(2, 2) for name in ("fid", "inception_score")}
    save_file(state, path)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(pmrf, "SHAPE", SMALL)


def test_it_follows_the_velocity_from_the_noised_mean(small_file, faces):
    restorer = load_restorer("pmrf", weights_dir=small_file.parent)
    lq = faces(2)
    with torch.no_grad():
        x = restorer.mean(lq).clamp(0, 1)
        x = x + 0.1 * torch.stack([torch.randn(3, 64, 64, generator=one) for one in make_generators([5, 6])])
        for step in range(25):
            x = x + restorer.velocity(x, torch.full((2,), step / 25)) / 25
    restored = restorer.restore(lq, [5, 6])
    torch.testing.assert_close(restored, x.clamp(0, 1), atol=1e-5, rtol=0)
    assert restorer.settings == {
        "restorer": "pmrf",
        "steps": 25,
        "noise_std": 0.1,
        "weights": {"pmrf.safetensors": restorer.weights["pmrf.safetensors"]},
    }
    assert outline_restorer("pmrf", small_file.parent) == Outline(512, 64, True)
    assert (restorer.image_size_px, restorer.multiple_px, restorer.is_random) == (512, 64, True)


def test_seeds_count_and_batches_do_not(small_file, faces):
    restorer = load_restorer("pmrf", weights_dir=small_file.parent, steps=2)
    lq = faces(2)
    both = restorer.restore(lq, [1, 2])
    torch.testing.assert_close(restorer.restore(lq[1:], [2]), both[1:], atol=1e-5, rtol=0)
    assert not torch.allclose(restorer.restore(lq[1:], [3]), both[1:], atol=1e-2)
    assert restorer.default_steps == 2
    assert not torch.equal(restorer.restore(lq, [1, 2], 3), both)
    for wrong in (lambda: restorer.restore(lq, [1, 2], 0), lambda: restorer.restore(lq[:, :, :32], [1, 2])):
        with pytest.raises(ValueError, match=r"at least one step|multiples of 64"):
            wrong()


def test_it_sees_to_its_dtype(small_file, faces):
    whole = load_restorer("pmrf", weights_dir=small_file.parent, steps=2)
    half = load_restorer("pmrf", weights_dir=small_file.parent, steps=2, dtype=torch.bfloat16)
    restored = half.restore(faces(1), [0])
    assert restored.dtype == torch.float32
    difference = (restored - whole.restore(faces(1), [0])).abs().max()
    assert 0 < difference < BF16_BOUND


def test_other_files_are_refused(small_file, tmp_path):
    state = load_file(small_file)
    for changed, what in (
        ({**state, "optimizer.step": torch.ones(1)}, r"holds optimizer\.step, where PMRF has model\.\*"),
        ({name: value for name, value in state.items() if name[0] != "m"}, r"holds fid\.inception"),
        ({name: value for name, value in state.items() if "qkv" not in name}, r"qkv_proj\.weight is missing"),
        ({**state, "model.patch_in.proj.weight": torch.ones(8, 48)}, r"patch_in\.proj\.weight is \[8, 48\], not"),
        ({name: value for name, value in state.items() if "conv_last" not in name}, "SwinIR is wanted here"),
    ):
        save_file(changed, tmp_path / "pmrf.safetensors")
        with pytest.raises(UserError, match=what):
            load_restorer("pmrf", weights_dir=tmp_path)


def test_its_file_is_asked_for(tmp_path, weights_dir):
    assert method_name("pmrf") == "pmrf"
    with pytest.raises(UserError, match=r"pmrf\.safetensors is not here"):
        get_restorer_files(["pmrf"], tmp_path)
    with pytest.raises(UserError, match=r"There is no restorer 'pmrf:x'"):
        method_name("pmrf:x")
