"""List the one-step restorers by name: which files each takes, how it is loaded, and how it is used."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from refl.restorers import gdpo, hypir, osdface, pisasr
from refl.restorers.gdpo import build_gdpo, list_gdpo_files, load_gdpo
from refl.restorers.hypir import build_hypir, list_hypir_files, load_hypir
from refl.restorers.one_step import OneStepRestorer, OneStepSettings
from refl.restorers.osdface import build_osdface, list_osdface_files, load_osdface
from refl.restorers.osediff import build_osediff, list_osediff_files, load_osediff
from refl.restorers.pisasr import build_pisasr, list_pisasr_files, load_pisasr


class Load(Protocol):
    """As `load_osediff`."""

    def __call__(
        self, asked: str, folder: Path, dtype: torch.dtype = ..., keep_float32: Collection[str] = ...
    ) -> OneStepRestorer: ...


@dataclass(frozen=True)
class OneStepKind:
    """A one-step restorer: `NAME`, or `NAME:FILE` with other adapters."""

    list_files: Callable[[str], list[tuple[str, ...]]]
    """Name -> for each file, the names or paths of which one will do."""
    load: Load
    build: Callable[..., OneStepRestorer]
    """Of denoiser, autoencoder and text encoder, and `rank` where adapters are its own: its size, not its numbers."""
    use: OneStepSettings


ONE_STEP: dict[str, OneStepKind] = {
    "osediff": OneStepKind(list_osediff_files, load_osediff, build_osediff, OneStepSettings()),
    "hypir": OneStepKind(list_hypir_files, load_hypir, build_hypir, hypir.USE),
    "osdface": OneStepKind(list_osdface_files, load_osdface, build_osdface, osdface.USE),
    "pisasr": OneStepKind(list_pisasr_files, load_pisasr, build_pisasr, pisasr.PisaSettings()),
    "gdpo": OneStepKind(list_gdpo_files, load_gdpo, build_gdpo, gdpo.USE),
}
