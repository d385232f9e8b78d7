"""Signals end a training at its next step; memory that ends says what to lower."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from db.errors import UserError
from reward.train.savings import explain_out_of_memory
from runs.store import RunStopped
from tests.unit.reward.train.test_train import make_train_config
from training.stopping import stop_at_next_step

ON_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to …")
ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def explain(error: Exception, processes: int = 1, **fields: object) -> str:
    with pytest.raises(UserError) as caught, explain_out_of_memory(make_train_config(**fields), processes):
        raise error
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("error", [ON_CPU, ON_GPU])
def test_it_suggests_a_smaller_batch_and_checkpointing(error: Exception) -> None:
    said = explain(error, batch_size=8)
    assert said == (
        "Out of memory with 8 pairs a forward pass. Set micro_batch_size to 4 (the batch and the result stay), or "
        "gradient_checkpointing to true."
    )


def test_what_is_done_already_is_not_suggested() -> None:
    said = explain(ON_GPU, batch_size=8, micro_batch_size=1, gradient_checkpointing=True)
    assert said == (
        "Out of memory with one pair a forward pass. Train fewer groups and blocks, or a smaller architecture."
    )
    said = explain(ON_GPU, batch_size=8, micro_batch_size=1)
    assert "micro_batch_size" not in said
    assert "gradient_checkpointing to true" in said


def test_a_batch_is_what_a_process_has_of_it() -> None:
    assert "with 16 pairs a forward pass. Set micro_batch_size to 8" in explain(ON_GPU, 8, batch_size=128)
    assert "with 16 pairs" in explain(ON_GPU, 8, batch_size=128, micro_batch_size=64)


def test_another_error_stays_itself() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), explain_out_of_memory(make_train_config(), 1):
        raise RuntimeError("shapes differ")


def test_the_first_signal_is_noted_and_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    noted: list[int] = []

    def be_asked_twice() -> None:
        with stop_at_next_step() as asked:
            noted.append(asked())
            os.kill(os.getpid(), signal.SIGTERM)
            noted.append(asked())
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunStopped):
        be_asked_twice()
    assert noted == [0, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("first", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_that_only_asks_is_followed_by_one_that_insists_without_harm(first: int) -> None:
    """Slurm sends USR1 to a launcher and its processes, the launcher passes it on, and TERM comes at the limit."""
    with stop_at_next_step() as asked:
        for number in (first, first, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert asked() == first
        with pytest.raises(RunStopped) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 128 + signal.SIGTERM
