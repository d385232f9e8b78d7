import hashlib
import io
import os
import socket
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageCms
from sqlalchemy import select

from db import images
from db.errors import UserError
from db.images import (
    add_image,
    find_image,
    image_path,
    open_rgb,
    probe_bytes,
    probe_image,
    sweep_unfinished,
    write_image,
)
from db.models import Image
from db.session import Database
from tests.colour_files import profile
from tests.making import write_photo

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PHOTO = PilImage.fromarray(PIXELS)


def encode(image: PilImage.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def decode(content: bytes) -> np.ndarray:
    return np.asarray(PilImage.open(io.BytesIO(content)).convert("RGB"))


def orientation(value: int) -> PilImage.Exif:
    exif = PilImage.Exif()
    exif[0x0112] = value
    return exif


PLAIN = {
    "png": encode(PHOTO, "PNG"),
    "jpeg": encode(PHOTO, "JPEG", quality=90),
    "progressive jpeg": encode(PHOTO, "JPEG", progressive=True),
    "webp": encode(PHOTO, "WEBP", lossless=True),
    "grey png": encode(PHOTO.convert("L"), "PNG"),
    "grey jpeg": encode(PHOTO.convert("L"), "JPEG"),
}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_stored_byte_for_byte(name: str, data: Path, tmp_path: Path) -> None:
    content = PLAIN[name]
    file = tmp_path / "a file whose name says nothing"
    file.write_bytes(content)
    probe = probe_image(file)
    assert (probe.width_px, probe.height_px, probe.size_bytes) == (32, 24, len(content))
    assert probe.sha256 == hashlib.sha256(content).hexdigest()
    assert (probe.original_sha256, probe.conversion, probe.converted) == (None, None, None)
    assert probe.suffix == SUFFIXES.get(name, probe.suffix)
    assert write_image(data, probe, file)
    assert image_path(data, probe.sha256, probe.suffix).read_bytes() == content


def add_alpha(value: int) -> PilImage.Image:
    rgba = PHOTO.convert("RGBA")
    rgba.putalpha(value)
    return rgba


CLEANED: dict[str, tuple[bytes, str]] = {
    "upright exif": (encode(PHOTO, "JPEG", exif=orientation(1)), "metadata removed: EXIF"),
    "srgb profile": (
        encode(PHOTO, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        "metadata removed: colour profile",
    ),
    "no profile at all": (encode(PHOTO, "PNG", icc_profile=b"no profile"), "metadata removed: colour profile"),
    "camera jpeg with a second view": (
        encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO.convert("L")]),
        "metadata removed: other pictures, data behind the end",
    ),
}
"""More in `tests/unit/pixels/test_metadata.py`."""


@pytest.mark.parametrize("name", CLEANED)
def test_files_with_metadata_are_stored_without_it(name: str, data: Path) -> None:
    content, conversion = CLEANED[name]
    probe = probe_bytes(content, name)
    assert (probe.conversion, probe.same_pixels) == (conversion, True)
    assert probe.converted is not None
    np.testing.assert_array_equal(decode(probe.converted), decode(content))
    assert write_image(data, probe, content)
    assert image_path(data, probe.sha256, probe.suffix).read_bytes() == probe.converted


