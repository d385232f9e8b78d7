"""Remove from an image file all that is not its picture, without decoding the picture.

GPS positions, names, comments, previews, profiles, a second picture behind the first, whatever follows the end. Only
what a decoder needs is kept, so that what nobody has thought of goes too.

Sources: PNG 3rd edition (W3C 2025), ITU-T T.81 and T.871 (JPEG and JFIF), RFC 9649 (WebP).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = ("IHDR", "tRNS", "IDAT")
PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
PALETTE, COLOUR_TYPE_OFFSET = 3, 25
WEBP_KEPT = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")
WEBP_ALPHA_FLAG = 0x10
SOI, EOI, SOS, APP0, APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
JPEG_KEPT = (*range(0xC0, 0xD0), SOS, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF)
"""Frames, tables, scans, restart intervals, line numbers."""
JPEG_BARE = (0x01, *range(0xD0, 0xD8))
"""Markers without a length."""
SCAN_END = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""A marker that ends a scan; within it 0xFF is followed by 0 or a restart."""
JFIF_BYTES, ADOBE_BYTES = 14, 12
"""Content of these segments without a preview, and without what follows."""
COLOUR_PROFILE, BEHIND = "colour profile", "data behind the end"
JPEG_NAMES = {
    b"Exif\0": "EXIF",
    b"http://ns.adobe.com/": "XMP",
    b"Photoshop 3.0\0": "IPTC",
    b"ICC_PROFILE\0": COLOUR_PROFILE,
    b"MPF\0": "other pictures",
    b"JFXX\0": "preview",
}
WEBP_NAMES = {b"EXIF": "EXIF", b"XMP ": "XMP", b"ICCP": COLOUR_PROFILE}
PNG_NAMES = {"eXIf": "EXIF", "iCCP": COLOUR_PROFILE}


def strip_metadata(content: bytes) -> tuple[bytes, list[str]]:
    """(the file without all but its picture, what was removed; the file itself and nothing where there is no more).

    Args:
        content: a PNG, JPEG or WebP that can be decoded; of a damaged one the result may not be decodable either.
    """
    found: list[str] = []
    if content.startswith(PNG_SIGNATURE):
        stripped = _strip_png(content, found)
    elif content.startswith(b"RIFF"):
        stripped = _strip_webp(content, found)
    else:
        stripped = _strip_jpeg(content, found)
    return (content, []) if stripped == content else (stripped, list(dict.fromkeys(found)) or ["stray bytes"])


def png_chunks(content: bytes) -> Iterator[tuple[str, int, int]]:
    """(type, where it begins, where it ends) of each chunk of a PNG; nothing of another file."""
    at, name = len(PNG_SIGNATURE), ""
    while content.startswith(PNG_SIGNATURE) and at + 12 <= len(content) and name != "IEND":
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8].decode("latin-1")
        yield name, at, end
        at = end


def _strip_png(content: bytes, found: list[str]) -> bytes:
    kept, last = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    for name, start, last in png_chunks(content):
        needed = name in PNG_KEPT or (name == "PLTE" and content[COLOUR_TYPE_OFFSET] == PALETTE)
        # One number, which says what everybody takes a file for that says nothing.
        if needed or (name == "sRGB" and last - start == 13):
            kept.append(content[start:last])
        elif name != "IEND":
            found.append(PNG_NAMES.get(name, name if name.isalpha() and name.isascii() else "unknown chunk"))
    if last < len(content):
        found.append(BEHIND)
    return b"".join([*kept, PNG_END])


def _strip_jpeg(content: bytes, found: list[str]) -> bytes:
    kept = [content[:2]]
    at, has_jfif = 2, False
    while at < len(content):
        at = content.find(b"\xff", at)
        while 0 <= at < len(content) and content[at] == 0xFF:  # a marker may be filled up with more of them
            at += 1
        if not 0 <= at < len(content):
            break
        marker, at = content[at], at + 1
        if marker == EOI:
            if at < len(content):
                found.append(BEHIND)
            break
        if marker in JPEG_BARE or not marker:
            continue
        end = at + int.from_bytes(content[at : at + 2], "big")
        body, head = content[at + 2 : end], bytes((0xFF, marker))
        if marker == SOS:
            after = SCAN_END.search(content, end)
            end = after.start() if after else len(content)
            kept.append(head + content[at:end])
        elif marker in JPEG_KEPT:
            kept.append(head + content[at:end])
        elif marker == APP0 and body.startswith(b"JFIF\0") and len(body) >= JFIF_BYTES and not has_jfif:
            has_jfif = True
            kept.append(head + struct.pack(">H", JFIF_BYTES + 2) + body[: JFIF_BYTES - 2] + b"\0\0")
            if len(body) > JFIF_BYTES:
                found.append("preview")
        elif marker == APP14 and body.startswith(b"Adobe") and len(body) >= ADOBE_BYTES:  # how its colours are coded
            kept.append(head + struct.pack(">H", ADOBE_BYTES + 2) + body[:ADOBE_BYTES])
        else:
            found.append(_name_segment(marker, body))
        at = end
    return b"".join([*kept, bytes((0xFF, EOI))])


def _name_segment(marker: int, body: bytes) -> str:
    named = next((name for start, name in JPEG_NAMES.items() if body.startswith(start)), None)
    if named is None:
        named = "comment" if marker == 0xFE else f"APP{marker - APP0}" if APP0 <= marker <= 0xEF else "unknown segment"
    return named


def _strip_webp(content: bytes, found: list[str]) -> bytes:
    end = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    if end + end % 2 < len(content):
        found.append(BEHIND)
    chunks: list[tuple[bytes, bytes]] = []
    at = 12
    while at + 8 <= end:
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if name in WEBP_KEPT and name not in dict(chunks):
            chunks.append((name, content[at + 8 : at + 8 + size]))
        else:
            found.append(WEBP_NAMES.get(name, "unknown chunk"))
        at += 8 + size + size % 2
    body = b"WEBP"
    for name, inside in chunks:
        if name == b"VP8X":  # its flags tell what is in the file: of those, only alpha can be
            inside = bytes((inside[0] & WEBP_ALPHA_FLAG, 0, 0, 0)) + inside[4:10]
        body += name + struct.pack("<I", len(inside)) + inside + b"\0" * (len(inside) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body
