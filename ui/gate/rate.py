"""Limit how often an address may arrive; see `ui.gate.throttle` for passwords."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.address import path_of
from ui.errors import refusal

ARRIVALS_A_MINUTE = 300
"""From one address, which a lab or a university may share: a room of people who come at once is let in."""
ARRIVALS_AT_ONCE = 200
ARRIVAL_PATHS = ("/study/", "/enter/")
"""Where people arrive without a session; sign-in by password has a limit of its own."""
MAX_KEYS = 50_000
"""Addresses that are remembered; the longest unused are forgotten first."""


@dataclass
class Rate:
    """Lets each key do something so often a minute, and so often at once; a float is remembered of each.

    In memory, as a flood shall not reach the database. Of several processes each allows its part.

    Source: the generic cell rate algorithm (ITU-T I.371).
    """

    a_minute: float
    at_once: int
    workers: int = 1
    clock: Callable[[], float] = time.monotonic
    _due: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """When all that a key did would be done at the allowed pace."""

    def take(self, key: str) -> float:
        """Count a try and return 0; where there were too many, count nothing and return the seconds to wait."""
        now, step = self.clock(), 60 * self.workers / self.a_minute
        due = max(now, self._due.get(key, now))
        wait = due + step - now - step * math.ceil(self.at_once / self.workers)
        if wait > 1e-9:  # what the sums above round
            return wait
        self._due[key] = due + step
        self._due.move_to_end(key)
        while len(self._due) > MAX_KEYS:
            self._due.popitem(last=False)
        return 0.0


def address_key(request: Request) -> str:
    """The address that a request is counted for: the proxy's word where it is trusted, and of IPv6 the network.

    Whoever has one address of IPv6 has the 2^64 of its network.
    """
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else host


class LimitArrivals:
    """ASGI middleware, around the gate: refuses an address that arrives too often before anything is looked up."""

    def __init__(self, app: ASGIApp, workers: int = 1) -> None:
        self.app = app
        self.rate = Rate(ARRIVALS_A_MINUTE, ARRIVALS_AT_ONCE, workers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            if path_of(request).startswith(ARRIVAL_PATHS) and (wait := math.ceil(self.rate.take(address_key(request)))):
                answer = refusal(request, 429, f"Too many requests from your address; try again in {wait} seconds.")
                answer.headers["Retry-After"] = str(wait)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)
