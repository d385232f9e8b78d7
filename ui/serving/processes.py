"""Keep several processes at work: start them, start one that died again, and end them all together."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess

from db.errors import UserError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
PAUSE_SECONDS = 2.0
"""At least so long from a worker's start to its next: one that cannot start shall not fill the log."""
GRACE_SECONDS = 6.0
"""Longer than uvicorn gives the requests that it still has."""

Work = Callable[[int, Callable[[], None]], None]
"""Told its number, from 0 on, and what to call once it is ready; works until SIGTERM."""


@dataclass
class _Worker:
    process: ForkProcess
    started_at: float
    """Seconds of time.monotonic()."""


@dataclass(frozen=True)
class _Pipes:
    """(reading end, writing end) of each."""

    lifeline: tuple[int, int]
    """Its writing end is the parent's alone: it ends with it, however that dies."""
    ready: tuple[int, int]
    """A byte from each worker that is ready."""


def keep_processes(count: int, work: Work, when_ready: Callable[[], None]) -> None:
    """Run `work` in so many processes until SIGINT or SIGTERM, then end them; one that dies is started again.

    They are forks of this one, which must have no threads, connections or locks of its own; what it has loaded is
    theirs at once. They have process groups of their own, so that Ctrl+C reaches this one alone, and end when this one
    is gone, even by SIGKILL.

    Raises:
        UserError: one ended before all were ready for the first time.
    """
    asked_to_end: list[int] = []
    before = {one: signal.signal(one, lambda number, _: asked_to_end.append(number)) for one in _SIGNALS}
    pipes = _Pipes(os.pipe(), os.pipe())
    os.set_blocking(pipes.ready[0], False)
    workers = [_start(number, work, pipes) for number in range(count)]
    try:
        awaited = count
        while not asked_to_end:
            time.sleep(LOOK_SECONDS)
            ready = _count_ready(pipes)
            if 0 < awaited <= ready:
                when_ready()
            awaited = max(0, awaited - ready)
            for number, worker in enumerate(workers):
                if not worker.process.is_alive():
                    if awaited:
                        raise UserError(f"Worker {number} of {count} ended at its start ({_say_end(worker.process)}).")
                    if time.monotonic() >= worker.started_at + PAUSE_SECONDS:
                        log.warning(
                            "worker %d of %d ended (%s); it is started again", number, count, _say_end(worker.process)
                        )
                        workers[number] = _start(number, work, pipes)
    finally:
        _end([worker.process for worker in workers])
        for end in (*pipes.lifeline, *pipes.ready):
            os.close(end)
        for one, handler in before.items():
            signal.signal(one, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _start(number: int, work: Work, pipes: _Pipes) -> _Worker:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_be_worker, args=(number, work, pipes), name=f"worker {number}")
    process.start()
    return _Worker(process, time.monotonic())


def _be_worker(number: int, work: Work, pipes: _Pipes) -> None:
    os.setpgid(0, 0)
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_DFL)
    os.close(pipes.lifeline[1])
    threading.Thread(target=_end_with_parent, args=(pipes.lifeline[0],), name="lifeline", daemon=True).start()
    work(number, lambda: _say_ready(pipes))


def _say_ready(pipes: _Pipes) -> None:
    os.write(pipes.ready[1], b".")


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _count_ready(pipes: _Pipes) -> int:
    try:
        return len(os.read(pipes.ready[0], 4096))
    except BlockingIOError:
        return 0


def _say_end(process: ForkProcess) -> str:
    code = process.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"


def _end(processes: list[ForkProcess]) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
