"""Count what was judged and what is left: of all, and of one person."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import Judgment, Lease, Pair, Task, utc_now
from db.project import ProjectSettings

LONG_AGO = datetime.min.replace(tzinfo=UTC)


def count_judgments(session: Session, settings: ProjectSettings) -> tuple[int, int]:
    """(judgments made, judgments wanted) over all tasks, or pairs where the project asks about two, but gold ones."""
    of_pairs = settings.task_size == 2
    done, wanted = (
        (Pair.judgment_count, Pair.judgments_wanted) if of_pairs else (Task.judgment_count, Task.judgments_wanted)
    )
    is_gold = (Pair.gold_answer if of_pairs else Task.gold_ranking).is_not(None)
    sums = select(func.coalesce(func.sum(done), 0), func.coalesce(func.sum(wanted), 0)).where(~is_gold)
    made, asked_for = session.execute(sums).one()
    return int(made), int(asked_for)


def count_own(session: Session, person_id: int, since: datetime = LONG_AGO) -> int:
    """A person's live judgments of whatever kind, since a moment."""
    own = select(func.count()).where(Judgment.person_id == person_id, Judgment.superseded_at.is_(None))
    return session.scalar(own.where(Judgment.created_at >= since)) or 0


def own_progress(session: Session, person_id: int) -> dict[str, Any]:
    """A person's live judgments: all, since midnight UTC, and their pace."""
    midnight = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "done": count_own(session, person_id),
        "today": count_own(session, person_id, midnight),
        "per_hour": hourly_rate(session, person_id),
    }


def hourly_rate(session: Session, person_id: int | None) -> int:
    """Live judgments per hour over the last hour, of one person or of all; over the time since its first one."""
    now = utc_now()
    newest_first = select(Judgment.created_at).where(Judgment.superseded_at.is_(None)).order_by(Judgment.id.desc())
    if person_id is not None:
        newest_first = newest_first.where(Judgment.person_id == person_id)
    recent = [made for made in session.scalars(newest_first.limit(1000)) if now - made < timedelta(hours=1)]
    if not recent:
        return 0
    hours = max((now - recent[-1]).total_seconds(), 60.0) / 3600.0
    return round(len(recent) / hours)


def count_leases(session: Session) -> int:
    """Pairs and tasks that somebody looks at."""
    return session.scalar(select(func.count()).where(Lease.expires_at > utc_now())) or 0
