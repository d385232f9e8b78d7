"""Processes that are kept at work: none outlives the one that keeps them, one that dies is back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from db.errors import UserError
from tests.making import ROOT
from tests.watching import wait_until
from ui.serving.processes import keep_processes

KEEPER = """
import time
import ui.serving.processes as processes

def work(number, ready):
    ready()
    time.sleep(600)

processes.PAUSE_SECONDS = 0.0
processes.keep_processes(2, work, lambda: print("ready", flush=True))
print("ended", flush=True)
"""


def start() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == "ready\n"
    return keeper, psutil.Process(keeper.pid).children()


def test_a_dead_worker_is_replaced_and_a_signal_ends_all() -> None:
    keeper, (one, other) = start()
    one.kill()
    family = psutil.Process(keeper.pid)
    wait_until(lambda: {child.pid for child in family.children()} - {one.pid, other.pid})
    keeper.send_signal(signal.SIGINT)
    assert keeper.communicate() == ("ended\n", None)
    assert not other.is_running()


def test_workers_end_with_a_parent_that_was_killed() -> None:
    keeper, workers = start()
    keeper.kill()
    keeper.communicate()
    wait_until(lambda: not any(one.is_running() for one in workers))


def test_a_worker_that_cannot_start_ends_the_attempt() -> None:
    def work(number: int, ready: Callable[[], None]) -> None:
        if number == 1:
            os._exit(3)
        signal.pause()

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match=r"Worker 1 of 2 ended at its start \(status 3\)"):
        keep_processes(2, work, lambda: None)
    assert signal.getsignal(signal.SIGTERM) is handler
