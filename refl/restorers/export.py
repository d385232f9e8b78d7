"""Write what was tuned here so that the authors' own code loads it: ControlNets of DiffBIR, one-step restorers."""

from __future__ import annotations

from pathlib import Path

from db.errors import UserError
from refl.published.convert import name_unet_key
from refl.restorers import lora
from refl.restorers.export_one_step import FORMS, export_one_step, write_torch
from refl.restorers.record import find_root, read_record

PREFIX = "control."
"""Of the ControlNet's parameters in a folder that `save_trained` wrote."""


def export_trained(folder: Path, file: Path, weights: Path) -> tuple[int, str]:
    """Write what a training left in the folder in the form in which its restorer was published.

    Args:
        file: to write.
        weights: folder of published files; adapters take the form of theirs.
    Returns:
        How many tensors it holds, and in whose format they are.
    Raises:
        UserError: the folder cannot be read, or nobody publishes what it holds in a form of that kind.
    """
    kind = find_root(str(folder)).partition(":")[0]
    if read_record(folder)["kind"] == "lora" and kind in FORMS:
        return export_one_step(folder, file, weights), FORMS[kind]
    return export_trained_control(folder, file), "DiffBIR's format"


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
    read = lora.read_trained(folder, read_record(folder))
    if read.trained.kind != "control":
        raise UserError(f"{folder}: holds LoRA adapters, and DiffBIR takes whole ControlNets; train with kind control.")
    firsts = [key for key in read.state if key.startswith(f"{PREFIX}down_blocks.0.resnets.")]
    layers = len({key.split(".")[4] for key in firsts})
    state = {name_unet_key(key.removeprefix(PREFIX), layers, frozenset()): value for key, value in read.state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_torch(state, file)
    return len(state)
