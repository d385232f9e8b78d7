"""Give requests their turns, and bound their waits, so that what hangs stops only what needs it.

FastAPI runs our routes in one pool of 40 threads, and static files need it too. Requests that write, those that read
and those of one person may therefore only take a part of it. None of them waits for the database, or for its turn, for
longer than PATIENCE_SECONDS; then it is told so, and a page keeps its answers and sends them again.
"""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio
from fastapi import Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.errors import UnavailableError
from db.waiting import wait_at_most
from ui.errors import refuse_value, show

log = logging.getLogger(__name__)

WRITERS = 8
READERS = 24
LEAST = 3
"""Of each, of one of many processes."""
READERS_PER_PERSON = 6
"""As many as a browser has connections to one server."""
PATIENCE_SECONDS = 5.0
RETRY_SECONDS = 2
FREE_PATHS = ("/static/", "/favicon.ico", "/admin")
"""Paths that read no database, and Gradio's pages, which have threads of their own."""
WRITING_PATHS = ("/enter/", "/study/", "/api/study")
"""GET requests that write all the same."""
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(:[0-9]{1,5})?")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EIO}


class TurnLostError(Exception):
    """A request waited PATIENCE_SECONDS for its turn."""


class OwnTurnLostError(TurnLostError):
    """The person's own other requests took that long."""


@dataclass
class Turns:
    """So many at once, and so many of one person; the others wait in the order in which they came, without a thread.

    Each person has a queue, and only the first of it stand in everybody's: who sends a thousand requests stands there
    no more often than the others.
    """

    at_once: int
    of_one: int
    _own: dict[object, anyio.Semaphore] = field(default_factory=dict)
    _inside: dict[object, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = anyio.Semaphore(self.at_once)

    @asynccontextmanager
    async def take(self, who: object) -> AsyncIterator[None]:
        """Wait for the turn of this person (None: nobody in particular), and hold it.

        Raises:
            TurnLostError: it did not come within PATIENCE_SECONDS.
        """
        if who is None:
            await _acquire(self._all, TurnLostError)
            try:
                yield
            finally:
                self._all.release()
            return
        own = self._own.setdefault(who, anyio.Semaphore(self.of_one))
        self._inside[who] = self._inside.get(who, 0) + 1
        try:
            await _acquire(own, OwnTurnLostError)
            try:
                await _acquire(self._all, TurnLostError)
                try:
                    yield
                finally:
                    self._all.release()
            finally:
                own.release()
        finally:
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who], self._own[who]


async def _acquire(semaphore: anyio.Semaphore, otherwise: type[TurnLostError]) -> None:
    try:
        semaphore.acquire_nowait()
    except anyio.WouldBlock:
        with anyio.move_on_after(PATIENCE_SECONDS) as waiting:
            await semaphore.acquire()
        if waiting.cancelled_caught:
            raise otherwise from None


class TakeTurns:
    """ASGI middleware, inside the gate, that gives each request its turn.

    Several processes share the turns, and thereby the connections of the database, but for a least number of each.
    """

    def __init__(self, app: ASGIApp, *, auth: bool, workers: int = 1) -> None:
        self.app = app
        self.auth = auth
        self.writers = Turns(max(LEAST, WRITERS // workers), 1)
        self.readers = Turns(max(LEAST, READERS // workers), READERS_PER_PERSON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else "/static/"
        # With --auth sign-in has a short queue of its own: whoever tries passwords stands there.
        if path.startswith(FREE_PATHS) or (path == "/sign-in" and self.auth):
            await self.app(scope, receive, send)
            return
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS") or path.startswith(WRITING_PATHS)
        visitor = scope.get("visitor")
        turns = self.writers if writes else self.readers
        async with turns.take(None if visitor is None else visitor.person_id):
            await self.app(scope, receive, send)


class BoundWaits:
    """ASGI middleware, around all others: bounds the waits, and answers where one was in vain, in one line of log.

    Faults of ours keep their traceback: they pass.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        if (name := _find_bad_host(request)) is not None:
            refusal = JSONResponse(
                {"error": f"{show(ascii(name))} is not a host name; the request cannot be read."}, 400
            )
            await refusal(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        # Gradio's handlers start as requests too, and some of them work for minutes.
        patient = scope["path"].removeprefix(scope.get("root_path", "")).startswith("/admin")
        try:
            with nullcontext() if patient else wait_at_most(PATIENCE_SECONDS):
                await self.app(scope, receive, note_start)
        except Exception as error:
            answer = answer_fault(error)
            if answer is None or started:
                raise
            log.warning("%s %s: %d, %s", request.method, scope["path"], answer.status_code, _first_line(error))
            await answer(scope, receive, send)


def _find_bad_host(request: Request) -> str | None:
    """Return the text in place of a host in this request that cannot be one."""
    for header in ("host", "x-forwarded-host", "origin"):
        for name in request.headers.getlist(header):
            first = name.split(",")[0].strip()
            try:
                _ = urlsplit(first if header == "origin" else f"//{first}").port
            except ValueError:
                return first
            if first and header != "origin" and not HOST.fullmatch(first):
                return first
    return None


def answer_fault(error: Exception) -> JSONResponse | None:
    """Answer a fault that is not ours with 400, 429 or 503; None for any other."""
    if isinstance(error, OwnTurnLostError):
        message = "Too many requests of yours at once; wait some seconds."
        return JSONResponse({"error": message}, 429, {"Retry-After": str(RETRY_SECONDS)})
    if isinstance(error, DataError | UnicodeEncodeError) or (isinstance(error, OverflowError) and "SQL" in str(error)):
        return refuse_value(error)
    if is_unavailable(error):
        message = "The server cannot read or store anything at this moment; try again in some seconds."
        return JSONResponse({"error": message}, 503, {"Retry-After": str(RETRY_SECONDS)})
    return None


def is_unavailable(error: Exception) -> bool:
    """Whether the database, the disk or a turn was not to be had, which may pass by itself."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    if isinstance(error, OperationalError):  # SQLite names wrong SQL so too, which is a fault of ours
        return getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, UnavailableError | TurnLostError | PoolTimeoutError)


def _first_line(error: Exception) -> str:
    words = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return words.partition("\n")[0] or type(error).__name__
