"""What people see is what is measured: colours read back from screenshots, by what the file says of its colours."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PilImage
from playwright.sync_api import Locator, Page
from sqlalchemy import select

from annotate.ingest.store import import_folder
from annotate.judging.pairs import make_pairs
from db.images import image_path
from db.models import Candidate, Image, Method
from db.project import load_settings
from db.session import Database
from metrics.natural import split_planes
from pixels.read import decode_rgb, read_rgb
from tests.browser.conftest import enter
from tests.colour_files import ADOBE, chrm, cicp, cicp_tag, encode, gama, profile, raised_black, tagged

pytestmark = pytest.mark.browser
BLOCKS = np.array([[(129, 129, 129), (200, 40, 60)], [(60, 150, 90), (70, 90, 190)]], np.uint8)
PHOTO = BLOCKS.repeat(32, axis=0).repeat(32, axis=1)
PLAIN = encode(PHOTO)
KINDS = {
    "gama": tagged(PLAIN, gama(0.7)),
    "adobe": tagged(PLAIN, gama(0.45455), chrm(ADOBE)),
    "p3": tagged(PLAIN, cicp(12, 13, 0, 1)),
    "cicp": tagged(PLAIN, cicp(1, 8, 0, 1)),
    "png_profile": encode(PHOTO, icc_profile=profile(1.2, "sRGB IEC61966-2.1")),
    "jpeg_profile": encode(PHOTO, "JPEG", quality=100, subsampling=0, icc_profile=profile(1.8, "Camera")),
    "webp_profile": encode(PHOTO, "WEBP", lossless=True, icc_profile=profile(1.4, "x")),
    "cmyk": encode(PilImage.fromarray(PHOTO[::-1]).convert("CMYK"), "JPEG", quality=100),
}
SAYING_MORE = {
    **{f"cicp {at}": tagged(PLAIN, cicp(*at, 0, 1)) for at in ((8, 13), (10, 13), (1, 7), (1, 12))},
    **{f"hdr {at}": tagged(PLAIN, cicp(*at, 0, 1)) for at in ((1, 16), (9, 16), (12, 16), (1, 18), (9, 18), (12, 18))},
    "no_intent": tagged(PLAIN, (b"sRGB", b"\x09"), gama(1.0)),
    "raised_black": encode(PHOTO, icc_profile=profile(1.0, "x", more=raised_black())),
    **{
        f"profile {at}": encode(PHOTO, icc_profile=profile(2.2, "x", more=cicp_tag(*at, 0, 1)))
        for at in ((12, 13), (9, 14), (9, 1), (9, 16), (1, 8))
    },
}
SHOWN = "[...document.querySelectorAll('#left img, #right img')].map((image) => image.getAttribute('src')).join()"
SUFFIX = {"jpeg_profile": ".jpg", "cmyk": ".jpg", "webp_profile": ".webp"}


def middles(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(2, 2, 3): the middle of each of the four blocks, whatever size they are shown at."""
    height, width = pixels.shape[:2]
    return pixels[[height // 4, height * 3 // 4]][:, [width // 4, width * 3 // 4]].astype(np.int64)


def take(place: Locator | Page) -> npt.NDArray[np.uint8]:
    return np.asarray(PilImage.open(io.BytesIO(place.screenshot())).convert("RGB"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photo a kind: lq, the tagged file and one of the same numbers without a tag."""
    for name, content in KINDS.items():
        files = {"lq": PLAIN, "tagged": content, "untagged": PLAIN}
        for kind, what in files.items():
            file = tmp_path / "colours" / kind / f"{name}{SUFFIX.get(name, '.png') if kind == 'tagged' else '.png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(what)
    return tmp_path / "colours"


def test_a_screenshot_has_the_colours_that_are_measured(
    folder: Path, database: Database, data: Path, serve: Callable[[], Any], open_page: Callable[..., Page]
) -> None:
    report = import_folder(database, data, folder)
    assert {Path(name).stem for name, _ in report.converted} == KINDS.keys()
    with database.write() as session:
        make_pairs(session, load_settings(session))
        rows = session.execute(
            select(Image.sha256, Image.suffix, Method.name)
            .join(Candidate, Candidate.image_id == Image.id)
            .join(Method, Candidate.method_id == Method.id)
        ).all()
    measured = {row.sha256: read_rgb(image_path(data, row.sha256, row.suffix)) for row in rows}
    assert all(split_planes(pixels) for pixels in measured.values())
    page = open_page()
    server = serve()
    enter(page, server, "Ada")
    seen = set()
    for _ in KINDS:
        page.locator("#stage[data-state=shown]").wait_for()
        for side in ("left", "right"):
            picture = page.locator(f"#{side} img")
            served = page.request.get(urljoin(page.url, picture.get_attribute("src") or ""))
            sha256 = hashlib.sha256(served.body()).hexdigest()
            np.testing.assert_allclose(middles(take(picture)), middles(measured[sha256]), atol=2)
            seen.add(sha256)
        before = page.evaluate(SHOWN)  # of both sides: one of them has the same picture in every pair
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(f"before => {SHOWN} !== before", arg=before)
        page.locator("#stage:not([data-state=loading])").wait_for()
    assert seen == measured.keys()


@pytest.mark.parametrize("name", KINDS)
def test_our_reader_sees_a_file_as_the_browser_does(name: str, open_page: Callable[..., Page]) -> None:
    check_seen_alike(KINDS[name], SUFFIX.get(name, ""), open_page())
    if name != "cmyk":
        assert np.abs(middles(decode_rgb(KINDS[name])) - middles(PHOTO)).max() > 2  # the browser does apply it


def test_our_reader_sees_rarer_files_as_the_browser_does(open_page: Callable[..., Page]) -> None:
    page = open_page()
    for content in SAYING_MORE.values():
        check_seen_alike(content, "", page)


def check_seen_alike(content: bytes, suffix: str, page: Page) -> None:
    media = {".jpg": "image/jpeg", ".webp": "image/webp"}.get(suffix, "image/png")
    address = f"data:{media};base64,{base64.b64encode(content).decode()}"
    page.set_content(f'<img src="{address}" width="64" height="64">')
    page.wait_for_function("document.images[0].complete && document.images[0].naturalWidth")
    shown = middles(take(page.locator("img")))
    np.testing.assert_allclose(middles(decode_rgb(content)), shown, atol=2)
