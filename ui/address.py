"""Where a browser reaches this app: the path that a proxy serves it below, and its address as seen from outside."""

from __future__ import annotations

from ipaddress import ip_address

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send


class BelowRootPath:
    """ASGI middleware for a server below a proxy's path, whether the proxy takes that path off or leaves it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.root_path:
            path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
            if path == self.root_path:
                path, raw = path + "/", raw + b"/"
            elif not path.startswith(self.root_path + "/"):
                path, raw = self.root_path + path, self.root_path.encode() + raw
            scope = {**scope, "path": path, "raw_path": raw, "root_path": self.root_path}
        await self.app(scope, receive, send)


def path_of(request: Request) -> str:
    """The request's path in this app, without the path that a proxy serves it below."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def public_address(request: Request) -> str:
    """Scheme and host with which the visitor's browser reaches this server, as a proxy tells them."""

    def told(header: str, otherwise: str) -> str:
        return request.headers.get(header, otherwise).split(",")[0].strip()

    scheme = told("x-forwarded-proto", request.url.scheme)
    host = told("x-forwarded-host", request.headers.get("host", request.url.netloc))
    return f"{scheme}://{host}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
