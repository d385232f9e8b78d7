"""What a training does when somebody asks it to end, or when the memory ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from reward.train_config import TrainConfig
from runs import UserError
from runs.store import RunStopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_at_next_step() -> Iterator[Callable[[], int]]:
    """Note the first SIGTERM or SIGINT instead of dying of it; the second ends the block at once by RunStopped.

    Gives a function that returns the number of the signal that came, 0 before. Off the main thread, where Python lets
    nobody listen to signals, it stays 0.
    """
    came = 0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise RunStopped(128 + number)
        came = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: came
    finally:
        for number, action in before.items():
            signal.signal(number, signal.SIG_DFL if action is None else action)


@contextmanager
def explain_out_of_memory(config: TrainConfig, processes: int) -> Iterator[None]:
    """Turn an allocator's error into what can be done about it.

    Args:
        processes: that share a batch.
    Raises:
        UserError: the memory did not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        changes = list_savings(config, processes)
        raise UserError(
            f"Out of memory with {config.choose_micro_batch_size(processes)} pairs a forward pass. "
            f"Set {', or '.join(changes)}."
            if changes
            else "Out of memory with one pair a forward pass. Train fewer groups and blocks, or a smaller architecture."
        ) from error


def list_savings(config: TrainConfig, processes: int) -> list[str]:
    """Settings that need less memory, each as what follows "Set"; none where all of them are set so already.

    Args:
        processes: that share a batch.
    """
    micro_batch_size = config.choose_micro_batch_size(processes)
    changes = []
    if micro_batch_size > 1:
        changes.append(f"micro_batch_size to {micro_batch_size // 2} (the batch and the result stay)")
    if not config.gradient_checkpointing:
        changes.append("gradient_checkpointing to true")
    if config.mixed_precision == "no" and torch.cuda.is_available():
        changes.append("mixed_precision to bf16 in a new --out")
    return changes


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator says that the memory did not suffice; the CPU's has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
