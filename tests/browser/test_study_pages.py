"""The whole way of a study's participant in a browser, on a desktop and on a phone, from the link to the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select, update

from annotate.studies.create import create_study, set_state
from annotate.studies.settings import StudySettings
from db.models import Judgment, Pair
from db.session import Database
from db.studies import StudyState
from tests.browser.conftest import ThreadedServer, answer
from tests.making import SECRET_METHODS, fetch, make_app_without_pages, make_project, open_fresh
from ui.context import Context

pytestmark = pytest.mark.browser

INFORMATION = "You compare **restored faces**. It takes about {minutes} minutes.\n\n- <b>You</b> can stop at any time."
PHONE = {"width": 390, "height": 844}
ON_PHONE: dict[str, Any] = {"viewport": PHONE, "device_scale_factor": 3, "has_touch": True, "is_mobile": True}


class Site:
    """A server with --auth and the addresses of its studies."""

    def __init__(self, folder: Path) -> None:
        data = folder / "data"
        self.database: Database = open_fresh(data)
        with self.database.write() as session:
            make_project(session, data, folder, 4, SECRET_METHODS, size_px=(96, 96))
            first = select(Pair.id).order_by(Pair.id).limit(3)
            session.execute(update(Pair).where(Pair.id.in_(first)).values(gold_answer="tie"))
        self.server = ThreadedServer(
            make_app_without_pages(context := Context(database=self.database, data=data, auth=True)), context
        )

    def make(self, **settings: Any) -> str:
        """The address of a new open study of two answers, with a training pair and a first question."""
        key = fetch(self.database, select(Pair.key).where(Pair.gold_answer.is_not(None)).order_by(Pair.id).limit(1))[0]
        given = {
            "panel": "prolific",
            "information": INFORMATION,
            "answers": 2,
            "gold_share": 0,
            "repeat_share": 0,
            "training": [{"pair": key, "explanation": "Neither shows more of the face than the other."}],
            "qualification": 1,
            "endings": {
                "done": {"code": "CDONE77"},
                "screened_out": {"code": "CSCREEN"},
                "returned": {"code": "CBACK"},
            },
        }
        with self.database.write() as session:
            study = create_study(session, f"study {len(str(settings))}", StudySettings(**{**given, **settings}))
            set_state(session, study, StudyState.open)
            return f"{self.server.url}/study/{study.link}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("studies"))
    yield made
    made.server.stop()
    made.database.close()


def by(person: str) -> str:
    return f"?PROLIFIC_PID={person}&STUDY_ID=s&SESSION_ID=of-{person}"


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def expect_heading(page: Page, words: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(words))


def agree(page: Page) -> None:
    page.get_by_label(re.compile("I agree to take part")).check()
    press(page, "Agree and go on")
    expect_heading(page, "Your screen")


def pass_training(page: Page) -> None:
    expect_heading(page, "Practice 1 of 1")
    expect(page.get_by_role("button", name="Left is better")).to_be_enabled()


def start_task(page: Page) -> None:
    press(page, "Next")
    expect_heading(page, "Ready to begin")
    press(page, "Begin")
    press(page, "Start labelling")
    page.locator("#stage[data-state=shown]").wait_for()
    expect(page.locator("#progress")).to_have_text("first questions")


def finish(page: Page, *keys: str) -> None:
    """The first question and the two answers; the last one leads to the ending by itself."""
    answer(page, keys[0])
    expect(page.locator("#progress")).to_have_text("0 of 2")
    answer(page, keys[1])
    expect(page.locator("#progress")).to_have_text("1 of 2")
    page.keyboard.press(keys[2])
    expect_heading(page, "You are done")


def look(page: Page, name: str) -> None:
    """Nothing is wider than the window, whatever the step."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_the_whole_way_on_a_desktop_by_keys(site: Site, open_page: Any) -> None:
    link = site.make()
    page = open_page()
    page.goto(link + by("ada"))
    assert page.url == f"{site.server.url}/study", "no id stays in the address bar"
    expect(page.locator("#information-text strong")).to_have_text("restored faces")
    expect(page.locator("#information-text li")).to_have_text("<b>You</b> can stop at any time.")
    expect(page.locator("#step")).to_have_text("Step 1 of 5: Information")
    look(page, "information")
    agree(page)
    expect(page.get_by_role("row", name="Width of the window")).to_contain_text("fits")
    look(page, "screen")
    press(page, "Go on")

    pass_training(page)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("status")).to_contain_text("Neither shows more")
    expect(page.locator("#training-verdict")).to_have_text("You said the left one is better. Here neither is better.")
    look(page, "training")
    start_task(page)
    assert page.get_by_role("button", name="Sign out").count() == 0
    assert page.get_by_role("link", name="Data").count() == 0

    # In another browser the same person is where they were, and can give the place back or not.
    second = open_page()
    second.goto(link + by("ada"))
    expect(second.locator("#back")).to_have_text("Welcome back: you are at “Questions”.")
    press(second, "Stop here")
    expect(second.get_by_role("alertdialog")).to_contain_text("cannot come back")
    look(second, "leave")
    press(second, "No, I stay")

    finish(page, "ArrowDown", "ArrowRight", "ArrowLeft")
    expect(page.get_by_role("link", name="Go back to Prolific")).to_have_attribute("href", re.compile(r"cc=CDONE77$"))
    expect(page.locator("#countdown")).to_contain_text("You go back to Prolific in")
    press(page, "Stay here")
    expect(page.locator("#countdown")).to_have_text("")
    look(page, "done")
    count = select(func.count()).select_from(Judgment)
    assert fetch(site.database, count) == [3]
    second.bring_to_front()
    second.goto(f"{site.server.url}/")
    expect_heading(second, "You are done")
    press(second, "Stay here")


