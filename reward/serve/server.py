"""Answer over HTTP what images are worth to a reward model: the routes, who may ask, and how many at a time."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from db.errors import UserError
from pixels.read import RgbImage
from reward.model.reward_set import name_heads
from reward.model.set_config import SetConfig
from reward.score.scorer import Scorer, score_apart
from reward.serve.contract import CONTRACT, JSON, NPZ, Answer, Limits, Refusal, RemoteDescription
from reward.serve.protocol import ImpatientProtocol
from reward.serve.wire import ScoreRequest, pack_answer, read_request
from runs.store import code_version

logger = logging.getLogger(__name__)

PLACES = 8
"""Requests that are received, wait or are scored at a time; each holds its body in memory."""
RETRY_AFTER_SECONDS = 2
PATIENCE_SECONDS = 15.0
SLOWEST_BYTES_PER_SECOND = 512 * 2**10
"""A body that comes slower than this after PATIENCE_SECONDS is waited for no longer."""
KEEP_ALIVE_SECONDS = 30
SHUTDOWN_SECONDS = 20


def describe(scorer: Scorer, limits: Limits) -> RemoteDescription:
    """What /version tells of a scorer."""
    config = scorer.config
    if isinstance(config, SetConfig):
        members = [member.name for member in config.members]
    else:
        members = name_heads(scorer.name, config)
    return RemoteDescription(
        contract=CONTRACT,
        name=scorer.name,
        version=scorer.version,
        limits=limits,
        needs_input=config.needs_input,
        input_photo=config.input_photo,
        needs_caption=config.text_mode == "caption",
        prompt=config.prompt,
        has_spread=scorer.has_spread,
        members=tuple(members),
        software=f"facereward {code_version()}",
    )


def answer_request(scorer: Scorer, request: ScoreRequest, batch_size: int) -> Answer:
    """Score what was asked for, in batches.

    Raises:
        Refusal: the photos that the model sees are not there, or its rewards are not finite.
        UserError: a batch is too large for the memory.
    """
    if scorer.config.needs_input and request.inputs is None:
        raise Refusal(
            422, f"{scorer.name} compares each image with the photo that was restored; send as many inputs as images."
        )
    inputs = share_equal(request.inputs) if request.inputs is not None and scorer.config.needs_input else None
    rewards, spreads = [], []
    for start in range(0, len(request.images), batch_size):
        part = slice(start, start + batch_size)
        seen = inputs[part] if inputs is not None else None
        found, spread = score_apart(scorer, request.images[part], request.captions[part], seen)
        rewards.append(found)
        spreads.append(spread)
    values, spread = np.concatenate(rewards), np.concatenate(spreads)
    if not np.isfinite(values).all():
        raise Refusal(500, f"{scorer.name} gives rewards that are no numbers; its weights are damaged.")
    told = spread.tolist() if scorer.has_spread else None
    return Answer(name=scorer.name, version=scorer.version, rewards=values.tolist(), spread=told)


def share_equal(images: Sequence[RgbImage]) -> list[RgbImage]:
    """The images, equal ones the same object, so that a photo that several were made of is encoded once."""
    known: dict[tuple[tuple[int, ...], bytes], RgbImage] = {}
    return [known.setdefault((image.shape, image.tobytes()), image) for image in images]


@dataclass
class Desk:
    """Where requests are answered: by one thread, in the order in which they were received."""

    scorer: Scorer
    limits: Limits
    batch_size: int
    token: str | None
    description: RemoteDescription
    thread: ThreadPoolExecutor
    inside: int = 0
    """Requests that have one of the PLACES; changed by the event loop's thread alone."""

    def check_token(self, request: Request) -> None:
        """Refuse who does not know the token."""
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {self.token}"
        if self.token is not None and not hmac.compare_digest(given.encode("latin-1"), wanted.encode("latin-1")):
            raise Refusal(401, "The token is missing or wrong; send the header Authorization: Bearer TOKEN.")

    async def tell_health(self, _: Request) -> Response:
        """Tell that the server is there; whoever asks."""
        return JSONResponse({"status": "ok"})

    async def tell_version(self, request: Request) -> Response:
        """Tell which reward this is, and what it takes."""
        self.check_token(request)
        return JSONResponse(self.description.model_dump(mode="json"))

    async def score(self, request: Request) -> Response:
        """Score images."""
        self.check_token(request)
        kind = check_headers(request, self.limits)
        if self.inside >= PLACES:
            raise Refusal(503, f"{PLACES} requests are waiting already; try again.", RETRY_AFTER_SECONDS)
        self.inside += 1
        try:
            body = await receive_body(request, self.limits)
            answer = await asyncio.get_running_loop().run_in_executor(self.thread, self.answer, body, kind)
        finally:
            self.inside -= 1
        if NPZ in request.headers.get("accept", ""):
            return Response(pack_answer(answer), media_type=NPZ)
        return JSONResponse(answer.model_dump(exclude_none=True))

    def answer(self, body: bytes, kind: str) -> Answer:
        """What a body asks for; called by the one thread."""
        request = read_request(body, kind, self.limits)
        try:
            return answer_request(self.scorer, request, self.batch_size)
        except UserError as error:  # the memory, which others may have taken for a while
            logger.error("%s", error)
            raise Refusal(503, str(error), RETRY_AFTER_SECONDS) from error


