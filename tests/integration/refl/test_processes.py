"""ReFL in two processes is ReFL in one: nothing hangs, all processes hold the same weights, decisions are the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from safetensors.torch import load_file  # noqa: E402

from reward.model.checkpoint import save_model  # noqa: E402
from tests.forked import run_two, start  # noqa: E402
from tests.gradients import difference  # noqa: E402
from tests.integration.refl import train_in_processes  # noqa: E402
from tests.unit.refl.conftest import make_micro_reward, write_faces  # noqa: E402
from tests.watching import LIMIT_SECONDS  # noqa: E402

MAX_DIFFERENCE = 7.4e-5
"""Of the first step's gradients between one process and two, against their length: ten times the most measured, 7.4e-6,
over all scenarios with ATEN_CPU_CAPABILITY unset, avx2 and default. In bfloat16 a batch of another size rounds
otherwise, so there only the processes are compared with each other."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both runs of all scenarios: `one`, `two` and their folders."""
    folder = tmp_path_factory.mktemp("processes")
    write_faces(folder / "faces", 9)
    save_model(make_micro_reward(folder, unlocked_image_groups=2), folder / "reward")
    found: dict[str, Any] = {"folder": folder}
    for name in ("one", "two"):
        (folder / name).mkdir()
        if name == "two":
            run_two(folder / "log", train_in_processes.main, folder, folder / name)
        else:
            alone = start(folder / "log", train_in_processes.main, folder, folder / name, ACCELERATE_USE_CPU="true")
            alone.join(LIMIT_SECONDS)
            assert alone.exitcode == 0, (folder / "log").read_text()
        found[name] = torch.load(folder / name / "results.pt", weights_only=True)
    return found


COMPARING = ("dpo", "gdpo", "grpo")
MAX_COMPARING_DIFFERENCE = 1e-3
"""beta multiplies what a first step's rounding changes of the second's errors: 1.8e-4 of dpo. Images of groups are
rewarded in 8 bits, where rounding may fall either way; see `test_algorithms`."""
SCENARIOS = [
    "periods",
    "dataset",
    "nine faces",
    "stop",
    "roll back",
    "brake",
    "lora",
    "osediff",
    "dpo",
    "gdpo",
    "grpo",
    "bf16",
    "signal",
    "SIGUSR1",
    "killed",
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_hold_the_same_weights_and_learn_as_one(results: dict[str, Any], name: str) -> None:
    one, two = results["one"][name], results["two"][name]
    assert two["same"]
    assert one["ended"] == two["ended"]
    assert len(one["gradients"]) == 2  # of the restorer and of the reward model; of its first two steps where none is
    if name != "bf16":
        for alone, together in zip(one["gradients"], two["gradients"], strict=True):
            assert difference(alone, together) < (MAX_COMPARING_DIFFERENCE if name in COMPARING else MAX_DIFFERENCE)


def test_they_end_as_they_should(results: dict[str, Any]) -> None:
    ended = {name: found["ended"] for name, found in results["two"].items()}
    assert ended["periods"] == ended["dataset"] == ended["nine faces"] == ["step 5"]
    assert ended["stop"] == ended["roll back"] == ["step 2"]
    assert ended["brake"] == ["step 4"]  # it went back once at step 2, and ended when it would have had to again
    assert ended["signal"] == ended["SIGUSR1"] == ["stopped", "step 5"]
    assert ended["killed"] == ["killed", "step 5"]
    out = results["folder"] / "two"
    grids = sorted(path.name for path in (out / "periods" / "grids").iterdir())
    assert grids == ["000000.png", "000002.png", "000004.png", "000005.png"]
    assert [path.name for path in sorted((out / "periods" / "steps").iterdir())] == ["000002", "000004"]
    # what is rolled back to is from before the first suspicious check
    assert json.loads((out / "roll back" / "tuned" / "training.json").read_text())["step"] == 0
    assert json.loads((out / "brake" / "tuned" / "training.json").read_text())["step"] == 0
    checks = json.loads((out / "brake" / "checks.json").read_text())["checks"]
    assert [row["action"] for row in checks] == ["keep", "back", "stop"]
    good, last = (load_file(out / "brake" / name / "trained.safetensors") for name in ("good", "last"))
    assert all(torch.equal(value, last[key]) for key, value in good.items())
    assert json.loads((out / "stop" / "tuned" / "training.json").read_text())["step"] == 2


@pytest.mark.parametrize("processes", ["one", "two"])
def test_stopped_and_killed_trainings_continue_to_the_same_weights(results: dict[str, Any], processes: str) -> None:
    """`signal`, `SIGUSR1` and `killed` are the same training, ended differently."""
    out = results["folder"] / processes
    for file in ("trained.safetensors", "reward/changes.safetensors"):
        killed = load_file(out / "killed" / "last" / file)
        for name in ("signal", "SIGUSR1"):
            stopped = load_file(out / name / "last" / file)
            assert all(torch.equal(value, killed[key]) for key, value in stopped.items()), (name, file)
