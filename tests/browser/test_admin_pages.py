"""The admin pages in a browser: from an empty database to an exported dataset, by clicks."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select

from annotate.judging.pairs import lease_pairs, make_pairs
from annotate.judging.people import add_person
from annotate.judging.simulate import get_annotator
from db.models import Judgment, Pair, Person, Role, Run, RunState, Source, Split
from db.project import load_settings
from db.records import add_source
from db.session import Database
from runs.store import insert_run
from tests.browser.conftest import enter
from tests.making import add_face, add_photos, fetch, judge, make_project
from tests.watching import LIMIT_SECONDS
from ui.filling import DEMO_PEOPLE
from ui.navigation import FIRST, GROUPS, LABEL, address_of

pytestmark = pytest.mark.browser
PERSONAL_LINK = re.compile(r"^http://127\.0\.0\.1:\d+/enter/[\w-]{30,}$")


@pytest.fixture
def admin(serve: Any, open_page: Any) -> Page:
    """A signed-in admin's page on a server with an empty database."""
    page: Page = open_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    enter(page, serve(admin_pages=True), "ada", "/admin/data")
    return page


def follow(page: Page, name: str) -> None:
    """Press a link of the header; on the labelling page it is in a folded menu."""
    links = page.get_by_role("navigation", name="Pages")
    page.locator("#fr-pages").wait_for()
    if not links.is_visible():
        page.locator("header summary").click()
    links.get_by_role("link", name=name, exact=True).click()


def visit(page: Page, name: str) -> None:
    """Follow the link to another admin page."""
    follow(page, name)
    expect(page.get_by_role("heading", name=name, exact=True).first).to_be_visible()


def test_what_changes_on_overview_is_said_and_takes_no_focus(admin: Page, database: Database) -> None:
    visit(admin, "Overview")
    said, action = admin.locator("#fr-overview [role=status]"), admin.locator(".ov-do")
    expect(said).to_contain_text("Import photos")
    said.evaluate("(one) => { one.dataset.same = 'yes'; }")
    other = admin.locator("[data-stage=restored] a")
    other.focus()
    with database.write() as session:
        add_source(session, "mine", Split.train)
    expect(said).to_contain_text("Restore the photos")
    expect(said).to_have_attribute("data-same", "yes")  # a new element's text would not be read out
    expect(other).to_be_focused()
    action.focus()
    with database.write() as session:
        add_source(session, "another", Split.train)
    expect(admin.locator("[data-stage=photos] b")).to_have_text("2")
    expect(action).to_be_focused()


def test_from_a_folder_to_a_dataset_by_clicks(
    admin: Page, restored_folder: Path, database: Database, data: Path
) -> None:
    expect(admin.get_by_text("Nothing imported yet")).to_be_visible()
    address = admin.url
    admin.goto(address.partition("/admin")[0])
    expect(admin.locator("#notice")).to_contain_text("nothing to judge yet")
    admin.goto(address)
    admin.get_by_label("Folder, manifest or zip on the server").fill(str(restored_folder))
    admin.get_by_role("button", name="Import", exact=True).click()
    expect(admin.get_by_text("4 sources added")).to_be_visible()
    admin.get_by_role("button", name="Make pairs").click()
    expect(admin.get_by_text("10 pairs added")).to_be_visible()

    follow(admin, "Label")
    for _ in range(10):
        admin.locator("#stage[data-state=shown]").wait_for()
        admin.keyboard.press("ArrowLeft")
        admin.wait_for_timeout(150)
    expect(admin.locator("#notice")).to_contain_text("All done")
    made = len(fetch(database, select(Judgment)))
    assert made == 10

    visit(admin, "Report")
    admin.get_by_role("button", name="Compute report").click()
    expect(admin.get_by_role("heading", name="Agreement", exact=True)).to_be_visible()
    assert admin.get_by_text("codeformer").count() > 0

    visit(admin, "Export")
    expect(admin.get_by_text("judged pairs")).to_be_visible()
    admin.get_by_role("button", name="Export", exact=True).click()
    expect(admin.get_by_text("labelled pairs (")).to_be_visible()
    with admin.expect_download() as download:
        admin.get_by_text("Download as a zip").click()
    assert download.value.suggested_filename.endswith(".zip")
    assert next((data / "runs").glob("*/dataset/pairs.jsonl")).read_text().count("\n") == 10


