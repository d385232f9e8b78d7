"""Sign people in by name, password or personal link, and out here or everywhere."""

from __future__ import annotations

from functools import partial
from math import ceil
from urllib.parse import quote, urlencode

import anyio
from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from annotate.judging.people import (
    add_person,
    check_link_token,
    check_password,
    end_sessions,
    find_alike,
    find_person,
    name_key,
    use_up_link,
)
from db.errors import UserError
from db.models import Person, Role, utc_now
from db.project import load_settings
from ui.address import cookie_name
from ui.context import Context
from ui.gate.access import Tokens, visitor_of
from ui.gate.rate import address_key
from ui.gate.throttle import FAILURES_PER_ADDRESS, FAILURES_PER_NAME, REFUSAL_SECONDS, Busy, Hashing, Throttle
from ui.plain_pages import send_page

DEVICE_COOKIE = "facereward-browser"
"""Names a browser in which somebody signed in with a password."""
DEVICE_SECONDS = 365 * 24 * 3600
MAX_NAME_CHARACTERS = 64
MAX_PASSWORD_CHARACTERS = 1024


def sign_in_routes(context: Context, tokens: Tokens) -> APIRouter:
    """Sign-in by name (by name and password with --auth), by personal link, and sign-out."""
    routes = APIRouter()
    throttle, hashing = Throttle(context.worker.count), Hashing()

    @routes.get("/sign-in")
    def sign_in_page() -> Response:
        return send_page("gate/sign_in.html", context.root_path)

    @routes.get("/api/sign-in-info")
    def sign_in_info() -> dict[str, object]:
        with context.database.read() as session:
            return {"auth": context.auth, "title": load_settings(session).title}

    @routes.post("/sign-in")
    async def sign_in(
        request: Request, name: str = Form(""), password: str = Form(""), next: str = Form(""), new: str = Form("")
    ) -> Response:
        if not context.auth:
            return await run_in_threadpool(_sign_in_by_name, context, request, name, next, is_new=bool(new))
        if len(name) > MAX_NAME_CHARACTERS or len(password) > MAX_PASSWORD_CHARACTERS:
            await anyio.sleep(REFUSAL_SECONDS)
            return _ask_again(context, "Wrong name or password.", next)
        budgets = _budgets(context, request, tokens, name)
        if wait := throttle.begin(budgets):
            await anyio.sleep(REFUSAL_SECONDS)
            return _ask_again(
                context, f"Too many attempts; wait {ceil(wait)} seconds, or use your personal link.", next
            )
        try:
            known = await hashing.run(partial(_person_by_password, context, name, password))
        except Busy:
            throttle.take_back(budgets)
            await anyio.sleep(REFUSAL_SECONDS)
            message = "Many people sign in at this moment; try again in some seconds."
            return Response(message, 429, {"Retry-After": "5"}, "text/plain")
        if known is None:
            return _ask_again(context, "Wrong name or password.", next)
        throttle.take_back(budgets)
        answer = begin_session(request, known, context.root_path, next)
        answer.set_cookie(
            cookie_name(DEVICE_COOKIE, context.base_url, context.root_path),
            tokens.device(known.name),
            max_age=DEVICE_SECONDS,
            path=context.root_path or "/",
            httponly=True,
            samesite="lax",
        )
        return answer

    @routes.get("/enter/{token}")
    def enter(request: Request, token: str) -> Response:
        with context.database.read() as session:
            person = check_link_token(session, token)
        if person is None:
            return _refuse_link(context)
        if person.link_once:  # chats and mail scanners open links ahead of people, who therefore press a button
            return send_page("gate/enter.html", context.root_path)
        return begin_session(request, person, context.root_path)

    @routes.post("/enter/{token}")
    def enter_once(request: Request, token: str) -> Response:
        with context.database.write() as session:
            person = check_link_token(session, token)
            if person is None or (person.link_once and not use_up_link(session, token)):
                return _refuse_link(context)
        return begin_session(request, person, context.root_path)

    @routes.post("/sign-out")
    def sign_out(request: Request) -> RedirectResponse:
        request.session.clear()
        return RedirectResponse(f"{context.root_path}/sign-in", status_code=303)

    @routes.post("/sign-out/everywhere")
    def sign_out_everywhere(request: Request) -> RedirectResponse:
        with context.database.write() as session:
            end_sessions(session.get_one(Person, visitor_of(request).person_id))
        return sign_out(request)

    return routes


