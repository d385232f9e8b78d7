"""Who may see what: one gate in front of every route, sign-in, and the tokens that tie images and pairs to a person.

An anonymous visitor reaches the sign-in page and the static files. An annotator reaches the labelling page, its API
and the images that this API named to them. An admin reaches everything.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from itsdangerous import BadSignature, URLSafeSerializer
from sqlalchemy import select
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from annotate.people import add_person, check_link_token, check_password, find_person
from annotate.project import load_settings
from db.errors import UserError
from db.models import Person, Picked, Role
from ui.context import Context

OPEN_PATHS = ("/sign-in", "/enter/", "/static/", "/api/sign-in-info", "/favicon.ico")
PICKED_BY_LETTER = {
    "r": Picked.random,
    "u": Picked.uncertain,
    "g": Picked.disagreement,
    "v": Picked.diverse,
    "l": Picked.leftover,
}
"""How a showing says why its pair was picked: not in clear words, for whoever judges shall not be told."""
LETTER_OF_PICKED = {picked: letter for letter, picked in PICKED_BY_LETTER.items()}
ADMIN_PATHS = ("/admin", "/api/runs", "/api/train", "/api/lineage")
GRADIO_PATHS = ("/admin",)
FAILURES_BEFORE_WAIT = 5
WAIT_SECONDS = 60.0
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
    """The server's signing key, made on first use and readable by its owner only."""
    path = data / "secret.key"
    if not path.exists():
        temporary = data / f".secret-{secrets.token_hex(4)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32))
        try:
            os.link(temporary, path)  # fails where another process was first; its key counts then
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return bytes.fromhex(path.read_text())


class Tokens:
    """Signed texts: which image an annotator may load, and which pair was shown to whom, which way round."""

    def __init__(self, secret: bytes, root_path: str = "") -> None:
        self._secret = secret
        self._root_path = root_path
        self._showings = URLSafeSerializer(secret, salt="showing")

    def image(self, visitor: Visitor, sha256: str) -> str:
        """The token with which this visitor loads this image."""
        message = f"image {visitor.public_id} {sha256}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:32]

    def image_address(self, visitor: Visitor, sha256: str) -> str:
        """Where this visitor's browser finds this image."""
        return f"{self._root_path}/img/{sha256}?t={self.image(visitor, sha256)}"

    def showing(
        self, visitor: Visitor, pair_id: int, repeat_no: int, shown_left: str, picked: Picked, question: str
    ) -> str:
        """What the page sends back with an answer: the pair as it was displayed, not as the server guesses."""
        letter = LETTER_OF_PICKED[picked]
        return self._showings.dumps([visitor.person_id, pair_id, repeat_no, shown_left, letter, question])

    def read_showing(self, visitor: Visitor, token: str) -> tuple[int, int, str, Picked, str]:
        """What is known of a showing to this visitor.

        Returns:
            pair id, repeat number, which candidate stood left, why it was picked, and the key of the question that was
            asked when it was given out ('' in the tokens of older versions).

        Raises:
            UserError: not a token of ours, or made for somebody else.
        """
        try:
            # Showings of a page that is open since before there were other orders have no letter, nor a question.
            person_id, pair_id, repeat_no, shown_left, *more = self._showings.loads(token)
        except (BadSignature, ValueError) as error:
            raise UserError("This answer does not belong to a pair that was shown; load the page anew.") from error
        if person_id != visitor.person_id:
            raise UserError(
                "This answer belongs to a pair that was shown to somebody else; sign in as them to send it."
            )
        letter = more[0] if more else "r"
        question = more[1] if len(more) > 1 else ""
        return pair_id, repeat_no, shown_left, PICKED_BY_LETTER[letter], question


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
        send = _with_headers(send, admin=path_of(request).startswith(GRADIO_PATHS))
        await (refusal or self.app)(scope, receive, send)

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


def sign_in_routes(context: Context, page: Path) -> APIRouter:
    """Sign-in by name (by name and password with --auth), by personal link, and sign-out."""
    routes = APIRouter()
    failures: dict[str, list[float]] = defaultdict(list)

    @routes.get("/sign-in")
    def sign_in_page() -> Response:
        return send_page(page, context.root_path)

    @routes.get("/api/sign-in-info")
    def sign_in_info() -> dict[str, object]:
        with context.database.read() as session:
            return {"auth": context.auth, "title": load_settings(session).title}

    @routes.post("/sign-in")
    def sign_in(
        request: Request, name: str = Form(""), password: str = Form(""), next: str = Form("")
    ) -> RedirectResponse:
        recent = [moment for moment in failures[name] if time.monotonic() - moment < WAIT_SECONDS]
        failures[name] = recent
        try:
            if len(recent) >= FAILURES_BEFORE_WAIT:
                raise UserError(f"Too many attempts for this name; wait {WAIT_SECONDS:.0f} seconds.")
            person = _person_by_password(context, name, password) if context.auth else _person_by_name(context, name)
        except UserError as error:
            recent.append(time.monotonic())
            return RedirectResponse(
                f"{context.root_path}/sign-in?error={quote(str(error))}&next={quote(next)}", status_code=303
            )
        return _enter(request, person, context.root_path, next)

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


def _person_by_password(context: Context, name: str, password: str) -> Person:
    with context.database.read() as session:
        person = check_password(session, name, password)
    if person is None:
        raise UserError("Name and password do not fit.")
    return person


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
