"""Metrics and Auto-annotate in a browser: measure, train, preview, label, look at labels, correct one, by clicks."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageFilter
from playwright.sync_api import Page, expect
from skimage.data import astronaut
from sqlalchemy import select

from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from db.images import add_image, probe_image
from db.models import Choice, Judgment, Label, MetricValue, Origin, Pair, Person, Picked, Split
from db.project import load_settings
from db.records import add_candidate, add_method, add_source
from db.session import Database
from tests.browser.conftest import enter
from tests.making import count_rows, fetch, judge, write_metric_list

pytestmark = pytest.mark.browser
BLURS_PX = {"sharp": 0.0, "soft": 0.8, "softer": 1.6, "softest": 2.6}
SOURCES, JUDGED, SIZE_PX = 20, 75, 96


@pytest.fixture
def metric_list(tmp_path: Path) -> str:
    return write_metric_list(tmp_path / "ours.toml", "ours")


@pytest.fixture
def photos(database: Database, data: Path, tmp_path: Path) -> None:
    """Pieces of a photo, each in four states of blur: 120 pairs, of which a simulated annotator judged JUDGED."""
    photo, rng = PilImage.fromarray(astronaut()), random.Random(3)
    with database.write() as session:
        for number in range(SOURCES):
            left, top = (32 * place for place in np.unravel_index(number * 7 % 169, (13, 13)))
            piece = photo.crop((left, top, left + SIZE_PX, top + SIZE_PX))
            source = add_source(session, f"piece{number}", Split.train)
            for name, blur_px in BLURS_PX.items():
                path = tmp_path / f"{number}-{name}.png"
                piece.filter(ImageFilter.GaussianBlur(blur_px)).save(path)
                image = add_image(session, data, probe_image(path), path)
                add_candidate(session, source, add_method(session, name), image)
        make_pairs(session, load_settings(session))
        robot = add_person(session, "robot", simulated=True)
        for pair in session.scalars(select(Pair).order_by(Pair.shuffle_key).limit(JUDGED)):
            a_is_sharper = BLURS_PX[pair.a.method.name] < BLURS_PX[pair.b.method.name]
            choice = Choice.a if a_is_sharper == (rng.random() < 0.95) else Choice.b
            judge(session, robot.id, pair.id, choice)


def choose(page: Page, label: str, value: str) -> None:
    """Type a value of one's own into a dropdown."""
    page.get_by_label(label, exact=True).fill(value)
    page.keyboard.press("Enter")


@pytest.mark.slow  # a minute and a half; integration/ui/test_autolabel_page.py goes the same way without a browser
def test_from_missing_metrics_to_a_corrected_label_by_clicks(
    photos: None, metric_list: str, serve: Any, open_page: Callable[..., Page], database: Database
) -> None:
    server = serve(admin_pages=True)
    page = open_page(viewport={"width": 1280, "height": 900})
    enter(page, server, "ada", "/admin/metrics")
    expect(page.get_by_text("values are missing")).to_be_visible()
    choose(page, "Metric list", metric_list)
    expect(page.get_by_text("160 values are missing.")).to_be_visible()
    page.get_by_role("button", name="Measure what is missing").click()
    expect(page.get_by_text("160 values of 80 images measured")).to_be_visible()
    expect(page.get_by_text("Nothing is missing.")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("^softest 20 "))).to_be_visible()
    assert count_rows(database, MetricValue) == [160]

    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Auto-annotate").click()
    expect(page.get_by_text("No SVM is trained yet").first).to_be_visible()
    choose(page, "Metrics", metric_list)
    page.get_by_label("Include simulated").check()
    page.get_by_label("Quick").check()
    # So few answers promise no more of people who have not judged.
    page.get_by_label("Target accuracy").first.fill("0.8")
    page.get_by_label("Confidence").first.fill("0.55")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("img", name=re.compile("^Accuracy of the labels by share"))).to_be_visible()
    expect(page.get_by_text("Simulated annotators are among").first).to_be_visible()
    expect(page.get_by_role("cell", name="human ceiling")).to_be_visible()
    expect(page.get_by_text("75 judged pairs")).to_be_visible()

    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("preview, nothing is changed")).to_be_visible()
    assert fetch(database, select(Label)) == []
    page.get_by_role("button", name="Label the pairs").click()
    expect(page.get_by_text(re.compile(r"of 45 unjudged pairs are labelled"))).to_be_visible()

    correct_the_first(page, database)


def correct_the_first(page: Page, database: Database) -> None:
    """Click the first pair that takes a correction; the judgment is there, and the pair leaves the list."""
    cards = page.locator(".fr-pair", has=page.get_by_role("button"))
    expect(cards.first).to_be_visible()
    pair_id, left = (cards.first.get_attribute(f"data-{name}") for name in ("pair", "left"))
    card = page.locator(f'.fr-pair[data-pair="{pair_id}"]').first
    image = card.locator("img").first
    image.scroll_into_view_if_needed()
    expect(image).to_have_js_property("naturalWidth", SIZE_PX)
    expect(card).to_contain_text("SVM’s choice")
    card.get_by_role("button", name=re.compile("is better$")).click()
    expect(card).to_contain_text("Judged: ada says")
    with database.read() as session:
        made = session.scalars(select(Judgment).join(Person).where(Person.name == "ada")).one()
        label = session.scalars(select(Label).where(Label.origin == Origin.svm, Label.pair_id == made.pair_id)).one()
        assert (made.pair_id, made.shown_left.value) == (int(str(pair_id)), left)
        assert made.choice is (Choice.b if label.p_a > 0.5 else Choice.a), "the other image than the SVM's"
        assert (made.picked, made.view_mode) == (Picked.leftover, "review")
        assert made.seconds > 0
    page.reload()
    expect(page.locator(".fr-pair").first).to_be_visible()
    expect(page.locator(f'.fr-pair[data-pair="{pair_id}"]')).to_have_count(0)
