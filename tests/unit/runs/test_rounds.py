"""The plan of a round: commands that the real parsers take, in the order of the loop."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import select

from annotate.__main__ import add_export_command, add_pair_command
from annotate.labeler.command import add_fit_command, add_label_command, read_settings
from annotate.measure.command import add_measure_command
from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from refl.restore.command import add_restore_command, check_arguments
from refl.tune.command import add_train_command as add_refl_train_command
from refl.tune.command import read_config as read_refl_config
from reward.train.command import add_train_command
from reward.train.command import read_config as read_reward_config
from runs import launch
from runs.command import add_common_options
from runs.process import start_process
from runs.rounds import RoundSettings, next_round_no, plan_round, start_round
from runs.supervise import why_waiting
from tests.making import fetch

KINDS = [
    "annotate measure",
    "annotate fit",
    "annotate label",
    "annotate export",
    "reward train",
    "refl train",
    "refl restore",
    "annotate pair",
]
ADD = {
    "annotate": (add_measure_command, add_fit_command, add_label_command, add_export_command, add_pair_command),
    "reward": (add_train_command,),
    "refl": (add_refl_train_command, add_restore_command),
}
ALL = RoundSettings(
    reward_preset="vit-b-32",
    refl_preset="paper",
    restorer="-odd name",
    max_reward_steps=7,
    max_refl_steps=3,
    measure_held_out=False,
    include_simulated=True,
    target_accuracy=0.8,
    seeds=(0, 5),
    device="cuda:1",
)


def parse(kind: str, arguments: list[str]) -> argparse.Namespace:
    package, command = kind.split()
    parser = argparse.ArgumentParser(exit_on_error=False)
    commands = parser.add_subparsers()
    for add in ADD[package]:
        add(commands)
    for one in commands.choices.values():
        add_common_options(one)
    return parser.parse_args([command, "--data", "somewhere", "--run", "3", *arguments])


@pytest.mark.parametrize("settings", [RoundSettings(), ALL], ids=["defaults", "all"])
def test_every_command_is_one_that_its_package_takes(tmp_path: Path, settings: RoundSettings) -> None:
    plan = plan_round(tmp_path / "a folder; with words", 4, settings)
    assert [one.kind for one in plan] == KINDS
    assert [one.after for one in plan] == [[], [0], [1], [2], [3], [4], [5], [6]]
    parsed = {one.kind: parse(one.kind, one.arguments) for one in plan}
    folder = tmp_path / "a folder; with words" / "rounds" / "4"
    assert read_settings(parsed["annotate fit"]).target_accuracy == settings.target_accuracy
    assert parsed["annotate export"].include_simulated is settings.include_simulated
    dataset, out, _, training = read_reward_config(parsed["reward train"])
    assert (dataset, out) == (folder / "dataset", folder / "reward")
    assert training.max_steps == (settings.max_reward_steps or training.max_steps)
    assert (training.validate_every_steps > 0) is settings.measure_held_out
    refl = parsed["refl train"]
    assert (read_refl_config(refl).train.monitor_every_steps > 0) is settings.measure_held_out
    assert (refl.reward, refl.out, refl.restorer) == (
        str(folder / "reward/best"),
        folder / "restorer",
        settings.restorer,
    )
    assert read_refl_config(refl).train.max_steps == (settings.max_refl_steps or read_refl_config(refl).train.max_steps)
    restore = parsed["refl restore"]
    check_arguments(restore)
    assert (restore.method, restore.seeds) == ([f"round-4={folder / 'restorer/tuned'}"], list(settings.seeds))
    assert {one.device for one in plan} == ({None} if settings.device is None else {None, settings.device})


def test_what_is_no_setting_is_refused() -> None:
    for values in ({"device": "gpu"}, {"target_accuracy": 1.2}, {"seeds": ()}, {"max_refl_steps": 0}, {"wings": 2}):
        with pytest.raises(ValidationError):
            RoundSettings.model_validate(values)


def test_a_round_is_queued_as_a_chain(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def note(data: Path, run: Run, url: str | None) -> None:
        started.append(run.id)
        run.pid, run.pid_started = 1, None

    assert start_process is launch.start_process
    monkeypatch.setattr("runs.supervise.start_process", note)
    assert next_round_no(data) == 1
    plan = plan_round(data, 1, RoundSettings())
    ids = start_round(database, data, plan)
    assert started == ids[:1]
    with database.read() as session:
        runs = session.scalars(select(Run).order_by(Run.id)).all()
        assert [run.kind for run in runs] == KINDS
        assert [run.after for run in runs] == [[], *([earlier] for earlier in ids[:-1])]
        assert {run.state for run in runs} == {RunState.queued}
        assert why_waiting(session, data, runs[3]) == f"waits for run {ids[2]}"
    assert next_round_no(data) == 2
    with pytest.raises(UserError, match="plan the next round anew"):  # somebody else was faster
        start_round(database, data, plan)
    assert len(fetch(database, select(Run))) == len(KINDS), "all or none"
