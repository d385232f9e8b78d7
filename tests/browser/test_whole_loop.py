"""Once round by clicks, on real faces: judge, export, train a reward model, tune the restorer, restore, judge again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from playwright.sync_api import Page, expect
from sqlalchemy import select

pytest.importorskip("open_clip", reason="needs open_clip: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from annotate.judging.pairs import make_pairs
from db.images import add_image, probe_image
from db.models import Candidate, Method, Pair, Split
from db.project import load_settings, save_settings
from db.records import add_candidate, add_method, add_source
from db.session import Database
from tests.browser.conftest import sign_in

pytestmark = pytest.mark.browser
SIZE_PX = 64
SOFT = "soft-secret"


@pytest.fixture
def faces(shared_faces: Path, database: Database, data: Path, tmp_path: Path) -> None:
    """Sixteen real faces, four of the split val: blurred input, ground truth, and two candidates of other softness."""
    photos = sorted((shared_faces / "train" / "ffhq256").rglob("*.jpg"))[:16]
    with database.write() as session:
        save_settings(session, {"repeat_share": 0, "gold_share": 0})
        for number, photo in enumerate(photos):
            sharp = cv2.resize(np.asarray(PilImage.open(photo).convert("RGB")), (SIZE_PX, SIZE_PX))
            images = []
            for at, sigma in enumerate((2.0, 0.0, 1.5, 0.5)):
                path = tmp_path / f"{number}-{at}.png"
                PilImage.fromarray(cv2.GaussianBlur(sharp, (0, 0), sigma) if sigma else sharp).save(path)
                images.append(add_image(session, data, probe_image(path), path))
            lq, hq, *restored = images
            split = Split.val if number % 4 == 3 else Split.train
            source = add_source(session, f"face{number}", split, lq=lq, hq=hq)
            for name, image in zip((SOFT, "sharp-secret"), restored, strict=True):
                add_candidate(session, source, add_method(session, name), image)
        make_pairs(session, load_settings(session))


def run_page(page: Page) -> str:
    """Start what the Train page shows and go to its run's page; returns the run's name, such as 'Run 3'."""
    start = page.get_by_role("button", name="Start", exact=True)
    expect(start).to_be_enabled()
    start.click()
    link = page.get_by_role("status").get_by_role("link", name=re.compile(r"^Run \d+$"))
    expect(link).to_be_visible()
    name = link.inner_text()
    link.click()
    expect(page.get_by_role("heading", name=re.compile(rf"^{name} · "))).to_be_visible()
    return name


def wait_for(page: Page, state: str) -> None:
    expect(page.locator(".fr-status").get_by_text(state)).to_be_visible()


def use(page: Page, checkpoint: str, words: str) -> None:
    """Follow a link of a checkpoint to the Train page."""
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=checkpoint, exact=True))
    row.get_by_role("link", name=words, exact=True).click()
    expect(page.get_by_label("Kind of run")).to_be_visible()


def fill(page: Page, key: str, value: str) -> None:
    """A setting of the form, unfolded where it is folded away."""
    field = page.locator(f'[data-key="{key}"]')
    for _ in range(5):
        if field.is_visible():
            break
        page.locator("details:not([open]) > summary").first.click()
    field.locator("input").first.fill(value)


@pytest.mark.slow
@pytest.mark.usefixtures("faces")
def test_once_round_by_clicks(serve: Any, open_page: Callable[..., Page], database: Database, data: Path) -> None:
    server = serve(admin_pages=True)
    page = open_page(viewport={"width": 1280, "height": 1000})
    sign_in(page, server, "ada")
    for _ in range(16):
        page.locator("#stage[data-state=shown]").wait_for()
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(150)
    expect(page.locator("#stage[data-state=shown]")).to_have_count(0)

    page.goto(f"{server.url}/admin/train#kind=annotate%20export")
    run_page(page)
    wait_for(page, "finished")
    use(page, next(row.inner_text() for row in page.get_by_role("rowheader").all()), "train a reward model")

    # Long enough that a quick machine does not end it before it is stopped.
    for key, value in (("max_steps", "200"), ("warmup_steps", "2"), ("batch_size", "4"), ("log_every_steps", "1")):
        fill(page, f"train.{key}", value)
    fill(page, "train.workers", "0")
    reward = run_page(page)
    expect(page.locator(".fr-chart path").first).to_be_visible()
    before = page.locator(".fr-chart path").first.get_attribute("d")
    page.wait_for_function(
        "(before) => document.querySelector('.fr-chart path').getAttribute('d') !== before", arg=before
    )
    page.get_by_role("button", name="Stop").click()
    wait_for(page, "stopped")
    page.get_by_role("button", name="Continue").click()
    wait_for(page, "finished")
    assert (data / "runs" / reward.removeprefix("Run ") / "log.txt").read_text().count("continuing after step") == 1

    use(page, "best", "start ReFL")
    page.locator('[data-input="restorer"] select').first.select_option("tiny")  # the next round's form is below
    fill(page, "train.max_steps", "2")
    fill(page, "train.warmup_steps", "0")
    fill(page, "train.monitor_every_steps", "1")
    run_page(page)
    wait_for(page, "finished")
    expect(page.get_by_label("Step of the samples")).to_be_visible()

    use(page, "tuned", "restore")
    run_page(page)
    wait_for(page, "finished")
    page.goto(f"{server.url}/admin/train#kind=annotate%20pair")
    run_page(page)
    wait_for(page, "finished")

    with database.read() as session:
        old = select(Method.id).where(Method.name.in_((SOFT, "sharp-secret")))
        new = list(session.scalars(select(Candidate.id).where(Candidate.method_id.not_in(old))))
        pairs = session.scalars(select(Pair).where(Pair.a_id.in_(new) | Pair.b_id.in_(new))).all()
    assert len(new) == 16
    assert len(pairs) == 32
    page.goto(server.url)
    expect(page.locator("#stage[data-state=shown]")).to_be_visible()
    page.goto(f"{server.url}/admin/models")
    expect(page.get_by_role("heading", name="Restorers")).to_be_visible()
