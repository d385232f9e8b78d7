"""Build the statements that find what a person sees next, the same for pairs and for tasks of three and more.

They are built once: building one takes longer than running it. Those that bring no rows of the session's own go to its
connection, since the session makes three times as much of each. Their parameters: asker (person id), besides (ids of
pairs, or of tasks), level, start (a shuffle_key), of (the id of a pair or task) and some of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.orm import aliased

from db.models import Choice, Judgment, Lease, Pair, Shortlist, Task

ASKER: BindParameter[int] = bindparam("asker")
BESIDES: BindParameter[list[int]] = bindparam("besides", expanding=True)
PAIRS: BindParameter[list[int]] = bindparam("pairs", expanding=True)
TASKS: BindParameter[list[int]] = bindparam("tasks", expanding=True)
Walk = tuple[Select[int], Select[int]]

OF_THESE = or_(Lease.pair_id.in_(PAIRS), Lease.task_id.in_(TASKS))
PROLONG = update(Lease).where(Lease.person_id == ASKER, OF_THESE).values(expires_at=bindparam("until"))
INSERT_LEASE = insert(Lease)
# A lease that its person is just prolonging is locked, and so passed over.
EXPIRED = select(Lease.id).where(Lease.expires_at < bindparam("now")).with_for_update(skip_locked=True)
DELETE_EXPIRED = delete(Lease).where(Lease.id.in_(EXPIRED))
GIVE_BACK = (
    update(Lease)
    .where(Lease.person_id == ASKER, OF_THESE, Lease.expires_at > bindparam("until"))
    .values(expires_at=bindparam("until"))
)
# Locked, so that none is deleted as expired by another person's request while it is prolonged. Before DELETE_EXPIRED:
# who waits here holds no lease of others yet, so that no two requests wait for each other.
ANY = aliased(Lease)
OWN_LEASES = (
    select(
        *(Lease.id, Lease.pair_id, Lease.task_id, Lease.expires_at),
        exists().where(ANY.expires_at < bindparam("now")).label("any_expired"),
    )
    .where(Lease.person_id == ASKER)
    .order_by(Lease.id)
    .with_for_update()
)
AWAITED = exists(select(Pair.id).where(Pair.awaited)) | exists(select(Task.id).where(Task.awaited))
LISTED = exists(select(Shortlist.place))
FIRST_LOOK = (Judgment.person_id == ASKER, Judgment.repeat_no == 0, Judgment.superseded_at.is_(None))
OWN_FIRST_LOOKS = select(Judgment.id).where(*FIRST_LOOK)
SIZE_OF_TASK = select(Task.size).where(Task.id == bindparam("of"))


@dataclass(frozen=True)
class Queue:
    """Statements of the queue of pairs, or of that of tasks."""

    column: str
    """Of a lease, a judgment or a shortlist's row: 'pair_id' or 'task_id'."""
    still_wanted: Select[int]
    still_queued: Select[int]
    is_reserved: Select[bool]
    awaited: Select[int]
    what_waits: Select[bool, bool, int | None]
    """Whether a training waits for answers, whether there are shortlists, and the first level."""
    next_level: Select[int | None]
    next_level_of: Select[int | None]
    listed: Select[int]
    with_others: Select[int]
    walk: Walk
    walk_of: Walk
    """Of the reserve, or of the others, as the parameter `reserved` says."""
    gold: Walk
    shown: CompoundSelect[Any]
    """Sides or places of a pair's or task's showings that count."""
    repeatable: Select[int, Any, Any]
    """Id, side or places, and how it was asked."""