def _refuse_link(context: Context) -> RedirectResponse:
    error = "This link is not valid any more: it was used, it has expired, or there is a newer one."
    return RedirectResponse(f"{context.root_path}/sign-in?error={quote(error)}", status_code=303)


def begin_session(request: Request, person: Person, root_path: str, next: str = "") -> RedirectResponse:
    """Let a person in, in the place of whoever this browser's session was of, and go to `next`, a path of ours."""
    request.session.clear()
    request.session.update(person_id=person.id, public_id=person.public_id, version=person.session_version)
    # Only a path of ours: '//host' and 'https://host' would lead away.
    inside = next.startswith(f"{root_path}/") and not next.startswith(("//", "/\\"))
    return RedirectResponse(next if inside else f"{root_path}/", status_code=303)


def _ask_again(context: Context, error: str, next: str) -> RedirectResponse:
    return RedirectResponse(f"{context.root_path}/sign-in?error={quote(error)}&next={quote(next)}", status_code=303)


def _budgets(context: Context, request: Request, tokens: Tokens, name: str) -> dict[str, int]:
    """List the budgets that a try of a password counts against: the address, and the name or the known browser.

    A stranger's guesses therefore never lock out who uses a browser that the name is known to.
    """
    known = tokens.read_device(request.cookies.get(cookie_name(DEVICE_COOKIE, context.base_url, context.root_path), ""))
    same = known is not None and name_key(known[0]) == name_key(name)
    who = f"browser {known[1]}" if known is not None and same else f"name {name_key(name)}"
    return {f"address {address_key(request)}": FAILURES_PER_ADDRESS, who: FAILURES_PER_NAME}


def _person_by_password(context: Context, name: str, password: str) -> Person | None:
    with context.database.read() as session:
        return check_password(session, name, password)


def _ask_who_is_meant(context: Context, name: str, next: str) -> RedirectResponse | None:
    """Back to the form with the names of those who may be meant by a name that nobody has exactly so.

    Else "Ada" would begin anew beside "ada", and judge again what she has judged.
    """
    with context.database.read() as session:
        alike = find_alike(session, name)
    if not alike:
        return None
    asked = [("new", name.strip()[:64]), *(("alike", other) for other in alike), ("next", next)]
    if all(name_key(other) != name_key(name) for other in alike):
        asked.append(("free", "yes"))
    return RedirectResponse(f"{context.root_path}/sign-in?{urlencode(asked)}", status_code=303)


def _sign_in_by_name(context: Context, request: Request, name: str, next: str, *, is_new: bool) -> RedirectResponse:
    """Without --auth: ask once who is meant where a new name is like one that is there."""
    question = None if is_new else _ask_who_is_meant(context, name, next)
    if question is not None:
        return question
    try:
        return begin_session(request, _person_by_name(context, name), context.root_path, next)
    except UserError as error:
        return _ask_again(context, str(error), next)


def _person_by_name(context: Context, name: str) -> Person:
    """Without --auth whoever sits at this machine owns it: a new name becomes an admin."""
    with context.database.write() as session:
        person = find_person(session, name) or add_person(session, name, Role.admin)
        if person.disabled_at is not None:
            raise UserError(f"{person.name!r} was disabled by an admin; choose another name.")
        if person.simulated:
            raise UserError(f"{person.name!r} is a simulated annotator; choose another name.")
        return person


def check_someone_can_sign_in(context: Context) -> None:
    """With --auth there must be an admin who can enter.

    Raises:
        UserError: there is none; the message has the commands that make one.
    """
    open_link = Person.link_expires_at.is_(None) | (Person.link_expires_at > utc_now())
    with context.database.read() as session:
        admin = session.scalar(
            select(Person.id)
            .where(Person.role == Role.admin, Person.disabled_at.is_(None))
            .where(Person.password_hash.is_not(None) | (Person.link_hash.is_not(None) & open_link))
            .limit(1)
        )
    if admin is None:
        raise UserError(
            "--auth needs an admin with a password or a personal link, and there is none. Make one: "
            "python -m annotate people add NAME --role admin, then python -m annotate people link NAME."
        )
