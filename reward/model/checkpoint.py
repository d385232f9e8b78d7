"""Build a reward model from its config; save it to a checkpoint folder, complete, and load it, strictly.

A checkpoint folder holds `config.json` (the ModelConfig), `architecture.json` (open_clip's form) and
`model.safetensors`, whose keys are open_clip's, `prompt_vector` and `heads.…` beside them where it has them. What ReFL
has taught a model is a folder with `changes.safetensors` instead, the trained tensors under the same keys, and
`base.json`: of which model the rest is, as a person called it, and its version, by which another one is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from db.errors import UserError
from reward.model.config import FOLDER, ModelConfig, load_model_config, preset_names
from reward.model.manifest import read_manifest
from reward.model.model import RewardModel, make_heads
from reward.model.weights import find_weights, locate_weights
from runs.files import read_json
from runs.options import make_table
from training.weights import State, check_strictly, load_strictly, map_weights, read_weights, save_tensors, strip_prefix

KNOWN_KEYS: dict[str, set[str]] = {
    "embed_dim": set(),
    "quick_gelu": set(),
    "vision_cfg": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
"""Fields that an architecture may have: a plain CLIP, whose towers are run block by block."""
OWN_TENSORS = ("prompt_vector", "heads.")
"""How the names begin that are not open_clip's."""
VERSION_PREFIX = "reward "
"""Prefix of the version of every stored reward."""
NOT_IN_VERSION = {"weights", "unlocked_image_groups", "unlocked_text_blocks"}
"""Fields of where training started and what it trained: a reward depends on none of them."""
ADVICE = "Give a checkpoint folder of this project."


def build_model(
    config: ModelConfig, dtype: torch.dtype = torch.float32, weights_dir: Path | None = None
) -> RewardModel:
    """A model at the start of its training, on the CPU; random weights are drawn from torch's generator.

    Args:
        dtype: of its numbers; a file's become it as they are read.
        weights_dir: folder of published files; a name of the manifest is looked for there first.
    Raises:
        UserError: no such architecture or weights, weights that are not this architecture's, or too many blocks.
    """
    architecture = read_architecture(config)
    if config.weights:
        path = find_weights(config, bool(architecture.get("quick_gelu")), weights_dir)
        model = allocate_model(config, architecture)
        fill_strictly(model.clip, path, dtype)
    else:
        model = RewardModel(config, architecture)
    model = model.to(dtype)
    if config.learns_prompt:
        with torch.no_grad():
            vector = model.encode_tokens(model.tokenize([config.prompt]))[0]
        model.prompt_vector = nn.Parameter(vector)
    if config.has_heads and config.weights:  # the file has none
        model.heads = make_heads(config, architecture["embed_dim"])
    return model.to(dtype).eval()


def load_model(path: Path, dtype: torch.dtype = torch.float32, weights_dir: Path | None = None) -> RewardModel:
    """The model of a checkpoint folder, or of a published weight file, taken as the preset vit-h-14; on the CPU, eval.

    Args:
        dtype: what its numbers become as they are read.
        weights_dir: folder of published files, where the folder holds only what was trained of one.
    Raises:
        UserError: there is none, a file of it is damaged, or a key is unknown, missing or of another shape.
    """
    if path.is_file():
        return build_model(load_model_config("vit-h-14", weights=str(path)), dtype)
    if (path / "base.json").is_file():
        return _load_changed(path, weights_dir).to(dtype)
    config, architecture = read_model_config(path)
    model = allocate_model(config, architecture)
    fill_strictly(model, path / "model.safetensors", dtype, add_prefix)
    return model.to(dtype).eval()


def read_model_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """(config, architecture) of a checkpoint folder.

    Raises:
        UserError: one is missing or damaged.
    """
    values = {name: read_json(folder / f"{name}.json", ADVICE) for name in ("config", "architecture")}
    check_architecture(values["architecture"], str(folder / "architecture.json"))
    return make_table(ModelConfig, values["config"], str(folder / "config.json")), values["architecture"]


