"""Convert published checkpoints to our classes and back: Stable Diffusion 2, DiffBIR's ControlNet, OpenCLIP.

The tables are rules from a diffusers name to the name in the published file, so that one rule serves both directions
and the model itself says what must be there. Everything is strict: a key too many, too few or of another shape ends in
a UserError that names it; only what an LDM checkpoint is known to carry besides weights is passed over, and counted.

Source of the layouts: `ldm/modules/diffusionmodules/openaimodel.py` and `model.py` of Stability-AI/stablediffusion,
`diffbir/model/controlnet.py` of XPixelGroup/DiffBIR, against diffusers' UNet2DConditionModel and AutoencoderKL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from db.errors import UserError
from refl.published.text_encoder import TextEncoder
from training.weights import State, check_strictly, name_some, strip_prefix

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
"""Prefixes of the keys of a Stable Diffusion 2 checkpoint."""
CONTROL_KEY, UNET_KEY = "zero_convs.0.0.weight", f"{UNET}input_blocks.0.0.weight"
"""Names by which a ControlNet and a whole Stable Diffusion are found among others."""
EXTRA = re.compile(
    r"(betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recipm?1?_alphas_cumprod|posterior_\w+|logvar|"
    r"lvlb_weights|scale_factor|model_ema\..+|cond_stage_model\.(model\.attn_mask|model\.visual\..+|logit_scale)|"
    r"control_model\..+|preprocess_model\..+|cond_encoder\..+)"
)
"""Keys of an LDM checkpoint besides the three models: the noise schedule's buffers, EMA copies and counters, what an
older OpenCLIP kept as a buffer, and the parts that DiffBIR's first release put beside Stable Diffusion."""
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@dataclass(frozen=True)
class StableDiffusionState:
    """The three models of one LDM checkpoint, by their own LDM names."""

    unet: State
    vae: State
    text: State
    extra: int = 0
    """Entries besides."""


def split_checkpoint(state: Mapping[str, Tensor], source: Path | str) -> StableDiffusionState:
    """Part a Stable Diffusion 2 checkpoint; what it is known to hold besides is counted.

    Raises:
        UserError: a key is of none of these, or one of the three models is absent.
    """
    state = strip_prefix(dict(state), {UNET_KEY}, source)
    parts = {prefix: select(state, prefix) for prefix in (UNET, VAE, TEXT)}
    extra = {key for key in state if EXTRA.fullmatch(key)}
    for key in extra:
        parts[TEXT].pop(key.removeprefix(TEXT), None)
    unknown = [key for key in state if not key.startswith(tuple(parts)) and key not in extra]
    absent = [prefix for prefix, part in parts.items() if not part]
    if unknown or absent:
        faults = [*(f"{key} is unknown" for key in unknown), *(f"{prefix}* is missing" for prefix in absent)]
        raise UserError(f"{source}: not a Stable Diffusion 2 checkpoint: {name_some(faults)}.")
    return StableDiffusionState(parts[UNET], parts[VAE], parts[TEXT], len(extra))


