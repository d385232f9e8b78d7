"""Which labelling pages a person has open."""

from __future__ import annotations

import pytest

import ui.label.open_pages
from ui.label.open_pages import CLOSING_SECONDS, LIVE_SECONDS, OpenPages


def test_a_request_that_comes_after_its_pages_farewell_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(ui.label.open_pages.time, "monotonic", lambda: now[0])
    pages = OpenPages()
    pages.note(1, "one", [("pair", 3)])
    pages.note(1, "two", [("pair", 4), ("task", 3)])
    assert pages.shown_elsewhere(1, "one") == {("pair", 4), ("task", 3)}, "the task of that number is not the pair"
    pages.close(1, "two")
    pages.note(1, "two", [("pair", 5)])  # it was on its way
    assert pages.count_others(1, "one") == 0
    pages.note(2, "two", [("pair", 6)])
    assert pages.count_others(2, "three") == 1
    now[0] += CLOSING_SECONDS + 1  # the page came back: a browser keeps pages for its button Back
    pages.note(1, "two", [("pair", 7)])
    assert pages.shown_elsewhere(1, "one") == {("pair", 7)}
    now[0] += LIVE_SECONDS + 1
    assert pages.count_others(1, "one") == 0
