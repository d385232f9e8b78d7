"""Where published weights are, and reading a weight file without running what is in it.

A file is read a tensor at a time: what is in memory is what was read so far and a little of the file, not the file
beside it.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reward.config import ModelConfig
from runs import UserError

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).parent / "weights.toml"
FOLDER_MANIFEST = "weights.toml"
"""In a folder of weight files: a manifest of one's own, which adds names and replaces shipped entries."""
TAG_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What a repository of an open_clip tag may hold, the better one first."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
MAPPED_BYTES = 2**28
"""How much of a file may lie in memory beside what was read from it."""
State = dict[str, Tensor]


class WeightsEntry(BaseModel):
    """One published file of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="Name of the file")
    description: str = Field(description="What it holds")
    hub: list[str] = Field([], description="ORG/REPOSITORY/FILE or spaces/ORG/SPACE/FILE, tried in order")
    url: list[str] = Field([], description="Addresses that download a restorer's file, tried after the hubs")
    page: str = Field(description="Where a person can download it")
    licence: str = Field(description="What may be done with it")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="Checksum of the file; empty where unknown")
    size_bytes: int = Field(0, ge=0, description="Size of the file in bytes; 0 where unknown")


def read_manifest(folder: Path | None = None) -> dict[str, WeightsEntry]:
    """The published weights by name.

    Args:
        folder: of weight files; its own manifest adds names and replaces entries.
    """
    return read_entries(MANIFEST) | read_folder_manifest(folder)


def read_folder_manifest(folder: Path | None) -> dict[str, WeightsEntry]:
    """The entries of the `weights.toml` in a folder of weight files; none where there is none.

    Raises:
        UserError: it is no such manifest.
    """
    path = folder / FOLDER_MANIFEST if folder else None
    return read_entries(path) if path and path.is_file() else {}


def read_entries(path: Path) -> dict[str, WeightsEntry]:
    """The entries of a manifest by name.

    Raises:
        UserError: it is not TOML, or an entry is not allowed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: WeightsEntry.model_validate(values) for name, values in table.items()}
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"]) or "an entry"
        raise UserError(f"{path}: {field}: {fault['msg']}. reward/weights.toml shows what an entry says.") from error
    except ValueError as error:  # not TOML, or no text
        raise UserError(f"{path}: not TOML ({error}).") from error


def find_weights(config: ModelConfig, quick_gelu: bool = False, folder: Path | None = None) -> Path:
    """The file of `config.weights`, checked, downloaded where this machine has none and HF_HUB_OFFLINE allows it.

    Args:
        quick_gelu: which GELU the architecture has; a tag that was trained with the other is refused.
        folder: of weight files; a name of the manifest is looked for there first.
    Raises:
        UserError: no such file, name or tag; it cannot be downloaded; it has another checksum; or the tag was trained
            with other settings than the config's.
    """
    path = locate_weights(config, quick_gelu, folder)
    if not Path(config.weights).expanduser().is_file() and (entry := read_manifest(folder).get(config.weights)):
        check_file(path, entry)
    return path


def locate_weights(config: ModelConfig, quick_gelu: bool = False, folder: Path | None = None) -> Path:
    """`find_weights` without reading the file: a missing one is told at once."""
    path = Path(config.weights).expanduser()
    if path.is_file():
        return path
    manifest = read_manifest(folder)
    if config.weights in manifest:
        entry = manifest[config.weights]
        if folder and (folder / entry.file).is_file():
            return folder / entry.file
        return fetch(entry.hub, f"{entry.file} ({entry.licence}) from {entry.page}", folder)
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


def fetch(places: list[str], what: str, folder: Path | None = None) -> Path:
    """The first of these hub files that is in the cache, else the first that can be downloaded.

    Args:
        places: ORG/REPOSITORY/FILE or spaces/ORG/SPACE/FILE.
        what: for the message: which file and where a person gets it.
        folder: for the message: where it may be put to be found by its name.
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
    where = f"put it into {folder}, or " if folder else "put it "
    raise UserError(f"Weights are missing ({why}). Get {what}, {where}anywhere and give its path in place of the name.")


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


def read_checkpoint(path: Path) -> Any:
    """What a safetensors file or a torch checkpoint holds: tensors, and plain lists, tables, numbers and text of them.

    Tensors are mapped where the format allows it: their numbers stay in the file until they are used, and what outlives
    the file must be copied. Nothing that could run code is ever unpickled.

    Raises:
        UserError: the file is damaged, or holds other objects.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides tensors, which are not loaded since they could run code. Have "
            "whoever made it save the tensors as safetensors."
        ) from error
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as weights ({str(error).partition(chr(10))[0]}).") from error


def map_weights(path: Path) -> State:
    """Tensors by name of a file of tensors alone, there under `state_dict` where it has one, as `read_checkpoint`.

    Raises:
        UserError: the file is damaged, or holds other things.
    """
    found = read_checkpoint(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: is no table of tensors, nor has it one under `state_dict`.")
    return dict(found)


def read_weights(
    path: Path, dtype: torch.dtype = torch.float32, choose: Callable[[State], State] | None = None
) -> State:
    """Tensors by name from a file of tensors, in memory of their own.

    Args:
        dtype: what floating tensors become, one after another.
        choose: from what `map_weights` gives to what is wanted, by the names that are wanted; nothing else is read.
    Raises:
        UserError: the file is damaged, or holds other things.
    """
    is_mapped = path.suffix == ".safetensors" or zipfile.is_zipfile(path)

    def open_file() -> State:
        return choose(map_weights(path)) if choose else map_weights(path)

    waiting = open_file()
    state: State = {}
    in_memory = 0  # of the file
    for name in list(waiting):
        value = waiting.pop(name)
        state[name] = value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
        in_memory += value.nbytes
        if is_mapped and in_memory > MAPPED_BYTES:
            del value
            waiting.clear()  # the last tensor of a mapping takes its pages out of memory
            waiting, in_memory = open_file(), 0
    return state
