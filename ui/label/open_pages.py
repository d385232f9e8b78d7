"""Track the labelling pages that each person has open, and the pairs and tasks that each shows.

Kept in memory, as it only keeps two tabs of one person from showing the same; after a restart of the server every
open page is known again with its next request. What is stored never hangs on it: `annotate.judging.judgments` refuses a
second answer by itself.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ui.label.showings import Shown

LIVE_SECONDS = 150.0
"""A page that is looked at asks every minute; one that has been silent for longer keeps nothing from the others."""
CLOSING_SECONDS = 5.0
"""For so long after a page's farewell, requests that it sent before may come; they do not open it again."""


@dataclass(frozen=True)
class _OpenPage:
    heard_at: float
    """Seconds of time.monotonic()."""
    shown: frozenset[Shown]


class OpenPages:
    """The pages that are open, by person; a page without an id is not counted."""

    def __init__(self) -> None:
        self._pages: defaultdict[int, dict[str, _OpenPage]] = defaultdict(dict)
        self._closed: dict[tuple[int, str], float] = {}
        self._turn = threading.Lock()

    def _others(self, person_id: int, page: str | None) -> list[_OpenPage]:
        earliest = time.monotonic() - LIVE_SECONDS
        with self._turn:
            live = {key: known for key, known in self._pages[person_id].items() if known.heard_at >= earliest}
            self._pages[person_id] = live
            return [known for key, known in live.items() if key != page]

    def shown_elsewhere(self, person_id: int, page: str | None) -> frozenset[Shown]:
        """Pairs and tasks that this person's other pages show."""
        return frozenset().union(*(known.shown for known in self._others(person_id, page)))

    def count_others(self, person_id: int, page: str | None) -> int:
        """Count the other pages that this person has open."""
        return len(self._others(person_id, page))

    def note(self, person_id: int, page: str | None, shown: Iterable[Shown]) -> None:
        """Remember that a page is open and what it shows, unless it has just said that it goes."""
        if page is not None:
            now = time.monotonic()
            with self._turn:
                self._closed = {key: at for key, at in self._closed.items() if at > now - CLOSING_SECONDS}
                if (person_id, page) in self._closed:
                    return
                self._pages[person_id][page] = _OpenPage(now, frozenset(shown))

    def close(self, person_id: int, page: str | None) -> None:
        """Forget a page that says that it goes."""
        if page is not None:
            with self._turn:
                self._pages[person_id].pop(page, None)
                self._closed[person_id, page] = time.monotonic()
