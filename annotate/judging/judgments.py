"""Record judgments and take them back.

A judgment is appended, and superseded when it is taken back or answered anew; it is never changed or deleted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Select, Update, bindparam, delete, insert, literal, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.dml import ReturningDelete

from annotate.judging.people import lock_person
from db.errors import UserError
from db.models import (
    Asked,
    Choice,
    Judgment,
    Lease,
    Pair,
    Picked,
    Question,
    Side,
    Task,
    utc_now,
)
from db.project import ProjectSettings, load_settings, store_question
from db.records import insert_row
from metrics.rankings import LETTERS, REST, read_ranking

VIEW_MODES = ("fit", "zoom", "1:1", "input", "truth", "flicker")
"""As the labelling page looks at a pair, see static/label/viewer.js."""
UUID_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# Built once, for they run with every answer and take longer to build than to run. They ask for ids, by the session's
# connection: the session makes three times as much of a statement, and mostly there is no row to be loaded.
SAME = aliased(Judgment)
OF_UUID = select(SAME.id).where(SAME.uuid == bindparam("uuid"))
ID_OF_KEY = select(Question.id).where(Question.key == bindparam("key"))
INSERT_JUDGMENT = insert(Judgment)


@dataclass(frozen=True)
class _Statements:
    """What an answer asks of the database, about a pair or about a task."""

    what: str
    find: Select[int, int, int | None, int | None, int | None]
    """Id and size; ids of the person's answer that stands, of the one of this uuid, and of the question of this key."""
    count: Update
    delete_lease: ReturningDelete[datetime | None]


def _build_statements(table: type[Pair] | type[Task]) -> _Statements:
    of, size = (Pair.id, literal(2)) if table is Pair else (Task.id, Task.size)
    column = "pair_id" if table is Pair else "task_id"
    of_judgment, of_lease = getattr(Judgment, column), getattr(Lease, column)
    return _Statements(
        what=column.removesuffix("_id"),
        find=(
            select(of, size, Judgment.id, OF_UUID.scalar_subquery(), ID_OF_KEY.scalar_subquery())
            .outerjoin(
                Judgment,
                (of_judgment == of)
                & (Judgment.person_id == bindparam("person_id"))
                & (Judgment.repeat_no == bindparam("repeat_no"))
                & Judgment.superseded_at.is_(None),
            )
            .where(of == bindparam("of"))
        ),
        count=(
            update(table).where(of == bindparam("of")).values(judgment_count=table.judgment_count + bindparam("change"))
        ),
        delete_lease=(
            delete(Lease)
            .where(
                of_lease == bindparam("of"),
                Lease.person_id == bindparam("person_id"),
                Lease.repeat_no == bindparam("repeat_no"),
            )
            .returning(Lease.leased_at)
        ),
    )


OF_PAIR = _build_statements(Pair)
OF_TASK = _build_statements(Task)


@dataclass(frozen=True)
class Answer:
    """Answer of a person to the pair or task that was on their screen."""

    uuid: str
    pair_id: int | None
    """None for a task, which has no left side either."""
    repeat_no: int
    shown_left: Side | None
    choice: Choice | None
    """To a pair; of a task `Choice.skip`, or None where the answer is a ranking."""
    seconds: float
    skip_reason: str | None = None
    reasons: list[str] = field(default_factory=list)
    view_mode: str = "fit"
    picked: Picked = Picked.random
    replaces: str | None = None
    """uuid of the own answer to this showing whose place this one takes, such as the same one with a reason more."""
    question: str | None = None
    """Key of the question's version that the page showed; None for the present one. One that nobody knows here, such
    as '' of a page from before there were versions, is stored as not recorded."""
    task_id: int | None = None
    ranking: str | None = None
    """Of a task's letters (`metrics.rankings`)."""
    places: str | None = None
    """The task's letters in the order in which they stood on the screen."""
    asked: Asked = Asked.pair


Timer = Callable[[datetime | None, float], float | None]
"""Told when the pair was handed out (None: its lease is gone) and the seconds that are claimed; gives the server's."""


Counter = Callable[[Judgment, int], None]
"""Told of a judgment that counts now (+1), or does not any more (−1)."""


