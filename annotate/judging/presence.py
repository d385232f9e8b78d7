"""Keep what the server knows of a person at work: their pace, and the pages that they have open.

In the database, a small row per person, for the requests of one person may be answered by several processes. Read and
written in the transaction of each request of a labelling page, so that what is undone there is undone here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from annotate.judging.pace import Pace
from annotate.judging.people import lock_person
from db.models import Person, Presence
from db.project import STORED, ProjectSettings, read_settings

# Built once, for they run with every answer.
FIND = (
    select(Presence.person_id, Presence.answered_at, Presence.paid_until, Presence.pages, STORED.scalar_subquery())
    .select_from(Person)
    .outerjoin(Presence, Presence.person_id == Person.id)
    .where(Person.id == bindparam("person_id"))
)
INSERT = insert(Presence)
UPDATE = update(Presence).where(Presence.person_id == bindparam("of"))


@dataclass
class AtWork:
    """A person's row of the table, as a request changes it."""

    person_id: int
    pace: Pace = field(default_factory=Pace)
    pages: dict[str, Any] = field(default_factory=dict)
    """As `ui.label.open_pages` keeps them."""
    is_new: bool = True


def load_presence(session: Session, person_id: int) -> tuple[AtWork, ProjectSettings]:
    """What is known of a person, whose other requests wait until this session ends; and the project's settings."""
    lock_person(session, person_id)
    known_id, answered_at, paid_until, pages, stored = (
        session.connection().execute(FIND, {"person_id": person_id}).one()
    )
    settings = read_settings(stored)
    if known_id is None:
        return AtWork(person_id), settings
    return AtWork(person_id, Pace(answered_at, paid_until), pages, is_new=False), settings


def store_presence(session: Session, known: AtWork, now: datetime) -> None:
    """Write it back, and that the person was heard of now; in the session that loaded it."""
    values: dict[str, Any] = {
        "heard_at": now,
        "answered_at": known.pace.answered_at,
        "paid_until": known.pace.paid_until,
        "pages": known.pages,
    }
    if known.is_new:
        session.connection().execute(INSERT, {"person_id": known.person_id, **values})
    else:
        session.connection().execute(UPDATE, {"of": known.person_id, **values})


def count_active(session: Session, since: datetime) -> int:
    """People whose pages were heard of since a moment."""
    return session.scalar(select(func.count()).where(Presence.heard_at >= since)) or 0
