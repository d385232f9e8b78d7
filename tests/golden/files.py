"""Read golden numbers and compare with them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from db.errors import UserError

Errors = dict[str, float]


def compare(ours: Tensor, expected: Tensor, *, relative: bool = False) -> float:
    """Largest absolute difference, for gradients relative to the largest entry; infinite where it is no number."""
    if ours.shape != expected.shape:
        raise UserError(f"Shapes differ: ours {tuple(ours.shape)}, golden {tuple(expected.shape)}.")
    error = (ours.detach().double() - expected.double()).abs().max()
    if relative:
        error = error / expected.double().abs().max()
    return float(error.nan_to_num(nan=float("inf")))


def load_golden(folder: Path, *names: str) -> dict[str, Tensor]:
    """The tensors of these files together, floating ones as float32."""
    merged: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing. Give a folder of golden numbers, such as ../shared/golden.")
        merged.update(load_file(path))
    return {key: value.float() if value.is_floating_point() else value for key, value in merged.items()}
