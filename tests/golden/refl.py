"""The golden numbers of a ReFL step and of the wavelet low band, through the code that training uses."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from refl.published.convert import make_key_table
from refl.tune.losses import compute_change, compute_structure_loss
from refl.tune.low_pass import compute_low_pass
from refl.tune.sampling import Rollout, Trajectory, iterate_outcomes
from tests.golden.files import Errors, compare, load_golden
from tests.golden.restorers import load_restorer


def check_dtcwt(folder: Path, config: dict[str, Any]) -> Errors:
    """Low bands of both images, the loss and its gradient, for every size in the file."""
    golden = load_golden(folder, "io_losses.safetensors")
    errors: Errors = {}
    for name in sorted(key.removesuffix("_low_pred") for key in golden if key.endswith("_low_pred")):
        pred, target = golden[f"{name}_pred"].requires_grad_(), golden[f"{name}_target"]
        loss = compute_structure_loss(pred, target).mean()
        (gradient,) = torch.autograd.grad(loss, pred)
        errors |= {
            f"{name}_low_pred": compare(compute_low_pass(pred), golden[f"{name}_low_pred"]),
            f"{name}_low_target": compare(compute_low_pass(target), golden[f"{name}_low_target"]),
            f"{name}_loss": compare(loss, golden[f"{name}_loss"]),
            f"{name}_grad_pred": compare(gradient, golden[f"{name}_grad_pred"], relative=True),
        }
    return errors


def check_refl(folder: Path, config: dict[str, Any]) -> Errors:
    """The trajectory without gradient, then one step with it: clean latents, image, loss, gradients."""
    asked, golden = config["refl"], load_golden(folder, "io_refl.safetensors")
    start = load_golden(folder, "io_ddim.safetensors")
    restorer = load_restorer(folder, config)
    restorer.control.requires_grad_(True)
    frozen = deepcopy(restorer.control).requires_grad_(False)
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.mul_(asked["fixed_control_scale"])
    plan = restorer.plan_steps(asked["steps"])
    trajectory = Trajectory(plan, [0.0] * len(plan), asked["mid_index"])
    stop = trajectory.gradient_place
    inputs = start["cond_latent"], start["context"]
    with torch.no_grad():
        latents = restorer.denoise(start["x_T"], plan[:stop], [0.0] * stop, *inputs, iter(()))
    rollout = Rollout(start["x_T"], start["context"], start["cond_latent"], latents, [])
    (outcome,) = iterate_outcomes(restorer, rollout, trajectory, regularize=True, frozen_control=frozen)
    decoded = restorer.decode(outcome.x0) * 2 - 1
    regularizer = asked["reg_lambda"] * compute_change(outcome.compared, outcome.reference).mean()
    loss = decoded.square().mean() + regularizer
    torch.autograd.backward(loss)
    timestep = torch.full_like(golden["timestep"], plan[stop][0])
    errors = {
        "timestep": compare(timestep, golden["timestep"]),
        "x_mid": compare(latents, golden["x_mid"]),
        "pred_x0": compare(outcome.x0, golden["pred_x0"]),
        "decoded": compare(decoded, golden["decoded"]),
        "reg_loss": compare(regularizer, golden["reg_loss"]),
        "loss": compare(loss, golden["loss"]),
    }
    published = make_key_table(restorer.control)
    gradients = {published[name]: value.grad for name, value in restorer.control.named_parameters()}
    for key in golden:
        if key.startswith("grad."):
            found = gradients[key.removeprefix("grad.")]
            assert found is not None
            errors[key] = compare(found, golden[key], relative=True)
    squares = [value.square().sum() for value in gradients.values() if value is not None]
    total = torch.stack(squares).sum().sqrt()
    errors["grad_total_norm"] = compare(total, golden["grad_total_norm"], relative=True)
    return errors
