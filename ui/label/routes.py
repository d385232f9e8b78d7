"""Serve the labelling page and its routes.

The page is plain HTML and JavaScript (static/label/): it keeps the next pairs decoded ahead and sends judgments while
the next pair is already shown. An annotator's browser therefore never loads Gradio, nor reaches any of its routes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, joinedload

from annotate.judging.judgments import Answer, Timer, check_offered, record_judgment, undo_judgment
from annotate.judging.pace import Pace, Stopwatch
from annotate.judging.pairs import count_with_others, lease_pairs, release_leases
from db.errors import UserError
from db.models import Candidate, Choice, Image, Judgment, Lease, Pair, Person, Role, Side, Source, utc_now
from db.project import OF_KEY, ProjectSettings, load_settings, question_key
from runs.store import VERSION
from ui.context import Context
from ui.errors import describe_invalid
from ui.gate.access import Visitor, visitor_of
from ui.label.open_pages import OpenPages
from ui.label.showings import Showings
from ui.label.stored_images import StoredImage, StoredImages
from ui.navigation import LABEL, menu_html
from ui.plain_pages import send_page

MAX_EVENTS = 500
TOTALS_LIFETIME_SECONDS = 30.0
"""As often as a page asks. Whoever could see them change by one answer would see which were repeats or gold pairs."""
CONFLICT_TRIES = 3
DAMAGED_TRIES = 5
"""So often others are looked for in the place of pairs whose images are damaged."""
ImagesOfPairs = Mapping[int, Sequence[StoredImage | None]]
"""Pair id to the images of a and b, lq and hq."""
LONG_AGO = datetime.min.replace(tzinfo=UTC)
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which PostgreSQL cannot store")
    if HALF_CHARACTER.search(text):
        raise ValueError("holds half a character (a lone surrogate), which no database can store")
    return text


Text = Annotated[str, AfterValidator(_check_text)]
"""Text that both databases can store."""


class JudgeEvent(BaseModel):
    """An answer to a pair that was shown."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["judge"]
    id: Text = Field(max_length=36)
    showing: Text = Field(max_length=500)
    choice: Literal["left", "right", "tie", "skip"]
    skip_reason: Text | None = Field(None, max_length=500)
    reasons: list[Annotated[Text, Field(max_length=100)]] = Field([], max_length=9)
    seconds: float = Field(ge=0, le=86_400)
    question: Text | None = Field(None, max_length=16)
    """The version of the question that stood above the pair; without it, the one when the pair was given out."""
    view_mode: Text = Field("fit", max_length=100)
    replaces: Text | None = Field(None, max_length=36)
    """Id of the own answer whose place this one takes, such as the same one with another reason."""


