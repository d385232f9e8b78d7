"""Trained weights: float32 masters of a working copy, gradients added up in float32, averages, scale, exact state."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("accelerate", reason="needs accelerate: `make install`")

from accelerate import Accelerator  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from db.errors import UserError  # noqa: E402
from training.precision import TrainedWeights, make_optimizer, place  # noqa: E402


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def make_layer(value: float = 1.0) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def make_weights(layer: nn.Module, dtype: torch.dtype, **more: float) -> TrainedWeights:
    settings = {"learning_rate": 0.1, "weight_decay": 0.0, **more}
    return TrainedWeights(list(layer.parameters()), dtype, "cpu", **settings)  # type: ignore[arg-type]


def test_float32_has_no_second_copy() -> None:
    layer = make_layer()
    weights = make_weights(layer, torch.float32)
    assert weights.masters[0] is layer.weight


def test_small_gradients_are_added_up_in_float32(accelerator: Accelerator) -> None:
    """bfloat16 has 8 bits: to 1 it cannot add 1/512."""
    layer = make_layer()
    weights = make_weights(layer, torch.bfloat16)
    for share in [1.0, *[1 / 512] * 8]:
        weights.backward(layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().float() * share)
    (master,) = weights.masters
    assert layer.weight.grad is None
    assert master.grad is not None
    assert master.grad.tolist() == [[1 + 8 / 512] * 2]
    assert weights.step(accelerator, 0.0, 1) == pytest.approx(2**0.5 * (1 + 8 / 512))
    # AdamW's first step is the rate times the sign
    torch.testing.assert_close(master.detach(), torch.full((1, 2), 0.9), rtol=0, atol=1e-6)
    assert torch.equal(layer.weight.detach(), master.detach().bfloat16())


def test_steps_too_small_for_the_working_copy_are_kept_in_the_master(accelerator: Accelerator) -> None:
    layer = make_layer()
    weights = make_weights(layer, torch.bfloat16, learning_rate=1e-4)
    for number in range(60):
        weights.backward(layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().float())
        weights.step(accelerator, 0.0, number)
    assert float(weights.masters[0].detach()[0, 0]) == pytest.approx(1 - 60e-4, abs=1e-5)
    assert float(layer.weight.detach()[0, 0]) == pytest.approx(1 - 60e-4, abs=4e-3)


def test_a_long_gradient_is_shortened_and_one_that_is_no_number_refused(accelerator: Accelerator) -> None:
    layer = make_layer()
    weights = make_weights(layer, torch.float32)
    weights.optimizer = torch.optim.SGD(weights.masters, lr=1.0)
    weights.backward(layer(torch.tensor([[30.0, 40.0]])).sum())
    assert weights.step(accelerator, 5.0, 1) == pytest.approx(50.0)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[1 - 3.0, 1 - 4.0]]))
    weights.backward(layer(torch.tensor([[float("inf"), 1.0]])).sum())
    with pytest.raises(UserError, match="The gradient of step 7 is not finite"):
        weights.step(accelerator, 5.0, 7)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[1 - 3.0, 1 - 4.0]]))


def test_float16_scales_the_loss_and_leaves_out_a_step_that_overflows(accelerator: Accelerator) -> None:
    layer = make_layer()
    weights = make_weights(layer, torch.float16)
    assert weights.scaler is not None
    small = 2.0**-26  # no float16 is so small
    weights.backward((layer(torch.ones(1, 2, dtype=torch.float16)).float() * small).sum())
    assert weights.step(accelerator, 0.0, 1) == pytest.approx(2**0.5 * small, rel=1e-3)
    moved = weights.masters[0].detach().clone()
    assert bool((moved < 1).all())
    before = weights.scaler.get_scale()
    weights.backward((layer(torch.ones(1, 2, dtype=torch.float16)).float() * 1e5).sum())
    weights.step(accelerator, 0.0, 2)
    assert torch.equal(weights.masters[0].detach(), moved)
    assert weights.scaler.get_scale() < before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_computes_with_the_average_and_the_weights_come_back(
    accelerator: Accelerator, dtype: torch.dtype
) -> None:
    layer = make_layer()
    weights = make_weights(layer, dtype, ema_decay=0.75)
    weights.backward(layer(torch.ones(1, 2, dtype=dtype)).sum().float())
    weights.step(accelerator, 0.0, 1)
    with weights.averaged():
        assert torch.equal(layer.weight.detach(), weights.averages[0].to(dtype))
        torch.testing.assert_close(weights.averages[0], torch.full((1, 2), 0.975))
    assert torch.equal(layer.weight.detach(), weights.masters[0].detach().to(dtype))
    assert torch.equal(weights.best_values()[layer.weight], weights.averages[0])
    assert weights.values()[layer.weight] is weights.masters[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_state_continues_exactly(accelerator: Accelerator, dtype: torch.dtype) -> None:
    def learn(weights: TrainedWeights, layer: nn.Linear, steps: range) -> None:
        for number in steps:
            inputs = torch.tensor([[number + 1.0, 2.0]], dtype=dtype)
            weights.backward(layer(inputs).float().square().sum())
            weights.step(accelerator, 0.0, number)

    whole = make_layer()
    weights = make_weights(whole, dtype, ema_decay=0.5)
    learn(weights, whole, range(2))
    file = io.BytesIO()
    torch.save(weights.state_dict(), file)
    other = make_layer()
    other.weight.data = weights.masters[0].detach().clone()
    again = make_weights(other, dtype, ema_decay=0.5)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    learn(weights, whole, range(2, 5))
    learn(again, other, range(2, 5))
    assert torch.equal(weights.masters[0], again.masters[0])
    assert torch.equal(weights.averages[0], again.averages[0])


def test_place_leaves_what_is_kept_and_what_is_no_float() -> None:
    module = nn.BatchNorm1d(2)
    module.weight.requires_grad_(False)
    place(module, "cpu", torch.bfloat16, keep=[module.bias])
    assert module.weight.dtype == module.running_mean.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert module.bias.dtype == torch.float32
    assert module.num_batches_tracked.dtype == torch.int64  # type: ignore[union-attr]


def test_matrices_decay_and_all_else_does_not() -> None:
    layer = nn.Linear(2, 2)
    optimizer = make_optimizer(list(layer.parameters()), "adamw", 0.1, 0.5)
    decays: dict[int, float] = {
        id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {id(layer.weight): 0.5, id(layer.bias): 0.0}
    with pytest.raises(UserError, match="adamw8bit needs a GPU"):
        make_optimizer(list(layer.parameters()), "adamw8bit", 0.1, 0.5)


def test_what_backward_computes_again_is_in_the_same_numbers(accelerator: Accelerator) -> None:
    from torch.utils.checkpoint import checkpoint

    layer = make_layer()
    weights = make_weights(layer, torch.bfloat16)
    inputs = torch.ones(1, 2, dtype=torch.bfloat16)
    with torch.no_grad():
        layer(inputs)  # as the trajectory before the step with gradient
    output: Tensor = checkpoint(layer, inputs, use_reentrant=False)
    weights.backward(output.float().sum())
    assert weights.masters[0].grad is not None
    assert weights.masters[0].grad.tolist() == [[1.0, 1.0]]
