"""Take the webhooks of panels. Nobody is signed in here: the signature is who sends them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from annotate.prolific.webhook import ForgedError, check, read_secret, take
from db.errors import UserError
from ui.context import Context
from ui.errors import refusal


async def read_body(request: Request) -> bytes:
    """The body's bytes as they came, which the signature is of; the gate limits them."""
    return await request.body()


def hook_routes(context: Context) -> APIRouter:
    """POST /hooks/prolific."""
    routes = APIRouter()

    @routes.post("/hooks/prolific")
    def take_webhook(request: Request, body: Annotated[bytes, Depends(read_body)]) -> Response:
        try:
            check(read_secret(), request.headers, body)
            with context.database.write() as session:
                changed = take(session, request.headers, body)
        except ForgedError as error:
            return refusal(request, 401, str(error))
        except UserError as error:
            return refusal(request, 400, str(error))
        return JSONResponse({"changed": changed})

    return routes
