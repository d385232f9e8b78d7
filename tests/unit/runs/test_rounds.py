"""The plan of a round: commands that the real parsers take, in the order of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from refl.tune.config import load_refl_config
from runs import launch
from runs.options import read_words
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


@pytest.mark.parametrize("settings", [RoundSettings(), ALL], ids=["defaults", "all"])
def test_every_command_is_one_that_its_package_takes(tmp_path: Path, settings: RoundSettings) -> None:
    data = tmp_path / "a folder; with words"
    plan = plan_round(data, 4, settings)
    assert [one.kind for one in plan] == KINDS
    assert [one.after for one in plan] == [[], [0], [1], [2], [3], [4], [5], [6]]
    folder = data / "rounds" / "4"
    read = {one.kind: one.command.settle(read_words(one.command, one.arguments), data) for one in plan}
    assert read == {one.kind: one.command.settle(one.options, data) for one in plan}
    assert read["annotate fit"].target_accuracy == settings.target_accuracy
    assert read["annotate export"].include_simulated is settings.include_simulated
    reward = read["reward train"]
    assert (reward.dataset, reward.out) == (folder / "dataset", folder / "reward")
    assert reward.train.max_steps == (settings.max_reward_steps or 1000)
    assert (reward.train.validate_every_steps > 0) is settings.measure_held_out
    refl = read["refl train"]
    assert (refl.train.monitor_every_steps > 0) is settings.measure_held_out
    assert (refl.reward, refl.out, refl.restorer) == (
        str(folder / "reward/best"),
        folder / "restorer",
        settings.restorer,
    )
    preset = load_refl_config(settings.refl_preset)
    assert refl.train.max_steps == (settings.max_refl_steps or preset.train.max_steps)
    restore = read["refl restore"]
    assert (restore.methods, restore.seeds) == ([f"round-4={folder / 'restorer/tuned'}"], list(settings.seeds))
    assert {one.device for one in plan} == ({None} if settings.device is None else {None, settings.device})
    assert [one.out for one in plan if one.out] == [folder / name for name in ("dataset", "reward", "restorer")]


def test_what_is_no_setting_is_refused() -> None:
    for values in ({"device": "gpu"}, {"target_accuracy": 1.2}, {"seeds": ()}, {"max_refl_steps": 0}, {"wings": 2}):
        with pytest.raises(ValidationError):
            RoundSettings.model_validate(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reward_preset": "none"}, "^reward train: There is no preset 'none'"),
        ({"refl_preset": "none"}, "^refl train: There is no preset 'none'"),
        ({"seeds": (-1,)}, "^refl restore: --seeds: Give 0 or more, got -1"),
    ],
)
def test_what_a_command_would_refuse_makes_no_plan(data: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_round(data, 1, RoundSettings(**values))


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
        by_kind = {run.kind: run for run in runs}
    out = str(data.resolve() / "rounds" / "1")
    assert by_kind["reward train"].config["train"]["max_steps"] == 1000
    assert by_kind["reward train"].inputs == [{"option": "dataset", "kind": "dataset", "value": f"{out}/dataset"}]
    assert by_kind["reward train"].outputs == [{"option": "out", "value": f"{out}/reward"}]
    assert {"option": "reward", "kind": "judge", "value": f"{out}/reward/best"} in (by_kind["refl train"].inputs or ())
    assert [one["value"] for one in by_kind["refl restore"].inputs or ()] == [f"{out}/restorer/tuned"]
    assert next_round_no(data) == 2
    with pytest.raises(UserError, match="plan the next round anew"):  # somebody else was faster
        start_round(database, data, plan)
    assert len(fetch(database, select(Run))) == len(KINDS), "all or none"
