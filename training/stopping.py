"""Stop at a signal; explain running out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from db.errors import UserError
from metrics.memory import is_of_workers, is_out_of_memory
from runs.signals import INSISTING, give_back, listen
from runs.store import RunStopped


@contextmanager
def stop_at_next_step() -> Iterator[Callable[[], int]]:
    """Note the first signal that asks to end instead of dying of it; see `runs.signals`.

    The second SIGTERM or SIGINT ends the block at once by RunStopped. Gives a function that returns the number of the
    first signal that came, 0 before. Off the main thread, where Python lets nobody listen to signals, it stays 0.
    """
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        insists = number in INSISTING and any(before in INSISTING for before in came)
        came.append(number)
        if insists:
            raise RunStopped(128 + number)

    before = listen(note)
    try:
        yield lambda: came[0] if came else 0
    finally:
        give_back(before)


@contextmanager
def advise_out_of_memory(advise: Callable[[], str]) -> Iterator[None]:
    """Turn whatever says that the memory did not suffice into what can be done about it.

    Args:
        advise: gives the message; not asked where the processes that decode images ran out of memory.
    Raises:
        UserError: the memory did not suffice.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if not is_of_workers(error):
            raise UserError(advise()) from error
        raise UserError(
            "Out of memory in the processes that decode images. Set workers lower (0 decodes in the training itself), "
            "or give them more shared memory where this is a container: docker run --shm-size=8g."
        ) from error
