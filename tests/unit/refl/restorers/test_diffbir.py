"""DiffBIR from small files in the published formats: loading, sampling, schedules against formulas written here."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from db.errors import UserError
from refl.published.convert import export_control
from refl.published.shapes import UNetShape, make_control
from refl.restorers.diffbir import load_stage1
from refl.restorers.load import load_restorer

STEPS = 4
ALIKE = 2e-4
"""Largest difference of a pixel in [0, 1] between an image restored alone and in a batch; 2.8e-5 was seen."""
BF16_BOUND = 0.005
"""Largest mean difference of pixels in [0, 1] between bfloat16 and float32 over a short trajectory."""


def alphas_by_hand(zero_snr: bool) -> np.ndarray:
    """Cumulative products of 1 - beta, where sqrt(beta) is linear; rescaled by arXiv:2305.08891, algorithm 1."""
    root = math.sqrt(0.00085) + np.arange(1000) / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))
    alphas = np.exp(np.cumsum(np.log(1 - root**2)))
    if zero_snr:
        signal = np.sqrt(alphas)
        alphas = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    return alphas


@pytest.fixture(scope="module")
def v1(weights_dir):
    return load_restorer("diffbir-v1", weights_dir=weights_dir, steps=STEPS)


@pytest.fixture(scope="module")
def v21(weights_dir):
    return load_restorer("diffbir-v2.1", weights_dir=weights_dir, steps=STEPS)


def test_the_published_files_become_a_restorer(v1, faces):
    lq = faces(2)
    restored = v1.restore(lq, [3, 4])
    assert restored.shape == lq.shape
    assert restored.dtype == torch.float32
    assert 0 <= restored.min() <= restored.max() <= 1
    assert not restored.requires_grad
    assert v1.multiple_px == 64
    assert v1.is_random
    assert not v1.training
    assert not any(parameter.requires_grad for parameter in v1.parameters())


def test_its_settings_name_every_file_by_checksum(v1, weights_dir):
    from metrics.download import compute_sha256

    files = ("v2-1_512-ema-pruned.ckpt", "v1_face.pth", "face_swinir_v1.ckpt")
    assert v1.settings["weights"] == {name: compute_sha256(weights_dir / name) for name in files}
    assert v1.settings["restorer"] == "diffbir-v1"
    assert v1.settings["steps"] == STEPS
    assert v1.settings["eta"] == 1.0
    assert v1.settings["color_fix"] == "wavelet"
    assert v1.settings["prediction"] == "epsilon"


def test_same_seed_same_pixels_and_another_seed_others(v1, faces):
    lq = faces(1)
    assert torch.equal(v1.restore(lq, [7]), v1.restore(lq, [7]))
    assert (v1.restore(lq, [7]) - v1.restore(lq, [8])).abs().max() > 0.01


def test_a_batch_of_four_equals_four_alone(v1, faces):
    lq = faces(4)
    together = v1.restore(lq, [1, 2, 3, 4])
    alone = torch.cat([v1.restore(lq[i : i + 1], [i + 1]) for i in range(4)])
    assert (together - alone).abs().max() < ALIKE


def test_bfloat16_is_close_to_float32(v1, weights_dir, faces):
    lq = faces(2)
    half = load_restorer("diffbir-v1", weights_dir=weights_dir, steps=STEPS, dtype=torch.bfloat16)
    assert next(half.unet.parameters()).dtype == torch.bfloat16
    restored = half.restore(lq, [1, 2])
    assert restored.dtype == torch.float32
    assert (restored - v1.restore(lq, [1, 2])).abs().mean() < BF16_BOUND


def test_the_control_net_steers(v1, faces):
    lq = faces(1)
    steered, net = v1.restore(lq, [1]), v1.control
    v1.control = copy.deepcopy(net)
    torch.nn.init.zeros_(v1.control.controlnet_mid_block.weight)
    try:
        assert not torch.equal(v1.restore(lq, [1]), steered)
    finally:
        v1.control = net


@pytest.mark.parametrize("asked", ["diffbir-v1:diffbir-refl", "diffbir-v1:{folder}/diffbir_refl.pt"])
def test_a_tuned_control_net_takes_the_published_ones_place(weights_dir, v1, asked):
    asked = asked.format(folder=weights_dir)
    tuned = load_restorer(asked, weights_dir=weights_dir)
    assert "diffbir_refl.pt" in tuned.settings["weights"]
    assert tuned.settings["restorer"] == asked
    assert not torch.equal(tuned.control.conv_in.weight, v1.control.conv_in.weight)
    assert torch.equal(tuned.unet.conv_in.weight, v1.unet.conv_in.weight)


def test_version_2_1_predicts_v_from_zero_snr(v21, faces):
    assert v21.settings["prediction"] == "v_prediction"
    assert v21.settings["zero_terminal_snr"] is True
    restored = v21.restore(faces(1), [1])
    assert restored.isfinite().all()
    assert restored.std() > 0.01


@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_schedule_is_the_formula(v1, v21, zero_snr):
    restorer, expected = (v21 if zero_snr else v1), alphas_by_hand(zero_snr)
    np.testing.assert_allclose(restorer.alphas.numpy(), expected, rtol=2e-4, atol=1e-7)
    assert (expected[-1] == 0) == zero_snr == (float(restorer.alphas[-1]) == 0)
    times = [timestep for timestep, _ in restorer.plan_steps(50)]
    assert times == ([999 - 20 * i for i in range(50)] if zero_snr else [981 - 20 * i for i in range(50)])
    assert restorer.plan_steps(50)[-1][1] == -1


@pytest.mark.parametrize("timestep", [1, 400, 981, 999])
def test_v_noise_and_clean_latents_are_one_thing(v21, timestep):
    generator = torch.Generator().manual_seed(timestep)
    x0, eps = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    alpha = alphas_by_hand(True)[timestep]
    x = math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * eps
    v = math.sqrt(alpha) * eps - math.sqrt(1 - alpha) * x0
    at = torch.tensor([timestep, timestep])
    torch.testing.assert_close(v21.to_x0(x, at, v), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v21.to_noise(x, at, v), eps, atol=1e-4, rtol=1e-4)
    if timestep < 999:  # the last has no signal left
        torch.testing.assert_close(v21.predict_x0(x, at, eps), x0, atol=1e-2, rtol=1e-3)


def test_an_epsilon_model_gives_the_clean_latents_too(v1):
    x0, eps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    alphas = alphas_by_hand(False)
    at = torch.tensor([1, 981])
    signal, noise = (
        torch.tensor(values).float().reshape(2, 1, 1, 1)
        for values in (np.sqrt(alphas[at.numpy()]), np.sqrt(1 - alphas[at.numpy()]))
    )
    x = signal * x0 + noise * eps
    torch.testing.assert_close(v1.predict_x0(x, at, eps), x0, atol=2e-4, rtol=1e-3)
    assert v1.to_noise(x, at, eps) is eps


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_step_from_zero_snr_is_the_papers(v21, eta):
    """arXiv:2010.02502, equation 12, with what v says of noise and clean latents."""
    x, v, noise = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    alphas = alphas_by_hand(True)
    now, then = alphas[999], alphas[979]
    x0, eps = math.sqrt(now) * x - math.sqrt(1 - now) * v, math.sqrt(now) * v + math.sqrt(1 - now) * x
    sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
    expected = math.sqrt(then) * x0 + math.sqrt(1 - then - sigma**2) * eps + sigma * noise
    ours = v21.step(x, 999, 979, v, eta, noise)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_stage_1_is_in_evaluation_mode_and_not_clamped(v1, faces):
    assert not any(module.training for module in v1.stage1.modules())
    lq = faces(1)
    assert torch.equal(v1.clean(lq), v1.clean(lq))
    stage1, v1.stage1 = v1.stage1, copy.deepcopy(v1.stage1)
    torch.nn.init.constant_(v1.stage1.conv_last.bias, 3.0)
    try:
        assert v1.clean(lq).min() > 1
    finally:
        v1.stage1 = stage1


@pytest.mark.parametrize(("steps", "said"), [(0, "got 0"), (1001, "1 to 1000")])
def test_steps_that_the_schedule_has_not_are_refused(weights_dir, steps, said):
    with pytest.raises(UserError, match=said):
        load_restorer("diffbir-v1", weights_dir=weights_dir, steps=steps)


def test_a_checkpoint_with_a_trainings_objects_is_not_read_and_the_other_file_is_named(weights_dir, tmp_path):
    for path in weights_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "v2-1_512-ema-pruned.ckpt").unlink()
    torch.save({"state_dict": {}, "callbacks": [copy.Error()]}, tmp_path / "v2-1_512-ema-pruned.ckpt")
    with pytest.raises(UserError, match=r"could run code.*weights fetch sd-2\.1-base-safetensors"):
        load_restorer("diffbir-v1", weights_dir=tmp_path)


def test_the_safetensors_file_is_preferred(weights_dir, tmp_path, v1):
    for path in weights_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    state = torch.load(weights_dir / "v2-1_512-ema-pruned.ckpt")["state_dict"]
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "v2-1_512-ema-pruned.safetensors")
    restorer = load_restorer("diffbir-v1", weights_dir=tmp_path)
    assert "v2-1_512-ema-pruned.safetensors" in restorer.settings["weights"]
    assert torch.equal(restorer.unet.conv_out.weight, v1.unet.conv_out.weight)


def test_a_control_net_of_another_denoiser_is_refused(weights_dir, tmp_path):
    shape = UNetShape((64, 64), 1, (1, 1), (True, True), 1, 32)
    torch.save(dict(export_control(make_control(shape, 8))), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: not a ControlNet of v2-1_512-ema-pruned\.ckpt"):
        load_restorer(f"diffbir-v1:{tmp_path / 'other.pth'}", weights_dir=weights_dir)


def test_a_file_of_another_kind_is_refused(weights_dir, small_swinir):
    with pytest.raises(UserError, match=r"face_swinir_v1\.ckpt"):
        load_restorer(f"diffbir-v1:{weights_dir / 'face_swinir_v1.ckpt'}", weights_dir=weights_dir)
    with pytest.raises(UserError, match=r"x\.ckpt: not an architecture.* DiffBIR's SwinIR is wanted here"):
        load_stage1({"out.2.weight": torch.zeros(1)}, "x.ckpt")
    with pytest.raises(UserError, match="not DiffBIR's SwinIR, which keeps an image's size"):
        load_stage1(small_swinir(start_unshuffle=4), "x.ckpt")
