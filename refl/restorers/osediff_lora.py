"""Put OSEDiff's adapters on their layers, merge them, and read them from the published file.

Source: `initialize_unet`, `initialize_vae` and `load_ckpt` of cswry/OSEDiff, in peft's and our terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from db.errors import UserError
from refl.restorers.lora import lora_layers
from training.weights import check_strictly, name_some

PUBLISHED_ALPHA = 8
"""peft's default, with which OSEDiff was trained: adapters count alpha / rank, so twice at its rank 4."""
ENCODER, DECODER, OTHERS = "default_encoder", "default_decoder", "default_others"
"""Names of the groups of adapters, as in the published file; the autoencoder's has the first name too."""
TARGET_ENDS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
"""Layers that get an adapter by the end of their name, besides every convolution."""
MODULES = {
    ENCODER: "unet_lora_encoder_modules",
    DECODER: "unet_lora_decoder_modules",
    OTHERS: "unet_lora_others_modules",
}
"""Keys under which the published file lists a group's layers."""
DENOISER_KEYS = (*MODULES.values(), "rank_unet", "state_dict_unet")


def group_layers(unet: nn.Module) -> dict[str, list[str]]:
    """List the denoiser's layers that get an adapter: of the way down, of the way up, of the middle."""
    groups: dict[str, list[str]] = {ENCODER: [], DECODER: [], OTHERS: []}
    for name in list_target_layers(unet):
        if name == "conv_in" or name.startswith("down_blocks."):
            groups[ENCODER].append(name)
        elif name == "conv_out" or name.startswith("up_blocks."):
            groups[DECODER].append(name)
        else:
            groups[OTHERS].append(name)
    return groups


def list_encoder_layers(vae: nn.Module) -> list[str]:
    """List the autoencoder's layers that get an adapter: those of its encoder."""
    return [name for name in list_target_layers(vae) if name.startswith("encoder.") or name == "quant_conv"]


def list_target_layers(part: nn.Module) -> list[str]:
    """List all convolutions, and the linear layers of attention and its feed-forward."""
    return [
        name
        for name, layer in part.named_modules()
        if isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Linear) and name.endswith(TARGET_ENDS))
    ]


def add_adapters(part: nn.Module, groups: Mapping[str, Sequence[str]], rank: int, alpha: float) -> None:
    """Put trainable adapters on the layers of these full names; at first they change nothing.

    Raises:
        ValueError: the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, got {rank}")
    for adapter, names in groups.items():
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(names))
        inject_adapter_in_model(config, part, adapter)
        del part.peft_config  # peft's note of one adapter, which it would take for a conflict with the next
    for layer in lora_layers(part):
        layer.set_adapter(list(layer.lora_A))  # injecting an adapter silences all others


def merge_lora(part: nn.Module) -> None:
    """Replace every layer that has adapters by a plain layer with their sum."""
    for name, layer in list(part.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(part.get_submodule(parent), child, layer.get_base_layer())


def load_published_adapters(unet: nn.Module, vae: nn.Module, content: Any, source: Path) -> None:
    """Put the adapters of OSEDiff's published file on a denoiser and an autoencoder, not merged.

    Args:
        content: lists of layers, ranks, and tensors by name, as its `save_model` wrote them.
    Raises:
        UserError: a part, a layer or a tensor is missing, unknown or of another shape.
    """
    check_table(content, [*DENOISER_KEYS, "vae_lora_encoder_modules", "rank_vae", "state_dict_vae"], source)
    vae_groups = {ENCODER: sorted(set(content["vae_lora_encoder_modules"]))}  # written once for each pattern it meets
    check_layers(vae, vae_groups, source)
    load_denoiser_adapters(unet, content, source)
    add_adapters(vae, vae_groups, content["rank_vae"], PUBLISHED_ALPHA)
    copy_strictly(vae, content["state_dict_vae"], ("lora",), source)


def load_denoiser_adapters(unet: nn.Module, content: Any, source: Path) -> None:
    """Put the adapters of such a file on a denoiser alone, not merged; GDPO-SR's files have no others.

    Raises:
        UserError: as `load_published_adapters`.
    """
    check_table(content, DENOISER_KEYS, source)
    groups = {adapter: content[key] for adapter, key in MODULES.items()}
    check_layers(unet, groups, source)
    add_adapters(unet, groups, content["rank_unet"], PUBLISHED_ALPHA)
    copy_strictly(unet, content["state_dict_unet"], ("lora", "conv_in"), source)


def check_table(content: Any, keys: Sequence[str], source: Path) -> None:
    """Check that a file holds a table with these entries.

    Raises:
        UserError: it does not.
    """
    if not isinstance(content, Mapping) or (absent := [key for key in keys if key not in content]):
        what = f"it lacks {', '.join(absent)}" if isinstance(content, Mapping) else "it is not a table"
        raise UserError(f"{source}: not OSEDiff's adapters: {what}.")


def check_layers(part: nn.Module, groups: Mapping[str, Sequence[str]], source: Path) -> None:
    """Check that a part has the layers of these groups of adapters.

    Raises:
        UserError: it lacks some.
    """
    layers = dict(part.named_modules())
    unknown = [f"there is no layer {name}" for names in groups.values() for name in names if name not in layers]
    if unknown:
        raise UserError(f"{source}: not adapters of this Stable Diffusion: {name_some(unknown)}.")


@torch.no_grad()
def copy_strictly(part: nn.Module, state: Mapping[str, Tensor], marks: tuple[str, ...], source: Path) -> None:
    """Overwrite the parameters whose name contains one of these marks.

    Raises:
        UserError: one is missing, unknown or of another shape.
    """
    ours = {name: value for name, value in part.named_parameters() if any(mark in name for mark in marks)}
    check_strictly(ours, state, source, "OSEDiff's adapters")
    for name, value in ours.items():
        value.copy_(state[name])
