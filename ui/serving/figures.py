"""Read from the database how a project's judging stands, for /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from annotate.judging.presence import count_active
from annotate.judging.progress import count_judgments, count_leases
from db.models import utc_now
from db.project import load_settings
from ui.context import Context

ACTIVE_FOR = timedelta(seconds=150)
"""A labelling page that somebody looks at asks every minute; see `ui.label.open_pages`."""
QUEUE_SECONDS = 30.0
"""The queue is counted so often at most, for that walks over the whole table."""

Figures = dict[str, tuple[str, float]]


def make_look(context: Context) -> Callable[[], Figures]:
    """What reads the figures, and keeps the one that takes long for a while."""
    counted_at, done, wanted = -QUEUE_SECONDS, 0, 0

    def look() -> Figures:
        nonlocal counted_at, done, wanted
        with context.database.read() as session:
            if time.monotonic() - counted_at >= QUEUE_SECONDS:
                done, wanted = count_judgments(session, load_settings(session))
                counted_at = time.monotonic()
            return {
                "judgments_made": ("Judgments that stand, but those of gold ones and repeats.", done),
                "judgments_left": ("Judgments that are wanted still.", max(0, wanted - done)),
                "leases": ("Pairs and tasks that people hold.", count_leases(session)),
                "people_active": (
                    "People whose labelling page is open.",
                    count_active(session, utc_now() - ACTIVE_FOR),
                ),
            }

    return look
