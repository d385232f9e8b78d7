"""Write a tuned one-step restorer in the form in which it was published, so that its authors' own script takes it.

HYPIR's, OSDFace's and PiSA-SR's own adapters were trained: the same names, shapes and ranks, other numbers. Of OSEDiff
and GDPO-SR fresh adapters were trained on the merged ones: both go into one adapter, whose rank is the sum of theirs.
With A = [A1; A2] and B = [b1 B1, b2 B2], B A is b1 B1 A1 + b2 B2 A2, so that nothing is approximated; b1 and b2 undo
that the authors' code, which leaves peft's alpha of 8, lets an adapter count 8 / rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refl.published.weights import find_file
from refl.restorers import gdpo, hypir, lora, osdface, pisasr
from refl.restorers.osdface import name_adapter_key
from refl.restorers.osediff import FACE_ADAPTERS
from refl.restorers.osediff_lora import ENCODER, MODULES, PUBLISHED_ALPHA
from refl.restorers.record import find_root, is_tuned, read_record
from training.weights import State, check_strictly, map_weights, read_checkpoint, save_tensors

FORMS = {
    "hypir": "HYPIR's format",
    "osdface": "OSDFace's format (name it pytorch_lora_weights.safetensors)",
    "pisasr": "PiSA-SR's format",
    "osediff": "OSEDiff's format",
    "gdpo": "the format of GDPO-SR's training (merge it by its mergelora.py)",
}
"""One-step restorer -> in what words its exported file is described."""
ADAPTERS = {
    "hypir": hypir.WEIGHTS,
    "osdface": osdface.WEIGHTS,
    "pisasr": pisasr.WEIGHTS,
    "osediff": FACE_ADAPTERS,
}
"""One-step restorer -> its adapters' name in the manifest; GDPO-SR's are merged."""


def export_one_step(folder: Path, file: Path, weights: Path) -> int:
    """Write what a training of a one-step restorer left in a folder.

    Args:
        file: to write; safetensors for OSDFace, by torch.save for others, plain tensors, lists and numbers.
        weights: folder of published files, of which the adapters' is read.
    Returns:
        How many tensors it holds.
    Raises:
        UserError: the folder or the published file cannot be read, or they do not belong together.
    """
    kind = find_root(str(folder)).partition(":")[0]
    content = build_content(str(folder), kind, weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "osdface":
        save_tensors(content, file)
    else:
        write_torch(content, file)
    inner = [value for key, value in content.items() if key.startswith("state_dict_")] or [content]
    return sum(len(table) for table in inner)


def write_torch(content: dict[str, Any], file: Path) -> None:
    """Write a file by torch.save, there whole or not at all."""
    unfinished = file.with_name(f"{file.name}.part")
    torch.save(content, unfinished)
    unfinished.replace(file)


def build_content(asked: str, kind: str, weights: Path) -> dict[str, Any]:
    """What the file of a restorer holds, published or tuned, or tuned from a tuned one.

    Raises:
        UserError: see `export_one_step`.
    """
    path = Path(asked).expanduser()
    if not is_tuned(path):
        return read_published(asked, kind, weights)
    record = read_record(path)
    content, read = build_content(str(record["restorer"]), kind, weights), lora.read_trained(path, record)
    return PUT[kind](content, read)


def read_published(asked: str, kind: str, weights: Path) -> dict[str, Any]:
    """The content of a published file of adapters; for GDPO-SR's merged ones, of a table with none."""
    file = asked.partition(":")[2]
    if not file and kind == "gdpo":
        unet = map_weights(find_file(gdpo.PARTS["unet"], weights).path)
        first = {f"conv_in.base_layer.{one}": unet[f"conv_in.{one}"].clone() for one in ("weight", "bias")}
        return {**{key: [] for key in MODULES.values()}, "rank_unet": 0, "state_dict_unet": first}
    path = find_file(file or ADAPTERS[kind], weights).path
    return dict(map_weights(path) if kind in ("hypir", "osdface") else read_checkpoint(path))


def put_own(content: dict[str, Any], read: lora.Read) -> dict[str, Any]:
    """HYPIR's and OSDFace's tables with the trained numbers."""
    return replace_all(content, read, name_adapter_key)


def put_pisasr(content: dict[str, Any], read: lora.Read) -> dict[str, Any]:
    """PiSA-SR's table with the trained numbers."""
    return {**content, "state_dict_unet": replace_all(content["state_dict_unet"], read, str)}


