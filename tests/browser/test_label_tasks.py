"""Tasks of several candidates on the labelling page: real server, real images, by keys, clicks and touch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import CDPSession, Page, expect
from sqlalchemy import select

from db.models import Asked, Judgment
from db.project import save_settings
from db.session import Database
from tests.browser.conftest import answer, enter
from tests.making import fetch

pytestmark = pytest.mark.browser

TABLE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "keyboard_layouts.json"
DIGITS = [
    ("1", "Digit1"),
    ("2", "Numpad2"),
    ("&", "Digit1"),  # AZERTY
    ("+", "Digit1"),  # Czech
    ("Process", "Digit3"),
    ("!", "Digit1"),
    ("٢", "Digit2"),
]


def judgments(database: Database) -> list[Judgment]:
    return fetch(database, select(Judgment).order_by(Judgment.id))


def live(database: Database) -> list[Judgment]:
    return [row for row in judgments(database) if row.superseded_at is None]


def rankings(database: Database) -> list[str]:
    """The live answers by places on the screen, '1' for the first."""
    found = []
    for row in live(database):
        assert row.places is not None
        numbers = str.maketrans({letter: str(place + 1) for place, letter in enumerate(row.places)})
        tiers = (row.ranking or "").translate(numbers).split(">")
        found.append(">".join("=".join(sorted(tier.split("="))) for tier in tiers))
    return found


def shown(page: Page) -> list[str]:
    """Addresses of the images in view, in their places."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('.frame:not([hidden]) img')].map((image) => image.getAttribute('src'))"
    )
    return found


def marks(page: Page) -> dict[int, str]:
    """What stands on the candidates, by number."""
    found = page.locator(".candidate").evaluate_all(
        "frames => frames.map((frame) => frame.querySelector('.mark:not([hidden])')?.textContent ?? '')"
    )
    return {place + 1: mark for place, mark in enumerate(found) if mark}


def candidate(page: Page, number: int) -> Any:
    return page.get_by_role("button", name=f"Candidate {number} of")


def settle(page: Page) -> None:
    """Wait until what is shown is painted and what was answered is stored."""
    page.locator("#stage:not([data-state=loading])").wait_for()
    expect(page.locator("#saved")).to_have_text("saved")


@pytest.fixture
def open_tasks(fill: Any, label_page: Any) -> Callable[..., Page]:
    """`open_tasks(4, "best")`: ada's page of a project of eight photos with a task each."""

    def open_tasks(size: int, asked: str, sources: int = 8, **options: Any) -> Page:
        settings = {name: options.pop(name) for name in ("mixed_share",) if name in options}
        fill(sources, of=size, asked=asked, **settings)
        page: Page = label_page(**options)
        return page

    return open_tasks


@pytest.fixture
def fours(open_tasks: Any) -> Page:
    page: Page = open_tasks(4, "best")
    return page


def test_one_key_or_click_answers_the_best_and_the_next_task_follows(fours: Page, database: Database) -> None:
    expect(fours.locator("#asked")).to_have_text("Choose the best of four")
    assert len(shown(fours)) == 4
    before = shown(fours)
    answer(fours, "3")
    assert set(shown(fours)).isdisjoint(before)
    candidate(fours, 2).click()
    settle(fours)
    assert rankings(database) == ["3>?", "2>?"]
    assert {row.asked for row in live(database)} == {Asked.best}
    answer(fours, "ArrowDown")
    assert rankings(database)[2:] == ["1=2=3=4"]
    fours.keyboard.press("ArrowLeft")  # of a pair
    fours.keyboard.press("ArrowRight")
    fours.keyboard.press("5")
    fours.keyboard.press("Enter")
    fours.wait_for_timeout(150)
    assert len(judgments(database)) == 3
    expect(fours.locator("#progress")).to_contain_text("you: 3")
    fours.keyboard.press("y")
    first = fours.locator("#history li").nth(2)
    expect(first.locator("img")).to_have_count(4)
    expect(first).to_contain_text("3 best")
    assert first.locator("img.chosen").get_attribute("src") == before[2]
    assert "-secret" not in fours.content()


