"""Read the faces of a folder once, and make batches of them and their degraded versions from seed and step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from db.errors import UserError
from db.records import draw_split
from refl.faces.degrade import DegradationSettings, degrade, draw_degradation
from refl.pretrain.config import PretrainConfig
from runs.image_folders import list_images
from training.images import check_images, read_image

Images = npt.NDArray[np.uint8]
LARGE = 2
"""The large size is this often the small one."""


@dataclass(frozen=True)
class Faces:
    """Square faces in memory."""

    names: list[str]
    images: Images
    """(N, S, S, 3) RGB, S at least twice the trained size over the smallest crop."""


@dataclass(frozen=True)
class Batch:
    """(N, S, S, 3) RGB uint8 each."""

    hq: Images
    lq: Images


def load_faces(folders: Sequence[Path], size_px: int, config: PretrainConfig) -> tuple[Faces, Faces, str]:
    """All faces of the folders, split by their file names.

    Returns:
        (trained, held out, hash over names and contents).
    Raises:
        UserError: as `read_faces`, or either part is empty.
    """
    faces, digest = read_faces(folders, size_px, config)
    trained, held_out = split_faces(faces, config)
    if not trained.names or not held_out.names:
        raise UserError(
            f"{len(faces.names)} faces with held_out_share {config.held_out_share} leave "
            f"{'none to measure on' if trained.names else 'nothing to train on'}. Give more faces, or another share."
        )
    return trained, held_out, digest


def read_faces(folders: Sequence[Path], size_px: int, config: PretrainConfig) -> tuple[Faces, str]:
    """All images of the folders and those below, by name, and a SHA-256 over their names and contents.

    A face is cut to its middle square and resized, so that images of any size will do. Hidden files and folders are
    passed over, and files of other types named in a warning.

    Raises:
        UserError: no folder, no images, or an image is damaged.
    """
    files: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder. Give --faces DIR, a folder of face images.")
        files |= {path: path.relative_to(folder) for path in list_images(folder, recursive=True)}
    paths = sorted(files, key=lambda path: (str(files[path]), str(path)))
    if not paths:
        raise UserError(f"{', '.join(map(str, folders))}: no PNG, JPEG or WebP images in there.")
    hashes = check_images(dict.fromkeys(paths))
    side = int(np.ceil(LARGE * size_px / config.crop_scale[0]))
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(lambda path: cut_square(read_image(path), side), paths)))
    digest = hashlib.sha256("\n".join(f"{files[path]} {hashes[path]}" for path in paths).encode()).hexdigest()
    return Faces([str(files[path]) for path in paths], images), digest


def split_faces(faces: Faces, config: PretrainConfig) -> tuple[Faces, Faces]:
    """(trained, held out); a file's name decides, so that more files move none."""
    held = np.array([is_held_out(name, config) for name in faces.names])
    names = np.array(faces.names)
    return Faces(list(names[~held]), faces.images[~held]), Faces(list(names[held]), faces.images[held])


def is_held_out(name: str, config: PretrainConfig) -> bool:
    """Whether the face of this file name is measured on, not trained on."""
    return draw_split(Path(name).stem, config.seed, config.held_out_share, 0).name == "val"


def cut_square(image: Images, side_px: int) -> Images:
    """The middle square of an (H, W, 3) image, resized to (side_px, side_px, 3)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[top : top + side, left : left + side], side_px)


def resize(image: Images, side_px: int) -> Images:
    """A square image at another size: averaged where it shrinks, bicubic where it grows."""
    how = cv2.INTER_AREA if image.shape[0] >= side_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (side_px, side_px), interpolation=how), dtype=np.uint8)


def scale_degradation(config: PretrainConfig, scale: float) -> DegradationSettings:
    """The ranges at a size of `scale` times that of the config: what a face loses stays the same."""
    return DegradationSettings(
        blur_kernel_px=round(config.blur_kernel_px * scale) // 2 * 2 + 1,
        blur_sigma_px=(config.blur_sigma_px[0] * scale, config.blur_sigma_px[1] * scale),
        downsample_factor=(config.downsample_factor[0], config.downsample_factor[1] * scale),
        noise_std=config.noise_std,
        jpeg_quality=config.jpeg_quality,
    )


def degrade_one(hq: Images, settings: DegradationSettings, rng: np.random.Generator) -> Images:
    """A degraded (S, S, 3) image."""
    lq = degrade(hq.astype(np.float32) / np.float32(255), draw_degradation(settings, rng))
    return np.round(lq * 255).astype(np.uint8)


def make_sample(
    face: Images, size_px: int, settings: DegradationSettings, config: PretrainConfig, rng: np.random.Generator
) -> tuple[Images, Images]:
    """(hq, lq) of one face: a random crop, mirrored half of the time, resized, degraded."""
    stored = face.shape[0]
    side = round(rng.uniform(*config.crop_scale) * stored)
    top, left = rng.integers(0, stored - side, 2, endpoint=True)
    crop = face[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    hq = resize(crop, size_px)
    return hq, degrade_one(hq, settings, rng)


def make_batch(faces: Faces, size_px: int, config: PretrainConfig, step: int, phase: int) -> tuple[Batch, int]:
    """The batch of a step, and a seed for whatever else the step draws."""
    rng = np.random.default_rng([config.seed, phase, step])
    large = rng.random() < config.large_share
    n = max(1, config.batch_size // LARGE**2) if large else config.batch_size
    scale = LARGE if large else 1
    settings = scale_degradation(config, scale)
    chosen = rng.integers(0, len(faces.images), n)
    pairs = [make_sample(faces.images[i], size_px * scale, settings, config, rng) for i in chosen]
    batch = Batch(np.stack([hq for hq, _ in pairs]), np.stack([lq for _, lq in pairs]))
    return batch, int(rng.integers(2**31))


def read_ahead(
    faces: Faces, size_px: int, config: PretrainConfig, steps: range, phase: int
) -> Iterator[tuple[Batch, int]]:
    """`make_batch` of every step in turn, in threads where the config says so; which are the same batches."""
    if not config.workers:
        yield from (make_batch(faces, size_px, config, step, phase) for step in steps)
        return
    with ThreadPoolExecutor(config.workers) as pool:
        waiting = [pool.submit(make_batch, faces, size_px, config, s, phase) for s in steps[: 2 * config.workers]]
        for step in steps:
            done = waiting.pop(0).result()
            if (following := step + 2 * config.workers) < steps.stop:
                waiting.append(pool.submit(make_batch, faces, size_px, config, following, phase))
            yield done


def make_pairs(faces: Faces, size_px: int, config: PretrainConfig, scale: int = 1) -> Batch:
    """Every face whole, and degraded once, with a seed of its own name: for measuring."""
    settings = scale_degradation(config, scale)
    hq = [resize(face, size_px * scale) for face in faces.images]
    rngs = [np.random.default_rng([config.seed, *Path(name).stem.encode()]) for name in faces.names]
    lq = [degrade_one(image, settings, rng) for image, rng in zip(hq, rngs, strict=True)]
    return Batch(np.stack(hq), np.stack(lq))
