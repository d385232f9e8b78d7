"""Convert the colours of an image file to sRGB, as a browser does.

A browser applies an ICC profile and the PNG chunks cICP, gAMA and cHRM; decoders hand out the numbers as they are.
Which of them counts, and what each does, is as Chromium shows it: a valid cICP before a usable profile before sRGB
before gAMA, cHRM only beside gAMA, a grey profile on grey images only; within a profile its tag cicp before its curves.
gAMA and cHRM that together describe sRGB are taken for it, as the PNG standard means them, though Chromium then shows
dark tones darker by up to 9 of 255. What is brighter than a plain screen (PQ, HLG) is brought down to it as Chromium
does, by SMPTE ST 2094-50.

Source: PNG 3rd edition (W3C 2025) and ITU-T H.273 for the numbers of cICP; tests compare with headless Chromium.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageCms

Array = npt.NDArray[np.float64]
Primaries = tuple[float, ...]
"""CIE x, y of white, red, green, blue: the order of cHRM."""
Curve = Callable[[Array], Array]
"""Encoded values in [0, 1] to linear light, 1 for white."""

COLOUR_CHUNKS = ("gAMA", "cHRM", "cICP", "mDCV", "mDCv", "cLLI", "cLLi")
"""PNG chunks that a stored file never has; iCCP and sRGB may stay where they change nothing."""
SRGB: Primaries = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
D65, SMPTE_170M = SRGB[:2], (0.63, 0.34, 0.31, 0.595, 0.155, 0.07)
BT_2020: Primaries = (*D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
CICP_PRIMARIES: Mapping[int, Primaries] = {
    1: SRGB,
    4: (0.31, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, *SMPTE_170M),
    7: (*D65, *SMPTE_170M),
    8: (0.31, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: BT_2020,
    10: (1 / 3, 1 / 3, 1, 0, 0, 1, 0, 0),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    22: (*D65, 0.63, 0.34, 0.295, 0.605, 0.155, 0.077),
}
REFERENCE_WHITE_NITS, PEAK_NITS = 203.0, 1000.0
"""Of PQ and HLG: paper's white, shown at half the light of a plain screen's white, and what is shown as that."""
BT_2020_LUMINANCE = np.array([0.2627, 0.678, 0.0593])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
GAMMA_TOLERANCE = 0.05
"""A gAMA this near to 1/2.2 without other primaries is taken for sRGB, by libpng and browsers too."""
SAME_PRIMARIES = 0.002
MAX_INTENT = 3
"""Of the sRGB chunk's one byte; with another it is not such a chunk."""
ICC_VERSION_OFFSET = 8
MAX_DIFFERENCE = 1
"""Of 255: a profile that moves no colour further is sRGB, whatever its name is."""
STRIP_PIXELS = 1_000_000


@dataclass(frozen=True)
class Colours:
    """Colour data of a file, and the conversion it leads to."""

    image: PilImage.Image
    """In sRGB."""
    done: str = ""
    """Conversions made; empty where the file says nothing, or says sRGB in a way that everybody reads alike."""
    changed: bool = False
    """False where at most a tag has to go, and every pixel stays as it is."""


def convert_to_srgb(image: PilImage.Image, chunks: Mapping[str, bytes]) -> Colours:
    """The image in sRGB.

    Args:
        image: decoded, L, RGB or CMYK, its profile in `info`.
        chunks: type to content of a PNG's COLOUR_CHUNKS and sRGB, see `pixels.read`; empty for other files.
    """
    found = [name for name in COLOUR_CHUNKS if name in chunks]
    cicp, profile = _read_cicp(chunks.get("cICP", b"")), image.info.get("icc_profile")
    if cicp is not None:
        return _apply(image, cicp, ["cICP"], [*found, *(["colour profile"] if profile else [])])
    if profile:
        moved = _measure_profile(profile, image.mode)
        named = _read_cicp(_list_tags(profile).get(b"cicp", b"")[8:])
        if moved is not None and named is not None and not (moved <= MAX_DIFFERENCE and _is_srgb(named)):
            rgb = image if image.mode == "L" else image.convert("RGB")
            curve = _srgb_curve if named[1] is VIDEO_CURVE else named[1]  # browsers do so in a profile
            return _apply(rgb, (named[0], curve), ["colour profile"], [*found, "colour profile"])
        if moved is not None and moved <= MAX_DIFFERENCE:
            return _remove(image, found)
        converted = None if moved is None else _apply_profile(image, profile)
        if converted is not None:
            return Colours(converted, "colour profile converted to sRGB", changed=True)
        if profile[36:40] == b"acsp":  # what has not even a profile's signature, nobody takes for one
            found.append("unusable colour profile")
    says_srgb = len(intent := chunks.get("sRGB", b"")) == 1 and intent[0] <= MAX_INTENT
    gama = None if says_srgb else _read_gama(chunks)
    return _remove(image, found) if gama is None else _apply(image, gama, ["gAMA", "cHRM"], found)


