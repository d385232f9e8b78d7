"""A password can be tried so often and no oftener, and nobody's wait grows by what others do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from tests.watching import LIMIT_SECONDS
from ui.gate.throttle import HASHES_AT_ONCE, MAX_KEYS, MAX_QUEUE, WINDOW_SECONDS, Busy, Hashing, Throttle


def test_many_at_once_are_no_more_than_one_after_another() -> None:
    throttle = Throttle(clock=lambda: 0.0)
    begun = [throttle.begin({"ada": 5}) for _ in range(60)]  # none of them has been answered
    assert begun == [0.0] * 5 + [WINDOW_SECONDS] * 55


def test_refused_tries_do_not_lengthen_the_wait() -> None:
    now = [0.0]
    throttle = Throttle(clock=lambda: now[0])
    for _ in range(2):
        throttle.begin({"ada": 2})
    for second in range(60):
        now[0] = float(second)
        assert throttle.begin({"ada": 2}) == WINDOW_SECONDS - second
    now[0] = WINDOW_SECONDS
    assert throttle.begin({"ada": 2}) == 0


def test_one_spent_budget_counts_nothing_against_the_others() -> None:
    throttle = Throttle(clock=lambda: 0.0)
    for _ in range(9):
        throttle.begin({"address": 9, "ada": 1})
    assert throttle.begin({"address": 9, "ben": 1}) == 0, "of nine tries for ada one counted"


def test_what_succeeds_does_not_count() -> None:
    throttle = Throttle(clock=lambda: 0.0)
    for _ in range(50):
        assert throttle.begin({"ada": 1}) == 0
        throttle.take_back({"ada": 1})


def test_the_table_is_bounded() -> None:
    throttle = Throttle(clock=lambda: 0.0)
    for number in range(MAX_KEYS + 100):
        throttle.begin({f"name {number}": 1})
    assert len(throttle._tries) == MAX_KEYS


def test_hashing_takes_few_at_a_time_and_turns_away_what_would_wait_long() -> None:
    release, running, most, busy = threading.Event(), [0], [0], [0]
    lock = threading.Lock()

    def check() -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        release.wait(LIMIT_SECONDS)
        with lock:
            running[0] -= 1
        return "done"

    async def try_many() -> None:
        hashing = Hashing()

        async def one() -> None:
            try:
                assert await hashing.run(check) == "done"
            except Busy:
                busy[0] += 1
                if busy[0] == 7:
                    release.set()

        async with anyio.create_task_group() as group:
            for _ in range(HASHES_AT_ONCE + MAX_QUEUE + 7):
                group.start_soon(one)
        with pytest.raises(ZeroDivisionError):
            await hashing.run(lambda: 1 // 0)
        assert hashing._inside == 0

    with ThreadPoolExecutor(1) as thread:  # the browser tests leave an event loop in this one
        thread.submit(anyio.run, try_many).result(LIMIT_SECONDS)
    assert (most[0], busy[0]) == (HASHES_AT_ONCE, 7)


def test_several_processes_share_a_budget() -> None:
    first, second = (Throttle(workers=2, clock=lambda: 0.0) for _ in range(2))
    for throttle in (first, second):
        assert [throttle.begin({"name": 5}) for _ in range(4)] == [0.0, 0.0, 0.0, 60.0]
