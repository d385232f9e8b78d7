"""Run a command in a process of its own and measure its seconds, memory with all children, and bytes written."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.2
LEAST_REST = 9
"""Between two looks, in lengths of a look, which holds up the process that is looked at."""
BLOCK_BYTES = 512
"""In which getrusage(2) counts what was written."""


@dataclass(frozen=True)
class Watched:
    """Cost of a command."""

    seconds: float
    peak_bytes: int
    """Largest resident memory of it and its children; what several share, as forked workers do, counts once."""
    written_bytes: int
    """Given to the disk by it and the children it waited for."""
    exit_code: int
    """Below 0 the signal that ended it."""
    was_killed: bool
    """Because the text stood in its output."""


def watch(command: Sequence[str], log: Path, *, kill_at: str = "", limit_s: float = float("inf")) -> Watched:
    """Run a command to its end, its output to a file.

    Args:
        kill_at: end it as `kill -9` does as soon as this stands in its output; empty for never.
        limit_s: after so many seconds it is ended as well.
    """
    began, peak, was_killed = time.monotonic(), 0, False
    with open(log, "wb") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            family = list_family(child.pid)
            looked = time.monotonic()
            peak = max(peak, measure_memory(family, peak))
            costs = time.monotonic() - looked
            is_due = bool(kill_at) and kill_at.encode() in log.read_bytes()
            if is_due or time.monotonic() - began > limit_s:
                was_killed = was_killed or is_due
                kill(family)
            time.sleep(max(SAMPLE_SECONDS, LEAST_REST * costs))
    child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
    return Watched(
        time.monotonic() - began, peak, usage.ru_oublock * BLOCK_BYTES, os.waitstatus_to_exitcode(status), was_killed
    )


def list_family(pid: int) -> list[psutil.Process]:
    """The process and all below it, as far as they are still there."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def measure_memory(family: Sequence[psutil.Process], peak: int) -> int:
    """Resident bytes of these processes together, exact where they are above `peak`."""
    rough = sum(count_resident(process) for process in family)
    return rough if len(family) == 1 or rough <= peak else sum(count_own(process) for process in family)


def count_resident(process: psutil.Process) -> int:
    """Bytes of a process with all that it shares with others (RSS), quick; 0 for one that ended meanwhile."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def count_own(process: psutil.Process) -> int:
    """Bytes of a process with its share of what it shares (PSS): half a second for 10 GB; 0 for one that ended."""
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def kill(family: Sequence[psutil.Process]) -> None:
    """SIGKILL to each, the first one first: nothing of it gets to tidy up."""
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