def replace_all(published: Mapping[str, Tensor], read: lora.Read, rename: Callable[[str], str]) -> State:
    """Tensors of the published names with the trained numbers.

    Raises:
        UserError: their names or shapes differ.
    """
    names = {f"unet.{rename(name)}": name for name in published}
    check_strictly(
        {ours: published[name] for ours, name in names.items()}, read.state, read.path, "this published file"
    )
    return {name: read.state[ours] for ours, name in names.items()}


def put_osediff(content: dict[str, Any], read: lora.Read) -> dict[str, Any]:
    """OSEDiff's or GDPO-SR's table with both adapters in one, of the denoiser and of the encoder where it has some."""
    groups = {adapter: list(content[key]) for adapter, key in MODULES.items()}
    rank = int(content["rank_unet"])
    state, groups = fold(content["state_dict_unet"], groups, rank, select(read, "unet."), read.trained.rank)
    folded: dict[str, Any] = {key: groups[adapter] for adapter, key in MODULES.items()}
    folded |= {"rank_unet": rank + read.trained.rank, "state_dict_unet": state}
    if "rank_vae" in content:
        rank, of_vae = int(content["rank_vae"]), {ENCODER: list(content["vae_lora_encoder_modules"])}
        state, of_vae = fold(content["state_dict_vae"], of_vae, rank, select(read, "vae."), read.trained.rank)
        folded |= {"vae_lora_encoder_modules": of_vae[ENCODER], "rank_vae": rank + read.trained.rank}
        folded |= {"state_dict_vae": state}
    return {**content, **folded}


def select(read: lora.Read, prefix: str) -> State:
    """The trained tensors of a part, by their names in it."""
    return {name.removeprefix(prefix): value for name, value in read.state.items() if name.startswith(prefix)}


def fold(
    state: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], rank: int, fresh: Mapping[str, Tensor], more: int
) -> tuple[State, dict[str, list[str]]]:
    """Published adapters, and fresh ones that count once, as adapters of rank `rank + more` that count 8 / rank.

    Args:
        state: by name `LAYER.lora_A.ADAPTER.weight`, and other tensors, which stay.
        groups: adapter -> its layers, of the published ones.
        rank: of the published ones; 0 for none.
        fresh: as `state`.
        more: their rank.
    Returns:
        the state and the groups; a layer that only one of the two has gets zeros for the other.
    """
    found: State = {name: value for name, value in state.items() if ".lora_" not in name}
    named = {adapter: list(layers) for adapter, layers in groups.items()}
    owners = {layer: adapter for adapter, layers in groups.items() for layer in layers}
    for name in fresh:
        layer, _, end = name.partition(".lora_A.")
        if end and layer not in owners:
            owners[layer] = _adapter(name)
            named[owners[layer]].append(layer)
    ours = {name.replace(f".{_adapter(name)}.", "."): value for name, value in fresh.items()}
    whole = rank + more
    for layer, adapter in owners.items():
        pairs = []
        for table, end, size, factor in (
            (state, f"{adapter}.weight", rank, whole / rank if rank else 0.0),
            (ours, "weight", more, whole / PUBLISHED_ALPHA),
        ):
            down, up = table.get(f"{layer}.lora_A.{end}"), table.get(f"{layer}.lora_B.{end}")
            pairs.append((size, down, up * factor if up is not None else None))
        like = next((down, up) for _, down, up in pairs if down is not None and up is not None)
        both = [(down, up) if down is not None and up is not None else _zeros(*like, size) for size, down, up in pairs]
        found[f"{layer}.lora_A.{adapter}.weight"] = torch.cat([down for down, _ in both])
        found[f"{layer}.lora_B.{adapter}.weight"] = torch.cat([up for _, up in both], dim=1)
    return found, named


def _adapter(name: str) -> str:
    """ADAPTER of 'LAYER.lora_A.ADAPTER.weight'."""
    return name.split(".")[-2]


def _zeros(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors of an adapter that changes nothing, of the layer of these."""
    return down.new_zeros(rank, *down.shape[1:]), up.new_zeros(up.shape[0], rank, *up.shape[2:])


PUT: dict[str, Callable[[dict[str, Any], lora.Read], dict[str, Any]]] = {
    "hypir": put_own,
    "osdface": put_own,
    "pisasr": put_pisasr,
    "osediff": put_osediff,
    "gdpo": put_osediff,
}
