"""Which labelling pages a person has open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from ui.label.open_pages import CLOSING_SECONDS, LIVE_SECONDS, MAX_PAGES, OpenPages

START = datetime(2026, 1, 1, tzinfo=UTC)


def after(kept: dict[str, Any], seconds: float) -> OpenPages:
    return OpenPages(kept, START + timedelta(seconds=seconds))


def test_a_request_that_comes_after_its_pages_farewell_opens_nothing() -> None:
    kept: dict[str, Any] = {}
    after(kept, 0).note("one", [("pair", 3)])
    after(kept, 1).note("two", [("pair", 4), ("task", 3)])
    assert after(kept, 2).shown_elsewhere("one") == {("pair", 4), ("task", 3)}, "the task of that number is no pair"
    after(kept, 3).close("two")
    after(kept, 4).note("two", [("pair", 5)])  # it was on its way
    assert after(kept, 4).count_others("one") == 0
    late = 3 + CLOSING_SECONDS + 1  # the page came back: a browser keeps pages for its button Back
    after(kept, late).note("two", [("pair", 7)])
    assert after(kept, late).shown_elsewhere("one") == {("pair", 7)}
    assert after(kept, late + LIVE_SECONDS + 1).count_others("one") == 0
    assert not kept, "what does not count is not kept"


def test_a_clock_that_was_set_back_and_a_script_of_many_pages_leave_little_behind() -> None:
    kept: dict[str, Any] = {}
    after(kept, 0).note("one", [("pair", 3)])
    assert after(kept, -LIVE_SECONDS - 1).count_others("two") == 0
    for number in range(3 * MAX_PAGES):
        after(kept, number / 10).note(f"page {number}", [])
    assert len(kept) == MAX_PAGES
    assert f"page {3 * MAX_PAGES - 1}" in kept
