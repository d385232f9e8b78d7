"""Where published weights are, and reading a weight file without running what is in it."""

from __future__ import annotations

import hashlib
import logging
import pickle
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reward.config import ModelConfig
from runs import UserError

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).parent / "weights.toml"
TAG_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What a repository of an open_clip tag may hold, the better one first."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


class WeightsEntry(BaseModel):
    """One published file of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="Name of the file")
    description: str = Field(description="What it holds")
    hub: list[str] = Field(description="Mirrors: ORG/REPOSITORY/FILE or spaces/ORG/SPACE/FILE, tried in order")
    page: str = Field(description="Where a person can download it")
    licence: str = Field(description="What may be done with it")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="Checksum of the file; empty where unknown")
    size_bytes: int = Field(0, ge=0, description="Size of the file in bytes; 0 where unknown")


def read_manifest(path: Path = MANIFEST) -> dict[str, WeightsEntry]:
    """The published weights by name."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: WeightsEntry.model_validate(values) for name, values in table.items()}


def find_weights(config: ModelConfig, quick_gelu: bool = False) -> Path:
    """The file of `config.weights` on this machine, downloaded where it is not there and HF_HUB_OFFLINE allows it.

    Args:
        quick_gelu: which GELU the architecture has; a tag that was trained with the other is refused.
    Raises:
        UserError: no such file, name or tag; it cannot be downloaded; it has another checksum; or the tag was trained
            with other settings than the config's.
    """
    path = Path(config.weights).expanduser()
    if path.is_file():
        return path
    manifest = read_manifest()
    if config.weights in manifest:
        entry = manifest[config.weights]
        found = fetch(entry.hub, f"{entry.file} ({entry.licence}) from {entry.page}")
        check_file(found, entry)
        return found
    tag = open_clip.get_pretrained_cfg(config.architecture, config.weights)
    if tag:
        check_tag(config, tag, quick_gelu)
        repository, _, file = tag.get("hf_hub", "").rpartition("/")
        places = [f"{repository}/{name}" for name in ([file] if file else TAG_FILES)] if repository else []
        return fetch(places, f"{' or '.join(places) or tag.get('url')} from the Hugging Face hub or open_clip's page")
    if config.weights.count("/") >= 2 and path.suffix in SUFFIXES and not path.is_absolute():
        return fetch([config.weights], f"{config.weights} from the Hugging Face hub")
    tags = open_clip.list_pretrained_tags_by_model(config.architecture)
    raise UserError(
        f"There are no weights {config.weights!r}: no such file and no known name. Give the path of a file, one "
        f"of {', '.join(manifest)}, ORG/REPOSITORY/FILE of the Hugging Face hub, or a tag of open_clip's "
        f"{config.architecture}: {', '.join(tags) or 'it has none'}."
    )


def fetch(places: list[str], what: str) -> Path:
    """The first of these hub files that is in the cache, else the first that can be downloaded.

    Args:
        places: ORG/REPOSITORY/FILE or spaces/ORG/SPACE/FILE.
        what: for the message: which file and where a person gets it.
    """
    why = "no hub has it"
    for cached_only in [True] if HF_HUB_OFFLINE else [True, False]:
        for place in places:
            kind = "space" if place.startswith("spaces/") else "model"
            owner, name, file = place.removeprefix("spaces/").split("/", 2)
            if not cached_only:
                log.info("downloading %s of %s/%s to the Hugging Face cache", file, owner, name)
            try:
                return Path(hf_hub_download(f"{owner}/{name}", file, repo_type=kind, local_files_only=cached_only))
            except (OSError, ValueError) as error:  # the hub's own errors are of both kinds
                why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    if HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set and the Hugging Face cache has none"
    raise UserError(f"Weights are missing ({why}). Get {what}, put it anywhere and give its path in place of the name.")


def check_file(path: Path, entry: WeightsEntry) -> None:
    """Size and checksum, as far as the manifest knows them."""
    size = path.stat().st_size
    if entry.size_bytes and size != entry.size_bytes:
        raise UserError(
            f"{path}: {size:,} bytes, not the {entry.size_bytes:,} of {entry.file}. Delete it and try again."
        )
    if entry.sha256:
        with open(path, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha256 != entry.sha256:
            raise UserError(
                f"{path}: SHA-256 is {sha256}, not {entry.sha256} of {entry.file}. Delete it and try again."
            )


def check_tag(config: ModelConfig, tag: Mapping[str, Any], quick_gelu: bool) -> None:
    """That the model is computed and fed as the tag's weights were trained."""
    if bool(tag.get("quick_gelu")) != quick_gelu:
        other = config.architecture.removesuffix("-quickgelu") if quick_gelu else f"{config.architecture}-quickgelu"
        raise UserError(f"The weights {config.weights} were trained with the other GELU; set architecture to {other}.")
    for name in ("mean", "std"):
        trained, ours = tuple(tag.get(name, ())), getattr(config, name)
        if trained and trained != ours:
            raise UserError(
                f"The weights {config.weights} were trained with {name} {trained}, not {ours}; set {name} so."
            )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch checkpoint, there under `state_dict` where it has one.

    Floating tensors become float32 in memory of their own; nothing but tensors is ever unpickled.

    Raises:
        UserError: the file is damaged, or holds other things.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides tensors, which are not loaded since they could run code. Have "
            "whoever made it save the tensors as safetensors."
        ) from error
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as weights ({str(error).partition(chr(10))[0]}).") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: is no table of tensors, nor has it one under `state_dict`.")
    return {
        name: value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
        for name, value in found.items()
    }
