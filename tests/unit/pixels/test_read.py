"""One reader: what a file says of its pixels is done once, whatever software wrote it."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageCms

from annotate.ingest.archive import unpacked
from annotate.ingest.store import import_folder
from db.images import probe_bytes
from db.session import Database
from metrics.natural import MEASURES, split_planes
from pixels.colour import COLOUR_CHUNKS
from pixels.metadata import PNG_SIGNATURE
from pixels.read import ImageFault, decode_plain, decode_rgb, read_rgb
from tests.colour_files import ADOBE, SRGB, chrm, chunk, cicp, cicp_tag, encode, gama, profile, raised_black, tagged
from tests.making import find_case

GREY = np.full((8, 8, 3), 129, np.uint8)
LEVELS = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
RAMP = PilImage.fromarray(np.arange(256, dtype=np.uint8)[None])


SRGB_BYTES = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OTHER_NAME = SRGB_BYTES.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
LINEAR = profile(1.0, "sRGB IEC61966-2.1")
GREY_LINEAR = profile(1.0, "Dot Gain 20%", b"GRAY")
PLAIN = encode(GREY)
COLOURS: dict[str, tuple[bytes, int, str]] = {
    # content, what 129 becomes, what is said
    "gAMA 1": (tagged(PLAIN, gama(1.0)), 189, "colours converted from gAMA to sRGB"),
    "gAMA of an old Macintosh": (tagged(PLAIN, gama(0.55556)), 147, "colours converted from gAMA to sRGB"),
    "gAMA of sRGB": (tagged(PLAIN, gama(0.45455)), 129, "gAMA removed, which changed no colour"),
    "gAMA, nearly sRGB's": (tagged(PLAIN, gama(0.47)), 129, "gAMA removed, which changed no colour"),
    "gAMA 0": (tagged(PLAIN, gama(0)), 129, "gAMA removed, which changed no colour"),
    "gAMA and cHRM of sRGB": (
        tagged(PLAIN, gama(0.45455), chrm(SRGB)),
        129,
        "gAMA, cHRM removed, which changed no colour",
    ),
    "gAMA and cHRM of Adobe RGB": (
        tagged(PLAIN, gama(0.45455), chrm(ADOBE)),
        130,
        "colours converted from gAMA and cHRM to sRGB",
    ),
    "cHRM alone": (tagged(PLAIN, chrm(ADOBE)), 129, "cHRM removed, which changed no colour"),
    "cHRM of one point": (
        tagged(PLAIN, gama(1.0), chrm((0.3,) * 8)),
        189,
        "colours converted from gAMA and cHRM to sRGB",
    ),
    "sRGB before gAMA": (
        tagged(PLAIN, (b"sRGB", b"\0"), gama(1.0), chrm(ADOBE)),
        129,
        "gAMA, cHRM removed, which changed no colour",
    ),
    "gAMA behind the pixels": (tagged(PLAIN, gama(1.0), before=b"IEND"), 129, "gAMA removed, which changed no colour"),
    "grey with gAMA": (tagged(encode(GREY[..., 0]), gama(1.0)), 189, "colours converted from gAMA to sRGB"),
    "cICP linear": (tagged(PLAIN, cicp(1, 8, 0, 1)), 189, "colours converted from cICP to sRGB"),
    "cICP of Display P3": (tagged(PLAIN, cicp(12, 13, 0, 1)), 129, "colours converted from cICP to sRGB"),
    "cICP of BT.2020": (tagged(PLAIN, cicp(9, 14, 0, 1)), 122, "colours converted from cICP to sRGB"),
    "cICP of HDR, PQ": (tagged(PLAIN, cicp(9, 16, 0, 1)), 135, "colours converted from cICP to sRGB"),
    "cICP of HDR, HLG": (tagged(PLAIN, cicp(9, 18, 0, 1)), 100, "colours converted from cICP to sRGB"),
    "cICP of SMPTE 240M": (tagged(PLAIN, cicp(1, 7, 0, 1)), 142, "colours converted from cICP to sRGB"),
    "cICP of film": (tagged(PLAIN, cicp(8, 8, 0, 1)), 189, "colours converted from cICP to sRGB"),
    "cICP of XYZ": (tagged(PLAIN, cicp(10, 8, 0, 1)), 189, "colours converted from cICP to sRGB"),
    "cICP of BT.1361": (tagged(PLAIN, cicp(1, 12, 0, 1)), 129, "cICP removed, which changed no colour"),
    "grey in HDR": (tagged(encode(GREY[..., 0]), cicp(9, 16, 0, 1)), 135, "colours converted from cICP to sRGB"),
    "sRGB with an intent that is none": (
        tagged(PLAIN, (b"sRGB", b"\x09"), gama(1.0)),
        189,
        "colours converted from gAMA to sRGB",
    ),
    "profile with cicp": (
        encode(GREY, "JPEG", quality=100, icc_profile=profile(2.2, "x", more=cicp_tag(1, 8, 0, 1))),
        189,
        "colours converted from colour profile to sRGB",
    ),
    "profile with the cicp of sRGB": (
        encode(GREY, icc_profile=profile(1.0, "x", more=cicp_tag(1, 13, 0, 1))),
        129,
        "colour profile removed, which changed no colour",
    ),
    "grey with cicp in its profile": (
        encode(GREY[..., 0], icc_profile=profile(2.2, "x", b"GRAY", more=cicp_tag(1, 8, 0, 1))),
        189,
        "colours converted from colour profile to sRGB",
    ),
    "profile with light in its black": (
        encode(GREY, icc_profile=profile(1.0, "x", more=raised_black())),
        197,
        "colour profile converted to sRGB",
    ),
    "cICP of sRGB": (tagged(PLAIN, cicp(1, 13, 0, 1)), 129, "cICP removed, which changed no colour"),
    "cICP unknown": (tagged(PLAIN, cicp(2, 2, 0, 1)), 129, "cICP removed, which changed no colour"),
    "cICP in video range": (tagged(PLAIN, cicp(1, 8, 0, 0)), 129, "cICP removed, which changed no colour"),
    "cICP before gAMA": (
        tagged(PLAIN, cicp(1, 13, 0, 1), gama(1.0)),
        129,
        "gAMA, cICP removed, which changed no colour",
    ),
    "cICP before a profile": (
        tagged(encode(GREY, icc_profile=LINEAR), cicp(1, 13, 0, 1)),
        129,
        "cICP, colour profile removed, which changed no colour",
    ),
    "profile of another name": (encode(GREY, icc_profile=OTHER_NAME), 129, "metadata removed: colour profile"),
    "sRGB": (tagged(PLAIN, (b"sRGB", b"\0")), 129, ""),
    "profile named sRGB": (encode(GREY, icc_profile=LINEAR), 189, "colour profile converted to sRGB"),
    "jpeg with a profile": (
        encode(GREY, "JPEG", quality=100, icc_profile=LINEAR),
        189,
        "colour profile converted to sRGB",
    ),
    "webp with a profile": (
        encode(GREY, "WEBP", lossless=True, icc_profile=LINEAR),
        189,
        "colour profile converted to sRGB",
    ),
    "grey with a grey profile": (
        encode(GREY[..., 0], icc_profile=GREY_LINEAR),
        189,
        "colour profile converted to sRGB",
    ),
    "grey with a colour profile": (
        encode(GREY[..., 0], "JPEG", quality=100, icc_profile=LINEAR),
        189,
        "colour profile converted to sRGB",
    ),
    "colour with a grey profile": (
        encode(GREY, icc_profile=GREY_LINEAR),
        129,
        "unusable colour profile removed, which changed no colour",
    ),
    "cut profile": (
        encode(GREY, icc_profile=LINEAR[:200]),
        129,
        "unusable colour profile removed, which changed no colour",
    ),
    "gAMA beside a cut profile": (
        tagged(encode(GREY, icc_profile=LINEAR[:200]), gama(1.0)),
        189,
        "colours converted from gAMA to sRGB",
    ),
    "gAMA beside a profile": (
        tagged(encode(GREY, icc_profile=SRGB_BYTES), gama(1.0)),
        129,
        "gAMA removed, which changed no colour",
    ),
    "palette with a profile": (
        encode(PilImage.fromarray(GREY).quantize(2), icc_profile=LINEAR),
        189,
        "colour profile converted to sRGB, P converted to RGB",
    ),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_what_the_tags_do_and_no_tag_stays(name: str) -> None:
    content, level, said = COLOURS[name]
    plain = decode_plain(content)
    pixels = np.asarray(plain.image)
    assert np.abs(pixels.astype(int) - level).max() <= 1
    assert plain.conversion == said
    np.testing.assert_array_equal(decode_rgb(content), pixels)
    if not said:
        assert plain.content == content
        return
    assert not [found for found in (*COLOUR_CHUNKS, "iCCP") if found.encode() in plain.content]
    again = decode_plain(plain.content)
    assert (again.conversion, again.content) == ("", plain.content)
    np.testing.assert_array_equal(np.asarray(again.image), pixels)


def test_taking_a_chunk_away_leaves_the_pixels_as_they_are_packed() -> None:
    plain = decode_plain(tagged(PLAIN, gama(0.45455), (b"tEXt", b"Software\0x")))
    assert plain.content == PLAIN
    assert plain.conversion == "gAMA removed, which changed no colour, metadata removed: tEXt"


def test_primaries_move_colours_and_leave_greys_grey() -> None:
    red = np.full((4, 4, 3), (200, 0, 0), np.uint8)
    # As headless Chromium shows them.
    for tag, shown in (((cicp(12, 13, 0, 1),), 219), ((gama(0.45455), chrm(ADOBE)), 234), ((cicp(9, 14, 0, 1),), 247)):
        np.testing.assert_allclose(decode_rgb(tagged(encode(red), *tag))[0, 0], (shown, 0, 0), atol=1)
        assert np.ptp(decode_rgb(tagged(encode(LEVELS), *tag)), axis=2).max() == 0


def test_a_grey_profile_is_exact_in_dark_tones() -> None:
    shown = decode_rgb(encode(RAMP, icc_profile=GREY_LINEAR))[0, [1, 5, 10, 30], 0]
    np.testing.assert_allclose(shown, [13, 38, 56, 96], atol=1)


def make_key_png(depth: int, key: int) -> bytes:
    """A grey PNG of `depth` bits, levels 0, 1, 2, 3 …, one of them transparent."""
    width = 2**depth
    bits = "".join(f"{value:0{depth}b}" for value in range(width)).ljust(8, "0")
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, 0, 0, 0, 0))
    body = chunk(b"tRNS", struct.pack(">H", key)) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


@pytest.mark.parametrize(("depth", "levels"), [(1, [0, 255]), (2, [0, 85, 170, 255]), (4, list(range(0, 256, 17)))])
def test_a_transparent_grey_of_few_bits_becomes_white(depth: int, levels: list[int]) -> None:
    expected = [255, *levels[1:]]
    assert decode_rgb(make_key_png(depth, 0))[0, :, 0].tolist() == expected


def test_16_bits_are_reduced_not_cut() -> None:
    ramp = np.arange(0, 65536, 257, dtype=np.uint16)[None]
    for channels in (1, 3, 4):
        image = ramp if channels == 1 else np.repeat(ramp[..., None], channels, axis=2)
        if channels == 4:
            image = image.copy()
            image[..., 3] = 65535
        pixels = decode_rgb(cv2.imencode(".png", image)[1].tobytes())
        np.testing.assert_array_equal(pixels, LEVELS)
    key = tagged(cv2.imencode(".png", ramp)[1].tobytes(), (b"tRNS", struct.pack(">H", 257)))
    assert decode_rgb(key)[0, :3, 0].tolist() == [0, 255, 2]


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import pixels.read

    large, small = encode(np.zeros((8, 16, 3), np.uint8)), encode(np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(pixels.read, "LARGE_PIXELS", 100)
    inside, most = [0, 0], [0, 0]
    to_plain = pixels.read._to_plain

    def watch(image: PilImage.Image, *rest: object) -> object:
        kind = int(image.width == 16)
        inside[kind] += 1
        most[kind] = max(most[kind], inside[kind])
        time.sleep(0.02)
        inside[kind] -= 1
        return to_plain(image, *rest)

    monkeypatch.setattr(pixels.read, "_to_plain", watch)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_rgb, [large, small] * 12))
    assert most[1] == 1
    assert most[0] > 1


def test_jpeg_of_every_colour_space_is_read_as_browsers_do() -> None:
    photo = PilImage.fromarray(np.repeat(np.repeat([[[200, 60, 20]]], 16, axis=0), 16, axis=1).astype(np.uint8))
    for content in (
        encode(photo, "JPEG", quality=100, subsampling=0),
        encode(photo, "JPEG", quality=100, keep_rgb=True),  # Adobe's marker says RGB
        encode(photo.convert("CMYK"), "JPEG", quality=100),  # inverted, as Adobe has it
    ):
        np.testing.assert_allclose(decode_rgb(content)[8, 8], (200, 60, 20), atol=2)


def test_turned_by_exif_or_xmp_with_its_colours_converted() -> None:
    photo = np.zeros((4, 6, 3), np.uint8)
    photo[0, 0] = 129
    exif = PilImage.Exif()
    exif[0x0112] = 6
    both = decode_plain(tagged(encode(photo, exif=exif), gama(1.0)))
    assert both.conversion == "EXIF orientation 6 applied, colours converted from gAMA to sRGB"
    assert np.asarray(both.image).shape == (6, 4, 3)
    assert np.asarray(both.image)[0, 3].tolist() == pytest.approx([189] * 3, abs=1)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode_rgb(encode(photo, "JPEG", quality=100, xmp=xmp)).shape == (6, 4, 3)
    broken = encode(photo, "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_rgb(broken).shape == (4, 6, 3)


def test_a_stored_file_whose_bytes_are_not_its_names_is_read_by_nobody(data: Path, tmp_path: Path) -> None:
    from annotate.measure.worker import ImageFile, ImageJob, measure_batch
    from db.errors import UserError
    from db.images import image_path, write_image
    from db.pixel_hashes import hash_pixels
    from training.images import read_image

    probe = probe_bytes(PLAIN, "photo")
    write_image(data, probe, PLAIN)
    path = image_path(data, probe.sha256, ".png")
    assert read_rgb(path).shape == (8, 8, 3)
    path.write_bytes(encode(GREY + 1))
    with pytest.raises(ImageFault, match="not the file that was imported"):
        read_rgb(path)
    with pytest.raises(UserError, match=rf"{path}: not the file that was imported"):
        read_image(path)
    job = ImageJob(1, ImageFile(probe.sha256, ".png"), ())
    pytest.importorskip("torch")
    measured = measure_batch(data, [job], "cpu")
    assert (measured.rows, [name for name, _ in measured.unreadable]) == ([], [path.name])
    assert hash_pixels(data, [(probe.sha256, ".png")]) == {}
    (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_rgb(tmp_path / path.name).shape == (8, 8, 3), "a name of 64 digits means that in a data folder alone"


def test_what_is_no_image_is_said() -> None:
    for content, said in ((b"", "empty"), (b"x", "not a PNG"), (PLAIN[:-30], "corrupt or truncated")):
        with pytest.raises(ImageFault, match=said):
            decode_rgb(content)


KINDS: dict[str, Callable[[], bytes]] = {
    "16 bits": lambda: cv2.imencode(".png", np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64)[1].tobytes(),
    "alpha": lambda: encode(PilImage.merge("RGBA", [PilImage.linear_gradient("L")] * 4)),
    "turned": lambda: encode(
        LEVELS[:, :64].repeat(32, axis=0),
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    ),
    "linear": lambda: tagged(encode(LEVELS[:, :64].repeat(32, axis=0)), gama(1.0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_is_the_same_as_a_file_and_as_a_candidate(kind: str, tmp_path: Path) -> None:
    from refl.faces.photo_files import read_photo
    from training.images import read_image

    content = KINDS[kind]()
    file, candidate = tmp_path / "photo.png", tmp_path / "candidate.png"
    file.write_bytes(content)
    probe = probe_bytes(content, "photo")
    assert probe.converted is not None
    candidate.write_bytes(probe.converted)
    stored = np.array(PilImage.open(candidate).convert("RGB"))
    for read in (read_rgb, read_image, lambda path: read_photo(path)[0]):
        np.testing.assert_array_equal(read(file), stored)
        np.testing.assert_array_equal(read(candidate), stored)
    for measure in MEASURES.values():
        assert measure(split_planes(read_rgb(file))) == measure(split_planes(read_rgb(candidate)))


@pytest.mark.parametrize(
    ("name", "middle"),
    [
        ("import/gama_chrm_adobe.png", (147, 62, 132)),  # as headless Chromium shows it
        ("import/icc_elle_g10.jpg", (183, 143, 183)),
        ("import/icc_srgb_g22.png", (140, 57, 134)),
        ("photos/gray16.png", None),
        ("photos/exif6.jpg", None),
    ],
)
def test_the_shared_cases_are_read_once_and_said(name: str, middle: tuple[int, ...] | None) -> None:
    content = find_case(name).read_bytes()
    plain = decode_plain(content)
    assert plain.conversion
    pixels = np.array(PilImage.open(io.BytesIO(plain.content)))
    np.testing.assert_array_equal(pixels, decode_rgb(content))
    assert not [found for found in COLOUR_CHUNKS if found.encode() in plain.content]
    if middle is not None:
        np.testing.assert_allclose(pixels[32, 32], middle, atol=2)
    if name.endswith("gray16.png"):
        assert len(np.unique(pixels)) > 100
    if name.endswith("exif6.jpg"):
        assert pixels.shape == (512, 400, 3)


def test_the_shared_zip_is_stored_without_colour_chunks_and_every_file_is_said(database: Database, data: Path) -> None:
    with unpacked(data, find_case("import/colour_tags_same_pixels.zip")) as folder:
        report = import_folder(database, data, folder)
    tags = ("cicp", "gama", "icc_linear", "mac18")
    assert sorted(name for name, _ in report.converted) == [f"tagged/{tag}.png" for tag in tags]
    for file in (data / "images").rglob("*.png"):
        assert decode_plain(file.read_bytes()).conversion == ""
        assert not [name for name in (*COLOUR_CHUNKS, "iCCP") if name.encode() in file.read_bytes()]


OTHERS = {
    "heic": (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC, whatever its name; save it as PNG"),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(64), "AVIF, whatever its name; save it as PNG"),
    "tiff": (encode(GREY, "TIFF"), "TIFF or raw, whatever its name; save it as PNG"),
    "bmp": (encode(GREY, "BMP"), "BMP, whatever its name; save it as PNG"),
    "gif": (encode(GREY, "GIF"), "GIF, whatever its name; save it as PNG"),
    "jpeg2000": (encode(GREY, "JPEG2000"), "JPEG 2000, whatever its name; save it as PNG"),
    "page": (b"\n<!DOCTYPE html><html>", "a web page, whatever its name; get the file itself"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, whatever its name; get the"),
    "zeros": (bytes(100), "zeros, as a copy that never ended leaves, whatever its name; get the file itself"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_told_by_its_content(name: str) -> None:
    content, what = OTHERS[name]
    with pytest.raises(ImageFault, match=f"^not a PNG, JPEG or WebP image but {what}"):
        decode_rgb(content)


def test_a_png_with_a_damaged_beginning_is_called_damaged() -> None:
    content = bytearray(tagged(PLAIN, gama(1.0)))
    content[content.index(b"gAMA") + 8] ^= 1
    with pytest.raises(ImageFault, match="corrupt"):
        decode_rgb(bytes(content))


def write_png(samples: np.ndarray, depth: int, colour_type: int, transparent: bytes) -> bytes:
    """A PNG of samples with a transparent colour, written here since Pillow writes none with odd ones."""
    bits = np.unpackbits(samples.astype(np.uint8).reshape(len(samples), -1, 1), axis=2)[..., 8 - depth :]
    rows = np.packbits(bits.reshape(len(samples), -1), axis=1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", samples.shape[1], len(samples), depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", content), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(("depth", "key"), [(1, 1), (1, 0), (2, 2), (4, 9)])
def test_any_grey_of_few_bits_can_be_transparent(depth: int, key: int) -> None:
    samples = np.arange(2**depth)[None]
    pixels = decode_rgb(write_png(samples, depth, 0, struct.pack(">H", key)))
    seen = np.where(samples == key, 255, samples * 255 // (2**depth - 1))
    np.testing.assert_array_equal(pixels[..., 0], seen)


@pytest.mark.parametrize(("shape", "colour_type"), [((4, 4), 0), ((4, 4, 3), 2)])
def test_bits_above_a_transparent_colours_own_do_not_count(shape: tuple[int, ...], colour_type: int) -> None:
    samples = np.full(shape, 129)
    samples[0] = 40
    key = struct.pack(">H", 129 + 512) * (3 if colour_type else 1)
    pixels = decode_rgb(write_png(samples, 8, colour_type, key))
    assert (pixels[0] == 40).all()
    assert (pixels[1:] == 255).all()


def test_a_side_above_a_callers_limit_is_refused_before_it_is_decoded() -> None:
    cut_off = encode(np.zeros((8, 65, 3), np.uint8))[:60]
    with pytest.raises(ImageFault, match="65 x 8 pixels; at most 64 a side"):
        decode_rgb(cut_off, max_side_px=64)
    assert decode_rgb(encode(GREY), max_side_px=8).shape == (8, 8, 3)
