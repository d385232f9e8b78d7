"""Write the published files of one-step restorers, small and with random numbers, by rules of their own code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

LEARNED = 0.02
"""Standard deviation of the factors of adapters."""
HYPIR_ENDS = "to_k to_q to_v to_out.0 conv conv1 conv2 conv_shortcut conv_out proj_in proj_out ff.net.2 ff.net.0.proj"
PISA_PARTS = "to_k to_q to_v to_out.0 conv conv1 conv2 conv_in conv_shortcut conv_out proj_out proj_in ff.net.2"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers whose adapters diffusers saves under names of its own."""


def list_weights(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    """Layer -> shape of its weight, of all that are no norm."""
    named = unet.named_parameters()
    return {n.removesuffix(".weight"): tuple(p.shape) for n, p in named if n.endswith(".weight") and "norm" not in n}


def list_hypir_layers(unet: nn.Module) -> list[str]:
    """peft's rule for a list of targets: the whole name, or its end behind a dot."""
    targets = HYPIR_ENDS.split()
    return [name for name in list_weights(unet) if any(name == one or name.endswith(f".{one}") for one in targets)]


def group_pisa_layers(unet: nn.Module, last: str = "decoder") -> dict[str, list[str]]:
    """PiSA-SR's rule: by patterns anywhere in the name; GDPO-SR's puts the last convolution elsewhere."""
    groups: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name in list_weights(unet):
        if not any(part in name for part in [*PISA_PARTS.split(), "ff.net.0.proj"]):
            continue
        if "down_blocks" in name or "conv_in" in name:
            groups["encoder"].append(name)
        elif "up_blocks" in name:
            groups["decoder"].append(name)
        else:
            groups[last if "conv_out" in name else "others"].append(name)
    return groups


def shape_factors(weight: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of a layer."""
    ones = (1,) * (len(weight) - 2)
    return (rank, *weight[1:]), (weight[0], rank, *ones)


def draw_lora(unet: nn.Module, layers: list[str], rank: int, adapter: str) -> dict[str, torch.Tensor]:
    """Tensors by peft's names."""
    weights, state = list_weights(unet), {}
    for layer in layers:
        down, up = shape_factors(weights[layer], rank)
        state[f"{layer}.lora_A.{adapter}.weight"] = LEARNED * 5 * torch.randn(down)
        state[f"{layer}.lora_B.{adapter}.weight"] = LEARNED * torch.randn(up)
    return state


def draw_pisa(unet: nn.Module, rank: int = 2) -> dict[str, object]:
    """What PiSA-SR's `save_model` writes."""
    content: dict[str, object] = {}
    state: dict[str, torch.Tensor] = {}
    for kind in ("pix", "sem"):
        for place, layers in group_pisa_layers(unet).items():
            content[f"unet_lora_{place}_modules_{kind}"] = layers
            state |= draw_lora(unet, layers, rank, f"default_{place}_{kind}")
        content[f"lora_rank_unet_{kind}"] = rank
    return {**content, "state_dict_unet": state}


def name_as_diffusers(name: str) -> str:
    """diffusers' name in a file of adapters for one that peft gave."""
    name = f"unet.{name.replace('.default.', '.')}"
    if name.split(".lora_")[0].endswith(ATTENTION):
        return name.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
    return name


def write_one_step_files(folder: Path, unet: nn.Module, vae: nn.Module, context: int) -> None:
    """Write the files of hypir, osdface, pisasr and gdpo for a denoiser of these sizes."""
    torch.save(draw_lora(unet, list_hypir_layers(unet), 6, "default"), folder / "HYPIR_sd2.pth")
    few = [name for name in list_hypir_layers(unet) if "up_blocks" not in name]
    named = {name_as_diffusers(key): value for key, value in draw_lora(unet, few, 3, "default").items()}
    save_file(named, folder / "pytorch_lora_weights.safetensors")
    torch.save(draw_pisa(unet), folder / "pisa_sr.pkl")
    save_file({key: value + 0.01 for key, value in unet.state_dict().items()}, folder / "gdpo_unet.safetensors")
    save_file({key: value.clone() for key, value in vae.state_dict().items()}, folder / "gdpo_vae.safetensors")
    words = draw_words([32, 32], 90, 32)
    torch.save({"state_dict": words, "epoch": 3}, folder / "associate_2.ckpt")
    change = {"conv1.weight": torch.randn(16, 32, 1), "conv1.bias": torch.randn(16)}
    change |= {"conv2.weight": torch.randn(context, 16, 1), "conv2.bias": torch.randn(context)}
    torch.save(change, folder / "embedding_change_weights.pth")


def draw_words(widths: list[int], words: int, word: int, blocks: int = 1) -> dict[str, torch.Tensor]:
    """A checkpoint of two autoencoders with vocabularies, whose low-quality encoder OSDFace takes; by its names."""
    shapes: dict[str, tuple[int, ...]] = {"conv_in": (widths[0], 3, 3, 3)}
    norms: dict[str, int] = {}

    def add_block(name: str, inside: int, out: int) -> None:
        norms.update({f"{name}.norm1": inside, f"{name}.norm2": out})
        shapes.update({f"{name}.conv1": (out, inside, 3, 3), f"{name}.conv2": (out, out, 3, 3)})
        if inside != out:
            shapes[f"{name}.nin_shortcut"] = (out, inside, 1, 1)

    def add_attention(name: str, width: int) -> None:
        norms.update({f"{name}.norm1": width, f"{name}.norm2": width})
        shapes.update({f"{name}.{part}": (width, width, 1, 1) for part in ("q", "k", "v", "proj_out")})

    inside = widths[0]
    for level, width in enumerate(widths):
        for block in range(blocks):
            add_block(f"down.{level}.block.{block}", inside, width)
            inside = width
            if level == len(widths) - 1:
                add_attention(f"down.{level}.attn.{block}", width)
        if level < len(widths) - 1:
            shapes[f"down.{level}.downsample.conv"] = (width, width, 3, 3)
    add_block("mid.block_1", inside, inside)
    add_attention("mid.attn_1", inside)
    add_block("mid.block_2", inside, inside)
    norms["norm_out"], shapes["conv_out"] = inside, (word, inside, 3, 3)
    state = {f"encoder.{name}.weight": torch.randn(shape) / 10 for name, shape in shapes.items()}
    state |= {f"encoder.{name}.bias": torch.randn(shape[0]) / 10 for name, shape in shapes.items()}
    state |= {f"encoder.{name}.weight": 1 + torch.randn(width) / 10 for name, width in norms.items()}
    state |= {f"encoder.{name}.bias": torch.randn(width) / 10 for name, width in norms.items()}
    state |= {"quantize.embedding.weight": torch.randn(words, word)}
    state |= {"quant_conv.weight": torch.randn(word, word, 1, 1), "quant_conv.bias": torch.randn(word)}
    state["decoder.conv_in.weight"] = torch.zeros(1)
    return {f"vqvae_{which}.{key}": value for which in ("LQ", "HQ") for key, value in state.items()}
