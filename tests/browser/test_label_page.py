"""The labelling page as a person uses it: real server, real images, keyboard first."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from annotate.judging.people import add_person, get_person, make_link_token
from db.models import Judgment, Pair, Role
from db.project import load_settings, save_settings
from db.session import Database
from tests.browser.conftest import enter
from tests.making import fetch
from tests.watching import wait_until

pytestmark = pytest.mark.browser

WATCH_PAINTS = """
    window.paints = [];
    document.addEventListener("facereward:painted", (event) => window.paints.push(event.detail));
"""


def judgments(database: Database) -> list[Judgment]:
    return fetch(database, select(Judgment).order_by(Judgment.id))


def live(database: Database) -> list[Judgment]:
    return [row for row in judgments(database) if row.superseded_at is None]


def shown(page: Page) -> tuple[str, str]:
    """Addresses of the left and of the right image on the screen."""
    left, right = (page.locator(f"#{side} img").get_attribute("src") or "" for side in ("left", "right"))
    return left, right


def hash_of(page: Page, address: str) -> str:
    """SHA-256 of an image that the page shows."""
    return hashlib.sha256(page.request.get(urljoin(page.url, address)).body()).hexdigest()


def press(page: Page, key: str) -> None:
    """Press a key and wait until another pair is painted and the answer is stored."""
    before = shown(page)
    page.keyboard.press(key)
    page.wait_for_function(
        """([left, right]) => {
            const addresses = ["#left img", "#right img"].map((which) => document.querySelector(which)?.src);
            return !addresses[0]?.includes(left) || !addresses[1]?.includes(right);
        }""",
        arg=list(before),
    )
    expect(page.locator("#saved")).to_have_text("saved")
    page.locator("#stage:not([data-state=loading])").wait_for()


def images_of(database: Database, judgment: Judgment) -> dict[str, str]:
    with database.read() as session:
        pair = session.get_one(Pair, judgment.pair_id)
        return {"a": pair.a.image.sha256, "b": pair.b.image.sha256}


@pytest.fixture
def page(fill: Any, label_page: Any) -> Page:
    """Ada's page on a server with 12 sources, 36 pairs; it notes every paint."""
    fill(12)
    page: Page = label_page(WATCH_PAINTS)
    return page


@pytest.fixture
def context_offline(page: Page) -> Any:
    return page.context.set_offline


def test_answers_by_keyboard_are_stored_as_displayed(page: Page, database: Database) -> None:
    seen = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown"):
        seen.append(shown(page))
        press(page, key)
    rows = judgments(database)
    assert len(rows) == 3
    for row, addresses, side in zip(rows, seen, ("left", "right", "tie"), strict=True):
        images = images_of(database, row)
        left, right = (hash_of(page, address) for address in addresses)
        assert images[row.shown_left.value] == left
        assert {left, right} == set(images.values())
        chosen = images.get(row.choice.value)
        assert chosen == {"left": left, "right": right, "tie": None}[side]
        assert row.seconds > 0
        assert row.view_mode == "fit"
    expect(page.locator("#progress")).to_contain_text("you: 3")
    expect(page.locator("#progress")).to_contain_text("33 left")


def test_undo_several_back_shows_the_same_pairs_again(page: Page, database: Database) -> None:
    seen = []
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        seen.append(shown(page))
        press(page, key)
    for pair in reversed(seen):
        page.keyboard.press("z")
        expect(page.locator("#left img")).to_have_attribute("src", re.compile(pair[0]))
        expect(page.locator("#right img")).to_have_attribute("src", re.compile(pair[1]))
        page.locator("#stage[data-state=shown]").wait_for()  # until it is painted, keys count for nothing
    expect(page.locator("#saved")).to_have_text("saved")
    assert live(database) == []
    press(page, "ArrowRight")
    press(page, "ArrowRight")
    rows = judgments(database)
    assert len(rows) == 5
    assert [row.pair_id for row in live(database)] == [rows[0].pair_id, rows[1].pair_id]