def test_a_phone_is_turned_to_fit_and_walks_the_same_way(site: Site, open_page: Any) -> None:
    link = site.make(min_width_px=600, min_height_px=300, brightness_strip=True, answers_per_pair=5)
    page = open_page(**ON_PHONE, color_scheme="dark")
    page.goto(link + by("eve"))
    look(page, "phone information")
    agree(page)
    row = page.get_by_role("row", name="Width of the window")
    expect(row).to_contain_text("600 px or more390 pxtoo little")
    expect(page.locator("#screen-advice")).to_contain_text("turn the phone")
    expect(page.get_by_role("button", name="Go on")).to_be_disabled()
    look(page, "phone too small")
    page.set_viewport_size({"width": PHONE["height"], "height": PHONE["width"]})
    expect(row).to_contain_text("fits")
    page.get_by_label("Fields that I see").fill("3")
    press(page, "Go on")
    expect(page.get_by_role("alert")).to_contain_text("Of the 10 grey fields 8 must be seen")
    look(page, "phone dark")
    page.get_by_label("Fields that I see").fill("9")
    press(page, "Go on")
    page.set_viewport_size(PHONE)
    pass_training(page)
    page.get_by_role("button", name="Tie").tap()
    expect(page.locator("#training-verdict")).to_have_text("Right: neither is better.")
    look(page, "phone training")
    start_task(page)
    look(page, "phone task")
    finish(page, "ArrowDown", "ArrowDown", "ArrowDown")
    press(page, "Stay here")
    press(page, "Copy")
    expect(page.locator("#copied")).to_have_text(re.compile("Copied|Selected"))
    look(page, "phone done")

    # Another one cannot turn theirs.
    other = open_page(**ON_PHONE)
    other.goto(link + by("ian"))
    agree(other)
    press(other, "I cannot")
    expect_heading(other, "Thank you for trying")
    expect(other.locator("#code")).to_have_text("CSCREEN")
    press(other, "Stay here")
    look(other, "phone screened out")
