"""Checkpoints of a phase: `state.pt`, from which it continues exactly, and `training.json`, what it is of."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from db.errors import UserError
from refl.pretrain.config import THIRD_PHASE, PretrainConfig
from refl.restorers.tiny_config import TinyConfig
from runs.space import explain_full_disk
from training.settings import check_settings
from training.state import count_bytes


class Stands(Protocol):
    """What a checkpoint holds of a phase."""

    name: str
    step: int
    parameters: list[nn.Parameter]
    averages: list[Tensor]


def save_phase(folder: Path, phase: Stands, record: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Write the checkpoint; one file, there whole or not at all, with the record of its settings in it.

    Raises:
        UserError: it cannot be written; the one before is still there.
    """
    state = {
        "step": phase.step,
        "weights": [parameter.detach() for parameter in phase.parameters],
        "averages": phase.averages,
        "optimizer": optimizer.state_dict(),
        "record": json.dumps(record),
    }
    save_tensors(folder / "state.pt", state)


def save_tensors(file: Path, state: dict[str, Any]) -> None:
    """Write nested tensors by torch.save, whole or not at all.

    Raises:
        UserError: they cannot be written; the file before is still there.
    """
    unfinished = file.with_name(f"{file.name}.part")
    then = "run the same command again; it continues from the checkpoint before"
    try:
        with explain_full_disk(file.parent, then, lambda: count_bytes(state)):
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, unfinished)
            unfinished.replace(file)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{file}: cannot be written ({error}); mend that, then {then}.") from error
        raise


@torch.no_grad()
def load_phase(
    folder: Path, phase: Stands, record: dict[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put a phase where its checkpoint stands; nothing happens where there is none.

    Raises:
        UserError: it is damaged, or of other settings or faces.
    """
    path = folder / "state.pt"
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).partition(chr(10))[0]}). Name another --out.") from error
    check_same(json.loads(state["record"]), record, path, set() if phase.name == "diffusion" else THIRD_PHASE)
    phase.step = state["step"]
    for parameter, value in zip(phase.parameters, state["weights"], strict=True):
        parameter.copy_(value)
    for average, value in zip(phase.averages, state["averages"], strict=True):
        average.copy_(value)
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])


def check_same(before: dict[str, Any], now: dict[str, Any], path: Path, unread: set[str]) -> None:
    """That a checkpoint is of these faces, this model and this way of training, but for what may change.

    Raises:
        UserError: something that decides the weights differs; named.
    """
    if before["dataset_sha256"] != now["dataset_sha256"]:
        raise UserError(f"{path} was trained on other faces. Name another --out to train on these.")
    for table, config in (("model", TinyConfig), ("train", PretrainConfig)):
        check_settings(before[table], config.model_validate(now[table]), path, unread)
