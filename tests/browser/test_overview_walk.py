"""From an empty folder to a tuned restorer and its new pairs, following only what the Overview page says."""

from __future__ import annotations

import os
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

from db.models import Candidate, Judgment, Method, Pair, Run, RunState
from db.session import Database
from tests.making import count_rows, fetch

pytestmark = [pytest.mark.browser, pytest.mark.slow]
RUN_MS = 900_000
"""For a run; its process loads torch first, and the machine may be busy."""
FACES = 48
SIZE_PX = 64


@pytest.fixture
def photos(shared_faces: Path, tmp_path: Path) -> Path:
    """A folder of real faces, lq/ and hq/, as a person would have it."""
    folder = tmp_path / "my faces"
    for photo in sorted((shared_faces / "train" / "ffhq256").rglob("*.jpg"))[:FACES]:
        sharp = cv2.resize(np.asarray(PilImage.open(photo).convert("RGB")), (SIZE_PX, SIZE_PX))
        for name, pixels in (("hq", sharp), ("lq", cv2.GaussianBlur(sharp, (0, 0), 2.0))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            PilImage.fromarray(pixels).save(folder / name / f"{photo.stem}.png")
    return folder


@pytest.mark.timeout(3_600)
def test_overview_leads_from_an_empty_folder_to_a_tuned_restorer_and_its_pairs(
    serve: Any, open_page: Callable[..., Page], database: Database, photos: Path, tmp_path: Path
) -> None:
    server = serve(admin_pages=True)
    page = open_page(viewport={"width": 1280, "height": 900})
    page.goto(server.address)
    page.get_by_label("Name").fill("ada")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Start labelling").click()
    shots = Path(os.environ.get("FACEREWARD_SCREENSHOTS", tmp_path))
    said: list[str] = []

    def follow(starts: str) -> None:
        """What Overview says next begins so; press its button."""
        page.goto(f"{server.url}/admin/")
        expect(page.locator(".ov-advice [role=status]")).to_have_text(re.compile(f"^{starts}"))
        said.append(page.locator(".ov-advice [role=status]").inner_text())
        page.screenshot(path=shots / f"overview-{len(said):02}.png", full_page=True)
        page.locator(".ov-do").click()

    def press(name: str) -> None:
        button = page.get_by_role("button", name=name, exact=True)
        expect(button).to_be_enabled()
        button.click()

    def ended(kind: str, runs: int = 1) -> None:
        """Wait for so many finished runs of a kind, none of them failed."""
        for _ in range(RUN_MS // 500):
            states = [run.state for run in fetch(database, select(Run).where(Run.kind == kind))]
            assert RunState.failed not in states, kind
            if states.count(RunState.finished) >= runs:
                return
            page.wait_for_timeout(500)
        raise AssertionError(f"{kind} did not end")

    def judge_everything() -> None:
        with database.read() as session:
            left = session.query(Pair).filter(Pair.queue_level.is_not(None)).count()
        shown, done = page.locator("#stage[data-state=shown]"), page.locator("#notice").filter(has_text="All done")
        for place in range(2 * left):
            shown.or_(done).first.wait_for()
            if done.is_visible():
                break
            page.keyboard.press("ArrowLeft" if place % 3 else "ArrowRight")
            page.wait_for_timeout(120)
        expect(page.locator("#saved")).to_have_text("saved")

    follow("Import photos of faces")
    page.get_by_label("Folder, manifest or zip on the server").fill(str(photos))
    press("Import")
    ended("annotate import")
    follow("Restore the photos with two or more")
    page.get_by_label("Photos of the project").check()
    press("Restore")
    ended("refl restore")
    follow("Make pairs of the restored images")
    press("Make pairs")
    ended("annotate pair")
    follow("Judge pairs")
    judge_everything()
    follow("Measure the restored images")
    press("Measure what is missing")
    ended("annotate measure")
    follow("Fit the labeler")
    page.get_by_label("Quick").check()
    press("Train")
    ended("annotate fit")
    follow("Export the labels")
    press("Export")
    ended("annotate export")
    for words, kind, changes in (
        ("Train a reward model", "reward train", {"max_steps": "4", "warmup_steps": "1", "workers": "0"}),
        ("Tune a restorer", "refl train", {"max_steps": "2", "warmup_steps": "0", "monitor_every_steps": "1"}),
        ("Restore the photos with the tuned", "refl restore", {}),
    ):
        follow(words)
        if kind == "refl train":
            page.locator('[data-input="restorer"] select').first.select_option("tiny")
        for key, value in changes.items():
            fill(page, f"train.{key}", value)
        press("Start")
        ended(kind, 2 if kind == "refl restore" else 1)
    follow("Make pairs of the new restored images")
    press("Make pairs")
    ended("annotate pair", 2)
    follow("Judge the new pairs")
    page.locator("#stage[data-state=shown]").wait_for()
    tuned = fetch(database, select(Candidate).join(Method).where(Method.name.contains("tuned")))
    assert len(tuned) == FACES
    assert count_rows(database, Judgment)[0] >= FACES


def fill(page: Page, key: str, value: str) -> None:
    """A setting of the form, unfolded where it is folded away."""
    field = page.locator(f'[data-key="{key}"]')
    for _ in range(5):
        if field.is_visible():
            break
        page.locator("details:not([open]) > summary").locator("visible=true").first.click()
    field.locator("input").first.fill(value)