def test_the_best_and_then_the_worst(open_tasks: Any, database: Database) -> None:
    page = open_tasks(3, "best_worst")
    expect(page.locator("#asked")).to_have_text("Choose the best of three, then the worst")
    expect(page.locator("#task-state")).to_contain_text("The best is …")
    page.keyboard.press("2")
    assert marks(page) == {2: "best"}
    expect(page.locator("#task-state")).to_have_text("Best: candidate 2. The worst is …")
    expect(page.get_by_role("status").filter(has_text="candidate 2")).to_be_visible()
    page.keyboard.press("2")  # never the best and the worst at once
    assert marks(page) == {}
    page.keyboard.press("1")
    page.keyboard.press("z")
    assert marks(page) == {}
    assert judgments(database) == []
    page.keyboard.press("1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert marks(page) == {1: "best"}
    answer(page, "3")
    assert rankings(database) == ["1>2>3"]
    expect(page.locator("#reasons")).to_contain_text("Last answer: 1 best, 3 worst")
    assert marks(page) == {}, "of the task before"


ORDERS = [
    (["4", "2", "1"], "4>2>1>3"),
    (["4", "2", "Enter"], "4>2>?"),
    (["4", "ArrowDown", "2", "1"], "2=4>1>3"),
    (["4", "ArrowDown", "ArrowDown"], "4>1=2=3"),
    (["3", "1", "ArrowDown", "ArrowDown"], "3>1>2=4"),
    (["1", "ArrowDown", "z", "2", "z", "3", "Enter"], "1>3>?"),
    (["1", "2", "1", "3", "4"], "2>3>4>1"),  # a second time gives it back
    (["1", "ArrowDown", "2", "1", "Enter"], "2>?"),
    (["Enter", "ArrowDown"], "1=2=3=4"),
]


def test_an_order_is_given_key_by_key(open_tasks: Any, database: Database) -> None:
    page = open_tasks(4, "order", sources=10)
    expect(page.locator("#asked")).to_have_text("Order the four, best first")
    for keys, _ in ORDERS:
        for key in keys[:-1]:
            page.keyboard.press(key)
        answer(page, keys[-1])
    assert rankings(database) == [expected for _, expected in ORDERS]
    page.keyboard.press("2")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#tie")).to_contain_text("The rest is tied")
    candidate(page, 4).click()
    expect(page.locator("#task-state")).to_have_text("1st =: candidate 4. Next is …")
    assert marks(page) == {2: "1st =", 4: "1st ="}
    page.keyboard.press("z")
    assert marks(page) == {2: "1st"}
    page.get_by_role("button", name="Done").click()
    settle(page)
    assert rankings(database)[-1] == "2>?"
    page.keyboard.press("y")
    last = page.locator("#history li").nth(len(ORDERS) - 1)  # 4 > 2 > ?
    expect(last).to_contain_text("4 > 2 > …")
    assert last.locator("figcaption").all_inner_texts() == ["1st", "2nd", "–", "–"]


def test_undo_takes_back_a_mark_and_then_the_answer_before(open_tasks: Any, database: Database) -> None:
    page = open_tasks(4, "order")
    first = shown(page)
    for key in ("1", "2"):
        page.keyboard.press(key)
    answer(page, "3")
    second = shown(page)
    page.keyboard.press("4")
    page.keyboard.press("z")
    assert (marks(page), shown(page)) == ({}, second)
    page.keyboard.press("Backspace")
    settle(page)
    assert shown(page) == first
    assert live(database) == []
    for key in ("4", "3"):
        page.keyboard.press(key)
    answer(page, "2")
    assert shown(page) == second
    page.reload()
    settle(page)
    page.get_by_role("button", name="History").click()
    page.locator("#history li").get_by_role("button", name="Undo").click()
    expect(page.locator(".candidate img").first).to_have_attribute("src", first[0])
    settle(page)
    assert live(database) == []


def test_skip_and_reasons_have_keys_of_their_own(fours: Page, database: Database) -> None:
    answer(fours, "1")
    expect(fours.locator("#reasons kbd").first).to_have_text("⇧1")
    fours.keyboard.press("Shift+Digit2")
    expect(fours.get_by_role("button", name="eyes")).to_have_attribute("aria-pressed", "true")
    settle(fours)
    (row,) = live(database)
    assert (row.reasons, rankings(database)) == (["eyes"], ["1>?"])
    fours.keyboard.press("s")
    fours.keyboard.press("2")  # in the dialog a reason, not a candidate
    settle(fours)
    assert [row.skip_reason for row in live(database)] == [None, "not a face"]
    fours.keyboard.press("?")
    expect(fours.get_by_role("dialog")).to_contain_text("1 – 6 choose a candidate. Shift with 1 – 9 gives reasons")
    expect(fours.get_by_role("dialog")).to_contain_text("stop here, the rest is not told apart")


def test_digits_choose_by_their_place_on_every_keyboard(open_tasks: Any, database: Database) -> None:
    page = open_tasks(6, "order", sources=2)
    keyboard: CDPSession = page.context.new_cdp_session(page)
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    digits = [(key, code) for keys in table.values() for key, code in keys if code in ("Digit1", "Digit2", "Digit3")]

    def press(key: str, code: str, **more: Any) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            keyboard.send("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": code, **more})

    for key, code in DIGITS + digits:
        press(key, code)
        assert marks(page) == {int(code[-1]): "1st"}, f"{key} at {code}"
        page.keyboard.press("z")
        assert marks(page) == {}
    for key, code in (("End", "Numpad1"), ("F1", "F1"), ("7", "Digit7"), ("ы", "KeyS")):
        press(key, code)
        page.keyboard.press("Escape")
        assert marks(page) == {}, f"{key} at {code}"
    page.keyboard.press("ArrowDown")
    settle(page)
    press("1", "Digit1", modifiers=8)  # AZERTY writes its digits with Shift
    settle(page)
    assert [row.reasons for row in live(database)] == [["identity"]]
    page.keyboard.press("?")
    page.get_by_label("single-character keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert marks(page) == {}
    candidate(page, 1).focus()
    page.keyboard.press("Space")
    assert marks(page) == {1: "1st"}


def test_one_zoom_for_all_and_views_last_while_held(fours: Page, database: Database) -> None:
    def boxes() -> list[list[float]]:
        found: list[list[float]] = fours.evaluate("""() => [...document.querySelectorAll(".candidate")].map(
            (frame) => { const style = frame.querySelector("img").style;
                return [style.left, style.top, style.width].map(parseFloat); })""")
        return found

    own = shown(fours)
    fours.keyboard.press("x")
    expect(fours.locator("#readout")).to_have_text("1:1 pixels")
    candidate(fours, 4).hover(position={"x": 20, "y": 20})
    for _ in range(5):
        fours.mouse.wheel(0, -100)
    zoomed = boxes()
    assert all(box == zoomed[0] for box in zoomed)
    assert zoomed[0][2] == 8 * 96
    fours.mouse.down()
    fours.mouse.move(400, 300, steps=3)
    fours.mouse.up()
    moved = boxes()
    assert all(box == moved[0] for box in moved)
    assert moved[0] != zoomed[0]
    fours.keyboard.press("0")
    fours.keyboard.down("i")
    (lq,) = set(shown(fours))
    assert lq == fours.locator("#lq img").get_attribute("src")
    fours.keyboard.press("1")
    fours.keyboard.up("i")
    assert shown(fours) == own
    candidate(fours, 3).hover()
    fours.keyboard.down("f")
    assert shown(fours) == [own[2]] * 4
    fours.keyboard.up("f")
    assert shown(fours) == own
    fours.keyboard.press("g")
    expect(fours.locator("#hq img")).to_be_visible()
    assert judgments(database) == [], "neither a drag nor a key while a view is held answers"
    answer(fours, "2")
    assert set(live(database)[0].view_mode.split("+")) == {"fit", "1:1", "zoom", "input", "flicker", "truth"}


def test_a_second_click_of_a_double_click_and_a_drag_answer_nothing(open_tasks: Any, database: Database) -> None:
    page = open_tasks(4, "best", has_touch=True)
    candidate(page, 1).dblclick()
    settle(page)
    page.wait_for_timeout(150)
    assert len(judgments(database)) == 1
    page.wait_for_timeout(300)
    candidate(page, 2).tap()
    settle(page)
    assert rankings(database) == ["1>?", "2>?"]
    box = candidate(page, 3).bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 60, steps=4)
    page.mouse.up()
    page.wait_for_timeout(100)
    assert len(judgments(database)) == 2
    page.keyboard.press("ArrowDown")
    settle(page)


