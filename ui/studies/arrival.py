"""Let people in by the link of a study, and lead them to a page whose address says nothing of them.

The panel's id of a person stands in the address that they come by. It is read once here; what follows is at `/study`,
so that no later request, no history entry of ours and no Referer holds it.
"""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from annotate.studies.create import find_by_link
from annotate.studies.panels import Arrived, read_arrival
from annotate.studies.settings import load_study_settings
from annotate.studies.way import arrive, describe_closed, find_participant
from db.errors import UserError
from db.studies import Participant, Study, StudyState
from ui.context import Context
from ui.gate.access import PARTICIPANT, Visitor, find_visitor
from ui.gate.sign_in import begin_session
from ui.plain_pages import send_page
from ui.studies.endings import view_turned_away

PREVIEW = re.compile(r"bot\b|externalhit|preview|whatsapp|skypeuri", re.IGNORECASE)
"""In the User-Agent of what looks at a link before a person does; a browser says by Sec-Fetch-Dest that it is one."""


def arrival_routes(context: Context) -> APIRouter:
    """GET /study/{link}."""
    routes = APIRouter()

    @routes.get("/study/{link}")
    def come(request: Request, link: str) -> Response:
        if not _is_opened_by_a_person(request):
            return tell(context, 403, "Open this address in a browser", "It is a study's, and lets in one person.")
        visitor = find_visitor(context, request)
        if visitor is not None and not visitor.participant:
            return tell_signed_in(context, visitor)
        with context.database.write() as session:
            study = find_by_link(session, link)
            if study is None:
                return tell(context, 404, "There is no such study", "Please check the address, or ask who sent it.")
            found = _let_in(context, session, study, request, visitor)
            if isinstance(found, Response):
                return found
            answer = begin_session(request, found.person, context.root_path, f"{context.root_path}/study")
        request.session[PARTICIPANT] = True
        answer.headers.update({"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"})
        return answer

    return routes


def _is_opened_by_a_person(request: Request) -> bool:
    """Whether a browser goes to this address; previews of a link, and pages fetched ahead, take nobody's place."""
    if "prefetch" in (request.headers.get("sec-purpose", "") + request.headers.get("purpose", "")):
        return False
    goes_to = request.headers.get("sec-fetch-dest")
    return goes_to == "document" or (goes_to is None and not PREVIEW.search(request.headers.get("user-agent", "")))


def _let_in(
    context: Context, session: Session, study: Study, request: Request, visitor: Visitor | None
) -> Participant | Response:
    """The participant who comes, or the page that says why nobody does."""
    settings = load_study_settings(study)
    known = None if visitor is None else find_participant(session, visitor.person_id)
    arrived = Arrived()
    try:
        arrived = read_arrival(settings.panel, request.query_params)
        return arrive(session, study, arrived, known=known)
    except UserError as error:
        if arrived == Arrived() and known is not None and known.study_id == study.id:
            return known  # came before from the panel, and now by the bare address
        if study.state is StudyState.closed:
            return tell(context, 200, **{**view_turned_away(settings, arrived), "words": describe_closed(study)})
        refused = study.state is StudyState.open
        return tell(context, 400 if refused else 200, settings.title, str(error))


def tell(
    context: Context,
    status: int,
    title: str,
    words: str,
    code: str = "",
    address: str = "",
    back_to: str = "",
    **_: object,
) -> Response:
    """A page of a few words, with a code or the way back where there is one."""
    texts = {"title": title, "words": words, "code": code, "address": address, "back_to": back_to}
    answer = send_page("study/told.html", context.root_path, status, "no-store", **texts)
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


def tell_signed_in(context: Context, visitor: Visitor) -> Response:
    """To somebody whose own session would be lost, or who is nobody's participant."""
    words = (
        f"You are signed in here as “{visitor.name}”, who takes part in no study. To see a study as its participants "
        "do, open its link in a private window."
    )
    return tell(context, 200, "This is for a study's participants", words)