def add_prefix(state: State) -> State:
    """A checkpoint's tensors by the names that a RewardModel gives them."""
    return {name if name.startswith(OWN_TENSORS) else f"clip.{name}": value for name, value in state.items()}


def save_model(model: RewardModel, folder: Path, values: Mapping[nn.Parameter, Tensor] | None = None) -> None:
    """Write the checkpoint; each file is there whole or not at all. `load_model` gives bit-equal float32 numbers.

    Args:
        values: of trained parameters, where they are kept elsewhere than in the model.
    """
    state = {
        name.removeprefix("clip."): (values or {}).get(parameter, parameter).detach().contiguous()
        for name, parameter in model.named_parameters()
    }
    _write_folder(folder, model, {}, "model.safetensors", state)


def save_changes(model: RewardModel, values: Mapping[nn.Parameter, Tensor], base: dict[str, str], folder: Path) -> None:
    """Write what was trained of a model, and of which model the rest is; each file is there whole or not at all.

    Args:
        values: of the trained parameters, float32.
        base: `model`, what `load_named` takes, and `version`, its `compute_version`.
    """
    named = {name.removeprefix("clip."): parameter for name, parameter in model.named_parameters()}
    state = {name: values[one].detach().cpu().contiguous() for name, one in named.items() if one in values}
    _write_folder(folder, model, {"base": base}, "changes.safetensors", state)


