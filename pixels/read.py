"""Read an image file as 8-bit RGB, as a browser shows it, and report the conversions made.

Turned as EXIF or XMP say, 16 bits reduced to 8, colours converted to sRGB (see `pixels.colour`), alpha laid over white.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import UnidentifiedImageError

from pixels.colour import COLOUR_CHUNKS, convert_to_srgb
from pixels.metadata import COLOUR_PROFILE, PNG_SIGNATURE, png_chunks, strip_metadata

RgbImage = npt.NDArray[np.uint8]
READING = 3
"""Raised where the same file is read as other pixels than before, so that what was computed from it is not trusted."""
SHA256 = re.compile("[0-9a-f]{64}")
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
LARGE_PIXELS = 8_000_000
"""Above this, one image at a time is decoded in a process, in whichever threads: see PEAK_BYTES."""
PEAK_BYTES = 3 * 2**29
"""Most memory that decoding and converting an image of MAX_PIXELS takes, measured."""
ORIENTATION_TAG = 0x0112
PNG_BIT_DEPTH_OFFSET = 24
OTHER_KINDS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF or raw",
    b"MM\0*": "TIFF or raw",
    b"II+\0": "TIFF",
    b"8BPS": "PSD",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"v/1\x01": "OpenEXR",
    b"\0\0\1\0": "an icon",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "SVG or other XML",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}
"""First bytes to what a file is in place of an image."""
TURNS = {
    2: PilImage.Transpose.FLIP_LEFT_RIGHT,
    3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM,
    5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_270,
    7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_90,
}
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error)
"""Errors of Pillow at files that are damaged in one way or another."""


_one_large = threading.Lock()


class ImageFault(ValueError):
    """Reason why a file is not a usable image; begins with a small letter, since the caller names the file."""


@dataclass(frozen=True)
class Plain:
    """An image as everybody sees it."""

    image: PilImage.Image
    """RGB, without anything that speaks of colours."""
    format: str
    """One of FORMATS."""
    conversion: str
    """Conversions of the file's own pixels or tags; empty where every reader sees them alike."""
    content: bytes
    """A file of these pixels and nothing else: the file's own bytes, without what had to go, or a new PNG."""
    same_pixels: bool
    """Whether these are the numbers that are in the file: at most tags and metadata were taken out."""


def read_rgb(path: Path) -> RgbImage:
    """(H, W, 3) uint8 RGB of a file, writable.

    Raises:
        OSError: it cannot be read.
        ImageFault: see `decode_plain`, or `check_name`.
    """
    content = path.read_bytes()
    check_name(path, content)
    return decode_rgb(content)


def check_name(path: Path, content: bytes) -> None:
    """Refuse what lies in a data folder under another file's name: `ab/ab….png`, the SHA-256 of the file.

    Raises:
        ImageFault: these are not the bytes of that SHA-256.
    """
    is_hash = SHA256.fullmatch(path.stem) and path.parent.name == path.stem[:2]
    if is_hash and hashlib.sha256(content).hexdigest() != path.stem:
        raise ImageFault("not the file that was imported, but cut off or changed; import its original again")


def decode_rgb(content: bytes, max_side_px: int | None = None) -> RgbImage:
    """As `read_rgb`, of bytes in memory.

    Args:
        max_side_px: what neither side may be above, where somebody unknown sends images; seen before they are decoded.
    """
    return np.array(_decode(content, max_side_px)[0])


def decode_plain(content: bytes) -> Plain:
    """As `decode_rgb`, with what was done and a file that everybody reads alike.

    Raises:
        ImageFault: no PNG, JPEG or WebP, damaged, animated, empty, or above MAX_PIXELS.
    """
    image, image_format, done, changed = _decode(content)
    if not changed:
        stripped, found = strip_metadata(content)
        found = [name for name in found if name not in COLOUR_CHUNKS and not (done and name == COLOUR_PROFILE)]
        done += [f"metadata removed: {', '.join(found)}"] if found else []
        if stripped == content or _shows(stripped, image):
            return Plain(image, image_format, ", ".join(done), stripped, same_pixels=True)
        done.append("packed anew")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return Plain(image, "PNG", ", ".join(done), buffer.getvalue(), same_pixels=not changed)


def _shows(content: bytes, image: PilImage.Image) -> bool:
    """Whether a file can be decoded, to this image: not that of a damaged one that decoders make something of."""
    try:
        return _decode(content)[0].tobytes() == image.tobytes()
    except ImageFault:
        return False


