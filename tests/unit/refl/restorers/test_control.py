"""The ControlNet sees (noisy, condition) in this order, has no hint encoder, and starts as the denoiser does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.testing import assert_close

from refl.published.control import ConditionControlNet, init_from_unet

SHARED: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": (2, 2),
    "norm_num_groups": 4,
}


def make_control(**changes: Any) -> ConditionControlNet:
    torch.manual_seed(0)
    return ConditionControlNet(in_channels=8, **{**SHARED, **changes}).eval()


def make_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **SHARED).eval()


def fill_zero_convolutions(control: ConditionControlNet) -> None:
    """Non-zero outputs, so that a wrong input shows."""
    with torch.no_grad():
        for convolution in [*control.controlnet_down_blocks, control.controlnet_mid_block]:
            torch.nn.init.normal_(convolution.weight)


def test_the_first_convolution_sees_noisy_latent_then_condition():
    control = make_control()
    fill_zero_convolutions(control)
    noisy, condition, prompt = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8)
    seen = []
    control.conv_in.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    down, middle = control(noisy, torch.tensor(7), prompt, condition, return_dict=False)
    assert_close(seen[0][0], torch.cat([noisy, condition], 1), rtol=0, atol=0)
    assert_close(down[0], control.controlnet_down_blocks[0](seen[0][1]), rtol=0, atol=0)  # nothing of a hint is added
    swapped, _ = control(condition, torch.tensor(7), prompt, noisy, return_dict=False)
    assert not torch.allclose(down[0], swapped[0])
    assert middle.shape == (2, 16, 4, 4)


def test_scale_multiplies_every_output():
    control = make_control()
    fill_zero_convolutions(control)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(7), torch.randn(1, 3, 8), torch.randn(1, 4, 8, 8)
    down, middle = control(*inputs, return_dict=False)
    half_down, half_middle = control(*inputs, conditioning_scale=0.5, return_dict=False)
    assert_close(half_middle, middle / 2)
    assert_close(list(half_down), [one / 2 for one in down])


def test_it_has_the_parents_parameters_but_for_the_hint_encoder():
    assert not [name for name in make_control().state_dict() if "cond_embedding" in name]
    assert make_control().config.in_channels == 8


def test_it_starts_as_the_denoiser_and_adds_nothing():
    control, unet = make_control(), make_unet()
    fill_zero_convolutions(control)
    init_from_unet(control, unet)
    assert_close(control.conv_in.weight[:, :4], unet.conv_in.weight, rtol=0, atol=0)
    assert control.conv_in.weight[:, 4:].abs().max() == 0
    assert_close(control.down_blocks.state_dict(), unet.down_blocks.state_dict(), rtol=0, atol=0)
    assert_close(control.time_embedding.state_dict(), unet.time_embedding.state_dict(), rtol=0, atol=0)
    down, middle = control(
        torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 3, 8), torch.randn(1, 4, 8, 8), return_dict=False
    )
    assert max(float(output.detach().abs().max()) for output in (*down, middle)) == 0


def test_it_cannot_start_as_another_architectures_denoiser():
    with pytest.raises(ValueError, match="is not the denoiser's"):
        init_from_unet(make_control(cross_attention_dim=16), make_unet())
