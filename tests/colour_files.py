"""Image files that speak of their colours: PNG chunks, and ICC profiles of any name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image as PilImage

SRGB = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def encode(image: PilImage.Image | np.ndarray, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (PilImage.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, image_format, **options)
    return buffer.getvalue()


def tagged(content: bytes, *chunks: tuple[bytes, bytes], before: bytes = b"IDAT") -> bytes:
    """A PNG with chunks put in before another."""
    at = content.index(before) - 4
    return content[:at] + b"".join(chunk(*one) for one in chunks) + content[at:]


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 1e5))


def chrm(primaries: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in primaries))


def cicp(*values: int) -> tuple[bytes, bytes]:
    return b"cICP", bytes(values)


def cicp_tag(*values: int) -> dict[bytes, bytes]:
    """What an ICC profile of version 4.4 says as the chunk cICP does."""
    return {b"cicp": b"cicp" + bytes(4) + bytes(values)}


def raised_black() -> dict[bytes, bytes]:
    """Curves of an ICC profile in which black is no black: a tenth of the light stays."""
    steps = b"".join(struct.pack(">H", round(65535 * (0.1 + 0.9 * at / 255))) for at in range(256))
    return dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(4) + struct.pack(">I", 256) + steps)


def profile(curve: float, description: str, space: bytes = b"RGB ", more: Mapping[bytes, bytes] | None = None) -> bytes:
    """An ICC profile of version 2: sRGB's primaries (or grey) and a power curve, under any name, with more tags."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(number, values))

    power = b"curv" + bytes(4) + struct.pack(">IH", 1, round(curve * 256)) + bytes(2)
    name = description.encode() + b"\0"
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)}
    tags |= {b"cprt": b"text" + bytes(4) + b"no\0\0", b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == b"GRAY":
        tags[b"kTRC"] = power
    else:
        tags |= {b"rXYZ": xyz(0.4361, 0.2225, 0.0139), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {b"bXYZ": xyz(0.1431, 0.0606, 0.7139), b"rTRC": power, b"gTRC": power, b"bTRC": power}
    tags |= more or {}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I", start + len(body)) + b"lcms\x02\x40\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    return head + bytes(28) + number(0.9642) + number(1) + number(0.8249) + bytes(48) + table + body