CONVERTED: dict[str, tuple[bytes, str]] = {
    "alpha": (encode(add_alpha(0), "PNG"), "alpha laid over white"),
    "opaque alpha": (encode(add_alpha(255), "PNG"), "opaque alpha removed"),
    "webp alpha": (encode(add_alpha(0), "WEBP", lossless=True), "alpha laid over white"),
    "grey with alpha": (encode(add_alpha(0).convert("LA"), "PNG"), "alpha laid over white"),
    "palette": (encode(PHOTO.quantize(16), "PNG"), "P converted to RGB"),
    "transparent colour": (encode(PHOTO, "PNG", transparency=(1, 2, 3)), "opaque alpha removed"),
    "bilevel": (encode(PHOTO.convert("1"), "PNG"), "1 converted to RGB"),
    "cmyk": (encode(PHOTO.convert("CMYK"), "JPEG"), "CMYK converted to RGB"),
    "16-bit grey": (cv2.imencode(".png", np.full((24, 32), 300, np.uint16))[1].tobytes(), "16 bits reduced to 8"),
    "16-bit colour": (cv2.imencode(".png", np.full((24, 32, 3), 300, np.uint16))[1].tobytes(), "16 bits reduced to 8"),
    "rotated": (encode(PHOTO, "PNG", exif=orientation(6)), "EXIF orientation 6 applied"),
    "other profile": (
        encode(PHOTO, "PNG", icc_profile=profile(1.0, "sRGB IEC61966-2.1")),
        "colour profile converted to sRGB",
    ),
    "rotated with alpha": (
        encode(add_alpha(128), "PNG", exif=orientation(3)),
        "EXIF orientation 3 applied, alpha laid over white",
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_files_that_readers_see_differently_become_plain_png(name: str, data: Path) -> None:
    content, conversion = CONVERTED[name]
    probe = probe_bytes(content, name)
    assert probe.conversion == conversion
    assert probe.converted is not None
    assert probe.original_sha256 == hashlib.sha256(content).hexdigest()
    assert probe.sha256 == hashlib.sha256(probe.converted).hexdigest()
    assert (probe.suffix, probe.size_bytes) == (".png", len(probe.converted))
    stored = PilImage.open(io.BytesIO(probe.converted))
    assert (stored.format, stored.mode) == ("PNG", "RGB")
    assert stored.size == (probe.width_px, probe.height_px)
    assert not {"icc_profile", "exif", "transparency"} & set(stored.info)
    assert write_image(data, probe, content)
    assert image_path(data, probe.sha256, ".png").read_bytes() == probe.converted
    again = probe_bytes(probe.converted, "again")
    assert (again.sha256, again.conversion) == (probe.sha256, None)


def test_pixels_after_conversion_by_hand() -> None:
    def pixels(content: bytes) -> np.ndarray:
        probe = probe_bytes(content, "made")
        assert probe.converted is not None
        return decode(probe.converted)

    assert (pixels(CONVERTED["alpha"][0]) == 255).all()
    np.testing.assert_array_equal(pixels(CONVERTED["opaque alpha"][0]), PIXELS)
    np.testing.assert_array_equal(pixels(CONVERTED["rotated"][0]), np.rot90(PIXELS, -1))
    light = PIXELS / 255  # of a linear profile
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    np.testing.assert_allclose(pixels(CONVERTED["other profile"][0]), encoded, atol=1)
    half = 255 - (255 - np.rot90(PIXELS, 2).astype(int)) * 128 / 255
    np.testing.assert_allclose(pixels(CONVERTED["rotated with alpha"][0]).astype(int), half, atol=1)
    # 16 bits: 65535 is white, 257 times an 8-bit value is that value, and 128 rounds down to 0.
    levels = np.array([[0, 128, 129, 257, 300, 65535]], np.uint16)
    np.testing.assert_array_equal(pixels(cv2.imencode(".png", levels)[1].tobytes())[0, :, 0], [0, 0, 1, 1, 1, 255])


@pytest.mark.parametrize("value", range(2, 9))
def test_every_orientation_is_the_one_that_viewers_show(value: int) -> None:
    turned = {
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS[::-1].transpose(1, 0, 2),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: PIXELS[:, ::-1].transpose(1, 0, 2),
    }[value]
    probe = probe_bytes(encode(PHOTO, "PNG", exif=orientation(value)), "turned")
    assert probe.converted is not None
    np.testing.assert_array_equal(decode(probe.converted), turned)


def make_bomb(width: int, height: int) -> bytes:
    """A small PNG whose header claims more pixels than it has."""
    bomb = bytearray(PLAIN["png"])
    bomb[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    return bytes(bomb)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "face.png: empty file"),
        (b"not an image", "face.png: not a PNG, JPEG or WebP image"),
        (encode(PHOTO, "BMP"), "face.png: not a PNG, JPEG or WebP image"),
        (encode(PHOTO, "GIF"), "face.png: not a PNG, JPEG or WebP image"),
        (PLAIN["png"][:-400], "face.png: corrupt or truncated"),
        (PLAIN["jpeg"][:-400], "face.png: corrupt or truncated"),
        (PLAIN["webp"][:-400], "face.png: (corrupt|not a)"),
        (PLAIN["png"][:900] + b"\x00" * 50 + PLAIN["png"][950:], "face.png: corrupt or truncated"),
        (encode(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.convert("L")]), "animated .2 frames."),
        (make_bomb(8001, 8000), "8001 x 8000 pixels, above the limit of 64,000,000"),
        (make_bomb(30_000, 30_000), "face.png: far more pixels than the limit of 64,000,000"),
    ],
    ids=["empty", "text", "bmp", "gif", "cut png", "cut jpeg", "cut webp", "broken png", "animated", "big", "bomb"],
)
def test_unusable_files_are_refused_by_name(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        probe_bytes(content, "face.png")


def test_unreadable_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"missing\.png: cannot be read .No such file"):
        probe_image(tmp_path / "missing.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot be read .Is a directory"):
        probe_image(tmp_path / "folder")
    big = tmp_path / "big.png"
    big.write_bytes(PLAIN["png"])
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match=r"big\.png: 0 MiB, above the limit"):
        probe_image(big)


