"""Write a ControlNet that was tuned here so that DiffBIR's own code loads it."""

from __future__ import annotations

from pathlib import Path

import torch

from db.errors import UserError
from refl.published.convert import name_unet_key
from refl.restorers import lora

PREFIX = "control."
"""Of the ControlNet's parameters in a folder that `save_trained` wrote."""


def export_trained_control(folder: Path, file: Path) -> int:
    """Write the state dict that DiffBIR loads strictly, bit for bit the trained numbers; no other weights are needed.

    Args:
        folder: of a restorer's `save_trained`, whole ControlNet.
        file: to write, by torch.save.
    Returns:
        How many tensors it holds.
    Raises:
        UserError: the folder cannot be read, or holds adapters.
    """
    read = lora.read_trained(folder, lora.read_record(folder))
    if read.trained.kind != "control":
        raise UserError(f"{folder}: holds LoRA adapters, and DiffBIR takes whole ControlNets; train with kind control.")
    firsts = [key for key in read.state if key.startswith(f"{PREFIX}down_blocks.0.resnets.")]
    layers = len({key.split(".")[4] for key in firsts})
    state = {name_unet_key(key.removeprefix(PREFIX), layers, frozenset()): value for key, value in read.state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    torch.save(state, unfinished)
    unfinished.replace(file)
    return len(state)
