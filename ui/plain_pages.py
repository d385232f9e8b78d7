"""Send the HTML of a page of our own, and the JSON that such pages ask for again and again."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

STATIC = Path(__file__).parent / "static"
"""What the browser runs, and beside it the pages' templates, which begin as page.html does."""
_TEMPLATES = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined)


def send_page(template: str, root_path: str, status: int = 200, cache: str = "no-cache", **texts: str) -> HTMLResponse:
    """Send a template of `STATIC`; `root` in it is the path below which its addresses lie, `texts` its other names."""
    content = _TEMPLATES.get_template(template).render(root=root_path, **texts)
    return HTMLResponse(content, status, {"Cache-Control": cache})


def send_json(request: Request, body: dict[str, Any]) -> Response:
    """Send a body as JSON, NaN and infinity as null; 304 without a body where the page has it already."""
    content = json.dumps(_finite(body), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
