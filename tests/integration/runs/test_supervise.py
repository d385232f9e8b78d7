"""The queue with real processes: devices, what runs wait for, what survives whom, and continuing where a run ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database, open_database
from runs import supervise as supervising
from runs.delete import delete_run
from runs.launch import continue_run, enqueue, launch
from runs.stop import stop
from runs.store import LIVE_STATES, is_alive, read_progress, reap_lost, run_folder
from runs.supervise import start_due, supervise, why_waiting
from tests.watching import LIMIT_SECONDS, get_run, wait_for_state, wait_until

ROOT = Path(__file__).resolve().parents[3]
JOB = """
import argparse, json, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("how")
parser.add_argument("words", nargs="*")
parser.add_argument("--out", type=Path)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--data", type=Path)
parser.add_argument("--run", type=int)
args = parser.parse_args()
if args.how == "tally":  # says that it was started and has nothing more to do
    with open("tally.txt", "a") as stream:
        stream.write(f"{args.run}\\n")
    sys.exit()

from db.session import open_database
from runs.store import open_run

with open_run(open_database(args.data, os.environ.get("FACEREWARD_DB")), args.data, "job", {}, args.run) as run:
    if args.how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.how == "echo":
        seen = {"words": args.words, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "secret": os.environ.get("SECRET")}
        run.write_result(seen)
    if args.how == "fail":
        raise ValueError("no good")
    if args.how in ("sleep", "deaf"):
        run.progress(1, 2)
        time.sleep(600)
    if args.how == "train":  # what it makes depends on every step; each step is a checkpoint
        args.out.mkdir(parents=True, exist_ok=True)
        state = args.out / "state.json"
        step, weight = json.loads(state.read_text()) if state.exists() else (0, 1.0)
        while step < args.steps:
            step, weight = step + 1, (weight * 1.1 + step) % 7
            (args.out / "part").write_text(json.dumps([step, weight]))
            os.replace(args.out / "part", state)
            run.progress(step, args.steps, weight=weight)
            print("step", step, flush=True)
            time.sleep(0.03)
        run.write_result({"out": str(args.out), "weight": weight})
"""


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command `python -m job` in the working folder, from which runs are started; one GPU, which does not exist."""
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


@pytest.fixture(autouse=True)
def end_runs(data: Path) -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    for process in psutil.process_iter(["cmdline"]):
        if str(data) in (process.info["cmdline"] or []):
            process.kill()


def ask_why(database: Database, data: Path, run_id: int, cpu_slots: int = 1) -> str | None:
    with database.read() as session:
        return why_waiting(session, data, session.get_one(Run, run_id), cpu_slots)


def wait_for_progress(data: Path, run_id: int, done: int = 1) -> None:
    wait_until(lambda: (read_progress(data, run_id) or {"done": 0})["done"] >= done)


def run_supervisor(data: Path, *options: str) -> subprocess.Popen[str]:
    """`python -m runs supervise`, ready."""
    command = [sys.executable, "-m", "runs", "supervise", "--data", str(data), *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ}
    )
    assert process.stdout is not None
    assert "starting what is queued" in process.stdout.readline()
    return process


def test_a_device_has_one_run_at_a_time(database: Database, data: Path) -> None:
    first, second, cpu = (
        launch(database, data, "job", ["sleep"], {}, device=name) for name in ("cuda:0", "cuda:0", "cpu")
    )
    wait_for_progress(data, first)
    wait_for_progress(data, cpu)
    assert get_run(database, second).pid is None
    assert ask_why(database, data, second) == f"waits for cuda:0, where run {first} is"
    assert start_due(database, data) == []
    stop(database, first)
    assert start_due(database, data) == [second]
    assert get_run(database, second).device == "cuda:0"
    wait_for_state(database, second, RunState.running)
    stop(database, second)
    stop(database, cpu)