def test_an_order_is_clicked_and_a_double_click_marks_once(open_tasks: Any, database: Database) -> None:
    page = open_tasks(4, "order")
    page.wait_for_timeout(450)
    candidate(page, 4).dblclick()
    assert marks(page) == {4: "1st"}
    candidate(page, 1).click()
    page.keyboard.press("Enter")
    settle(page)
    assert rankings(database) == ["4>1>?"], "Enter ends the order, wherever was clicked last"


def test_screen_readers_are_told_the_candidates_and_what_was_said(open_tasks: Any) -> None:
    page = open_tasks(3, "order")
    expect(page.locator("main")).to_match_aria_snapshot("""
        - main:
            - strong: Order the three, best first
            - heading "Which restoration is better?"
            - group "Candidates":
                - button "Candidate 1 of 3"
                - button "Candidate 2 of 3"
                - button "Candidate 3 of 3"
            - complementary "References"
            - group "Your answer":
                - button "Undo Z"
                - status: The best is … 1 – 3
                - button "All the same ↓"
                - button "Done ⏎" [disabled]
                - button "Skip S"
    """)
    candidate(page, 2).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="Candidates")).to_match_aria_snapshot("""
        - group "Candidates":
            - button "Candidate 1 of 3"
            - button "Candidate 2 of 3, 1st" [pressed]
            - button "Candidate 3 of 3"
    """)
    expect(page.get_by_role("status").filter(has_text="Next is")).to_have_text("1st: candidate 2. Next is …")
    page.keyboard.press("Tab")
    expect(candidate(page, 3)).to_be_focused()


