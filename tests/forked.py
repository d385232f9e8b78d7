"""Run commands in processes forked from one that has loaded torch: real ones, seconds of processor sooner."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.watching import LIMIT_SECONDS

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "accelerate", "diffusers", "open_clip", "reward.train.train", "refl.tune.train"]
)


def start(log: Path, target: Callable[..., object], *arguments: object, **environment: str) -> BaseProcess:
    """Begin to call a function of a module, which may not be nested; what it prints goes into the log."""
    process = CONTEXT.Process(target=_call, args=(log, environment, target, arguments), daemon=True)
    process.start()
    return process


def start_module(log: Path, words: Sequence[str]) -> BaseProcess:
    """Begin `python WORDS`, the first of which is -m."""
    return start(log, run_module, list(words[1:]))


def run_two(log: Path, target: Callable[..., object], *arguments: object) -> None:
    """Call a function in two processes that share the work, as `accelerate launch` starts them, to their end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    logs = [log.with_name(f"{log.name}.{rank}") for rank in range(2)]
    both = [start(logs[rank], target, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    try:
        for process in both:
            process.join(LIMIT_SECONDS)
        assert [process.exitcode for process in both] == [0, 0], [file.read_text() for file in logs]
    finally:
        for process in both:
            process.kill()  # a hang must not outlive the test


def _call(log: Path, environment: dict[str, str], target: Callable[..., object], arguments: Sequence[object]) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)  # so that the same training gives the same bits here and there
    with open(log, "wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    target(*arguments)


def run_module(words: list[str]) -> None:
    """`python -m WORDS` in this process."""
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
