"""The terms of ReFL's loss against the published implementations' numbers and hand-worked ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refl.tune.losses import compute_change, compute_reward_loss, compute_structure_loss
from refl.tune.low_pass import compute_low_pass

GOLDEN = Path(__file__).resolve().parents[5] / "shared" / "golden"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not beside this checkout")
@pytest.mark.parametrize("place", [0, 1])
def test_structure_loss_is_that_of_the_published_transform(place: int) -> None:
    golden = load_file(GOLDEN / "io_losses.safetensors")
    pred, target = (golden[f"dtcwt{place}_{name}"].float() for name in ("pred", "target"))
    pred.requires_grad_()
    assert torch.allclose(compute_low_pass(pred), golden[f"dtcwt{place}_low_pred"], atol=1e-5)
    loss = compute_structure_loss(pred, target).mean()
    loss.backward()
    assert torch.allclose(loss, golden[f"dtcwt{place}_loss"], atol=1e-6)
    assert torch.allclose(pred.grad, golden[f"dtcwt{place}_grad_pred"], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (64, 64), (66, 30)])
def test_a_flat_image_stays_flat_in_the_low_band_and_gains_four(height: int, width: int) -> None:
    low = compute_low_pass(torch.full((2, 3, height, width), 0.25, dtype=torch.float64))
    assert torch.allclose(low, torch.ones_like(low), atol=1e-7)


def test_low_pass_is_linear_and_its_gradient_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 12, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(compute_low_pass, image)
    assert torch.allclose(compute_low_pass(3 * image), 3 * compute_low_pass(image))


def test_control_change_sums_mean_squares_over_outputs_for_each_image() -> None:
    frozen = [torch.zeros(2, 1, 2, 2), torch.zeros(2, 3, 1, 1)]
    ours = [torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2), torch.full((2, 3, 1, 1), 3.0)]
    # image 0: 1² + 3², image 1: 2² + 3²
    assert compute_change(ours, frozen).tolist() == [10.0, 13.0]
    assert compute_change(frozen, frozen).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="argument"):
        compute_change(ours, frozen[:1])


def test_reward_loss_falls_with_the_cosine() -> None:
    assert compute_reward_loss(torch.tensor([1.0, 0.0, -1.0])).tolist() == [0.0, 1.0, 2.0]
