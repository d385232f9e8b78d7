"""Who may see what: one gate in front of every route, and sign-in.

An anonymous visitor reaches the sign-in page and the static files. An annotator reaches the labelling page, its API
and the images that this API named to them. An admin reaches everything.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from itsdangerous import BadSignature, URLSafeSerializer
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from annotate.people import (
    add_person,
    check_link_token,
    check_password,
    find_alike,
    find_person,
    name_key,
)
from annotate.project import load_settings
from db.errors import UserError
from db.models import Person, Role
from ui.context import Context
from ui.throttle import FAILURES_PER_ADDRESS, FAILURES_PER_NAME, Busy, Hashing, Throttle

SECRET_BYTES = 32
OPEN_PATHS = ("/sign-in", "/enter/", "/static/", "/api/sign-in-info", "/favicon.ico")
ADMIN_PATHS = ("/admin", "/api/runs", "/api/train", "/api/lineage")
GRADIO_PATHS = ("/admin",)
MAX_BODY_BYTES = {
    "/sign-in": 16 * 2**10,
    "/api/": 2 * 2**20,  # 500 answers
    "/admin/gradio_api/upload": 4 * 2**30,
    "/admin": 64 * 2**20,
}
"""By the beginning of the path, the first that fits; larger ones are for admins, whom the gate knows before a byte of
the body is read."""
MAX_OTHER_BODY_BYTES = 16 * 2**10
DEVICE_COOKIE = "facereward-browser"
"""Names a browser in which somebody signed in with a password."""
DEVICE_SECONDS = 365 * 24 * 3600
MAX_NAME_CHARACTERS = 64
MAX_PASSWORD_CHARACTERS = 1024
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


@dataclass(frozen=True)
class Visitor:
    """The signed-in person of a request."""

    person_id: int
    name: str
    role: Role
    public_id: str


def load_secret(data: Path) -> bytes:
    """The server's signing key, SECRET_BYTES long, made on first use and readable by its owner only.

    Raises:
        UserError: the file holds anything else, such as a key that was cut by a full disk.
    """
    path = data / "secret.key"
    if not path.exists():
        temporary = data / f".secret-{secrets.token_hex(4)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(secrets.token_hex(SECRET_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            with suppress(FileExistsError):  # where another process was first, its key counts
                os.link(temporary, path)
        finally:
            temporary.unlink()
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise UserError(
            f"{path} is not a key of {SECRET_BYTES} bytes in hex digits. Put a copy of the right one in its place, or "
            "delete it: a new one is made, and everybody signs in again."
        )
    return secret


class Tokens:
    """Signed texts that a browser keeps."""

    def __init__(self, secret: bytes) -> None:
        self._devices = URLSafeSerializer(secret, salt="browser")

    def device(self, name: str) -> str:
        """What a browser keeps after a sign-in of this name, so that strangers' guesses do not lock it out."""
        return str(self._devices.dumps([name, secrets.token_hex(8)]))

    def read_device(self, token: str) -> tuple[str, str] | None:
        """(name, the browser's own number) of `device`; None where it is not ours."""
        try:
            name, number = self._devices.loads(token)
        except (BadSignature, ValueError):
            return None
        return str(name), str(number)


