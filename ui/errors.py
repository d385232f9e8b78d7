"""Answer malformed requests with a message in words, whatever bytes the request held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

SHOWN_CHARACTERS = 100


def refusal(request: Request, status: int, message: str) -> Response:
    """A refusal as JSON, or as plain text where a page was asked for."""
    if "text/html" in request.headers.get("accept", ""):
        return Response(message, status_code=status, media_type="text/plain")
    return JSONResponse({"error": message}, status_code=status)


def describe_invalid(errors: Sequence[Any]) -> str:
    """Describe pydantic's first error in one printable line.

    Everything that came with the request is shown cut and escaped: it may be of any length, and hold halves of
    characters, NaN or NUL, none of which could be sent back as they came.
    """
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    said = f"{show(where)}: {show(first['msg'])}" if where else show(first["msg"])
    return f"{said}, got {show(ascii(first.get('input')))}"


def show(text: str) -> str:
    """A text as a message shows it: cut, and printable."""
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} … ({len(text)} characters)"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)


async def refuse_invalid(request: Request, error: Any) -> JSONResponse:  # noqa: ARG001
    """FastAPI's handler for a request that its types refuse: its own answer repeats the input, and fails on some."""
    return JSONResponse({"error": f"This request cannot be read: {describe_invalid(error.errors())}"}, status_code=400)


def refuse_value(error: Exception) -> JSONResponse:
    """The answer to a request with a value that no database can store: half a character, NUL, a number too large."""
    if isinstance(error, UnicodeEncodeError):
        seen = show(ascii(error.object))
        return JSONResponse({"error": f"This text holds half a character (a lone surrogate): {seen}"}, status_code=400)
    said = show(str(getattr(error, "orig", error)).partition("\n")[0])
    return JSONResponse({"error": f"This request holds a value that cannot be stored: {said}"}, status_code=400)
