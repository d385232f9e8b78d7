"""Find the address that a browser reaches this app by: the path below a proxy, host and scheme."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.errors import UserError
from runs.listen import is_loopback

DEFAULT_PORTS = {"http": 80, "https": 443}
OWN_PATHS = ("admin", "api", "enter", "favicon.ico", "healthz", "img", "metrics", "sign-in", "sign-out", "static")


@dataclass(frozen=True)
class BaseUrl:
    """The address that people open, as --base-url gives it; the root path is not in it."""

    scheme: str
    host: str
    """Name or address, and the port where it is not the scheme's own."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}"


class BelowRootPath:
    """ASGI middleware for a server below a proxy's path, whether the proxy takes that path off or leaves it.

    With a base URL every request is taken for one to that address, whatever a proxy tells, once the gate's
    `refuses_host` has seen the host that it came with. Cookies are Secure where the browser speaks HTTPS.
    """

    def __init__(self, app: ASGIApp, root_path: str, base_url: BaseUrl | None = None) -> None:
        self.app = app
        self.root_path = root_path
        self.base_url = base_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope, send = self._seen_from_outside(scope, send)
        if scope["type"] == "http" and self.root_path:
            path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
            if path == self.root_path:
                path, raw = path + "/", raw + b"/"
            elif not path.startswith(self.root_path + "/"):
                path, raw = self.root_path + path, self.root_path.encode() + raw
            scope = {**scope, "path": path, "raw_path": raw, "root_path": self.root_path}
        await self.app(scope, receive, send)

    def _seen_from_outside(self, scope: Scope, send: Send) -> tuple[Scope, Send]:
        if self.base_url is not None:
            told = [(name, value) for name, value in scope["headers"] if name not in REPLACED]
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            headers = [*told, (b"host", self.base_url.host.encode("ascii"))]
            scope = {**scope, "scheme": self.base_url.scheme, "headers": headers, "facereward.host": host}
        told_scheme = next((value for name, value in scope["headers"] if name == b"x-forwarded-proto"), b"")
        if not (told_scheme or scope["scheme"].encode()).startswith(b"https"):
            return scope, send

        async def send_securely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [_make_secure(name, value) for name, value in message["headers"]]}
            await send(message)

        return scope, send_securely


REPLACED = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-server")
"""Headers that say where a request went, which the base URL knows."""


def _make_secure(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    cookie = name.lower() == b"set-cookie" and not re.search(rb";\s*secure\b", value, re.IGNORECASE)
    return name, value + b"; Secure" if cookie else value


def cookie_name(base: str, base_url: BaseUrl | None, root_path: str) -> str:
    """A cookie's name with the prefix that keeps others of the domain, and plain HTTP, from setting it."""
    if base_url is None or base_url.scheme != "https":
        return base
    return f"__Secure-{base}" if root_path else f"__Host-{base}"


def check_root_path(root_path: str) -> str:
    """A path such as '/label', without a slash at its end; empty for none.

    Raises:
        UserError: it is not a plain path, or begins as one of the app's own, so that the two could not be told apart.
    """
    path = root_path.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", path):
        raise UserError(f"--root-path {root_path!r} is not a path of plain letters and digits; give one like /label.")
    if path and path.split("/")[1] in OWN_PATHS:
        raise UserError(f"--root-path {root_path} begins as a path of the app's own; give another, such as /label.")
    return path


def read_base_url(text: str, root_path: str) -> tuple[BaseUrl | None, str]:
    """(the base URL without its path, the root path) of --base-url and --root-path; (None, …) for an empty text.

    Raises:
        UserError: it is not an address of http or https, has more than a path in it, or another path than --root-path.
    """
    if not text:
        return None, check_root_path(root_path)
    example = "give the address that people open, such as https://label.example.org or https://example.org/label."
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UserError(f"--base-url {text!r} is not an address; {example}") from error
    plain = parts.hostname is not None and re.fullmatch(r"[a-z0-9._:-]+", parts.hostname) is not None
    if parts.scheme not in DEFAULT_PORTS or not plain or "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"--base-url {text!r} is not an address of http or https alone; {example}")
    try:
        path = check_root_path(parts.path)
        asked = check_root_path(root_path)
    except UserError as error:
        raise UserError(str(error).replace("--root-path", "the path of --base-url or --root-path")) from error
    if asked and asked != path:
        raise UserError(f"--root-path {asked} is not the path of --base-url {text}; leave --root-path out.")
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    shown_port = "" if port in (None, DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return BaseUrl(parts.scheme, host + shown_port), path


def read_trusted_proxies(text: str) -> list[str]:
    """Addresses and networks of --trusted-proxy, by commas.

    Raises:
        UserError: one is neither; a name, or '*', would let anybody say who they are.
    """
    found = [one.strip() for one in text.split(",")]
    for one in found:
        try:
            ip_network(one)
        except ValueError as error:
            raise UserError(
                f"--trusted-proxy {one!r} is not an address or network ({error}); give those of your proxy, such as "
                "10.0.0.5 or 10.0.0.0/24."
            ) from error
    return found


def split_host(host: str, scheme: str = "http") -> tuple[str, int] | None:
    """(name, port) of a Host header, the scheme's port where it names none; None where it is not written as one."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (name, port or DEFAULT_PORTS.get(scheme, 0)) if name and parts.netloc == host and "@" not in host else None


def refuses_host(base_url: BaseUrl, host: str) -> bool:
    """Whether a request came to a host that is neither the base URL's nor this machine's own."""
    found = split_host(host, base_url.scheme)
    return found is None or (found != split_host(base_url.host, base_url.scheme) and not is_loopback(found[0]))


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names a host, with or without its scheme's port."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    found = split_host(parts.netloc, parts.scheme)
    return found is not None and found == split_host(host, parts.scheme)


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
