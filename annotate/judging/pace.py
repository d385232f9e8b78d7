"""Time each answer by the server's own clock, and hold every person to a pace.

A page claims how long its pair was in view, and a script can claim anything. The server knows when it handed a pair
out, when the answer before it came in, and when the answer came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

SECONDS_AN_ANSWER = 0.5
"""Nobody looks at two faces and chooses in less, one answer after the other, for long."""
BURST_ANSWERS = 120
"""So many may come faster, and a request of more is taken whole: a page without a network keeps its answers."""
CHANGE_COST = 0.25
"""Of an answer: what taking one back, changing its reasons or sending it twice costs."""
MAX_WAIT_SECONDS = 600
"""Longer than a burst and a whole request after it: whoever had to wait for more met a clock that was set back."""


@dataclass
class Pace:
    """Holds a person to an answer in SECONDS_AN_ANSWER, BURST_ANSWERS ahead of it.

    `annotate.judging.presence` keeps it in the database.
    """

    answered_at: datetime | None = None
    """Time of this person's latest answer; None before the first, which is timed from its handing out alone."""
    paid_until: datetime | None = None
    """Up to when this person's answers took their time at SECONDS_AN_ANSWER each."""

    def wait(self, now: datetime) -> int:
        """Whole seconds until this person's answers are taken again; 0 where they are."""
        if self.paid_until is None:
            return 0
        ahead = (self.paid_until - now).total_seconds() - BURST_ANSWERS * SECONDS_AN_ANSWER
        return max(0, math.ceil(ahead)) if ahead <= MAX_WAIT_SECONDS else 0

    def start(self, now: datetime) -> Stopwatch:
        """The stopwatch of a request that came in now; `note` it once its answers are stored."""
        return Stopwatch(self, now)

    def note(self, stopwatch: Stopwatch, events: int) -> None:
        """Remember what a request brought: so many events, of which the stopwatch timed the answers."""
        now, cost = stopwatch.now, stopwatch.answers + CHANGE_COST * (events - stopwatch.answers)
        since = now if self.paid_until is None else max(self.paid_until, now)
        if (since - now).total_seconds() > BURST_ANSWERS * SECONDS_AN_ANSWER + MAX_WAIT_SECONDS:
            since = now
        self.paid_until = since + timedelta(seconds=cost * SECONDS_AN_ANSWER)
        if stopwatch.answers:
            self.answered_at = now


@dataclass
class Stopwatch:
    """Shares the time since the answer before among the answers of one request.

    Those that waited for a network come at once: each takes the seconds that it claims of what there is, and the last
    one the rest. So the server's seconds of a person's answers never add up to more than passed.
    """

    pace: Pace
    now: datetime
    """Time of the request."""
    answers: int = 0
    """Timed answers. One that only replaces another does not count, and keeps that one's time."""
    _since: datetime | None = None

    def take(self, handed_out_at: datetime | None, claimed_seconds: float, *, is_last: bool) -> float | None:
        """The seconds that this answer can have taken at most; None where the server saw no beginning.

        To be called where no other request of the same person is in between.
        """
        if not self.answers:
            self._since = self.pace.answered_at
        self.answers += 1
        starts = [moment for moment in (handed_out_at, self._since) if moment is not None]
        if not starts:
            return None
        there_was = max(0.0, (self.now - max(starts)).total_seconds())
        seconds = there_was if is_last else min(claimed_seconds, there_was)
        self._since = max(starts) + timedelta(seconds=seconds)
        return seconds
