"""The Studies page, live: who stands where, stop and go, forgetting; on a desktop and on a phone."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from annotate.studies.create import create_study, set_state
from annotate.studies.settings import read_study_settings
from annotate.studies.way import leave
from db.models import Pair
from db.studies import PanelEntry, Study, StudyState
from tests.browser.conftest import enter
from tests.making import fetch
from tests.unit.annotate.studies.conftest import come

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SETTINGS = {"panel": "prolific", "endings": {"done": {"code": "DONE1"}}, "answers": 2, "places": 5, "pay_cents": 10}


def test_an_admin_watches_stops_and_forgets(database, fill, serve, open_page):
    fill(2)
    with database.write() as session:
        assert session.scalars(select(Pair.id)).all()
        study = create_study(session, "faces", read_study_settings(SETTINGS))
        set_state(session, study, StudyState.open)
        come(session, study, "5f0c0ffee0c0ffee0c0ffee1")
    server, page = serve(admin_pages=True), open_page()
    enter(page, server, "ada", "/admin/studies")
    flow = page.get_by_role("list", name="Who stands where")
    expect(flow.get_by_role("listitem").filter(has_text="at work")).to_contain_text("1")
    with database.write() as session:
        leave(session, come(session, session.scalars(select(Study)).one(), "5f0c0ffee0c0ffee0c0ffee2"))
    expect(flow.get_by_role("listitem").filter(has_text="arrived")).to_contain_text("2")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Open again")).to_be_visible()
    assert fetch(database, select(Study.state)) == [StudyState.paused]
    page.get_by_text("Participants (2)").click()
    delete = page.get_by_role("row", name="#1").get_by_role("button", name="Delete id")
    delete.click()
    page.get_by_role("button", name="Really?").click()
    expect(page.get_by_role("status").filter(has_text="1 panel id deleted")).to_be_visible()
    expect(page.get_by_role("row", name="#1")).to_contain_text("none")
    assert len(fetch(database, select(PanelEntry.participant_id))) == 1
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