class UndoEvent(BaseModel):
    """Taking an own judgment back."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["undo"]
    id: Text = Field(max_length=36)
    judgment: Text = Field(max_length=36)


EVENT: TypeAdapter[JudgeEvent | UndoEvent] = TypeAdapter(Annotated[JudgeEvent | UndoEvent, Field(discriminator="type")])


class LabelRequest(BaseModel):
    """Request of the page: its events, how many pairs it wants, and which it holds."""

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
    """The page goes: nothing is wanted any more, and the pairs that it holds are given back."""
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
    pages = OpenPages()
    pace = Pace()

    @routes.get("/")
    def label_page(request: Request) -> Response:
        menu = menu_html(context.root_path, LABEL) if visitor_of(request).role is Role.admin else ""
        return send_page("label/label.html", context.root_path, menu=menu)

    @routes.get("/api/session")
    def session_info(request: Request) -> dict[str, Any]:
        visitor = visitor_of(request)
        with context.database.read() as session:
            settings = load_settings(session)
            seen_at = session.get_one(Person, visitor.person_id).guidelines_seen_at
            asked = session.scalar(OF_KEY, {"key": question_key(settings)})
        return {
            "person": {"name": visitor.name, "role": visitor.role, "id": visitor.public_id},
            "auth": context.auth,
            "version": VERSION,
            "project": view_project(settings, showings, visitor),
            "guidelines_seen": seen_at is not None and (asked is None or seen_at >= asked.created_at),
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
        _check_pace(pace, visitor, body)  # before there is a session, so that a flood costs the others little
        for attempt in range(CONFLICT_TRIES):
            try:
                with context.database.write() as session:
                    _check_pace(pace, visitor, body)  # requests that came beside each other are here one by one
                    stopwatch = pace.start(visitor.person_id, arrived_at)
                    answer = answer_label_request(session, showings, images, visitor, body, rng, pages, stopwatch)
                    pace.note(stopwatch, len(body.events))
                # Written here: FastAPI's own way would copy it twice first.
                return Response(orjson.dumps(answer), media_type="application/json")
            except IntegrityError:
                # PostgreSQL: the same answer came twice at the same moment; the next try finds the first one stored.
                if attempt == CONFLICT_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    @routes.get("/api/progress")
    def progress(request: Request) -> dict[str, Any]:
        with context.database.read() as session:
            if abs((utc_now() - totals.taken_at).total_seconds()) > TOTALS_LIFETIME_SECONDS:
                totals.taken_at = utc_now()
                totals.done, totals.wanted = count_judgments(session)
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


def _check_pace(pace: Pace, visitor: Visitor, body: LabelRequest) -> None:
    """Refuse the answers of a person who is too far ahead of `annotate.judging.pace`; their page keeps and resends
    them."""
    if body.events and (wait := pace.wait(visitor.person_id)):
        words = f"These answers come faster than anybody can look; they are taken again in {wait} seconds."
        raise HTTPException(429, words, {"Retry-After": str(wait)})


def answer_label_request(
    session: Session,
    showings: Showings,
    images: StoredImages,
    visitor: Visitor,
    body: LabelRequest,
    rng: random.Random,
    pages: OpenPages,
    stopwatch: Stopwatch,
) -> dict[str, Any]:
    """Store the events in their order, then lease and show new pairs; all in the caller's one transaction.

    Returns:
        results, one for each event in its place; pairs to show; `gone`, showings that the page holds and another page
        of this person has too; `done`, whether fewer pairs were found than were wanted, and then how many are
        `with_others` or `in_own_pages`; `damaged`, how many pairs were passed over since a file of theirs is damaged;
        `own_pages`, how many others this person has open.
    """
    settings = load_settings(session)
    results, again = [], {}
    last = max((place for place, event in enumerate(body.events) if _is_new_answer(event)), default=None)
    for place, event in enumerate(body.events):
        timer = partial(stopwatch.take, is_last=place == last)
        result, lease = _store_event(session, showings, visitor, event, settings, timer)
        results.append(result)
        if lease is not None:
            again[len(results) - 1] = lease
    held = _read_holding(showings, visitor, body.holding)
    elsewhere = pages.pairs_elsewhere(visitor.person_id, body.page)
    if body.leaving:
        release_leases(session, visitor.person_id, [*held.values(), *(lease.pair_id for lease in again.values())])
        pages.close(visitor.person_id, body.page)
        return {"results": results}
    holding = [pair_id for pair_id in held.values() if pair_id not in elsewhere]
    holding += [lease.pair_id for lease in again.values()]
    leases, files, damaged = _lease_whole(
        session, images, visitor.person_id, settings, rng, body.want, [*holding, *elsewhere]
    )
    pages.note(visitor.person_id, body.page, [*holding, *(lease.pair_id for lease in leases)])
    asked = question_key(settings)
    files = {**files, **_load_images(session, list(again.values()))}
    views = view_pairs(showings, visitor, [*again.values(), *leases], files, asked)
    for place, view in zip(again, views[: len(again)], strict=True):
        results[place]["pair"] = view
    done = len(leases) < body.want
    return {
        "results": results,
        "pairs": views[len(again) :],
        "gone": [showing for showing, pair_id in held.items() if pair_id in elsewhere],
        "done": done,
        "with_others": count_with_others(session, visitor.person_id, settings) if done else 0,
        "in_own_pages": len(elsewhere),
        "damaged": damaged,
        "own_pages": pages.count_others(visitor.person_id, body.page),
        "project": None if body.question in (None, asked) else view_project(settings, showings, visitor),
    }


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


def _is_new_answer(raw: Any) -> bool:
    return isinstance(raw, dict) and raw.get("type") == "judge" and raw.get("replaces") is None


def _store_event(
    session: Session, showings: Showings, visitor: Visitor, raw: Any, settings: ProjectSettings, timer: Timer
) -> tuple[dict[str, Any], Lease | None]:
    """Store one event, and return the outcome and the lease that an undo gave."""
    # The id goes back only where it can be one: what else came in its place may be too long, or no text at all.
    number = raw.get("id") if isinstance(raw, dict) else None
    known = isinstance(number, str) and len(number) <= 36 and number.isprintable()
    result: dict[str, Any] = {"id": number if known else None, "status": "stored", "error": None, "pair": None}
    lease = None
    try:
        event = EVENT.validate_python(raw)
        if isinstance(event, JudgeEvent):
            answer = _read_answer(showings, visitor, event)
            check_offered(session, answer, settings)
            record_judgment(session, visitor.person_id, answer, timer)
        else:
            lease = undo_judgment(session, visitor.person_id, event.judgment, settings)
            lease = lease or _find_lease(session, visitor.person_id, event.judgment)
    except ValidationError as error:
        result.update(status="refused", error=describe_invalid(error.errors()))
    except UserError as error:
        result.update(status="refused", error=str(error))
    return result, lease


def _read_holding(showings: Showings, visitor: Visitor, tokens: list[str]) -> dict[str, int]:
    """Pair ids by showing of what the page has; one that cannot be opened (the server's key changed) has none."""
    held = {}
    for token in tokens:
        with suppress(UserError):
            held[token] = showings.open(visitor, token).pair_id
    return held


def _read_answer(showings: Showings, visitor: Visitor, event: JudgeEvent) -> Answer:
    showing = showings.open(visitor, event.showing)
    left = showing.shown_left
    right = Side.b if left is Side.a else Side.a
    choice = {"left": left.value, "right": right.value}.get(event.choice, event.choice)
    return Answer(
        uuid=event.id,
        pair_id=showing.pair_id,
        repeat_no=showing.repeat_no,
        shown_left=left,
        choice=Choice(choice),
        seconds=event.seconds,
        skip_reason=event.skip_reason,
        reasons=event.reasons,
        view_mode=event.view_mode,
        picked=showing.picked,
        replaces=event.replaces,
        question=showing.question if event.question is None else event.question,
    )


def _find_lease(session: Session, person_id: int, judgment_uuid: str) -> Lease | None:
    """The lease that an earlier undo of this judgment gave, when its answer was lost on the way."""
    return session.scalar(
        select(Lease)
        .join(Judgment, Judgment.pair_id == Lease.pair_id)
        .where(Judgment.uuid == judgment_uuid, Lease.person_id == person_id)
    )


def _parts_of(image: type[Image]) -> list[InstrumentedAttribute[Any]]:
    return [getattr(image, name) for name in StoredImage._fields]


_A, _B = aliased(Candidate), aliased(Candidate)
_IMAGE_A, _IMAGE_B, _LQ, _HQ = (aliased(Image) for _ in range(4))
IMAGES_OF_PAIRS = (
    select(Pair.id, *(part for image in (_IMAGE_A, _IMAGE_B, _LQ, _HQ) for part in _parts_of(image)))
    .join(_A, _A.id == Pair.a_id)
    .join(_B, _B.id == Pair.b_id)
    .join(_IMAGE_A, _IMAGE_A.id == _A.image_id)
    .join(_IMAGE_B, _IMAGE_B.id == _B.image_id)
    .join(Source, Source.id == Pair.source_id)
    .outerjoin(_LQ, _LQ.id == Source.lq_image_id)
    .outerjoin(_HQ, _HQ.id == Source.hq_image_id)
    .where(Pair.id.in_(bindparam("pair_ids", expanding=True)))
)
"""Built once, for it is asked with every answer and takes longer to build than to run."""


def _load_images(session: Session, leases: list[Lease]) -> ImagesOfPairs:
    if not leases:
        return {}
    rows = session.connection().execute(IMAGES_OF_PAIRS, {"pair_ids": [lease.pair_id for lease in leases]})
    return {pair_id: _read_images(parts) for pair_id, *parts in rows}


def _read_images(row: list[Any]) -> list[StoredImage | None]:
    size = len(StoredImage._fields)
    cuts = [row[start : start + size] for start in range(0, len(row), size)]
    return [None if cut[0] is None else StoredImage(*cut) for cut in cuts]


def _lease_whole(
    session: Session,
    images: StoredImages,
    person_id: int,
    settings: ProjectSettings,
    rng: random.Random,
    count: int,
    holding: list[int],
) -> tuple[list[Lease], ImagesOfPairs, int]:
    """(pairs to look at as of `lease_pairs`, none of a damaged image; their images; how many were passed over)."""
    leases: list[Lease] = []
    files: dict[int, Sequence[StoredImage | None]] = {}
    damaged: list[int] = []
    for _ in range(DAMAGED_TRIES):
        wanted = count - len(leases)
        besides = [*holding, *damaged, *(lease.pair_id for lease in leases)]
        found = lease_pairs(session, person_id, settings, rng, count=wanted, holding=besides)
        new = _load_images(session, found)
        bad = {
            pair_id for pair_id, of_pair in new.items() if any(image and images.is_damaged(image) for image in of_pair)
        }
        leases += [lease for lease in found if lease.pair_id not in bad]
        files |= new
        damaged += bad
        if not bad:
            break
    if damaged:
        of_them = delete(Lease).where(Lease.person_id == person_id, Lease.pair_id.in_(damaged))
        session.execute(of_them.execution_options(synchronize_session="fetch"))
    return leases, files, len(damaged)


def view_pairs(
    showings: Showings, visitor: Visitor, leases: list[Lease], images: ImagesOfPairs, asked: str
) -> list[dict[str, Any]]:
    """Describe each leased pair to the page: four image addresses, and nothing that reveals a method or a repeat.

    Args:
        images: of these pairs, and perhaps of others.
        asked: key of the present version of the question.
    """
    views = []
    for lease in leases:
        at_a, at_b, at_lq, at_hq = (_view_image(showings, visitor, image, lease) for image in images[lease.pair_id])
        left, right = (at_a, at_b) if lease.shown_left == Side.a else (at_b, at_a)
        showing = showings.seal(visitor, lease, asked)
        views.append({"showing": showing, "left": left, "right": right, "lq": at_lq, "hq": at_hq})
    return views


def _view_image(showings: Showings, visitor: Visitor, image: StoredImage | None, lease: Lease) -> dict[str, Any] | None:
    if image is None:
        return None
    url = showings.image_address(visitor, image.sha256, image.suffix, (lease.pair_id, lease.repeat_no))
    return {"url": url, "width": image.width_px, "height": image.height_px}


def count_judgments(session: Session) -> tuple[int, int]:
    """(judgments made, judgments wanted) over all pairs that are not gold pairs."""
    done, wanted = session.execute(
        select(
            func.coalesce(func.sum(Pair.judgment_count), 0), func.coalesce(func.sum(Pair.judgments_wanted), 0)
        ).where(Pair.gold_answer.is_(None))
    ).one()
    return int(done), int(wanted)


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


def own_history(session: Session, showings: Showings, visitor: Visitor, limit: int) -> list[dict[str, Any]]:
    """A person's own live judgments, newest first, as they saw the pairs."""
    asked = question_key(load_settings(session))
    judgments = session.scalars(
        select(Judgment)
        .options(joinedload(Judgment.question))
        .where(Judgment.person_id == visitor.person_id, Judgment.superseded_at.is_(None))
        .order_by(Judgment.id.desc())
        .limit(limit)
    ).all()
    shown = [
        Lease(
            pair_id=row.pair_id,
            person_id=row.person_id,
            repeat_no=row.repeat_no,
            shown_left=row.shown_left,
            picked=row.picked,
        )
        for row in judgments
    ]
    views = view_pairs(showings, visitor, shown, _load_images(session, shown), asked)
    entries = []
    for judgment, view in zip(judgments, views, strict=True):
        question = judgment.question
        sides = {judgment.shown_left.value: "left"}
        choice = judgment.choice.value
        entries.append(
            {
                "judgment": judgment.uuid,
                "choice": sides.get(choice, "right") if choice in ("a", "b") else choice,
                "skip_reason": judgment.skip_reason,
                "reasons": judgment.reasons,
                "left": view["left"],
                "right": view["right"],
                "created_at": _iso(judgment.created_at),
                "asked": question.question if question and question.key != asked else None,
                "can_undo": True,
            }
        )
    return entries


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


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
