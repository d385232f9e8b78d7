"""Pass the admin pages' requests on to the first worker: Gradio keeps its sessions in the memory of one process.

Each request goes as it came, over a socket in a folder that only this app's user can enter, and the first worker's own
gate decides about it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"proxy-connection"}
"""Headers of one connection, not of a request."""
OF_SERVER = {b"date", b"server"}
"""Headers that uvicorn adds here again."""
CONNECT_SECONDS = 5.0
KEPT_CONNECTIONS = 10
RETRY_SECONDS = 3


class ForwardAdmin:
    """ASGI middleware, around all others, of every worker but the first."""

    def __init__(self, app: ASGIApp, root_path: str, socket: Path) -> None:
        self.app = app
        self.root_path = root_path
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS)
        self.transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(self.root_path) if scope["type"] == "http" else ""
        if path != "/admin" and not path.startswith("/admin/"):
            await self.app(scope, receive, send)
            return
        body = _Body(receive)
        async with anyio.create_task_group() as tasks:

            async def end_when_gone() -> None:
                await body.wait_for_farewell()
                tasks.cancel_scope.cancel()

            tasks.start_soon(end_when_gone)
            await self._pass_on(scope, body, receive, send)
            tasks.cancel_scope.cancel()

    async def _pass_on(self, scope: Scope, body: _Body, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP]
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = (scope.get("raw_path") or scope["path"].encode()) + query
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        timeouts = {"connect": CONNECT_SECONDS, "pool": CONNECT_SECONDS, "read": None, "write": None}
        request = httpx.Request(
            scope["method"],
            "http://worker/",
            headers=headers,
            content=body.read() if has_body else None,
            extensions={"timeout": timeouts, "target": target},
        )
        if not has_body:
            await body.skip()
        started = False
        try:
            answer = await self.transport.handle_async_request(request)
            try:
                told = [(name.lower(), value) for name, value in answer.headers.raw]
                kept = [(name, value) for name, value in told if name not in HOP_BY_HOP and name not in OF_SERVER]
                await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
                started = True
                async for part in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()
        except httpx.TransportError as error:
            log.warning("the first worker, which has the admin pages, does not answer: %r", error)
            if started:
                raise
            refusal = JSONResponse(
                {"error": "The admin pages are being started again; try again in some seconds."},
                503,
                {"Retry-After": str(RETRY_SECONDS)},
            )
            await refusal(scope, receive, send)


class _Body:
    """The body of a request as it comes, and the client's farewell after it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._whole = anyio.Event()

    async def read(self) -> AsyncIterator[bytes]:
        """Yield its parts."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise httpx.ReadError("the browser left before it had sent all")
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]
        self._whole.set()

    async def skip(self) -> None:
        """Take the empty body of a request that announced none."""
        await self._receive()
        self._whole.set()

    async def wait_for_farewell(self) -> None:
        """Return when the client is gone."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
