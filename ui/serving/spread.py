"""Spread the connections over the workers: browsers keep one for long, and a worker that was started anew has none."""

from __future__ import annotations

import random

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANSWERS_A_CONNECTION = 30
"""On average; then it is closed, and the next one comes to whichever worker has time."""


class SpreadConnections:
    """ASGI middleware, around all that answer, of one of several workers."""

    def __init__(self, app: ASGIApp, answers: int = ANSWERS_A_CONNECTION) -> None:
        self.app = app
        self.answers = answers
        self.rng = random.Random()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        closes = scope["type"] == "http" and self.rng.randrange(self.answers) == 0
        await self.app(scope, receive, send_last if closes else send)
