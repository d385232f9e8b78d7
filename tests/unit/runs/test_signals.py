"""All signals that ask a run to end are known, where the system has them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from runs.signals import ASKING, SIGNALS, give_back, listen
from tests.conftest import ROOT
from tests.watching import LIMIT_SECONDS


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_it_is_noted_and_given_back(name: str) -> None:
    number = signal.Signals[name]
    assert number in SIGNALS
    was = signal.getsignal(number)
    seen: list[int] = []
    before = listen(lambda came, _frame: seen.append(came))
    os.kill(os.getpid(), number)
    give_back(before)
    assert seen == [number]
    assert signal.getsignal(number) == was


def test_what_nohup_ignores_stays_ignored() -> None:
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = listen(signal.SIG_DFL)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        give_back(before)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, was)


def test_a_system_without_some_of_them_is_no_crash() -> None:
    """Windows has neither SIGHUP nor SIGUSR1 nor SIGUSR2, and SIGBREAK instead."""
    code = """
import enum, signal
real = signal.Signals
signal.Signals = enum.IntEnum("Signals", {"SIGTERM": 15, "SIGINT": 2, "SIGBREAK": 21})
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
from runs import signals, store
print([one.name for one in signals.SIGNALS], [int(one) for one in store._STOPPING])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True
    )
    assert done.stdout == "['SIGTERM', 'SIGINT', 'SIGBREAK'] [15, 21]\n"


def test_those_that_only_ask_are_not_the_insisting_ones() -> None:
    assert signal.SIGTERM not in ASKING
    assert signal.SIGINT not in ASKING
