"""Restorers of one pass from weight files as spandrel knows them."""

from __future__ import annotations

import pytest

pytest.importorskip("spandrel", reason="needs spandrel: `make install`")

import torch
from safetensors.torch import save_file

from db.errors import UserError
from refl.restorers.load import load_restorer

BF16_BOUND = 0.01


@pytest.fixture(scope="module")
def swinir_file(small_swinir_state, tmp_path_factory):
    """A SwinIR that takes and gives one size, drops parts at random in training, and nests its tensors."""
    path = tmp_path_factory.mktemp("feedforward") / "swinir.pth"
    torch.save({"params": small_swinir_state}, path)
    return path


@pytest.fixture(scope="module")
def small_swinir_state(small_swinir):
    torch.manual_seed(1)
    return small_swinir(depths=[2, 2], num_heads=[2, 2])


@pytest.fixture(scope="module")
def swinir(swinir_file):
    return load_restorer(f"feedforward:{swinir_file}")


def test_a_local_file_restores(swinir, faces, swinir_file):
    lq = faces(2)
    restored = swinir.restore(lq, [0, 1])
    assert restored.shape == lq.shape
    assert restored.dtype == torch.float32
    assert 0 <= restored.min() <= restored.max() <= 1
    assert swinir.settings["architecture"] == "SwinIR"
    assert set(swinir.settings["weights"]) == {"swinir.pth"}
    assert swinir.settings["restorer"] == f"feedforward:{swinir_file}"


def test_it_is_in_evaluation_mode(swinir, faces):
    assert not any(module.training for module in swinir.modules())
    lq = faces(1)
    assert torch.equal(swinir.restore(lq, [0]), swinir.restore(lq, [1]))
    assert not swinir.is_random


def test_its_result_may_take_part_in_a_gradient(swinir, faces):
    weight = torch.ones(1, requires_grad=True)
    (swinir.restore(faces(1), [0]) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("size", [(1, 1), (40, 24), (65, 64)])
def test_any_size_is_padded_and_cut(swinir, size):
    assert swinir.restore(torch.rand(1, 3, *size), [0]).shape == (1, 3, *size)


def test_a_batch_of_four_equals_four_alone(swinir, faces):
    lq = faces(4)
    alone = torch.cat([swinir.restore(lq[i : i + 1], [0]) for i in range(4)])
    assert (swinir.restore(lq, [0] * 4) - alone).abs().max() < 1e-5


def test_safetensors_and_half_precision(small_swinir_state, swinir, tmp_path, faces):
    save_file({key: value.contiguous() for key, value in small_swinir_state.items()}, tmp_path / "swinir.safetensors")
    half = load_restorer(f"feedforward:{tmp_path / 'swinir.safetensors'}", dtype=torch.bfloat16)
    lq = faces(2)
    restored = half.restore(lq, [0, 0])
    assert restored.dtype == torch.float32
    assert 0 < (restored - swinir.restore(lq, [0, 0])).abs().mean() < BF16_BOUND
    with pytest.raises(UserError, match="SwinIR overflows in float16"):
        load_restorer(f"feedforward:{tmp_path / 'swinir.safetensors'}", dtype=torch.float16)


def test_a_face_restorer_with_a_codebook_restores(tmp_path, faces):
    from spandrel.architectures.RestoreFormer import RestoreFormer

    model = RestoreFormer(
        n_embed=32, embed_dim=32, ch=32, ch_mult=(1, 1, 2, 2, 2, 2), num_res_blocks=1, z_channels=32, resolution=512
    )
    torch.save({"params_ema": model.state_dict()}, tmp_path / "RestoreFormer.pth")
    restorer = load_restorer(f"feedforward:{tmp_path / 'RestoreFormer.pth'}")
    assert restorer.settings["architecture"] == "RestoreFormer"
    assert restorer.restore(faces(1, 64), [0]).isfinite().all()


def test_what_enlarges_is_no_restorer(small_swinir, tmp_path):
    torch.save(small_swinir(start_unshuffle=4, img_size=64), tmp_path / "twice.pth")
    with pytest.raises(UserError, match="enlarges ×2"):
        load_restorer(f"feedforward:{tmp_path / 'twice.pth'}")


def test_what_spandrel_does_not_know_is_refused(tmp_path):
    torch.save({"layer.weight": torch.ones(2, 2)}, tmp_path / "unknown.pth")
    with pytest.raises(UserError, match="not an architecture that spandrel knows"):
        load_restorer(f"feedforward:{tmp_path / 'unknown.pth'}")


def test_a_file_cut_short_is_refused(swinir_file, tmp_path):
    (tmp_path / "cut.pth").write_bytes(swinir_file.read_bytes()[:5000])
    with pytest.raises(UserError, match="is cut off"):
        load_restorer(f"feedforward:{tmp_path / 'cut.pth'}")


def test_weights_that_do_not_fit_their_architecture_are_refused(small_swinir_state, tmp_path):
    state = {key: value for key, value in small_swinir_state.items() if key != "conv_last.bias"}
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(UserError, match=r"do not fit it.*conv_last\.bias"):
        load_restorer(f"feedforward:{tmp_path / 'lacking.pth'}")


def test_more_steps_are_refused(swinir, faces):
    with pytest.raises(ValueError, match="one step, not 2"):
        swinir.restore(faces(1), [0], steps=2)
