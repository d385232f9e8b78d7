"""Write what a study brought: its participants, events and answers by number, and the results with and without some."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from annotate.studies.money import list_participants, number_of, write_csv
from annotate.studies.watch import list_standings
from dataset.files import write_jsonl
from db.models import Candidate, Choice, Judgment, Method, Pair, Source
from db.studies import PanelEntry, Participant, Study, StudyEvent, StudyPair
from metrics.accuracy import compute_wilson
from runs.files import write_folder_whole

Table = list[dict[str, Any]]
COLUMNS: dict[str, tuple[str, ...]] = {
    "participants": (
        *("number", "stage", "outcome", "reason", "arrived_at", "consent_at", "consent_hash", "ended_at"),
        *("active_seconds", "answers", "gold_right", "gold_wrong", "repeats", "repeats_same", "left", "sided"),
        *("warned", "flagged", "screen"),
    ),
    "events": ("time", "participant", "kind", "detail"),
    "answers": (
        *("uuid", "participant", "kind", "photo", "split", "pair", "method_a", "method_b", "choice", "gold_answer"),
        *("repeat_no", "shown_left", "reasons", "skip_reason", "seconds", "server_seconds", "time"),
        *("superseded", "discarded", "flagged"),
    ),
    "results": ("people", "method_a", "method_b", "a", "b", "tie", "share_a", "low", "high"),
}
"""Table -> its columns in order; `participants` has `panel_person` and `submission` too where that is asked for."""
PANEL_COLUMNS = ("panel_person", "submission")
EVERYBODY, WITHOUT = "all", "without the warned and stopped"


def export_tables(session: Session, study: Study, *, panel_ids: bool = False) -> dict[str, Table]:
    """Table -> its rows.

    Args:
        panel_ids: add the panel's ids to the participants, which are nowhere else.
    """
    answers = list_answers(session, study)
    return {
        "participants": list_people(session, study, panel_ids=panel_ids),
        "events": list_events(session, study),
        "answers": answers,
        "results": list_results(answers),
    }


def list_people(session: Session, study: Study, *, panel_ids: bool) -> Table:
    """A row a participant."""
    entries = {
        entry.participant_id: entry
        for entry in session.scalars(select(PanelEntry).where(PanelEntry.study_id == study.id))
    }
    rows = []
    participants = list_participants(session, study)
    for participant, standing in zip(participants, list_standings(session, study), strict=True):
        own = {name: getattr(participant, name) for name in ("consent_at", "consent_hash", "ended_at", "screen")}
        row = {**asdict(standing), **own, "arrived_at": participant.created_at, "flagged": standing.flagged}
        row = {name: row[name] for name in COLUMNS["participants"]}
        if panel_ids:
            entry = entries.get(participant.id)
            row |= {name: getattr(entry, name, None) for name in PANEL_COLUMNS}
        rows.append(_plain(row))
    return rows


def list_events(session: Session, study: Study) -> Table:
    """A row an event, in the order in which they happened; those of the study itself have no participant."""
    numbers = {participant.id: number_of(participant) for participant in list_participants(session, study)}
    events = session.scalars(select(StudyEvent).where(StudyEvent.study_id == study.id).order_by(StudyEvent.id))
    return [
        _plain(
            {
                "time": event.created_at,
                "participant": None if event.participant_id is None else numbers[event.participant_id],
                "kind": event.kind,
                "detail": event.detail,
            }
        )
        for event in events
    ]


def list_answers(session: Session, study: Study) -> Table:
    """A row an answer of the study's people, the superseded and discarded too."""
    numbers = {one.person_id: number_of(one) for one in list_participants(session, study)}
    flagged = {one.number: one.flagged for one in list_standings(session, study)}
    of_study = set(session.scalars(select(StudyPair.pair_id).where(StudyPair.study_id == study.id)))
    return [
        _describe_answer(row, numbers[row[0].person_id], flagged[numbers[row[0].person_id]], of_study)
        for row in session.execute(_select_answers(study))
    ]


