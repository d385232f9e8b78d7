"""What a browser, a server or a second tab may do to answers: none is lost, none overwritten, and the page says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from db.models import Lease, Person, utc_now
from db.session import Database

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


def answer(page: Page, key: str) -> None:
    """Press a key, and wait until the next pair is painted and the answer is stored."""
    painted = "new Promise((done) => document.addEventListener('facereward:painted', done, { once: true }))"
    page.evaluate(f"window.nextPaint = {painted}; undefined")
    page.keyboard.press(key)
    page.evaluate("window.nextPaint.then(() => true)")
    expect(page.locator("#saved")).to_have_text("saved")


def showing(page: Page) -> list[str]:
    """Addresses of the two images on the screen, in order."""
    return sorted(page.locator(f"#{side} img").get_attribute("src") or "" for side in ("left", "right"))


@pytest.mark.parametrize("fault", [FULL, REFUSED, ABSENT, FORGETFUL], ids=["full", "refused", "absent", "forgetful"])
def test_without_storage_answers_go_from_memory_and_the_page_says_so(
    fill: Any, serve: Any, open_page: Any, sign_in: Any, rows: Any, fault: str
) -> None:
    fill(6)
    page = open_page()
    page.add_init_script(fault)
    sign_in(page, serve(), "ada")
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
    expect(page.locator("#saved")).to_have_text("saved", timeout=15_000)
    assert len(rows()) == 2


def test_leaving_with_answers_that_nothing_keeps_is_asked_about(
    fill: Any, serve: Any, open_page: Any, sign_in: Any
) -> None:
    fill(6)
    page = open_page()
    page.add_init_script(FULL)
    sign_in(page, serve(), "ada")
    page.wait_for_timeout(500)
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("ArrowRight")
    expect(page.locator("#saved")).to_contain_text("in this page only")
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.goto("about:blank")
    assert asked == ["beforeunload"]


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
    expect(page.locator("#saved")).to_have_text("saved", timeout=15_000)
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


@pytest.fixture
def page(fill: Any, serve: Any, open_page: Any, sign_in: Any) -> Page:
    """The page of a signed-in person, its first of 36 pairs painted and the next ones fetched."""
    fill(12)
    opened: Page = open_page()
    sign_in(opened, serve(), "ada")
    opened.wait_for_timeout(500)
    return opened


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
    expect(page.locator("#saved")).to_have_text("saved", timeout=15_000)
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
    expect(page.get_by_role("alert")).to_contain_text("Not stored: 413 too large (skip, enormous", timeout=20_000)
    expect(page.locator("#saved")).to_have_text("saved", timeout=15_000)
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
    fill: Any, serve: Any, open_page: Any, sign_in: Any, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    monkeypatch.setattr("annotate.pairs.GIVEN_BACK_SECONDS", 1.0)
    fill(1)  # three pairs
    server = serve()
    ada, ben = open_page(), open_page()
    sign_in(ada, server, "ada")
    ben.goto(server.address)
    ben.get_by_label("Name").fill("ben")
    ben.get_by_role("button", name="Sign in").click()
    ben.get_by_role("button", name="Start labelling").click()
    expect(ben.locator("#notice")).to_contain_text("The last 3 pairs are with others just now")
    ada.close()
    ben.locator("#stage[data-state=shown]").wait_for(timeout=20_000)
    answer(ben, "ArrowLeft")
    assert len(rows()) == 1


def test_signing_out_gives_the_pairs_back(page: Page, database: Database) -> None:
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Name")).to_be_visible()
    page.wait_for_timeout(500)
    with database.read() as session:
        ends = list(session.scalars(select(Lease.expires_at)))
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
    with database.read() as session:
        assert list(session.scalars(select(Person.name).order_by(Person.id))) == ["ada", "A.D.A."]
