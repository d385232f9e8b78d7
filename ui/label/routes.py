"""Serve the labelling page and its routes.

The page is plain HTML and JavaScript (static/label/): it keeps the next pairs and tasks decoded ahead and sends
judgments while the next one is already shown. An annotator's browser therefore never loads Gradio, nor reaches any of
its routes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from annotate.judging.pace import Pace
from annotate.judging.pairs import Draw, count_with_others, lease_pairs, release_leases
from annotate.judging.presence import AtWork, load_presence, store_presence
from annotate.judging.progress import LONG_AGO, count_judgments, count_own, hourly_rate, own_progress
from db.errors import UserError
from db.models import Lease, Person, Role, utc_now
from db.project import OF_KEY, ProjectSettings, load_settings, question_key
from runs.store import VERSION
from ui.context import Context
from ui.gate.access import Visitor, visitor_of
from ui.label.events import MAX_EVENTS, is_new_answer, store_event
from ui.label.open_pages import OpenPages
from ui.label.showings import Showings, Shown, name_shown
from ui.label.stored_images import StoredImages
from ui.label.study_turn import AT_WORK, StudyTurn, find_study_turn, view_study
from ui.label.views import Images, load_images, own_history, view_shown
from ui.navigation import LABEL, menu_html
from ui.plain_pages import send_page
from ui.serving.counts import note_events

TOTALS_LIFETIME_SECONDS = 30.0
"""As often as a page asks. Whoever could see them change by one answer would see which were repeats or gold pairs."""
CONFLICT_TRIES = 3
DAMAGED_TRIES = 5
"""So often others are looked for in the place of pairs and tasks whose images are damaged."""


class LabelRequest(BaseModel):
    """Request of the page: its events, how many pairs and tasks it wants, and which it holds."""

    model_config = ConfigDict(extra="forbid")

    person: str | None = Field(None, max_length=32)
    """Public id of the person whose page this is; another one may have signed in since, in another tab."""
    page: str | None = Field(None, max_length=36)
    """Random id of the open page, which keeps two tabs of one person apart."""
    events: list[Any] = Field([], max_length=MAX_EVENTS)
    """Each is read on its own as an `EVENT`, so that one that cannot be taken holds up no other."""
    want: int = Field(0, ge=0, le=8)
    holding: list[Annotated[str, Field(max_length=500)]] = Field([], max_length=32)
    leaving: bool = False
    """The page goes: nothing is wanted any more, and what it holds is given back."""
    question: str | None = Field(None, max_length=16)
    """The version of the question that the page shows now; where there is another, the answer brings it."""


@dataclass
class _Totals:
    """Counts over all pairs, kept for a while: they walk over the whole table, and tell too much one by one."""

    taken_at: datetime = LONG_AGO
    done: int = 0
    wanted: int = 0


def label_routes(context: Context, showings: Showings, images: StoredImages) -> APIRouter:
    """GET / and the JSON routes that its page calls."""
    routes = APIRouter()
    rng = random.Random()
    totals = _Totals()
    paces: dict[int, Pace] = {}
    """As this process last saw them, by person: what they say of a wait holds, though another may know of a longer."""

    @routes.get("/")
    def label_page(request: Request) -> Response:
        visitor = visitor_of(request)
        with context.database.read() as session:
            study = view_study(session, visitor)
        if study is not None and study["stage"] not in AT_WORK:
            return RedirectResponse(f"{context.root_path}/study", status_code=303)
        menu = menu_html(context.root_path, LABEL) if visitor.role is Role.admin else ""
        return send_page("label/label.html", context.root_path, menu=menu)

    @routes.get("/api/session")
    def session_info(request: Request) -> dict[str, Any]:
        visitor = visitor_of(request)
        with context.database.read() as session:
            settings = load_settings(session)
            seen_at = session.get_one(Person, visitor.person_id).guidelines_seen_at
            asked = session.scalar(OF_KEY, {"key": question_key(settings)})
            study = view_study(session, visitor)
        return {
            # A participant's name holds that of the study, which is not for them to read.
            "person": {"name": "" if study else visitor.name, "role": visitor.role, "id": visitor.public_id},
            "auth": context.auth,
            "version": VERSION,
            "project": view_project(settings, showings, visitor),
            "guidelines_seen": seen_at is not None and (asked is None or seen_at >= asked.created_at),
            "study": study,
        }

    @routes.post("/api/guidelines-seen")
    def guidelines_seen(request: Request) -> dict[str, Any]:
        with context.database.write() as session:
            session.get_one(Person, visitor_of(request).person_id).guidelines_seen_at = utc_now()
        return {}

    @routes.post("/api/label")
    def label(request: Request, body: LabelRequest) -> Response:
        visitor = visitor_of(request)
        if body.person not in (None, visitor.public_id):
            raise HTTPException(409, "Somebody else has signed in since; sign in as before to send these answers.")
        arrived_at = utc_now()
        # Before there is a session, so that a flood costs the others little.
        _check_pace(paces.get(visitor.person_id), arrived_at, body)
        for attempt in range(CONFLICT_TRIES):
            try:
                with context.database.write() as session:
                    known, settings = load_presence(session, visitor.person_id)
                    paces[visitor.person_id] = known.pace
                    _check_pace(known.pace, arrived_at, body)  # requests that came together are here one by one
                    answer = answer_label_request(
                        session, showings, images, visitor, body, rng, known, settings, arrived_at
                    )
                    store_presence(session, known, arrived_at)
                note_events(request, (result["status"] for result in answer["results"]))
                # Written here: FastAPI's own way would copy it twice first.
                return Response(orjson.dumps(answer), media_type="application/json")
            except IntegrityError:
                # PostgreSQL: the same answer came twice at the same moment; the next try finds the first one stored.
                if attempt == CONFLICT_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    @routes.get("/api/progress")
    def progress(request: Request) -> dict[str, Any]:
        if visitor_of(request).participant:  # how far the others are is not theirs to see
            with context.database.read() as session:
                return {"mine": own_progress(session, visitor_of(request).person_id), "all": None}
        with context.database.read() as session:
            lifetime = TOTALS_LIFETIME_SECONDS * context.worker.count  # each worker tells others
            if abs((utc_now() - totals.taken_at).total_seconds()) > lifetime:
                totals.taken_at = utc_now()
                totals.done, totals.wanted = count_judgments(session, load_settings(session))
            own = visitor_of(request).person_id
            done = min(totals.wanted, totals.done + count_own(session, own, totals.taken_at))
            return {
                "mine": own_progress(session, own),
                "all": {"done": done, "wanted": totals.wanted, "per_hour": hourly_rate(session, None)},
            }

    @routes.get("/api/history")
    def history(request: Request, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> list[dict[str, Any]]:
        with context.database.read() as session:
            return own_history(session, showings, visitor_of(request), limit)

    return routes


def _check_pace(pace: Pace | None, now: datetime, body: LabelRequest) -> None:
    """Refuse the answers of a person who is too far ahead of `annotate.judging.pace`; their page keeps and resends
    them."""
    if pace is not None and body.events and (wait := pace.wait(now)):
        words = f"These answers come faster than anybody can look; they are taken again in {wait} seconds."
        raise HTTPException(429, words, {"Retry-After": str(wait)})


def answer_label_request(
    session: Session,
    showings: Showings,
    images: StoredImages,
    visitor: Visitor,
    body: LabelRequest,
    rng: random.Random,
    known: AtWork,
    settings: ProjectSettings,
    arrived_at: datetime,
) -> dict[str, Any]:
    """Store the events in their order, then lease and show new pairs and tasks; all in the caller's one transaction.

    Args:
        known: what is known of the person; brought up to date, for the caller to store.
    Returns:
        results, one for each event in its place; pairs and tasks to show, in one list, `pairs`; `gone`, showings that
        the page holds and another page of this person has too; `done`, whether fewer were found than were wanted, and
        then how many are `with_others` or `in_own_pages`; `damaged`, how many were passed over since a file of theirs
        is damaged; `own_pages`, how many others this person has open; `study`, how far a participant of one is.
    """
    study = find_study_turn(session, visitor)
    pages, stopwatch = OpenPages(known.pages, arrived_at), known.pace.start(arrived_at)
    results, again = [], {}
    last = max((place for place, event in enumerate(body.events) if is_new_answer(event)), default=None)
    for place, event in enumerate(body.events):
        timer = partial(stopwatch.take, is_last=place == last)
        result, lease = store_event(session, showings, visitor, event, settings, timer, study)
        results.append(result)
        if lease is not None:
            again[len(results) - 1] = lease
    if study is not None and body.events:
        study.note_answers()
        again = again if study.is_at_work else {}
    known.pace.note(stopwatch, len(body.events))
    held = _read_holding(showings, visitor, body.holding)
    taken_back = [name_shown(lease) for lease in again.values()]
    elsewhere = pages.shown_elsewhere(body.page)
    if body.leaving:
        release_leases(session, visitor.person_id, *_split_kinds([*held.values(), *taken_back]))
        pages.close(body.page)
        return {"results": results}
    holding = [shown for shown in held.values() if shown not in elsewhere] + taken_back
    draw = None if study is None else study.draw(settings, rng)
    leases, files, damaged = _lease_whole(
        session, images, visitor.person_id, settings, rng, body.want, [*holding, *elsewhere], draw
    )
    pages.note(body.page, [*holding, *map(name_shown, leases)])
    question = question_key(settings)
    files = {**files, **load_images(session, list(again.values()))}
    views = view_shown(showings, visitor, [*again.values(), *leases], files, question)
    for place, view in zip(again, views[: len(again)], strict=True):
        results[place]["pair"] = view
    done = len(leases) < body.want
    with_others = _count_with_others(session, visitor, settings, study) if done else 0
    if study is not None and done and not (leases or holding or elsewhere):
        study.end_where_nothing_is_left()
    return {
        "results": results,
        "pairs": views[len(again) :],
        "gone": [showing for showing, shown in held.items() if shown in elsewhere],
        "done": done,
        "with_others": with_others,
        "in_own_pages": len(elsewhere),
        "damaged": damaged,
        "own_pages": pages.count_others(body.page),
        "project": None if body.question in (None, question) else view_project(settings, showings, visitor),
        "study": None if study is None else study.view(),
    }


def _count_with_others(session: Session, visitor: Visitor, settings: ProjectSettings, study: StudyTurn | None) -> int:
    return count_with_others(session, visitor.person_id, settings) if study is None else study.count_elsewhere()


def view_project(settings: ProjectSettings, showings: Showings, visitor: Visitor) -> dict[str, Any]:
    """Return the project's texts for the page: the words of `db.project.ASKED` and their version."""
    return {
        "version": question_key(settings),
        "title": settings.title,
        "question": settings.question,
        "guidelines_html": render_guidelines(settings.guidelines, showings, visitor),
        "reasons": settings.reasons,
        "skip_reasons": settings.skip_reasons,
    }


