"""Images of any shape, screens of any density, windows of a few lines: nothing stretched, nothing out of reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from annotate.ingest.archive import unpacked
from annotate.ingest.store import import_folder
from annotate.judging.pairs import make_pairs
from db.project import load_settings, save_settings
from db.session import Database
from tests.browser.conftest import answer
from tests.making import add_face, add_photos, find_case

pytestmark = pytest.mark.browser

Size = tuple[int, int]


@pytest.fixture
def fill_sizes(database: Database, data: Path, tmp_path: Path) -> Callable[..., None]:
    """`fill_sizes(lq, one, other)`: one pair of candidates of these sizes, and its input."""

    def fill_sizes(*sizes: Size) -> None:
        with database.write() as session:
            save_settings(session, {"repeat_share": 0, "gold_share": 0})
            images = [add_photos(session, data, tmp_path, [place], size)[0] for place, size in enumerate(sizes)]
            add_face(session, "face", [f"m{number}" for number in range(len(sizes) - 1)], *images)
            make_pairs(session, load_settings(session))

    return fill_sizes


def shown(page: Page) -> list[dict[str, float]]:
    """The two images in view: their own pixels, the device pixels that they take, and their middle in the frame."""
    found: list[dict[str, float]] = page.evaluate("""() => ["left", "right"].map((side) => {
        const frame = document.getElementById(side).getBoundingClientRect();
        const image = document.querySelector(`#${side} img`);
        const box = image.getBoundingClientRect();
        return {
            own: [image.naturalWidth, image.naturalHeight],
            taken: [box.width * devicePixelRatio, box.height * devicePixelRatio],
            middle: [
                box.x + box.width / 2 - frame.x - frame.width / 2,
                box.y + box.height / 2 - frame.y - frame.height / 2,
            ],
            frame: [frame.width, frame.height],
        };
    })""")
    return found


def scales(page: Page) -> list[float]:
    """Device pixels for each own pixel, of the left and the right image; the same in both directions."""
    found = []
    for image in shown(page):
        (own_w, own_h), (w, h) = image["own"], image["taken"]  # type: ignore[misc]
        assert w / own_w == pytest.approx(h / own_h, rel=0.003), "stretched"
        assert [abs(at) <= 1 for at in image["middle"]] == [True, True]  # type: ignore[union-attr]
        found.append(w / own_w)
    return found


@pytest.mark.parametrize(
    ("lq", "one", "other"),
    [
        ((512, 512), (512, 512), (512, 640)),
        ((128, 128), (512, 640), (640, 512)),
        ((128, 160), (500, 700), (512, 640)),
        ((64, 256), (256, 512), (512, 512)),
        ((300, 200), (96, 96), (96, 96)),
    ],
)
def test_shapes_that_differ_share_one_scale(fill_sizes: Any, label_page: Any, lq: Size, one: Size, other: Size) -> None:
    fill_sizes(lq, one, other)
    page = label_page()
    at_left, at_right = scales(page)
    if one[0] >= lq[0] and max(one) * 2 > max(other):
        assert at_left == pytest.approx(at_right, rel=0.003)
    for image in shown(page):
        assert image["taken"][0] <= image["frame"][0] + 1  # type: ignore[index]
        assert image["taken"][1] <= image["frame"][1] + 1  # type: ignore[index]
    page.keyboard.press("x")
    assert max(scales(page)) >= 1 - 1e-6
    if at_left == pytest.approx(at_right, rel=0.003):
        assert scales(page) == pytest.approx([1, 1], abs=0.003)
        expect(page.locator("#readout")).to_contain_text("1:1 pixels")
    expect(page.locator("#readout")).to_contain_text(" × ") if one != other else None
    page.keyboard.down("i")
    (scale, again) = scales(page)
    assert scale == again
    said = page.locator("#readout").text_content() or ""
    assert ("1:1 pixels" in said) == (abs(scale - 1) < 0.003)
    page.keyboard.up("i")


def test_a_smaller_candidate_of_the_same_shape_is_enlarged_and_each_true_scale_is_said(
    fill_sizes: Any, label_page: Any
) -> None:
    fill_sizes((128, 128), (256, 256), (512, 512))
    page = label_page(viewport={"width": 1600, "height": 900})
    page.keyboard.press("x")
    assert sorted(scales(page)) == pytest.approx([1, 2])
    small = "left" if shown(page)[0]["own"] == [256, 256] else "right"
    first, second = ("200 % pixels", "1:1 pixels") if small == "left" else ("1:1 pixels", "200 % pixels")
    expect(page.locator("#readout")).to_contain_text(f"left {first} · right {second}")
    page.keyboard.down("f")
    expect(page.locator("#readout")).to_contain_text(f"left {second} · right {first}")
    page.keyboard.up("f")
    page.keyboard.down("i")
    expect(page.locator("#readout")).to_have_text("400 % pixels")


def test_the_shared_case_is_imported_and_shown_unstretched(
    database: Database, data: Path, label_page: Any, tmp_path: Path
) -> None:
    with unpacked(data, find_case("import/aspect_512x512_against_512x640.zip")) as folder:
        import_folder(database, data, folder)
    with database.write() as session:
        make_pairs(session, load_settings(session))
    page = label_page()
    at_left, at_right = scales(page)
    assert at_left == pytest.approx(at_right, rel=0.003)
    expect(page.locator("#readout")).to_contain_text("512 × 640")
    page.screenshot(path=tmp_path / "aspect.png")


@pytest.mark.parametrize("after", [2, 1.5, 3])
def test_another_density_at_runtime_is_taken(page: Page, after: float) -> None:
    """As when the window moves to another screen: the size in CSS pixels stays, so that nothing else tells of it."""
    page.keyboard.press("x")
    assert scales(page) == pytest.approx([1, 1], abs=0.003)
    device = page.context.new_cdp_session(page)
    device.send(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1280, "height": 720, "deviceScaleFactor": after, "mobile": False},
    )
    page.wait_for_function("after => devicePixelRatio === after", arg=after)
    page.wait_for_timeout(500)
    assert scales(page) == pytest.approx([1, 1], abs=0.003)
    expect(page.locator("#readout")).to_have_text("1:1 pixels")


@pytest.fixture
def page(fill: Any, label_page: Any) -> Page:
    fill(3)
    opened: Page = label_page()
    return opened


def place(controls: Locator) -> list[dict[str, Any]]:
    """Scroll each control into view: its words and its label, its box there, and whether a click on it would hit it.

    All in one call of the browser, where one for each question of each control takes seconds.
    """
    placed: list[dict[str, Any]] = controls.evaluate_all("""(controls) => controls.map((control) => {
        control.scrollIntoViewIfNeeded();
        const { x, y, width, height } = control.getBoundingClientRect();
        const hit = document.elementFromPoint(x + width / 2, y + height / 2);
        const name = `${control.innerText} ${control.getAttribute("aria-label") ?? ""}`;
        return { name, x, width, height, hit: hit !== null && (hit === control || control.contains(hit)) };
    })""")
    assert placed
    assert all(control["width"] and control["height"] for control in placed)
    return placed


def check_in_reach(controls: list[dict[str, Any]], width: int) -> None:
    for control in controls:
        assert control["hit"], f"{control['name']} is covered or out of the window"
        assert control["x"] >= 0, control["name"]
        assert control["x"] + control["width"] <= width + 1, control["name"]
        assert min(control["width"], control["height"]) >= 20, control["name"]


@pytest.mark.parametrize(
    ("width", "height", "zoom"),
    [(320, 180, 4), (341, 192, 4), (480, 270, 4), (640, 360, 2), (427, 240, 3), (320, 256, 4), (853, 480, 1.5)],
)
def test_every_control_is_in_reach_when_zoomed(
    fill: Any, label_page: Any, width: int, height: int, zoom: float
) -> None:
    """A 1280 × 720 window at 400 % has 320 × 180 CSS pixels, each of four by four on the screen."""
    fill(3)
    page = label_page(viewport={"width": width, "height": height}, device_scale_factor=zoom)
    page.locator("#toggle-truth").click()
    page.get_by_role("button", name="Tie").click()
    page.locator("#reasons button").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    controls = place(page.locator("main button, header button, header summary, header a:not(details a, [hidden])"))
    wanted = {"Flicker", "1:1", "Zoom in", "Zoom out", "Fit", "Skip", "Undo", "History", "Help", "eyes", "Sign out"}
    names = " ".join(control["name"] for control in controls)
    assert {name for name in wanted if name not in names} == set()
    check_in_reach(controls, width)
    page.locator("header summary").click()
    check_in_reach(place(page.locator("header details a")), width)
    page.locator("header summary").click()
    left = page.locator("#left").bounding_box()
    assert left is not None
    assert min(left["width"], left["height"]) >= 100
    for opener, dialog in (("#open-help", "#help-dialog"), ("#open-history", "#history-dialog")):
        page.locator(opener).click()
        page.locator(f"{dialog}[open]").wait_for()  # history is first asked for
        for control in place(page.locator(f"{dialog} button")):
            assert control["x"] >= 0
            assert control["x"] + control["width"] <= width
        page.locator(f"{dialog} .row button").click()


LONG = "R" * 100


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (900, 700), (390, 844), (320, 256)])
def test_long_words_leave_everything_in_reach(fill: Any, label_page: Any, width: int, height: int) -> None:
    reasons = ["first", LONG, *(f"because of {number}" for number in range(7))]
    guidelines = f"{LONG * 3}\n\n| a | b |\n|---|---|\n| 1 | {LONG} |\n\n```\n{LONG}\n```"
    fill(3, reasons=reasons, skip_reasons=[LONG, "blurred"], guidelines=guidelines)
    page = label_page(viewport={"width": width, "height": height})
    answer(page, "ArrowLeft")
    chips = page.locator("#reasons button")
    expect(chips).to_have_count(9)
    for chip in (chips.first, chips.last, page.locator("#rail button").last):
        chip.scroll_into_view_if_needed()
        box = chip.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        chip.click()
    expect(page.locator("#reasons [aria-pressed=true]")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for opener in ("[data-action=skip]", "#open-help"):
        page.locator(opener).click()
        wide = page.locator("dialog[open]").evaluate("dialog => dialog.scrollWidth - dialog.clientWidth")
        assert wide <= 0, opener
        page.keyboard.press("Escape")


def test_the_wheel_scrolls_a_window_of_a_few_lines(fill: Any, label_page: Any) -> None:
    """There the images fill the window: nothing else is left to scroll by."""
    fill(3)
    page = label_page(viewport={"width": 320, "height": 180}, device_scale_factor=4)
    page.locator("#left").hover()
    before = page.locator("#readout").text_content()
    scrolled = page.evaluate("scrollY")
    page.mouse.wheel(0, 200)
    page.wait_for_function("before => scrollY > before", arg=scrolled)
    assert page.locator("#readout").text_content() == before