def record_judgment(
    session: Session, person_id: int, answer: Answer, timer: Timer | None = None, counter: Counter | None = None
) -> Judgment:
    """Append a judgment and release the person's lease on the pair or task.

    The same uuid again returns the row that is there. A second answer of this person to the same showing supersedes
    the first where it says that it replaces it, and is refused elsewhere: it comes from another tab or device, whose
    answer would be overwritten unseen.

    Args:
        timer: asked for the server's seconds of a new answer; one that replaces another keeps that one's.
        counter: told of an answer that replaces no other.
    Raises:
        UserError: the uuid is another judgment's or no UUID, there is no such pair or task, a skip has no reason, the
            seconds are not a time, the ranking is none of the task's candidates or says another thing than was asked,
            or another answer stands than the one to be replaced.
    """
    lock_person(session, person_id)
    run = session.connection()
    about = OF_PAIR if answer.task_id is None else OF_TASK
    showing = {"person_id": person_id, "repeat_no": answer.repeat_no}
    of = {"of": answer.pair_id if answer.task_id is None else answer.task_id}
    found = run.execute(about.find, {**showing, **of, "uuid": answer.uuid, "key": answer.question}).one_or_none()
    if found is not None and found[3] is not None:
        known = session.get_one(Judgment, found[3])
        if (known.person_id, known.pair_id, known.task_id) != (person_id, answer.pair_id, answer.task_id):
            raise UserError(f"Judgment {answer.uuid} already belongs to another pair or person; use a new UUID.")
        return known
    _check_answer(answer)
    if found is None:
        raise UserError(f"There is no {about.what} {of['of']}; reload the page.")
    if answer.task_id is not None:
        _check_ranking(answer, found[1])
    standing = None if found[2] is None else session.get_one(Judgment, found[2])
    _check_replaced(answer, standing)
    if standing is not None:
        standing.superseded_at = utc_now()
        session.flush()
    leased_at = run.scalar(about.delete_lease, {**showing, **of})
    judgment = Judgment(
        **showing,
        uuid=answer.uuid,
        pair_id=answer.pair_id,
        task_id=answer.task_id,
        question_id=store_question(session, load_settings(session)).id if answer.question is None else found[4],
        choice=answer.choice,
        skip_reason=answer.skip_reason,
        reasons=answer.reasons,
        shown_left=answer.shown_left,
        ranking=answer.ranking,
        places=answer.places,
        asked=answer.asked,
        picked=answer.picked,
        view_mode=answer.view_mode,
        seconds=answer.seconds,
        server_seconds=_server_seconds(answer, leased_at, standing, timer),
    )
    insert_row(session, INSERT_JUDGMENT, judgment)
    if standing is None:
        _count(session, judgment, +1, counter)
    return judgment


def _server_seconds(
    answer: Answer, leased_at: datetime | None, standing: Judgment | None, timer: Timer | None
) -> float | None:
    if standing is not None:
        return standing.server_seconds
    return None if timer is None else timer(leased_at, answer.seconds)


def check_offered(session: Session, answer: Answer, settings: ProjectSettings) -> None:
    """Refuse what no page of this project offers: the answer did not come from one.

    Reasons of earlier versions of the question are known too: an open page may be of one. A skip's reason is free text.

    Raises:
        UserError: an unknown reason or view mode, or the same reason twice.
    """
    unknown = set(answer.reasons) - set(settings.reasons)
    if unknown:
        unknown -= {reason for reasons in session.scalars(select(Question.reasons)) for reason in reasons}
    if unknown or len(set(answer.reasons)) < len(answer.reasons):
        known = ", ".join(map(repr, settings.reasons)) or "none"
        raise UserError(f"The reasons {answer.reasons!r} are not among those of this project, each once: {known}.")
    if not set(answer.view_mode.split("+")) <= set(VIEW_MODES):
        raise UserError(f"The view mode {answer.view_mode!r} is none of {', '.join(VIEW_MODES)}, joined by '+'.")


def _check_answer(answer: Answer) -> None:
    if not UUID_FORM.fullmatch(answer.uuid):
        raise UserError(f"{answer.uuid!r} is not a UUID; the page makes one for each judgment.")
    if not 0 <= answer.seconds < math.inf:
        raise UserError(f"`seconds` must be a finite number of at least 0, not {answer.seconds}.")
    _check_kind(answer)
    if answer.choice is Choice.skip and not (answer.skip_reason or "").strip():
        raise UserError("A skip needs a reason; choose one or write it.")
    if answer.choice is not Choice.skip and answer.skip_reason is not None:
        given = answer.choice or f"ranking {answer.ranking}"
        raise UserError(f"The reason {answer.skip_reason!r} belongs to a skip, not to the choice {given}.")