def test_undo_after_a_reload_brings_the_pair_back(page: Page, database: Database) -> None:
    first = shown(page)
    press(page, "ArrowLeft")
    page.reload()
    page.locator("#stage[data-state=shown]").wait_for()
    page.keyboard.press("z")
    expect(page.locator("#left img")).to_have_attribute("src", re.compile(first[0]))
    expect(page.locator("#saved")).to_have_text("saved")
    assert live(database) == []


def test_skip_takes_a_listed_or_a_written_reason(page: Page, database: Database) -> None:
    page.keyboard.press("s")
    expect(page.get_by_role("dialog")).to_contain_text("both bad")
    press(page, "2")
    page.keyboard.press("s")
    page.get_by_label("another reason").fill("only the back of a head")
    press(page, "Enter")
    page.keyboard.press("s")
    page.keyboard.press("Escape")
    assert [(row.choice.value, row.skip_reason) for row in judgments(database)] == [
        ("skip", "not a face"),
        ("skip", "only the back of a head"),
    ]


def test_reasons_of_the_last_answer_replace_its_row(page: Page, database: Database) -> None:
    press(page, "ArrowLeft")
    page.keyboard.press("2")
    page.keyboard.press("3")
    page.keyboard.press("2")
    expect(page.get_by_role("button", name="skin")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="eyes")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#saved")).to_have_text("saved")
    (row,) = live(database)
    assert row.reasons == ["skin"]
    assert len(judgments(database)) == 4
    with database.read() as session:
        assert session.get_one(Pair, row.pair_id).judgment_count == 1


def test_every_displayed_pair_of_a_burst_has_one_row(page: Page, database: Database) -> None:
    """40 keys at 60 ms: a key that comes before the next pair is painted counts for nothing, not for a pair unseen."""
    for number in range(40):
        page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
        page.wait_for_timeout(60)
    expect(page.locator("#saved")).to_have_text("saved")
    page.wait_for_timeout(500)
    painted = page.evaluate("window.paints.map((paint) => paint.showing)")
    rows = judgments(database)
    assert len(painted) == len(set(painted))
    done = page.locator("#stage").get_attribute("data-state") == "done"
    assert len(rows) == len(painted) - (0 if done else 1)
    assert len({row.pair_id for row in rows}) == len(rows)
    assert len(rows) > 20


def test_offline_answers_are_kept_and_sent_once_in_order(page: Page, database: Database) -> None:
    page.wait_for_timeout(500)  # four pairs ahead
    page.context.set_offline(True)
    keys = ("ArrowLeft", "ArrowRight", "ArrowDown")
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(150)
    expect(page.locator("#saved")).to_contain_text("not saved yet: 3 answers kept here")
    page.wait_for_timeout(5000)
    assert judgments(database) == []
    page.context.set_offline(False)
    expect(page.locator("#saved")).to_have_text("saved")
    rows = judgments(database)
    expected = [row.shown_left.value if key == "ArrowLeft" else None for key, row in zip(keys, rows, strict=True)]
    assert rows[0].choice.value == expected[0]
    assert rows[1].choice.value != rows[1].shown_left.value
    assert rows[2].choice.value == "tie"


