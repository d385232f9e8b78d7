"""People as the judge of a process that is stopped or killed while it waits, and on either database."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import select

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from accelerate import Accelerator  # noqa: E402

from db.models import Candidate, Judgment, Method, Pair, Task  # noqa: E402
from db.project import save_settings  # noqa: E402
from db.session import Database  # noqa: E402
from refl.tune.judge_names import PEOPLE  # noqa: E402
from refl.tune.judges import load_judge  # noqa: E402
from refl.tune.people_judge import PeopleJudge  # noqa: E402
from runs.options import Place  # noqa: E402
from tests.forked import start  # noqa: E402
from tests.making import count_rows, fetch  # noqa: E402
from tests.unit.refl.tune.test_people_judge import answer_next, answering, fill, make_greys  # noqa: E402
from tests.watching import wait_until  # noqa: E402
from training.stopping import stop_at_next_step  # noqa: E402

NAMES = ["ada", "ada", "ada", "ben", "ben"]


def ask_as_training_does(data: Path, url: str | None = None) -> list[float]:
    """One step's question, whose answers are waited for until a signal comes."""
    judge, images = load_judge(PEOPLE, "cpu", data / "weights", Place(data, url)), make_greys(50, 90, 10, 7, 8)
    assert isinstance(judge, PeopleJudge)
    with stop_at_next_step() as stop_asked:
        judge.begin_step(Accelerator(cpu=True), "tiny-grpo", 0, stop_asked)
        found: list[float] = judge.score(images, images, images, [None] * 5, NAMES).tolist()
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_waits_can_be_ended_and_the_step_taken_anew(
    database: Database, data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    fill(database, data, tmp_path / "photos")
    process = start(tmp_path / "log", ask_as_training_does, data)
    wait_until(lambda: fetch(database, select(Pair.awaited)) == [True] * 4)
    assert answer_next(database, data) is not None
    assert process.pid is not None
    began = time.monotonic()
    process.kill() if number == signal.SIGKILL else process.terminate()
    process.join(30)
    assert process.exitcode == (-9 if number == signal.SIGKILL else 128 + 15), (tmp_path / "log").read_text()
    assert time.monotonic() - began < 5
    before = count_rows(database, Candidate, Pair, Method)
    with answering(database, data):
        assert ask_as_training_does(data) == [0.5, 1.0, 0.0, 0.0, 1.0]
    assert count_rows(database, Candidate, Pair, Method) == before
    assert count_rows(database, Judgment) == [4]


def test_people_are_asked_on_either_database(
    any_database: Database, data: Path, database_url: str | None, tmp_path: Path
) -> None:
    fill(any_database, data, tmp_path / "photos")
    with answering(any_database, data):
        assert ask_as_training_does(data, database_url) == [0.5, 1.0, 0.0, 0.0, 1.0]
    with any_database.write() as session:
        save_settings(session, {"task_size": 3})
    with answering(any_database, data):  # of two the pair that is answered stays
        assert ask_as_training_does(data, database_url) == [0.25, 1.0, 0.25, 0.0, 1.0]
    assert count_rows(any_database, Pair, Task, Judgment) == [4, 1, 5]
