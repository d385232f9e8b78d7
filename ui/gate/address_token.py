"""Ask for the secret in the printed address where there is no --auth, and exchange it for a cookie.

Every user of this machine reaches the port, and so does the whole internet once a proxy passes requests on. The
address is known to whoever reads the terminal alone. It is the same after a restart, for a bookmark; a new
`secret.key` in the data folder makes a new one.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from ui.address import path_of
from ui.errors import refusal
from ui.plain_pages import send_page

PARAMETER = "token"
COOKIE_SECONDS = 365 * 24 * 3600
OPEN_PATHS = ("/static/", "/favicon.ico", "/enter/")
"""Open without a token: the looks of the closed page, and personal links, which are secrets themselves."""
FORWARDED = (
    *("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip"),
    *("cf-connecting-ip", "fastly-client-ip", "fly-client-ip"),
)
FORWARDED_PREFIXES = ("x-forwarded", "x-original-", "x-envoy-")
"""Headers that a proxy adds, by name or the name's beginning; no browser sends them, nor does an SSH tunnel."""


class AddressToken:
    """The token of one data folder's app, and who has it."""

    def __init__(self, secret: bytes, root_path: str = "") -> None:
        def derive(purpose: str) -> str:
            return hmac.new(secret, f"address {purpose}".encode(), hashlib.sha256).hexdigest()[:32]

        self.token = derive("token")
        self._cookie = derive("cookie")
        # Cookies know no port: the apps of two data folders on one machine must not overwrite each other's.
        self._cookie_name = f"facereward-address-{derive('name')[:8]}"
        self._root_path = root_path

    def put_into(self, address: str) -> str:
        """The app's address with the token in it, as the terminal prints it."""
        return f"{address}/?{PARAMETER}={self.token}"

    def answer(self, request: Request) -> Response | None:
        """The exchange of the token for the cookie, or the refusal of a proxy; None for all other requests."""
        if through := forwarded_by(request):
            return refusal(
                request,
                403,
                f"This request came through a proxy ({through}). Without --auth this app serves the person at this "
                "machine only, whom it makes an admin. Start it with --auth to let others in through a proxy.",
            )
        given = request.query_params.get(PARAMETER)
        if given is None or request.method not in ("GET", "HEAD"):
            return None
        return self._exchange(request) if self._is_known(request) or _equal(given, self.token) else None

    def is_missing(self, request: Request) -> bool:
        """Whether this browser never had the address with the token, and asks for more than everybody may see."""
        return not path_of(request).startswith(OPEN_PATHS) and not self._is_known(request)

    def ask(self, request: Request) -> Response:
        """The page that says where the address is found."""
        message = "Open this app by the address with a token that app.py prints in the terminal where it runs."
        if PARAMETER in request.query_params:
            message = f"The token in this address is not this app's. {message}"
        if "text/html" not in request.headers.get("accept", ""):
            return refusal(request, 401, message)
        return send_page("gate/closed.html", self._root_path, 401, "no-store", message=message)

    def _is_known(self, request: Request) -> bool:
        return _equal(request.cookies.get(self._cookie_name, ""), self._cookie)

    def _exchange(self, request: Request) -> Response:
        """The cookie, and the same address without the token, which thus stays out of what people copy and share."""
        rest = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != PARAMETER])
        # One slash at the beginning: '//host' would lead away.
        where = f"{self._root_path}/{quote(path_of(request).lstrip('/'))}"
        answer = RedirectResponse(f"{where}?{rest}" if rest else where, 303, {"Cache-Control": "no-store"})
        answer.set_cookie(
            self._cookie_name,
            self._cookie,
            max_age=COOKIE_SECONDS,
            path=self._root_path or "/",
            httponly=True,
            samesite="lax",
        )
        return answer


def forwarded_by(request: Request) -> str:
    """The first header by which a proxy says that it passes this request on; empty for none."""
    names = (name.decode("latin-1") for name, _ in request.headers.raw)
    return next((name for name in names if name in FORWARDED or name.startswith(FORWARDED_PREFIXES)), "")


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
