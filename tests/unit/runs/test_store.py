import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from runs import store
from runs.store import (
    RunLog,
    RunStopped,
    add_run,
    end_run,
    error_line,
    is_alive,
    last_log_line,
    latest_run,
    open_run,
    read_progress,
    reap_lost,
    run_folder,
)
from tests.watching import get_run


def set_process(database: Database, run_id: int, pid: int, started: float | None, state: RunState) -> None:
    with database.write() as session:
        run = session.get(Run, run_id)
        assert run is not None
        run.pid, run.pid_started, run.state = pid, started, state
        if state is not RunState.queued:
            run.started_at = run.created_at


@pytest.fixture
def dead_pid() -> int:
    """A pid that has just been used and is free again."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_is_queued_with_its_config_and_code_version(database: Database, data: Path) -> None:
    run_id = add_run(database, data, "annotate pair", {"seed": 3, "against": None})
    run = get_run(database, run_id)
    assert (run.state, run.kind, run.config) == (RunState.queued, "annotate pair", {"seed": 3, "against": None})
    assert run.code_version.startswith(store.VERSION)
    assert json.loads((run_folder(data, run_id) / "config.json").read_text()) == {"seed": 3, "against": None}


def test_a_run_without_a_folder_is_not_stored(database: Database, data: Path) -> None:
    (data / "runs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="runs"):
        add_run(database, data, "annotate pair", {})
    with database.read() as session:
        assert session.get(Run, 1) is None


def test_a_run_finishes_and_leaves_its_result(database: Database, data: Path) -> None:
    with open_run(database, data, "annotate pair", {"seed": 0}) as log:
        running = get_run(database, log.run_id)
        assert (running.state, running.pid) == (RunState.running, os.getpid())
        assert is_alive(running)
        log.progress(1, 2, seen=7)
        log.write_result({"added": 5})
    run = get_run(database, log.run_id)
    assert (run.state, run.error) == (RunState.finished, None)
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.ended_at >= run.started_at
    assert {"done": 1, "total": 2, "seen": 7}.items() <= (read_progress(data, log.run_id) or {}).items()
    assert json.loads((log.folder / "result.json").read_text()) == {"added": 5}
    assert sorted(file.name for file in log.folder.iterdir()) == ["config.json", "progress.jsonl", "result.json"]


def test_a_failing_run_keeps_its_reason(database: Database, data: Path) -> None:
    with pytest.raises(UserError), open_run(database, data, "annotate pair", {}) as log:
        raise UserError("0 pairs per source: give 1 or more.")
    run = get_run(database, log.run_id)
    assert (run.state, run.error) == (RunState.failed, "0 pairs per source: give 1 or more.")


def test_an_interrupted_run_is_stopped(database: Database, data: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(database, data, "annotate pair", {}) as log:
        raise KeyboardInterrupt
    assert get_run(database, log.run_id).state is RunState.stopped


def test_sigterm_stops_the_block_and_is_then_what_it_was(database: Database, data: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        with pytest.raises(RunStopped) as stopped, open_run(database, data, "annotate pair", {}) as log:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.code == 143
        assert get_run(database, log.run_id).state is RunState.stopped
        assert not seen
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_sigterm_does_not_keep_the_state_from_being_written(
    database: Database, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_run_under_fire(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        end_run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "end_run", end_run_under_fire)
    with pytest.raises(RunStopped), open_run(database, data, "annotate pair", {}) as log:
        os.kill(os.getpid(), signal.SIGTERM)
    assert get_run(database, log.run_id).state is RunState.stopped


def test_no_except_exception_swallows_a_stop() -> None:
    assert not issubclass(RunStopped, Exception)


def test_a_run_works_off_the_main_thread(database: Database, data: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    ids: list[int] = []

    def work() -> None:
        with open_run(database, data, "annotate pair", {}) as log:
            ids.append(log.run_id)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert get_run(database, ids[0]).state is RunState.finished
    assert signal.getsignal(signal.SIGTERM) is handler


def test_only_a_queued_run_can_be_claimed(database: Database, data: Path) -> None:
    run_id = add_run(database, data, "annotate pair", {})
    with open_run(database, data, "annotate pair", {}, run_id):
        with pytest.raises(UserError, match=f"Run {run_id} is not waiting"):
            open_run(database, data, "annotate pair", {}, run_id).__enter__()
        assert get_run(database, run_id).state is RunState.running
    with pytest.raises(UserError, match="Run 99 is not waiting"), open_run(database, data, "annotate pair", {}, 99):
        pass


def test_an_ended_run_keeps_its_state(database: Database, data: Path) -> None:
    with open_run(database, data, "annotate pair", {}) as log:
        pass
    end_run(database, log.run_id, RunState.failed, "too late")
    assert get_run(database, log.run_id).state is RunState.finished


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("No such folder."), "No such folder."),
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("x" * 900), "ValueError: " + "x" * 488),
    ],
)
def test_error_lines(error: Exception, line: str) -> None:
    assert error_line(error) == line


def test_progress_lines_half_written_are_passed_over(data: Path) -> None:
    folder = run_folder(data, 1)
    folder.mkdir(parents=True)
    assert read_progress(data, 1) is None
    file = folder / "progress.jsonl"
    file.write_text('{"done": 1')
    assert read_progress(data, 1) is None
    file.write_text('{"done": 1}\n{"done": 2}\n{"done": 3, "to')
    assert read_progress(data, 1) == {"done": 2}
    file.write_text('{"done": 1}\n{"done": 2, "to{"done": 3}\n')  # killed while writing, then continued
    assert read_progress(data, 1) == {"done": 1}
    file.write_bytes(b'{"done": 1}\n\xff\xfe\n\n')
    assert read_progress(data, 1) == {"done": 1}


def test_only_the_end_of_a_long_progress_file_is_read(data: Path) -> None:
    log = RunLog(1, run_folder(data, 1))
    log.folder.mkdir(parents=True)
    for done in range(3):
        log.progress(done, 3, note="x" * 40_000)
    assert (read_progress(data, 1) or {})["done"] == 2


def test_last_log_line(data: Path) -> None:
    assert last_log_line(data, 1) is None
    run_folder(data, 1).mkdir(parents=True)
    log = run_folder(data, 1) / "log.txt"
    log.write_bytes(b"Traceback\n  File\nValueError: caf\xe9 \n\n")
    assert last_log_line(data, 1) == "ValueError: caf�"


def test_alive_is_this_very_process(dead_pid: int) -> None:
    here = psutil.Process()
    run = Run(pid=here.pid, pid_started=here.create_time())
    assert is_alive(run)
    assert not is_alive(Run(pid=here.pid, pid_started=here.create_time() - 100))  # a reused pid
    assert not is_alive(Run(pid=dead_pid, pid_started=None))
    assert not is_alive(Run(pid=None, pid_started=None))


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(process.pid).create_time()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert not is_alive(Run(pid=process.pid, pid_started=started))
    process.wait()


def test_reaping_tells_refused_stopped_and_lost_apart(database: Database, data: Path, dead_pid: int) -> None:
    waiting, refused, silent, stopped, lost, alive = (add_run(database, data, "annotate pair", {}) for _ in range(6))
    here = psutil.Process()
    set_process(database, refused, dead_pid, None, RunState.queued)
    set_process(database, silent, dead_pid, None, RunState.queued)
    set_process(database, stopped, dead_pid, None, RunState.stopping)
    set_process(database, lost, dead_pid, None, RunState.running)
    set_process(database, alive, here.pid, here.create_time(), RunState.running)
    (run_folder(data, refused) / "log.txt").write_text("usage: …\nerror: unknown option --sed\n")
    (run_folder(data, lost) / "log.txt").write_text("half way\n")
    assert reap_lost(database, data) == [refused, silent, stopped, lost]
    ends = [
        (run.state, run.error)
        for run in (get_run(database, one) for one in (waiting, refused, silent, stopped, lost, alive))
    ]
    assert ends == [
        (RunState.queued, None),
        (RunState.failed, "error: unknown option --sed"),
        (RunState.failed, "the process ended before the run began"),
        (RunState.stopped, None),
        (RunState.lost, "the process ended without saying why; its last line: half way"),
        (RunState.running, None),
    ]
    assert reap_lost(database, data) == []


def test_the_code_version_does_not_need_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    store.code_version.cache_clear()
    try:
        assert store.code_version() == store.VERSION
    finally:
        store.code_version.cache_clear()


def test_what_a_command_made_of_its_options_joins_what_was_asked(database: Database, data: Path) -> None:
    run_id = add_run(database, data, "reward train", {"preset": "tiny", "steps": 1})
    with open_run(database, data, "reward train", {"steps": 2, "out": "x"}, run_id):
        pass
    config = {"preset": "tiny", "steps": 2, "out": "x"}
    assert get_run(database, run_id).config == config
    assert json.loads((run_folder(data, run_id) / "config.json").read_text()) == config


def test_a_run_that_was_continued_meanwhile_is_not_reaped(
    database: Database, data: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add_run(database, data, "annotate pair", {})
    set_process(database, run_id, dead_pid, 1.0, RunState.running)

    def look_late(run: Run) -> bool:
        set_process(database, run_id, os.getpid(), None, RunState.running)
        return True

    monkeypatch.setattr(store, "is_gone", look_late)
    reap_lost(database, data)
    assert get_run(database, run_id).state is RunState.running


def test_a_run_of_another_machine_is_not_reaped(database: Database, data: Path, dead_pid: int) -> None:
    run_id = add_run(database, data, "annotate pair", {}, host="elsewhere")
    set_process(database, run_id, dead_pid, 1.0, RunState.running)
    assert reap_lost(database, data) == []
    with database.write() as session:
        session.get_one(Run, run_id).host = None  # of before hosts were noted
    assert reap_lost(database, data) == [run_id]


@pytest.mark.parametrize("turn", [{"device": "cpu"}, {"after": [1]}])
def test_what_waits_for_its_turn_is_not_the_latest_run(database: Database, data: Path, turn: dict[str, Any]) -> None:
    latest = add_run(database, data, "annotate pair", {})
    waiting = add_run(database, data, "annotate pair", {})
    with database.write() as session:
        for name, value in turn.items():
            setattr(session.get_one(Run, waiting), name, value)
        session.flush()
        assert getattr(latest_run(session, "annotate pair"), "id", None) == latest
        session.get_one(Run, waiting).pid = os.getpid()
    with database.read() as session:
        assert getattr(latest_run(session, "annotate pair"), "id", None) == waiting
