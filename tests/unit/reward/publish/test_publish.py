"""A published reward model gives the same rewards to people who have torch and open_clip alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")

from db.errors import UserError  # noqa: E402
from reward.__main__ import main  # noqa: E402
from reward.model.checkpoint import save_model  # noqa: E402
from reward.model.model import RewardModel  # noqa: E402
from reward.publish.command import PUBLISH  # noqa: E402
from reward.publish.folder import write_folder  # noqa: E402
from runs.options import read_words  # noqa: E402
from tests.unit.refl.conftest import make_micro_reward  # noqa: E402

MODES: dict[str, dict[str, object]] = {
    "fixed": {},
    "caption": {},
    "learned": {},
    "input": {"members": 1},
    "input+learned": {"members": 2},
}
ELSEWHERE = """
import importlib.util, json, sys
from pathlib import Path
import torch
assert importlib.util.find_spec("reward") is None and importlib.util.find_spec("refl") is None
torch.set_num_threads(1)
for folder in json.loads(sys.argv[1]):
    spec = importlib.util.spec_from_file_location("score", Path(folder) / "score.py")
    score = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    given = torch.load(Path(folder).parent / "given.pt", weights_only=True)
    rewards = score.Reward(folder)(given["images"], given["captions"], given["inputs"])
    print(json.dumps(rewards.tolist()))
"""


def make(folder: Path, mode: str) -> RewardModel:
    """Random weights, those of the heads' last layers too, which begin as nothing."""
    folder.mkdir()
    model = make_micro_reward(folder, text_mode=mode, **MODES[mode]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("heads."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_elsewhere_the_rewards_are_the_same_within_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"images": torch.rand(3, 3, 20, 24), "captions": ["a face", None, "a blue face"]}
    given["inputs"] = torch.rand(3, 3, 24, 20)
    torch.save(given, tmp_path / "given.pt")
    expected, folders = [], []
    for mode in MODES:
        model = make(tmp_path / f"model-{mode}", mode)
        folders.append(tmp_path / f"published-{mode}")
        folders[-1].mkdir()
        write_folder(model, folders[-1])
        with torch.no_grad():
            expected.append(model(given["images"], given["captions"], given["inputs"]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, json.dumps([str(folder) for folder in folders])],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    for line, rewards in zip(told.stdout.splitlines(), expected, strict=True):
        assert json.loads(line) == pytest.approx(rewards.tolist(), abs=1e-6)
    assert len({tuple(rewards.tolist()) for rewards in expected}) == len(MODES)


def test_the_command_writes_a_folder_whole_that_is_the_model_here_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(tmp_path / "source", "fixed")
    save_model(model, tmp_path / "source" / "best")
    words = ["publish", str(tmp_path / "source" / "best"), "--out", str(tmp_path / "out"), f"--data={tmp_path}"]
    assert main(words) == 0
    assert "files" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: ")
    assert "from score import Reward" in card
    from reward.model.checkpoint import compute_version, load_named

    assert compute_version(load_named(str(tmp_path / "out" / "facereward"))) == compute_version(model)
    assert json.loads((tmp_path / "out" / "reward.json").read_text())["version"] == compute_version(model)
    assert main(words) == 2
    assert "is there already; name a new folder" in capsys.readouterr().err


def test_what_cannot_be_pushed_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for name in ("no/such/thing", "../x", "a b/c", "org/name@main"):
        options = read_words(PUBLISH, ["tiny", f"--out={tmp_path / 'out'}", f"--push={name}"])
        with pytest.raises(UserError, match="--push: "):
            PUBLISH.run(options, make_place(tmp_path))
    assert not (tmp_path / "out").exists()


def make_place(folder: Path):
    from runs.options import Place

    return Place(folder, None, None)