class Gate:
    """ASGI middleware that lets a request through to what its visitor may see, and no other."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self.app = app
        self.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request = Request(scope) if scope["type"] == "http" else None
        if request is None:
            await send({"type": "websocket.close", "code": 1008})  # nothing of ours speaks it
            return
        refusal = self._refuse_foreign(request)
        if refusal is None and not path_of(request).startswith(OPEN_PATHS):
            visitor = find_visitor(self.context, request)  # one look-up by key: a thread would cost more than it
            scope["visitor"] = visitor
            refusal = _refuse_visitor(request, visitor)
        limit = _max_body_bytes(path_of(request))
        if refusal is None and _announced_bytes(request) > limit:
            refusal = _refusal(request, 413, f"At most {limit:,} bytes can be sent to {path_of(request)}.")
        send = _with_headers(send, admin=path_of(request).startswith(GRADIO_PATHS))
        await (refusal or self.app)(scope, _limit_body(receive, limit), send)

    def _refuse_foreign(self, request: Request) -> Response | None:
        """Requests that another site's page makes through the visitor's browser."""
        host = request.headers.get("host", "")
        # Only a proxy, or a page that the browser counts as ours, can set this one.
        forwarded = request.headers.get("x-forwarded-host", host).split(",")[0].strip()
        origin = request.headers.get("origin")
        for name in (host, forwarded):
            if not self.context.auth and not is_loopback(urlsplit(f"//{name}").hostname or ""):
                return _refusal(request, 403, f"This server answers on localhost only, not as {name!r}.")
        unsafe = request.method not in ("GET", "HEAD", "OPTIONS")
        if unsafe and origin is not None and urlsplit(origin).netloc not in (host, forwarded):
            return _refusal(request, 403, f"A page of {origin} may not send to {host}.")
        return None


def _max_body_bytes(path: str) -> int:
    return next((limit for prefix, limit in MAX_BODY_BYTES.items() if path.startswith(prefix)), MAX_OTHER_BODY_BYTES)


def _announced_bytes(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def _limit_body(receive: Receive, limit: int) -> Receive:
    """Count what really comes: a body without an announced length ends at the limit too."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, f"At most {limit:,} bytes can be sent here.")
        return message

    return receive_limited


class BelowRootPath:
    """ASGI middleware for a server below a proxy's path, whether the proxy takes that path off or leaves it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.root_path:
            path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
            if path == self.root_path:
                path, raw = path + "/", raw + b"/"
            elif not path.startswith(self.root_path + "/"):
                path, raw = self.root_path + path, self.root_path.encode() + raw
            scope = {**scope, "path": path, "raw_path": raw, "root_path": self.root_path}
        await self.app(scope, receive, send)


def path_of(request: Request) -> str:
    """The request's path in this app, without the path that a proxy serves it below."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def public_address(request: Request) -> str:
    """Scheme and host with which the visitor's browser reaches this server, as a proxy tells them."""

    def told(header: str, otherwise: str) -> str:
        return request.headers.get(header, otherwise).split(",")[0].strip()

    scheme = told("x-forwarded-proto", request.url.scheme)
    host = told("x-forwarded-host", request.headers.get("host", request.url.netloc))
    return f"{scheme}://{host}"


def send_page(page: Path, root_path: str) -> Response:
    """A page's HTML, its addresses ('="/…"') put below the root path."""
    content = page.read_text(encoding="utf-8").replace('="/', f'="{root_path}/')
    return Response(content, media_type="text/html", headers={"Cache-Control": "no-cache"})


def _with_headers(send: Send, *, admin: bool) -> Send:
    """Keep JSON out of caches and add the security headers.

    Gradio's pages (`admin`) bring scripts of their own, so they have no policy.
    """

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Referrer-Policy", "same-origin")
            if headers.get("content-type", "").startswith("application/json"):
                headers["Cache-Control"] = "no-store"  # else Back shows what was true before
            if not admin:
                headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        await send(message)

    return send_with_headers


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_visitor(request: Request, visitor: Visitor | None) -> Response | None:
    path, root = path_of(request), request.scope.get("root_path", "")
    if visitor is None:
        if request.method == "GET" and not path.startswith(("/api/", "/img/", "/admin/gradio_api")):
            return RedirectResponse(f"{root}/sign-in?next={quote(root + path)}", status_code=303)
        return _refusal(request, 401, "Signed out. Sign in again.")
    if path.startswith(ADMIN_PATHS) and visitor.role is not Role.admin:
        return _refusal(request, 403, "Only admins see this page.")
    return None


def _refusal(request: Request, status: int, message: str) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return Response(message, status_code=status, media_type="text/plain")
    return JSONResponse({"error": message}, status_code=status)


def find_visitor(context: Context, request: Request) -> Visitor | None:
    """The enabled person of the request's session cookie."""
    person_id = request.session.get("person_id")
    if person_id is None:
        return None
    with context.database.read() as session:
        person = session.get(Person, person_id)
    # The public id too: a cookie of another data folder's database would name a stranger here.
    if person is None or person.disabled_at is not None or person.public_id != request.session.get("public_id"):
        return None
    return Visitor(person.id, person.name, person.role, person.public_id)