def _apply(image: PilImage.Image, encoding: tuple[Primaries, Curve], by: list[str], found: list[str]) -> Colours:
    """Convert from an encoding that a PNG names, unless it does what sRGB does."""
    primaries, curve = encoding
    if _is_srgb(encoding):
        return _remove(image, found)
    names = " and ".join(name for name in by if name in found)
    return Colours(_convert(image, primaries, curve), f"colours converted from {names} to sRGB", changed=True)


def _is_srgb(encoding: tuple[Primaries, Curve]) -> bool:
    return encoding[1] is _srgb_curve and _is_near(encoding[0], SRGB)


def _remove(image: PilImage.Image, found: list[str]) -> Colours:
    return Colours(image, f"{', '.join(found)} removed, which changed no colour" if found else "")


def _is_near(primaries: Primaries, others: Primaries) -> bool:
    return max(abs(a - b) for a, b in zip(primaries, others, strict=True)) <= SAME_PRIMARIES


def _read_cicp(content: bytes) -> tuple[Primaries, Curve] | None:
    """The encoding that a cICP chunk names; None where it is none of RGB in full range that is known here."""
    if len(content) != 4 or content[2:] != b"\0\1":
        return None
    primaries, curve = CICP_PRIMARIES.get(content[0]), CICP_CURVES.get(content[1])
    return None if primaries is None or curve is None else (primaries, curve)


def _read_gama(chunks: Mapping[str, bytes]) -> tuple[Primaries, Curve] | None:
    """The encoding of gAMA, with cHRM where that is there too; None where there is no gAMA that can be meant."""
    content, primaries = chunks.get("gAMA", b""), SRGB
    gamma = struct.unpack(">I", content)[0] / 1e5 if len(content) == 4 else 0.0
    if not gamma:
        return None
    if len(chunks.get("cHRM", b"")) == 32:
        named = tuple(value / 1e5 for value in struct.unpack(">8I", chunks["cHRM"]))
        primaries = named if _is_possible(named) else SRGB
    if abs(gamma * 2.2 - 1) <= GAMMA_TOLERANCE and _is_near(primaries, SRGB):
        return SRGB, _srgb_curve
    return primaries, _power(1 / gamma)


def _is_possible(primaries: Primaries) -> bool:
    """Whether a white can be mixed of the three primaries."""
    if min(primaries[1::2]) <= 0:
        return False
    xyz = _mix(primaries)
    return bool(abs(np.linalg.det(xyz)) > 1e-6 and (np.linalg.solve(xyz, _to_xyz(*primaries[:2])) > 0).all())


def _power(exponent: float) -> Curve:
    return lambda values: values**exponent


def _srgb_curve(values: Array) -> Array:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _smpte_240m_curve(values: Array) -> Array:
    return np.where(values < 0.091286342118, values / 4, ((values + 0.11157219592) / 1.11157219592) ** (20 / 9))


def _pq_curve(values: Array) -> Array:
    """SMPTE ST 2084, 1 for the reference white."""
    root = values ** (1 / 78.84375)
    nits = 1e4 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    return np.asarray(nits / REFERENCE_WHITE_NITS)


def _hlg_curve(values: Array) -> Array:
    """ARIB STD-B67, the light of the scene."""
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return np.asarray(scene)


def _map_tones(light: npt.NDArray[np.float32], curve: Curve) -> npt.NDArray[np.float32]:
    """(..., 3) linear BT.2020 of PQ or HLG to a plain screen's, 1 for its white.

    Source: Reference White Tone Mapping of SMPTE ST 2094-50, as Chromium shows pictures without metadata of their own;
    HLG before it by the system gamma of BT.2100 for a screen of 1000 nits.
    """
    if curve is _hlg_curve:
        luminance = np.maximum(light @ BT_2020_LUMINANCE, 0)[..., None]
        light = light * luminance**0.2 * (PEAK_NITS / REFERENCE_WHITE_NITS)
    peak = PEAK_NITS / REFERENCE_WHITE_NITS
    brightest = light.max(axis=-1, keepdims=True)
    # Up to the reference white half the light, above it a quadratic Bezier curve from (1, 0.5) to (peak, 1).
    middle_in, middle_out = 0.35 + 0.65 * 2, 0.35 * 0.5 + 0.65
    bend, slope = 1 - 2 * middle_in + peak, 2 * middle_in - 2
    at = (np.sqrt(slope**2 + 4 * bend * (brightest.clip(1, peak) - 1)) - slope) / (2 * bend)
    above = (1 - at) ** 2 * 0.5 + 2 * at * (1 - at) * middle_out + at**2
    gain = np.where(brightest <= 1, 0.5, above / np.maximum(brightest, 1))
    return np.asarray(light * gain, dtype=np.float32)


VIDEO_CURVE = _power(2.4)
CICP_CURVES: Mapping[int, Curve] = {
    **dict.fromkeys((1, 6, 11), VIDEO_CURVE),
    **dict.fromkeys((14, 15), _power(2.4)),
    4: _power(2.2),
    5: _power(2.8),
    7: _smpte_240m_curve,
    8: _power(1.0),
    13: _srgb_curve,
    16: _pq_curve,
    17: lambda values: values**2.6 * 52.37 / 48,
    18: _hlg_curve,
}


