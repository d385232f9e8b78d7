"""Make the demo project: two public-domain portraits that ship inside installed packages, degraded and restored.

Two people are too few for a held-out set: with the default settings both fall into the train split, so every pair
takes one judgment and one person can finish the demo.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.pairs import make_pairs
from db.errors import UserError
from db.images import add_image, probe_bytes
from db.models import Image, Source
from db.project import load_settings, save_settings
from db.records import add_candidate, add_method, add_source, draw_split
from db.session import Database
from licences.terms import NOT_STATED
from pixels.read import read_rgb
from refl.faces.degrade import PUBLISHED, FloatImage, degrade, draw_degradation
from ui.filling import DEMO_PEOPLE

IMAGE_SIZE_PX = 512
PAIRS_PER_SOURCE = 8
"""Of the 10 that five methods make: 96 in all, some minutes of judging. `python -m annotate pair` adds the rest."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Portrait:
    """A photo, who is in it, and where the face lies: boxes (left, top, right, bottom) in its pixels."""

    package: str
    file: str
    person: str
    caption: str
    boxes: dict[str, Box]


COLLINS = Portrait(
    "skimage",
    "data/astronaut.png",
    DEMO_PEOPLE[0],
    "a smiling woman with short hair in an orange space suit",
    {"close": (136, 28, 316, 208), "portrait": (110, 4, 330, 224), "shoulders": (84, 0, 364, 280)},
)
"""NASA, in the public domain; 512 x 512."""
HOPPER = Portrait(
    "matplotlib",
    "mpl-data/sample_data/grace_hopper.jpg",
    DEMO_PEOPLE[1],
    "an elderly woman with glasses in a naval officer's hat",
    {"close": (145, 105, 395, 355), "portrait": (106, 14, 446, 354), "shoulders": (56, 10, 456, 410)},
)
"""US Navy, in the public domain; 512 x 600."""

SHOTS = (("close", 22), ("close", 16), ("portrait", 25), ("portrait", 20), ("shoulders", 26), ("shoulders", 17))
"""(box, seed of the published degradation); seeds whose faces can still be recognized, from mild to strong."""


@dataclass(frozen=True)
class _Files:
    """One source's images as PNG bytes."""

    key: str
    portrait: Portrait
    lq: bytes
    hq: bytes
    restored: dict[str, bytes]


def make_demo(database: Database, data: Path) -> None:
    """Fill an empty database with the demo's sources, candidates and pairs; do nothing where there is any source.

    All rows are written in one transaction: killed in the middle, it leaves none, and the next start makes the demo.

    Raises:
        UserError: a photo is missing from its package.
    """
    with database.read() as session:
        if _has_sources(session):
            return
    made = []
    for portrait in (COLLINS, HOPPER):
        photo = _open_photo(portrait)
        made += [_make_files(portrait, photo, name, seed) for name, seed in SHOTS]
    with database.write() as session:
        if not _has_sources(session):  # another process may have been faster
            _add_demo(session, data, made)


def _has_sources(session: Session) -> bool:
    return session.scalar(select(Source.id).limit(1)) is not None


def _add_demo(session: Session, data: Path, made: list[_Files]) -> None:
    settings = load_settings(session)
    if settings.data_licence == NOT_STATED:
        settings = save_settings(session, {"data_licence": "public domain (NASA, US Navy)"})
    methods = {name: add_method(session, name, parameters) for name, (_, parameters) in METHODS.items()}
    for files in made:
        person = files.portrait.person
        source = add_source(
            session,
            files.key,
            draw_split(person, settings.seed, settings.val_share, settings.test_share),
            group=person,
            caption=files.portrait.caption,
            lq=_add_png(session, data, files.lq),
            hq=_add_png(session, data, files.hq),
        )
        for name, content in files.restored.items():
            add_candidate(session, source, methods[name], _add_png(session, data, content))
    make_pairs(session, settings, per_source=PAIRS_PER_SOURCE, seed=settings.seed)


def _add_png(session: Session, data: Path, content: bytes) -> Image:
    return add_image(session, data, probe_bytes(content, "a demo image"), content)


