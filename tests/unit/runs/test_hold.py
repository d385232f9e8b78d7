"""Two runs never write into one folder, and one that was killed holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from db.errors import UserError
from runs import hold
from runs.hold import hold_folder
from tests.conftest import ROOT
from tests.watching import LIMIT_SECONDS, wait_until

HOLDER = """
import os, sys, time
from pathlib import Path
from runs.hold import hold_folder
with hold_folder(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        os.close(1)
        time.sleep(300)  # a decoding worker that outlives its training
    print("held", flush=True)
    time.sleep(300)
"""


def start_holder(folder: Path, how: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def is_free(folder: Path) -> bool:
    try:
        with hold_folder(folder):
            return True
    except UserError:
        return False


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_killed_process_lets_go_and_so_do_those_that_it_forked(tmp_path: Path, how: str) -> None:
    holder = start_holder(tmp_path / "out", how)
    try:
        with pytest.raises(UserError) as refused, hold_folder(tmp_path / "out"):
            pass
        said = str(refused.value)
        assert said.startswith(f"Another run writes into {tmp_path / 'out'} (process {holder.pid} on ")
        assert "name another --out" in said
        holder.kill()
        holder.wait(LIMIT_SECONDS)
        wait_until(lambda: is_free(tmp_path / "out"))  # what it forked lets go once it has run at all
    finally:
        with suppress(ProcessLookupError):  # none of its group lives any more
            os.killpg(holder.pid, signal.SIGKILL)
        holder.wait(LIMIT_SECONDS)


def test_it_is_held_within_one_process_too_and_given_back(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "a"), hold_folder(tmp_path / "b"):
        refused = pytest.raises(UserError, match="Another run writes into")
        with refused, hold_folder(tmp_path / "a"):
            pass
    with hold_folder(tmp_path / "a"):
        pass


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(hold.NO_LOCKS[0], "Function not implemented")

    monkeypatch.setattr(hold, "_lock", refuse)
    with hold_folder(tmp_path / "out"):
        pass
    assert "without locks" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/out: cannot be written \(Not a directory\)"),
        hold_folder(tmp_path / "file/out"),
    ):
        pass