def _check_kind(answer: Answer) -> None:
    """Refuse an answer that is of a pair and of a task, of neither, or lacks what its kind says.

    Raises:
        UserError: as said.
    """
    if (answer.pair_id is None) is (answer.task_id is None):
        raise UserError(f"An answer is to a pair or to a task, not to pair {answer.pair_id}, task {answer.task_id}.")
    of_pair = (answer.shown_left, answer.choice)
    if answer.pair_id is not None:
        if None in of_pair or answer.ranking or answer.places or answer.asked is not Asked.pair:
            raise UserError("An answer to a pair has a choice and a left side, and no ranking or places.")
    elif answer.shown_left is not None or answer.places is None or answer.asked is Asked.pair:
        raise UserError("An answer to a task says its places and how it was asked, and has no left side.")
    elif answer.choice not in (None, Choice.skip) or (answer.choice is None) is (answer.ranking is None):
        raise UserError("An answer to a task is a ranking or a skip.")


def _check_ranking(answer: Answer, size: int) -> None:
    """Refuse places or a ranking that are not of a task of this size, and one that says what was not asked.

    Raises:
        UserError: as said.
    """
    if sorted(answer.places or "") != list(LETTERS[:size]):
        raise UserError(f"The places {answer.places!r} are not the letters {LETTERS[:size]}, each once.")
    if answer.ranking is None:
        return
    try:
        read_ranking(answer.ranking, size)
    except ValueError as error:
        raise UserError(f"The answer cannot be read: {error}.") from error
    if not answers_what_was_asked(answer.ranking, answer.asked):
        raise UserError(f"The answer {answer.ranking!r} says another thing than was asked ({answer.asked.value}).")


def answers_what_was_asked(ranking: str, asked: Asked) -> bool:
    """Whether a ranking is one that this way of asking lets a person give; all tied is one of each.

    Best: the best above the others, who are not told apart. Best and worst: these two, and the others between them.
    More than one may be best together, or worst. A last one that is not named stands as a letter, not as the rest.
    """
    if ">" not in ranking or asked is Asked.order:
        return True
    first, *middle, last = ranking.split(">")
    if asked is Asked.best:
        return not middle and first != REST and len(last) == 1
    return REST not in (first, last) and len(middle) <= 1 and all(len(part) == 1 for part in middle)


def _check_replaced(answer: Answer, standing: Judgment | None) -> None:
    if answer.replaces == (None if standing is None else standing.uuid):
        return
    if answer.replaces is None:
        raise UserError(
            "You have answered this already, in another tab or window or on another device; that answer stands. "
            "To change it, take it back in the history and answer again."
        )
    raise UserError("The answer to replace is gone: it was taken back or changed in another tab or window.")


def _count(session: Session, judgment: Judgment, change: int, counter: Counter | None) -> None:
    """Keep the pair's or task's number of judgments; repeats do not count."""
    if counter is not None:
        counter(judgment, change)
    if judgment.repeat_no == 0:
        about, of = (OF_PAIR, judgment.pair_id) if judgment.task_id is None else (OF_TASK, judgment.task_id)
        session.connection().execute(about.count, {"of": of, "change": change})


def undo_judgment(
    session: Session, person_id: int, uuid: str, settings: ProjectSettings, counter: Counter | None = None
) -> Lease | None:
    """Supersede a judgment and lease its pair or task to the person again, the same sides and places.

    Returns:
        the lease; None where the judgment had been superseded before (undoing twice is undoing once).
    Raises:
        UserError: this person has no judgment of that uuid.
    """
    lock_person(session, person_id)
    judgment = session.scalar(select(Judgment).where(Judgment.uuid == uuid, Judgment.person_id == person_id))
    if judgment is None:
        raise UserError(f"You have no judgment {uuid} to undo.")
    if judgment.superseded_at is not None:
        return None
    judgment.superseded_at = utc_now()
    _count(session, judgment, -1, counter)
    of_it = Lease.pair_id == judgment.pair_id if judgment.task_id is None else Lease.task_id == judgment.task_id
    session.execute(delete(Lease).where(of_it, Lease.person_id == person_id))
    lease = Lease(
        pair_id=judgment.pair_id,
        task_id=judgment.task_id,
        person_id=person_id,
        repeat_no=judgment.repeat_no,
        shown_left=judgment.shown_left,
        places=judgment.places,
        asked=judgment.asked,
        picked=judgment.picked,
        leased_at=None,  # the page has had it since before its answer
        expires_at=utc_now() + timedelta(seconds=settings.lease_seconds),
    )
    session.add(lease)
    session.flush()
    return lease
