"""Limit how often a password may be tried, and how many are hashed at a time."""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

WINDOW_SECONDS = 60.0
FAILURES_PER_NAME = 5
"""A window, by everybody who does not know the name from before."""
FAILURES_PER_ADDRESS = 30
"""A window; a lab's people may share one address, so more than a name's."""
MAX_KEYS = 10_000
"""Names and addresses that are remembered; the longest unused are forgotten first."""
HASHES_AT_ONCE = max(1, (os.cpu_count() or 1) // 4)
"""Each takes a core for some 50 ms and 16 MiB, and answers must not wait for them."""
MAX_QUEUE = 16
"""Sign-ins that wait for a hash: about a second."""
REFUSAL_SECONDS = 1.0
"""A sign-in that is refused unread is answered so late: who tries on at once would keep the server busy refusing."""


@dataclass
class Throttle:
    """Counts the failed tries of a password by keys, a window from each of them on.

    A try counts from its beginning, so that many at once are no more than one after another; one that succeeds is
    taken back. A try that is refused does not count, so that nobody's wait grows by what others do.

    In memory, as a flood of tries shall not reach the database. Of several processes each has its part of a budget,
    rounded up; a person's tries come to one of them while their browser keeps its connection.
    """

    workers: int = 1
    """Processes that share the budgets."""
    clock: Callable[[], float] = time.monotonic
    _tries: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def begin(self, budgets: dict[str, int]) -> float:
        """Count a try against each key's budget; gives the seconds to wait where one is spent, and counts nothing."""
        now = self.clock()
        wait = 0.0
        for key, allowed in budgets.items():
            tries = self._tries.get(key, deque())
            while tries and now - tries[0] >= WINDOW_SECONDS:
                tries.popleft()
            if len(tries) >= ceil(allowed / self.workers):
                wait = max(wait, tries[0] + WINDOW_SECONDS - now)
        if wait:
            return wait
        for key in budgets:
            self._tries.setdefault(key, deque()).append(now)
            self._tries.move_to_end(key)
        while len(self._tries) > MAX_KEYS:
            self._tries.popitem(last=False)
        return 0.0

    def take_back(self, budgets: dict[str, int]) -> None:
        """Forget the latest try of each key: it succeeded."""
        for key in budgets:
            if tries := self._tries.get(key):
                tries.pop()


class Busy(Exception):
    """Too many wait already."""


@dataclass
class Hashing:
    """Runs the hashing of passwords in threads of its own, few at a time, so that it keeps nobody's answer waiting."""

    _limiter: anyio.CapacityLimiter | None = None
    _inside: int = 0

    async def run(self, check: Callable[[], T]) -> T:
        """Run `check` and return its result.

        Raises:
            Busy: MAX_QUEUE others wait.
        """
        if self._inside >= HASHES_AT_ONCE + MAX_QUEUE:
            raise Busy
        if self._limiter is None:  # made where the event loop runs
            self._limiter = anyio.CapacityLimiter(HASHES_AT_ONCE)
        self._inside += 1
        try:
            return await anyio.to_thread.run_sync(check, limiter=self._limiter)
        finally:
            self._inside -= 1
