"""Choose the device to compute on."""

from __future__ import annotations

import os

import torch

from db.errors import UserError


def choose_device(device: str) -> str:
    """The device of 'auto', 'cpu', 'cuda' or 'cuda:1'; auto is the first GPU, or the CPU where there is none.

    Raises:
        UserError: no such device here.
    """
    count = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if device not in ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]:
        here = f"has {count} GPUs that torch can use" if count else "has no GPU that torch can use"
        raise UserError(
            f"There is no device {device!r}: this machine {here}. Give auto, cpu, cuda, or cuda:0 and so on."
        )
    return device


def choose_own_device() -> str:
    """The GPU of this process of a training, or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