def _write_folder(folder: Path, model: RewardModel, more: dict[str, Any], file: str, state: State) -> None:
    """Write a model's config and architecture, more JSON by name, and tensors; the tensors last."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"config": model.config.model_dump(mode="json"), "architecture": model.architecture, **more}
    for name, text in texts.items():
        unfinished = folder / f"{name}.json.part"
        unfinished.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / f"{name}.json")
    save_tensors(state, folder / file)


@torch.no_grad()
def load_changes(model: RewardModel, folder: Path) -> None:
    """Overwrite the trained parameters of a model by what `save_changes` wrote.

    Raises:
        UserError: the file is damaged, or a key is unknown or of another shape.
    """
    path = folder / "changes.safetensors"
    state = add_prefix(read_weights(path))
    ours = dict(model.named_parameters())
    check_strictly({name: value for name, value in ours.items() if name in state}, state, path, "this model")
    for name, value in state.items():
        ours[name].copy_(value)


def _load_changed(path: Path, weights_dir: Path | None) -> RewardModel:
    """The model of a folder that holds only what was trained."""
    base = read_json(path / "base.json", ADVICE)
    model = load_named(base["model"], weights_dir=weights_dir)
    if (found := compute_version(model)) != base["version"]:
        raise UserError(
            f"{path}: was trained from {base['model']} when that was {base['version']}; now it is {found}. Put the "
            "model that it was trained from back into its place."
        )
    load_changes(model, path)
    return model


def find_named(what: str, weights_dir: Path | None = None) -> tuple[Path | None, ModelConfig]:
    """Find the model of that name: its checkpoint folder where it is one, and its config; no weights are read.

    Args:
        what: a checkpoint folder or a training's, whose best/ is taken; a weight file or a name of weights.toml, both
            of the preset vit-h-14's architecture; or a preset or TOML file (a CLIP as published).
        weights_dir: folder of published files; a name of weights.toml is looked for there first.
    Raises:
        UserError: there is none, or its weights cannot be got.
    """
    path, names = Path(what).expanduser(), read_manifest(weights_dir)
    if path.is_dir():
        path = path / "best" if (path / "best").is_dir() and not (path / "config.json").exists() else path
        return path, read_model_config(path)[0]
    if path.is_file() and path.suffix.lower() != ".toml":
        config = load_model_config("vit-h-14", weights=str(path))
    elif what in names:
        config = load_model_config("vit-h-14", weights=what)
    elif what in preset_names() or path.suffix == ".toml":
        config = load_model_config(what)
    else:
        raise UserError(
            f"There is no scorer {what!r}. Give a checkpoint folder, a weight file, one of {', '.join(names)} "
            f"(reward/model/weights.toml), or one of the presets {', '.join(preset_names())}."
        )
    if config.weights:
        locate_weights(config, bool(read_architecture(config).get("quick_gelu")), weights_dir)
    return None, config


def read_shape(what: str, weights_dir: Path | None = None) -> tuple[ModelConfig, dict[str, Any]]:
    """(config, architecture) of the model that `find_named` finds: what its memory depends on.

    Raises:
        UserError: there is none, or its weights cannot be got.
    """
    folder, config = find_named(what, weights_dir)
    return read_model_config(folder) if folder else (config, read_architecture(config))


def load_named(what: str, dtype: torch.dtype = torch.float32, weights_dir: Path | None = None) -> RewardModel:
    """The model that `find_named` finds, on the CPU.

    Raises:
        UserError: there is none, or it is damaged or of another architecture.
    """
    folder, config = find_named(what, weights_dir)
    return load_model(folder, dtype, weights_dir) if folder else build_model(config, dtype, weights_dir)


def compute_version(model: RewardModel) -> str:
    """'reward ' and 16 hex digits: a hash of all that a reward depends on, every weight and how images are fed."""
    settings = {key: value for key, value in model.config.model_dump(mode="json").items() if key not in NOT_IN_VERSION}
    settings.pop("architecture")  # a name or a path; what it stands for is hashed
    if not model.config.needs_input:
        settings.pop("input_photo")
    if model.config.members == 1:
        settings.pop("members")  # so that versions from before there were any stay
    digest = hashlib.sha256(json.dumps([settings, model.architecture], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return VERSION_PREFIX + digest.hexdigest()[:16]


def read_architecture(config: ModelConfig) -> dict[str, Any]:
    """open_clip's description of the config's CLIP, its image size the config's.

    Raises:
        UserError: no such architecture, or not a plain CLIP.
    """
    shipped = FOLDER / f"{config.architecture}.json"
    path = shipped if shipped.is_file() else Path(config.architecture).expanduser()
    architecture = (
        read_json(path, ADVICE) if path.suffix == ".json" else open_clip.get_model_config(config.architecture)
    )
    if not architecture:
        raise UserError(
            f"There is no architecture {config.architecture!r}. Name one of open_clip's ViT models, such as ViT-H-14, "
            "`tiny`, or a JSON file in open_clip's form."
        )
    check_architecture(architecture, config.architecture)
    patch = architecture["vision_cfg"]["patch_size"]
    if config.image_size_px % patch:
        raise UserError(
            f"image_size_px is {config.image_size_px}, not a multiple of {config.architecture}'s patch, {patch}."
        )
    vision = {**architecture["vision_cfg"], "image_size": config.image_size_px}
    return {**architecture, "vision_cfg": vision}


def check_architecture(architecture: dict[str, Any], where: str) -> None:
    """Check that it is a plain CLIP with a vision transformer.

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
        what = f"it sets {', '.join(unknown)}" if unknown else "its image tower is not a vision transformer"
        raise UserError(f"{where}: only plain CLIPs with a vision transformer can be trained here; {what}.")


def allocate_model(config: ModelConfig, architecture: dict[str, Any]) -> RewardModel:
    """A model whose parameters are on the meta device until `load_strictly`: no billion numbers are drawn."""
    with torch.device("meta"):
        model = RewardModel(config, architecture)
    length = model.clip.context_length
    model.clip.attn_mask = torch.full((length, length), float("-inf")).triu_(1)  # no parameter, so in no file
    return model


def fill_strictly(
    module: nn.Module, source: Path, dtype: torch.dtype, choose: Callable[[State], State] | None = None
) -> None:
    """`load_strictly` from a file, whose names and shapes are checked before its numbers are read.

    Args:
        dtype: as of `read_weights`.
        choose: from the file's names to the module's; where not given, what other code put before them is taken off.
    Raises:
        UserError: a tensor is unknown, missing, of another shape or kind of number; the first few are named.
    """
    expected = module.state_dict()
    choose = choose or (lambda state: strip_prefix(state, expected, source))
    what, hint = "this architecture", " Check `architecture` and `image_size_px`."
    check_strictly(expected, choose(map_weights(source)), source, what, hint)
    load_strictly(module, read_weights(source, dtype, choose), source, what, hint)
