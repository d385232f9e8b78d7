"""Serve what the Studies page shows and does. Admins only; see `ui.gate.access`."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.studies.create import set_state
from annotate.studies.export import export_tables, write_rows
from annotate.studies.forget import describe_forgotten, find_left, forget_participant
from annotate.studies.money import find_by_number, find_owed, note_owed, write_bonuses, write_ledger
from annotate.studies.panels import PANELS, make_link
from annotate.studies.settings import load_study_settings
from annotate.studies.watch import describe_study
from db.errors import UserError
from db.studies import Study, StudyState
from ui.address import public_address
from ui.context import Context
from ui.plain_pages import send_json

Download = Literal["ledger.csv", "bonuses.csv", "export.zip"]


class State(BaseModel):
    """What a study is to become."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["open", "paused", "closed"]


class Forget(BaseModel):
    """Whose id at the panel is to be deleted."""

    model_config = ConfigDict(extra="forbid")

    number: int = Field(ge=1)
    answers: bool = False
    """Whether their answers are discarded too."""


def study_admin_routes(context: Context) -> APIRouter:
    """/api/studies: the list, one study, its state, its downloads, the deletion of a participant's id."""
    routes = APIRouter(prefix="/api/studies")

    @routes.get("")
    def studies(request: Request) -> Response:
        with context.database.read() as session:
            rows = session.scalars(select(Study).order_by(Study.id.desc()))
            return send_json(
                request, {"studies": [{"id": one.id, "name": one.name, "state": one.state.value} for one in rows]}
            )

    @routes.get("/{study_id}")
    def one(request: Request, study_id: int) -> Response:
        note_all_owed(context, study_id)
        with context.database.read() as session:
            study = find_study(session, study_id)
            described = describe_study(session, study)
            panel = load_study_settings(study).panel
            address = f"{public_address(request)}{context.root_path}"
            described |= {"link": make_link(panel, address, study.link), "panel": PANELS[panel].title}
            return send_json(request, described)

    @routes.post("/{study_id}/state")
    def state(study_id: int, asked: State) -> dict[str, Any]:
        with refusing(), context.database.write() as session:
            study = find_study(session, study_id)
            set_state(session, study, StudyState(asked.state))
            return {"state": study.state.value}

    @routes.post("/{study_id}/forget")
    def forget(study_id: int, asked: Forget) -> dict[str, str]:
        with refusing(), context.database.write() as session:
            participant = find_by_number(session, find_study(session, study_id), asked.number)
            forgotten = forget_participant(session, participant, answers=asked.answers)
        return {"said": describe_forgotten(forgotten, find_left(context.database, forgotten.ids))}

    @routes.get("/{study_id}/files/{file}")
    def download(study_id: int, file: Download) -> Response:
        note_all_owed(context, study_id)
        with context.database.read() as session:
            content = write_download(session, find_study(session, study_id), file)
        kind = "application/zip" if file.endswith(".zip") else "text/csv; charset=utf-8"
        headers = {"Content-Disposition": f'attachment; filename="{file}"', "Cache-Control": "no-store"}
        return Response(content, media_type=kind, headers=headers)

    return routes


def find_study(session: Session, study_id: int) -> Study:
    """The study of that number; an answer 404 where there is none."""
    study = session.get(Study, study_id)
    if study is None:
        raise HTTPException(404, f"There is no study {study_id}.")
    return study


@contextmanager
def refusing() -> Iterator[None]:
    """Answer 409 with the reason where something is refused."""
    try:
        yield
    except UserError as error:
        raise HTTPException(409, str(error)) from error


def note_all_owed(context: Context, study_id: int) -> None:
    """Bring the ledger up to date, writing only where something is lacking: a page asks every few seconds."""
    with context.database.read() as session:
        lacking = bool(find_owed(session, find_study(session, study_id)))
    if lacking:
        with context.database.write() as session:
            note_owed(session, find_study(session, study_id))


def write_download(session: Session, study: Study, file: Download) -> bytes:
    """The bytes of a download; of the three only the bonus list has the panel's ids."""
    if file == "ledger.csv":
        return write_ledger(session, study).encode()
    if file == "bonuses.csv":
        return write_bonuses(session, study)[0].encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, rows in export_tables(session, study).items():
            archive.writestr(f"{name}.csv", write_rows(name, rows))
    return packed.getvalue()