def test_pairs_and_tasks_follow_each_other_and_neither_takes_the_others_keys(
    open_tasks: Any, database: Database
) -> None:
    page = open_tasks(4, "best", sources=3)
    with database.write() as session:
        save_settings(session, {"task_size": 2})
    kinds = []
    for _ in range(6):
        is_task = len(shown(page)) == 4
        kinds.append(is_task)
        expect(page.locator("#asked")).to_have_text(
            "Choose the best of four" if is_task else "Choose the better of two"
        )
        expect(page.get_by_role("button", name="Left is better")).to_be_visible(visible=not is_task)
        count = len(judgments(database))
        for key in ("ArrowLeft", "ArrowRight") if is_task else ("1", "2", "Enter"):
            page.keyboard.press(key)
        page.wait_for_timeout(50)
        assert len(judgments(database)) == count
        answer(page, "1" if is_task else "ArrowRight")
    assert (kinds[0], kinds[-1]) == (True, False)
    assert [row.asked is Asked.best for row in live(database)] == kinds
    page.keyboard.press("Shift+Digit1")
    settle(page)
    assert live(database)[-1].reasons == ["identity"]
    for is_task in kinds[::-1]:
        page.keyboard.press("z")
        settle(page)
        assert (len(shown(page)) == 4) is is_task
    assert live(database) == []


