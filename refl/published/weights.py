"""Find the published files of restorers on this machine or a mirror, by name, size and SHA-256.

A file is looked for in the weights folder (`--weights`, by default DATA/weights) and then in the Hugging Face cache;
where neither has it, it is downloaded unless HF_HUB_OFFLINE is set. A `weights.toml` in the weights folder adds names
and replaces shipped entries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HUB_OFFLINE

from db.errors import UserError
from metrics.download import compute_sha256, forget_cached
from metrics.download import download as download_url
from refl.published.manifest import find_here, read_manifest
from reward.model.manifest import WeightsEntry, read_folder_manifest
from reward.model.weights import check_file, fetch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundFile:
    """A file on this machine."""

    path: Path
    sha256: str


def find_file(asked: str | Path, folder: Path) -> FoundFile:
    """The file of a path or of a manifest name, downloaded where it must and can be; checked.

    Raises:
        UserError: there is no such path or name, it cannot be got, or it is not the published file.
    """
    entry = read_manifest(folder).get(str(asked))
    path = get_file(asked, folder)
    if str(asked) in read_folder_manifest(folder):
        log.info("%s is %s by the manifest in %s, not by FaceReward's", path.name, asked, folder)
    if entry is None:
        return FoundFile(path, compute_sha256(path))
    try:
        return identify(path, entry)
    except UserError as error:
        if HF_HUB_OFFLINE or not forget_cached(path):
            raise
        log.warning("%s It was taken out of the Hugging Face cache.", error)
    return identify(download(entry, folder), entry)  # of the next mirror, or of the same one anew


def find_any(names: Sequence[str], folder: Path) -> FoundFile:
    """The first of these manifest names that is here; else one whose checksum is known is downloaded."""
    return find_file(choose_name(names, folder), folder)


def choose_name(names: Sequence[str], folder: Path) -> str:
    """Choose one of several manifest names, any of which will do."""
    manifest = read_manifest(folder)
    here = [name for name in names if find_here(manifest[name], folder)]
    return here[0] if here else min(names, key=lambda name: not manifest[name].sha256)


def get_file(asked: str | Path, folder: Path) -> Path:
    """`find_file` without reading the file.

    Raises:
        UserError: there is no such path or name, or it cannot be got.
    """
    path, manifest = Path(asked).expanduser(), read_manifest(folder)
    if str(asked) in manifest:
        entry = manifest[str(asked)]
        return find_here(entry, folder) or download(entry, folder)
    if not path.is_file():
        raise UserError(
            f"There is no file {str(asked)!r}, nor are there published weights of that name. "
            f"The names: {', '.join(manifest)}."
        )
    return path


def get_files(needed: Iterable[Sequence[str]], folder: Path) -> None:
    """Download what is not here, before anything is loaded.

    Args:
        needed: for each file the paths or manifest names of which one will do.
    Raises:
        UserError: one or more cannot be got; all are named.
    """
    faults: dict[str, None] = {}
    for names in needed:
        try:
            get_file(choose_name(names, folder) if len(names) > 1 else names[0], folder)
        except UserError as error:
            faults[str(error)] = None
    if len(faults) > 1:
        raise UserError(f"{len(faults)} weight files are missing. {' '.join(faults)}")
    for fault in faults:
        raise UserError(fault)


def find_each(needed: Sequence[Sequence[str]], folder: Path) -> list[FoundFile]:
    """Find a file of each, downloaded where it is not here.

    Args:
        needed: as of `get_files`.
    Raises:
        UserError: one or more cannot be got, all are named; or one is not the published one.
    """
    get_files(needed, folder)
    return [find_any(names, folder) if len(names) > 1 else find_file(names[0], folder) for names in needed]


def download(entry: WeightsEntry, folder: Path) -> Path:
    """Get it from the first mirror that gives it: from a hub into its cache, else into the folder.

    Raises:
        UserError: no mirror gives it; the message says where a person gets it and where it belongs.
    """
    faults = ["HF_HUB_OFFLINE is set"] if HF_HUB_OFFLINE else []
    if entry.hub and not HF_HUB_OFFLINE:
        try:
            return fetch(entry.hub, entry.file, entry=entry)
        except UserError as error:
            faults.append(str(error).partition("(")[2].rpartition("). Get ")[0])
    for url in [] if HF_HUB_OFFLINE else entry.url:
        try:
            return download_url(url, folder / entry.file, sha256=entry.sha256, size_bytes=entry.size_bytes)
        except OSError as error:
            faults.append(str(error))
    why = "; ".join(faults) or "it is on no mirror that a program can read"
    raise UserError(
        f"{entry.file} is not here ({why}). Get it from {entry.page} and put it into {folder}, or name the folder that "
        f"has it with --weights. Licence: {entry.licence}."
    )


def identify(path: Path, entry: WeightsEntry) -> FoundFile:
    """Check a file against its entry, and say by which SHA-256 it is known.

    Raises:
        UserError: its size or checksum is another.
    """
    check_file(path, entry)
    return FoundFile(path, entry.sha256 or compute_sha256(path))
