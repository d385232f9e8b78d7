"""Check who may open what: one gate in front of every route, which finds out who a visitor is.

An anonymous visitor reaches the sign-in page, the links of studies and the static files. An annotator, and a
participant of a study, reaches the labelling page, its API and the images that this API named to them; a participant
the steps of their own way too. An admin reaches everything.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import anyio
import anyio.to_thread
from fastapi import HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from itsdangerous import BadSignature, URLSafeSerializer
from sqlalchemy import bindparam, select
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.errors import UserError
from db.models import Person, Role
from runs.listen import is_loopback
from ui.address import is_same_origin, path_of, refuses_host, split_host
from ui.context import Context
from ui.errors import refusal
from ui.gate.address_token import AddressToken
from ui.gate.turns import Turns

SECRET_BYTES = 32
OPEN_PATHS = ("/sign-in", "/enter/", "/study", "/hooks/", "/static/", "/api/sign-in-info", "/favicon.ico")
ADMIN_PATHS = ("/admin", "/api/runs", "/api/train", "/api/lineage", "/api/overview", "/api/studies")
GRADIO_PATHS = ("/admin",)
MAX_BODY_BYTES = {
    "/sign-in": 16 * 2**10,
    "/api/": 2 * 2**20,  # 500 answers
    "/hooks/": 64 * 2**10,
    "/admin/gradio_api/upload": 4 * 2**30,
    "/admin": 64 * 2**20,
}
"""By the beginning of the path, the first that fits; larger ones are for admins, whom the gate knows before a byte of
the body is read."""
MAX_OTHER_BODY_BYTES = 16 * 2**10
PARTICIPANT = "study"
"""In a session's cookie: true of who came by a study's link."""
LOOK_UPS = 8
"""Sessions that are looked up at a time in a database that may hang."""
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
ADMIN_CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Content policy of Gradio's pages: their scripts stand in the HTML and make functions of text, but come from here, and
nothing is sent or fetched elsewhere."""

FIND_PERSON = select(
    *(Person.id, Person.name, Person.role, Person.public_id, Person.session_version, Person.disabled_at)
).where(Person.id == bindparam("person_id"))
"""Built once, for every request asks it."""


