"""Metadata is taken out of a file, and its picture stays as it is packed."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageCms, PngImagePlugin
from sqlalchemy import select

from annotate.ingest.store import import_folder
from db.images import image_path, probe_bytes
from db.models import Image
from db.session import Database
from pixels.metadata import SCAN_END, strip_metadata
from pixels.read import decode_plain, decode_rgb
from tests.colour_files import encode, tagged
from tests.making import fetch

SECRET = b"Jane Doe, 48.1372 N"
FACE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
PHOTO = PilImage.fromarray(cv2.resize(FACE, (80, 48), interpolation=cv2.INTER_CUBIC))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + SECRET
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + SECRET + b"</x:xmpmeta>"


def exif() -> PilImage.Exif:
    made = PilImage.Exif()
    made[0x013B] = SECRET.decode()  # Artist
    made.get_ifd(0x8825)[1] = "N"  # GPS
    return made


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, behind: bytes = b"", **options: object) -> bytes:
    """A JPEG with segments put behind its JFIF header."""
    content = encode(PHOTO, "JPEG", quality=90, **options)
    at = 20 if content[2:4] == b"\xff\xe0" else 2
    return content[:at] + b"".join(segments) + content[at:] + behind


def preview() -> bytes:
    """A JPEG whose JFIF header holds a preview of one row."""
    content = encode(PHOTO, "JPEG")
    body = content[6:18] + bytes((7, 1)) + (SECRET * 2)[:21]
    return content[:2] + segment(0xE0, body) + content[20:]


def pictures() -> bytes:
    """A camera's file with a second picture behind the first."""
    buffer = io.BytesIO()
    PHOTO.save(buffer, "MPO", save_all=True, append_images=[PHOTO.resize((8, 8))], exif=exif())
    return buffer.getvalue()


def text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", SECRET.decode())
    info.add_text("parameters", SECRET.decode(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return info


def webp_chunk(content: bytes, name: bytes, body: bytes) -> bytes:
    body = name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(content) - 8 + len(body)) + content[8:] + body


PNG, WEBP = encode(PHOTO), encode(PHOTO, "WEBP", quality=80)
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # content, what is said
    "jpeg of a phone": (
        lambda: jpeg(exif=exif(), xmp=XMP, icc_profile=SRGB, comment=SECRET),
        "EXIF, XMP, colour profile, comment",
    ),
    "jpeg with IPTC": (lambda: jpeg(segment(0xED, b"Photoshop 3.0\x008BIM" + SECRET)), "IPTC"),
    "jpeg with an unknown segment": (
        lambda: jpeg(segment(0xEB, SECRET), segment(0xE0, b"AVI1" + SECRET)),
        "APP11, APP0",
    ),
    "jpeg with JFXX": (lambda: jpeg(segment(0xE0, b"JFXX\0\x10" + SECRET)), "preview"),
    "jpeg with a preview": (preview, "preview"),
    "jpeg with data behind": (lambda: jpeg(behind=SECRET), "data behind the end"),
    "jpeg with two pictures": (pictures, "EXIF, other pictures, data behind the end"),
    "jpeg, progressive": (lambda: jpeg(progressive=True, exif=exif()), "EXIF"),
    "jpeg, progressive, with a comment between its scans": (
        lambda: (one := jpeg(progressive=True))[: (at := one.rindex(b"\xff\xda"))] + segment(0xFE, SECRET) + one[at:],
        "comment",
    ),
    "jpeg with restarts": (lambda: jpeg(restart_marker_blocks=2, exif=exif()), "EXIF"),
    "jpeg of RGB": (lambda: jpeg(keep_rgb=True, exif=exif()), "EXIF"),
    "jpeg, Adobe's marker with more in it": (
        lambda: jpeg(segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + SECRET)),
        "stray bytes",
    ),
    "jpeg, marker filled up": (lambda: jpeg(b"\xff\xff\xff", exif=exif()), "EXIF"),
    "jpeg, grey": (lambda: encode(PHOTO.convert("L"), "JPEG", comment=SECRET), "comment"),
    "png with text": (lambda: encode(PHOTO, pnginfo=text()), "tEXt, zTXt, iTXt"),
    "png with EXIF": (lambda: encode(PHOTO, exif=exif(), icc_profile=SRGB), "colour profile, EXIF"),
    "png with unknown chunks": (
        lambda: tagged(PNG, (b"prVt", SECRET), (b"tIME", bytes(7)), (b"pHYs", SECRET[:9]), (b"sPLT", SECRET)),
        "prVt, tIME, pHYs, sPLT",
    ),
    "png with text behind the pixels": (lambda: tagged(PNG, (b"tEXt", SECRET), before=b"IEND"), "tEXt"),
    "png with data behind": (lambda: PNG + SECRET, "data behind the end"),
    "png with a palette that it does not need": (lambda: tagged(PNG, (b"PLTE", SECRET[:18])), "PLTE"),
    "png, grey": (lambda: encode(PHOTO.convert("L"), pnginfo=text()), "tEXt, zTXt, iTXt"),
    "webp": (lambda: encode(PHOTO, "WEBP", exif=exif(), xmp=XMP, icc_profile=SRGB), "colour profile, EXIF, XMP"),
    "webp, lossless": (lambda: encode(PHOTO, "WEBP", lossless=True, exif=exif()), "EXIF"),
    "webp with an unknown chunk": (lambda: webp_chunk(WEBP, b"JUNK", SECRET), "unknown chunk"),
    "webp with data behind": (lambda: WEBP + SECRET, "data behind the end"),
}


