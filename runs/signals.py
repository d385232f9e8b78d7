"""Listen to the signals that ask a run to end, as far as this system has them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

Action = Callable[[int, FrameType | None], Any] | int | None


def _find(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


INSISTING = _find("SIGTERM", "SIGINT")
"""Sent twice they end a run at once."""
ASKING = _find("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
"""Signals of a closed terminal, of Slurm ahead of a time limit, a closed window of Windows. A second one adds nothing,
since Slurm and a launcher may both send it."""
SIGNALS = (*INSISTING, *ASKING)


def listen(action: Action, signals: Iterable[int] = SIGNALS) -> dict[int, Action]:
    """Set what signals do and return what they did before, for `give_back`.

    One of ASKING that is ignored stays so: `nohup` means it, and `runs.slurm` passes its signal on as another. Off the
    main thread, where Python lets nobody listen to signals, nothing is set.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    taken = [number for number in signals if number in INSISTING or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, action) for number in taken}


def give_back(before: dict[int, Action]) -> None:
    """Let signals do what they did before `listen`."""
    for number, action in before.items():
        signal.signal(number, signal.SIG_DFL if action is None else action)


def ignore_signals() -> None:
    """Let a signal to the whole process group end the leading process alone, which then ends this helper of it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