def _build_queue(table: type[Pair] | type[Task]) -> Queue:
    """Build the statements for pairs or tasks."""
    column, of = ("pair_id", Pair.id) if table is Pair else ("task_id", Task.id)
    known: ColumnElement[Any] = Pair.gold_answer if table is Pair else Task.gold_ranking  # type: ignore[assignment]
    standing = "shown_left" if table is Pair else "places"
    of_judgment, of_lease = getattr(Judgment, column), getattr(Lease, column)
    not_seen = (
        ~exists().where(of_judgment == of, Judgment.person_id == ASKER, Judgment.superseded_at.is_(None)),
        ~exists().where(of_lease == of, Lease.person_id == ASKER),
        of.not_in(BESIDES),
    )
    slots_held = select(func.count(Lease.id)).where(of_lease == of, Lease.repeat_no == 0).scalar_subquery()
    wanted = (*not_seen, table.judgments_wanted - table.judgment_count - slots_held > 0)
    queued = (table.queue_level == bindparam("level"), *wanted)
    of_reserve = table.reserved == bindparam("reserved")
    next_level = select(func.min(table.queue_level)).where(table.queue_level > bindparam("above"))

    def walk(*conditions: ColumnElement[bool]) -> Walk:
        """Statements for the first that fits: at or after `start` in the shuffled order, and before it."""
        first = select(of).where(*conditions).order_by(table.shuffle_key).limit(1)
        # PostgreSQL: one that another request is judging or leasing is passed over rather than waited for.
        first = first.with_for_update(skip_locked=True, key_share=True, of=table)
        return first.where(table.shuffle_key >= bindparam("start")), first.where(table.shuffle_key < bindparam("start"))

    theirs, repeat = aliased(Lease), aliased(Judgment)
    of_theirs, of_repeat = getattr(theirs, column), getattr(repeat, column)
    return Queue(
        column=column,
        still_wanted=select(of).where(of == bindparam("of"), table.queue_level.is_not(None), *wanted),
        still_queued=select(of).where(of == bindparam("of"), *queued),
        is_reserved=select(table.reserved).where(of == bindparam("of")),
        awaited=(
            select(of)
            .where(table.awaited, table.queue_level.is_not(None), *wanted)
            .order_by(table.shuffle_key)
            .limit(1)
            .with_for_update(skip_locked=True, key_share=True, of=table)
        ),
        what_waits=select(AWAITED, LISTED, select(func.min(table.queue_level)).scalar_subquery()),
        next_level=next_level,
        next_level_of=next_level.where(of_reserve),
        listed=(
            select(of)
            .join(Shortlist, getattr(Shortlist, column) == of)
            .where(Shortlist.picked == bindparam("picked"), table.queue_level.is_not(None), *wanted)
            .order_by(Shortlist.place)
            .limit(1)
            .with_for_update(skip_locked=True, key_share=True, of=table)
        ),
        # From the leases, which are few: from the pairs it would walk over all that the asker has judged.
        with_others=(
            select(func.count(of_theirs.distinct()))
            .join(table, of == of_theirs)
            .where(theirs.person_id != ASKER, theirs.repeat_no == 0, table.queue_level.is_not(None), *not_seen[:2])
        ),
        walk=walk(*queued),
        walk_of=walk(of_reserve, *queued),
        # One that wants no judgments at all was set aside: its images are equal (annotate.ingest.equal_pixels). The
        # answers of a pair are named, so that the index gives its gold pairs in the shuffled order.
        gold=walk(
            known.in_(["a", "b", "tie"]) if table is Pair else known.is_not(None), table.judgments_wanted > 0, *not_seen
        ),
        shown=union_all(
            select(getattr(Judgment, standing)).where(
                of_judgment == bindparam("of"), Judgment.repeat_no == 0, Judgment.superseded_at.is_(None)
            ),
            select(getattr(Lease, standing)).where(of_lease == bindparam("of"), Lease.repeat_no == 0),
        ),
        repeatable=(
            select(of, getattr(Judgment, standing), Judgment.asked)
            .join(Judgment, of_judgment == of)
            .where(
                *FIRST_LOOK,
                Judgment.choice.is_distinct_from(Choice.skip),
                known.is_(None),
                table.judgments_wanted > 0,
                of_judgment.not_in(BESIDES),
                Judgment.id.between(bindparam("lower"), bindparam("upper")),
                ~exists().where(
                    of_repeat == of_judgment,
                    repeat.person_id == ASKER,
                    repeat.repeat_no == 1,
                    repeat.superseded_at.is_(None),
                ),
                ~exists().where(of_lease == of_judgment, Lease.person_id == ASKER),
            )
            .order_by(Judgment.id)
            .limit(1)
        ),
    )


PAIR_QUEUE = _build_queue(Pair)
TASK_QUEUE = _build_queue(Task)