def _select_answers(study: Study) -> Any:
    a, b, method_a, method_b = aliased(Candidate), aliased(Candidate), aliased(Method), aliased(Method)
    return (
        select(Judgment, Pair, Source, method_a.name, method_b.name)
        .join(Participant, Participant.person_id == Judgment.person_id)
        .join(Pair, Pair.id == Judgment.pair_id)
        .join(Source, Source.id == Pair.source_id)
        .join(a, a.id == Pair.a_id)
        .join(b, b.id == Pair.b_id)
        .join(method_a, method_a.id == a.method_id)
        .join(method_b, method_b.id == b.method_id)
        .where(Participant.study_id == study.id)
        .order_by(Judgment.id)
    )


def _describe_answer(row: Sequence[Any], number: int, flagged: bool, of_study: set[int]) -> dict[str, Any]:
    judgment, pair, source, method_a, method_b = row
    kept = ("uuid", "choice", "repeat_no", "shown_left", "reasons", "skip_reason", "seconds", "server_seconds")
    described = {name: getattr(judgment, name) for name in kept} | {
        "participant": number,
        "kind": "repeat" if judgment.repeat_no else "study" if pair.id in of_study else "gold",
        "photo": source.key,
        "split": source.split,
        "pair": pair.key,
        "method_a": method_a,
        "method_b": method_b,
        "gold_answer": pair.gold_answer,
        "time": judgment.created_at,
        "superseded": judgment.superseded_at is not None,
        "discarded": judgment.discarded_at is not None,
        "flagged": flagged,
    }
    return _plain({name: described[name] for name in COLUMNS["answers"]})


def list_results(answers: Table) -> Table:
    """How often each method was preferred to each other, by all and without those who were warned or stopped.

    Standing answers to the study's own pairs, each once; a skip says nothing. The share and its 95 % Wilson interval
    leave the ties out.
    """
    rows: Table = []
    for people in (EVERYBODY, WITHOUT):
        votes: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: {"a": 0, "b": 0, "tie": 0})
        for answer in answers:
            counts = answer["kind"] == "study" and not answer["superseded"] and answer["choice"] != Choice.skip.value
            if not counts or (people == WITHOUT and answer["flagged"]):
                continue
            methods = answer["method_a"], answer["method_b"]
            choice = answer["choice"]
            if methods[0] > methods[1]:
                methods, choice = methods[::-1], {"a": "b", "b": "a"}.get(choice, choice)
            votes[methods][choice] += 1
        for (first, second), found in sorted(votes.items()):
            decided = found["a"] + found["b"]
            low, high = compute_wilson(found["a"], decided) if decided else (None, None)
            share = found["a"] / decided if decided else None
            named = {"people": people, "method_a": first, "method_b": second}
            rows.append({**named, **found, "share_a": share, "low": low, "high": high})
    return rows


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times in ISO 8601, enums by their values."""
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else getattr(value, "value", value)
        for name, value in row.items()
    }


def write_rows(name: str, rows: Table, *, panel_ids: bool = False) -> str:
    """One of the tables as CSV; lists and details in it as JSON, truth as 1 or 0."""
    columns: Sequence[str] = COLUMNS[name] + (PANEL_COLUMNS if panel_ids and name == "participants" else ())
    return write_csv(columns, ([_cell(row[column]) for column in columns] for row in rows))


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def write_folder(out: Path, tables: dict[str, Table], *, jsonl: bool, panel_ids: bool) -> list[Path]:
    """Write each table as a file of a new folder, all or none; gives the files.

    Raises:
        UserError: the folder cannot be written.
    """
    suffix = "jsonl" if jsonl else "csv"
    with write_folder_whole(out) as folder:
        for name, rows in tables.items():
            path = folder / f"{name}.{suffix}"
            if jsonl:
                write_jsonl(path, rows)
            else:
                path.write_text(write_rows(name, rows, panel_ids=panel_ids), encoding="utf-8", newline="\n")
    return [out / f"{name}.{suffix}" for name in tables]
