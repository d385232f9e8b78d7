"""The Restore page in a browser: drop a photo, restore it, slide between before and after, make pairs, by clicks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage
from playwright.sync_api import Page, expect
from skimage.data import astronaut
from sqlalchemy import func, select

pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("dlib", reason="needs dlib-bin: `make install`")

from db.models import Candidate, Method, Pair, Source
from db.session import Database
from tests.browser.conftest import enter

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A restorer with random weights and a folder of its own, as a person would name one on the server."""
    import torch

    from refl.restorers.tiny import make_tiny, save_tiny
    from tests.unit.refl.conftest import MICRO

    config = MICRO.model_copy(update={"image_size_px": 32, "steps": 2})
    folder = tmp_path_factory.mktemp("restorers") / "micro"
    torch.manual_seed(0)
    save_tiny(make_tiny(config), config, folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    PilImage.fromarray(astronaut()).save(tmp_path / "space.jpg", quality=95)
    return tmp_path / "space.jpg"


@pytest.mark.slow  # a minute; integration/ui/test_restore_page.py goes the same way without a browser
def test_from_a_dropped_photo_to_pairs_by_clicks(
    serve: Any, open_page: Callable[..., Page], fill: Callable[..., None], database: Database, photo: Path, micro: Path
) -> None:
    fill(1)
    server = serve(admin_pages=True)
    page = open_page(viewport={"width": 1280, "height": 1000})
    enter(page, server, "ada", "/admin/restore")
    expect(page.get_by_role("heading", name="Restore")).to_be_visible()
    expect(page.get_by_role("button", name="Make pairs of the restored images")).to_be_disabled()

    page.get_by_role("button", name="Restore", exact=True).click()
    expect(page.get_by_text("Drop a photo first.")).to_be_visible()
    page.locator("input[type=file]").set_input_files(photo)
    expect(page.get_by_text("space.jpg").or_(page.get_by_text("space"))).to_be_visible()
    restorers = page.get_by_label("Restorers", exact=True)
    restorers.fill(f"m={micro}")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.get_by_title("Remove 0").click()
    page.get_by_role("button", name="Restore", exact=True).click()
    expect(page.get_by_text("2 faces restored by m.")).to_be_visible()

    slide_and_look(page, "m-seed1")
    page.get_by_label("Photo or face").click()
    page.get_by_role("option", name="space#0").click()
    page.get_by_label("Left of the line").click()
    page.get_by_role("option", name="m-seed0").click()
    expect(page.get_by_role("slider", name="How much of m-seed0 is shown over m-seed1")).to_be_visible()
    page.get_by_label("Left of the line").click()
    page.get_by_role("option", name="the photo").click()
    slide_and_look(page, "m-seed1")

    page.get_by_role("button", name="Make pairs of the restored images").click()
    expect(page.get_by_text("1 pairs added, 3 were there.")).to_be_visible()
    with database.read() as session:
        made = session.scalars(select(Candidate).join(Method).where(Method.name == "m").order_by(Candidate.seed)).all()
        assert [(row.source.key, row.seed) for row in made] == [("space#0", 0), ("space#0", 1)]
        pair = session.scalars(select(Pair).join(Source).where(Source.key == "space#0")).one()
        assert {pair.a_id, pair.b_id} == {row.id for row in made}
        assert session.scalar(select(func.count()).select_from(Pair)) == 4
    page.get_by_role("link", name="Judge them on the Label page").click()
    expect(page.locator("#stage[data-state=shown]")).to_be_visible()


def slide_and_look(page: Page, right: str) -> None:
    """Both pictures are there, and the arrow keys move the line between them."""
    slider = page.get_by_role("slider", name=f"How much of the photo is shown over {right}")
    expect(slider).to_be_visible()
    for image in page.locator(".fr-compare img").all():
        expect(image).to_have_js_property("naturalWidth", 512)
    before = float(slider.input_value())
    expect_line_at(page, before)
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert float(slider.input_value()) == before + 10
    expect_line_at(page, before + 10)


def expect_line_at(page: Page, percent: float) -> None:
    """The left picture is cut off at this share of its width."""
    expect(page.locator(".fr-over")).to_have_css("clip-path", re.compile(rf"inset\(0px {100 - percent:g}% 0px 0px\)"))
