"""Count what one process answered, and write the counts of all in Prometheus' text form.

Source of the form: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SEEN = "facereward.seen"
"""Key of a request's scope: a dict that all its middleware share, for what the routes tell of it."""
LABEL = "/api/label"
LIMITS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the histogram's buckets; one more has all that took longer."""
MOUNTS = ("/admin", "/static")
OTHER = "other"
"""Of requests that met no route, such as those that the gate refused, and of methods that HTTP does not know."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Counts:
    """What one process answered since it began."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By method, template of the route, status."""
    events: Counter[str] = field(default_factory=Counter)
    """Answers of people and what they took back, by outcome: stored or refused."""
    label_buckets: list[int] = field(default_factory=lambda: [0] * (len(LIMITS_SECONDS) + 1))
    label_seconds: float = 0.0

    def add(self, method: str, route: str, status: int, seconds: float, events: Iterable[str]) -> None:
        """Count a request."""
        self.requests[method, route, status] += 1
        self.events.update(events)
        if route == LABEL:
            self.label_buckets[bisect_left(LIMITS_SECONDS, seconds)] += 1
            self.label_seconds += seconds

    def dump(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "requests": [[*key, count] for key, count in self.requests.items()],
            "events": dict(self.events),
            "label_buckets": self.label_buckets,
            "label_seconds": self.label_seconds,
        }

    @classmethod
    def load(cls, kept: Mapping[str, Any]) -> Counts:
        """The counts of `dump`."""
        requests = Counter({(method, route, status): count for method, route, status, count in kept["requests"]})
        return cls(requests, Counter(kept["events"]), kept["label_buckets"], kept["label_seconds"])


class CountRequests:
    """ASGI middleware, around all others that answer."""

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self.app = app
        self.counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen: dict[str, Any] = {"route": OTHER, "events": ()}
        start, status = time.perf_counter(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app({**scope, SEEN: seen}, receive, note_status)
        finally:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            self.counts.add(method, seen["route"], status, time.perf_counter() - start, seen["events"])


class NoteRoute:
    """ASGI middleware, inside all others, that tells `CountRequests` the template of the route: never an id or name."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        mount = next((mount for mount in MOUNTS if path.startswith(f"{mount}/")), None)
        try:
            await self.app(scope, receive, send)
        finally:
            if SEEN in scope:
                scope[SEEN]["route"] = mount or getattr(scope.get("route"), "path", OTHER)


def note_events(request: Request, outcomes: Iterable[str]) -> None:
    """Tell `CountRequests` what became of a page's events, once they are stored."""
    if SEEN in request.scope:
        request.scope[SEEN]["events"] = list(outcomes)


def write_text(workers: Mapping[int, Counts | None], figures: Mapping[str, tuple[str, float]]) -> str:
    """The page that Prometheus reads.

    Each worker has series of its own, so that a restarted one is seen as such; sum over them.

    Args:
        workers: by number; None for one that does not answer.
        figures: by name the explanation and the value, of all workers together.
    """
    lines: list[str] = []

    def family(name: str, kind: str, words: str, samples: Iterable[str]) -> None:
        lines.extend([f"# HELP facereward_{name} {words}", f"# TYPE facereward_{name} {kind}", *samples])

    up = {number: counts for number, counts in sorted(workers.items()) if counts is not None}
    family(
        *("worker_up", "gauge", "Whether the worker answers."),
        (_sample("worker_up", int(number in up), worker=number) for number in sorted(workers)),
    )
    family(
        *("requests_total", "counter", "Answered requests by route."),
        (
            _sample("requests_total", count, worker=number, method=method, route=route, status=status)
            for number, counts in up.items()
            for (method, route, status), count in sorted(counts.requests.items())
        ),
    )
    family(
        *("label_events_total", "counter", "Answers and undoings that pages sent, by outcome."),
        (
            _sample("label_events_total", counts.events[outcome], worker=number, outcome=outcome)
            for number, counts in up.items()
            for outcome in ("stored", "refused")
        ),
    )
    family(
        *("label_seconds", "histogram", f"Seconds from a request to {LABEL} to its whole answer."),
        (line for number, counts in up.items() for line in _histogram(number, counts)),
    )
    for name, (words, value) in figures.items():
        family(name, "gauge", words, [_sample(name, value)])
    return "\n".join([*lines, ""])


def _histogram(number: int, counts: Counts) -> Iterable[str]:
    limits = [*(f"{limit:g}" for limit in LIMITS_SECONDS), "+Inf"]
    sums = list(accumulate(counts.label_buckets))
    for limit, count in zip(limits, sums, strict=True):
        yield _sample("label_seconds_bucket", count, worker=number, le=limit)
    yield _sample("label_seconds_sum", counts.label_seconds, worker=number)
    yield _sample("label_seconds_count", sums[-1], worker=number)


def _sample(name: str, value: float, **labels: object) -> str:
    """One line; no label of ours holds what would have to be escaped."""
    inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"facereward_{name}{{{inside}}} {value}" if inside else f"facereward_{name} {value}"