def test_people_are_added_and_disabled(admin: Page, database: Database) -> None:
    visit(admin, "People")
    admin.get_by_label("Name").fill("ben")
    admin.get_by_role("button", name="Add person").click()
    expect(admin.get_by_role("cell", name="ben")).to_be_visible()
    admin.get_by_role("button", name="Make a new personal link").click()
    expect(admin.locator("textarea[disabled], input[disabled]")).to_have_value(PERSONAL_LINK)
    admin.get_by_role("button", name="Disable").click()
    expect(admin.get_by_role("cell", name="disabled")).to_be_visible()
    with database.read() as session:
        ben = session.scalars(select(Person).where(Person.name == "ben")).one()
        assert ben.role is Role.annotator
        assert ben.disabled_at is not None
    admin.get_by_role("button", name="Enable").click()
    expect(admin.get_by_text("ben enabled.")).to_be_visible()
    expect(admin.get_by_role("cell", name="disabled")).to_be_hidden()
    admin.get_by_label("Name").fill("ada")
    admin.get_by_role("button", name="Disable").click()
    expect(admin.get_by_text("is the only admin")).to_be_visible()


def test_answers_of_a_person_are_discarded_and_restored(
    admin: Page, database: Database, data: Path, tmp_path: Path
) -> None:
    with database.write() as session:
        make_project(session, data, tmp_path, 1)
        ben, pairs = add_person(session, "ben"), session.scalars(select(Pair.id)).all()
        for pair_id in pairs:
            judge(session, ben.id, pair_id, seconds=7.3)

    def count() -> int:
        with database.read() as session:
            return session.scalar(select(func.count()).where(Judgment.superseded_at.is_(None))) or 0

    visit(admin, "People")
    admin.get_by_label("Name").fill("ben")
    admin.get_by_role("button", name="Disable").click()
    expect(admin.get_by_text(f"ben disabled. Their answers still count, {len(pairs)} in all")).to_be_visible()
    admin.get_by_role("button", name="Discard answers").click()
    expect(admin.get_by_text(f"{len(pairs)} answers of ben discarded")).to_be_visible()
    assert count() == 0
    admin.get_by_role("button", name="Restore answers").click()
    expect(admin.get_by_text(f"{len(pairs)} answers of ben restored")).to_be_visible()
    assert count() == len(pairs)


def test_settings_reach_the_labelling_page_and_a_filled_demo_is_cleared(
    admin: Page, database: Database, data: Path
) -> None:
    visit(admin, "Project")
    clear_a_demo(admin, database, data)
    question = admin.get_by_label("Question")
    expect(question).to_have_value("Which restoration is better?")
    question.fill("Who looks like themselves?")
    admin.get_by_label("Repeat share").fill("0.9")
    admin.get_by_role("button", name="Save").click()
    expect(admin.get_by_role("alert").first).to_contain_text("repeat_share")
    admin.get_by_label("Repeat share").fill("0.1")
    admin.get_by_role("button", name="Save").click()
    expect(admin.get_by_text("Saved.")).to_be_visible()
    follow(admin, "Label")
    expect(admin.locator("#question")).to_have_text("Who looks like themselves?")


