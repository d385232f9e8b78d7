"""A reward model from its config, to a checkpoint folder and back. Loading is strict, saving leaves nothing out.

A checkpoint folder holds `config.json` (the ModelConfig), `architecture.json` (open_clip's form) and
`model.safetensors`, whose keys are open_clip's, with `prompt_vector` beside them where the prompt is learned.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reward.config import FOLDER, ModelConfig, check_model_config, load_model_config
from reward.model import RewardModel
from reward.weights import SUFFIXES, find_weights, read_weights
from runs import UserError

KNOWN_KEYS: dict[str, set[str]] = {
    "embed_dim": set(),
    "quick_gelu": set(),
    "vision_cfg": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
"""What an architecture may say: a plain CLIP, whose towers are run block by block."""
MAX_NAMED = 5
PROMPT_VECTOR = "prompt_vector"


def build_model(config: ModelConfig) -> RewardModel:
    """A model at the start of its training, on the CPU in float32; random weights are drawn from torch's generator.

    Raises:
        UserError: no such architecture or weights, weights that are not this architecture's, or too many blocks.
    """
    architecture = read_architecture(config)
    if config.weights:
        path = find_weights(config, quick_gelu=bool(architecture.get("quick_gelu")))
        model = allocate_model(config, architecture)
        load_strictly(model.clip, read_weights(path), path)
    else:
        model = RewardModel(config, architecture)
    if config.text_mode == "learned":
        with torch.no_grad():
            vector = model.encode_tokens(model.tokenize([config.prompt]))[0]
        model.prompt_vector = nn.Parameter(vector)
    return model.eval()


def load_model(path: Path) -> RewardModel:
    """The model of a checkpoint folder, or of a published weight file, taken as the preset vit-h-14; on the CPU, eval.

    Raises:
        UserError: there is none, a file of it is damaged, or a key is unknown, missing or of another shape.
    """
    if path.is_file() and path.suffix in SUFFIXES:
        return build_model(load_model_config("vit-h-14", weights=str(path)))
    config, architecture = read_config(path), _read_json(path / "architecture.json")
    check_architecture(architecture, str(path / "architecture.json"))
    weights = path / "model.safetensors"
    state = read_weights(weights)
    model = allocate_model(config, architecture)
    load_strictly(model, {k if k == PROMPT_VECTOR else f"clip.{k}": value for k, value in state.items()}, weights)
    return model.eval()


def read_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    return check_model_config(_read_json(path), str(path))


def save_model(model: RewardModel, folder: Path) -> None:
    """Write the checkpoint; each file is there whole or not at all. `load_model` gives bit-equal float32 numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name.removeprefix("clip."): value.contiguous() for name, value in model.state_dict().items()}
    texts = {"config": model.config.model_dump(mode="json"), "architecture": model.architecture}
    for name, values in texts.items():
        unfinished = folder / f"{name}.json.part"
        unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / f"{name}.json")
    unfinished = folder / "model.safetensors.part"
    save_file(state, unfinished)
    unfinished.replace(folder / "model.safetensors")


def read_architecture(config: ModelConfig) -> dict[str, Any]:
    """open_clip's description of the config's CLIP, its image size the config's.

    Raises:
        UserError: no such architecture, or not a plain CLIP.
    """
    shipped = FOLDER / f"{config.architecture}.json"
    path = shipped if shipped.is_file() else Path(config.architecture).expanduser()
    architecture = _read_json(path) if path.suffix == ".json" else open_clip.get_model_config(config.architecture)
    if not architecture:
        raise UserError(
            f"There is no architecture {config.architecture!r}. Name one of open_clip's ViT models, such as ViT-H-14, "
            "`tiny`, or a JSON file in open_clip's form."
        )
    check_architecture(architecture, config.architecture)
    patch = architecture["vision_cfg"]["patch_size"]
    if config.image_size_px % patch:
        raise UserError(
            f"image_size_px is {config.image_size_px}, no multiple of {config.architecture}'s patch, {patch}."
        )
    vision = {**architecture["vision_cfg"], "image_size": config.image_size_px}
    return {**architecture, "vision_cfg": vision}


def check_architecture(architecture: dict[str, Any], where: str) -> None:
    """That it is a plain CLIP with a vision transformer.

    Raises:
        UserError: it says something else, or lacks a part.
    """
    missing = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in architecture]
    if missing:
        raise UserError(f"{where}: not a CLIP architecture; it lacks {', '.join(missing)}.")
    unknown = sorted(set(architecture) - set(KNOWN_KEYS)) + [
        f"{tower}.{name}"
        for tower in ("vision_cfg", "text_cfg")
        for name in architecture[tower]
        if name not in KNOWN_KEYS[tower]
    ]
    if unknown or not isinstance(architecture["vision_cfg"].get("layers"), int):
        what = f"it sets {', '.join(unknown)}" if unknown else "its image tower is no vision transformer"
        raise UserError(f"{where}: only plain CLIPs with a vision transformer can be trained here; {what}.")


def allocate_model(config: ModelConfig, architecture: dict[str, Any]) -> RewardModel:
    """A model whose parameters are on the meta device until `load_strictly`: no billion numbers are drawn."""
    with torch.device("meta"):
        model = RewardModel(config, architecture)
    length = model.clip.context_length
    model.clip.attn_mask = torch.full((length, length), float("-inf")).triu_(1)  # no parameter, so in no file
    return model


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Make these tensors the module's parameters.

    Raises:
        UserError: a key is unknown, missing or of another shape; the first few are named.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    faults = [
        *(f"{name} is unknown" for name in found if name not in expected),
        *(f"{name} is missing" for name in expected if name not in found),
        *(
            f"{name} is {list(found[name])}, not {list(shape)}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ),
    ]
    if faults:
        named = "; ".join(fault.removeprefix("clip.") for fault in faults[:MAX_NAMED])
        more = f", and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise UserError(
            f"{source}: not the weights of this architecture: {named}{more}. Check `architecture` and `image_size_px`."
        )
    module.load_state_dict(state, strict=True, assign=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Give a checkpoint folder of this project."
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from error