def test_broken_files_never_raise_anything_but_a_user_error() -> None:
    rng = np.random.default_rng(0)
    seeds = [*PLAIN.values(), *(content for content, _ in CONVERTED.values())]
    refused = 0
    for _ in range(600):
        content = bytearray(seeds[rng.integers(len(seeds))])
        for place in rng.integers(0, len(content), rng.integers(1, 6)):
            content[place] = rng.integers(256)
        start = int(rng.integers(min(len(content), 120)))
        del content[start : start + int(rng.integers(0, 6))]
        try:
            probe_bytes(bytes(content), "broken")
        except UserError:
            refused += 1
    assert refused > 100


def test_writing_is_whole_or_not_at_all(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = PLAIN["png"]
    probe = probe_bytes(content, "face")

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"cannot be written .No space left on device.; free some disk space"):
            write_image(data, probe, content)
    assert [file for file in (data / "images").rglob("*") if file.is_file()] == []
    assert write_image(data, probe, content)
    assert not write_image(data, probe, content)
    files = [file for file in (data / "images").rglob("*") if file.is_file()]
    assert files == [data / "images" / probe.sha256[:2] / f"{probe.sha256}.png"]
    assert files[0].read_bytes() == content


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_stored_file_obeys_the_umask(data: Path, tmp_path: Path, umask: int, mode: int) -> None:
    path = write_photo(tmp_path / "face.png", 1)
    before = os.umask(umask)
    try:
        probe = probe_image(path)
        write_image(data, probe, path)
    finally:
        os.umask(before)
    assert image_path(data, probe.sha256, probe.suffix).stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("damage", [b"", b"cut", None])
def test_a_damaged_or_missing_file_is_put_right_by_adding_it_again(
    database: Database, data: Path, tmp_path: Path, damage: bytes | None
) -> None:
    path = write_photo(tmp_path / "face.png", 1)
    with database.write() as session:
        image = add_image(session, data, probe_image(path), path)
        stored = image_path(data, image.sha256, image.suffix)
    if damage is None:
        stored.unlink()
    else:
        stored.write_bytes(damage)
    with database.write() as session:
        assert add_image(session, data, probe_image(path), path).id == image.id
    assert stored.read_bytes() == path.read_bytes()


def test_a_file_that_changed_since_it_was_probed_is_refused(data: Path, tmp_path: Path) -> None:
    file = write_photo(tmp_path / "face.png", 1)
    probe = probe_image(file)
    write_photo(file, 2)
    with pytest.raises(UserError, match=r"face\.png: changed while it was being imported"):
        write_image(data, probe, file)
    assert not image_path(data, probe.sha256, probe.suffix).exists()


def test_an_image_has_one_row_and_is_found_by_either_hash(database: Database, data: Path) -> None:
    content, _ = CONVERTED["rotated"]
    with database.write() as session:
        probe = probe_bytes(content, "face")
        first = add_image(session, data, probe, content)
        assert add_image(session, data, probe, content) is first
    with database.read() as session:
        row = session.scalars(select(Image)).one()
        assert (row.sha256, row.suffix, row.width_px, row.height_px) == (probe.sha256, ".png", 24, 32)
        assert (row.size_bytes, row.conversion) == (probe.size_bytes, "EXIF orientation 6 applied")
        assert find_image(session, probe.sha256) is row
        assert find_image(session, hashlib.sha256(content).hexdigest()) is row
        assert find_image(session, "0" * 64) is None
        np.testing.assert_array_equal(np.asarray(open_rgb(data, row)), np.rot90(PIXELS, -1))


def test_the_file_is_put_back_where_only_the_row_is_left(database: Database, data: Path) -> None:
    content = PLAIN["jpeg"]
    probe = probe_bytes(content, "face")
    with database.write() as session:
        add_image(session, data, probe, content)
    image_path(data, probe.sha256, ".jpg").unlink()
    with database.write() as session:
        add_image(session, data, probe, content)
    assert image_path(data, probe.sha256, ".jpg").read_bytes() == content


def test_unfinished_files_of_killed_imports_are_swept(data: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = data / "images" / "ab"
    folder.mkdir(parents=True)
    host, old = socket.gethostname(), time.time() - 2 * 86_400
    names = {
        f".adding-{host}-{ended.pid}-00": False,
        f".adding-{host}-{os.getpid()}-01": True,
        ".adding-0123456789abcdef": False,  # of an earlier version
        ".adding-another-host-1-02": True,
        ".adding-another-host-1-03": False,
        "ab" * 32 + ".png": True,
    }
    for name in names:
        (folder / name).write_bytes(b"half")
    os.utime(folder / ".adding-another-host-1-03", (old, old))
    assert sweep_unfinished(data) == 3
    assert {path.name for path in folder.iterdir()} == {name for name, stays in names.items() if stays}
