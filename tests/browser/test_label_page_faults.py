"""What a browser, a server or a second tab may do to answers: none is lost, none overwritten, and the page says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from db.images import image_path
from db.models import Candidate, Lease, Person, utc_now
from db.session import Database
from tests.browser.conftest import answer, enter
from tests.making import fetch
from tests.watching import wait_until

pytestmark = pytest.mark.browser

FULL = """
    const first = Storage.prototype.setItem;
    Storage.prototype.setItem = function () { throw new DOMException("no room is left", "QuotaExceededError"); };
    window.roomAgain = () => { Storage.prototype.setItem = first; };
"""
REFUSED = """
    Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } });
"""
ABSENT = "Object.defineProperty(window, 'localStorage', { value: null });"
FORGETFUL = "Storage.prototype.setItem = function () {};"


def showing(page: Page) -> list[str]:
    """Addresses of the two images on the screen, in order."""
    return sorted(page.locator(f"#{side} img").get_attribute("src") or "" for side in ("left", "right"))


@pytest.mark.parametrize("fault", [FULL, REFUSED, ABSENT, FORGETFUL], ids=["full", "refused", "absent", "forgetful"])
def test_without_storage_answers_go_from_memory_and_the_page_says_so(
    fill: Any, label_page: Any, rows: Any, fault: str
) -> None:
    fill(6)
    page = label_page(fault)
    expect(page.locator("#strip")).to_contain_text("This browser keeps no answers")
    answer(page, "ArrowLeft")
    assert len(rows()) == 1
    page.get_by_role("button", name="Theme").click()
    page.keyboard.press("?")
    page.get_by_label("single-character keys").uncheck()
    page.get_by_label("single-character keys").check()
    page.keyboard.press("Escape")
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowRight")
    expect(page.locator("#saved")).to_contain_text("not saved yet: 1 answer in this page only")
    assert len(rows()) == 1
    page.unroute("**/api/label")
    expect(page.locator("#saved")).to_have_text("saved")
    assert len(rows()) == 2


@pytest.fixture
def full_page(fill: Any, label_page: Any) -> Page:
    """Ada's page in a browser whose storage is full."""
    fill(6)
    page: Page = label_page(FULL)
    page.wait_for_timeout(500)
    return page


def leave(page: Page) -> list[str]:
    """Go elsewhere, whatever is asked; the kinds of dialogs that were opened."""
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.goto("about:blank")
    return asked


def test_leaving_with_answers_that_nothing_keeps_is_asked_about(full_page: Page) -> None:
    page = full_page
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowRight")
    expect(page.locator("#saved")).to_contain_text("in this page only")
    assert leave(page) == ["beforeunload"]


def test_nothing_is_said_to_be_saved_before_it_is(page: Page, rows: Any) -> None:
    """Answers that an earlier page left behind wait from the first moment on."""
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_contain_text("not saved yet")
    page.add_init_script("""
        window.said = [];
        new MutationObserver(() => {
            const text = document.getElementById("saved")?.textContent;
            if (text && text !== window.said.at(-1)) window.said.push(text);
        }).observe(document, { subtree: true, childList: true, characterData: true });
    """)
    page.evaluate("navigator.sendBeacon = () => true")  # the machine is switched off, say
    page.reload()
    page.wait_for_timeout(1500)
    assert rows() == []
    assert "saved" not in page.evaluate("window.said")
    page.unroute("**/api/label")
    expect(page.locator("#saved")).to_have_text("saved")
    assert len(rows()) == 1