def check_headers(request: Request, limits: Limits) -> str:
    """The type of a request's body: JSON or NPZ.

    Raises:
        Refusal: it is of another type, compressed, or declared too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, NPZ):
        raise Refusal(415, f"The body's type is {kind[:60] or 'not said'!r}; send {JSON} or {NPZ}.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "Bodies are taken uncompressed; leave Content-Encoding out.")
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" not in request.headers:
        raise Refusal(411, "The length of the body is not said; send Content-Length.")
    if length is not None and (not length.isdecimal() or int(length[:20]) > limits.max_body_bytes):
        raise _too_large(limits)
    return kind


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The body is larger than {limits.max_body_bytes:,} bytes; send fewer images at a time.")


async def receive_body(request: Request, limits: Limits) -> bytes:
    """The body, as long as it comes fast enough.

    Raises:
        Refusal: it is too large, too slow, or ends before its end.
    """
    loop = asyncio.get_running_loop()
    start, body = loop.time(), bytearray()
    try:
        async with asyncio.timeout_at(start + PATIENCE_SECONDS) as limit:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
                limit.reschedule(start + PATIENCE_SECONDS + len(body) / SLOWEST_BYTES_PER_SECOND)
    except TimeoutError as error:
        raise Refusal(408, f"Only {len(body):,} bytes of the body came in {loop.time() - start:.0f} s.") from error
    except ClientDisconnect as error:
        raise Refusal(400, "The connection ended before the body did.") from error
    return bytes(body)


async def tell_refusal(_: Request, error: Exception) -> Response:
    """Say in JSON why a request is refused; a body that is still coming is not received any more."""
    assert isinstance(error, Refusal)
    headers = {"Connection": "close"} if error.status in (401, 408, 411, 413, 415, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return JSONResponse({"error": str(error)}, error.status, headers)


async def tell_http_error(request: Request, error: Exception) -> Response:
    """Say in JSON that there is no such page or method."""
    assert isinstance(error, HTTPException)
    said = "There are GET /health, GET /version and POST /score."
    return JSONResponse({"error": f"{error.detail}: {request.method}. {said}"}, error.status_code, error.headers)


async def tell_fault(_: Request, __: Exception) -> Response:
    """Say in JSON that the server has a fault, whose traceback stands in its own log alone."""
    return JSONResponse({"error": "The server has a fault; its log says more."}, 500)


def make_app(scorer: Scorer, limits: Limits, batch_size: int, token: str | None = None) -> Starlette:
    """The routes; `app.state.desk` is what answers them.

    Args:
        token: what who asks must know; None for nobody but this machine's own.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="score")
    desk = Desk(scorer, limits, batch_size, token, describe(scorer, limits), thread)
    routes = [
        Route("/health", desk.tell_health),
        Route("/version", desk.tell_version),
        Route("/score", desk.score, methods=["POST"]),
    ]
    refusals = {Refusal: tell_refusal, HTTPException: tell_http_error, Exception: tell_fault}
    app = Starlette(routes=routes, exception_handlers=refusals)
    app.router.redirect_slashes = False  # a redirect is one more thing that a client would have to know
    app.state.desk = desk
    return app


def make_server(app: Starlette) -> uvicorn.Server:
    """What listens for the app; it takes no longer than SHUTDOWN_SECONDS to end."""
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def serve(app: Starlette, listener: socket.socket) -> None:
    """Answer until a signal ends it; what is being scored is ended first."""
    make_server(app).run(sockets=[listener])
    app.state.desk.thread.shutdown(cancel_futures=True)
