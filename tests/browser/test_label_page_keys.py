"""Keys under any layout: by their character, by their place where that is none of ours; a hold ends with its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import CDPSession, Page, expect

from tests.browser.conftest import answer

pytestmark = pytest.mark.browser

TABLE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "keyboard_layouts.json"
WORDS = {
    "KeyS": "skip",
    "KeyZ": "undo",
    "KeyI": "input",
    "KeyF": "flicker",
    "KeyX": "1:1",
    "KeyG": "truth",
    "KeyY": "history",
    "KeyH": "help",
    "Digit0": "fit",
    "Digit1": "reason 1",
    "Digit2": "reason 2",
    "Digit9": "nothing",
}
"""What each place has to do; the project has six reasons."""
MORE = [
    ("і", "KeyS", "skip"),  # Ukrainian
    ("Ы", "KeyS", "skip"),  # caps lock
    ("ჰ", "KeyH", "help"),  # Georgian
    ("ห", "KeyS", "skip"),  # Thai
    ("र", "KeyF", "flicker"),  # Hindi
    ("と", "KeyS", "skip"),  # kana
    ("لا", "KeyG", "truth"),  # two letters on one key
    ("ı", "KeyI", "input"),  # Turkish
    ("Dead", "KeyS", "skip"),
    ("Process", "Digit0", "fit"),
    ("Process", "KeyY", "history"),
    ("Ｚ", "KeyZ", "undo"),
    ("٢", "Digit2", "reason 2"),  # Arabic
    ("२", "Digit2", "reason 2"),  # Devanagari
    ("ě", "Digit2", "reason 2"),  # Czech
    ("'", "Digit2", "reason 2"),
    ("z", "KeyY", "undo"),  # QWERTZ
    ("z", "KeyW", "undo"),  # AZERTY
    # What has a meaning by its character keeps it, and Latin letters have no other.
    ("y", "KeyZ", "history"),
    ("w", "KeyZ", "nothing"),
    ("o", "KeyS", "nothing"),  # Dvorak
    ("+", "Digit1", "zoom"),  # Czech
    ("F2", "KeyS", "nothing"),
    ("Clear", "Numpad5", "nothing"),  # number lock off
    ("!", "Digit1", "reason 1"),
]


def read_table() -> list[tuple[str, str, str]]:
    if not TABLE.is_file():
        return []
    layouts = json.loads(TABLE.read_text(encoding="utf-8"))
    return [(key, code, WORDS[code]) for pairs in layouts.values() for key, code in pairs]


@pytest.fixture
def keyboard(page: Page) -> CDPSession:
    return page.context.new_cdp_session(page)


def down(keyboard: CDPSession, key: str, code: str, **more: Any) -> None:
    keyboard.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": key, "code": code, **more})


def up(keyboard: CDPSession, key: str, code: str, **more: Any) -> None:
    keyboard.send("Input.dispatchKeyEvent", {"type": "keyUp", "key": key, "code": code, **more})


def look(page: Page) -> dict[str, Any]:
    """All that a key can change."""
    state: dict[str, Any] = page.evaluate("""() => ({
        skip: document.getElementById("skip-dialog").open,
        help: document.getElementById("help-dialog").open,
        history: document.getElementById("history-dialog").open,
        overlay: document.getElementById("stage").dataset.overlay,
        truth: document.getElementById("toggle-truth").getAttribute("aria-pressed"),
        readout: document.getElementById("readout").textContent,
        reasons: [...document.querySelectorAll("#reasons button")].map((chip) => chip.getAttribute("aria-pressed")),
        shown: ["left", "right"].map((side) => document.querySelector(`#${side} img`).src).sort(),
    })""")
    return state


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The word for what happened between two looks."""
    for word in ("skip", "help", "history"):
        if after[word]:
            return word
    if after["overlay"]:
        return {"lq": "input", "flicker": "flicker"}[after["overlay"]]
    if after["truth"] != before["truth"]:
        return "truth"
    if after["shown"] != before["shown"]:
        return "undo"
    if after["readout"] != before["readout"]:
        if after["readout"] == "1:1 pixels":
            return "1:1"
        return "fit" if after["readout"].startswith("fit") else "zoom"
    pressed = [place for place, state in enumerate(after["reasons"]) if state == "true"]
    return f"reason {pressed[0] + 1}" if pressed else "nothing"


def test_every_key_of_every_layout_does_what_its_place_says(page: Page, keyboard: CDPSession) -> None:
    table = read_table()
    found: dict[str, str] = {}
    for key, code, expected in table + MORE:
        page.reload()
        page.locator("#stage[data-state=shown]").wait_for()
        if expected.startswith(("reason", "undo")):
            answer(page, "ArrowLeft")
        if expected in ("fit", "zoom"):
            page.keyboard.press("x")
        before = look(page)
        down(keyboard, key, code)
        page.wait_for_timeout(150)
        word = changes(before, look(page))
        up(keyboard, key, code)
        if word != expected:
            found[f"{key} at {code}"] = f"{word}, not {expected}"
    assert found == {}
    if not table:
        pytest.skip("needs ../shared/cases/keyboard_layouts.json for the layouts of that table; the others passed")


