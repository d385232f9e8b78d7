"""Forget who participants are to their panel: delete the panel's ids, and see that no copy is left in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, ColumnElement, String, Table, cast, delete, func, or_, select, text
from sqlalchemy.orm import Session

from annotate.judging.discard import discard_answers
from annotate.studies.create import note_event
from annotate.studies.money import number_of
from annotate.studies.way import end
from db.errors import UserError
from db.models import Base
from db.session import Database
from db.studies import Outcome, PanelEntry, Participant, Payment, Stage, Study

CERTAIN = 8
"""Characters from which an id is looked for inside other texts; a shorter one as a whole value, or it is everywhere."""
BATCH = 50
ASKED = "Asked to be forgotten."


@dataclass(frozen=True)
class Forgotten:
    """What was deleted."""

    entries: int
    ids: list[str]
    """The panel's ids that are gone, to be looked for; not to be shown or stored."""
    discarded: int = 0
    """Answers taken out."""
    unpaid_cents: int = 0
    """Of lines of the ledger that are still open: whom they are owed, the panel alone can tell now."""


def forget_participant(session: Session, participant: Participant, *, answers: bool = False) -> Forgotten:
    """Delete who a participant is to the panel, in every study that they came to by the same id, and end their way.

    Args:
        answers: discard their answers too; else these stay and count.
    """
    own = session.get(PanelEntry, participant.id)
    entries: Sequence[PanelEntry] = []
    if own is not None:
        same = select(PanelEntry).where(PanelEntry.panel_person == own.panel_person).order_by(PanelEntry.participant_id)
        entries = session.scalars(same).all()
    everywhere = {participant.id: participant}
    everywhere |= {entry.participant_id: session.get_one(Participant, entry.participant_id) for entry in entries}
    ids = _delete(session, entries)
    discarded = 0
    for one in everywhere.values():
        end(session, one, Outcome.returned, ASKED)
        if answers:
            discarded += discard_answers(session, one.person.name).judgments
        note_event(session, one.study_id, one.id, "forgotten", discarded=answers)
    return Forgotten(len(entries), ids, discarded, _sum_unpaid(session, list(everywhere)))


def forget_all(session: Session, study: Study) -> Forgotten:
    """Delete who all participants of a study are to the panel; every answer, event and payment stays.

    Raises:
        UserError: some are still on their way, or not all is paid: both need the ids.
    """
    people = session.scalars(select(Participant).where(Participant.study_id == study.id)).all()
    under_way = [number_of(one) for one in people if one.stage is not Stage.ended]
    if under_way:
        raise UserError(
            f"{len(under_way)} participants are still on their way, the first of them {under_way[0]}. Pause the study "
            "and wait, or forget them one by one."
        )
    if unpaid := _sum_unpaid(session, [one.id for one in people]):
        raise UserError(
            f"{unpaid / 100:,.2f} of the ledger are not marked paid, and without the ids nobody can be paid by the "
            f"panel. Pay them, then: study pay {study.name!r} --paid."
        )
    entries = session.scalars(select(PanelEntry).where(PanelEntry.study_id == study.id)).all()
    ids = _delete(session, entries)
    note_event(session, study.id, None, "forgotten", entries=len(entries))
    return Forgotten(len(entries), ids)


def _delete(session: Session, entries: Sequence[PanelEntry]) -> list[str]:
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("PRAGMA secure_delete = ON"))  # zeros in the file where the rows were
    ids = sorted({value for entry in entries for value in (entry.panel_person, entry.submission) if value})
    numbers = [entry.participant_id for entry in entries]
    for start in range(0, len(numbers), 500):
        session.execute(delete(PanelEntry).where(PanelEntry.participant_id.in_(numbers[start : start + 500])))
    session.flush()
    return ids


def _sum_unpaid(session: Session, participants: list[int]) -> int:
    total = 0
    for start in range(0, len(participants), 500):
        of_them = Payment.participant_id.in_(participants[start : start + 500])
        total += session.scalar(select(func.sum(Payment.cents)).where(of_them, Payment.paid_at.is_(None))) or 0
    return total


def find_left(database: Database, ids: Sequence[str]) -> list[str]:
    """The places, as 'table.column', where one of these ids still stands; to be called after the commit.

    On SQLite what the write-ahead log has of them is moved into the file, where it is overwritten.
    """
    if database.engine.dialect.name == "sqlite":
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    with database.read() as session:
        return [
            f"{table.name}.{column.name}"
            for table, column in _list_columns()
            if any(session.scalar(select(1).where(holds).limit(1)) is not None for holds in _hold_any(column, ids))
        ]


def _list_columns() -> Iterator[tuple[Table, ColumnElement[str]]]:
    """Every column that can hold a text, JSON too."""
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, String | JSON):
                yield table, column


def _hold_any(column: ColumnElement[str], ids: Sequence[str]) -> Iterator[ColumnElement[bool]]:
    value = cast(column, String)
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        yield or_(
            *(value.contains(one, autoescape=True) for one in some if len(one) >= CERTAIN),
            *(value.contains(f'"{one}"', autoescape=True) for one in some if len(one) < CERTAIN),
            value.in_(some),
        )


def describe_forgotten(forgotten: Forgotten, left: list[str]) -> str:
    """What was deleted, in sentences without an id.

    Args:
        left: places where ids still stand.
    """
    if not forgotten.entries:
        said = "No panel's id was stored (any more)."
    else:
        ids = "id" if forgotten.entries == 1 else "ids"
        said = f"{forgotten.entries:,} panel {ids} deleted, and looked for in every table of the database: "
        said += f"still in {', '.join(left)}." if left else "none is left."
    if forgotten.discarded:
        said += f" {forgotten.discarded:,} answers discarded."
    if forgotten.unpaid_cents:
        said += f" {forgotten.unpaid_cents / 100:,.2f} of the ledger were still open: pay them at the panel itself."
    return said
