"""What the loops of all trainings say and do at the end of a step."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reward.train.command import TRAIN
from runs.options import Place, read_words
from runs.store import RunStopped
from training.run import end_where_asked, hold_training, record_training, tell_step


def test_a_signal_ends_a_training_that_has_steps_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training")
    end_where_asked(0, 3, 5)
    end_where_asked(15, 5, 5)
    assert not caplog.text
    for phase, said in (("", "stopped after step 1,000; the same"), ("vae", "stopped after step 1,000 of vae; the")):
        with pytest.raises(RunStopped) as stopped:
            end_where_asked(15, 1000, 1001, phase)
        assert stopped.value.code == 143
        assert said in caplog.text


def test_only_the_main_process_tells_a_step_and_only_one_with_values() -> None:
    logged: list[Any] = []
    told: list[Any] = []
    for is_main in (True, False):
        accelerator: Any = SimpleNamespace(log=lambda *_, step: logged.append(step), is_main_process=is_main)
        tell_step(accelerator, lambda *line: told.append(line), 2, 4, {"loss": 1.0})
        tell_step(accelerator, lambda *line: told.append(line), 3, 4, {})
        tell_step(accelerator, None, 4, 4, {"loss": 2.0})
    assert logged == [2, 4, 2, 4]
    assert told == [(2, 4, {"loss": 1.0})]


def test_other_processes_have_no_run_and_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = read_words(TRAIN, ["--preset=tiny", "--dataset=d"])
    monkeypatch.setenv("RANK", "1")
    with record_training(TRAIN, options, Place(tmp_path)) as (run, progress), hold_training(tmp_path / "out"):
        assert run is None
        progress(1, 2, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
