"""A command started from wherever is the same run: the same config, made from the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from annotate.measure.command import MEASURE, MeasureOptions
from db.models import Run, RunState
from db.session import Database
from runs.__main__ import main
from runs.launch import start
from runs.rounds import RoundSettings, plan_round, start_round
from tests.watching import get_run, wait_for_end

ROOT = Path(__file__).resolve().parents[3]


def test_the_same_measuring_from_page_round_queue_and_terminal(
    database: Database, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    queue = "cuda:7"  # which is not here, so that nothing starts
    ids = {"page": start(database, data, MEASURE, MeasureOptions())}
    ids["queued page"] = start(database, data, MEASURE, MeasureOptions(), device=queue)
    ids["round"] = start_round(database, data, plan_round(data, 1, RoundSettings(device=queue)))[0]
    assert main(["start", "--data", str(data), "--device", queue, "--", "annotate", "measure"]) == 0
    ids["queue"] = newest(database)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0"}
    command = [sys.executable, "-m", "annotate", "measure", "--data", str(data)]
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    ids["terminal"] = newest(database)
    wait_for_end(database, data, ids["page"])

    runs = {name: get_run(database, run_id) for name, run_id in ids.items()}
    assert len(set(ids.values())) == 5
    assert {run.kind for run in runs.values()} == {"annotate measure"}
    assert {name for name, run in runs.items() if run.state is RunState.queued} == {"queued page", "round", "queue"}
    assert all(runs[name].started_at for name in ("page", "terminal")), "these have claimed or made their rows"
    for name, run in runs.items():
        assert run.config == MeasureOptions().model_dump(mode="json"), name
        assert run.inputs == [{"option": "metrics", "kind": "metrics", "value": "offline"}], name
        assert run.outputs == [], name
        assert run.arguments == [], name


def newest(database: Database) -> int:
    with database.read() as session:
        return session.scalars(select(Run.id).order_by(Run.id.desc())).first() or 0


def test_what_the_command_would_refuse_is_not_queued(
    database: Database, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["annotate", "measure", "--workers", "0"], "--workers: Give 1 or more, got '0'."),
        (["annotate", "measure", "--metrics", "none"], "none"),
        (["annotate", "measured"], "There is no command 'annotate measured'; there are annotate import, "),
        (["reward", "train", "--preset", "tiny"], "No dataset is named."),
        (["reward", "score", "--scorer", "x", "--out", "y"], "--out is for rewards of files"),
    ):
        assert main(["start", "--data", str(data), "--device", "cuda:7", "--", *words]) == 2
        assert said in capsys.readouterr().err
    with database.read() as session:
        assert session.scalars(select(Run)).all() == []


def test_a_queued_trainings_words_stay_as_typed_and_its_config_is_whole(
    database: Database, data: Path, tmp_path: Path
) -> None:
    words = ["--preset", "tiny", "--dataset", str(tmp_path / "later"), "--max-steps", "7", "--warmup-steps=1"]
    assert main(["start", "--data", str(data), "--device", "cuda:7", "--", "reward", "train", *words]) == 0
    run = get_run(database, 1)
    assert run.arguments == words
    assert (run.config["preset"], run.config["train"]["max_steps"]) == ("tiny", 7)
    assert "memory" not in run.config
    assert Path(run.config["out"]).parent == data.absolute() / "rewards"
    assert run.inputs == [{"option": "dataset", "kind": "dataset", "value": str(tmp_path / "later")}]
    assert run.outputs == [{"option": "out", "value": run.config["out"]}]
