"""Image files of the data folder: `images/ab/<sha256>.<suffix>`, each stored once.

The stored bytes are what a person is shown, what is measured and what is trained on. Files that viewers and decoders
could read differently (rotated by EXIF, alpha, a colour profile other than sRGB, 16 bits, CMYK, palette) are therefore
converted once, when they are added, to an 8-bit RGB PNG, and the image row says so; all others are stored byte for
byte.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PilImage
from PIL import ImageCms, ImageOps, UnidentifiedImageError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Image

SUFFIX_OF_FORMAT = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
MEDIA_TYPE_OF_SUFFIX = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 2**20
ORIENTATION_TAG = 0x0112
PNG_BIT_DEPTH_OFFSET = 24


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of an image file after it was read and decoded whole.

    `converted` holds the bytes to store where they are not the file's own (see the module's docstring).
    """

    sha256: str
    suffix: str
    width_px: int
    height_px: int
    size_bytes: int
    original_sha256: str | None = None
    conversion: str | None = None
    converted: bytes | None = None


def probe_image(path: Path) -> Probe:
    """Read, hash and decode a file.

    Raises:
        UserError: not a PNG, JPEG or WebP, corrupt, truncated, animated, empty, or above MAX_PIXELS or MAX_FILE_BYTES.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise UserError(f"{path}: {size_bytes / 2**20:.0f} MiB, above the limit of {MAX_FILE_BYTES // 2**20} MiB")
        return probe_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def probe_bytes(content: bytes, name: str) -> Probe:
    """As `probe_image`, for bytes in memory; `name` stands in the errors."""
    if not content:
        raise UserError(f"{name}: empty file")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limit below refuses them.
            image = PilImage.open(io.BytesIO(content), formats=list(SUFFIX_OF_FORMAT))
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{name}: {image.width} x {image.height} pixels, above the limit of {MAX_PIXELS:,}; "
                    "scale it down or crop the face"
                )
            # MPO is a camera's JPEG with a depth map or second view behind it; every reader shows the first picture.
            image_format = "JPEG" if image.format == "MPO" else str(image.format)
            frames = getattr(image, "n_frames", 1)
            if image.format != "MPO" and frames > 1:
                raise UserError(f"{name}: animated ({frames} frames); only still images can be judged")
            image.load()
            # Pillow does not say that it reduced 16 bits a channel; it takes the high byte.
            reduced = image_format == "PNG" and content[PNG_BIT_DEPTH_OFFSET] == 16
            rgb, conversion = _to_plain_rgb(image, reduced)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: not a PNG, JPEG or WebP image") from error
    except PilImage.DecompressionBombError as error:  # Pillow's own limit, met before ours can be looked at
        raise UserError(
            f"{name}: far more pixels than the limit of {MAX_PIXELS:,}; scale it down or crop the face"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise UserError(f"{name}: corrupt or truncated ({error})") from error
    suffix = SUFFIX_OF_FORMAT[image_format]
    if not conversion:
        return Probe(sha256, suffix, image.width, image.height, len(content))
    buffer = io.BytesIO()
    rgb.save(buffer, format="PNG")
    converted = buffer.getvalue()
    return Probe(
        sha256=hashlib.sha256(converted).hexdigest(),
        suffix=".png",
        width_px=rgb.width,
        height_px=rgb.height,
        size_bytes=len(converted),
        original_sha256=sha256,
        conversion=conversion,
        converted=converted,
    )


def _to_plain_rgb(image: PilImage.Image, reduced_from_16_bits: bool) -> tuple[PilImage.Image, str]:
    """(8-bit RGB image, what had to be done); the text is empty for an image that every reader sees alike."""
    done = ["16 bits reduced to 8"] if reduced_from_16_bits else []
    orientation = image.getexif().get(ORIENTATION_TAG, 1)
    rgb = image
    if orientation in range(2, 9):
        rgb = ImageOps.exif_transpose(rgb)
        done.append(f"EXIF orientation {orientation} applied")
    if rgb.mode.startswith("I"):
        # 0 … 65535 to 0 … 255, rounded: Pillow's own conversion clips at 255 instead.
        rgb = PilImage.fromarray(np.round(np.asarray(rgb, dtype=np.float64) / 257.0).astype(np.uint8))
    profiled = _apply_profile(rgb)
    if profiled is not None:
        rgb = profiled
        done.append("colour profile converted to sRGB")
    if rgb.mode in ("RGBA", "LA", "PA") or "transparency" in rgb.info:
        rgba = rgb.convert("RGBA")
        if np.asarray(rgba.getchannel("A")).min() < 255:
            white = PilImage.new("RGBA", rgba.size, "white")
            rgb = PilImage.alpha_composite(white, rgba)
            done.append("alpha laid over white")
        else:
            rgb = rgba
            done.append("opaque alpha removed")
    if rgb.mode in ("CMYK", "P", "1", "LAB", "HSV", "F"):
        done.append(f"{rgb.mode} converted to RGB")
    plain = rgb.convert("RGB")
    plain.info = {}  # else a profile that no longer applies would be saved with it
    return plain, ", ".join(done)


def _apply_profile(image: PilImage.Image) -> PilImage.Image | None:
    """The image in sRGB where it carries another colour profile: a browser would apply that, a decoder would not.

    None where there is none, or one that cannot be read, which browsers pass over too.
    """
    profile_bytes = image.info.get("icc_profile")
    if not profile_bytes:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return None
        if image.mode in ("P", "1"):
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (OSError, ImageCms.PyCMSError):
        return None


def image_path(data: Path, sha256: str, suffix: str) -> Path:
    """Where an image lies in the data folder."""
    return data / "images" / sha256[:2] / f"{sha256}{suffix}"


def write_image(data: Path, probe: Probe, file: Path | bytes) -> bool:
    """Put the probed file's bytes in place, whole or not at all; returns False where they already were.

    Raises:
        UserError: the file changed since it was probed, or the disk is full.
    """
    target = image_path(data, probe.sha256, probe.suffix)
    if target.exists():
        return False
    content = probe.converted
    if content is None:
        content = file if isinstance(file, bytes) else file.read_bytes()
        if hashlib.sha256(content).hexdigest() != probe.sha256:
            raise UserError(f"{file!s:.200}: changed while it was being imported; import again")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".adding-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); free some disk space") from error
    return True


def add_image(session: Session, data: Path, probe: Probe, file: Path | bytes) -> Image:
    """The row of the probed image, its file in place; adds both where they are new."""
    write_image(data, probe, file)
    image = session.scalar(select(Image).where(Image.sha256 == probe.sha256))
    if image is None:
        image = Image(
            sha256=probe.sha256,
            suffix=probe.suffix,
            width_px=probe.width_px,
            height_px=probe.height_px,
            size_bytes=probe.size_bytes,
            original_sha256=probe.original_sha256,
            conversion=probe.conversion,
        )
        session.add(image)
        session.flush()
    return image


def find_image(session: Session, sha256: str) -> Image | None:
    """The stored image of a file with this SHA-256, the converted one where it had to be converted."""
    return session.scalar(select(Image).where(or_(Image.sha256 == sha256, Image.original_sha256 == sha256)))


def open_rgb(data: Path, image: Image) -> PilImage.Image:
    """The stored image as 8-bit RGB."""
    with PilImage.open(image_path(data, image.sha256, image.suffix)) as opened:
        return opened.convert("RGB")