def clear_a_demo(admin: Page, database: Database, data: Path) -> None:
    """The demo's part of the page is there in a demo alone, and removes what filled it once it was asked twice."""
    fill, remove = (
        admin.get_by_role("button", name=name)
        for name in ("Fill the demo: simulated answers and a small round", "Remove simulated answers and their runs")
    )
    expect(admin.get_by_label("Question")).to_have_value("Which restoration is better?")
    expect(fill).to_be_hidden()
    with database.write() as session:
        source = add_source(session, "portrait", Split.train, group=DEMO_PEOPLE[0])
    admin.reload()
    expect(fill).to_be_visible()
    expect(remove).to_be_hidden()
    with database.write() as session:
        person_id = get_annotator(session).id
        for kind in ("annotate simulate", "reward train"):
            insert_run(session, data, kind, {}, person_id=person_id, state=RunState.finished)
    admin.reload()
    expect(admin.get_by_text("Simulated: 0 answers; 2 runs have ended.")).to_be_visible()
    expect(fill).to_be_hidden()
    remove.click()
    admin.get_by_role("button", name="Keep them").click()
    expect(admin.get_by_role("button", name="Yes, remove them for good")).to_be_hidden()
    assert len(fetch(database, select(Run))) == 2
    remove.click()
    admin.get_by_role("button", name="Yes, remove them for good").click()
    expect(admin.get_by_text("2 runs and what they made are gone")).to_be_visible()
    expect(fill).to_be_visible()
    assert fetch(database, select(Run)) == []
    with database.write() as session:
        session.delete(session.get_one(Source, source.id))


def test_every_page_bears_its_content_policy(serve: Any, fill: Any, open_page: Any) -> None:
    fill(2)
    server, page = serve(admin_pages=True), open_page()
    enter(page, server, "ada")
    refused: list[str] = []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    for name in (FIRST, *(name for names in GROUPS.values() for name in names if name != LABEL)):
        answer = page.goto(server.url + address_of(name))
        assert answer is not None
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'self'" in policy
        expect(page.get_by_role("heading", name=name, exact=True).first).to_be_visible()
        page.wait_for_timeout(500)  # Gradio never stops asking; what a page loads comes at once
        # System fonts: what is named is there, nothing is loaded from elsewhere (open_page sees to that).
        assert page.evaluate("[...document.fonts].filter((font) => font.status === 'error').length") == 0
    assert [url for url in refused if not url.endswith(("/manifest.json", "/favicon.ico"))] == []


def test_no_page_of_another_site_frames_or_reads_the_admin_pages(serve: Any, fill: Any, open_page: Any) -> None:
    fill(1)
    server, page = serve(admin_pages=True), open_page()
    enter(page, server, "ada")
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    for path in ("/admin/", "/admin/config", "/admin/gradio_api/info", "/admin/theme.css"):
        for origin in ("https://evil.example", "null", "http://localhost:1", server.url):
            for method in ("GET", "OPTIONS"):
                asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                answer = httpx.request(method, server.url + path, headers=asked, cookies=cookies, timeout=LIMIT_SECONDS)
                named = [name for name in answer.headers if name.startswith("access-control-")]
                assert named == [], (path, origin, method)


def test_long_names_leave_the_numbers_in_view_and_small_windows_are_filled(
    admin: Page, database: Database, data: Path, tmp_path: Path
) -> None:
    """A window at 400 % zoom has 320 CSS pixels: tables scroll by themselves, the page never sideways."""
    long = "codeformer-" + "x" * 180
    with database.write() as session:
        for number in range(2):
            images = add_photos(session, data, tmp_path, range(3 * number, 3 * number + 3))
            add_face(session, f"{'y' * 180}{number}", (long, "صورة"), *images)
        make_pairs(session, load_settings(session))
        person = add_person(session, "n" * 64, Role.annotator)
        (lease,) = lease_pairs(session, person.id, load_settings(session), random.Random(0), count=1, holding=[])
        judge(session, person.id, lease.pair_id, shown_left=lease.shown_left)
    address = admin.url.removesuffix("data")
    cells = {"data": long, "people": "n" * 64, "report": "n" * 64}
    for path, name in cells.items():
        admin.set_viewport_size({"width": 1280, "height": 720})
        admin.goto(address + path)
        number = admin.get_by_role("row").filter(has_text=name).locator("td.n").first
        expect(number).to_be_visible()
        overflow = (
            "cell => cell.closest('table').parentElement.scrollWidth - cell.closest('table').parentElement.clientWidth"
        )
        assert number.evaluate(overflow) <= 0, path
        admin.set_viewport_size({"width": 320, "height": 256})
        width = "() => document.querySelector('.gradio-container').getBoundingClientRect().width"
        assert admin.evaluate(width) <= 320, path
