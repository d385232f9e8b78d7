from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refl.faces.color_fix import compute_low_band, fix_color, fix_color_by_statistics, fix_color_by_wavelet

GOLDEN = Path(__file__).resolve().parents[5] / "shared" / "golden" / "io_color.safetensors"


def make_pair(height: int = 24, width: int = 40, *, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    content = torch.rand(2, 3, height, width, generator=generator, dtype=dtype)
    return content, torch.rand(2, 3, height, width, generator=generator, dtype=dtype) * 0.5 + 0.3


def test_wavelet_gives_the_numbers_of_the_original() -> None:
    if not GOLDEN.is_file():
        pytest.skip("needs ../shared/golden, which is not beside this checkout")
    from safetensors.torch import load_file

    golden = load_file(GOLDEN)
    output = fix_color(golden["content01"], golden["style01"], "wavelet")
    assert (output - golden["output"]).abs().max() < 1e-5


def test_one_level_of_a_single_bright_pixel_is_the_kernel() -> None:
    image = torch.zeros(1, 3, 5, 5)
    image[:, :, 2, 2] = 16.0
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    assert torch.equal(compute_low_band(image, levels=1)[0, 0, 1:4, 1:4], kernel)
    # The second blur's taps lie 2 px apart: at the corner of its reach, 3 px off, 1/16 of 1/16 arrives.
    wide = torch.zeros(1, 3, 7, 7)
    wide[:, :, 3, 3] = 256.0
    assert compute_low_band(wide, levels=2)[0, 0, 0, 0] == 1.0


def test_wavelet_keeps_detail_and_takes_colour() -> None:
    content, style = make_pair(256, 256)
    tinted = fix_color_by_wavelet(content, style)
    assert torch.allclose(tinted.mean((2, 3)), style.mean((2, 3)), atol=0.005)
    assert torch.allclose(tinted - compute_low_band(style), content - compute_low_band(content), atol=1e-6)
    assert torch.allclose(fix_color_by_wavelet(content, content), content, atol=1e-6)


def test_adain_gives_mean_and_deviation_of_the_style() -> None:
    content, style = make_pair()
    tinted = fix_color_by_statistics(content, style)
    assert torch.allclose(tinted.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    assert torch.allclose(tinted.std((2, 3)), style.std((2, 3)), rtol=1e-3)
    by_hand = (content - content.mean((2, 3), keepdim=True)) / content.std((2, 3), keepdim=True)
    by_hand = by_hand * style.std((2, 3), keepdim=True) + style.mean((2, 3), keepdim=True)
    assert torch.allclose(tinted, by_hand, atol=1e-3)


def test_none_changes_nothing() -> None:
    content, style = make_pair()
    assert fix_color(content, style, "none") is content


@pytest.mark.parametrize("kind", ["wavelet", "adain"])
def test_gradients_are_those_of_finite_differences(kind) -> None:
    content, style = make_pair(4, 5, dtype=torch.float64)
    content.requires_grad_()
    style.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, s: fix_color(c, s, kind), (content, style))


@pytest.mark.parametrize("kind", ["wavelet", "adain"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_images_pass(kind, size) -> None:
    content, style = make_pair(*size)
    assert torch.isfinite(fix_color(content, style, kind)).all()


def test_what_cannot_be_fixed_is_refused() -> None:
    content, style = make_pair()
    with pytest.raises(ValueError, match="of one shape"):
        fix_color(content, style[:, :, 1:], "wavelet")
    with pytest.raises(ValueError, match="no colour fix 'hue'"):
        fix_color(content, style, "hue")
