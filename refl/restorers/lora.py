"""Save and load the trained part of a restorer: LoRA adapters (through peft) or a whole part.

A folder holds `trained.safetensors`, only what was trained, under `part.name`, and `trained.json`: the restorer that it
belongs to, the kind, the rank. Source of LoRA: arXiv:2106.09685.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from db.errors import UserError
from metrics.download import compute_sha256
from refl.restorers.record import RECORD_FILE, TRAINED_FILE, Kind, read_record
from runs.files import write_text_whole
from training.weights import check_strictly, map_weights, save_tensors

BEFORE = "_before"
"""End of the names of frozen copies of adapters, as they were before training."""
TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
)
"""Layers that get an adapter: of attention, of its feed-forward, and the residual blocks' convolutions."""
ADAPTER = "default"


@dataclass(frozen=True)
class Trained:
    """Record of how a restorer was made trainable."""

    kind: Kind
    rank: int
    """Of the adapters; 0 where whole parts were trained."""
    strength: float = 1.0
    """Factor on the adapters."""


@dataclass(frozen=True)
class Read:
    """A folder that `save_trained` wrote."""

    path: Path
    trained: Trained
    state: dict[str, Tensor]
    sha256: str


def describe(trained: Trained | None) -> dict[str, object]:
    """Describe what its pixels depend on, besides the numbers, for a restorer's settings."""
    if trained is None or trained.kind == "control":
        return {}
    return {"lora_rank": trained.rank, "lora_strength": trained.strength}


def add_lora(
    parts: Mapping[str, nn.Module], rank: int, targets: Sequence[str] = TARGETS, adapter: str = ADAPTER
) -> None:
    """Put trainable adapters of this rank on the target layers of every part; at first they change nothing.

    Adapters start from torch's generator; their scale is 1 (alpha = rank).

    Raises:
        ValueError: the rank is below 1, or a part has these adapters already.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here: it takes seconds to load, and most restorers have none

    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, got {rank}")
    if any(adapter in layer.lora_A for part in parts.values() for layer in lora_layers(part)):
        raise ValueError(f"there are adapters named {adapter!r} already; load the restorer anew to change their rank")
    for part in parts.values():
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
        inject_adapter_in_model(config, part, adapter)


def lora_layers(part: nn.Module) -> Iterator[Any]:
    """The layers of a part that have adapters."""
    from peft.tuners.lora import LoraLayer  # here, as in add_lora

    return (module for module in part.modules() if isinstance(module, LoraLayer))


def set_strength(parts: Mapping[str, nn.Module], trained: Trained | None, strength: float) -> Trained:
    """Let the adapters count this much: 0 is the untrained restorer, 1 the trained one.

    Raises:
        ValueError: there are no adapters.
    """
    if trained is None or trained.kind != "lora":
        raise ValueError("this restorer has no LoRA whose strength could be set")
    for part in parts.values():
        for layer in lora_layers(part):
            for adapter in layer.lora_A:
                layer.set_scale(adapter, strength)
    return replace(trained, strength=strength)


@contextmanager
def without_adapters(parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """The block computes as if there were no adapters."""
    layers = [layer for part in parts.values() for layer in lora_layers(part)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def trained_state(parts: Mapping[str, nn.Module], trained: Trained) -> dict[str, nn.Parameter]:
    """The parameters that are trained, under `part.name`."""
    return {
        f"{place}.{name}": parameter
        for place, part in parts.items()
        for name, parameter in part.named_parameters()
        if trained.kind == "control" or (".lora_" in name and f"{BEFORE}.weight" not in name)
    }


def save_trained(
    folder: Path,
    trained: Trained | None,
    parts: Mapping[str, nn.Module],
    settings: Mapping[str, object],
    values: Mapping[nn.Parameter, Tensor] | None = None,
) -> None:
    """Write the folder; a file is there whole or not at all.

    Args:
        settings: the restorer's; `settings["restorer"]` names what the numbers belong to.
        values: of the parameters, where they are kept elsewhere, in float32 while the parts compute in bfloat16, say.
    Raises:
        ValueError: nothing was made trainable.
    """
    if trained is None:
        raise ValueError("nothing was made trainable; call set_trainable first")
    folder.mkdir(parents=True, exist_ok=True)
    named = trained_state(parts, trained)
    state = {name: (values or {}).get(p, p).detach().cpu().contiguous() for name, p in named.items()}
    save_tensors(state, folder / TRAINED_FILE)
    record = {
        "restorer": settings["restorer"],
        "kind": trained.kind,
        "rank": trained.rank,
        "settings": dict(settings),
    }
    write_text_whole(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def read_trained(folder: Path, settings: Mapping[str, Any]) -> Read:
    """Read what a folder holds.

    Args:
        settings: of the restorer that is to take it.
    Raises:
        UserError: it is missing, damaged, or of another restorer, told by the files of both rather than their paths.
    """
    record = read_record(folder)
    weights = [one.get("weights", {}) for one in (record.get("settings", {}), settings)]
    before, now = (sorted(sha for name, sha in files.items() if name != TRAINED_FILE) for files in weights)
    if record["restorer"] != settings["restorer"] and not (before and before == now):
        raise UserError(
            f"{folder} was trained on the restorer {record['restorer']!r}, not on {settings['restorer']!r}."
        )
    path = folder / TRAINED_FILE
    state = map_weights(path)
    return Read(path, Trained(record["kind"], record["rank"]), state, compute_sha256(path))


@torch.no_grad()
def load_trained(read: Read, parts: Mapping[str, nn.Module]) -> None:
    """Take the numbers.

    Raises:
        UserError: a key is unknown, missing or of another shape; nothing was changed then.
    """
    expected = trained_state(parts, read.trained)
    check_strictly(expected, read.state, read.path, "this restorer")
    for name, value in read.state.items():
        expected[name].copy_(value)
