"""Track the labelling pages that a person has open, and the pairs and tasks that each shows.

It only keeps two tabs of one person from showing the same: what is stored never hangs on it, as
`annotate.judging.judgments` refuses a second answer by itself. Kept with `annotate.judging.presence`, for the tabs may
be served by two processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ui.label.showings import Shown

LIVE_SECONDS = 150.0
"""A page that is looked at asks every minute; one that has been silent for longer keeps nothing from the others."""
CLOSING_SECONDS = 5.0
"""For so long after a page's farewell, requests that it sent before may come; they do not open it again."""
MAX_PAGES = 20
"""Of one person; of more the one that was silent the longest is forgotten, so that no script makes the row long."""


class OpenPages:
    """A person's pages as they are kept in the database; a page without an id is not counted.

    Args:
        kept: by the page's id {"at": seconds since 1970, "shown": [[kind, id], …]}; "shown" is None after its farewell.
            Changed in place.
        now: time of the request.
    """

    def __init__(self, kept: dict[str, Any], now: datetime) -> None:
        self._kept, self._now = kept, now.timestamp()
        for page in [page for page, known in kept.items() if not self._counts(known)]:
            del kept[page]

    def _counts(self, known: dict[str, Any]) -> bool:
        age = abs(self._now - known["at"])  # abs: the clock may be set back
        return bool(age <= (CLOSING_SECONDS if known["shown"] is None else LIVE_SECONDS))

    def _others(self, page: str | None) -> list[list[Shown]]:
        return [
            [(kind, number) for kind, number in known["shown"]]
            for key, known in self._kept.items()
            if key != page and known["shown"] is not None
        ]

    def shown_elsewhere(self, page: str | None) -> frozenset[Shown]:
        """Pairs and tasks that this person's other pages show."""
        return frozenset(shown for other in self._others(page) for shown in other)

    def count_others(self, page: str | None) -> int:
        """Count the other pages that this person has open."""
        return len(self._others(page))

    def note(self, page: str | None, shown: Iterable[Shown]) -> None:
        """Remember that a page is open and what it shows, unless it has just said that it goes."""
        if page is not None and self._kept.get(page, {"shown": ()})["shown"] is not None:
            self._keep(page, [list(one) for one in shown])

    def close(self, page: str | None) -> None:
        """Forget a page that says that it goes."""
        if page is not None:
            self._keep(page, None)

    def _keep(self, page: str, shown: list[list[Any]] | None) -> None:
        self._kept[page] = {"at": self._now, "shown": shown}
        while len(self._kept) > MAX_PAGES:
            del self._kept[min(self._kept, key=lambda key: self._kept[key]["at"])]