def test_every_painted_task_of_a_burst_has_one_row(open_tasks: Any, database: Database) -> None:
    page = open_tasks(4, "best", sources=12)
    page.evaluate("""() => {
        window.paints = [];
        document.addEventListener("facereward:painted", (event) => window.paints.push(event.detail.showing));
    }""")
    for number in range(25):
        page.keyboard.press("1234"[number % 4])
        page.wait_for_timeout(40)
    settle(page)
    painted = page.evaluate("window.paints")
    rows = judgments(database)
    assert len(painted) == len(set(painted))
    done = page.locator("#stage").get_attribute("data-state") == "done"
    assert len(rows) == len({row.task_id for row in rows}) == len(painted) + done
    assert len(rows) > 8


def test_answers_without_a_network_are_kept_and_sent_once_in_order(fours: Page, database: Database) -> None:
    fours.wait_for_timeout(300)  # the next ones come ahead
    fours.context.set_offline(True)
    for key in ("1", "2", "3"):
        fours.keyboard.press(key)
        fours.locator("#stage[data-state=shown]").wait_for()
    expect(fours.locator("#saved")).to_contain_text("not saved yet: 3 answers kept here")
    fours.context.set_offline(False)
    settle(fours)
    assert rankings(database) == ["1>?", "2>?", "3>?"]


@pytest.mark.slow
def test_a_server_killed_in_the_middle_loses_nothing(
    fill: Any, serve_process: Any, open_page: Any, database: Database
) -> None:
    fill(8, of=4, asked="best_worst")
    server = serve_process()
    page = open_page()
    enter(page, server, "ada")
    for key in ("1", "2"):
        page.keyboard.press(key)
    settle(page)
    page.wait_for_timeout(300)
    server.kill()
    for keys in ("34", "21"):
        page.locator("#stage[data-state=shown]").wait_for()
        for key in keys:
            page.keyboard.press(key)
    expect(page.locator("#saved")).to_contain_text("not saved yet: 2 answers kept here")
    server.start()
    settle(page)
    assert rankings(database) == ["1>?>2", "3>?>4", "2>?>1"]


def test_two_tabs_show_other_tasks(fours: Page, database: Database) -> None:
    other = fours.context.new_page()
    other.goto(fours.url)
    other.locator("#stage[data-state=shown]").wait_for()
    assert set(shown(other)).isdisjoint(shown(fours))
    answer(other, "1")
    answer(fours, "2")
    rows = live(database)
    assert len({row.task_id for row in rows}) == len(rows) == 2


@pytest.mark.parametrize(
    ("size", "width", "height"),
    [(4, 1280, 800), (6, 1280, 800), (3, 1920, 1080), (5, 390, 844), (6, 844, 390), (4, 390, 844)],
)
def test_nothing_scrolls_and_all_is_in_reach(open_tasks: Any, size: int, width: int, height: int) -> None:
    touch = min(width, height) < 500
    page = open_tasks(size, "order", sources=2, viewport={"width": width, "height": height}, has_touch=touch)
    page.keyboard.press("1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("2")
    boxes = [
        box
        for selector in (
            ".candidate",
            "#lq",
            "#controls button:visible",
            "#asked",
            "#question",
            "#task-state",
        )
        for box in (element.bounding_box() for element in page.locator(selector).all())
    ]
    for box in boxes:
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    frames = boxes[:size]
    assert len({(round(box["width"]), round(box["height"])) for box in frames}) == 1
    least = min(frames[0]["width"], frames[0]["height"])
    assert (
        least
        >= {(4, 1280): 290, (6, 1280): 290, (3, 1920): 550, (5, 390): 120, (6, 844): 110, (4, 390): 180}[size, width]
    )
    scrolls = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert scrolls == [width, height]
