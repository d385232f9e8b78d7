"""Fill the HTML of a page of our own and send it."""

from __future__ import annotations

from pathlib import Path

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

STATIC = Path(__file__).parent / "static"
"""What the browser runs, and beside it the pages' templates, which begin as page.html does."""
_TEMPLATES = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined)


def send_page(template: str, root_path: str, status: int = 200, cache: str = "no-cache", **texts: str) -> HTMLResponse:
    """Send a template of `STATIC`; `root` in it is the path below which its addresses lie, `texts` its other names."""
    content = _TEMPLATES.get_template(template).render(root=root_path, **texts)
    return HTMLResponse(content, status, {"Cache-Control": cache})
