"""Find published weights by the manifest in the Hugging Face cache, or download them there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever client it uses

from db.errors import UserError
from metrics.download import (
    DownloadError,
    check_content,
    compute_sha256,
    describe_break,
    describe_refusal,
    find_fault,
    forget_cached,
)
from reward.model.config import ModelConfig
from reward.model.manifest import WeightsEntry, read_manifest
from training.weights import SUFFIXES

log = logging.getLogger(__name__)

TAG_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Files that a repository of an open_clip tag may hold, the better one first."""


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
        return fetch(entry.hub, f"{entry.file} ({entry.licence}) from {entry.page}", folder, entry)
    tag = open_clip.get_pretrained_cfg(config.architecture, config.weights)
    if tag:
        check_tag(config, tag, quick_gelu)
        repository, _, file = tag.get("hf_hub", "").rpartition("/")
        places = [f"{repository}/{name}" for name in ([file] if file else TAG_FILES)] if repository else []
        return fetch(places, f"{' or '.join(places) or tag.get('url')} from the Hugging Face hub or open_clip's page")
    if config.weights.count("/") >= 2 and path.suffix.lower() in SUFFIXES and not path.is_absolute():
        return fetch([config.weights], f"{config.weights} from the Hugging Face hub")
    tags = open_clip.list_pretrained_tags_by_model(config.architecture)
    raise UserError(
        f"There are no weights {config.weights!r}: no such file and no known name. Give the path of a file, one "
        f"of {', '.join(manifest)}, ORG/REPOSITORY/FILE of the Hugging Face hub, or a tag of open_clip's "
        f"{config.architecture}: {', '.join(tags) or 'it has none'}."
    )


def fetch(places: list[str], what: str, folder: Path | None = None, entry: WeightsEntry | None = None) -> Path:
    """The first of these hub files that is in the cache, else the first that can be downloaded.

    What the hub's own library resumes, it resumes. A file that came and is another one, or a part of one, leaves the
    cache, and the next place is tried.

    Args:
        places: ORG/REPOSITORY/FILE or spaces/ORG/SPACE/FILE.
        what: for the message: which file and where a person gets it.
        folder: for the message: where it may be put to be found by its name.
        entry: what is known of the file; None for nothing.
    Raises:
        UserError: no place gives it; the message says why each did not.
    """
    faults: dict[str, None] = {}
    for cached_only in [True] if HF_HUB_OFFLINE else [True, False]:
        for place in places:
            kind = "space" if place.startswith("spaces/") else "model"
            owner, name, file = place.removeprefix("spaces/").split("/", 2)
            if not cached_only:
                log.info("downloading %s of %s/%s to the Hugging Face cache", file, owner, name)
            try:
                path = Path(hf_hub_download(f"{owner}/{name}", file, repo_type=kind, local_files_only=cached_only))
                check_cached(path, entry, thoroughly=not cached_only)
                return path
            except (OSError, ValueError, RuntimeError, HTTPError) as error:  # the hub's own errors are of all kinds
                if not cached_only or isinstance(error, DownloadError):
                    faults[f"{place}: {describe_hub_error(error)}"] = None
    why = "; ".join(faults) or "no hub has it"
    if HF_HUB_OFFLINE:
        why = "; ".join(["HF_HUB_OFFLINE is set and the Hugging Face cache has none", *faults])
    where = f"put it into {folder}, or " if folder else "put it "
    raise UserError(f"Weights are missing ({why}). Get {what}, {where}anywhere and give its path in place of the name.")


def check_cached(path: Path, entry: WeightsEntry | None, *, thoroughly: bool) -> None:
    """Check a file of the hub's cache, and take it out of the cache where it is another one or a part of one.

    Args:
        thoroughly: by its checksum too, for which the whole file is read.
    Raises:
        DownloadError: it is not the file that was meant.
        OSError: it is not, and belongs to somebody else.
    """
    sha256, size_bytes = (entry.sha256, entry.size_bytes) if entry else ("", 0)
    try:
        check_content(path, sha256=sha256 if thoroughly else "", size_bytes=size_bytes)
    except DownloadError as error:
        if not HF_HUB_OFFLINE and forget_cached(path):
            log.warning("%s: %s; taken out of the Hugging Face cache", path, error)
            raise
        raise DownloadError(f"{path}: {error}; delete it and {path.resolve()}") from error


def describe_hub_error(error: Exception) -> str:
    """Explain in one line why the hub did not give a file, and what to do."""
    answer = getattr(error, "response", None)
    if (code := getattr(answer, "status_code", None)) is not None:
        return describe_refusal(str(getattr(answer, "url", "")), int(code))
    cause: BaseException | None = error.__cause__ if isinstance(error, FileNotFoundError) else None
    if cause is not None and getattr(cause, "response", None) is None and not isinstance(cause, FileNotFoundError):
        return f"the hub cannot be reached ({describe_break(cause)}); the same command goes on where it stopped"
    if isinstance(cause, Exception):
        return describe_hub_error(cause)
    if isinstance(error, HTTPError):
        return f"the transfer broke ({describe_break(error)}); the same command goes on where it stopped"
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def check_file(path: Path, entry: WeightsEntry) -> None:
    """Check that it may hold weights, and its size and checksum as far as the manifest knows them."""
    if fault := find_fault(path):
        raise UserError(f"{path}: {fault}.")
    size = path.stat().st_size
    if entry.size_bytes and size != entry.size_bytes:
        raise UserError(
            f"{path}: {size:,} bytes, not the {entry.size_bytes:,} of {entry.file}. Delete it and try again."
        )
    if entry.sha256:
        sha256 = compute_sha256(path)
        if sha256 != entry.sha256:
            raise UserError(
                f"{path}: SHA-256 is {sha256}, not {entry.sha256} of {entry.file}. Delete it and try again."
            )


def check_tag(config: ModelConfig, tag: Mapping[str, Any], quick_gelu: bool) -> None:
    """Check that the model computes and preprocesses as the tag's weights were trained."""
    if bool(tag.get("quick_gelu")) != quick_gelu:
        other = config.architecture.removesuffix("-quickgelu") if quick_gelu else f"{config.architecture}-quickgelu"
        raise UserError(f"The weights {config.weights} were trained with the other GELU; set architecture to {other}.")
    for name in ("mean", "std"):
        trained, ours = tuple(tag.get(name, ())), getattr(config, name)
        if trained and trained != ours:
            raise UserError(
                f"The weights {config.weights} were trained with {name} {trained}, not {ours}; set {name} so."
            )