def test_answers_that_come_too_fast_wait_here_and_are_sent_by_themselves(
    page: Page, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotate.judging.pace.BURST_ANSWERS", 2)
    monkeypatch.setattr("annotate.judging.pace.SECONDS_AN_ANSWER", 2.0)
    for _ in range(5):
        page.locator("#stage[data-state=shown]").wait_for()
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(150)
    state = page.locator("#saved")
    expect(state).to_contain_text(re.compile("too fast: .* kept here, sent within"))
    expect(state).to_have_css("color", "rgb(161, 22, 22)")
    page.locator("#stage[data-state=shown]").wait_for()
    expect(state).to_have_text("saved")
    assert len(judgments(database)) == 5
    assert page.locator("#alert").is_hidden(), "nothing is lost or refused"


def test_answers_survive_closing_the_page_while_offline(page: Page, database: Database) -> None:
    page.wait_for_timeout(500)
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_contain_text("not saved yet")
    page.unroute("**/api/label")
    other = page.context.new_page()
    page.close()
    other.goto(page.url)
    other.locator("#stage[data-state=shown]").wait_for()
    expect(other.locator("#saved")).to_have_text("saved")
    wait_until(lambda: judgments(database))
    assert len(judgments(database)) == 1


def test_reload_resumes_with_the_same_pairs(page: Page) -> None:
    press(page, "ArrowLeft")
    before = shown(page)
    page.reload()
    page.locator("#stage[data-state=shown]").wait_for()
    seen = [shown(page)]
    for _ in range(4):
        press(page, "ArrowLeft")
        seen.append(shown(page))
    assert before in seen


def test_server_killed_in_the_middle_loses_nothing(
    fill: Any, serve_process: Any, open_page: Any, database: Database
) -> None:
    fill(6)
    server = serve_process()
    page = open_page()
    enter(page, server, "ada")
    press(page, "ArrowLeft")
    page.wait_for_timeout(500)
    server.kill()
    for key in ("ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_timeout(200)
    expect(page.locator("#saved")).to_contain_text("not saved yet: 2 answers kept here")
    server.start()
    expect(page.locator("#saved")).to_have_text("saved")
    rows = judgments(database)
    assert len(rows) == len({row.pair_id for row in rows}) == 3
    press(page, "ArrowLeft")
    assert len(judgments(database)) == 4


def test_two_people_never_get_the_same_pair(fill: Any, serve: Any, open_page: Any, database: Database) -> None:
    fill(4)
    server = serve()
    pages = [open_page(), open_page()]
    for page, name in zip(pages, ("ada", "ben"), strict=True):
        enter(page, server, name)
    for _ in range(12):
        for page in pages:
            if page.locator("#stage").get_attribute("data-state") == "shown":
                page.keyboard.press("ArrowLeft")
                page.wait_for_timeout(120)
    for page in pages:
        expect(page.locator("#notice")).to_contain_text("All done")
    rows = judgments(database)
    assert len(rows) == len({row.pair_id for row in rows}) == 12
    assert len({row.person_id for row in rows}) == 2


def test_zoom_and_pan_move_both_images_alike(page: Page, database: Database) -> None:
    def boxes() -> list[dict[str, float]]:
        script = """() => ["left", "right"].map((side) => { const style = document.querySelector(`#${side} img`).style;
            return { left: style.left, top: style.top, width: style.width, pixels: style.imageRendering } })"""
        result: list[dict[str, float]] = page.evaluate(script)
        return result

    expect(page.locator("#readout")).to_have_text("fit 500 % pixels")
    page.keyboard.press("x")
    expect(page.locator("#readout")).to_have_text("1:1 pixels")
    assert boxes()[0]["width"] == "96px"
    assert boxes()[0] == boxes()[1]
    page.locator("#left").hover(position={"x": 20, "y": 20})
    for _ in range(6):
        page.mouse.wheel(0, -100)
    expect(page.locator("#readout")).to_have_text("12 pixels".replace("12", "1200 %"))
    first = boxes()
    assert first[0] == first[1]
    assert first[0]["pixels"] == "pixelated"
    page.mouse.down()
    page.mouse.move(120, 150)
    page.mouse.up()
    assert boxes()[0] == boxes()[1] != first[0]
    page.keyboard.press("0")
    expect(page.locator("#readout")).to_have_text("fit 500 % pixels")
    press(page, "ArrowLeft")
    assert set(judgments(database)[0].view_mode.split("+")) == {"fit", "1:1", "zoom"}


def test_small_scale_says_that_it_smooths(fill: Any, label_page: Any) -> None:
    fill(1, size_px=(1024, 1024))
    page = label_page()
    expect(page.locator("#readout")).to_have_text(re.compile(r"^fit \d\d % smoothed$"))
    page.keyboard.press("x")
    expect(page.locator("#readout")).to_have_text("1:1 pixels")


def test_flicker_and_input_last_while_held(page: Page) -> None:
    left, right = shown(page)
    page.keyboard.down("f")
    assert shown(page) == (right, left)
    page.keyboard.up("f")
    assert shown(page) == (left, right)
    lq = page.locator("#lq img").get_attribute("src")
    page.keyboard.down("i")
    assert all(image == lq for image in shown(page))
    assert shown(page)[0] == shown(page)[1]
    page.keyboard.up("i")
    assert shown(page) == (left, right)
    expect(page.locator("#hq img")).to_have_count(0)
    page.keyboard.press("g")
    expect(page.locator("#hq img")).to_be_visible()


def test_help_lists_keys_and_guidelines_and_keys_can_change(page: Page, database: Database) -> None:
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Guidelines")
    expect(dialog).to_contain_text("swap the two in place")
    page.get_by_role("button", name="Change the key for: tie").click()
    page.keyboard.press("t")
    page.get_by_label("single-character keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    page.wait_for_timeout(300)
    assert judgments(database) == []
    page.get_by_role("button", name="Help", exact=True).click()
    page.get_by_label("single-character keys").check()
    page.get_by_role("button", name="Close").click()
    press(page, "t")
    assert judgments(database)[0].choice.value == "tie"


def asked(database: Database) -> list[str | None]:
    with database.read() as session:
        rows = session.scalars(select(Judgment).order_by(Judgment.id))
        return [row.question.question if row.question else None for row in rows]


def test_an_open_page_takes_a_changed_question_at_its_next_answer_and_says_so(page: Page, database: Database) -> None:
    press(page, "ArrowLeft")
    change = {"question": "Which is sharper?", "reasons": ["edges", "noise"], "skip_reasons": ["blurred"]}
    with database.write() as session:
        old = load_settings(session).question
        save_settings(session, {**change, "guidelines": "Look at the **edges**."})
    expect(page.locator("#question")).to_have_text(old)
    press(page, "ArrowRight")
    expect(page.locator("#question")).to_have_text("Which is sharper?")
    told = page.get_by_role("alert").filter(has_text="has changed")
    expect(told).to_contain_text("the question, the guidelines, the reasons, the reasons to skip")
    expect(page.locator("#reasons")).to_contain_text("identity")  # still those of the answer just given
    page.keyboard.press("1")
    expect(page.locator("#reasons [aria-pressed=true]")).to_contain_text("identity")
    press(page, "ArrowDown")
    expect(page.locator("#reasons")).to_contain_text("edges")
    page.keyboard.press("s")
    page.get_by_role("button", name="blurred").click()
    page.locator("#stage[data-state=shown]").wait_for()
    expect(page.locator("#saved")).to_have_text("saved")
    assert asked(database) == [old, old, old, "Which is sharper?", "Which is sharper?"]
    assert [row.reasons for row in judgments(database)][1:3] == [[], ["identity"]]
    told.get_by_role("button", name="Read it").click()
    expect(page.locator("#guidelines-dialog strong")).to_have_text("edges")
    expect(told).to_be_hidden()
    page.get_by_role("button", name="Go on labelling").click()
    page.keyboard.press("y")
    expect(page.locator("#history li", has_text=f"asked: {old}")).to_have_count(2)


def test_answers_kept_while_the_server_was_away_keep_their_question(
    page: Page, database: Database, context_offline: Any
) -> None:
    context_offline(True)
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
        page.locator("#stage[data-state=shown]").wait_for()
    with database.write() as session:
        old = load_settings(session).question
        save_settings(session, {"question": "Which is sharper?"})
    context_offline(False)
    expect(page.locator("#saved")).to_have_text("saved")
    expect(page.locator("#question")).to_have_text("Which is sharper?")
    press(page, "ArrowLeft")
    assert asked(database) == [old, old, "Which is sharper?"]


def test_back_shows_the_present(page: Page, database: Database) -> None:
    """By what it asks for as it loads: without no-store, Chromium takes that from its cache when one goes back."""
    press(page, "ArrowLeft")
    page.goto(page.url + "static/icon.svg")
    with database.write() as session:
        save_settings(session, {"question": "Which is sharper?"})
    # The next answer would bring the change too. A route of Playwright's would turn the cache off.
    page.add_init_script("""
        const ask = window.fetch;
        window.fetch = (address, ...more) => address.endsWith("/api/label") ? Promise.reject() : ask(address, ...more);
    """)
    page.go_back()
    expect(page.locator("#question")).to_have_text("Which is sharper?")


def test_history_takes_an_older_answer_back(page: Page, database: Database) -> None:
    first = shown(page)
    for key in ("ArrowLeft", "ArrowRight"):
        press(page, key)
    page.get_by_role("button", name="History").click()
    page.locator("#history li").nth(1).get_by_role("button", name="Undo").click()
    expect(page.locator("#left img")).to_have_attribute("src", re.compile(first[0]))
    expect(page.locator("#saved")).to_have_text("saved")
    assert [row.superseded_at is None for row in judgments(database)] == [False, True]


def test_buttons_do_what_the_keys_do(page: Page, database: Database) -> None:
    for name in ("Left is better", "Right is better", "Tie"):
        before = shown(page)
        page.get_by_role("button", name=name).click()
        expect(page.locator("#left img")).not_to_have_attribute("src", re.compile(before[0] + before[1]))
        expect(page.locator("#saved")).to_have_text("saved")
        page.wait_for_timeout(200)
    assert len(judgments(database)) == 3


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (844, 390)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_in_view_without_scrolling(
    fill: Any, label_page: Any, width: int, height: int, scheme: str
) -> None:
    fill(3)
    page = label_page(viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=height < 500)
    for selector in ("#left", "#right", "#lq", "#controls button", "#question", "#saved", "#open-help"):
        for element in page.locator(selector).all():
            box = element.bounding_box()
            assert box is not None, selector
            assert box["x"] >= 0, selector
            assert box["y"] >= 0, selector
            assert box["x"] + box["width"] <= width, selector
            assert box["y"] + box["height"] <= height, selector
    for element in page.locator("#controls button").all():
        box = element.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44
    left, right = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
    assert left is not None
    assert right is not None
    assert (left["width"], left["height"]) == (right["width"], right["height"])


def test_methods_are_named_nowhere_on_the_page(page: Page) -> None:
    press(page, "ArrowLeft")
    page.keyboard.press("y")
    page.locator("#history li").first.wait_for()
    assert "-secret" not in page.content()


def test_sign_in_with_auth_and_what_an_annotator_may_open(
    fill: Any, serve: Any, open_page: Any, database: Database
) -> None:
    fill(3)
    with database.write() as session:
        add_person(session, "ada", Role.admin, "correct horse")
        add_person(session, "ben", Role.annotator)
        link = make_link_token(get_person(session, "ben"))
    server = serve(admin_pages=True, auth=True)
    page = open_page()
    page.goto(server.url)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("Wrong name or password.")
    assert page.goto(f"{server.url}/api/session").status == 401
    page.goto(f"{server.url}/enter/{link}")
    expect(page.get_by_role("heading", name="Which restoration is better?").first).to_be_visible()
    expect(page.locator("header summary")).to_have_count(0)  # no way to the admin pages
    for path in ("/admin/", "/admin/people", "/admin/export"):
        assert page.goto(server.url + path).status == 403, path
    with database.read() as session:
        someones = session.scalars(select(Pair)).first()
        assert someones is not None
        foreign = someones.a.image.sha256
    assert page.goto(f"{server.url}/img/{foreign}").status == 403
    boss = open_page()
    boss.goto(server.url)
    boss.get_by_label("Name").fill("ada")
    boss.get_by_label("Password").fill("correct horse")
    boss.get_by_role("button", name="Sign in").click()
    boss.get_by_role("button", name="Start labelling").click()
    menu, links = boss.locator("header summary"), boss.get_by_role("navigation", name="Pages")
    menu.click()
    links.get_by_role("link", name="Data").focus()
    boss.keyboard.press("Escape")
    expect(links).to_be_hidden()
    expect(menu).to_be_focused()
    boss.keyboard.press("Enter")
    boss.get_by_role("navigation", name="Pages").get_by_role("link", name="Overview").click()
    expect(boss.get_by_role("heading", name="Overview").first).to_be_visible()
