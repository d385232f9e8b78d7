"""Rare ways of using the labelling page that could cost an answer or store a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from db.models import Judgment
from tests.browser.conftest import answer, enter

pytestmark = pytest.mark.browser


def test_no_answer_while_the_two_are_swapped(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    """The image that a person then sees on the left is the right candidate: the key would say the opposite."""
    for held in ("f", "i"):
        page.keyboard.down(held)
        for key in ("ArrowLeft", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        page.wait_for_timeout(300)
        page.keyboard.up(held)
    assert rows() == []
    answer(page, "ArrowLeft")
    assert [row.choice.value for row in rows()] == [rows()[0].shown_left.value]


def test_all_remembered_answers_can_be_undone(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    for _ in range(30):
        answer(page, "ArrowLeft")
    for _ in range(30):
        page.keyboard.press("z")
        page.locator("#stage[data-state=shown]").wait_for()
    expect(page.locator("#saved")).to_have_text("saved")
    assert len(rows()) == 30
    assert all(row.superseded_at is not None for row in rows())


def test_a_pair_left_open_for_days_can_be_answered(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    page.evaluate("const start = performance.now(); performance.now = () => start + 3 * 86_400_000")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_have_text("saved")
    page.wait_for_timeout(1000)
    assert [row.seconds for row in rows()] == [86_400]


def test_ground_truth_left_on_is_noted_with_every_answer(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    page.keyboard.press("g")
    answer(page, "ArrowLeft")
    answer(page, "ArrowLeft")
    page.keyboard.press("g")
    answer(page, "ArrowLeft")
    answer(page, "ArrowLeft")
    assert [row.view_mode for row in rows()] == ["fit+truth", "fit+truth", "fit+truth", "fit"]


def test_a_key_with_shift_can_be_given_to_an_action(page: Page) -> None:
    page.keyboard.press("?")
    page.get_by_role("button", name="Change the key for: ground truth").click()
    page.keyboard.press("Shift+!")
    expect(page.get_by_role("button", name="Change the key for: ground truth")).to_have_text("!")


def test_all_single_characters_can_be_turned_off(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    """WCAG 2.1.4 speaks of letters, punctuation, numbers and symbols."""
    page.keyboard.press("?")
    page.get_by_role("checkbox").uncheck()
    page.keyboard.press("Escape")
    answer(page, "ArrowLeft")
    for key in ("1", "?", "+", "z"):
        page.keyboard.press(key)
    page.wait_for_timeout(300)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#readout")).to_contain_text("fit")
    assert [(row.reasons, row.superseded_at) for row in rows()] == [([], None)]


def test_a_refused_answer_stays_said_until_it_is_read(page: Page) -> None:
    page.route("**/api/label", refuse_events)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("alert")).to_contain_text("Not stored: the pair is gone")
    page.unroute("**/api/label")
    answer(page, "ArrowRight")
    expect(page.get_by_role("alert")).to_contain_text("Not stored: the pair is gone")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def refuse_events(route: Any) -> None:
    """Answer as the server does where it cannot store what was sent."""
    events = route.request.post_data_json["events"]
    results = [{"id": event["id"], "status": "refused", "error": "the pair is gone", "pair": None} for event in events]
    route.fulfill(json={"results": results, "pairs": [], "done": False})


def test_a_broken_note_of_another_tab_does_not_stop_the_page(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    page.evaluate("""async () => {
        const { person } = await (await fetch("/api/session")).json();
        localStorage.setItem(`facereward:outbox:${person.id}:broken`, "{");
        localStorage.setItem("facereward:keys", "{");
    }""")
    page.reload()
    page.locator("#stage[data-state=shown]").wait_for()
    answer(page, "ArrowLeft")
    assert len(rows()) == 1


def test_an_image_that_fails_once_is_loaded_again(fill: Any, serve: Any, open_page: Any) -> None:
    fill(1)
    page = open_page()
    failed: set[str] = set()

    def fail_once(route: Any) -> None:
        first = route.request.url not in failed
        failed.add(route.request.url)
        route.abort() if first else route.continue_()

    page.route("**/img/**", fail_once)
    enter(page, serve(), "ada")
    for side in ("left", "right"):
        assert page.locator(f"#{side} img").evaluate("image => image.naturalWidth") == 96
    expect(page.get_by_role("alert")).to_be_hidden()


def test_an_answer_given_while_leaving_the_page_arrives(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    """The page's end cuts off the request of an answer; whoever never comes back must not lose it."""
    cut_off = lambda route: route.abort() if route.request.resource_type == "fetch" else route.continue_()  # noqa: E731
    page.route("**/api/label", cut_off)
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(200)
    page.goto("about:blank")
    page.wait_for_timeout(1000)
    assert len(rows()) == 1


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (844, 390), (667, 375), (390, 844)])
def test_nothing_overlaps_with_ground_truth_and_reasons_shown(
    fill: Any, label_page: Any, width: int, height: int
) -> None:
    fill(3)
    page = label_page(viewport={"width": width, "height": height}, has_touch=min(width, height) < 500)
    page.keyboard.press("g")
    answer(page, "ArrowLeft")
    page.locator("#reasons button").first.wait_for()
    boxes = {}
    for selector in ("#left", "#right", "#lq", "#hq", "#toggle-truth", "[data-hold=flicker]", "[data-action=pixels]"):
        boxes[selector] = page.locator(selector).bounding_box()
    for selector in ("#reasons", "#question", "#saved", "#open-help", "#sign-out"):
        boxes[selector] = page.locator(selector).bounding_box()
    for button in page.locator("#controls button").all():
        boxes[f"button {button.inner_text()!r}"] = button.bounding_box()
    for name, box in boxes.items():
        assert box["width"] > 10, name
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, name  # noqa: PT018
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, name  # noqa: PT018
    names = list(boxes)
    overlaps = [(a, b) for at, a in enumerate(names) for b in names[at + 1 :] if overlap(boxes[a], boxes[b])]
    assert overlaps == []


def overlap(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two boxes share more than a border's width."""
    wide = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    high = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return wide > 1 and high > 1


def test_reading_the_help_is_no_time_spent_on_the_pair(page: Page, rows: Callable[[], list[Judgment]]) -> None:
    page.keyboard.press("?")
    page.wait_for_timeout(5000)
    page.keyboard.press("Escape")
    answer(page, "ArrowLeft")
    (row,) = rows()
    assert 0 < row.seconds < 5
