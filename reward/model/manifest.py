"""Read the manifests of published weight files: names, places, licences, checksums. Loads no torch."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from db.errors import UserError, first_fault

MANIFEST = Path(__file__).parent / "weights.toml"
FOLDER_MANIFEST = "weights.toml"
"""In a folder of weight files: a manifest of one's own, which adds names and replaces shipped entries."""


class WeightsEntry(BaseModel):
    """One published file of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="Name of the file")
    description: str = Field(description="Content of the file")
    hub: list[str] = Field([], description="ORG/REPOSITORY/FILE or spaces/ORG/SPACE/FILE, tried in order")
    url: list[str] = Field([], description="Addresses that download a restorer's file, tried after the hubs")
    page: str = Field(description="Page with the download, for a person")
    licence: str = Field(description="Licence of the weights")
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
        UserError: it is not such a manifest.
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
        raise UserError(f"{path}: {first_fault(error)}. reward/model/weights.toml shows what an entry says.") from error
    except ValueError as error:  # not TOML, or no text
        raise UserError(f"{path}: not TOML ({error}).") from error
