"""The brake: its rule, that going back is exact, and that a kill anywhere changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

import refl.tune.monitor
from db.errors import UserError
from refl.restorers.osediff import OSEDiff
from refl.tune.brake import decide, describe_checks, find_factor, is_stopped, list_actions
from refl.tune.config import ReflTrainConfig
from refl.tune.train import compute_learning_rate, train
from refl.tune.verdict import Check, Verdict
from tests.unit.refl.conftest import make_micro_osediff, make_micro_restorer, write_faces
from tests.unit.refl.tune.test_refl_train import clip, make_config, make_material  # noqa: F401
from training.precision import TrainedWeights

Begin = Callable[..., dict[str, Any]]
FELL = "the reward rose while psnr, grid fell"


def tell(suspicious: str, backs_max: int = 3) -> list[dict[str, Any]]:
    """The history of a first check and one for each letter: s is suspicious, g good, w a slip. Steps are 0, 10, …"""
    history: list[dict[str, Any]] = []
    for place, letter in enumerate(f"-{suspicious}"):
        row: dict[str, Any] = {"step": 10 * place, "verdict": None}
        if place:
            before = history[-1]["verdict"]
            row_goes_on = before and before["suspicious"] and history[-1]["brake"]["action"] != "back"
            bad = letter == "s"
            fallen = ["psnr", "grid"] if bad else []
            row["verdict"] = {
                "suspicious": bad,
                "hacking": bool(bad and row_goes_on),
                "fallen": fallen,
                "slips": letter != "g",
                "slipping": [] if letter == "g" else ["psnr", "grid"],
                "reward_rose": True,
            }
        history.append(row)
        history[-1]["brake"] = vars(decide(history, 0.5, backs_max))
    return history


@pytest.mark.parametrize(
    ("seen", "actions", "good_step", "factor"),
    [
        ("ggg", "keep keep keep keep", 30, 1.0),
        ("gs", "keep keep lower", 10, 0.5),
        ("gwgwwss", "keep keep wait keep wait wait lower back", 30, 0.25),
        ("gsg", "keep keep lower keep", 30, 0.5),
        ("gss", "keep keep lower back", 10, 0.25),
        ("ss", "keep lower back", 0, 0.25),  # what training begins with is good
        ("gsssg", "keep keep lower back lower keep", 50, 0.125),  # going back begins a new row
        ("gssss", "keep keep lower back lower back", 10, 0.0625),
        ("gssssss", "keep keep lower back lower back lower stop", 10, 0.5**6),
        ("gssgssgss", "keep keep lower back keep lower back keep lower stop", 70, 0.5**6),
    ],
)
def test_the_rule(seen: str, actions: str, good_step: int, factor: float) -> None:
    history = tell(seen)
    assert [row["brake"]["action"] for row in history] == actions.split()
    assert history[-1]["brake"]["good_step"] == good_step
    assert find_factor(history) == factor
    assert is_stopped(history) is actions.endswith("stop")


def test_each_decision_says_why_in_words() -> None:
    history = tell("gssss", backs_max=2)
    assert [row["reason"] for row in list_actions(history)] == [
        f"{FELL}; once may be chance, so the learning rate alone is lowered, to 0.5 of the setting",
        f"{FELL}, twice in a row: back to step 10, the last good check, and on at 0.25 of the learning rate",
        f"{FELL}; once may be chance, so the learning rate alone is lowered, to 0.125 of the setting",
        f"{FELL}, twice in a row, 2 times now: training ends with what it was at step 10, its last good check",
    ]
    rows = describe_checks(history)
    assert [(row["step"], row["seen"], row["action"]) for row in rows[:4]] == [
        (0, "good", "keep"),
        (10, "good", "keep"),
        (20, "suspicious", "lower"),
        (30, "hacking", "back"),
    ]
    without = [{key: value for key, value in row.items() if key != "brake"} for row in history]
    assert describe_checks(without)[2] == {
        "step": 20,
        "seen": "suspicious",
        "action": "",
        "factor": 1.0,
        "why": FELL,
    }
    assert find_factor(without) == 1.0
    assert not is_stopped(without)


@pytest.mark.parametrize("action", ["stop", "roll_back", "brake"])
def test_hacking_that_is_never_looked_for_cannot_be_acted_on(action: str) -> None:
    with pytest.raises(ValidationError, match=f"on_hacking is {action}, but monitor_every_steps 0 never looks"):
        ReflTrainConfig(on_hacking=action, monitor_every_steps=0)
    ReflTrainConfig(on_hacking=action, monitor_every_steps=1)


STEPS = 7
TABLES: dict[str, dict[str, Any]] = {
    "live_reward": {"reward_every_steps": 2, "reward_learning_rate": 1e-3},
    "train": {
        "on_hacking": "brake",
        "max_steps": STEPS,
        "ema_decay": 0.5,
        "warmup_steps": 3,
        "monitor_every_steps": 1,
        "monitor_faces": 2,
    },
}
SUSPICIOUS = (3, 4, 6)
"""Good to step 2; lowered at 3; back to 2 at 4; good at 5; lowered at 6; good at the end."""
KILLS = [
    ("control", (1, 2, 3, 4, 5, 6, 7)),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in (("bf16", (3, 4)), ("lora", (4,)))),
]
"""After which steps each training is killed."""
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "control": {},
    "bf16": {"train": {"mixed_precision": "bf16"}},
    "lora": {
        "train": {"trainable": "lora", "lora_rank": 2, "ema_decay": 0.0},
        "live_reward": {"reward_every_steps": 0},
    },
    "osediff": {
        "train": {"trainable": "lora", "lora_rank": 2, "image_size_px": 32},
        "trajectory": {"gradient_window": (0, 0)},
    },
}


class Killed(Exception):
    """Stands for SIGKILL: nothing is written any more."""


def merge(*tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in tables:
        for table, fields in one.items():
            found[table] = {**found.get(table, {}), **fields}
    return found


@pytest.fixture(scope="module")
def begin(clip: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Begin:  # noqa: F811
    """`begin(out, kind="lora", suspicious=(3, 4))`: the training from its start, or on from where it was ended."""
    faces = write_faces(tmp_path_factory.mktemp("photos") / "faces")
    compare = refl.tune.monitor.compare

    def make(
        out: Path,
        act: Callable[[int], None] = lambda _done: None,
        kind: str = "control",
        suspicious: tuple[int, ...] = SUSPICIOUS,
        **fields: Any,
    ) -> dict[str, Any]:
        def say(first: Check, now: Check, needed: int, before_suspicious: bool) -> Verdict:
            bad = now.step in suspicious
            verdict = compare(first, now, needed, before_suspicious)
            return replace(
                verdict, suspicious=bad, hacking=bad and before_suspicious, fallen=["psnr"] if bad else [], slips=bad
            )

        config = make_config(**merge(TABLES, KINDS[kind], {"train": fields}))
        restorer = make_micro_osediff() if kind == "osediff" else make_micro_restorer()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(refl.tune.monitor, "compare", say)
            assert isinstance(restorer, OSEDiff) == (kind == "osediff")
            return train(make_material(restorer, clip, faces), config, out, lambda done, _total, _values: act(done))

    return make


@pytest.fixture(scope="module")
def whole(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`whole("lora")`: the folder of a training that was never ended; each is trained once."""

    @cache
    def train_whole(kind: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "out"
        begin(out, kind=kind)
        return out

    return train_whole


def read_all(folder: Path) -> dict[str, Any]:
    """Every number that a checkpoint holds, by file and name."""
    found: dict[str, Any] = {}
    for file in folder.rglob("*.safetensors"):
        found |= {f"{file.relative_to(folder)}/{name}": value for name, value in load_file(file).items()}

    def add(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, one in value.items():
                add(f"{name}/{key}", one)
        elif isinstance(value, list):
            for place, one in enumerate(value):
                add(f"{name}/{place}", one)
        else:
            found[name] = value

    if (folder / "state.pt").exists():
        add("state", torch.load(folder / "state.pt", weights_only=True))
    return found


def check_equal(one: Path, other: Path, but: tuple[str, ...] = ()) -> None:
    """Check that two checkpoints hold the same, but for what these parts of a name say."""
    a, b = read_all(one), read_all(other)
    assert len(a) > 10
    for name in (name for name in a.keys() | b.keys() if not any(part in name for part in but)):
        same = torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        assert same, name


@pytest.mark.parametrize("kind", KINDS)
def test_going_back_restores_every_number(begin: Begin, tmp_path: Path, kind: str) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"

    def keep(done: int) -> None:
        if done in (2, 4):
            shutil.copytree(out / "last", kept / str(done))
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        begin(out, keep, kind=kind)
    # but for the learning rate, which the next step sets, and what is told of the way here
    check_equal(
        kept / "2",
        kept / "4",
        but=("state/step", "state/monitor", "state/sums", "state/evaluations", "state/seconds", "/lr"),
    )
    check_equal(kept / "2", out / "good")
    moments = [name for name in read_all(out / "good") if "exp_avg" in name]
    assert len(moments) > 10
    assert json.loads((out / "tuned" / "training.json").read_text())["step"] == 2


def test_the_next_step_starts_from_the_good_weights_at_a_lower_rate(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    set_rate = TrainedWeights.set_learning_rate
    monkeypatch.setattr(
        TrainedWeights, "set_learning_rate", lambda one, rate: (rates.append(rate), set_rate(one, rate))[1]
    )
    begin(tmp_path / "out", kind="lora")
    config = make_config(**merge(TABLES, KINDS["lora"]))
    factors = [1, 1, 1, 0.5, 0.25, 0.25, 0.125]
    assert rates == [compute_learning_rate(step, config) * factor for step, factor in enumerate(factors)]


@pytest.mark.parametrize(("kind", "kills"), KILLS)
def test_killed_after_any_step_it_is_what_it_would_have_been(
    begin: Begin, whole: Callable[[str], Path], tmp_path: Path, kind: str, kills: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    for kill in kills:

        def die(done: int, at: int = kill) -> None:
            if done == at:
                raise Killed

        with pytest.raises(Killed):
            begin(out, die, kind=kind)
        assert json.loads((out / "last" / "training.json").read_text())["step"] == kill
    result = begin(out, kind=kind)
    for name in ("last", "good", "tuned"):
        check_equal(whole(kind) / name, out / name, but=("state/sums", "state/seconds"))
    assert [row["action"] for row in result["brake"]["actions"]] == ["lower", "back", "lower"]
    assert result["brake"]["good_step"] == STEPS
    assert (out / "checks.json").read_text() == (whole(kind) / "checks.json").read_text()


@pytest.mark.parametrize("broken", ["good", "tuned"])
def test_a_kill_between_last_and_good_is_mended(
    begin: Begin, whole: Callable[[str], Path], tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import refl.tune.save as save

    out, write = tmp_path / "out", save.save_checkpoint

    def write_some(folder: Path, function: Any, record: dict[str, Any], state: Any = None) -> None:
        if folder.name == broken and record["step"] == 2:
            raise Killed
        write(folder, function, record, state)

    with monkeypatch.context() as patch:
        patch.setattr(save, "save_checkpoint", write_some)
        with pytest.raises(Killed):
            begin(out)
    assert json.loads((out / "last" / "training.json").read_text())["step"] == 2
    assert json.loads((out / broken / "training.json").read_text())["step"] == 1
    begin(out)
    for name in ("last", "good", "tuned"):
        check_equal(whole("control") / name, out / name, but=("state/sums", "state/seconds"))


def test_the_third_time_ends_training_for_good_and_tuned_is_the_last_good(begin: Begin, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = begin(out, max_steps=STEPS + 1, suspicious=tuple(range(2, STEPS + 1)))
    assert result["step"] == 7  # lowered at 2, 4, 6; back at 3 and 5; stopped at 7
    assert [row["action"] for row in result["brake"]["actions"]] == ["lower", "back", "lower", "back", "lower", "stop"]
    assert result["brake"]["good_step"] == 1
    assert json.loads((out / "tuned" / "training.json").read_text())["step"] == 1
    before = (out / "last" / "state.pt").read_bytes()
    again = begin(out, max_steps=STEPS + 1, suspicious=())  # the same command again does not train on
    assert (again["step"], again["brake"]) == (7, result["brake"])
    assert (out / "last" / "state.pt").read_bytes() == before


def test_a_checkpoint_to_go_back_to_that_is_gone_is_told_before_training(begin: Begin, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def die(done: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        begin(out, die)
    shutil.rmtree(out / "good")
    with pytest.raises(UserError, match=r"good is missing, but the brake has to go back to step 2 where it must"):
        begin(out)


def test_good_is_linked_not_copied(begin: Begin, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, suspicious=(), max_steps=1, ema_decay=0.0)
    for file in ("state.pt", "trained.safetensors", "reward/changes.safetensors"):
        assert (out / "good" / file).samefile(out / "last" / file)
    assert (out / "tuned" / "trained.safetensors").samefile(out / "good" / "trained.safetensors")