def _convert(image: PilImage.Image, primaries: Primaries, curve: Curve) -> PilImage.Image:
    """Decode by a curve, move from other primaries to sRGB's, encode as sRGB, a strip of rows at a time."""
    linear = np.asarray(curve(np.arange(256) / 255), dtype=np.float32)
    is_hdr = curve in (_pq_curve, _hlg_curve)
    if image.mode == "L" or (_is_near(primaries, SRGB) and not is_hdr):
        if is_hdr:
            linear = _map_tones(linear[:, None].repeat(3, axis=1), curve)[:, 0]
        table = [int(value) for value in _encode(linear)]
        return image.point(table * len(image.getbands()))
    pixels = np.array(image)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        light = linear[pixels[top : top + rows]]
        if is_hdr:
            light = _map_tones(_move(light, primaries, BT_2020), curve)
        pixels[top : top + rows] = _encode(_move(light, BT_2020 if is_hdr else primaries, SRGB))
    return PilImage.fromarray(pixels)


def _move(light: npt.NDArray[np.float32], primaries: Primaries, to: Primaries) -> npt.NDArray[np.float32]:
    """(..., 3) linear light in other primaries."""
    matrix = (np.linalg.inv(_to_d50(to)) @ _to_d50(primaries)).astype(np.float32)
    red = light[..., :1]  # white is white in both, so that only what differs from grey is moved: greys stay exact
    return np.asarray(red + (light - red) @ matrix.T)


def _encode(linear: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Linear light to sRGB of 8 bits; what sRGB cannot show is cut."""
    light = linear.clip(0, 1)
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def _to_xyz(x: float, y: float) -> Array:
    """CIE XYZ of a colour of Y 1."""
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _mix(primaries: Primaries) -> Array:
    """(3, 3): a column a primary, CIE x, y, z of it."""
    return np.array([(x, y, 1 - x - y) for x, y in (primaries[at : at + 2] for at in (2, 4, 6))]).T


def _to_d50(primaries: Primaries) -> Array:
    """The (3, 3) matrix from linear RGB to CIE XYZ under D50, adapted after Bradford."""
    white = _to_xyz(*primaries[:2])
    xyz = _mix(primaries)
    seen, wanted = BRADFORD @ white, BRADFORD @ np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.inv(BRADFORD) @ np.diag(wanted / seen) @ BRADFORD
    return np.asarray(adapt @ (xyz * np.linalg.solve(xyz, white)))


def _apply_profile(image: PilImage.Image, content: bytes) -> PilImage.Image | None:
    """The image through its ICC profile; None where that is damaged or made for other images, which browsers pass over.

    A grey image may have a profile for RGB, a colour image none for grey.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = profile.profile.xcolor_space.strip()
        is_grey = image.mode == "L"
        if space == "RGB" and is_grey:
            image = image.convert("RGB")
        if space != {"L": "GRAY"}.get(image.mode, image.mode):
            return None
        if space == "GRAY" and profile.profile.connection_space.strip() != "XYZ":
            return None
        # Those shortcuts of LittleCMS are 10 of 255 off in the dark tones of a linear grey profile.
        flags = ImageCms.Flags.NOOPTIMIZE if is_grey else ImageCms.Flags.NONE
        # By the table for perceptual intent before that for relative, as browsers do, whatever intent the file names.
        intent = ImageCms.Intent.PERCEPTUAL
        if b"A2B1" in _list_tags(content) and b"A2B0" not in _list_tags(content):
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        through = ImageCms.profileToProfile(image, profile, _srgb_profile(), intent, outputMode="RGB", flags=flags)
        return through.convert("L") if through is not None and is_grey else through
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None


@lru_cache(maxsize=1)
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    """LittleCMS' own, called version 2: to one of version 4 it moves the black point, which no browser does."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    content[ICC_VERSION_OFFSET] = 2
    return ImageCms.ImageCmsProfile(io.BytesIO(content))


def _list_tags(content: bytes) -> dict[bytes, bytes]:
    """Name to content of an ICC profile's tags."""
    count = int.from_bytes(content[128:132], "big")
    entries = (content[at : at + 12] for at in range(132, min(132 + 12 * count, len(content) - 11), 12))
    tags = {}
    for entry in entries:
        name, start, size = struct.unpack(">4sII", entry)
        tags[name] = content[start : start + size]
    return tags


@lru_cache(maxsize=64)
def _measure_profile(content: bytes, mode: str) -> int | None:
    """By how much of 255 a profile moves samples of an image of this mode; None where it is of no use for it."""
    levels = np.arange(256, dtype=np.uint8)
    samples = levels[None]
    if mode != "L":
        grid = np.stack(np.meshgrid(*[levels[::15]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        samples = np.concatenate([grid, np.repeat(levels[:, None], 3, axis=1)])[None]
    image = PilImage.fromarray(samples).convert(mode)
    through = _apply_profile(image, content)
    if through is None:
        return None
    return int(np.abs(np.asarray(through.convert("RGB")).astype(int) - np.asarray(image.convert("RGB"))).max())