def compressed(content: bytes) -> list[bytes]:
    """The parts of a file that hold its pixels, as they are packed."""
    if content.startswith(b"\x89PNG"):
        at, parts = 8, []
        while at < len(content):
            size = int.from_bytes(content[at : at + 4], "big")
            parts += [content[at + 8 : at + 8 + size]] if content[at + 4 : at + 8] == b"IDAT" else []
            at += 12 + size
        return parts
    if content.startswith(b"RIFF"):
        at = next(content.index(name) for name in (b"VP8 ", b"VP8L") if name in content)
        return [content[at : at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")]]
    parts, at = [], 0
    while (at := content.find(b"\xff\xda", at)) >= 0:
        found = SCAN_END.search(content, at + 2 + int.from_bytes(content[at + 2 : at + 4], "big"))
        assert found is not None
        parts.append(content[at : found.start()])
        at = found.start()
    return parts


@pytest.mark.parametrize("name", FILES)
def test_nothing_but_the_picture_is_stored_and_its_bytes_are_the_files_own(name: str) -> None:
    make, said = FILES[name]
    content = make()
    probe = probe_bytes(content, name)
    assert probe.conversion == f"metadata removed: {said}"
    assert probe.converted is not None
    assert probe.same_pixels
    assert probe.original_sha256 == hashlib.sha256(content).hexdigest()
    assert SECRET[:8] not in probe.converted
    scans = compressed(probe.converted)
    assert scans == compressed(content)[: len(scans)]  # a camera's second picture has scans too
    before, after = PilImage.open(io.BytesIO(content)), PilImage.open(io.BytesIO(probe.converted))
    assert after.mode == before.mode
    assert not {"exif", "icc_profile", "comment", "xmp", "mp", "parameters", "dpi"} & (set(after.info) - {"dpi"})
    np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(probe.converted, np.uint8), cv2.IMREAD_COLOR_RGB),
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION),
    )
    again = probe_bytes(probe.converted, "again")
    assert (again.sha256, again.conversion) == (probe.sha256, None)


def test_the_flags_of_webp_say_what_is_left() -> None:
    content = FILES["webp"][0]()
    assert content[20] & 0b101100 == 0b101100
    stripped, _ = strip_metadata(content)
    assert stripped[12:16] == b"VP8X"
    assert stripped[20] == 0
    assert len(stripped) == 8 + int.from_bytes(stripped[4:8], "little")


def test_a_file_without_metadata_stays_byte_for_byte() -> None:
    for content in (PNG, WEBP, jpeg(), jpeg(progressive=True)):
        assert strip_metadata(content) == (content, [])
        assert decode_plain(content).content is content


def test_damaged_files_keep_their_pixels_or_are_refused() -> None:
    """Whatever is taken out of a file that decoders still make something of, what they make of it stays."""
    rng = np.random.default_rng(1)
    seeds = [make() for make, _ in FILES.values()]
    kept = 0
    for _ in range(400):
        content = bytearray(seeds[rng.integers(len(seeds))])
        for place in rng.integers(0, min(len(content), 700), rng.integers(1, 4)):
            content[place] = rng.integers(256)
        try:
            plain = decode_plain(bytes(content))
        except ValueError:
            continue
        kept += 1
        np.testing.assert_array_equal(decode_rgb(plain.content), np.asarray(plain.image))
        assert decode_plain(plain.content).conversion == ""
    assert kept > 50


def test_an_original_is_known_again_and_is_one_image_under_any_metadata(
    database: Database, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    for name in ("lq", "m"):
        (folder / name).mkdir(parents=True)
    (folder / "lq" / "face.jpg").write_bytes(jpeg(exif=exif()))
    (folder / "m" / "face.png").write_bytes(encode(PHOTO, pnginfo=text()))
    first = import_folder(database, data, folder)
    assert [why for _, why in first.converted] == ["metadata removed: EXIF", "metadata removed: tEXt, zTXt, iTXt"]
    again = import_folder(database, data, folder)
    assert (again.images_added, again.candidates_added, again.sources_added) == (0, 0, 0)
    (folder / "m" / "face.png").write_bytes(PNG)  # the same picture as another program leaves it
    assert import_folder(database, data, folder).images_added == 0
    images = fetch(database, select(Image).order_by(Image.id))
    assert [image.sha256 for image in images] == [
        hashlib.sha256(content).hexdigest() for content in (jpeg(), encode(PHOTO))
    ]
    for image in images:
        assert SECRET not in image_path(data, image.sha256, image.suffix).read_bytes()
