"""The admin pages in a browser: from an empty database to an exported dataset, by clicks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select

from annotate.judgments import Answer, record_judgment
from annotate.people import add_person
from db.models import Choice, Judgment, Pair, Person, Role, Side
from db.session import Database

pytestmark = pytest.mark.browser
PERSONAL_LINK = re.compile(r"^http://127\.0\.0\.1:\d+/enter/[\w-]{30,}$")


@pytest.fixture
def admin(serve_process: Any, open_page: Any, database: Database) -> Page:
    """A signed-in admin's page on a server with an empty database."""
    server = serve_process()
    page: Page = open_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page.goto(server.url)
    page.get_by_label("Name").fill("ada")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Start labelling").click()
    page.goto(f"{server.url}/admin/")
    return page


def visit(page: Page, name: str) -> None:
    """Follow the link to another admin page."""
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True).first).to_be_visible(timeout=20_000)


def test_from_a_folder_to_a_dataset_by_clicks(
    admin: Page, restored_folder: Path, database: Database, data: Path
) -> None:
    expect(admin.get_by_text("Nothing imported yet")).to_be_visible(timeout=20_000)
    address = admin.url
    admin.goto(address.partition("/admin")[0])
    expect(admin.locator("#notice")).to_contain_text("nothing to judge yet", timeout=15_000)
    admin.goto(address)
    admin.get_by_label("Folder, manifest or zip on the server").fill(str(restored_folder))
    admin.get_by_role("button", name="Import", exact=True).click()
    expect(admin.get_by_text("4 sources added")).to_be_visible(timeout=30_000)
    admin.get_by_role("button", name="Make pairs").click()
    expect(admin.get_by_text("10 pairs added")).to_be_visible(timeout=30_000)

    admin.get_by_role("link", name="Label", exact=True).click()
    for _ in range(10):
        admin.locator("#stage[data-state=shown]").wait_for()
        admin.keyboard.press("ArrowLeft")
        admin.wait_for_timeout(150)
    expect(admin.locator("#notice")).to_contain_text("All done", timeout=15_000)
    with database.read() as session:
        made = len(session.scalars(select(Judgment)).all())
    assert made == 10

    admin.get_by_role("link", name="Admin").click()
    visit(admin, "Report")
    admin.get_by_role("button", name="Compute report").click()
    expect(admin.get_by_role("heading", name="Agreement", exact=True)).to_be_visible(timeout=60_000)
    assert admin.get_by_text("codeformer").count() > 0

    visit(admin, "Export")
    expect(admin.get_by_text("judged pairs")).to_be_visible(timeout=20_000)
    admin.get_by_role("button", name="Export", exact=True).click()
    expect(admin.get_by_text("labelled pairs (")).to_be_visible(timeout=60_000)
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


def test_answers_of_a_person_are_discarded_and_restored(admin: Page, database: Database, fill: Any) -> None:
    fill(1)
    with database.write() as session:
        ben, pairs = add_person(session, "ben"), session.scalars(select(Pair.id)).all()
        for number, pair_id in enumerate(pairs):
            uuid = f"00000000-0000-0000-0000-{number:012}"
            record_judgment(session, ben.id, Answer(uuid, pair_id, 0, Side.a, Choice.a, 7.3))

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


def test_settings_reach_the_labelling_page(admin: Page) -> None:
    visit(admin, "Project")
    question = admin.get_by_label("Question")
    expect(question).to_have_value("Which restoration is better?", timeout=20_000)
    question.fill("Who looks like themselves?")
    admin.get_by_label("Repeat share").fill("0.9")
    admin.get_by_role("button", name="Save").click()
    expect(admin.get_by_role("alert").first).to_contain_text("repeat_share")
    admin.get_by_label("Repeat share").fill("0.1")
    admin.get_by_role("button", name="Save").click()
    expect(admin.get_by_text("Saved.")).to_be_visible()
    admin.get_by_role("link", name="Label", exact=True).click()
    expect(admin.locator("#question")).to_have_text("Who looks like themselves?")