def _read_holding(showings: Showings, visitor: Visitor, tokens: list[str]) -> dict[str, Shown]:
    """What the page has, by showing; a token that cannot be opened (the server's key changed) stands for nothing."""
    held = {}
    for token in tokens:
        with suppress(UserError):
            held[token] = name_shown(showings.open(visitor, token))
    return held


def _split_kinds(shown: Iterable[Shown]) -> tuple[list[int], list[int]]:
    """(ids of the pairs, ids of the tasks)."""
    ids: dict[str, list[int]] = {"pair": [], "task": []}
    for kind, number in shown:
        ids[kind].append(number)
    return ids["pair"], ids["task"]


def _lease_whole(
    session: Session,
    images: StoredImages,
    person_id: int,
    settings: ProjectSettings,
    rng: random.Random,
    count: int,
    holding: list[Shown],
    draw: Draw | None,
) -> tuple[list[Lease], Images, int]:
    """(what to look at as of `lease_pairs`, none with a damaged image; the images; how many were passed over)."""
    leases: list[Lease] = []
    files: Images = {}
    damaged: list[Shown] = []
    for _ in range(DAMAGED_TRIES):
        wanted = count - len(leases)
        pairs, tasks = _split_kinds([*holding, *damaged, *map(name_shown, leases)])
        found = lease_pairs(
            session, person_id, settings, rng, count=wanted, holding=pairs, holding_tasks=tasks, draw=draw
        )
        new = load_images(session, found)
        bad = {shown for shown, of_it in new.items() if any(image and images.is_damaged(image) for image in of_it)}
        leases += [lease for lease in found if name_shown(lease) not in bad]
        files = {**files, **new}
        damaged += bad
        if not bad:
            break
    if damaged:
        pairs, tasks = _split_kinds(damaged)
        of_them = delete(Lease).where(Lease.person_id == person_id, Lease.pair_id.in_(pairs) | Lease.task_id.in_(tasks))
        session.execute(of_them.execution_options(synchronize_session="fetch"))
    return leases, files, len(damaged)


def render_guidelines(text: str, showings: Showings, visitor: Visitor) -> str:
    """Markdown to HTML without raw HTML; pictures written as ![…](/img/<sha256>) get the visitor's address."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    parsed = markdown.parse(text)
    for token in parsed:
        if token.nesting == 1:
            token.attrSet("dir", "auto")  # each paragraph, heading and list in the direction of its own script
        for child in token.children or []:
            _sign_picture(child, showings, visitor)
    rendered: str = markdown.renderer.render(parsed, markdown.options, {})
    return rendered


def _sign_picture(token: Token, showings: Showings, visitor: Visitor) -> None:
    address = str(token.attrs.get("src", "")) if token.type == "image" else ""
    sha256 = address.removeprefix("/img/")
    if sha256 != address and len(sha256) == 64:
        token.attrs["src"] = showings.image_address(visitor, sha256)
