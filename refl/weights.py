"""Where the published files of restorers are, on this machine or on a mirror, and what they are known by.

A file is looked for in the weights folder (`--weights`, by default DATA/weights) and then in the Hugging Face cache;
where neither has it, it is downloaded unless HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
import tomllib
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from reward.weights import MANIFEST as REWARD_MANIFEST
from reward.weights import WeightsEntry, check_file, fetch
from runs import UserError

log = logging.getLogger(__name__)

MANIFESTS = (Path(__file__).parent / "weights.toml", REWARD_MANIFEST)
WEIGHTS_FOLDER = "weights"
"""Inside the data folder."""
TIMEOUT_SECONDS = 60


class PublishedFile(WeightsEntry):
    """One file of the manifest; on hubs, at addresses, or where only a person can get it."""

    hub: list[str] = Field([], description="ORG/REPOSITORY/FILE or spaces/ORG/SPACE/FILE, tried in order")
    url: list[str] = Field([], description="Addresses that download it, tried after the hubs")


@dataclass(frozen=True)
class FoundFile:
    """A file on this machine."""

    path: Path
    sha256: str


def read_manifest() -> dict[str, PublishedFile]:
    """The published files of restorers and of rewards, by name."""
    tables = [tomllib.loads(path.read_text(encoding="utf-8")) for path in MANIFESTS]
    return {name: PublishedFile.model_validate(values) for table in tables for name, values in table.items()}


def find_file(asked: str | Path, folder: Path) -> FoundFile:
    """The file of a path or of a manifest name, downloaded where it must and can be; checked.

    Raises:
        UserError: there is no such path or name, it cannot be got, or it is not the published file.
    """
    path, manifest = Path(asked).expanduser(), read_manifest()
    if str(asked) not in manifest:
        if not path.is_file():
            raise UserError(
                f"There is no file {str(asked)!r}, nor are there published weights of that name. "
                f"The names: {', '.join(manifest)}."
            )
        return FoundFile(path, compute_sha256(path))
    entry = manifest[str(asked)]
    return identify(find_here(entry, folder) or download(entry, folder), entry)


def find_any(names: Sequence[str], folder: Path) -> FoundFile:
    """The first of these manifest names that is here; else one whose checksum is known is downloaded."""
    manifest = read_manifest()
    for name in names:
        if path := find_here(manifest[name], folder):
            return identify(path, manifest[name])
    return find_file(min(names, key=lambda name: not manifest[name].sha256), folder)


def find_here(entry: PublishedFile, folder: Path) -> Path | None:
    """Where this machine has it; None where it has not."""
    if (folder / entry.file).is_file():
        return folder / entry.file
    for place in entry.hub:
        kind = "space" if place.startswith("spaces/") else "model"
        owner, name, file = place.removeprefix("spaces/").split("/", 2)
        cached = try_to_load_from_cache(f"{owner}/{name}", file, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached)
    return None


def download(entry: PublishedFile, folder: Path) -> Path:
    """Get it from the first mirror that gives it: from a hub into its cache, else into the folder.

    Raises:
        UserError: no mirror gives it; the message says where a person gets it and where it belongs.
    """
    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "it is on no mirror that a program can read"
    if entry.hub and not HF_HUB_OFFLINE:
        try:
            return fetch(entry.hub, entry.file)
        except UserError as error:
            why = str(error).partition(". Get ")[0]
    for url in [] if HF_HUB_OFFLINE else entry.url:
        try:
            return download_url(url, folder / entry.file)
        except (OSError, urllib.error.URLError) as error:
            why = f"{url}: {error}"
    raise UserError(
        f"{entry.file} is not here ({why}). Get it from {entry.page} and put it into {folder}, or name the folder that "
        f"has it with --weights. Licence: {entry.licence}."
    )


def download_url(url: str, path: Path) -> Path:
    """Download to this path; a file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, open(unfinished, "wb") as stream:
            shutil.copyfileobj(answer, stream, 2**20)
            expected = int(answer.headers.get("Content-Length", 0))
        if expected and unfinished.stat().st_size != expected:
            raise OSError(f"{unfinished.stat().st_size:,} of {expected:,} bytes came")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def identify(path: Path, entry: PublishedFile) -> FoundFile:
    """Check a file against its entry, and say by which SHA-256 it is known.

    Raises:
        UserError: its size or checksum is another.
    """
    check_file(path, entry)
    return FoundFile(path, entry.sha256 or compute_sha256(path))


def compute_sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_checkpoint(path: Path) -> Any:
    """What a safetensors file or a torch checkpoint holds: tensors, and plain lists, tables, numbers and text of them.

    `reward.weights.read_weights` is for a file of tensors alone; nothing that could run code is ever unpickled.

    Raises:
        UserError: the file is damaged, or holds other objects.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides tensors, which are not loaded since they could run code. Have "
            "whoever made it save the tensors as safetensors."
        ) from error
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as weights ({str(error).partition(chr(10))[0]}).") from error