def select(state: Mapping[str, Tensor], prefix: str) -> State:
    """The entries whose key begins so, by the rest of their key."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def select_control(state: Mapping[str, Tensor], source: Path | str) -> State:
    """A ControlNet's entries by DiffBIR's names, out of a file of it alone or of a whole older DiffBIR model."""
    return strip_prefix(dict(state), {CONTROL_KEY}, source)


def name_unet_key(key: str, layers_per_block: int, attended: frozenset[str]) -> str:
    """LDM's name of a parameter of a UNet2DConditionModel or a ControlNet.

    Args:
        layers_per_block: residual blocks a level.
        attended: numbers of the `up_blocks` with attention, in which LDM's upsampler stands one slot later.
    """
    step = layers_per_block + 1
    match key.split("."):
        case ["time_embedding", layer, *rest]:
            return _join(f"time_embed.{0 if layer == 'linear_1' else 2}", rest)
        case ["conv_in", *rest]:
            return _join("input_blocks.0.0", rest)
        case ["conv_norm_out", *rest]:
            return _join("out.0", rest)
        case ["conv_out", *rest]:
            return _join("out.2", rest)
        case ["controlnet_down_blocks", number, *rest]:
            return _join(f"zero_convs.{number}.0", rest)
        case ["controlnet_mid_block", *rest]:
            return _join("middle_block_out.0", rest)
        case ["mid_block", kind, number, *rest]:
            slot = 1 if kind == "attentions" else 2 * int(number)
            return _join(f"middle_block.{slot}", _name_inside(kind, rest))
        case ["down_blocks", block, "downsamplers", _, "conv", *rest]:
            return _join(f"input_blocks.{(int(block) + 1) * step}.0.op", rest)
        case ["up_blocks", block, "upsamplers", _, "conv", *rest]:
            slot = 2 if block in attended else 1
            return _join(f"output_blocks.{int(block) * step + layers_per_block}.{slot}.conv", rest)
        case ["down_blocks" | "up_blocks" as way, block, kind, number, *rest]:
            place = int(block) * step + int(number)
            name = f"input_blocks.{place + 1}" if way == "down_blocks" else f"output_blocks.{place}"
            return _join(f"{name}.{int(kind == 'attentions')}", _name_inside(kind, rest))
    raise ValueError(f"{key} is not a tensor of Stable Diffusion 2's UNet2DConditionModel")


def name_vae_key(key: str, levels: int) -> str:
    """LDM's name of a parameter of an AutoencoderKL; its `up` counts from the finest level."""
    match key.split("."):
        case [("encoder" | "decoder") as side, "mid_block", "resnets", number, *rest]:
            return _join(f"{side}.mid.block_{int(number) + 1}", _shortcut(rest))
        case [("encoder" | "decoder") as side, "mid_block", "attentions", _, *rest]:
            *names, last = rest
            return f"{side}.mid.attn_1.{VAE_ATTENTION['.'.join(names)]}.{last}"
        case ["encoder", "down_blocks", block, "resnets", number, *rest]:
            return _join(f"encoder.down.{block}.block.{number}", _shortcut(rest))
        case ["encoder", "down_blocks", block, "downsamplers", _, *rest]:
            return _join(f"encoder.down.{block}.downsample", rest)
        case ["decoder", "up_blocks", block, "resnets", number, *rest]:
            return _join(f"decoder.up.{levels - 1 - int(block)}.block.{number}", _shortcut(rest))
        case ["decoder", "up_blocks", block, "upsamplers", _, *rest]:
            return _join(f"decoder.up.{levels - 1 - int(block)}.upsample", rest)
        case [side, "conv_norm_out", last]:
            return f"{side}.norm_out.{last}"
    return key


def make_key_table(model: nn.Module) -> dict[str, str]:
    """Name in our model -> name in the published file, for every entry of the model's state."""
    name = _rule(model)
    return {key: name(key) for key in model.state_dict()}


def load_published(model: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Fill a model, which may be on the meta device, from its part of a published file.

    Args:
        model: a UNet2DConditionModel, ControlNetModel, AutoencoderKL or TextEncoder.
        state: by published names without prefix; its tensors become the parameters.
        source: of which file, for the message.
    Raises:
        UserError: a key is unknown, missing or of another shape.
    """
    state = check_published(model, state, source)
    table = make_key_table(model)
    model.load_state_dict({key: state[name] for key, name in table.items()}, strict=True, assign=True)


def check_published(model: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> State:
    """`load_published` without loading: the tensors in the model's shapes, of which none is read.

    Raises:
        UserError: a key is unknown, missing or of another shape.
    """
    table = make_key_table(model)
    expected = {table[key]: value for key, value in model.state_dict().items()}
    attention = {table[key] for key in table if isinstance(model, AutoencoderKL) and ".attentions." in key}
    found = {
        key: value.reshape(expected[key].shape) if key in attention and value.shape[2:] == (1, 1) else value
        for key, value in state.items()  # a 1 x 1 convolution there is a linear layer here
    }
    check_strictly(expected, found, source, type(model).__name__)
    return found


def export_control(control: ControlNetModel) -> State:
    """A ControlNet's state as DiffBIR's own code loads it strictly; the tensors are the model's, bit for bit."""
    table = make_key_table(control)
    return {table[key]: value for key, value in control.state_dict().items()}


def _rule(model: nn.Module) -> Callable[[str], str]:
    if isinstance(model, (UNet2DConditionModel, ControlNetModel)):
        layers: int = model.config.layers_per_block
        attended = frozenset(re.findall(r"^up_blocks\.(\d+)\.attentions", "\n".join(model.state_dict()), re.MULTILINE))
        return lambda key: name_unet_key(key, layers, attended)
    if isinstance(model, AutoencoderKL):
        levels = len(model.config.block_out_channels)
        return lambda key: name_vae_key(key, levels)
    if isinstance(model, TextEncoder):
        return lambda key: key.removeprefix("model.")
    raise TypeError(f"there is no published file of a {type(model).__name__}")


def _name_inside(kind: str, rest: list[str]) -> list[str]:
    return [RESNET[rest[0]], *rest[1:]] if kind == "resnets" else rest


def _shortcut(rest: list[str]) -> list[str]:
    return ["nin_shortcut", *rest[1:]] if rest[0] == "conv_shortcut" else rest


def _join(name: str, rest: Iterable[str]) -> str:
    return ".".join([name, *rest])