def visitor_of(request: Request) -> Visitor:
    """The visitor that the gate let through."""
    visitor: Visitor = request.scope["visitor"]
    return visitor


def sign_in_routes(context: Context, tokens: Tokens, page: Path) -> APIRouter:
    """Sign-in by name (by name and password with --auth), by personal link, and sign-out."""
    routes = APIRouter()
    throttle, hashing = Throttle(), Hashing()

    @routes.get("/sign-in")
    def sign_in_page() -> Response:
        return send_page(page, context.root_path)

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
            return _ask_again(context, "Name and password do not fit.", next)
        budgets = _budgets(request, tokens, name)
        if wait := throttle.begin(budgets):
            return _ask_again(
                context, f"Too many attempts; wait {ceil(wait)} seconds, or use your personal link.", next
            )
        try:
            known = await hashing.run(partial(_person_by_password, context, name, password))
        except Busy:
            throttle.take_back(budgets)
            message = "Many people sign in at this moment; try again in some seconds."
            return Response(message, 429, {"Retry-After": "5"}, "text/plain")
        if known is None:
            return _ask_again(context, "Name and password do not fit.", next)
        throttle.take_back(budgets)
        answer = _enter(request, known, context.root_path, next)
        answer.set_cookie(
            DEVICE_COOKIE,
            tokens.device(known.name),
            max_age=DEVICE_SECONDS,
            path=context.root_path or "/",
            httponly=True,
            samesite="lax",
        )
        return answer

    @routes.get("/enter/{token}")
    def enter(request: Request, token: str) -> RedirectResponse:
        with context.database.read() as session:
            person = check_link_token(session, token)
        if person is None:
            return RedirectResponse(
                f"{context.root_path}/sign-in?error={quote('This link is not valid any more.')}", status_code=303
            )
        return _enter(request, person, context.root_path)

    @routes.post("/sign-out")
    def sign_out(request: Request) -> RedirectResponse:
        request.session.clear()
        return RedirectResponse(f"{context.root_path}/sign-in", status_code=303)

    return routes


def _enter(request: Request, person: Person, root_path: str, next: str = "") -> RedirectResponse:
    request.session.clear()
    request.session.update(person_id=person.id, public_id=person.public_id)
    # Only a path of ours: '//host' and 'https://host' would lead away.
    inside = next.startswith(f"{root_path}/") and not next.startswith(("//", "/\\"))
    return RedirectResponse(next if inside else f"{root_path}/", status_code=303)


def _ask_again(context: Context, error: str, next: str) -> RedirectResponse:
    return RedirectResponse(f"{context.root_path}/sign-in?error={quote(error)}&next={quote(next)}", status_code=303)


def _budgets(request: Request, tokens: Tokens, name: str) -> dict[str, int]:
    """What a password's try counts against: the address, and the name or, where it signed in before, the browser.

    A stranger's guesses therefore never lock out who uses a browser that the name is known to.
    """
    address = request.client.host if request.client else ""
    known = tokens.read_device(request.cookies.get(DEVICE_COOKIE, ""))
    same = known is not None and name_key(known[0]) == name_key(name)
    who = f"browser {known[1]}" if known is not None and same else f"name {name_key(name)}"
    return {f"address {address}": FAILURES_PER_ADDRESS, who: FAILURES_PER_NAME}


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
        return _enter(request, _person_by_name(context, name), context.root_path, next)
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
    with context.database.read() as session:
        admin = session.scalar(
            select(Person.id)
            .where(Person.role == Role.admin, Person.disabled_at.is_(None))
            .where(Person.password_hash.is_not(None) | Person.link_hash.is_not(None))
            .limit(1)
        )
    if admin is None:
        raise UserError(
            "--auth needs an admin with a password or a personal link, and there is none. Make one: "
            "python -m annotate people add NAME --role admin, then python -m annotate people link NAME."
        )
