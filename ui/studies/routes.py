"""Serve a participant's own page, `/study`, and the steps of their way that it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from annotate.studies.settings import load_study_settings
from annotate.studies.way import (
    ScreenSeen,
    agree,
    answer_training,
    begin_task,
    find_participant,
    leave,
    note_activity,
    pass_screen,
    time_out,
)
from db.errors import UserError
from db.studies import Participant, Stage
from ui.context import Context
from ui.gate.access import find_visitor, visitor_of
from ui.label.showings import Showings
from ui.plain_pages import send_page
from ui.studies.arrival import tell, tell_signed_in
from ui.studies.views import find_training_place, name_side, side_shown_left, view_participant


class Consent(BaseModel):
    """Whether a participant agrees to what they read."""

    model_config = ConfigDict(extra="forbid")

    agreed: Annotated[bool, Field(strict=True)]


class Screen(ScreenSeen):
    """What the page saw of its window."""

    give_up: bool = False
    """The participant cannot do better."""


class TrainingAnswer(BaseModel):
    """An answer to a training pair, as it stood on the screen."""

    model_config = ConfigDict(extra="forbid")

    place: int
    answer: Literal["left", "right", "tie"]


def study_routes(context: Context, showings: Showings) -> APIRouter:
    """GET /study and /api/study, and the POSTs below that."""
    routes = APIRouter()

    @contextmanager
    def open_way(request: Request) -> Iterator[tuple[Session, Participant]]:
        """The visitor's own way, to be changed; one whose time is over has ended.

        Raises:
            HTTPException: 404, they take part in no study; 409, the step is not theirs to do now.
        """
        with context.database.write() as session:
            visitor = visitor_of(request)
            found = find_participant(session, visitor.person_id, lock=True) if visitor.participant else None
            if found is None:
                raise HTTPException(404, "You take part in no study; open one by its link.")
            time_out(session, found)
            try:
                yield session, found
            except UserError as error:
                raise HTTPException(409, str(error)) from error

    def view(session: Session, request: Request, participant: Participant) -> dict[str, Any]:
        return view_participant(session, showings, visitor_of(request), participant)

    @routes.get("/study")
    def page(request: Request) -> Response:
        visitor = find_visitor(context, request)
        if visitor is None:
            words = (
                "This browser is in no study. If you came by a study's link just now, the browser blocks cookies for "
                "this address: allow them, or use another browser, and open the link again."
            )
            return tell(context, 401, "Open the study by its link", words)
        if not visitor.participant:
            return tell_signed_in(context, visitor)
        answer = send_page("study/study.html", context.root_path)
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer

    @routes.get("/api/study")
    def state(request: Request) -> dict[str, Any]:
        with open_way(request) as (session, participant):
            return view(session, request, participant)

    @routes.post("/api/study/consent")
    def consent(request: Request, body: Consent) -> dict[str, Any]:
        with open_way(request) as (session, participant):
            agree(session, participant, agreed=body.agreed)
            return view(session, request, participant)

    @routes.post("/api/study/screen")
    def screen(request: Request, body: Screen) -> dict[str, Any]:
        with open_way(request) as (session, participant):
            seen = ScreenSeen.model_validate(body.model_dump(exclude={"give_up"}))
            faults = pass_screen(session, participant, seen, give_up=body.give_up)
            return {**view(session, request, participant), "faults": faults}

    @routes.post("/api/study/training")
    def training(request: Request, body: TrainingAnswer) -> dict[str, Any]:
        with open_way(request) as (session, participant):
            if body.place != find_training_place(session, participant, load_study_settings(participant.study)):
                raise UserError("This pair is not the next one of the practice; reload the page.")
            left = side_shown_left(participant, body.place)
            right, known, explanation = answer_training(session, participant, body.place, name_side(body.answer, left))
            return {"right": right, "answer": name_side(known, left), "explanation": explanation}

    @routes.post("/api/study/begin")
    def begin(request: Request) -> dict[str, Any]:
        with open_way(request) as (session, participant):
            if find_training_place(session, participant, load_study_settings(participant.study)) is not None:
                raise UserError("The practice comes first; reload the page.")
            if participant.stage not in (Stage.qualification, Stage.task):
                begin_task(session, participant)
            return view(session, request, participant)

    @routes.post("/api/study/leave")
    def stop(request: Request) -> dict[str, Any]:
        with open_way(request) as (session, participant):
            if participant.stage is not Stage.ended:
                note_activity(participant, load_study_settings(participant.study))
                leave(session, participant)
            return view(session, request, participant)

    return routes