def _open_photo(portrait: Portrait) -> PilImage.Image:
    """The portrait's photo, found without importing its package: the app's process would keep what that loads."""
    spec = importlib.util.find_spec(portrait.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / portrait.file
        if file.is_file():
            return PilImage.fromarray(read_rgb(file))
    raise UserError(
        f"The demo's photo {portrait.file} is missing from the installed {portrait.package}; "
        "reinstall that package, or start without --demo."
    )


def _make_files(portrait: Portrait, photo: PilImage.Image, name: str, seed: int) -> _Files:
    """Crop the face, degrade it, restore it by every method."""
    size = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    crop = photo.crop(portrait.boxes[name]).resize(size, PilImage.Resampling.LANCZOS)
    hq = np.asarray(crop, dtype=np.float32) / np.float32(255.0)
    lq = _round_to_8_bits(degrade(hq, draw_degradation(PUBLISHED, np.random.default_rng(seed))))
    return _Files(
        key=f"{portrait.person.lower().replace(' ', '-')}-{name}-{seed}",
        portrait=portrait,
        lq=_encode_png(lq),
        hq=_encode_png(hq),
        restored={method: _encode_png(restore(lq, **parameters)) for method, (restore, parameters) in METHODS.items()},
    )


def _round_to_8_bits(image: FloatImage) -> FloatImage:
    """As the stored file holds it: the methods see what the person sees."""
    return np.asarray(np.round(image * 255.0) / 255.0, dtype=np.float32)


def _encode_png(image: FloatImage) -> bytes:
    return cv2.imencode(".png", _to_bgr_pixels(np.clip(image, 0.0, 1.0)))[1].tobytes()


def _to_bgr_pixels(image: FloatImage) -> npt.NDArray[np.uint8]:
    """8 bits in OpenCV's order of channels, which its conversions to luminance and colour go by."""
    return np.round(image[..., ::-1] * 255.0).astype(np.uint8)


def _from_bgr_pixels(pixels: npt.NDArray[Any]) -> FloatImage:
    return np.asarray(pixels[..., ::-1], dtype=np.float32) / np.float32(255.0)


def _blur(image: FloatImage, sigma_px: float) -> FloatImage:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), dtype=np.float32)


def _unsharp_mask(lq: FloatImage, sigma_px: float, amount: float) -> FloatImage:
    return lq + np.float32(amount) * (lq - _blur(lq, sigma_px))


def _bilateral_and_sharpen(lq: FloatImage, sigma_color: float, sigma_px: float, amount: float) -> FloatImage:
    smooth = np.asarray(cv2.bilateralFilter(lq, 9, sigma_color, sigma_px), dtype=np.float32)
    return _unsharp_mask(smooth, sigma_px=3.0, amount=amount)


def _non_local_means(lq: FloatImage, strength: float, color_strength: float) -> FloatImage:
    pixels = _to_bgr_pixels(lq)
    return _from_bgr_pixels(cv2.fastNlMeansDenoisingColored(pixels, None, strength, color_strength, 7, 11))


def _enhance_detail(lq: FloatImage, sigma_px: float, sigma_color: float) -> FloatImage:
    return _from_bgr_pixels(cv2.detailEnhance(_to_bgr_pixels(lq), sigma_s=sigma_px, sigma_r=sigma_color))


def _richardson_lucy(lq: FloatImage, sigma_px: float, iterations: int) -> FloatImage:
    """Deconvolution of a Gaussian blur, which is its own mirror image. Source: Richardson 1972, Lucy 1974."""
    estimate = lq
    for _ in range(iterations):
        ratio = np.asarray(cv2.divide(lq, np.maximum(_blur(estimate, sigma_px), 1e-3)), dtype=np.float32)
        estimate = np.asarray(cv2.multiply(estimate, _blur(ratio, sigma_px)), dtype=np.float32)
    return estimate


METHODS: dict[str, tuple[Callable[..., FloatImage], dict[str, Any]]] = {
    "unsharp mask": (_unsharp_mask, {"sigma_px": 4.0, "amount": 1.5}),
    "non-local means": (_non_local_means, {"strength": 6.0, "color_strength": 8.0}),
    "bilateral and sharpen": (_bilateral_and_sharpen, {"sigma_color": 0.12, "sigma_px": 5.0, "amount": 2.0}),
    "Richardson-Lucy": (_richardson_lucy, {"sigma_px": 3.0, "iterations": 12}),
    "detail enhancement": (_enhance_detail, {"sigma_px": 10.0, "sigma_color": 0.15}),
}
"""Plain name: (the method, its parameters as stored with it). None of them knows what was done to the photo."""