def test_cpu_slots_and_several_gpus(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    both = launch(database, data, "job", ["sleep"], {}, device="cuda:3,cuda:5")
    one = launch(database, data, "job", ["echo"], {}, device="cuda:5")
    absent = launch(database, data, "job", ["echo"], {}, device="cuda:0")
    cpu = [launch(database, data, "job", ["sleep"], {}, device="cpu") for _ in range(3)]
    assert [get_run(database, run_id).pid is not None for run_id in (both, one, *cpu)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert start_due(database, data, cpu_slots=2) == [cpu[1]]
    assert ask_why(database, data, cpu[2], cpu_slots=2) == f"waits for cpu, where run {cpu[0]} is"
    assert "does not have" in (ask_why(database, data, absent) or "")
    stop(database, both)
    assert start_due(database, data) == [one]
    wait_for_state(database, one, RunState.finished)
    assert json.loads((run_folder(data, one) / "result.json").read_text())["gpus"] == "5"
    with pytest.raises(UserError, match="no device 'gpu'"):
        launch(database, data, "job", [], {}, device="gpu")


def test_a_run_waits_until_others_have_finished(database: Database, data: Path) -> None:
    first = launch(database, data, "job", ["echo"], {})
    second = launch(database, data, "job", ["fail"], {}, after=[first])
    third = launch(database, data, "job", ["echo"], {}, after=[first, second])
    fourth = launch(database, data, "job", ["echo"], {}, after=[third])
    fifth = launch(database, data, "job", ["echo"], {}, after=[fourth])
    assert ask_why(database, data, third) in (f"waits for run {first}", f"waits for run {second}")
    wait_for_state(database, first, RunState.finished)
    start_due(database, data)
    assert wait_for_state(database, second, RunState.failed).error == "ValueError: no good"
    assert start_due(database, data) == []
    assert (ask_why(database, data, third) or "").startswith(f"waits for run {second}, which failed")
    with pytest.raises(UserError, match=f"Run {third} waits for run {second}"):
        delete_run(database, data, second)
    stop(database, third)
    assert get_run(database, third).state is RunState.stopped
    for follower in (fourth, fifth):  # they could never start
        assert get_run(database, follower).state is RunState.stopped
        assert get_run(database, follower).error == f"run {third}, which it waited for, was stopped"
    assert delete_run(database, data, second) > 0
    assert get_run(database, third).after == [first]
    with pytest.raises(UserError, match="no run 99"):
        launch(database, data, "job", ["echo"], {}, after=[99])


def test_the_supervisor_thread_starts_what_is_due(
    database: Database, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervising, "LOOK_SECONDS", 0.05)
    really, calls = supervising.reap_lost, 0

    def fail_at_first(database: Database, data: Path) -> list[int]:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise RuntimeError("the disk is away")
        return really(database, data)

    monkeypatch.setattr(supervising, "reap_lost", fail_at_first)
    first = launch(database, data, "job", ["echo"], {}, device="cpu")
    second = launch(database, data, "job", ["echo"], {}, device="cpu", after=[first])
    end = threading.Event()
    thread = threading.Thread(target=supervise, args=(database, data, None, 1, end))
    thread.start()
    wait_for_state(database, second, RunState.finished)
    end.set()
    thread.join()
    assert caplog.text.count("Traceback") == 1, "said once"


def test_a_full_disk_starts_nothing(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.space.MIN_FREE_BYTES", 2**60)
    with pytest.raises(UserError, match=r"GiB needed\. Free some space; nothing was started"):
        launch(database, data, "job", ["echo"], {})
    run_id = launch(database, data, "job", ["echo"], {}, device="cpu")
    run = get_run(database, run_id)
    assert (run.state, run.pid) == (RunState.queued, None)
    assert (ask_why(database, data, run_id) or "").endswith("GiB free, 1.07374e+09 GiB needed")
    monkeypatch.setattr("runs.space.MIN_FREE_BYTES", 0)
    assert start_due(database, data) == [run_id]
    wait_for_state(database, run_id, RunState.finished)


def test_words_of_a_shell_are_only_words(database: Database, data: Path, tmp_path: Path) -> None:
    words = ["; touch owned", "$(touch owned)", "`touch owned`", "| touch owned", "a'b\"c\\", "*", "~", "&&", "\n", ""]
    words += ["--data", "elsewhere"]
    run_id = launch(database, data, "job", ["echo", "--", *words], {}, device="cpu")
    wait_for_state(database, run_id, RunState.finished)
    assert json.loads((run_folder(data, run_id) / "result.json").read_text())["words"] == words
    assert not (tmp_path / "owned").exists()


def test_a_run_gets_only_what_it_needs_of_the_environment(
    database: Database, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    run_id = launch(database, data, "job", ["echo"], {}, device="cpu")
    wait_for_state(database, run_id, RunState.finished)
    result = json.loads((run_folder(data, run_id) / "result.json").read_text())
    assert (result["secret"], result["gpus"]) == (None, "")


def test_a_killed_run_is_lost_and_continues_to_the_same_end(database: Database, data: Path) -> None:
    straight = launch(database, data, "job", ["train", "--out", "straight"], {})
    broken = launch(database, data, "job", ["train", "--out", "broken"], {})
    wait_for_progress(data, broken, 4)
    os.kill(get_run(database, broken).pid or 0, signal.SIGKILL)
    wait_until(lambda: broken in reap_lost(database, data))
    assert get_run(database, broken).state is RunState.lost
    continue_run(database, data, broken)
    wait_for_progress(data, broken, 8)
    stop(database, broken)
    run = get_run(database, broken)
    assert (run.state, run.error) == (RunState.stopped, None)
    continue_run(database, data, broken)
    results = []
    for run_id in (straight, broken):
        run = wait_for_state(database, run_id, RunState.finished)
        assert run.ended_at is not None
        results.append(json.loads((run_folder(data, run_id) / "result.json").read_text())["weight"])
    assert results[0] == results[1]
    lines = (run_folder(data, broken) / "progress.jsonl").read_text().splitlines()
    assert [json.loads(line)["done"] for line in lines][-1] == 20
    assert len(lines) >= 18, "appended; a kill may come between a checkpoint and its line"
    assert (run_folder(data, broken) / "log.txt").read_text().startswith("step 1\n")
    with pytest.raises(UserError, match="is finished; only"):
        continue_run(database, data, broken)


def test_continuing_waits_for_the_device(database: Database, data: Path) -> None:
    first = launch(database, data, "job", ["sleep"], {}, device="cuda:0")
    wait_for_progress(data, first)
    stop(database, first)
    second = launch(database, data, "job", ["sleep"], {}, device="cuda:0")
    continue_run(database, data, first)
    run = get_run(database, first)
    assert (run.state, run.pid, run.ended_at) == (RunState.queued, None, None)
    assert ask_why(database, data, first) == f"waits for cuda:0, where run {second} is"
    stop(database, first)
    stop(database, second)


def test_a_run_that_does_not_listen_is_killed_after_the_grace(database: Database, data: Path) -> None:
    run_id = launch(database, data, "job", ["deaf"], {}, device="cpu")
    wait_for_progress(data, run_id)
    start = time.monotonic()
    stop(database, run_id, grace_seconds=0.5)
    assert time.monotonic() - start >= 0.5
    run = get_run(database, run_id)
    assert run.state is RunState.stopped
    assert not is_alive(run)


def test_a_killed_supervisor_changes_nothing_and_the_next_one_adopts(database: Database, data: Path) -> None:
    supervisor = run_supervisor(data)
    with database.write() as session:
        training = enqueue(session, data, "job", ["train", "--out", "out", "--steps", "150"], {}, device="cuda:0").id
        waiting = enqueue(session, data, "job", ["sleep"], {}, device="cuda:0").id
    wait_for_progress(data, training, 3)
    os.killpg(supervisor.pid, signal.SIGKILL)
    supervisor.communicate()
    assert is_alive(get_run(database, training))
    supervisor = run_supervisor(data)
    assert get_run(database, training).state is RunState.running
    assert get_run(database, waiting).pid is None
    wait_for_state(database, training, RunState.finished)
    wait_for_progress(data, waiting)  # the new one knew that the device was taken, and that it is free
    os.kill(get_run(database, waiting).pid or 0, signal.SIGKILL)
    wait_for_state(database, waiting, RunState.lost)
    supervisor.send_signal(signal.SIGINT)
    supervisor.communicate(timeout=LIMIT_SECONDS)
    assert supervisor.returncode == 0


def test_after_a_reboot_other_processes_are_not_taken_for_runs(database: Database, data: Path) -> None:
    run_id = launch(database, data, "job", ["train", "--out", "out"], {}, device="cuda:0")
    wait_for_progress(data, run_id, 3)
    run = get_run(database, run_id)
    os.killpg(run.pid or 0, signal.SIGKILL)
    wait_until(lambda: not is_alive(run))
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with database.write() as session:  # the pid, given anew after the machine started
        session.get_one(Run, run_id).pid = stranger.pid
        session.get_one(Run, run_id).pid_started = psutil.Process(stranger.pid).create_time() - 3600
    assert reap_lost(database, data) == [run_id]
    assert get_run(database, run_id).state is RunState.lost
    continue_run(database, data, run_id)
    wait_for_state(database, run_id, RunState.finished)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_run_of_another_machine_is_left_alone(database: Database, data: Path) -> None:
    run_id = launch(database, data, "job", ["sleep"], {}, device="cuda:0")
    wait_for_progress(data, run_id)
    mine = get_run(database, run_id)
    with database.write() as session:
        session.get_one(Run, run_id).host = "elsewhere"
    with pytest.raises(UserError, match="is on elsewhere; stop it there"):
        stop(database, run_id)
    assert is_alive(mine)
    os.kill(mine.pid or 0, signal.SIGKILL)
    wait_until(lambda: not is_alive(mine))
    assert reap_lost(database, data) == []
    assert get_run(database, run_id).state in LIVE_STATES
    other = launch(database, data, "job", ["echo"], {}, device="cuda:0")  # this machine's cuda:0 is another one
    wait_for_state(database, other, RunState.finished)


STARTER = """
import json, os, sys, time
from pathlib import Path
from db.session import open_database
from runs.supervise import start_due
data, url = Path(sys.argv[1]), sys.argv[2] or None
database = open_database(data, url)
print("ready", flush=True)
sys.stdin.readline()
started = []
end = time.monotonic() + 2
while time.monotonic() < end:
    started += start_due(database, data, url=url, cpu_slots=50)
print(json.dumps(started))
"""


def test_two_apps_never_start_a_run_twice(
    any_database: Database, database_url: str | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with any_database.write() as session:
        cpu = {enqueue(session, data, "job", ["tally"], {}, device="cpu").id for _ in range(20)}
        gpu = {enqueue(session, data, "job", ["tally"], {}, device="cuda:0").id for _ in range(4)}
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, str(data), database_url or ""],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    started = [json.loads(starter.communicate(timeout=LIMIT_SECONDS)[0]) for starter in starters]
    both = [*started[0], *started[1]]
    assert len(both) == len(set(both))
    assert set(both) - gpu == cpu
    assert len(set(both) & gpu) == 1
    wait_until(lambda: len((tmp_path / "tally.txt").read_text().split()) >= len(both))
    time.sleep(0.5)
    tally = [int(word) for word in (tmp_path / "tally.txt").read_text().split()]
    assert sorted(tally) == sorted(both)


def test_the_app_finds_a_run_again(serve_process: Callable[..., object], data: Path) -> None:
    """The app starts what waits, is killed, and a new one takes up what goes on."""
    server = serve_process()
    database = open_database(data)
    with database.write() as session:
        run_id = enqueue(session, data, "job", ["sleep"], {}, device="cpu").id
    wait_for_progress(data, run_id)
    server.kill()  # type: ignore[attr-defined]
    assert is_alive(get_run(database, run_id))
    server.start()  # type: ignore[attr-defined]
    time.sleep(1.5)
    assert get_run(database, run_id).state is RunState.running
    os.kill(get_run(database, run_id).pid or 0, signal.SIGKILL)
    wait_for_state(database, run_id, RunState.lost)
    database.close()
