"""Read a restorer's sizes, whether it draws noise, and whether its files are here, without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from db.errors import UserError
from refl.published.weights import find_any, find_file
from refl.restorers.diffbir import VERSIONS
from refl.restorers.feedforward import FeedForwardRestorer
from refl.restorers.kin import ONE_STEP
from refl.restorers.load import is_restorer_folder, method_name
from refl.restorers.onnx import OnnxRestorer, check_runtime, read_face_model
from refl.restorers.pmrf import PMRF, WEIGHTS
from refl.restorers.record import TRAINED_FILE, find_base, is_tuned
from refl.restorers.tiny import LEVELS, SHIPPED, read_tiny_config

STABLE_DIFFUSION_MULTIPLE_PX = 64
"""Its autoencoder halves a side three times, its denoiser three times more."""
TINY_MULTIPLE_PX = 2 ** (2 * (LEVELS - 1))


@dataclass(frozen=True)
class Outline:
    """As a restorer's properties of these names; see `refl.restorers.surface`."""

    image_size_px: int
    multiple_px: int
    is_random: bool


def outline_restorer(asked: str, folder: Path) -> Outline:
    """Outline what `load_restorer` of the same gives; no weights are loaded, files that are missing are downloaded.

    Args:
        folder: of published files.
    Raises:
        UserError: there is no such restorer, or a file of it is missing or not the published one.
    """
    method_name(asked)  # refuses what nobody knows
    path = Path(asked).expanduser()
    if asked != "tiny" and is_restorer_folder(path):
        if is_tuned(path) and not (path / TRAINED_FILE).is_file():
            raise UserError(f"{path}: has no {TRAINED_FILE}. Give a folder that a training wrote.")
        if (before := find_base(asked)) is not None:
            return outline_restorer(before, folder)
        return Outline(read_tiny_config(path).image_size_px, TINY_MULTIPLE_PX, True)
    kind, _, file = asked.partition(":")
    if kind in VERSIONS:
        made = VERSIONS[kind]
        find_any(made.base, folder)
        for name in (file or made.control, made.stage1):
            find_file(name, folder)
        return Outline(made.use.image_size_px, STABLE_DIFFUSION_MULTIPLE_PX, True)
    if kind in ONE_STEP:
        base, *others = ONE_STEP[kind].list_files(asked)
        find_any(base, folder)
        for names in others:
            find_file(names[0], folder)
        use = ONE_STEP[kind].use
        return Outline(use.image_size_px, STABLE_DIFFUSION_MULTIPLE_PX, use.condition_noise_timestep > 0)
    if kind == "pmrf":
        find_file(WEIGHTS, folder)
        return Outline(PMRF.image_size_px, PMRF.multiple_px, PMRF.is_random)
    if kind == "feedforward":
        find_file(file, folder)
        one_pass = FeedForwardRestorer
        return Outline(one_pass.image_size_px, one_pass.multiple_px, one_pass.is_random)
    if kind == "onnx":
        check_runtime()
        size_px = read_face_model(find_file(file, folder).path).size_px
        return Outline(size_px, OnnxRestorer.multiple_px, OnnxRestorer.is_random)
    return Outline(read_tiny_config(SHIPPED).image_size_px, TINY_MULTIPLE_PX, True)
