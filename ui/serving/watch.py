"""Answer /healthz for whatever watches the server, and /metrics for Prometheus.

In front of the gate, which asks for sessions and hosts that such programs do not have.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import httpx
from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Receive, Scope, Send

from db.errors import UnavailableError
from db.models import Project
from db.session import Database
from db.waiting import wait_at_most
from runs.listen import is_loopback
from ui.address import split_host
from ui.context import Context, Worker
from ui.gate.address_token import forwarded_by
from ui.serving.counts import SEEN, TYPE, Counts, write_text

log = logging.getLogger(__name__)

HEALTH_SECONDS = 2.0
"""The longest wait for the database."""
FRESH_SECONDS = 1.0
"""What was found is told again for so long, so that nobody loads the database by asking."""
WORKER_SECONDS = 1.0
"""The longest wait for another worker's counts."""
OWN_COUNTS = "/counts"
"""Asked by the other workers, by the socket that only they reach."""
REFUSED = (
    "Counts are for programs of this machine that ask 127.0.0.1 directly, or that send the token of "
    "--metrics-token-file (Authorization: Bearer …)."
)

Figures = Mapping[str, tuple[str, float]]


@dataclass
class _Look:
    """What a look into the database told last; one look at a time, whoever asks."""

    look: Callable[[], Figures]
    figures: Figures = field(default_factory=dict)
    is_well: bool = False
    _at: float = -FRESH_SECONDS
    _turn: anyio.Lock | None = None
    _threads: anyio.CapacityLimiter | None = None

    async def renew(self) -> None:
        """Look again where the last look is not fresh."""
        if self._turn is None or self._threads is None:  # made where the event loop runs
            self._turn, self._threads = anyio.Lock(), anyio.CapacityLimiter(1)
        async with self._turn:
            if time.monotonic() - self._at < FRESH_SECONDS:
                return
            found = None
            with anyio.move_on_after(HEALTH_SECONDS):  # a thread that hangs has the limiter, so there is only one
                found = await anyio.to_thread.run_sync(self._try, abandon_on_cancel=True, limiter=self._threads)
            self.is_well, self._at = found is not None, time.monotonic()
            self.figures = found or {}

    def _try(self) -> Figures | None:
        try:
            with wait_at_most(HEALTH_SECONDS):
                return self.look()
        except (SQLAlchemyError, UnavailableError, OSError) as error:
            log.warning("the database does not answer: %s", str(error).partition("\n")[0])
            return None


class Watch:
    """ASGI middleware, around the gate.

    Args:
        look: reads what the database tells of all workers together: by name the explanation and the value.
    """

    def __init__(self, app: ASGIApp, context: Context, counts: Counts, look: Callable[[], Figures]) -> None:
        self.app = app
        self.context = context
        self.counts = counts
        self.health = _Look(lambda: ask_database(context.database))
        self.figures = _Look(look)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(self.context.root_path)
        by_worker = scope["type"] == "http" and (scope.get("server") or ("", 0))[1] is None
        answer: Response | None = None
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            if path == "/healthz":
                answer = await self._tell_health()
            elif path == OWN_COUNTS and by_worker:
                answer = JSONResponse(self.counts.dump())
            elif path == "/metrics":
                answer = await self._tell_counts(Request(scope))
        if answer is not None and SEEN in scope:
            scope[SEEN]["route"] = path
        await (answer or self.app)(scope, receive, send)

    async def _tell_health(self) -> Response:
        await self.health.renew()
        well = self.health.is_well
        headers = {"Cache-Control": "no-store"}
        return JSONResponse({"status": "ok" if well else "unavailable"}, 200 if well else 503, headers)

    async def _tell_counts(self, request: Request) -> Response:
        if not may_read_counts(request, self.context.metrics_token):
            return PlainTextResponse(REFUSED, 403)
        workers: dict[int, Counts | None] = {self.context.worker.number: self.counts}
        async with anyio.create_task_group() as tasks:
            for number in set(range(self.context.worker.count)) - set(workers):
                tasks.start_soon(_ask_worker, self.context.worker, number, workers)
            await self.figures.renew()
        up = ("Whether the database answers.", int(self.figures.is_well))
        text = write_text(workers, {"database_up": up, **self.figures.figures})
        return Response(text, media_type=None, headers={"Content-Type": TYPE, "Cache-Control": "no-store"})


def ask_database(database: Database) -> Figures:
    """Nothing, where the database answers and has our tables."""
    with database.read() as session:
        session.execute(select(Project.id).limit(1))
    return {}


def may_read_counts(request: Request, token: str | None) -> bool:
    """Whether this is a program of this machine that no proxy speaks for, or one that has the token."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token is not None and hmac.compare_digest(given.encode(), token.encode()):
        return True
    client, host = request.client, split_host(request.headers.get("host", ""))
    here = client is not None and is_loopback(client.host) and host is not None and is_loopback(host[0])
    return here and not forwarded_by(request)


async def _ask_worker(worker: Worker, number: int, into: dict[int, Counts | None]) -> None:
    into[number] = None
    transport = httpx.AsyncHTTPTransport(uds=str(worker.socket_of(number)))
    try:
        async with httpx.AsyncClient(transport=transport, timeout=WORKER_SECONDS) as client:
            answer = await client.get(f"http://worker{OWN_COUNTS}")
            into[number] = Counts.load(answer.raise_for_status().json())
    except httpx.HTTPError as error:
        log.warning("worker %d does not tell its counts: %r", number, error)