def _decode(content: bytes, max_side_px: int | None = None) -> tuple[PilImage.Image, str, list[str], bool]:
    """(RGB image, format, what was done, whether more than taking tags away)."""
    if not content:
        raise ImageFault("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limit below refuses them.
            image = PilImage.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ImageFault(
                    f"{image.width} x {image.height} pixels, above the limit of {MAX_PIXELS:,}; "
                    "scale it down or crop the face"
                )
            if max_side_px is not None and max(image.size) > max_side_px:
                raise ImageFault(f"{image.width} x {image.height} pixels; at most {max_side_px:,} a side are taken")
            # MPO is a camera's JPEG with a depth map or second view behind it; every reader shows the first picture.
            image_format = "JPEG" if image.format == "MPO" else str(image.format)
            frames = getattr(image, "n_frames", 1)
            if image.format != "MPO" and frames > 1:
                raise ImageFault(f"animated ({frames} frames); only still images can be judged")
            with _one_large if image.width * image.height > LARGE_PIXELS else nullcontext():
                image.load()
                depth = content[PNG_BIT_DEPTH_OFFSET] if image_format == "PNG" else 8
                return _to_plain(image, image_format, depth, _read_colour_chunks(content))
    except ImageFault:
        raise
    except UnidentifiedImageError as error:
        raise ImageFault(_describe_other(content)) from error
    except PilImage.DecompressionBombError as error:  # Pillow's own limit, met before ours can be looked at
        raise ImageFault(f"far more pixels than the limit of {MAX_PIXELS:,}; scale it down or crop the face") from error
    except DAMAGED as error:
        raise ImageFault(f"corrupt or truncated ({error})") from error


def _describe_other(content: bytes) -> str:
    """Name the format of a file that Pillow does not take for one of FORMATS, whatever its name."""
    start = content[:64]
    if start.startswith((PNG_SIGNATURE, b"\xff\xd8\xff")) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return "corrupt or truncated (its beginning is damaged)"
    if start[4:8] == b"ftyp":
        kind = "AVIF" if start[8:11] == b"avi" else "HEIC" if start[8:11] in (b"hei", b"hev", b"mif") else "a video"
    else:
        kind = next((kind for magic, kind in OTHER_KINDS.items() if start.lstrip().startswith(magic)), "")
    if start and not any(start):
        kind = "zeros, as a copy that never ended leaves"
    remedy = "get the file itself" if kind.startswith(("a web page", "a Git", "zeros")) else "save it as PNG"
    return "not a PNG, JPEG or WebP image" + (f" but {kind}, whatever its name; {remedy}" if kind else "")


def _to_plain(
    image: PilImage.Image, image_format: str, depth: int, chunks: dict[str, bytes]
) -> tuple[PilImage.Image, str, list[str], bool]:
    """See `_decode`; `depth` is that of a PNG's samples."""
    done = ["16 bits reduced to 8"] if depth == 16 else []
    orientation = _read_orientation(image)
    mode, profile, key = image.mode, image.info.get("icc_profile"), image.info.get("transparency")
    turned = image
    if orientation in TURNS:
        turned = image.transpose(TURNS[orientation])
        done.append(f"EXIF orientation {orientation} applied")
    base, alpha = _split_alpha(turned, depth, key)
    base.info = {"icc_profile": profile} if profile else {}
    colours = convert_to_srgb(base, chunks)
    rgb = colours.image.convert("RGB")
    if colours.changed:
        done.append(colours.done)
    if alpha is not None:
        see_through = np.asarray(alpha).min() < 255
        if see_through:
            white = PilImage.new("RGB", rgb.size, "white")
            rgb = PilImage.composite(rgb, white, alpha)
        done.append("alpha laid over white" if see_through else "opaque alpha removed")
    if mode in ("CMYK", "P", "1"):
        done.append(f"{mode} converted to RGB")
    changed = bool(done)
    if colours.done and not colours.changed:
        done.append(colours.done)
    rgb.info = {}  # else a profile that no longer applies would be saved with it
    return rgb, image_format, done, changed


def _read_orientation(image: PilImage.Image) -> int:
    """1 … 8 as EXIF or XMP say; 1 where they cannot be read, which browsers pass over too."""
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGED:
        return 1
    return found if isinstance(found, int) else 1


def _split_alpha(
    image: PilImage.Image, depth: int, key: int | bytes | tuple[int, ...] | None
) -> tuple[PilImage.Image, PilImage.Image | None]:
    """(the image in L, RGB or CMYK; its alpha in L, None where it has none).

    Args:
        key: Pillow's `transparency`: the colour that is transparent, or the alpha of each colour of a palette.
    """
    if image.mode.startswith("I"):
        values = np.array(image, dtype=np.uint32)
        opaque = (values != key).astype(np.uint8) * 255 if isinstance(key, int) else None
        # 0 … 65535 to 0 … 255, rounded: Pillow's own conversion clips at 255 instead. In place, for the memory.
        values *= 255
        values += 32767
        values //= 65535
        return PilImage.fromarray(values.astype(np.uint8)), None if opaque is None else PilImage.fromarray(opaque)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or key is not None else "RGB")
    elif image.mode == "1":
        image = image.convert("L")  # its key is one of 0 and 255 already
        depth = 8
    if image.mode in ("RGBA", "LA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if isinstance(key, int | tuple):
        # Of samples of fewer or more bits than 8 the key has as many; Pillow has scaled the samples already.
        # Bits above the samples' own count for nobody.
        most = 2**depth - 1
        keys = [
            (value & most) >> 8 if depth == 16 else (value & most) * 255 // most for value in np.ravel(key).tolist()
        ]
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        opaque = (pixels != np.array(keys, dtype=np.uint8)).any(axis=-1).astype(np.uint8) * 255
        return image.convert(image.mode), PilImage.fromarray(opaque)
    return image, None


def _read_colour_chunks(content: bytes) -> dict[str, bytes]:
    """Type to content of a PNG's COLOUR_CHUNKS and sRGB: of one type the first, empty where it stands too late.

    What stands behind the palette or the pixels counts for no browser.
    """
    found: dict[str, bytes] = {}
    late = False
    for name, start, end in png_chunks(content):
        late = late or name in ("PLTE", "IDAT")
        if name in COLOUR_CHUNKS or (name == "sRGB" and not late):
            found.setdefault(name, b"" if late else content[start + 8 : end - 4])
    return found