@dataclass(frozen=True)
class Visitor:
    """The signed-in person of a request."""

    person_id: int
    name: str
    role: Role
    public_id: str
    participant: bool = False
    """Of a study: someone who came by its link."""


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
        folder = os.open(data, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the file may be gone after a power cut, and with it everybody's session
        finally:
            os.close(folder)
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
        """Return the cookie a browser keeps after a sign-in, so that strangers' guesses do not lock it out."""
        return str(self._devices.dumps([name, secrets.token_hex(8)]))

    def read_device(self, token: str) -> tuple[str, str] | None:
        """(name, the browser's own number) of `device`; None where it is not ours."""
        try:
            name, number = self._devices.loads(token)
        except (BadSignature, ValueError):
            return None
        return str(name), str(number)


class Gate:
    """ASGI middleware that lets a request through to what its visitor may see, and no other.

    Images may come from `image_origin` too, where an object store serves them ('https://host').
    """

    def __init__(self, app: ASGIApp, context: Context, address_token: AddressToken, image_origin: str = "") -> None:
        self.app = app
        images = f"img-src 'self' {image_origin}".rstrip()
        self.policies = [
            policy.replace("img-src 'self'", images)
            for policy in (CONTENT_SECURITY_POLICY, ADMIN_CONTENT_SECURITY_POLICY)
        ]
        self.context = context
        self.address_token = address_token
        self.look_ups = Turns(LOOK_UPS, LOOK_UPS)
        self.threads: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request = Request(scope) if scope["type"] == "http" else None
        if request is None:
            await send({"type": "websocket.close", "code": 1008})  # nothing of ours speaks it
            return
        answer = self._refuse_foreign(request)
        if answer is None and not self.context.auth:
            answer = self.address_token.answer(request)
        if answer is None:
            answer = await self._refuse_visitor(request, scope)
        limit = _max_body_bytes(path_of(request))
        if answer is None and _announced_bytes(request) > limit:
            answer = refusal(request, 413, f"At most {limit:,} bytes can be sent to {path_of(request)}.")
        send = _with_headers(send, self.policies[path_of(request).startswith(GRADIO_PATHS)])
        await (answer or self.app)(scope, _limit_body(receive, limit), send)

    async def _find_visitor(self, request: Request) -> Visitor | None:
        """The look-up in SQLite is one by key that waits for nobody: a thread would cost more than it."""
        if self.context.database.engine.dialect.name == "sqlite":
            return find_visitor(self.context, request)
        self.threads = self.threads or anyio.CapacityLimiter(LOOK_UPS)  # made where the event loop runs
        async with self.look_ups.take(None):
            return await anyio.to_thread.run_sync(find_visitor, self.context, request, limiter=self.threads)

    def _refuse_foreign(self, request: Request) -> Response | None:
        """Requests to another host than ours, and those of another site's page through the visitor's browser."""
        base_url, host = self.context.base_url, request.headers.get("host", "")
        came_to = request.scope.get("facereward.host", host)
        if base_url is not None and refuses_host(base_url, came_to):
            return refusal(
                request,
                403,
                f"This app answers as {base_url} (--base-url), not as {came_to!r}. Let the proxy pass the Host header "
                "on, or start the app with the address that people open.",
            )
        if not self.context.auth and not is_loopback((split_host(came_to) or ("", 0))[0]):
            return refusal(
                request,
                403,
                f"Without --auth this app answers on localhost only, not as {came_to!r}. Start it with --auth to let "
                "others in.",
            )
        if request.method in ("GET", "HEAD", "OPTIONS") or (origin := request.headers.get("origin")) is None:
            return None
        # Only a proxy, or a page that the browser counts as ours, can set this one.
        forwarded = request.headers.get("x-forwarded-host", host).split(",")[0].strip()
        own = any(is_same_origin(origin, name) for name in (host, forwarded))
        if not own or (base_url is not None and urlsplit(origin).scheme != base_url.scheme):
            return refusal(request, 403, f"A page of {origin} may not send to {host}.")
        return None

    async def _refuse_visitor(self, request: Request, scope: Scope) -> Response | None:
        """Look up who it is, unless everybody may see the path, and refuse who may not."""
        path, root = path_of(request), request.scope.get("root_path", "")
        visitor = None
        if not path.startswith(OPEN_PATHS):
            visitor = await self._find_visitor(request)
            scope["visitor"] = visitor
        # A session was begun with the token or by a personal link; but of an older version's, which had no version,
        # by anybody.
        trusted = visitor is not None and "version" in request.session
        if not self.context.auth and not trusted and self.address_token.is_missing(request):
            return self.address_token.ask(request)
        if path.startswith(OPEN_PATHS):
            return None
        if visitor is None:
            if request.method == "GET" and not path.startswith(("/api/", "/img/", "/admin/gradio_api")):
                return RedirectResponse(f"{root}/sign-in?next={quote(root + path)}", status_code=303)
            return refusal(request, 401, "Signed out. Sign in again.")
        if path.startswith(ADMIN_PATHS) and visitor.role is not Role.admin:
            return refusal(request, 403, "Only admins see this page.")
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


def _with_headers(send: Send, policy: str) -> Send:
    """Keep JSON out of caches and add the security headers, this content policy among them."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.lower().startswith("access-control-")]:
                del headers[name]  # Gradio lets every site read its answers
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Referrer-Policy", "same-origin")
            if headers.get("content-type", "").startswith("application/json"):
                headers["Cache-Control"] = "no-store"  # else Back shows what was true before
            headers.setdefault("Content-Security-Policy", policy)
        await send(message)

    return send_with_headers


def find_visitor(context: Context, request: Request) -> Visitor | None:
    """The enabled person of the request's session cookie."""
    person_id = request.session.get("person_id")
    if person_id is None:
        return None
    with context.database.look_up() as connection:
        person = connection.execute(FIND_PERSON, {"person_id": person_id}).one_or_none()
    # The public id too: a cookie of another data folder's database would name a stranger here.
    if person is None or person.disabled_at is not None or person.public_id != request.session.get("public_id"):
        return None
    if request.session.get("version", 0) != person.session_version:
        return None  # signed out everywhere
    return Visitor(person.id, person.name, person.role, person.public_id, bool(request.session.get(PARTICIPANT)))


def visitor_of(request: Request) -> Visitor:
    """The visitor that the gate let through."""
    visitor: Visitor = request.scope["visitor"]
    return visitor