@pytest.fixture
def without_cookies(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page of a browser whose person has blocked all cookies in its settings."""
    profile = tmp_path / "profile" / "Default"
    profile.mkdir(parents=True)
    blocked = {"profile": {"default_content_setting_values": {"cookies": 2}}}
    (profile / "Preferences").write_text(json.dumps(blocked))
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    context = browser.browser_type.launch_persistent_context(
        profile.parent, executable_path=path, args=["--no-sandbox", "--disable-gpu"]
    )
    yield context.new_page()
    context.close()


def test_blocked_cookies_are_said_before_the_form_is_filled(serve: Any, without_cookies: Page) -> None:
    errors: list[str] = []
    without_cookies.on("pageerror", lambda error: errors.append(str(error)))
    without_cookies.goto(serve().address)
    expect(without_cookies.get_by_role("alert")).to_contain_text("This browser blocks cookies")
    assert errors == []


def test_allowed_cookies_are_no_matter(serve: Any, open_page: Any) -> None:
    page = open_page()
    page.goto(serve().address)
    expect(page.get_by_label("Name")).to_be_visible()
    expect(page.locator("#explain")).to_contain_text("Who is judging?")
    expect(page.locator("#cookies")).to_be_hidden()


def test_an_answer_that_cannot_be_taken_is_set_aside_and_what_follows_is_stored(page: Page, rows: Any) -> None:
    page.route("**/api/label", lambda route: route.abort())
    for key in ("ArrowLeft", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
        page.wait_for_timeout(150)
    expect(page.locator("#saved")).to_contain_text("3 answers kept here")
    # As a faulty extension or another program of this address could have left it.
    page.evaluate("""() => {
        const name = Object.keys(localStorage).find((key) => key.startsWith("facereward:outbox:"));
        const box = JSON.parse(localStorage.getItem(name));
        Object.assign(box.events[1], { choice: "skip", skip_reason: "half a smile \\ud83d" });
        box.events.push(null, "no event", { type: "undo", id: 7, judgment: ["\\0"] });
        window.leftBehind = [name, JSON.stringify({ seen: 0, events: box.events })];
    }""")
    left_behind = page.evaluate("window.leftBehind")
    page.evaluate("navigator.sendBeacon = () => true")
    page.goto("about:blank")
    page.unroute("**/api/label")
    page.go_back()
    page.evaluate("([name, box]) => localStorage.setItem(name, box)", left_behind)
    page.reload()
    expect(page.locator("#saved")).to_have_text("saved")
    expect(page.get_by_role("alert")).to_contain_text("half a character")
    expect(page.locator("#strip")).to_contain_text("4 answers were not stored")
    assert {row.choice.value for row in rows()} <= {"a", "b", "tie"}
    assert len(rows()) >= 2
    page.locator("#stage[data-state=shown]").wait_for()
    answer(page, "ArrowLeft")
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("half a character")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("half a character")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#strip")).not_to_contain_text("not stored")


def test_a_request_that_is_refused_whole_is_taken_apart(page: Page, rows: Any) -> None:
    """A proxy may refuse a body for one of the answers in it."""

    def refuse_the_skip(route: Any) -> None:
        told = route.request.post_data or ""
        route.fulfill(status=413, body="too large") if "enormous" in told else route.continue_()

    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(150)
    page.keyboard.press("s")
    page.get_by_label("another reason").fill("enormous")
    page.keyboard.press("Enter")
    page.wait_for_timeout(150)
    page.keyboard.press("ArrowRight")
    page.route("**/api/label", refuse_the_skip)  # in the place of the first, without a moment in between
    expect(page.get_by_role("alert")).to_contain_text("Not stored: 413 too large (skip, enormous")
    expect(page.locator("#saved")).to_have_text("saved")
    assert [row.choice.value in ("a", "b") for row in rows()] == [True, True]


def test_two_tabs_show_other_pairs_and_are_told_of_each_other(page: Page, rows: Any) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#stage[data-state=shown]").wait_for()
    expect(other.get_by_role("alert")).to_contain_text("open elsewhere too")
    answer(page, "ArrowLeft")
    expect(page.get_by_role("alert")).to_contain_text("open elsewhere too")
    for _ in range(4):
        assert showing(page) != showing(other)
        answer(page, "ArrowLeft")
        answer(other, "ArrowRight")
    assert all(row.superseded_at is None for row in rows())
    assert len({row.pair_id for row in rows()}) == len(rows()) == 9
    other.close()
    page.bring_to_front()
    answer(page, "ArrowLeft")
    expect(page.locator("#strip")).to_be_hidden()


def test_the_last_pairs_with_others_are_said_and_come_when_they_go(
    fill: Any, serve: Any, open_page: Any, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    monkeypatch.setattr("annotate.judging.pairs.GIVEN_BACK_SECONDS", 1.0)
    fill(1)  # three pairs
    server = serve()
    ada, ben = open_page(), open_page()
    enter(ada, server, "ada")
    ben.goto(server.address)
    ben.get_by_label("Name").fill("ben")
    ben.get_by_role("button", name="Sign in").click()
    ben.get_by_role("button", name="Start labelling").click()
    expect(ben.locator("#notice")).to_contain_text("The last 3 pairs are with others just now")
    ada.close()
    ben.locator("#stage[data-state=shown]").wait_for()
    answer(ben, "ArrowLeft")
    assert len(rows()) == 1


def test_pairs_of_a_damaged_image_are_left_out_and_that_is_said(
    fill: Any, label_page: Any, rows: Any, database: Database, data: Path
) -> None:
    fill(1)  # three pairs of three images, two of which show the first
    with database.read() as session:
        image = session.scalars(select(Candidate)).first().image
        path = image_path(data, image.sha256, image.suffix)
    content = path.read_bytes()
    path.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))  # of the same size: known once it is looked at
    page = label_page()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#notice")).to_contain_text("their images are damaged on the server")
    expect(page.get_by_role("alert")).to_contain_text("An image of this pair is damaged on the server.")
    assert len(rows()) == 1
    path.write_bytes(content)


def test_signing_out_gives_the_pairs_back(page: Page, database: Database) -> None:
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Name")).to_be_visible()
    page.wait_for_timeout(500)
    ends = fetch(database, select(Lease.expires_at))
    assert ends
    assert max(ends) - utc_now() < timedelta(seconds=11)


def test_a_name_like_somebody_elses_is_asked_for_once(page: Page, database: Database) -> None:
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name").fill("Ada")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Nobody is called “Ada” yet. Did you mean …")
    page.get_by_role("button", name="ada", exact=True).click()
    expect(page.get_by_role("button", name="Sign out ada")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name").fill("A.D.A.")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="No, I am new: start as A.D.A.").click()
    expect(page.locator("#first-time")).to_contain_text("You begin here as “A.D.A.”")
    assert fetch(database, select(Person.name).order_by(Person.id)) == ["ada", "A.D.A."]


@pytest.mark.parametrize(
    "said",
    [
        "{}",
        "null",
        '{"results": [], "pairs": []}',
        '{"results": [{"id": "of-another-request", "status": "stored"}], "pairs": []}',
        '{"status": "please sign in to this network"}',
        "<!doctype html><title>Sign in to this network</title>",
    ],
)
def test_what_answers_in_the_servers_place_stores_nothing(page: Page, rows: Any, said: str) -> None:
    """As a hotel's portal, a proxy's cache or a sign-in in front of the server does, with status 200."""
    page.route("**/api/label", lambda route: route.fulfill(status=200, content_type="application/json", body=said))
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_contain_text("not saved yet: 1 answer kept here")
    page.wait_for_timeout(1000)
    page.unroute("**/api/label")
    expect(page.locator("#saved")).to_have_text("saved")
    assert len(rows()) == 1


def test_a_request_that_hangs_is_sent_anew(page: Page, rows: Any) -> None:
    """As on a connection that a router has forgotten: nothing comes, not even an error."""
    hanging = []
    page.route("**/api/label", lambda route: hanging.append(route))
    page.evaluate("const first = AbortSignal.timeout; AbortSignal.timeout = (ms) => first.call(AbortSignal, ms / 20)")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_contain_text("not saved yet")
    assert hanging
    page.unroute("**/api/label")
    expect(page.locator("#saved")).to_have_text("saved")
    assert len(rows()) == 1


@pytest.mark.parametrize("wrong_by_days", [-400, 400])
def test_answers_stored_under_a_wrong_clock_are_sent(page: Page, rows: Any, wrong_by_days: int) -> None:
    """A machine's clock that was a year ahead, and is put right before the next visit."""
    page.evaluate(f"const now = Date.now; Date.now = () => now() + {wrong_by_days} * 86_400_000")
    page.evaluate("navigator.sendBeacon = () => true")
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_contain_text("not saved yet")
    # A crash: the box stays as it is, for nothing tells that the page goes.
    name, box = page.evaluate("Object.entries(localStorage).find(([name]) => name.includes(':outbox:'))")
    page.add_init_script(f"localStorage.setItem({json.dumps(name)}, {json.dumps(box)})")
    page.unroute("**/api/label")
    page.reload()
    page.locator("#stage[data-state=shown]").wait_for()
    wait_until(rows)
    assert len(rows()) == 1


def test_a_page_without_beacons_leaves_as_others_do(page: Page, rows: Any) -> None:
    """Firefox has none where beacon.enabled is off."""
    cut_off = lambda route: route.continue_() if route.request.post_data_json.get("leaving") else route.abort()  # noqa: E731
    page.evaluate("navigator.sendBeacon = undefined")
    page.route("**/api/label", cut_off)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_contain_text("not saved yet")
    page.goto("about:blank")
    page.wait_for_timeout(1000)
    assert len(rows()) == 1


def test_two_tabs_keep_what_each_set_aside(page: Page) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#stage[data-state=shown]").wait_for()
    for tab, error in ((page, "the first is gone"), (other, "the second is gone")):
        tab.route("**/api/label", refuse_with(error))
        tab.keyboard.press("ArrowLeft")
        expect(tab.get_by_role("alert")).to_contain_text(error)
        tab.unroute("**/api/label")
    other.close()
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("the first is gone")
    expect(page.get_by_role("alert")).to_contain_text("the second is gone")


def refuse_with(error: str) -> Callable[[Any], None]:
    """Answers as the server does where it cannot store what was sent."""

    def refuse(route: Any) -> None:
        events = route.request.post_data_json["events"]
        results = [{"id": event["id"], "status": "refused", "error": error, "pair": None} for event in events]
        route.fulfill(json={"results": results, "pairs": [], "done": False})

    return refuse


def test_what_is_set_aside_and_not_kept_is_asked_about_before_it_is_lost(full_page: Page) -> None:
    page = full_page
    page.route("**/api/label", refuse_with("the pair is gone"))
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#strip")).to_contain_text("this browser does not keep it")
    assert leave(page) == ["beforeunload"]


def test_a_server_that_is_away_while_the_page_loads_is_said_and_waited_for(page: Page, rows: Any) -> None:
    """Nobody is sent to sign in for a proxy's 502, nor left before an empty page."""
    page.route("**/api/session", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    page.reload()
    expect(page.locator("#notice")).to_have_text("The server does not answer. This page keeps trying.")
    page.unroute("**/api/session")
    page.route("**/api/session", lambda route: route.abort())
    page.wait_for_timeout(1500)
    page.unroute("**/api/session")
    page.locator("#stage[data-state=shown]").wait_for()
    answer(page, "ArrowLeft")
    assert len(rows()) == 1


def test_signing_out_sends_first_what_waits(page: Page, rows: Any) -> None:
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved")).to_contain_text("not saved yet")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("alert").first).to_contain_text(
        "1 answer is not saved yet, and kept in this browser until “ada” signs in here again."
    )
    assert rows() == []
    page.unroute("**/api/label")
    expect(page.locator("#saved")).to_have_text("saved")
    page.get_by_role("button", name="Dismiss").click()
    held: list[Any] = []
    slow = [True]
    page.route("**/api/label", lambda route: held.append(route) if slow else route.continue_())
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_timeout(300)
    slow.clear()
    for route in held:
        route.continue_()
    expect(page.get_by_label("Name")).to_be_visible()
    assert len(rows()) == 2


def test_a_double_click_is_one_answer(page: Page, rows: Any) -> None:
    page.get_by_role("button", name="Left is better").dblclick(delay=20)
    page.wait_for_timeout(500)
    expect(page.locator("#saved")).to_have_text("saved")
    assert len(rows()) == 1
    page.get_by_role("button", name="Left is better").click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Left is better").click()
    expect(page.locator("#progress")).to_contain_text("you: 3")


def test_enter_held_down_on_a_button_is_one_answer(page: Page, rows: Any) -> None:
    for name, answers in (("Left is better", 1), ("Skip", 1)):
        page.get_by_role("button", name=name).focus()
        page.keyboard.down("Enter")
        for _ in range(12):
            page.wait_for_timeout(60)
            page.keyboard.down("Enter")  # a key that is down already repeats
        page.keyboard.up("Enter")
        page.wait_for_timeout(300)
        assert len(rows()) == answers
    expect(page.locator("#skip-dialog")).to_be_visible()


def test_a_pair_that_loads_slowly_does_not_leave_the_old_one_standing(page: Page, rows: Any) -> None:
    """Whoever still sees the old pair thinks that the key was lost, and presses it again for a pair not yet seen."""
    waiting: list[Any] = []
    slow = [True]
    page.route("**/img/**", lambda route: waiting.append(route) if slow else route.continue_())
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(200)
    expect(page.locator("#notice")).to_have_text("Loading the next pair …")
    expect(page.locator("#left")).to_be_hidden()
    count = len(rows())
    page.keyboard.press("ArrowLeft")
    slow.clear()
    for route in waiting:
        route.continue_()
    page.locator("#stage[data-state=shown]").wait_for()
    expect(page.locator("#left")).to_be_visible()
    assert len(rows()) == count


def test_anothers_answers_are_neither_shown_nor_taken_back(page: Page, rows: Any) -> None:
    """Ben signs in in another tab of the browser in which Ada's page is open."""
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#stage[data-state=shown]").wait_for()
    other.get_by_role("button", name="Sign out").click()
    other.get_by_label("Name").fill("ben")
    other.get_by_role("button", name="Sign in").click()
    other.get_by_role("button", name="Start labelling").click()
    other.locator("#stage[data-state=shown]").wait_for()
    answer(other, "ArrowLeft")
    for key in ("y", "z"):
        page.keyboard.press(key)
        expect(page.locator("#reasons")).to_contain_text("Your last answers cannot be loaded now.")
        expect(page.locator("#history-dialog")).to_be_hidden()
        page.evaluate("document.getElementById('reasons').replaceChildren()")
    page.wait_for_timeout(500)
    assert [row.superseded_at for row in rows()] == [None]


def test_last_answers_that_cannot_be_loaded_are_said(page: Page) -> None:
    page.context.set_offline(True)
    page.keyboard.press("y")
    expect(page.locator("#reasons")).to_contain_text("Your last answers cannot be loaded now.")
