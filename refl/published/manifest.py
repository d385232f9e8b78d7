"""List the published files of restorers and of rewards, and say which are on this machine. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from reward.model.manifest import MANIFEST as REWARD_MANIFEST
from reward.model.manifest import WeightsEntry, read_entries, read_folder_manifest

MANIFESTS = (Path(__file__).parent / "weights.toml", REWARD_MANIFEST)


def read_manifest(folder: Path | None = None) -> dict[str, WeightsEntry]:
    """The published files of restorers and of rewards, by name.

    Args:
        folder: of weight files; its own manifest adds names and replaces entries.
    """
    shipped = {name: entry for path in MANIFESTS for name, entry in read_entries(path).items()}
    return shipped | read_folder_manifest(folder)


def find_here(entry: WeightsEntry, folder: Path) -> Path | None:
    """Return the path on this machine, None where there is none."""
    if (folder / entry.file).is_file():
        return folder / entry.file
    for place in entry.hub:
        kind = "space" if place.startswith("spaces/") else "model"
        owner, name, file = place.removeprefix("spaces/").split("/", 2)
        cached = try_to_load_from_cache(f"{owner}/{name}", file, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached)
    return None