def test_digits_of_another_script_choose_a_reason_to_skip(page: Page, keyboard: CDPSession) -> None:
    for key, code in (("é", "Digit2"), ("۲", "Digit2"), ("Process", "Digit2")):
        page.keyboard.press("s")
        expect(page.locator("#skip-dialog")).to_be_visible()
        down(keyboard, key, code)
        up(keyboard, key, code)
        expect(page.locator("#skip-dialog")).to_be_hidden()
        page.locator("#stage[data-state=shown]").wait_for()
    page.keyboard.press("y")
    expect(page.locator("#history")).to_contain_text("skipped: not a face")


@pytest.mark.parametrize(
    "end",
    [
        lambda keyboard: up(keyboard, "F", "KeyF", modifiers=8),  # shift came in between
        lambda keyboard: up(keyboard, "а", "KeyF"),  # the layout was switched
        lambda keyboard: up(keyboard, "Process", "KeyF"),
        lambda keyboard: up(keyboard, "Meta", "MetaLeft"),
    ],
    ids=["shift", "layout", "input method", "meta"],
)
def test_a_hold_ends_by_the_key_that_began_it_whatever_it_writes_by_then(
    page: Page, keyboard: CDPSession, end: Callable[[CDPSession], None]
) -> None:
    down(keyboard, "f", "KeyF")
    assert look(page)["overlay"] == "flicker"
    end(keyboard)
    page.wait_for_timeout(50)
    assert look(page)["overlay"] == ""


def test_a_hold_goes_on_when_another_key_ends(page: Page, keyboard: CDPSession) -> None:
    down(keyboard, "f", "KeyF")
    for key, code in (("i", "KeyG"), ("f", "KeyU"), ("Shift", "ShiftLeft")):
        up(keyboard, key, code)
    page.wait_for_timeout(50)
    assert look(page)["overlay"] == "flicker"
    down(keyboard, "i", "KeyI")
    up(keyboard, "f", "KeyF")
    page.wait_for_timeout(50)
    assert look(page)["overlay"] == "lq", "the first key ends no longer what the second one began"
    up(keyboard, "i", "KeyI")
    page.wait_for_timeout(50)
    assert look(page)["overlay"] == ""


@pytest.mark.parametrize(
    "gone", ["window.dispatchEvent(new Event('blur'))", "window.dispatchEvent(new Event('pagehide'))"]
)
def test_a_hold_ends_when_the_page_is_left(page: Page, keyboard: CDPSession, gone: str) -> None:
    down(keyboard, "f", "KeyF")
    page.evaluate(gone)
    assert look(page)["overlay"] == ""


def test_a_hold_ends_when_the_page_is_hidden(page: Page, keyboard: CDPSession) -> None:
    down(keyboard, "f", "KeyF")
    page.evaluate("""() => {
        Object.defineProperty(document, "hidden", { value: true, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    assert look(page)["overlay"] == ""


def test_a_key_given_under_a_cyrillic_layout_works_under_a_latin_one(page: Page, keyboard: CDPSession) -> None:
    page.keyboard.press("?")
    page.get_by_role("button", name="Change the key for: ground truth").click()
    down(keyboard, "е", "KeyT")
    up(keyboard, "е", "KeyT")
    expect(page.get_by_role("button", name="Change the key for: ground truth")).to_have_text("T")
    page.get_by_role("button", name="Change the key for: swap the two in place").click()
    for key in ("&", "Process", "۱"):  # digits stay with the reasons
        down(keyboard, key, "Digit1")
        up(keyboard, key, "Digit1")
        page.get_by_role("button", name="Change the key for: swap the two in place").click()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    expect(page.locator("#toggle-truth")).to_have_attribute("aria-pressed", "true")
    page.keyboard.down("f")
    assert look(page)["overlay"] == "flicker"
    page.keyboard.up("f")


def test_single_characters_turned_off_are_off_by_place_too(page: Page, keyboard: CDPSession) -> None:
    answer(page, "ArrowLeft")
    page.keyboard.press("?")
    page.get_by_role("checkbox").uncheck()
    page.keyboard.press("Escape")
    before = look(page)
    for key, code in (("ы", "KeyS"), ("Process", "KeyZ"), ("&", "Digit1")):
        down(keyboard, key, code)
        up(keyboard, key, code)
    page.wait_for_timeout(150)
    assert look(page) == before


def test_enter_that_ends_a_composition_does_not_send_the_skip(page: Page) -> None:
    page.keyboard.press("s")
    page.get_by_label("another reason").fill("ぼやけ")
    page.get_by_label("another reason").evaluate(
        "field => field.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"
    )
    expect(page.locator("#skip-dialog")).to_be_visible()
